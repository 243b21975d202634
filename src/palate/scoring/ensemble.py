"""Several Scorers as one: each member's rewards brought to one scale, then their mean, their worst, or their mean less their disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from palate.errors import ConfigError, DataError
from palate.scoring.uncertainty import COMBINE, Estimate, UncertainScorer, at_least_zero
from palate.types import Conversation, Exchange, Scorer


class Ensemble(UncertainScorer):
    """Members are put on one scale by `scales`, (mean, standard deviation) of each. Without them, those of each member's rewards of the first call are
    kept for all later ones, so that rewards of several calls (texts, then edited texts) compare.

    The uncertainty of a response is the members' standard deviation over it, on that scale. A response that one member cannot score is NaN. Raises
    ConfigError for fewer than two members or an unknown way to combine.
    """

    def __init__(self, members: Sequence[Scorer], *, how: str = "mean", strength: float = 1.0, scales: Sequence[tuple[float, float]] | None = None):
        if len(members) < 2:
            raise ConfigError(f"an ensemble has two members at least, got {len(members)}")
        if how not in COMBINE:
            raise ConfigError(f"an ensemble combines by {', '.join(COMBINE)}, not by {how!r}")
        if scales is not None and (len(scales) != len(members) or not all(0 < deviation < np.inf and np.isfinite(mean) for mean, deviation in scales)):
            raise ConfigError(f"{len(members)} members need as many scales (mean, standard deviation above 0), got {list(scales)}")
        self.members, self.how, self.strength, self.scales = list(members), how, at_least_zero(strength), scales

    def estimate(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> Estimate:
        rewards = np.array([self._of(m, conversations, options) for m in range(len(self.members))])  # [M, N]
        if not rewards.size:
            return Estimate(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32))
        if self.scales is None:
            self.scales = [_scale(row) for row in rewards]
        means, deviations = np.array(self.scales).T[:, :, None]  # [M, 1] each
        scaled = (rewards - means) / deviations
        return Estimate(COMBINE[self.how](scaled, self.strength).astype(np.float32), scaled.std(axis=0).astype(np.float32))

    def _of(self, member: int, conversations: Sequence[Exchange | Conversation], options: Mapping[str, Any]) -> np.ndarray:
        rewards = np.asarray(self.members[member].score(conversations, **options), dtype=float)
        rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
        if rewards.shape != (len(conversations),):
            raise DataError(f"member {member + 1} gave the shape {rewards.shape} for {len(conversations)} responses; an ensemble needs one reward a response")
        return rewards


def _scale(rewards: np.ndarray) -> tuple[float, float]:
    known = rewards[np.isfinite(rewards)]
    return (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
