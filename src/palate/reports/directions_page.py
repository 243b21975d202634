"""The page and the Markdown of a decomposition's directions, from its directions.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palate.reports.directions_sections import directions_cards, directions_lead, directions_pictures, directions_sections
from palate.reports.files import read_json
from palate.reports.markdown import document
from palate.reports.page import save_page

RECORD_KEYS = ("directions", "pairs", "prompts", "width", "centred", "explained", "original_in_directions")


def write_directions_page(record: Path, page: Path, *, title: str | None = None) -> Path:
    data = read_directions(record)
    return save_page(
        page, title or _title(data), "Directions", directions_lead(data), directions_cards(data), directions_sections(data), directions_pictures(data)
    )


def directions_markdown(record: Path, *, title: str | None = None) -> str:
    data = read_directions(record)
    return document(title or _title(data), directions_lead(data), directions_sections(data))


def read_directions(record: Path) -> dict[str, Any]:
    """Raises DataError where the file is none of `palate decompose`."""
    return read_json(record, RECORD_KEYS, "the directions.json of `palate decompose`")


def _title(data: dict[str, Any]) -> str:
    return f"Directions of preference in {data.get('model') or 'a reward model'}"
