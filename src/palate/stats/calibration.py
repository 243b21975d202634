"""Is sigmoid(r_chosen - r_rejected) a probability? Log loss, expected calibration error, reliability bins, best temperature.

Everything takes the reward differences d [P] of decided comparisons, where d > 0 means that the model agrees with the label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

TEMPERATURE_RANGE = (1e-3, 1e3)
"""Where the best temperature is searched. A model that is right (or wrong) on every pair has none; it ends on the edge, and says so."""


class Bin(NamedTuple):
    confidence: float  # mean stated probability of the preferred side, in [0.5, 1]
    accuracy: float  # how often that side was right
    size: int  # comparisons in the bin


class Temperature(NamedTuple):
    value: float  # T of sigmoid(d / T); above 1: the model is over-confident
    log_loss: float
    bounded: bool  # True: the search ended on an edge of TEMPERATURE_RANGE


def log_loss(d: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(d / T) = mean of log(1 + exp(-d / T))."""
    return float(np.mean(np.logaddexp(0.0, -np.asarray(d, dtype=float) / temperature)))


def reliability(d: np.ndarray, *, bins: int = 10, temperature: float = 1.0) -> list[Bin]:
    """Equal-width bins of the confidence max(p, 1 - p) over [0.5, 1]; empty bins are left out. A tie (d = 0) counts as half right."""
    d = np.asarray(d, dtype=float)
    confidence = expit(np.abs(d) / temperature)
    right = np.where(d == 0, 0.5, (d > 0).astype(float))
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [Bin(float(confidence[index == b].mean()), float(right[index == b].mean()), int((index == b).sum())) for b in range(bins) if (index == b).any()]


def expected_calibration_error(d: np.ndarray, *, bins: int = 10, temperature: float = 1.0) -> float:
    """ECE: mean of |accuracy - confidence| over bins, weighted by count (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    table = reliability(d, bins=bins, temperature=temperature)
    n = sum(b.size for b in table)
    return sum(b.size / n * abs(b.accuracy - b.confidence) for b in table)


def fit_temperature(d: np.ndarray) -> Temperature:
    """The T > 0 with the smallest log loss of sigmoid(d / T) (convex in 1 / T; Guo et al. 2017, section 4.2)."""
    d = np.asarray(d, dtype=float)
    low, high = np.log(TEMPERATURE_RANGE)
    found = minimize_scalar(lambda t: log_loss(d, float(np.exp(t))), bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    value = float(np.exp(found.x))
    bounded = bool(min(found.x - low, high - found.x) < 1e-3)
    return Temperature(value, log_loss(d, value), bounded)
