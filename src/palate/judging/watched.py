"""A judge watched while it works: canary pairs, whose verdict is known, stand among the pairs that it is asked about; they say how it errs, and are no rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from palate.errors import ConfigError, DataError
from palate.judging.canaries import Canary, Kind, canaries, canary_noise
from palate.judging.schedule import Candidate
from palate.stats.composite import Estimate
from palate.types import Conversation, Judge, Matchup, Verdict

CANARY_SHARE = 0.05  # of the pairs: two short calls more for every forty
MOST_CANARIES = 50
"""Pairs: an observed share of 10 % of 50 lies between 4 and 21 % (Wilson, 95 %). More would cost and hardly tell more. A choice of ours."""


def usual_canaries(num_pairs: int) -> int:
    """Pairs to make canaries of, where nothing else is said."""
    return min(MOST_CANARIES, math.ceil(CANARY_SHARE * num_pairs))


def draw_canaries(
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    num: int,
    *,
    kinds: Sequence[Kind] = ("identical", "shuffled"),
    seed: int = 0,
) -> list[Canary]:
    """Canaries of `num` pairs, each of two candidates of one prompt; prompts are drawn without one coming again before all have come."""
    usable = [g for g, group in enumerate(candidates) if len(group) > 1]
    if num < 0:
        raise ConfigError(f"{num} canary pairs; expected 0 or more")
    draw = random.Random(f"{seed} canaries")
    pairs: list[Matchup] = []
    while usable and len(pairs) < num:
        for g in draw.sample(usable, min(len(usable), num - len(pairs))):
            i, j = draw.sample(range(len(candidates[g])), 2)
            pairs.append(Matchup(prompts[g], candidates[g][i].text, candidates[g][j].text))
    return [canary for canary in canaries(pairs, seed) if canary.kind in kinds]


class Watched:
    """A Judge whose first batch has the canaries among its matchups, at places drawn by the seed; only verdicts on matchups come out.

    `has_tie`: whether the judge can call two responses equal.
    """

    def __init__(self, judge: Judge, asked: Sequence[Canary], *, has_tie: bool = True, seed: int = 0):
        self.judge, self.asked, self.has_tie = judge, list(asked), has_tie
        self.verdicts: list[Verdict] = []
        self._draw = random.Random(f"{seed} places")

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        """Without matchups: the canaries alone, for a judge that is otherwise not asked about pairs."""
        if self.verdicts or not self.asked:
            return self.judge.compare(matchups)
        places = set(self._draw.sample(range(len(matchups) + len(self.asked)), len(self.asked)))
        own, others = iter(self.asked), iter(matchups)
        mixed = [next(own).matchup if k in places else next(others) for k in range(len(matchups) + len(self.asked))]
        verdicts = self.judge.compare(mixed)
        if len(verdicts) != len(mixed):
            raise DataError(f"the judge gave {len(verdicts)} verdicts for {len(mixed)} matchups; expected one each")
        self.verdicts = [verdict for k, verdict in enumerate(verdicts) if k in places]
        return [verdict for k, verdict in enumerate(verdicts) if k not in places]

    def figures(self) -> dict[str, Any] | None:
        """How the judge did on them, for a card; None where none were asked."""
        if not self.verdicts:
            return None
        noise = canary_noise(self.asked, self.verdicts, has_tie=self.has_tie)
        shares = {name: _share(getattr(noise, name)) for name in ("told_apart", "first_position", "mistaken")}
        return {"asked": len(self.asked), "invalid": noise.num_invalid, **shares}


def _share(found: Estimate | None) -> dict[str, Any] | None:
    return {"value": found.value, "interval": [found.low, found.high], "n": found.n} if found else None
