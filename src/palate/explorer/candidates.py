"""All responses to one prompt, wherever they stand in the data, sorted by reward: what best-of-n would pick."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from palate.explorer.pairs import Pairs
from palate.explorer.shown import last_asked
from palate.types import text_of


class Prompt(NamedTuple):
    code: int
    text: str
    responses: int
    best: float | None
    spread: float | None  # between the highest and the lowest reward


class Candidate(NamedTuple):
    rank: int  # 1 is the highest reward; equal rewards share a rank
    reward: float | None
    text: str
    ratings: dict[str, float]
    wins: int  # comparisons in which the data prefers it
    losses: int
    bar: int  # 0 to 100 between the lowest and the highest reward


class Candidates:
    """Responses by prompt; equal texts under one prompt are one candidate."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs
        scored = pairs.items.scored
        codes = {key: code for code, key in enumerate(dict.fromkeys(scored.keys))}
        sizes = np.diff(scored.offsets)
        self.group_of = np.repeat(np.arange(len(sizes)), sizes)  # [N]
        self.prompt_of = np.repeat(np.array([codes[key] for key in scored.keys], dtype=int), sizes)
        self.rows = np.argsort(self.prompt_of, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(self.prompt_of, minlength=len(codes)))])
        rewards = scored.rewards
        self.best, self.worst = np.full(len(codes), -np.inf), np.full(len(codes), np.inf)
        known = np.isfinite(rewards)
        np.maximum.at(self.best, self.prompt_of[known], rewards[known])
        np.minimum.at(self.worst, self.prompt_of[known], rewards[known])
        self.sizes = np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.sizes)

    def order(self) -> np.ndarray:
        """Prompts, those with the most responses first, then by how far their rewards lie apart."""
        with np.errstate(invalid="ignore"):
            spread = np.where(np.isfinite(self.best), self.best - self.worst, -1.0)
        return np.lexsort((-spread, -self.sizes))

    def prompt(self, code: int) -> Prompt:
        group = self.pairs.groups[self.group_of[self.rows[self.starts[code]]]]
        scored = bool(np.isfinite(self.best[code]))
        best = float(self.best[code]) if scored else None
        return Prompt(code, last_asked(group.prompt).text, int(self.sizes[code]), best, float(self.best[code] - self.worst[code]) if scored else None)

    def of(self, code: int) -> list[Candidate]:
        """The candidates of a prompt, the highest reward first, those without one last."""
        items, groups, scored = self.pairs.items, self.pairs.groups, self.pairs.items.scored
        members = self.rows[self.starts[code] : self.starts[code + 1]]
        texts = {int(n): text_of(groups[self.group_of[n]].responses[n - scored.offsets[self.group_of[n]]]) for n in members}
        inside = self.pairs.decided & np.isin(items.chosen, members)
        wins, losses = (np.bincount(side[inside].astype(int), minlength=len(scored.rewards)) for side in (items.chosen, items.rejected))
        same: dict[str, list[int]] = {}
        for n, text in texts.items():
            same.setdefault(text, []).append(n)
        span = self.best[code] - self.worst[code] if np.isfinite(self.best[code]) else 0.0
        found = []
        for text, places in same.items():
            reward = next((float(scored.rewards[n]) for n in places if np.isfinite(scored.rewards[n])), None)
            group = groups[self.group_of[places[0]]]
            ratings = dict(group.ratings[places[0] - scored.offsets[self.group_of[places[0]]]]) if group.ratings else {}
            bar = 0 if reward is None or not span else round(100 * (reward - self.worst[code]) / span)
            found.append(Candidate(0, reward, text, ratings, int(wins[places].sum()), int(losses[places].sum()), bar))
        known = sorted((one for one in found if one.reward is not None), key=lambda one: -one.reward)  # type: ignore[operator]
        ranked = [one._replace(rank=1 + sum(other.reward > one.reward for other in known)) for one in known]  # type: ignore[operator]
        return [*ranked, *(one for one in found if one.reward is None)]
