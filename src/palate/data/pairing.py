"""Groups to comparisons: all pairs of a ranking, soft labels, votes, balanced weights.

A group of K ranked responses trains through all its ordered pairs. Each pair weighs 1 / (number of decided pairs), so that every prompt counts
once however many responses it has: 1/C(K,2) of InstructGPT (arXiv 2203.02155, eq. 1), where tied pairs are left out and reduce the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from palate.types import Comparison


def from_scores(scores: Sequence[float]) -> tuple[Comparison, ...]:
    """All pairs of `scores` [K], higher is better; equal scores make a tie.

    >>> [(c.chosen, c.rejected) for c in from_scores([1.0, 3.0, 2.0])]
    [(1, 0), (2, 0), (1, 2)]
    """
    pairs = []
    for a, b in combinations(range(len(scores)), 2):
        if scores[a] == scores[b]:
            pairs.append(Comparison(a, b, probability=0.5))
        else:
            pairs.append(Comparison(a, b) if scores[a] > scores[b] else Comparison(b, a))
    return tuple(pairs)


def from_probability(probability: float) -> Comparison:
    """A soft label between responses 0 and 1: `probability` = P(response 1 is better). The likelier one is `chosen`."""
    if probability > 0.5:
        return Comparison(1, 0, probability=probability)
    return Comparison(0, 1, probability=1.0 - probability)


def from_votes(for_first: float, for_second: float, equal: float = 0.0) -> Comparison:
    """Votes between responses 0 and 1 as a soft label; a vote for `equal` counts half for each side."""
    total = for_first + for_second + equal
    return from_probability((for_second + equal / 2) / total)


def balance(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Divide weights by the number of comparisons: a prompt counts once, whatever K; a pair keeps the weight that it came with."""
    return tuple(c._replace(weight=c.weight / len(comparisons)) for c in comparisons)


def training_comparisons(comparisons: Sequence[Comparison], *, ties: str) -> tuple[Comparison, ...]:
    """The comparisons that a group trains on, balanced. `ties`: "drop" leaves undecided pairs out, "soft" trains them towards 0.5.

    A comparison of weight 0 takes no part (a step of nothing else would divide by zero).
    """
    return balance([c for c in comparisons if c.weight > 0 and (ties == "soft" or not c.is_tie)])
