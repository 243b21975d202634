"""Adaptation at test time as tables for the terminal: every method, and every user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from palate.reports.wording import clean, number, p_value, percent, points, points_span, shortened, span

USERS_SHOWN = 20


def overall_table(record: Mapping[str, Any]) -> Table:
    """Accuracy of each method, the mean over users, and its difference to the head that does not adapt."""
    settings, users = record["settings"], record["users"]
    several = len(users) > 1
    over = f"mean of {len(users)} users" if several else "one user"
    table = Table(title=f"Adapted to {settings['pairs']} comparisons, {settings['draws']} draws; {over}", title_justify="left")
    table.add_column("method")
    for heading in ("accuracy", "interval over users" if several else "interval over draws", "minus the single head", "interval", "p"):
        table.add_column(heading, justify="right")
    for name, row in (record["overall"] if several else users[0]["methods"]).items():
        reference = name == next(iter(record["overall"]))
        difference = ("", "", "") if reference else (points(row["difference"]), points_span(row["difference_interval"]), p_value(row["p_value"]))
        table.add_row(name, percent(row["accuracy"]), span(row["interval"]), *difference)
    return table


def user_table(record: Mapping[str, Any], *, by: str) -> Table:
    """Accuracy of each method on each user, with its interval over draws."""
    table = Table(title=f"By {escape(clean(by))}, adapted to {record['settings']['pairs']} comparisons (intervals over draws)", title_justify="left")
    methods = list(record["overall"])
    table.add_column(escape(shortened(clean(by), 30)))
    table.add_column("tested", justify="right")
    for name in methods:
        table.add_column(name.removesuffix(", adapted"), justify="right")
    for user in record["users"][:USERS_SHOWN]:
        cells = [f"{percent(user['methods'][name]['accuracy'])} ({span(user['methods'][name]['interval'])})" for name in methods]
        table.add_row(escape(shortened(clean(user["user"]), 30)), number(user["tested"], 0), *cells)
    if len(record["users"]) > USERS_SHOWN:
        table.caption = f"{len(record['users']) - USERS_SHOWN} more; --results writes all"
    return table
