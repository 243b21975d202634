"""What pages are made of: the files that are served as they stand, and the templates that are filled in."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

FILES = {
    "page.css": ("palate.reports", "templates/page.css", "text/css"),
    "explorer.css": ("palate.explorer", "static/explorer.css", "text/css"),
    "htmx.js": ("palate.explorer", "static/htmx.min.js", "text/javascript"),
    "keys.js": ("palate.explorer", "static/keys.js", "text/javascript"),
}
"""Every file that is served, by name: nothing in an address becomes a path."""

HTMX = {"allowEval": False, "allowScriptTags": False, "includeIndicatorStyles": False, "selfRequestsOnly": True, "historyCacheSize": 0} | {
    "refreshOnHistoryMiss": True,
    "defaultSettleDelay": 0,
}
"""Settings of htmx under the content policy. Pages are private, so it keeps none. Without a delay what was swapped in answers to the very next key."""


class File(NamedTuple):
    content: bytes
    media_type: str


@cache
def served() -> dict[str, File]:
    return {name: File(files(room).joinpath(path).read_bytes(), kind) for name, (room, path, kind) in FILES.items()}


def templates(**shared: Any) -> Environment:
    """The templates with what all of them see. Whatever is put into one is escaped, and a name that is missing is an error."""
    loader = ChoiceLoader([PackageLoader("palate.explorer"), PackageLoader("palate.reports")])  # tables are those of reports
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # in the address of each file, so that a browser keeps none of an older version
    version = hashlib.sha256(b"".join(file.content for file in served().values())).hexdigest()[:12]
    environment.globals |= {**shared, "version": version, "htmx": json.dumps(HTMX)}
    return environment
