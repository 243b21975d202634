"""The figures of a built data set, for its card: what was judged, what became of it, how large the margins are, and where the judge leans."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from palate import __version__
from palate.judging.schedule import Candidate, Judged
from palate.stats.bradley_terry import position_effect
from palate.stats.intervals import mean_interval
from palate.types import Conversation, text_of

if TYPE_CHECKING:
    from palate.judging.build import BuildSettings


MARGIN_BINS = 6  # of the histogram: half a logit each, where margins are cut at 3


class CardInput(NamedTuple):
    judged: Sequence[Judged]
    rows: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, int]  # judged pairs without a row, by reason
    inferred: int  # rows of pairs that were not judged themselves
    prompts: Sequence[Conversation]
    candidates: Sequence[Sequence[Candidate]]
    figures: Mapping[str, Any]  # of the judging, by its style


def card_figures(made: CardInput, settings: BuildSettings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of rows and judgments: judged_pairs = rows - inferred_rows + everything in left_out."""
    rows = made.rows
    margins = np.array([row["margin"] for row in rows])
    chosen, rejected = (np.array([len(text_of(row[side])) for row in rows]) for side in ("chosen", "rejected"))
    return {
        "rows": len(rows),
        "inferred_rows": made.inferred,
        "prompts": len(made.prompts),
        "prompts_with_rows": len({row["group_id"] for row in rows}),
        "responses": sum(map(len, made.candidates)),
        "judged_pairs": len(made.judged),
        "outcomes": dict(Counter(one.judgment.reason for one in made.judged)),
        "left_out": dict(made.left_out),
        "margins": {f"p{q}": float(np.percentile(margins, q)) for q in (5, 25, 50, 75, 95)} if len(rows) else {},
        "margin_histogram": _histogram(margins),
        "longer_chosen": float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected))) if len(rows) else None,
        "lengths": {"chosen": float(chosen.mean()), "rejected": float(rejected.mean())} if len(rows) else {},
        "position": None if made.figures.get("style") == "rating" else position_of(made.judged),  # a rating is given without an order
        "source_strengths": {},
        **made.figures,
        "settings": asdict(settings),
        "provenance": dict(provenance),
        "palate": __version__,
        "prompts_hash": hashlib.sha256(json.dumps(sorted(map(text_of, made.prompts))).encode()).hexdigest(),
        "fingerprint": hashlib.sha256(json.dumps([dict(row) for row in rows], sort_keys=True, default=str).encode()).hexdigest(),
    }


def _histogram(margins: np.ndarray) -> list[dict[str, Any]]:
    """Equal bins from 0 to the largest margin."""
    if not len(margins):
        return []
    counts, edges = np.histogram(margins, bins=MARGIN_BINS, range=(0.0, float(margins.max()) or 1.0))
    return [{"low": float(low), "high": float(high), "count": int(count)} for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]


def position_of(judged: Sequence[Judged], *, confidence: float = 0.95) -> dict[str, Any] | None:
    """What being shown first is worth to this judge, in logits, with its interval.

    From log-odds, where the judge gives them: the mean of half the difference of both orders, prompts being clusters. Otherwise from the pairs with a
    decided verdict in each order (Mantel-Haenszel); without a contradiction such verdicts bound nothing, and there is no interval.
    """
    read = [(one.judgment.position, one.prompt) for one in judged if one.judgment.position is not None]
    if len(read) > 1:
        values, prompts = np.array([value for value, _ in read]), [prompt for _, prompt in read]
        span = mean_interval(values, prompts, confidence)
        return {"gamma": float(values.mean()), "interval": (span.low, span.high), "pairs": len(read), "from": "log-odds", "contradictions": _torn(judged)}
    return _from_verdicts(judged, confidence)


def _torn(judged: Sequence[Judged]) -> int:
    return sum(one.judgment.contradiction for one in judged)


def _from_verdicts(judged: Sequence[Judged], confidence: float) -> dict[str, Any] | None:
    both = [one for one in judged if one.judgment.first.winner in ("a", "b") and one.judgment.second.winner in ("a", "b")]
    if not both:
        return None
    found: dict[str, Any] = {"pairs": len(both), "from": "verdicts", "contradictions": _torn(both)}
    won = np.array([[one.judgment.first.winner == "a", one.judgment.second.winner == "b"] for one in both], dtype=float)  # [pairs, orders], by `first`
    if (won[:, 0] == won[:, 1]).all():
        return {"gamma": 0.0, "interval": None, **found}
    groups, first, second = (np.repeat([getattr(one, name) for one in both], 2) for name in ("prompt", "first", "second"))
    effect = position_effect(groups, first, second, won.ravel(), position=np.tile([1.0, -1.0], len(both)), confidence=confidence)
    return {"gamma": effect.gamma, "interval": (effect.interval.low, effect.interval.high), **found}
