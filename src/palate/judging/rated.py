"""Ratings of responses: two as a verdict, those of a prompt as judgments of its pairs, and what became of all; what was not rated stays missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from palate.judging.combining import Judgment
from palate.judging.orders import EVEN, Outcome
from palate.judging.schedule import Judged
from palate.types import Verdict

MUCH_BETTER = 1 / 3
"""Share of the scale by which a response is much better: 3 points of 1 to 10. A choice of ours."""


class Rated(NamedTuple):
    """One response's rating. A vote counts where all of its aspects were read; without such a vote there is no rating."""

    value: float | None  # mean of the votes; None: no rating
    votes: tuple[float, ...] = ()  # of each vote that was read, the mean over its aspects
    failed: int = 0  # votes that were not
    reasons: tuple[str, ...] = ()  # of the answers that were not read
    aspects: Mapping[str, float] = {}  # mean of the votes by aspect, where aspects were asked for


def verdict_of(a: Rated, b: Rated, *, scale: float) -> Verdict:
    """The better rated response wins, equal ratings are a tie; without one of the two there is no verdict. `scale`: highest less lowest rating."""
    raw = " / ".join("none" if one.value is None else f"{one.value:g}" for one in (a, b))
    if a.value is None or b.value is None:
        reasons = dict.fromkeys(reason for one in (a, b) if one.value is None for reason in one.reasons)
        return Verdict("invalid", None, "; ".join(reasons), raw)
    difference = a.value - b.value
    if abs(difference) <= EVEN:
        return Verdict("tie", raw=raw)
    return Verdict("a" if difference > 0 else "b", raw=raw, strength=2.0 if abs(difference) >= MUCH_BETTER * scale - EVEN else 1.0)


def judgments(rated: Sequence[Sequence[Rated]], *, scale: float) -> list[Judged]:
    """One judgment a pair of each prompt's responses. A rating knows no order, so both orders say the same."""
    return [Judged(g, i, j, _judgment(group[i], group[j], scale)) for g, group in enumerate(rated) for i, j in combinations(range(len(group)), 2)]


def _judgment(a: Rated, b: Rated, scale: float) -> Judgment:
    first, second = verdict_of(a, b, scale=scale), verdict_of(b, a, scale=scale)
    if first.winner == "invalid":
        return Judgment(None, "both invalid" if a.value is None and b.value is None else "one invalid", None, 0.0, first, second)
    reason: Outcome = "both tie" if first.winner == "tie" else "agreed"
    return Judgment(first.winner, reason, {"a": 1.0, "tie": 0.5, "b": 0.0}[first.winner], first.strength, first, second)


def vote_deviation(rated: Sequence[Sequence[Rated]]) -> float:
    """Standard deviation of one vote around its response's mean, in points of the scale; NaN without a response that has two votes."""
    several = [np.array(one.votes) for group in rated for one in group if len(one.votes) > 1]
    freedom = sum(len(votes) - 1 for votes in several)
    return float(np.sqrt(sum(float(((votes - votes.mean()) ** 2).sum()) for votes in several) / freedom)) if freedom else float("nan")


def rating_figures(rated: Sequence[Sequence[Rated]]) -> dict[str, Any]:
    """How many responses have a rating, why answers had none, how often each (rounded) rating was given, and how much votes differ."""
    everyone = [one for group in rated for one in group]
    values = [one.value for one in everyone if one.value is not None]
    deviation = vote_deviation(rated)
    return {
        "responses": len(everyone),
        "rated": len(values),
        "failed_votes": sum(one.failed for one in everyone),
        "failures": dict(Counter(reason for one in everyone for reason in one.reasons)),
        "mean": float(np.mean(values)) if values else None,
        "given": {f"{value:g}": count for value, count in sorted(Counter(round(value) for value in values).items())},
        "vote_deviation": None if np.isnan(deviation) else deviation,
    }
