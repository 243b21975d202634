"""What a group teaches: the comparisons, ranks, ratings and steps that a loss asks for; what a group lacks, and what no loss could read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from palate.data.pairing import is_ranking, ranks_of, training_comparisons, with_margins
from palate.errors import RowError
from palate.types import STEP_SEPARATOR, PreferenceGroup, Supervision

PAIRWISE = Supervision()
"""What pairwise losses read; the default everywhere."""


def supervised(group: PreferenceGroup, supervision: Supervision, ties: str) -> PreferenceGroup | None:
    """The group as the loss reads it (comparisons with margins and weights, ranks, ratings, steps); None where it holds nothing that is asked for."""
    comparisons = with_margins(group.comparisons, group.ratings, supervision.margins)
    if supervision.scaled:
        comparisons = tuple(c for c in comparisons if c.margin > 0)
    ranks = ranks_of(group, supervision.rank_by) if supervision.ranks else None
    ratings = [{name: rating[name] for name in supervision.attributes if name in rating} for rating in group.ratings]
    labelled = group.steps[-1:] if supervision.last_step_only else group.steps
    if supervision.classes and any(supervision.separator in step.text for step in group.steps):
        raise RowError("step", f"a step holds the separator {supervision.separator!r}, at which it would be cut in two when it is scored; set loss.separator")
    taught = replace(
        group,
        comparisons=training_comparisons(comparisons, ties=ties),
        ranks=ranks if ranks is not None and is_ranking(ranks) else (),
        ratings=tuple(ratings) if any(ratings) else (),
        steps=group.steps if supervision.classes and any(step.label is not None for step in labelled) else (),
    )
    useful = (supervision.comparisons and taught.comparisons) or taught.ranks or taught.ratings or taught.steps
    return taught if useful else None


def lack(group: PreferenceGroup, supervision: Supervision, ties: str) -> str:
    """Why a group teaches nothing, as it is counted."""
    missing = []
    if supervision.comparisons:
        tied = ties == "drop" and any(c.is_tie for c in group.comparisons)
        weightless = "of weight 0" if all(c.weight == 0 for c in group.comparisons) else "without a margin to scale by"
        missing.append(("tied" if tied else weightless) if group.comparisons else "without a comparison")
    if supervision.ranks:
        missing.append(f"without different ratings of {supervision.rank_by}" if supervision.rank_by else "without a ranking")
    if supervision.attributes:
        missing.append(f"without a rating of {' or '.join(supervision.attributes)}")
    if supervision.classes:
        missing.append("without labelled steps")
    return " and ".join(missing)


def value_problem(group: PreferenceGroup, supervision: Supervision) -> str | None:
    """What makes the values of a group unreadable for the loss, in words: a mistake in the settings, not in the row."""
    if supervision.ignores_margins and any(c.margin > 0 for c in group.comparisons):
        return "has a margin, which the loss ignores; set loss.margins: none to leave margins unread"
    for rating in group.ratings:
        for name, value in rating.items():
            if name in supervision.outcomes and not 0 <= value <= 1:
                return f"`{name}` is {value:g}; the loss reads it as right (1) or wrong (0), a value between 0 and 1"
            if name == supervision.leveled and value not in supervision.levels:
                return f"`{name}` is {value:g}, which is not among the levels {', '.join(f'{level:g}' for level in supervision.levels)}; name every value"
    if supervision.classes == 2 and any(step.label == -1 for step in group.steps):
        return "has a step labelled -1 (labels -1, 0, 1: wrong, neutral, right), which needs classes: 3"
    return None


def rejoined(group: PreferenceGroup, supervision: Supervision) -> PreferenceGroup:
    """Steps joined by the separator at which a response will be cut when it is scored."""
    if not supervision.classes or not group.steps or supervision.separator == STEP_SEPARATOR:
        return group
    text = supervision.separator.join(step.text for step in group.steps)
    response = group.responses[0]
    return replace(group, responses=(text if isinstance(response, str) else ({**response[-1], "content": text},),))  # type: ignore[dict-item]


def facts_of(group: PreferenceGroup) -> Counter[str]:
    """What a group brings to training, to be added up."""
    facts = Counter(f"rating {name}" for rating in group.ratings for name in rating)
    facts["comparisons"] = len(group.comparisons)
    facts["ties"] = sum(c.is_tie for c in group.comparisons)
    facts["margins"] = sum(c.margin > 0 for c in group.comparisons)
    facts["rankings"] = int(bool(group.ranks))
    facts["steps"] = sum(step.label is not None for step in group.steps)
    facts["steps labelled -1"] = sum(step.label == -1 for step in group.steps)
    return facts
