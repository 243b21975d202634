"""Data rows to the same rows with `reward`: parsed, scored together, and never lost; what cannot be scored says why in `reward_error`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from palate.data.formats import Layout, parse_row
from palate.errors import ConfigError, DataError, RowError
from palate.scoring.gated import GatedScorer
from palate.scoring.laplace import LaplaceScorer
from palate.scoring.local import LocalScorer
from palate.scoring.sources import open_scorer
from palate.scoring.uncertainty import HeadScorer
from palate.scoring.unranked import as_read
from palate.types import PreferenceGroup, text_of

LocatedRow = tuple[str, Mapping[str, Any]]

Detailed: TypeAlias = LocalScorer | GatedScorer | HeadScorer | LaplaceScorer
"""A checkpoint in this process, whose rewards come with what they were read from (`score_detailed`)."""


def open_detailed(source: str, **options: Any) -> Detailed:
    """A checkpoint with the gate or the uncertainty that its folder holds. Raises ConfigError for what is no checkpoint."""
    scorer = open_scorer(source, **options).scorer
    if not isinstance(scorer, Detailed):
        raise ConfigError(f"{source}: rows are scored by one checkpoint, with what its rewards were read from; give a folder or hub id")
    return scorer


def _local(scorer: Detailed) -> LocalScorer:
    return scorer if isinstance(scorer, LocalScorer) else scorer.scorer


def scored_rows(
    scorer: Detailed, rows: Sequence[LocatedRow], layout: Layout, *, columns: Mapping[str, str] | None = None, on_long: str = "nan", progress: bool = False
) -> list[dict[str, Any]]:
    """Every row with `reward` (a number, or one a response) and, where it has none, `reward_error`.

    A model with several outputs adds `reward_outputs`, by name; one of step rewards `reward_outputs.steps`; a gate what each attribute weighed; a model
    that states one, the `uncertainty`.
    """
    groups = [_parsed(location, row, layout, columns) for location, row in rows]
    try:
        found = iter(_scores(scorer, groups, on_long, progress))
    except RowError:  # one that the template refuses, or whose steps cannot be found: look for it
        groups = [group if isinstance(group, str) else _readable(scorer, group, location) for group, (location, _) in zip(groups, rows, strict=True)]
        found = iter(_scores(scorer, groups, on_long, progress))
    scored = []
    for (_, row), group in zip(rows, groups, strict=True):
        row = {key: value for key, value in row.items() if key not in WRITTEN}  # what an earlier scoring left
        if isinstance(group, str):
            scored.append({**row, "reward": None, "reward_error": group})
            continue
        values, outputs = zip(*(next(found) for _ in group.responses), strict=True)
        known = [None if value != value else value for value in values]
        shown = [{} if value is None else one for value, one in zip(known, outputs, strict=True)]
        named = {"reward_outputs": shown[0] if len(shown) == 1 else shown} if any(outputs) else {}
        reason = {"reward_error": _why(_local(scorer), group)} if None in known else {}
        scored.append({**row, "reward": known[0] if len(known) == 1 else known, **named, **reason})
    return scored


WRITTEN = ("reward", "reward_outputs", "reward_error")
"""Columns that scoring adds to a row."""


def _scores(scorer: Detailed, groups: Sequence[PreferenceGroup | str], on_long: str, progress: bool) -> list[tuple[float, dict[str, Any]]]:
    """(reward, what it was read from) of each response of the groups that can be read."""
    exchanges = [exchange for group in groups if not isinstance(group, str) for exchange in group.exchanges()]
    rewards, details = scorer.score_detailed(exchanges, progress=progress, on_long=on_long)
    return list(zip(rewards.tolist(), details, strict=True))


def _readable(scorer: Detailed, group: PreferenceGroup, location: str) -> PreferenceGroup | str:
    """The group, or why it cannot be scored."""
    try:
        scorer.score_detailed(group.exchanges(), on_long="nan")
    except RowError as error:
        return f"{location}: {error.kind}: {error}"
    return group


def _parsed(location: str, row: Mapping[str, Any], layout: Layout, columns: Mapping[str, str] | None) -> PreferenceGroup | str:
    """The row as a group, or what is wrong with it."""
    if row.keys() == {"line"}:
        return f"{location}: not a JSON object"
    try:
        return parse_row(as_read(row, columns, location), layout, margins=False, compared=False)
    except DataError as error:
        return f"{location}: {error}"


def _why(scorer: LocalScorer, group: PreferenceGroup) -> str:
    if scorer.readout.aggregate is not None and any(not text_of(response).strip() for response in group.responses):
        return "empty: no step to score"
    blank = not text_of(group.prompt) and "" in map(text_of, group.responses)
    return "empty: no token to read a reward from" if blank else f"longer than {scorer.encoder.max_length} tokens"
