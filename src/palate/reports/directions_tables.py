"""The directions of a decomposition as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from palate.reports.wording import clean, missing, number, percent, shortened

SHOWN = 12


def directions_table(record: Mapping[str, Any]) -> Table:
    """The first directions: variance, accuracy by itself, and what each goes with most, signed."""
    shown = record["directions"][:SHOWN]
    table = Table(title=f"{len(record['directions'])} directions hold {percent(record['explained'])} of the variance", title_justify="left")
    table.add_column("direction")
    for heading in ("variance", "accuracy alone", "cosine with the head", "r with length"):
        table.add_column(heading, justify="right")
    table.add_column("goes with")
    for row in shown:
        table.add_row(
            row["name"],
            percent(row["explained"]),
            percent(row["accuracy"]["value"]),
            f"{row['cosine_with_original']:+.2f}",
            _signed(row["length"]),
            escape(", ".join(f"{shortened(clean(name), 24)} {_signed(found)}" for name, found in strongest(row))),
        )
    if len(record["directions"]) > SHOWN:
        table.caption = f"{len(record['directions']) - SHOWN} more in the record"
    return table


def strongest(row: Mapping[str, Any], count: int = 2) -> list[tuple[str, Mapping[str, Any]]]:
    """The attributes that go most with a direction, among those whose interval leaves 0 out."""
    clear = [(name, found) for name, found in row["attributes"].items() if _clear(found)]
    return sorted(clear, key=lambda one: -abs(one[1]["value"]))[:count]


def _clear(found: Mapping[str, Any]) -> bool:
    low, high = found["interval"]
    return not (missing(low) or missing(high)) and (low > 0 or high < 0)


def _signed(found: Mapping[str, Any]) -> str:
    value = found["value"]
    return number(value, 2) if missing(value) else f"{value:+.2f}"
