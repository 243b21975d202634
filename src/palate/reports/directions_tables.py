"""The directions of a decomposition as tables for the terminal: what they go with, and where annotators differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from palate.reports.wording import NOTHING, clean, missing, number, number_span, p_value, percent, shortened

SHOWN = 12
DISPUTED = 4  # directions shown at either end


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
            signed(row["cosine_with_original"]),
            signed(row["length"]["value"]),
            escape(", ".join(f"{shortened(clean(name), 24)} {signed(found['value'])}" for name, found in strongest(row))),
        )
    if len(record["directions"]) > SHOWN:
        table.caption = f"{len(record['directions']) - SHOWN} more in the record"
    return table


def agreement_table(agreement: Mapping[str, Any]) -> Table:
    """The directions along which annotators differ most, and those along which they do least."""
    rows = agreement["directions"]
    table = Table(title=f"Directions by how much {escape(clean(agreement['by']))}s differ along them", title_justify="left")
    table.add_column("direction")
    for heading in ("spread", "interval", "shared", "interval", "same side", "p of no difference"):
        table.add_column(heading, justify="right")
    for row in rows[:DISPUTED] + rows[max(DISPUTED, len(rows) - DISPUTED) :]:
        spread, shared = (number_span(row[f"{name}_interval"], 2) for name in ("spread", "mean"))
        table.add_row(row["name"], number(row["spread"], 2), spread, number(row["mean"], 2), shared, percent(row["same_sign"]), p_value(row["p_value"]))
    if len(rows) > 2 * DISPUTED:
        table.caption = f"the {DISPUTED} most and least disputed of {len(rows)}"
    return table


def strongest(row: Mapping[str, Any], count: int = 2) -> list[tuple[str, Mapping[str, Any]]]:
    """The attributes that go most with a direction, among those whose interval leaves 0 out."""
    found = [(name, one) for name, one in row["attributes"].items() if clear(one)]
    return sorted(found, key=lambda one: -abs(one[1]["value"]))[:count]


def clear(found: Mapping[str, Any]) -> bool:
    """Whether an interval leaves 0 out."""
    low, high = found["interval"]
    return not (missing(low) or missing(high)) and (low > 0 or high < 0)


def signed(value: float | None) -> str:
    return NOTHING if value is None or missing(value) else f"{value:+.2f}"
