"""Intervals for accuracies: Wilson, prompt-clustered, and the exact paired test between two models on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    low: float
    high: float
    method: str


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion; stays inside [0, 1] and is right near its ends (Wilson 1927, JASA 22, p. 209).

    `n` may be an effective sample size, so it need not be whole.

    >>> low, high, _ = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if n <= 0:
        raise ValueError(f"an interval needs at least one item, got n={n}")
    z = stats.norm.ppf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)), "wilson")


def clustered_error(values: np.ndarray, clusters: Sequence[object]) -> float:
    """Standard error of the mean of `values` [n] when items of one cluster (prompt) are not independent.

    SE = sqrt(sum over clusters of (sum of residuals in it)^2) / n. Equals the usual error (without the n - 1 correction) when every cluster is
    one item. Source: Miller 2024 (arXiv 2411.00640), section 2.2.
    """
    values = np.asarray(values, dtype=float)
    _, codes = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    sums = np.bincount(codes, weights=values - values.mean())
    return float(np.sqrt(np.sum(sums**2)) / len(values))


def accuracy_interval(values: Sequence[float], clusters: Sequence[object], confidence: float = 0.95) -> Interval:
    """Interval of a mean of 0/1 (or tie = 1/2) values: Wilson when all prompts differ, otherwise Wilson on the effective sample size.

    With clusters the variance is inflated by the design effect d = SE_clustered^2 / (p (1 - p) / n), and Wilson is applied to n / d items
    (Korn and Graubard 1998, Survey Methodology 24), which keeps the interval inside [0, 1]. A design effect below 1 is taken as 1.
    """
    scores = np.asarray(values, dtype=float)
    n, p = len(scores), float(np.mean(scores))
    if len({str(c) for c in clusters}) == n or p in (0.0, 1.0):
        return wilson(p * n, n, confidence)
    effect = max(1.0, clustered_error(scores, clusters) ** 2 / (p * (1 - p) / n))
    return wilson(p * n / effect, n / effect, confidence)._replace(method="prompt-clustered wilson")


class PairedTest(NamedTuple):
    difference: float  # accuracy of b minus accuracy of a
    only_a: int  # items that only a gets right
    only_b: int
    p_value: float


def mcnemar(right_a: Sequence[bool], right_b: Sequence[bool]) -> PairedTest:
    """Exact two-sided McNemar test: are two models equally accurate on the same items? (binomial on the items where they differ)"""
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"a paired test needs the same items, got {len(a)} and {len(b)}")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p = 1.0 if only_a + only_b == 0 else float(stats.binomtest(only_a, only_a + only_b).pvalue)
    return PairedTest(float(b.mean() - a.mean()), only_a, only_b, p)
