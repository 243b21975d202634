"""Does a stated uncertainty mean anything? Whether errors grow with it, how often intervals cover, and probabilities that allow for it.

`uncertainty` [N] is a standard deviation in the units of `error` [N] (prediction minus truth), or of the reward difference of a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from palate.stats.bootstrap import bootstrap_statistic
from palate.stats.intervals import Interval, accuracy_interval, clustered, upper_level
from palate.stats.ranking import spearman

LEVELS = (0.5, 0.8, 0.9, 0.95)


class Growth(NamedTuple):
    spearman: float  # of |error| and uncertainty: 0 where the uncertainty says nothing of where errors are large
    interval: Interval
    bins: list[tuple[float, float, int]]  # (mean uncertainty, root mean square error, items), from sure to unsure


class Coverage(NamedTuple):
    level: float  # what share of errors the normal interval should hold
    covered: float
    interval: Interval  # of `covered`
    n: int


def moderated(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """m / sqrt(1 + pi s^2 / 8), whose sigmoid is nearly E[sigmoid(x)] for x ~ N(m, s^2): log-odds that allow for the variance. [P], [P] -> [P]

    Source: MacKay 1992, "The evidence framework applied to classification networks", eq. 9; within 0.02 of the integral.
    """
    return np.asarray(difference, dtype=float) / np.sqrt(1 + np.pi / 8 * np.asarray(variance, dtype=float))


def error_growth(
    error: np.ndarray, uncertainty: np.ndarray, clusters: Sequence[object] | np.ndarray, *, bins: int = 5, confidence: float = 0.95, seed: int = 0
) -> Growth:
    """Rank correlation of |error| and uncertainty with a bootstrap interval over clusters (prompts), and a table over equal shares of the items."""
    size, spread = np.abs(np.asarray(error, dtype=float)), np.asarray(uncertainty, dtype=float)
    clustered(size, clusters)
    clustered(spread, clusters)
    groups = np.array_split(np.argsort(spread, kind="stable"), min(bins, len(size)))
    table = [(float(spread[rows].mean()), float(np.sqrt(np.mean(size[rows] ** 2))), len(rows)) for rows in groups]

    interval = bootstrap_statistic(lambda rows: spearman(size[rows], spread[rows]), clusters, confidence=confidence, seed=seed)
    return Growth(spearman(size, spread), interval, table)


def coverage(
    error: np.ndarray,
    uncertainty: np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    levels: Sequence[float] = LEVELS,
    confidence: float = 0.95,
) -> list[Coverage]:
    """How many errors lie within the normal interval of each level, +- z uncertainty; an honest uncertainty covers what the level says."""
    size, spread = np.abs(np.asarray(error, dtype=float)), np.asarray(uncertainty, dtype=float)
    found = []
    for level in levels:
        inside = (size <= stats.norm.ppf(upper_level(level)) * spread).astype(float)
        found.append(Coverage(level, float(inside.mean()), accuracy_interval(inside, clusters, confidence), len(inside)))
    return found
