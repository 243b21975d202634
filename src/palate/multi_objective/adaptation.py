"""Adaptation at test time: a user's few comparisons weigh many heads (HyRe, Lee et al. 2024, arXiv 2412.08812; heads of Luo et al. 2025, 2502.13131).

No gradient and no training: each head is z-scored on the user's responses, judged by its Bradley-Terry loss on the user's comparisons, and weighed by a softmax
of minus those losses. Heads are linear, so what comes out is one linear head again, as cheap as any other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from palate.errors import ConfigError, DataError
from palate.types import Readout


class Adaptation(NamedTuple):
    """reward = sum_j weights_j (score_j - mean_j) / deviation_j over D heads."""

    weights: np.ndarray  # [D], sum 1
    mean: np.ndarray  # [D]
    deviation: np.ndarray  # [D]
    losses: np.ndarray  # [D], Bradley-Terry losses on the pairs, summed
    pairs: int

    @property
    def coefficients(self) -> np.ndarray:
        """[D], what a raw score of each head counts."""
        return self.weights / self.deviation

    @property
    def offset(self) -> float:
        return -float(self.coefficients @ self.mean)

    def score(self, scores: np.ndarray) -> np.ndarray:
        """Raw scores of the heads [N, D] -> rewards [N]."""
        return scores @ self.coefficients + self.offset


def adapt(
    chosen: np.ndarray,
    rejected: np.ndarray,
    *,
    fallback: Readout | np.ndarray,
    weights: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Adaptation:
    """The weights of D heads by n comparisons. Raw scores of both sides [n, D] -> Adaptation

    Scores are z-scored by the mean and unbiased deviation over the 2 n responses (a head that does not vary is divided by 1). `weights` [n]
    multiply a comparison's loss, `probability` [n] is a soft label. Without a comparison the reward is the fallback's (a readout, or weights [D]).
    Source of the algorithm: arXiv 2412.08812, section 3; of its z-scores: the code of arXiv 2502.13131. Temperature 1 is theirs.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; expected more than 0 (1 is usual, larger spreads the weight over more heads)")
    if chosen.shape != rejected.shape or chosen.ndim != 2:
        raise DataError(f"adaptation compares scores of the shapes {chosen.shape} and {rejected.shape}; expected [n, heads] for both")
    n, heads = chosen.shape
    if n == 0:
        default = np.asarray(fallback.weights if isinstance(fallback, Readout) else fallback, dtype=float)
        return Adaptation(default, np.zeros(heads), np.ones(heads), np.zeros(heads), 0)
    pooled = np.concatenate([chosen, rejected]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise DataError("some responses have no score (too long, or empty); leave their comparisons out first")
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0, ddof=1)
    # a constant column has the deviation of its rounding
    deviation[deviation <= 1e-12 * np.abs(pooled).max(axis=0)] = 1.0
    margins = (pooled[:n] - pooled[n:]) / deviation
    p = np.ones(n) if probability is None else probability
    each = p[:, None] * np.logaddexp(0.0, -margins) + (1 - p)[:, None] * np.logaddexp(0.0, margins)
    losses = (np.ones(n) if weights is None else weights) @ each
    return Adaptation(softmax(-losses / temperature), mean, deviation, losses, n)
