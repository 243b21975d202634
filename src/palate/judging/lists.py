"""Lists as they are shown to a judge, and what their rankings say: orders in mirrored pairs, windows of long lists, verdicts by pair, the worth of a place.

Every list is shown in an order and in its mirror image, so that each pair is seen both ways round, as in two orders of a pair.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from palate.errors import ConfigError
from palate.judging.combining import Judgment, parsed_of, pooled
from palate.judging.orders import Policy, combine_orders
from palate.judging.schedule import Judged
from palate.judging.verdicts import swapped
from palate.stats.intervals import mean_interval
from palate.types import Conversation, Verdict, text_of


class Shown(NamedTuple):
    """One list in the order in which it was shown, and what the judge said."""

    prompt: int
    order: tuple[int, ...]  # responses by place
    ranks: tuple[float, ...] | None = None  # by place, 1 is best, tied ones share theirs; None: no ranking
    reason: str = ""  # why there is none


def orders_of(prompt: Conversation, responses: Sequence[Conversation], *, orders: int, window: int, seed: int) -> list[tuple[int, ...]]:
    """In which orders the responses to one prompt are shown: `orders` (an even number) of them, in windows where there are more than `window`.

    The first order is drawn from the seed and the texts, whatever the place of each; the others are rotations of it, so that everyone stands in several
    places, and after each comes its mirror image. Windows overlap by half, so that no response is cut off from the others.
    """
    if orders < 2 or orders % 2:
        raise ConfigError(f"orders={orders}: a list is shown in an order and in its mirror image; give 2, 4, 6, ...")
    if not 2 <= window <= 26:
        raise ConfigError(f"window={window}: a list holds 2 to 26 responses, which are named by letters")
    drawn = sorted(range(len(responses)), key=lambda k: hashlib.sha256(f"{seed}\0{text_of(prompt)}\0{text_of(responses[k])}".encode()).digest())
    found = []
    for turn in range(orders // 2):
        start = turn * len(drawn) // (orders // 2)
        for part in windows((*drawn[start:], *drawn[:start]), window):
            found += [part, part[::-1]]
    return found


def windows(order: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    """Windows of `size` that overlap by half at least, the last one ending where the list ends (sliding windows, RankGPT, arXiv 2304.09542)."""
    if len(order) <= size:
        return [order]
    starts = [*range(0, len(order) - size, max(1, size // 2)), len(order) - size]
    return [order[start : start + size] for start in starts]


def verdicts_by_pair(lists: Sequence[Shown]) -> dict[tuple[int, int, int], tuple[list[Verdict], list[Verdict]]]:
    """(prompt, i, j) with i < j -> verdicts of the lists that showed i before j, and of those that showed j before i, as they showed them."""
    found: dict[tuple[int, int, int], tuple[list[Verdict], list[Verdict]]] = defaultdict(lambda: ([], []))
    for shown in lists:
        for early, late in combinations(range(len(shown.order)), 2):
            i, j = shown.order[early], shown.order[late]
            own = found[shown.prompt, min(i, j), max(i, j)]
            own[i > j].append(verdict_of(shown, early, late))
    return dict(found)


def verdict_of(shown: Shown, early: int, late: int) -> Verdict:
    """Of the response at place `early` against the one at `late`, the former being `a`."""
    if shown.ranks is None:
        return Verdict("invalid", None, shown.reason)
    difference = shown.ranks[late] - shown.ranks[early]
    return Verdict("a" if difference > 0 else "b" if difference < 0 else "tie")


def judgments(lists: Sequence[Shown], policy: Policy) -> list[Judged]:
    """One judgment a pair that stood in a list: the pooled verdict of each way round, combined as two orders of a pair are."""
    judged = []
    for (prompt, i, j), both in sorted(verdicts_by_pair(lists).items()):
        first, second = (one[0] if len(one) == 1 else pooled([[verdict] for verdict in one])[0] for one in both)
        combined = combine_orders(parsed_of(first), swapped(parsed_of(second)), policy)
        judgment = Judgment(combined.winner, combined.reason, combined.probability, 0.0, first, second)
        judged.append(Judged(prompt, i, j, judgment))
    return judged


def list_figures(lists: Sequence[Shown], *, confidence: float = 0.95) -> dict[str, Any]:
    """How many lists were ranked, why others were not, and the mean rank that each place got: (places + 1) / 2 each, if places were worth nothing.

    Places are those of lists of the most usual length; intervals take prompts for clusters.
    """
    ranked = [(shown, shown.ranks) for shown in lists if shown.ranks is not None]
    failures = Counter(shown.reason for shown in lists if shown.ranks is None)
    figures: dict[str, Any] = {"lists": len(lists), "ranked": len(ranked), "failures": dict(failures), "places": []}
    if not ranked:
        return figures
    size, _ = Counter(len(ranks) for _, ranks in ranked).most_common(1)[0]
    own = [(shown.prompt, ranks) for shown, ranks in ranked if len(ranks) == size]
    prompts, table = [prompt for prompt, _ in own], np.array([ranks for _, ranks in own])
    table += (size + 1) / 2 - table.mean(axis=1, keepdims=True)  # tied ones share the best rank of theirs: every ranking has the same mean now
    for place in range(size):
        span = mean_interval(table[:, place], prompts, confidence)
        figures["places"].append({"place": place + 1, "mean_rank": float(table[:, place].mean()), "interval": [span.low, span.high], "lists": len(own)})
    return figures
