"""Rows as scoring reads them: a prompt with a list of responses needs no word of which one is better, as it does in preference data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palate.data.formats import PROMPTS, RESPONSE_LISTS, SCORE_LISTS
from palate.data.loading import rename_columns


def as_read(row: Mapping[str, Any], columns: Mapping[str, str] | None, location: str) -> Mapping[str, Any]:
    """The row under our names of columns; responses that nothing compares (`palate generate` writes such rows) as responses without a rank."""
    row = rename_columns(row, columns, location) if columns else row
    column = next((name for name in RESPONSE_LISTS if isinstance(row.get(name), (list, tuple))), None)
    if column is None or not set(PROMPTS) & row.keys():
        return row
    compared = {*SCORE_LISTS, "ranks", "comparisons", "labels"} & row.keys()
    ranked = any(isinstance(item, Mapping) and "rank" in item for item in row[column])
    return row if compared or ranked else {**row, "ranks": [None] * len(row[column])}
