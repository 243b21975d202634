"""Which pairs of a prompt's responses are put to the judge: all of them, or the most telling ones within a budget of pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from palate.errors import ConfigError
from palate.judging.combining import Judgment
from palate.judging.strengths import columns_of, reading_variance
from palate.stats.bradley_terry import difference_within
from palate.types import Conversation, Matchup, text_of


class Candidate(NamedTuple):
    """One response to a prompt, and where it came from."""

    text: Conversation
    source: str = ""  # the model or set-up that wrote it
    on_policy: bool = False
    response_id: str = ""


class Judged(NamedTuple):
    """One pair of a prompt's candidates with its judgment; `first` was shown first in the first order."""

    prompt: int
    first: int
    second: int
    judgment: Judgment

    @property
    def pair(self) -> frozenset[int]:
        return frozenset((self.first, self.second))


JudgePairs = Callable[[Sequence[Matchup]], list[Judgment]]


def round_robin(k: int) -> list[tuple[int, int]]:
    """All pairs of k responses."""
    return list(combinations(range(k), 2))


def prompt_seed(seed: int, prompt: Conversation) -> int:
    """A prompt's own chance, whatever its place among the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text_of(prompt)}".encode()).digest()[:8], "big")


def judge_all(judge_pairs: JudgePairs, prompts: Sequence[Conversation], candidates: Sequence[Sequence[Candidate]]) -> list[Judged]:
    """Every pair of every prompt, in one go."""
    places = [(g, i, j) for g, group in enumerate(candidates) for i, j in round_robin(len(group))]
    return _ask(judge_pairs, prompts, candidates, places)


def judge_within(
    judge_pairs: JudgePairs,
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    *,
    pairs_per_prompt: int,
    ridge: float,
    seed: int = 0,
) -> list[Judged]:
    """At most `pairs_per_prompt` pairs of each prompt, in rounds: a random chain, which touches every response if the budget lets it, then what tells most.

    A pair tells as much as its verdict is in doubt and its difference is unsure: p (1 - p) v, the growth of the information (D-optimal design, Chaloner
    and Verdinelli 1995); log-odds tell as much in any case, v. A pair is asked once, failed or not; where as many pairs are allowed as there are, this is
    the round robin.
    """
    if pairs_per_prompt < 1:
        raise ConfigError(f"pairs_per_prompt={pairs_per_prompt}: a prompt needs one pair at least")
    first = []
    for g, (prompt, group) in enumerate(zip(prompts, candidates, strict=True)):
        chain = np.random.default_rng(prompt_seed(seed, prompt)).permutation(len(group)).tolist()
        first += [(g, min(a, b), max(a, b)) for a, b in list(pairwise(chain))[:pairs_per_prompt]]
    judged = _ask(judge_pairs, prompts, candidates, first)
    while places := _most_telling(judged, candidates, pairs_per_prompt, ridge):
        judged += _ask(judge_pairs, prompts, candidates, places)
    return judged


def _most_telling(judged: Sequence[Judged], candidates: Sequence[Sequence[Candidate]], most: int, ridge: float) -> list[tuple[int, int, int]]:
    """One more pair of each prompt that may have one."""
    done: list[set[frozenset[int]]] = [set() for _ in candidates]
    for one in judged:
        done[one.prompt].add(one.pair)
    unfinished = {g for g, asked in enumerate(done) if len(asked) < most}
    free = [(g, i, j) for g in sorted(unfinished) for i, j in round_robin(len(candidates[g])) if frozenset((i, j)) not in done[g]]
    if not free:
        return []
    told = [one for one in judged if one.prompt in unfinished and one.judgment.probability is not None]
    groups, i, j = np.array(free).T
    gains = _gains(told, candidates, ridge, groups, i, j).round(12)  # equal ones, up to rounding, in order
    order = np.lexsort((j, i, -gains, groups))
    _, first = np.unique(groups[order], return_index=True)
    return [free[k] for k in order[first]]


def _gains(told: Sequence[Judged], candidates: Sequence[Sequence[Candidate]], ridge: float, groups: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """p (1 - p) v of each pair, v of log-odds; prompts without a verdict so far have equal gains. [P], [P], [P] -> [P]"""
    gains = np.ones(len(groups))
    if not told:
        return gains
    columns = columns_of(told)
    fit = columns.fit(reading_variance(told), ridge=ridge, sizes=[len(candidates[g]) for g in np.unique(columns.prompt)])
    known = np.isin(groups, fit.prompts)
    found = difference_within(fit, np.searchsorted(fit.prompts, groups[known]), i[known], j[known])
    chance = 1 / (1 + np.exp(-found.value))
    gains[known] = found.error**2 * (1.0 if np.isfinite(columns.logit).any() else chance * (1 - chance))
    return gains


def _ask(
    judge_pairs: JudgePairs, prompts: Sequence[Conversation], candidates: Sequence[Sequence[Candidate]], places: Sequence[tuple[int, int, int]]
) -> list[Judged]:
    matchups = [Matchup(prompts[g], candidates[g][i].text, candidates[g][j].text) for g, i, j in places]
    return [Judged(g, i, j, judgment) for (g, i, j), judgment in zip(places, judge_pairs(matchups), strict=True)]
