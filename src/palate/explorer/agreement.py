"""How far annotators agree with one another, with the data and with the model: Cohen, Fleiss, Krippendorff, over one neutral coding of the verdicts.

The sides of a pair are coded as first and second by a bit of the pair's identity. Coded as chosen and rejected nearly every verdict would be "chosen", and
kappa, which asks what chance would give, would punish annotators for the order of the columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from palate.explorer.labels import Label
from palate.explorer.pairs import Pairs
from palate.stats.agreement import cohen_kappa, fleiss_kappa, kappa_interval, krippendorff_alpha, percent_agreement
from palate.stats.intervals import Interval, wilson

CODES = ("first", "second", "tie", "both_bad")
CONFIDENCE = 0.95


class Rater(NamedTuple):
    """What one annotator said in all."""

    name: str
    verdicts: dict[str, int]  # verdict -> pairs
    decided: int
    compared: int  # of those, pairs of these data
    with_data: int  # of those, pairs on which the verdict is the data's
    interval: Interval | None  # of their share


class Agreement(NamedTuple):
    """Two raters on the pairs that both decided."""

    a: str
    b: str
    n: int
    same: float
    kappa: float
    interval: Interval


class Summary(NamedTuple):
    raters: list[Rater]
    pairs: list[Agreement]
    fleiss: tuple[float, int, int] | None  # kappa, pairs, annotators: over the pairs that all decided
    alpha: tuple[float, int] | None  # Krippendorff's, and the pairs with two verdicts or more


def code_of(pair: str, verdict: str) -> str:
    """`chosen` and `rejected` as `first` and `second`, by the last bit of the pair's identity."""
    if verdict not in ("chosen", "rejected"):
        return verdict
    return "first" if (verdict == "chosen") == (int(pair, 16) & 1 == 0) else "second"


def summarise(labels: Sequence[Label], pairs: Pairs) -> Summary:
    decided = [label for label in labels if label.decides]
    names = sorted({label.annotator for label in labels})
    tables = {name: {label.pair: code_of(label.pair, label.verdict) for label in decided if label.annotator == name} for name in names}
    others = _others(pairs, sorted({label.pair for label in decided}))
    found = [_agreement(a, b, tables[a], tables[b]) for a, b in combinations(names, 2)]
    found += [_agreement(name, other, tables[name], table) for other, table in others.items() for name in names]
    return Summary([_rater(name, labels, tables[name], others["the data"]) for name in names], [row for row in found if row], _fleiss(tables), _alpha(tables))


def _rater(name: str, labels: Sequence[Label], own: dict[str, str], data: dict[str, str]) -> Rater:
    verdicts = dict(Counter(label.verdict for label in labels if label.annotator == name))
    both = own.keys() & data.keys()
    right = sum(own[pair] == data[pair] for pair in both)
    return Rater(name, verdicts, len(own), len(both), right, wilson(right, len(both), CONFIDENCE) if both else None)


def _others(pairs: Pairs, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """What the data, and the model, say of the pairs that somebody labelled."""
    found: dict[str, dict[str, str]] = {"the data": {}, "the model": {}}
    for pair in wanted:
        if pair not in pairs.rows:
            continue
        row = pairs.rows[pair]
        found["the data"][pair] = code_of(pair, "chosen" if pairs.decided[row] else "tie")
        margin = float(pairs.margin[row])
        if np.isfinite(margin):
            found["the model"][pair] = code_of(pair, "tie" if margin == 0 else "chosen" if margin > 0 else "rejected")
    return found


def _agreement(a: str, b: str, first: dict[str, str], second: dict[str, str]) -> Agreement | None:
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    x, y = [first[pair] for pair in both], [second[pair] for pair in both]
    return Agreement(a, b, len(both), percent_agreement(x, y), cohen_kappa(x, y), kappa_interval(x, y, confidence=CONFIDENCE))


def _fleiss(tables: dict[str, dict[str, str]]) -> tuple[float, int, int] | None:
    voting = [table for table in tables.values() if table]
    shared = set.intersection(*map(set, voting)) if voting else set()
    if len(voting) < 2 or not shared:
        return None
    counts = np.array([[sum(table[pair] == code for table in voting) for code in CODES] for pair in sorted(shared)])
    return fleiss_kappa(counts), len(shared), len(voting)


def _alpha(tables: dict[str, dict[str, str]]) -> tuple[float, int] | None:
    every = sorted({pair for table in tables.values() for pair in table})
    ratings = np.array([[CODES.index(table[pair]) if pair in table else np.nan for pair in every] for table in tables.values()], dtype=float)
    several = int(((~np.isnan(ratings)).sum(0) >= 2).sum()) if ratings.size else 0
    return (krippendorff_alpha(ratings), several) if several else None
