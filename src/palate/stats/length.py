"""Length bias: how strongly rewards follow length, rewards with that taken out, and win rates at equal length.

Shapes: N responses, P comparisons. Lengths are in any unit (tokens or characters), rewards in reward units.
A correlation with length is not yet a bias: better answers may be longer. What is taken out here is all that length explains, right or wrong; report both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import expit

from palate.stats.intervals import Interval
from palate.stats.newton import minimize

KNOTS = 200
"""Quantiles of length at which `length_calibrated` fits; between them it interpolates. The smooth bends over half of the data, so 200 are plenty. Ours."""

NEAREST = 20
"""Fewest points of a window (RC-Mean's minimum, arXiv 2409.17407)."""


class Correlation(NamedTuple):
    value: float
    interval: Interval  # Fisher's z
    p_value: float  # two-sided t test of no correlation
    n: int
    degrees: int  # of freedom: n - clusters (or 1) - independent controls - 1


class WithinCorrelation(NamedTuple):
    mean: float  # over clusters
    error: float  # standard error of that mean
    interval: Interval  # t, clusters - 1 degrees of freedom
    clusters: int
    skipped: int  # clusters in which rewards or lengths do not vary: they have no correlation


class LengthControlled(NamedTuple):
    """Logistic fit of preferences on the length difference, read off at difference 0."""

    win_rate: float  # at equal length
    interval: Interval
    slope: float  # logits for a difference of many scales (tanh = 1)
    slope_error: float
    raw_win_rate: float  # mean preference
    scale: float  # standard deviation of the length differences
    iterations: int


def partial_correlation(
    x: ArrayLike, y: ArrayLike, controls: ArrayLike | None = None, *, clusters: ArrayLike | None = None, confidence: float = 0.95
) -> Correlation:
    """Pearson correlation of x and y after the linear part of the controls is taken out of both. [n], [n], [n] or [n, k] -> Correlation

    `clusters` [n] takes every cluster's mean out of x, y and controls first, which asks about differences within a prompt and counts one degree of
    freedom a cluster. By the Frisch-Waugh theorem that is the partial correlation given cluster dummies and controls. The interval is Fisher's
    (1924, Metron 3): atanh(r) has standard error 1 / sqrt(degrees - 1), which is the usual n - 3 less the controls; it takes rows for independent
    given their cluster.
    """
    x, y = _column("x", x), _column("y", y)
    extra = np.zeros((len(x), 0)) if controls is None else np.asarray(controls, dtype=float).reshape(len(x), -1)
    codes, count = _codes(clusters, len(x))
    table = _demeaned(np.column_stack([x, y, extra]), codes, count)
    basis = table[:, 2:]
    coefficients, _, rank, _ = np.linalg.lstsq(basis, table[:, :2], rcond=None)
    a, b = (table[:, :2] - basis @ coefficients).T
    degrees = len(x) - count - int(rank) - 1
    if degrees < 2:
        raise ValueError(f"{len(x)} rows leave {degrees} degrees of freedom after {count} means and {rank} controls; two are the least")
    spread = np.sqrt((a @ a) * (b @ b))
    if not (a @ a > 1e-24 * (x @ x) and b @ b > 1e-24 * (y @ y)):
        raise ValueError("x or y does not vary once clusters and controls are taken out, so there is no correlation")
    r = float(np.clip(a @ b / spread, -1.0, 1.0))
    half = stats.norm.ppf(0.5 + confidence / 2) / np.sqrt(degrees - 1)
    centre = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    t = r * np.sqrt(degrees / max(1 - r * r, 1e-300))
    return Correlation(
        r, Interval(float(np.tanh(centre - half)), float(np.tanh(centre + half)), "fisher z"), float(2 * stats.t.sf(abs(t), degrees)), len(x), degrees
    )


def within_correlation(
    rewards: ArrayLike, lengths: ArrayLike, clusters: ArrayLike, *, method: Literal["spearman", "pearson"] = "spearman", confidence: float = 0.95
) -> WithinCorrelation:
    """Mean over prompts of the correlation of reward and length within the prompt. [N], [N], [N] -> WithinCorrelation

    Spearman ranks within the prompt, ties at their mean rank. Two responses give -1 or 1 each, so that the mean is 2 P(longer wins) - 1.
    Prompts are the independent units: the interval is Student's, over prompts.
    """
    x, y = _column("rewards", rewards), _column("lengths", lengths)
    codes, count = _codes(clusters, len(x))
    if method not in ("spearman", "pearson"):
        raise ValueError(f'`method` must be "spearman" or "pearson", got {method!r}')
    if method == "spearman":
        x, y = _ranks(x, codes), _ranks(y, codes)
    a, b = _demeaned(np.column_stack([x, y]), codes, count).T
    squares = [np.bincount(codes, u * u, count) for u in (a, b)]
    scale = [np.bincount(codes, u * u, count) for u in (x, y)]
    varies = np.logical_and(*(square > 1e-20 * total for square, total in zip(squares, scale, strict=True)))
    if varies.sum() < 2:
        raise ValueError(f"{int(varies.sum())} of {count} clusters have rewards and lengths that vary; two are needed")
    each = np.bincount(codes, a * b, count)[varies] / np.sqrt(squares[0][varies] * squares[1][varies])
    mean, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(each) - 1)) * error
    return WithinCorrelation(mean, error, Interval(max(-1.0, mean - half), min(1.0, mean + half), "student t over clusters"), len(each), count - len(each))


def lowess(x: ArrayLike, y: ArrayLike, *, fraction: float = 0.5, iterations: int = 3, delta: float = 0.0, knots: int | None = None) -> np.ndarray:
    """Locally weighted linear regression, robust against outliers (Cleveland 1979, JASA 74). [n], [n] -> fitted values [n]

    Each fit weighs the nearest `fraction` of the points by the tricube of their distance; after it points are weighed anew by the bisquare of their
    residual over 6 medians, `iterations` times. `delta`: points closer than this to the last fit are interpolated (as in statsmodels, to the same
    values). `knots` fits at that many quantiles of x instead and interpolates, which suits skewed x. Cost: fits times fraction * n.
    """
    x, y = _column("x", x), _column("y", y)
    n = len(x)
    if not (0 < fraction <= 1 and iterations >= 0 and delta >= 0 and len(y) == n and (knots is None or knots >= 2)):
        raise ValueError(
            f"need 0 < fraction <= 1, iterations >= 0, delta >= 0, knots >= 2 and as many x as y, got {fraction}, {iterations}, {delta}, {knots}, {n}, {len(y)}"
        )
    if n == 0:
        return np.zeros(0)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    at = _fit_points(x, delta) if knots is None else np.unique(np.searchsorted(x, x[np.linspace(0, n - 1, knots).round().astype(int)]))
    size = min(n, max(2, int(fraction * n + 1e-10)))
    left = np.searchsorted(x[: n - size] + x[size:], 2 * x[at], side="left")  # the window slides right while its next point is nearer than its first
    alone = x[left] == x[left + size - 1]  # a window of one value takes all that share it, or the rows' order would choose among them
    right = np.where(alone, np.searchsorted(x, x[at], side="right"), left + size)
    left = np.where(alone, np.searchsorted(x, x[at], side="left"), left)
    robustness = np.ones(n)
    for turn in range(iterations + 1):
        fits = _local_fits(x, y, robustness, at, left, right)
        fitted = np.interp(x, x[at], fits)
        if turn < iterations:
            robustness = _bisquare(np.abs(y - fitted))
    result = np.empty(n)
    result[order] = fitted
    return result


def windowed_mean(x: ArrayLike, y: ArrayLike, *, width: float, minimum: int = NEAREST) -> np.ndarray:
    """Mean of y over the points within `width` of each x, where they are fewer than `minimum` over that many nearest (and as near). [n], [n] -> [n]"""
    x, y = _column("x", x), _column("y", y)
    n, minimum = len(x), min(minimum, len(x))
    if not (width >= 0 and minimum >= 1 and len(y) == n):
        raise ValueError(f"need width >= 0, at least one point and as many x as y, got {width}, {n} and {len(y)}")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    left, right = np.searchsorted(x, x - width, side="left"), np.searchsorted(x, x + width, side="right")
    few = np.flatnonzero(right - left < minimum)
    if minimum < n:
        begin = np.searchsorted(x[: n - minimum] + x[minimum:], 2 * x[few], side="left")
    else:
        begin = np.zeros(len(few), dtype=np.int64)
    radius = np.maximum(x[few] - x[begin], x[begin + minimum - 1] - x[few]) * (1 + 1e-9)  # the rounding of differences
    left[few], right[few] = np.searchsorted(x, x[few] - radius, side="left"), np.searchsorted(x, x[few] + radius, side="right")
    sums = np.concatenate([[0.0], np.cumsum(y - y.mean())])
    result = np.empty(n)
    result[order] = (sums[right] - sums[left]) / (right - left) + y.mean()
    return result


def length_calibrated(rewards: ArrayLike, lengths: ArrayLike, *, method: Literal["lowess", "window"] = "lowess", strength: float = 1.0) -> np.ndarray:
    """Rewards less what length predicts: r - strength * E[r | length]. [N], [N] -> [N], reward units

    Huang et al. 2024 (arXiv 2409.17407): RC-LWR ("lowess": fraction 1/2, 3 robust iterations) and RC-Mean ("window": mean of the rewards within a
    quarter of the mean length difference, 20 points at least). Their code takes the fit at the next length it finds; here RC-LWR interpolates between
    fits at 200 quantiles, and RC-Mean is taken at every length, so that near lengths get near corrections. Their mean length difference is that of the
    pairs; here it is that of two random responses.
    Fit it over many prompts: it assumes that quality does not depend on length, and takes such quality out as well.
    """
    r, lengths = _column("rewards", rewards), _column("lengths", lengths)
    if len(r) != len(lengths):
        raise ValueError(f"`rewards` and `lengths` must have one entry a response, got {len(r)} and {len(lengths)}")
    if method == "lowess":
        return r - strength * lowess(lengths, r, fraction=0.5, iterations=3, knots=KNOTS)
    if method == "window":
        n, ordered = len(lengths), np.sort(lengths)
        spread = 2 * float((2 * np.arange(1, n + 1) - n - 1) @ ordered) / max(1, n * (n - 1))  # Gini's mean difference
        return r - strength * windowed_mean(lengths, r, width=spread / 4)
    raise ValueError(f'`method` must be "lowess" or "window", got {method!r}')


def length_controlled(preference: ArrayLike, length_difference: ArrayLike, clusters: ArrayLike | None = None, *, confidence: float = 0.95) -> LengthControlled:
    """Win rate at equal length. [P] preferences in [0, 1], [P] length differences (first minus second) -> LengthControlled

        P(first preferred) = sigmoid(theta + psi * tanh(difference / sd)),    win rate = sigmoid(theta)

    AlpacaEval 2's model (Dubois et al. 2024, arXiv 2404.04475) without its term for the difficulty of a prompt, which needs many models' results.
    Preferences may be soft (logistic quasi-likelihood). Errors are sandwich errors over `clusters` [P] (default: every row its own, so that soft
    preferences do not count as whole verdicts), with C / (C - 1); the interval is symmetric in theta.
    """
    p, d = _column("preference", preference), _column("length_difference", length_difference)
    if len(p) != len(d) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"`preference` must lie in [0, 1] and have one entry a length difference, got {len(p)} and {len(d)} entries")
    scale = float(d.std()) if len(d) else 0.0
    if scale == 0:
        raise ValueError("the length differences are all equal, so no slope can be fitted; report the plain win rate")
    z = np.tanh(d / scale)
    won, lost = z[p > 0], z[p < 1]
    if not (len(won) and len(lost) and won.max() > lost.min() and lost.max() > won.min()):
        raise ValueError("length (or nothing at all) separates wins from losses, so the fit is infinite; use more comparisons")
    x = np.column_stack([np.ones_like(z), z])

    def value(b: np.ndarray) -> float:
        eta = x @ b
        return float(p @ np.logaddexp(0.0, -eta) + (1 - p) @ np.logaddexp(0.0, eta))

    def bend(b: np.ndarray) -> np.ndarray:
        fitted = expit(x @ b)
        return x.T @ (x * (fitted * (1 - fitted))[:, None])

    def step(b: np.ndarray) -> tuple[np.ndarray, float]:
        gradient = x.T @ (expit(x @ b) - p)
        direction = np.linalg.solve(bend(b), gradient)
        return direction, float(gradient @ direction)

    found = minimize(np.zeros(2), value, step, what="length-controlled win rate")
    codes, count = (np.arange(len(p)), len(p)) if clusters is None else _codes(clusters, len(p))
    if count < 2:
        raise ValueError("`clusters` must name two clusters at least, got 1")
    scores = x * (p - expit(x @ found.point))[:, None]
    sums = np.column_stack([np.bincount(codes, column, count) for column in scores.T])
    inverse = np.linalg.inv(bend(found.point))
    covariance = inverse @ (sums.T @ sums) @ inverse * count / (count - 1)
    theta, psi = (float(v) for v in found.point)
    half = float(stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(covariance[0, 0]))
    interval = Interval(float(expit(theta - half)), float(expit(theta + half)), "sandwich, logit scale")
    return LengthControlled(float(expit(theta)), interval, psi, float(np.sqrt(covariance[1, 1])), float(p.mean()), scale, found.iterations)


def _column(name: str, values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"`{name}` must be a list of finite numbers, got an array of shape {found.shape}")
    return found


def _codes(clusters: ArrayLike | None, size: int) -> tuple[np.ndarray, int]:
    """Cluster numbers [n] and how many there are; None: all in one."""
    if clusters is None:
        return np.zeros(size, dtype=np.int64), 1
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if codes.shape != (size,):
        raise ValueError(f"`clusters` must name a cluster for each of {size} rows, got an array of {codes.shape}")
    return codes, len(names)


def _demeaned(table: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Every column less its cluster's mean. [n, k] -> [n, k]"""
    sizes = np.bincount(codes, minlength=count)
    return table - np.column_stack([(np.bincount(codes, column, count) / sizes)[codes] for column in table.T])


def _ranks(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Rank of each value within its cluster from 1, ties at their mean. [n], [n] -> [n]"""
    order = np.lexsort((values, codes))
    v, c = values[order], codes[order]
    new = np.r_[True, (v[1:] != v[:-1]) | (c[1:] != c[:-1])]
    first = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    middle = (first + np.r_[first[1:], len(v)] - 1) / 2  # mean place of each run of ties
    begin = np.searchsorted(c, np.arange(c[-1] + 1))
    ranks = np.empty(len(v))
    ranks[order] = middle[run] - begin[c] + 1
    return ranks


def _fit_points(x: np.ndarray, delta: float) -> np.ndarray:
    """Where lowess fits: from each fitted point to the last one within delta, or to the next value if there is none. Sorted x [n] -> indices"""
    points, i, n = [], 0, len(x)
    while i < n:
        points.append(i)
        last_equal = int(np.searchsorted(x, x[i], side="right")) - 1
        beyond = int(np.searchsorted(x, x[i] + delta, side="right"))
        i = max(min(beyond, n - 1) - 1, last_equal + 1)
    return np.array(points)


def _local_fits(x: np.ndarray, y: np.ndarray, robustness: np.ndarray, at: np.ndarray, left: np.ndarray, right: np.ndarray) -> list[float]:
    """`_local_fit` at each of `at`, over its window; a point's own y where fewer than two rows of that weigh anything.

    Rows of one x weigh alike but for their robustness, so their sums stand for them where many share an x, as responses share a length.
    """
    load = robustness * y
    new = np.flatnonzero(np.r_[True, x[1:] != x[:-1]])  # where each value of x begins
    inside = zip(np.searchsorted(new, left, side="right"), np.searchsorted(new, right), strict=True)
    fits = []
    for i, start, end, (first, last) in zip(at, left, right, inside, strict=True):
        window, fit = slice(start, end), None
        if 2 * (last - first) < end - start:
            begin = np.r_[start, new[first:last]]
            mass, loads = (np.add.reduceat(column[window], begin - start) for column in (robustness, load))
            fit = _local_fit(x[begin], mass, loads, x[i])
        if fit is None:  # too few share an x, or one x weighs alone: with one row or with several?
            fit = _local_fit(x[window], robustness[window], load[window], x[i])
        fits.append(float(y[i]) if fit is None else fit)
    return fits


def _local_fit(x: np.ndarray, mass: np.ndarray, load: np.ndarray, at: float) -> float | None:
    """The weighted line through a window, read at `at`; `mass` is the robustness of each row, `load` that times y. None where fewer than two rows weigh."""
    distance = np.abs(x - at)
    radius = distance.max()
    near = _cube(1 - _cube(distance / radius)) if radius > 0 else np.ones(len(x))
    weights = near * mass
    if np.count_nonzero(weights > 1e-12) < 2:
        return None
    total = weights.sum()
    centre = weights @ x / total
    spread = max(weights @ (x - centre) ** 2 / total, 1e-12)
    return float((near @ load + (at - centre) * (near @ ((x - centre) * load)) / spread) / total)


def _cube(values: np.ndarray) -> np.ndarray:
    return values * values * values  # `**` takes four times as long


def _bisquare(residuals: np.ndarray) -> np.ndarray:
    """Robustness weights (1 - (e / 6 median)^2)^2, 0 beyond 6 medians (Cleveland 1979)."""
    median = np.median(residuals)
    u = np.minimum(residuals / (6 * median), 1.0) if median > 0 else (residuals > 0).astype(float)
    return (1 - u**2) ** 2
