"""Groups to comparisons: all pairs of a ranking, soft labels, votes, balanced weights.

A group of K ranked responses trains through all its ordered pairs. Each pair weighs 1 / (number of decided pairs), so that every prompt counts
once however many responses it has: 1/C(K,2) of InstructGPT (arXiv 2203.02155, eq. 1), where tied pairs are left out and reduce the count.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from palate.types import Comparison, MarginRule, PreferenceGroup

LLAMA2_SCALES = {"llama2_small": {1: 1 / 3, 2: 2 / 3, 3: 1.0}, "llama2_large": {1: 1.0, 2: 2.0, 3: 3.0}}
"""Strength (slightly better, better, significantly better) -> margin; what is negligibly better has none. Source: Llama 2 (arXiv 2307.09288), table 27."""


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


# --- rankings -----------------------------------------------------------------------------------------------------------------------------------


def ranks_of(group: PreferenceGroup, attribute: str | None = None) -> tuple[float, ...] | None:
    """The rank of each response, lower is better; None where the group does not rank them.

    By the ratings of `attribute` where it is named (rank = -rating, NaN where missing), else by the group's own ranks, else by its comparisons
    if these put every response in its place: all pairs compared, without a circle.
    """
    if attribute is not None:
        return tuple(-rating.get(attribute, math.nan) for rating in group.ratings) or None
    if group.ranks:
        return group.ranks
    ranks = _ranks_from_comparisons(group.comparisons, len(group.responses) - group.off_topic)
    return None if ranks is None else (*ranks, *(math.nan for _ in range(group.off_topic)))


def _ranks_from_comparisons(comparisons: Sequence[Comparison], k: int) -> tuple[float, ...] | None:
    comparisons = [c for c in comparisons if c.weight > 0]
    pairs = {frozenset((c.chosen, c.rejected)) for c in comparisons}
    if k < 2 or len(pairs) != k * (k - 1) // 2 or len(comparisons) != len(pairs):
        return None
    ranks = [0.0] * k  # how many are better
    for c in comparisons:
        ranks[c.rejected] += not c.is_tie
    agree = all(ranks[c.chosen] == ranks[c.rejected] if c.is_tie else ranks[c.chosen] < ranks[c.rejected] for c in comparisons)
    return tuple(ranks) if agree else None


def is_ranking(ranks: Sequence[float] | None) -> bool:
    """Whether ranks say anything: two responses of different rank at least."""
    known = {rank for rank in ranks or () if not math.isnan(rank)}
    return len(known) > 1


# --- margins ------------------------------------------------------------------------------------------------------------------------------------


def with_margins(comparisons: Sequence[Comparison], ratings: Sequence[Mapping[str, float]], rule: MarginRule) -> tuple[Comparison, ...]:
    """Comparisons with the margins of a rule; none is negative, and what the rule cannot say is 0."""
    return tuple(c._replace(margin=_margin(c, ratings, rule)) for c in comparisons)


def _margin(c: Comparison, ratings: Sequence[Mapping[str, float]], rule: MarginRule) -> float:
    if rule.source == "none" or c.is_tie:
        return 0.0
    if rule.source == "ratings":
        rated = bool(ratings and ratings[c.chosen] and ratings[c.rejected])
        margin = max(0.0, overall(ratings[c.chosen]) - overall(ratings[c.rejected])) if rated else 0.0
    elif rule.source == "strength":
        margin = c.strength
    elif rule.source in LLAMA2_SCALES:
        margin = LLAMA2_SCALES[rule.source].get(round(c.strength), 0.0)
    else:
        margin = c.margin
    margin *= rule.scale
    return margin if rule.clip is None else min(margin, rule.clip)


def overall(rating: Mapping[str, float]) -> float:
    """One number for a rating by attributes: its `score`, or the mean."""
    return rating["score"] if "score" in rating else sum(rating.values()) / len(rating)


# --- off-topic negatives --------------------------------------------------------------------------------------------------------------------------


def with_off_topic(groups: Sequence[PreferenceGroup], count: int, seed: int) -> Sequence[PreferenceGroup]:
    """Each group with up to `count` responses to other prompts behind its own (`off_topic` says how many).

    They come from other groups drawn at random, one response each, the preferred one: a well-written answer to another question teaches that the prompt
    matters. A group without a best response, and one whose peers all have its prompt, stays as it is. Source: RRM (Liu et al. 2024, arXiv 2409.13156).
    """
    if not count:
        return groups
    draw = random.Random(seed)
    return [_with_negatives(group, _others(groups, i, count, draw)) for i, group in enumerate(groups)]


def _others(groups: Sequence[PreferenceGroup], own: int, count: int, draw: random.Random) -> list[PreferenceGroup]:
    """Up to `count` groups with another prompt of the same kind (text, messages); a few more are drawn than needed, to find them."""
    tried = draw.sample(range(len(groups)), min(len(groups), 4 * count + 4))
    prompt = groups[own].prompt
    return [groups[i] for i in tried if i != own and groups[i].prompt != prompt and type(groups[i].prompt) is type(prompt)][:count]


def _with_negatives(group: PreferenceGroup, others: Sequence[PreferenceGroup]) -> PreferenceGroup:
    added = [other.responses[other.comparisons[0].chosen if other.comparisons else 0] for other in others]
    if best_response(group.comparisons) is None or not added:
        return group
    return replace(
        group,
        responses=(*group.responses, *added),
        ratings=(*group.ratings, *({} for _ in added)) if group.ratings else (),
        ranks=(*group.ranks, *(math.nan for _ in added)) if group.ranks else (),
        off_topic=len(added),
    )


def best_response(comparisons: Sequence[Comparison]) -> int | None:
    """The response that won a comparison and lost or tied none; None where there is none."""
    lost = {c.rejected for c in comparisons} | {c.chosen for c in comparisons if c.is_tie}
    return next((c.chosen for c in comparisons if c.chosen not in lost), None)


def against_off_topic(comparisons: Sequence[Comparison], negatives: Sequence[int]) -> tuple[Comparison, ...]:
    """Comparisons of a group, and those of its best response with each negative; all together weigh what the given ones weigh, alike where those do."""
    best = best_response(comparisons)
    if best is None or not negatives:
        return tuple(comparisons)
    total, count = sum(c.weight for c in comparisons), len(comparisons) + len(negatives)
    kept = [c._replace(weight=c.weight * len(comparisons) / count) for c in comparisons]
    return (*kept, *(Comparison(best, negative, weight=total / count) for negative in negatives))


def compared_with_off_topic(groups: Sequence[PreferenceGroup], count: int, seed: int) -> list[PreferenceGroup]:
    """`with_off_topic`, its responses compared with the best one of each group; one that the group has itself is not."""
    found = []
    for group in with_off_topic(groups, count, seed):
        own = group.responses[: len(group.responses) - group.off_topic]
        negatives = [i for i in range(len(own), len(group.responses)) if group.responses[i] not in own]
        found.append(replace(group, comparisons=against_off_topic(group.comparisons, negatives)))
    return found
