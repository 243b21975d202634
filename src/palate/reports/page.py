"""One self-contained HTML page of an evaluation: headline, pictures, subsets, the most confident mistakes (no script, nothing from outside)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from palate.reports.plots import save_figures

MISTAKES_SHOWN = 12


def write_page(
    results: Path,
    page: Path,
    *,
    title: str,
    log_history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Build the page from `results.json` and the items beside it; pictures go to `figures/` beside the page. Returns the page's path."""
    result = json.loads(results.read_text(encoding="utf-8"))
    lines = results.with_name(f"{results.stem}.items.jsonl").read_text(encoding="utf-8").split("\n")  # splitlines also cuts at U+2028 inside a text
    items = [json.loads(line) for line in lines if line]
    figures = save_figures(page.parent / "figures", result, items, log_history)
    scored = [item for item in items if item["label"] != "tie" and item["margin"] is not None]
    environment = Environment(loader=PackageLoader("palate.reports"), autoescape=select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("report.html").render(
        title=title,
        result=result,
        facts=facts or {},
        figures={name: _inline_svg(path) for name, path in figures.items()},
        mistakes=sorted((item for item in scored if item["outcome"] == "wrong"), key=lambda item: item["margin"])[:MISTAKES_SHOWN],
    )
    page.write_text(html, encoding="utf-8")
    return page


def _inline_svg(path: Path) -> Markup:
    svg = path.read_text(encoding="utf-8")
    return Markup(svg[svg.index("<svg") :])  # made by matplotlib from numbers; subset names in it are escaped by the SVG writer
