"""Rewards with an uncertainty: scorers that state one, heads that hold one (members, quantiles, Gaussians), and the lower bound that is made of it.

An uncertainty is a standard deviation in units of the reward. Members of an ensemble and a last-layer posterior say how little the data decided
(epistemic: more data shrinks it); quantiles and Gaussians say how far ratings of one response scatter (aleatoric: more data does not).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from scipy.special import ndtri

from palate.errors import ConfigError
from palate.scoring.local import LocalScorer
from palate.types import VARIANCE_FLOOR, Conversation, Exchange, Readout


class Estimate(NamedTuple):
    rewards: np.ndarray  # float32 [N]
    uncertainty: np.ndarray  # float32 [N], a standard deviation in units of the reward; NaN where the reward is


class UncertainScorer(ABC):
    """A Scorer that also says how sure it is. Subclasses give `estimate`."""

    @abstractmethod
    def estimate(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> Estimate:
        """Rewards of N conversations with their uncertainties; options as `LocalScorer.score` takes them."""

    @overload
    def score(self, conversations: Sequence[Exchange | Conversation], *, return_uncertainty: Literal[False] = False, **options: Any) -> np.ndarray: ...

    @overload
    def score(self, conversations: Sequence[Exchange | Conversation], *, return_uncertainty: Literal[True], **options: Any) -> Estimate: ...

    def score(self, conversations: Sequence[Exchange | Conversation], *, return_uncertainty: bool = False, **options: Any) -> np.ndarray | Estimate:
        """Rewards, float32 [N]; with `return_uncertainty` (rewards [N], uncertainty [N])."""
        found = self.estimate(conversations, **options)
        return found if return_uncertainty else found.rewards


class LowerBound(UncertainScorer):
    """Rewards less `strength` of their uncertainties: what they are at least, so far as the scorer knows."""

    def __init__(self, scorer: UncertainScorer, strength: float = 1.0):
        self.scorer, self.strength = scorer, at_least_zero(strength)

    def estimate(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> Estimate:
        rewards, uncertainty = self.scorer.estimate(conversations, **options)
        return Estimate(rewards - np.float32(self.strength) * uncertainty, uncertainty)


def at_least_zero(strength: float) -> float:
    if not 0 <= strength < np.inf:
        raise ConfigError(f"what an uncertainty is multiplied by is {strength}, expected a number of at least 0")
    return strength


# --- several Scorers, or several heads, as one ---------------------------------------------------------------------------------------------------------

Combine = Callable[[np.ndarray, float], np.ndarray]

COMBINE: dict[str, Combine] = {
    "mean": lambda rewards, strength: rewards.mean(axis=0),
    "worst": lambda rewards, strength: rewards.min(axis=0),
    "lower": lambda rewards, strength: rewards.mean(axis=0) - strength * rewards.std(axis=0),
    "variance": lambda rewards, strength: rewards.mean(axis=0) - strength * rewards.var(axis=0),
}
"""Members [M, N] and a strength to rewards [N]; deviation and variance are those of the members themselves (over M, not M - 1).

Sources: `mean`, `worst` and `variance` are Coste et al. 2023 (arXiv 2310.02743): mean, worst case (WCO) and uncertainty-weighted (UWO, strength
lambda); `lower` is reward-bench, analysis/run_ensemble_offline.py (Uncertainty).
"""

STRENGTHENED = ("lower", "variance")
"""Ways to combine that a strength changes."""


# --- heads ------------------------------------------------------------------------------------------------------------------------------------------

RAW_VARIANCE = ":raw_variance"


def member_names(count: int) -> tuple[str, ...]:
    """Outputs of several reward heads on one backbone: reward#1, reward#2, ..."""
    return tuple(f"reward#{member}" for member in range(1, count + 1))


def quantile_name(attribute: str, quantile: float) -> str:
    return f"{attribute}@{quantile:g}"


def deviation_reader(readout: Readout) -> Callable[[np.ndarray], np.ndarray] | None:
    """How outputs [N, D] give the standard deviation of the reward [N], by their names; None where they say nothing of it.

    Several attributes are taken as independent: their variances, times their weights squared, add up.
    """
    if readout.aggregate is not None or len(readout.outputs) < 2:
        return None
    if readout.outputs == member_names(len(readout.outputs)):
        return lambda outputs: outputs.std(axis=1)
    return _gaussian_reader(readout) or _quantile_reader(readout)


def _gaussian_reader(readout: Readout) -> Callable[[np.ndarray], np.ndarray] | None:
    places = {name: place for place, name in enumerate(readout.outputs)}
    pairs = [(places[name + RAW_VARIANCE], readout.weights[place]) for name, place in places.items() if name + RAW_VARIANCE in places]
    pairs = [(place, weight) for place, weight in pairs if weight]
    if not pairs:
        return None
    columns, weights = [place for place, _ in pairs], np.array([weight for _, weight in pairs])
    return lambda outputs: np.sqrt((np.logaddexp(0, outputs[:, columns]) + VARIANCE_FLOOR) @ weights**2)


def _quantile_reader(readout: Readout) -> Callable[[np.ndarray], np.ndarray] | None:
    """The deviation of an attribute is the slope of its quantiles over those of N(0, 1), by least squares: exact for a normal distribution, whatever
    the quantiles; 0 where crossing quantiles would make it negative."""
    found: dict[str, list[tuple[int, float]]] = {}
    for place, name in enumerate(readout.outputs):
        attribute, _, level = name.rpartition("@")
        if attribute and _is_level(level) and readout.weights[place]:
            found.setdefault(attribute, []).append((place, float(level)))
    if not found or min(map(len, found.values())) < 2:
        return None
    slopes = np.zeros((len(readout.outputs), len(found)))  # outputs [N, D] times these are deviations [N, attributes]
    for column, levels in enumerate(found.values()):
        places = [place for place, _ in levels]
        normal = ndtri([level for _, level in levels])
        normal -= normal.mean()
        slopes[places, column] = normal / (normal @ normal) * sum(readout.weights[place] for place in places)
    return lambda outputs: np.sqrt((np.maximum(outputs @ slopes, 0) ** 2).sum(axis=1))


def _is_level(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


class HeadScorer(UncertainScorer):
    """A checkpoint whose outputs state an uncertainty: members (combined by `how`), quantiles, or means and variances.

    Members share backbone, loss and data, and so a scale: none is z-scored.
    """

    def __init__(self, scorer: LocalScorer, *, how: str = "mean", strength: float = 1.0):
        """Raises ConfigError where the outputs state no uncertainty, or are combined otherwise than by mean without being members."""
        reader = deviation_reader(scorer.readout)
        names = ", ".join(scorer.readout.outputs)
        if reader is None:
            raise ConfigError(f"the outputs {names} state no uncertainty; members (loss.members), quantiles and Gaussians do")
        if how != "mean" and not has_members(scorer.readout):
            raise ConfigError(f"the outputs {names} are no members that could be combined by {how}; train some with loss.members")
        self.scorer, self.how, self.strength = scorer, how, at_least_zero(strength)
        self._deviation = reader

    def estimate(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> Estimate:
        return self._of(self.scorer.outputs(conversations, **options))

    def score_detailed(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(rewards, outputs by name and the uncertainty of each)."""
        outputs = self.scorer.outputs(conversations, **options)
        rewards, uncertainty = self._of(outputs)
        names = (*self.scorer.readout.outputs, "uncertainty")
        return rewards, [dict(zip(names, row, strict=True)) for row in np.column_stack([outputs, uncertainty]).tolist()]

    def _of(self, outputs: np.ndarray) -> Estimate:
        weights = np.array(self.scorer.readout.weights, dtype=np.float32)
        rewards = outputs @ weights if self.how == "mean" else COMBINE[self.how](outputs.T, self.strength)
        return Estimate(rewards.astype(np.float32), self._deviation(outputs.astype(np.float64)).astype(np.float32))


def has_members(readout: Readout) -> bool:
    return len(readout.outputs) > 1 and readout.outputs == member_names(len(readout.outputs))
