"""Pictures of the reports as SVG that a strict content policy lets through: attributes in place of inline styles, colours by the page's variables."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from palate.reports.drawing import inline, save

STYLE = re.compile(r'\sstyle="([^"]*)"')
STYLE_ELEMENT = re.compile(r"<style.*?</style>", re.DOTALL)
FONT = re.compile(r"^(?P<weight>bold |italic )?(?P<size>[\d.]+)px ")

DRAWING = threading.Lock()
"""matplotlib's settings belong to the whole process, so pictures are made one at a time."""


def svg(figure: Figure, name: str) -> Markup:
    """A figure as an SVG element. `name` keeps its internal ids apart from those of other figures of the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.svg"
        save(figure, path)
        return Markup(without_styles(inline(path)))


def without_styles(markup: str) -> str:
    """Each `style="fill: red; opacity: 0.5"` as `fill="red" opacity="0.5"`; the style element goes (the page's own style sheet says the same)."""
    return STYLE.sub(lambda found: "".join(_attributes(found[1])), STYLE_ELEMENT.sub("", markup))


def _attributes(style: str) -> list[str]:
    found = []
    for declaration in style.split(";"):
        name, colon, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (font := FONT.match(value)):
            found.append(f' font-size="{font["size"]}"')
            if font["weight"]:
                found.append(f' font-weight="{font["weight"].strip()}"')
        elif colon:
            found.append(f' {name}="{value}"')
    return found
