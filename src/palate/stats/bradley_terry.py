"""Bradley-Terry strengths from verdicts: maximum a posteriori by Newton's method, with errors, a position term and two models of ties.

    P(i beats j) = sigmoid(D)      D = b_i - b_j + gamma * z      z = +1: i was shown first, -1: j was, 0: neither, or not known

Strengths b, gamma and their errors are in logits (natural log-odds). Only differences of strengths mean something, so strengths are given with the
mean of their prior (0), and errors are those of a strength minus the mean of all strengths.

Shapes: R rows (verdicts), n items, E cells (unique pairs and positions), G prompts of K responses each, N responses of all prompts together.
Cost: n^3 up to 4000 items (1000 items, 200,000 rows: half a second), sparse above; 100,000 prompts of 4 responses in about two seconds (`fit_many`).
Sources: Bradley and Terry 1952 (Biometrika 39); Hunter 2004 (Annals of Statistics 32); ties: Davidson 1970 (JASA 65), Rao and Kupper 1967 (JASA 62).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm

from palate.stats.intervals import Interval
from palate.stats.newton import ARMIJO, DECREMENT, DENSE, ITERATIONS, Curvature, Matrix, minimize

Ties = Literal["half", "davidson", "rao_kupper"]

SMALL = 100_000
"""Entries up to which the design matrix is dense: below that the sparse one costs more in overhead than it saves. Ours."""


class Tally(NamedTuple):
    """Verdicts summed over unique (pair, position), the lower item first. Everything here is [E], in weights of rows."""

    first: np.ndarray  # the lower item of the pair
    second: np.ndarray
    position: np.ndarray  # z as seen from `first`
    wins: np.ndarray  # of `first`; a soft label p adds p here and 1 - p to losses
    losses: np.ndarray
    ties: np.ndarray  # rows with p exactly 1/2, counted nowhere else


class Strengths(NamedTuple):
    """A fitted Bradley-Terry model. n items; errors are standard errors."""

    strengths: np.ndarray  # [n] logits
    errors: np.ndarray  # [n] of a strength minus the mean of all strengths
    low: np.ndarray  # [n] ends of the normal interval at the asked confidence
    high: np.ndarray
    covariance: np.ndarray | None  # [n, n]; None above DENSE items
    position: float | None  # gamma: logits that the item shown first gains; None: not fitted
    position_error: float | None
    tie: float | None  # nu (Davidson) or theta (Rao-Kupper); None: ties are halves
    tie_error: float | None
    log_likelihood: float  # of the verdicts, without the prior
    iterations: int
    components: int  # groups of items that no chain of comparisons joins; only the prior says how one stands to another
    separable: bool  # without a ridge some strengths (or gamma) would be infinite


class ManyStrengths(NamedTuple):
    """Bradley-Terry models of G prompts, laid end to end: responses of prompt g are offsets[g]:offsets[g + 1]. N responses in all."""

    prompts: np.ndarray  # [G] the prompts, sorted
    offsets: np.ndarray  # [G + 1]
    strengths: np.ndarray  # [N] logits; the mean within a prompt is that of its prior
    errors: np.ndarray  # [N] of a strength minus the mean of its prompt
    covariance: np.ndarray  # [sum of K^2] the K x K blocks, row by row
    covariance_offsets: np.ndarray  # [G + 1]
    position: float | None  # gamma, one for all prompts
    position_error: float | None
    log_likelihood: float
    iterations: int

    def block(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        """Strengths [K] and covariance [K, K] of prompt number g."""
        strengths = self.strengths[self.offsets[g] : self.offsets[g + 1]]
        return strengths, self.covariance[self.covariance_offsets[g] : self.covariance_offsets[g + 1]].reshape(len(strengths), len(strengths))


class Readings(NamedTuple):
    """Differences of strengths that were measured, not won: log-odds that a judge states. M readings; `first` and `second` within their prompt."""

    prompt: ArrayLike
    first: ArrayLike
    second: ArrayLike
    value: ArrayLike  # of b_first - b_second, logits
    precision: ArrayLike  # 1 / variance of its error


class Difference(NamedTuple):
    value: np.ndarray  # b_i - b_j in logits
    error: np.ndarray  # its standard error


class PositionEffect(NamedTuple):
    gamma: float  # logits that the side shown first gains
    error: float
    interval: Interval
    pairs: int  # judged in both orders, with a decided verdict in each


class Intransitivity(NamedTuple):
    share: float | None  # cyclic / triples; None without a decided triple
    cyclic: int  # triples with a > b > c > a
    triples: int  # triples of which all three pairs are decided


class Proposals(NamedTuple):
    first: np.ndarray  # [k] in order of choice
    second: np.ndarray
    gain: np.ndarray  # [k] log(1 + p (1 - p) v): growth of the log-determinant of the information by one more verdict


HALF_A_PAIR = np.array([[[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.5], [0.5, 0.0]]])
"""Two tables [2, 2, table] of weight 1: half a pair won by whoever is shown first, half a pair by whoever is shown second (Haldane 1956)."""


class _Rows(NamedTuple):
    """R checked rows, or the E cells of a tally: the same columns."""

    first: np.ndarray
    second: np.ndarray
    position: np.ndarray
    wins: np.ndarray
    losses: np.ndarray
    ties: np.ndarray

    def design(self, n_items: int, position: bool) -> Matrix:
        """X with D = X (b, gamma): +1 and -1 for the two items, z for gamma. [E, n] or [E, n + 1], dense where that is small"""
        size, row = len(self.first), np.arange(len(self.first))
        columns = [self.first, self.second] + ([np.full(size, n_items)] if position else [])
        values = [np.ones(size), -np.ones(size)] + ([self.position] if position else [])
        shape = (size, n_items + position)
        if shape[0] * shape[1] <= SMALL:
            dense = np.zeros(shape)
            for column, value in zip(columns, values, strict=True):
                dense[row, column] = value
            return dense
        return sparse.csr_array((np.concatenate(values), (np.tile(row, len(columns)), np.concatenate(columns))), shape=shape)


class _Terms(NamedTuple):
    """Log-likelihood of each cell and its derivatives in D and in the tie parameter t (curvatures with the sign of minus the log-likelihood)."""

    value: np.ndarray
    d: np.ndarray
    dd: np.ndarray
    t: np.ndarray
    dt: np.ndarray
    tt: np.ndarray


def tally(
    n_items: int, first: ArrayLike, second: ArrayLike, p_first: ArrayLike = 1.0, *, weight: ArrayLike | None = None, position: ArrayLike | None = None
) -> Tally:
    """Sums rows over unique (pair, position). [R] -> Tally with [E] entries, sorted by pair

    `p_first`: 1 first won, 0 second won, exactly 1/2 a tie, anything between a soft label, which adds p and 1 - p. `weight`: copies of the row
    (default 1; rows of weight 0 are left out). `position`: z of each row, see the top of the file.
    """
    return Tally(*_cells(n_items, _rows(n_items, first, second, p_first, weight, position)))


def fit_bradley_terry(
    n_items: int,
    first: ArrayLike,
    second: ArrayLike,
    p_first: ArrayLike = 1.0,
    *,
    weight: ArrayLike | None = None,
    ridge: float = 0.5,
    prior: ArrayLike | None = None,
    position: ArrayLike | None = None,
    ties: Ties = "half",
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Strengths:
    """MAP strengths of n items from R verdicts. [R], [R], [R] -> Strengths

        minimize  -sum of w log P(verdict)  +  ridge / 2 * (sum over i of (b_i - prior_i)^2 + gamma^2)

    The rows' order is of no account; rows as in `tally`. A ridge > 0 (a normal prior of variance 1 / ridge on every strength and on gamma) makes the
    fit finite and unique for any data: items without games, groups never compared, winners who never lost. `ridge=0` is maximum likelihood, which
    exists only if no direction of the parameters is favoured by every verdict: for plain strengths, if every item can be reached from every other by
    a chain of wins (Ford 1957; with more parameters: Albert and Anderson 1984); otherwise ValueError.

    `position` fits gamma. A judge that always takes what it sees first has a huge gamma, held finite by the ridge.
    `ties`: "half" gives either side half a win. The others fit a tie parameter (without a prior) together with the strengths:

        davidson     P(i) : P(tie) : P(j) = exp(D / 2) : nu : exp(-D / 2)                          (Davidson 1970)
        rao_kupper   P(i) = sigmoid(D - log theta), P(j) = sigmoid(-D - log theta), the rest tie   (Rao and Kupper 1967)

    `clusters` [R]: rows of one cluster (a prompt, a rater) are not independent: errors are then the sandwich H^-1 G H^-1, G = C / (C - 1) * sum over
    the C clusters of their scores' outer products (Liang and Zeger 1986). Otherwise they are the inverse Hessian, which takes each unit of weight for
    one independent verdict.
    """
    if n_items < 1:
        raise ValueError(f"`n_items` must be at least 1, got {n_items}")
    rows = _rows(n_items, first, second, p_first, weight, position)
    cells = _cells(n_items, rows)
    centre = _prior(n_items, prior, ridge)
    terms = _TERMS[_known(ties)]
    shown, tied = position is not None, ties != "half"
    components, separable = _existence(n_items, cells, shown, ties)
    if tied and not (cells.ties.sum() > 0 and (cells.wins + cells.losses).sum() > 0):
        raise ValueError(f'ties="{ties}" needs at least one tie (p_first = 1/2) and one decided verdict, or its parameter is infinite; use ties="half"')
    if ridge == 0 and (separable or components > 1):
        why = f"the comparisons fall into {components} groups" if components > 1 else "some strengths or terms are infinite (someone always wins, or never)"
        raise ValueError(f"ridge=0: the maximum-likelihood strengths do not exist, {why}; use ridge > 0 or more comparisons")

    problem = _Joint(cells, n_items, ridge, centre, shown, ties)
    found = minimize(problem.start(), problem.value, problem.step, what="Bradley-Terry fit")
    x, tie = problem.split(found.point)
    scores = None if clusters is None else _scores(rows, clusters, n_items, shown, tied, terms, x, tie)
    covariance, variances = problem.curvature(found.point)[1].covariance(scores)
    errors = np.sqrt(np.maximum(variances, 0.0))
    z = norm.ppf(0.5 + confidence / 2)
    b, se = x[:n_items], errors[:n_items]
    return Strengths(
        strengths=b,
        errors=se,
        low=b - z * se,
        high=b + z * se,
        covariance=covariance,
        position=float(x[n_items]) if shown else None,
        position_error=float(errors[n_items]) if shown else None,
        tie=float(np.exp(tie)) if tied else None,
        tie_error=float(np.exp(tie) * errors[-1]) if tied else None,  # delta method: d exp(t) = exp(t) dt
        log_likelihood=float(terms(cells, problem.design @ x, tie).value.sum()),
        iterations=found.iterations,
        components=components,
        separable=separable,
    )


def fit_many(
    prompt: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    p_first: ArrayLike = 1.0,
    *,
    weight: ArrayLike | None = None,
    ridge: float = 0.5,
    sizes: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    position: ArrayLike | None = None,
    readings: Readings | None = None,
) -> ManyStrengths:
    """MAP strengths within each of G prompts, all at once. [R] rows -> ManyStrengths

    As `fit_bradley_terry` prompt by prompt with the same ridge (> 0 here); `first` and `second` number the responses within their prompt. `prompt`: any
    sortable ids. `sizes` [G]: responses of each prompt, prompts sorted (default: the highest number seen, plus one). `prior` [N]: the mean of each
    response's prior, such as the strength of the model that wrote it, prompts sorted.

    `position` fits one gamma for all prompts, jointly with every strength (the Hessian is an arrow: block-diagonal with a border, solved by its Schur
    complement). It serves to keep the order of showing out of the strengths. As an estimate of the judge's bias it is poor where verdicts per response
    are few, since every prompt brings parameters of its own (Neyman and Scott 1948) and the ridge shrinks them: with one verdict per order, a true 0.8
    comes out between 0.55 and 1.3, depending on the ridge and on how far apart the responses are, and its error does not show that. `position_effect`
    has no such bias.

    `readings` are measured differences beside the verdicts (or in place of them: give no rows). Each adds precision / 2 * (value - (b_i - b_j))^2 to what is
    minimised: a normal error, where a verdict is a coin. A log-odds reading counted as a game of probability p would weigh p (1 - p), at 4 logits 1/50
    of what it says.
    """
    measured = readings or Readings([], [], [], [], [])
    rows = len(np.asarray(prompt))
    prompts, group = np.unique(np.concatenate([np.asarray(prompt), np.asarray(measured.prompt)]) if readings else np.asarray(prompt), return_inverse=True)
    group, measured_group = group[:rows], group[rows:]
    local_first, local_second = _indices("first", first, rows), _indices("second", second, rows)
    measured_first, measured_second = (_indices(name, getattr(measured, name), len(measured_group)) for name in ("first", "second"))
    seen = np.zeros(len(prompts), dtype=np.int64)
    np.maximum.at(seen, group, np.maximum(local_first, local_second) + 1)
    np.maximum.at(seen, measured_group, np.maximum(measured_first, measured_second) + 1)
    counts = seen if sizes is None else np.asarray(sizes, dtype=np.int64)
    if counts.shape != seen.shape or (counts < seen).any():
        raise ValueError(f"`sizes` must give each of {len(prompts)} prompts at least its highest response number plus one, got an array of {counts.shape}")
    if not ridge > 0:
        raise ValueError(f"fit_many needs ridge > 0 (a prompt rarely has a maximum-likelihood fit), got {ridge}")
    offsets, total = np.concatenate([[0], np.cumsum(counts)]), int(counts.sum())
    centre = _prior(total, prior, ridge)
    cells = _cells(total, _rows(total, local_first + offsets[group], local_second + offsets[group], p_first, weight, position))
    start = offsets[measured_group]
    problem = _Blocks(cells, offsets, ridge, centre, position is not None, measured._replace(first=start + measured_first, second=start + measured_second))
    strengths, gamma, iterations = problem.minimize()
    inverse, gamma_error = problem.covariance(strengths, gamma)
    errors = np.sqrt(np.maximum(inverse[problem.diagonal], 0.0))
    return ManyStrengths(
        prompts=prompts,
        offsets=offsets,
        strengths=strengths,
        errors=errors,
        covariance=inverse,
        covariance_offsets=problem.block_offsets,
        position=float(gamma) if position is not None else None,
        position_error=float(gamma_error) if position is not None else None,
        log_likelihood=float(problem.likelihood(strengths, gamma).sum()),
        iterations=iterations,
    )


def probability(strengths: np.ndarray, i: ArrayLike, j: ArrayLike) -> np.ndarray:
    """P(i beats j) = sigmoid(b_i - b_j), ties and positions left aside. [n], indices [m], [m] -> [m]"""
    return expit(np.asarray(strengths)[np.asarray(i)] - np.asarray(strengths)[np.asarray(j)])


def outcomes(d: ArrayLike, ties: Ties = "half", tie: float | None = None) -> np.ndarray:
    """P(win), P(tie), P(loss) of the first side at the difference D (logits). [m] -> [m, 3]; `tie` is nu or theta as fitted."""
    d = np.asarray(d, dtype=float)
    if _known(ties) == "half":
        return np.stack([expit(d), np.zeros_like(d), expit(-d)], axis=-1)
    if tie is None or tie <= (1 if ties == "rao_kupper" else 0):
        raise ValueError(f'ties="{ties}" needs its parameter (nu > 0 or theta > 1), got {tie}')
    if ties == "rao_kupper":
        win, loss = expit(d - np.log(tie)), expit(-d - np.log(tie))
        return np.stack([win, (tie**2 - 1) * win * loss, loss], axis=-1)
    logits = np.stack([d / 2, np.full_like(d, np.log(tie)), -d / 2], axis=-1)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


class Fitted(Protocol):
    """What `difference` needs of a fit: any result with strengths and their covariance."""

    @property
    def strengths(self) -> np.ndarray: ...

    @property
    def covariance(self) -> np.ndarray | None: ...


def difference(fit: Fitted, i: ArrayLike, j: ArrayLike) -> Difference:
    """b_i - b_j and its standard error, from the covariance of the fit. Indices [m], [m] -> Difference of [m]"""
    if fit.covariance is None:
        raise ValueError(f"no covariance is kept above {DENSE} items, got {len(fit.strengths)}; fit the items of interest alone")
    i, j, c = np.asarray(i), np.asarray(j), fit.covariance
    return Difference(fit.strengths[i] - fit.strengths[j], np.sqrt(np.maximum(c[i, i] + c[j, j] - 2 * c[i, j], 0.0)))


def difference_within(fit: ManyStrengths, g: ArrayLike, i: ArrayLike, j: ArrayLike) -> Difference:
    """b_i - b_j of two responses of prompt number g, and its standard error. [m], [m], [m] -> Difference of [m]"""
    g, i, j = np.asarray(g), np.asarray(i), np.asarray(j)
    start, size, base = fit.offsets[g], np.diff(fit.offsets)[g], fit.covariance_offsets[g]
    c = fit.covariance
    variance = c[base + i * size + i] + c[base + j * size + j] - 2 * c[base + i * size + j]
    return Difference(fit.strengths[start + i] - fit.strengths[start + j], np.sqrt(np.maximum(variance, 0.0)))


def position_effect(
    prompt: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    p_first: ArrayLike = 1.0,
    *,
    position: ArrayLike,
    weight: ArrayLike | None = None,
    confidence: float = 0.95,
) -> PositionEffect:
    """gamma from pairs judged in both orders, free of the strengths. [R] rows as for `fit_many`, z in -1, 0, +1 -> PositionEffect

    A pair's 2 x 2 table (which side was shown first, which side won) has the odds ratio exp(2 gamma), whatever the two strengths are. Tables are pooled
    by Mantel and Haenszel 1959, whose estimate stays right with many tables of few verdicts; the error is that of Robins, Breslow and Greenland
    1986 (Biometrics 42). With one hard verdict per order gamma is half the log of (pairs won both times by the side shown first) to (won both
    times by the side shown second). Half a pair is added each way (Haldane 1956), which keeps a judge that never changes its place finite.
    Ties and rows with z = 0 are left out, pairs seen in one order too.
    """
    prompts, group = np.unique(np.asarray(prompt), return_inverse=True)
    i, j = _indices("first", first, len(group)), _indices("second", second, len(group))
    width = int(max(i.max(initial=0), j.max(initial=0))) + 1
    cells = _cells(len(prompts) * width, _rows(len(prompts) * width, group * width + i, group * width + j, p_first, weight, position))
    odd = ~np.isin(cells.position, (-1.0, 0.0, 1.0))
    if odd.any():
        raise ValueError(f"`position` must be +1, -1 or 0 here, got {cells.position[odd][0]:g}")
    pairs, pair = np.unique(np.stack([cells.first, cells.second]), axis=1, return_inverse=True)
    table = np.zeros((2, 2, pairs.shape[1]))  # [lower item shown first or second, it won or lost, pair]
    for row, z in enumerate((1.0, -1.0)):
        here = cells.position == z
        table[row, 0] = np.bincount(pair[here], cells.wins[here], pairs.shape[1])
        table[row, 1] = np.bincount(pair[here], cells.losses[here], pairs.shape[1])
    both = (table.sum(axis=1) > 0).all(axis=0)
    (a, b), (c, d) = np.concatenate([table[:, :, both], HALF_A_PAIR], axis=2)
    size = a + b + c + d
    agree, differ, r, s = (a + d) / size, (b + c) / size, a * d / size, b * c / size
    up, down = float(r.sum()), float(s.sum())
    variance = agree @ r / (2 * up**2) + (agree @ s + differ @ r) / (2 * up * down) + differ @ s / (2 * down**2)
    gamma, error = float(np.log(up / down) / 2), float(np.sqrt(variance) / 2)
    half = float(norm.ppf(0.5 + confidence / 2)) * error
    return PositionEffect(gamma, error, Interval(gamma - half, gamma + half, "Mantel-Haenszel"), int(both.sum()))


def intransitive_share(wins: ArrayLike) -> Intransitivity:
    """How many of the decided triples run in a circle. wins [n, n] (wins[i, j]: weight of "i beats j") -> Intransitivity

    A pair is decided if one side has more wins. With A the matrix of "beats" and S of "decided", circles are trace(A^3) / 3 and triples
    trace(S^3) / 6 (Kendall and Babington Smith 1940, Biometrika 31, for complete tournaments). A fair coin makes 1/4 of them circles.
    """
    table = np.asarray(wins, dtype=float)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"`wins` must be square, [n, n], got {table.shape}")
    beats = (table > table.T).astype(float)
    decided = beats + beats.T
    cyclic = round(float(np.sum((beats @ beats) * beats.T)) / 3)
    triples = round(float(np.sum((decided @ decided) * decided)) / 6)
    return Intransitivity(cyclic / triples if triples else None, cyclic, triples)


def next_pairs(strengths: np.ndarray, covariance: np.ndarray, counts: ArrayLike, k: int) -> Proposals:
    """The k different pairs whose next verdict would tell most. [n], [n, n], counts [n, n], k -> Proposals

    Greedy D-optimal design: a verdict on (i, j) adds p (1 - p) x x' to the information (x = e_i - e_j, p = P(i beats j)), which multiplies its
    determinant by 1 + p (1 - p) Var(b_i - b_j) (Chaloner and Verdinelli 1995, Statistical Science 10). The covariance is updated after
    each choice (Sherman and Morrison), so that k pairs do not all ask about the same item. Equal gains go to the pair with fewer `counts` (verdicts
    so far), then to the lower numbers.
    """
    n = len(strengths)
    i, j = np.triu_indices(n, 1)
    if not 0 < k <= len(i):
        raise ValueError(f"`k` must lie between 1 and the {len(i)} pairs of {n} items, got {k}")
    table = np.asarray(counts, dtype=float)
    used = table[i, j] + table[j, i]
    p = expit(strengths[i] - strengths[j])
    information, c = p * (1 - p), np.array(covariance, dtype=float)
    free, chosen, gains = np.ones(len(i), dtype=bool), [], []
    for _ in range(k):
        gain = np.where(free, np.log1p(information * np.maximum(c[i, i] + c[j, j] - 2 * c[i, j], 0.0)), -1.0)
        best = np.flatnonzero(gain >= gain.max() * (1 - 1e-12))
        pick = int(best[np.argmin(used[best])])
        chosen.append(pick)
        gains.append(float(gain[pick]))
        free[pick] = False
        moved = c[:, i[pick]] - c[:, j[pick]]
        c -= np.outer(moved, moved) * information[pick] / (1 + information[pick] * (moved[i[pick]] - moved[j[pick]]))
    return Proposals(i[chosen], j[chosen], np.asarray(gains))


def _indices(name: str, values: ArrayLike, size: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (size,) or (size and found.dtype.kind not in "iu"):
        raise ValueError(f"`{name}` must hold {size} whole numbers, one a row, got an array of {found.shape} and type {found.dtype}")
    if size and found.min() < 0:
        raise ValueError(f"`{name}` must hold item numbers from 0, got {found.min()}")
    return found.astype(np.int64)


def _numbers(name: str, values: ArrayLike | None, default: float, size: int, low: float, high: float) -> np.ndarray:
    found = np.broadcast_to(np.asarray(default if values is None else values, dtype=float), (size,))
    bad = ~((found >= low) & (found <= high) & np.isfinite(found))
    if bad.any():
        raise ValueError(f"row {int(np.argmax(bad))}: `{name}` must lie between {low:g} and {high:g}, got {found[bad][0]}")
    return found


def _rows(n_items: int, first: ArrayLike, second: ArrayLike, p_first: ArrayLike, weight: ArrayLike | None, position: ArrayLike | None) -> _Rows:
    """Checked rows; those of weight 0 stay, so that clusters keep their places."""
    size = len(np.asarray(first))
    i, j = _indices("first", first, size), _indices("second", second, size)
    if size and (i == j).any():
        raise ValueError(f"row {int(np.argmax(i == j))}: an item is compared with itself ({i[i == j][0]}); `first` and `second` must differ")
    if size and max(i.max(), j.max()) >= n_items:
        raise ValueError(f"item {max(i.max(), j.max())} is outside the {n_items} items; items are numbered from 0")
    p, w = _numbers("p_first", p_first, 1.0, size, 0, 1), _numbers("weight", weight, 1.0, size, 0, np.inf)
    z = _numbers("position", position, 0.0, size, -1, 1) + 0.0  # -0.0 becomes 0.0
    tie = p == 0.5
    return _Rows(i, j, z, np.where(tie, 0.0, p * w), np.where(tie, 0.0, (1 - p) * w), np.where(tie, w, 0.0))


def _cells(n_items: int, rows: _Rows) -> _Rows:
    """Rows summed over unique (pair, position), the lower item first."""
    kept = rows.wins + rows.losses + rows.ties > 0
    i, j, z, win, loss, tie = (column[kept] for column in rows)
    swap = i > j
    i, j, z = np.where(swap, j, i), np.where(swap, i, j), np.where(swap, -z, z) + 0.0
    win, loss = np.where(swap, loss, win), np.where(swap, win, loss)
    levels, level = np.unique(z, return_inverse=True)
    keys, cell = np.unique((i * n_items + j) * max(1, len(levels)) + level, return_inverse=True)
    pair, level = np.divmod(keys, max(1, len(levels)))
    sums = [np.bincount(cell, column, len(keys)) for column in (win, loss, tie)]
    return _Rows(pair // n_items, pair % n_items, levels[level] if len(levels) else np.zeros(0), *sums)


def _prior(n_items: int, prior: ArrayLike | None, ridge: float) -> np.ndarray:
    if not (ridge >= 0 and np.isfinite(ridge)):
        raise ValueError(f"`ridge` must be a finite number >= 0, got {ridge}")
    if prior is None:
        return np.zeros(n_items)
    centre = np.asarray(prior, dtype=float)
    if centre.shape != (n_items,) or not np.isfinite(centre).all():
        raise ValueError(f"`prior` must hold {n_items} finite strengths, one an item, got an array of {centre.shape}")
    if ridge == 0:
        raise ValueError("`prior` is read with ridge > 0 only; set a ridge or leave the prior out")
    return centre


def _known(ties: str) -> str:
    if ties not in _TERMS:
        raise ValueError(f"`ties` must be one of {', '.join(_TERMS)}, got {ties!r}")
    return ties


def _half(cells: _Rows, d: np.ndarray, _: float) -> _Terms:
    win, loss = cells.wins + cells.ties / 2, cells.losses + cells.ties / 2
    p, none = expit(d), np.zeros_like(d)
    value = -win * np.logaddexp(0.0, -d) - loss * np.logaddexp(0.0, d)
    return _Terms(value, win * expit(-d) - loss * p, (win + loss) * p * expit(-d), none, none, none)


def _davidson(cells: _Rows, d: np.ndarray, t: float) -> _Terms:
    """t = log nu: a log-linear model, so minus the log-likelihood is convex in (b, gamma, t)."""
    win, loss, tie = cells.wins, cells.losses, cells.ties
    total = win + loss + tie
    log_norm = np.logaddexp(np.logaddexp(d / 2, -d / 2), t)
    p_win, p_loss, p_tie = np.exp(d / 2 - log_norm), np.exp(-d / 2 - log_norm), np.exp(t - log_norm)
    lean = (p_win - p_loss) / 2
    value = win * (d / 2 - log_norm) + loss * (-d / 2 - log_norm) + tie * (t - log_norm)
    dd = total * ((p_win + p_loss) / 4 - lean**2)
    return _Terms(value, (win - loss) / 2 - total * lean, dd, tie - total * p_tie, -total * lean * p_tie, total * p_tie * (1 - p_tie))


def _rao_kupper(cells: _Rows, d: np.ndarray, t: float) -> _Terms:
    """t = log theta > 0. P(tie) = (theta^2 - 1) P(win) P(loss), so minus the log-likelihood is a sum of convex functions of (D, t)."""
    ahead, behind, tie = cells.wins + cells.ties, cells.losses + cells.ties, cells.ties
    left = -np.expm1(-2 * t)  # 1 - theta^-2; log(theta^2 - 1) = 2 t + log(left)
    up, down = expit(t - d), expit(t + d)  # 1 - P(win), 1 - P(loss)
    value = -ahead * np.logaddexp(0.0, t - d) - behind * np.logaddexp(0.0, t + d) + tie * (2 * t + np.log(left))
    u, v = ahead * up * (1 - up), behind * down * (1 - down)
    slope = -ahead * up - behind * down + tie * 2 / left
    return _Terms(value, ahead * up - behind * down, u + v, slope, v - u, u + v + tie * 4 * np.exp(-2 * t) / left**2)


_TERMS: dict[str, Callable[[_Rows, np.ndarray, float], _Terms]] = {"half": _half, "davidson": _davidson, "rao_kupper": _rao_kupper}


def _first_guess(ties: str, cells: _Rows) -> float:
    """The tie parameter at which equal items tie as often as seen: nu / (2 + nu), or (theta - 1) / (theta + 1)."""
    share = float(cells.ties.sum() / (cells.wins + cells.losses + cells.ties).sum())
    return float(np.log(2 * share / (1 - share)) if ties == "davidson" else np.log((1 + share) / (1 - share)))


def _existence(n_items: int, cells: _Rows, shown: bool, ties: str) -> tuple[int, bool]:
    """Connected groups of items, and whether some direction of the parameters is favoured by (or indifferent to) every verdict.

    Along strengths alone that is a graph question: within a group everyone must be reachable from everyone by wins (a tie counts both ways). With
    gamma or a tie parameter it is a linear programme: find (b', gamma', t') with D' >= t' for every win, D' <= -t' for every loss and |D'| <= t' for
    every tie (t' = 0 and ties as both for "half"), not all equalities.
    """
    up, down = cells.wins + cells.ties > 0, cells.losses + cells.ties > 0
    start, end = np.concatenate([cells.first[up], cells.second[down]]), np.concatenate([cells.second[up], cells.first[down]])
    graph = sparse.coo_array((np.ones(len(start)), (start, end)), shape=(n_items, n_items))
    components, _ = connected_components(graph, directed=True, connection="weak")
    strong, _ = connected_components(graph, directed=True, connection="strong")
    if strong > components:
        return components, True
    if not len(start) or not (shown or ties != "half"):
        return components, False
    design = cells.design(n_items, shown)
    tied = ties != "half"
    every = (cells.wins > 0) & (cells.losses > 0) & (cells.ties > 0) if tied else up & down  # every outcome seen leaves only D' = t' = 0
    if isinstance(design, np.ndarray) and every.any():
        rank = np.linalg.matrix_rank(design[every].T @ design[every], hermitian=True)
        if rank == n_items + shown - components:
            return components, False
    parts = []
    for mask, sign, threshold in (
        (cells.wins > 0, 1, -1),
        (cells.losses > 0, -1, -1),
        (cells.ties > 0, 1, 1),
        (cells.ties > 0, -1, 1),
    ):
        rows = sparse.csr_array(sign * design[mask])
        parts.append(sparse.hstack([rows, sparse.csr_array(np.full((rows.shape[0], 1), float(threshold)))]) if tied else rows)
    slack: Matrix = sparse.vstack(parts).tocsr()
    found = linprog(-np.asarray(slack.sum(axis=0)).ravel(), A_ub=-slack, b_ub=np.zeros(slack.shape[0]), bounds=(-1, 1), method="highs")
    return components, bool(float(found.fun or 0.0) < -1e-7)


def _scaled(matrix: Matrix, rows: np.ndarray) -> Matrix:
    """diag(rows) matrix"""
    return matrix * rows[:, None] if isinstance(matrix, np.ndarray) else matrix.multiply(rows[:, None]).tocsr()


def _bordered(matrix: Matrix, border: np.ndarray, corner: float) -> Matrix:
    if isinstance(matrix, np.ndarray):
        return np.block([[matrix, border[:, None]], [border[None, :], np.full((1, 1), corner)]])
    edge: Matrix = sparse.csr_array(border[:, None])
    return sparse.block_array([[matrix, edge], [edge.T, sparse.csr_array([[corner]])]]).tocsr()


def _scores(
    rows: _Rows, clusters: ArrayLike, n_items: int, shown: bool, tied: bool, terms: Callable[[_Rows, np.ndarray, float], _Terms], x: np.ndarray, tie: float
) -> sparse.csr_array:
    """Scores summed by cluster, times sqrt(C / (C - 1)). [C, p]"""
    names, code = np.unique(np.asarray(clusters), return_inverse=True)
    if code.shape != rows.first.shape or len(names) < 2:
        raise ValueError(
            f"`clusters` must name a cluster for each of {len(rows.first)} rows, two clusters at least; got {code.shape} and {len(names)} clusters"
        )
    design = rows.design(n_items, shown)
    at = terms(rows, design @ x, tie)
    member = sparse.csr_array((np.ones(len(code)), (code, np.arange(len(code)))), shape=(len(names), len(code)))
    scores = sparse.csr_array(member @ sparse.csr_array(_scaled(design, at.d)))
    if tied:
        scores = sparse.hstack([scores, sparse.csr_array((member @ at.t)[:, None])]).tocsr()
    return scores * np.sqrt(len(names) / (len(names) - 1))


class _Joint:
    """The problem of one set of items: x = (b, gamma where it is fitted, t where ties have a parameter)."""

    def __init__(self, cells: _Rows, n_items: int, ridge: float, centre: np.ndarray, shown: bool, ties: str):
        self.cells, self.n_items, self.ties, self.tied = cells, n_items, ties, ties != "half"
        self.terms = _TERMS[ties]
        self.design = cells.design(n_items, shown)
        self.penalty = np.full(n_items + shown, float(ridge))
        self.goal = np.concatenate([centre, np.zeros(int(shown))])

    def start(self) -> np.ndarray:
        return np.concatenate([self.goal, [_first_guess(self.ties, self.cells)]]) if self.tied else self.goal

    def split(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """(strengths and gamma, t)"""
        return (x[:-1], float(x[-1])) if self.tied else (x, 0.0)

    def value(self, x: np.ndarray) -> float:
        b, tie = self.split(x)
        if self.ties == "rao_kupper" and tie <= 0:
            return np.inf
        return float(0.5 * self.penalty @ (b - self.goal) ** 2 - self.terms(self.cells, self.design @ b, tie).value.sum())

    def curvature(self, x: np.ndarray) -> tuple[np.ndarray, Curvature]:
        """Gradient, and the Hessian ready to be solved."""
        b, tie = self.split(x)
        at = self.terms(self.cells, self.design @ b, tie)
        gradient = self.penalty * (b - self.goal) - self.design.T @ at.d
        hessian = self.design.T @ _scaled(self.design, at.dd)
        if self.tied:
            gradient = np.append(gradient, -at.t.sum())
            hessian = _bordered(hessian, self.design.T @ at.dt, float(at.tt.sum()))
        return gradient, Curvature(hessian, np.append(self.penalty, np.zeros(len(gradient) - len(self.penalty))), self.n_items)

    def step(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Newton's direction, and the squared decrement along it."""
        gradient, solver = self.curvature(x)
        direction = solver.solve(gradient)
        return direction, float(gradient @ direction)


class _Blocks:
    """The joint problem of many prompts: cells over all N responses, a Hessian of K x K blocks, and perhaps one gamma that borders it."""

    def __init__(self, cells: _Rows, offsets: np.ndarray, ridge: float, centre: np.ndarray, shown: bool, measured: Readings):
        num, none = len(np.asarray(measured.value)), np.zeros(len(np.asarray(measured.value)))
        value, precision = (_numbers(name, getattr(measured, name), 0.0, num, low, np.inf) for name, low in (("value", -np.inf), ("precision", 0)))
        self.goal, self.precision = (np.concatenate([np.zeros(len(cells.first)), column]) for column in (value, precision))
        more = _Rows(np.asarray(measured.first), np.asarray(measured.second), none, none, none, none)  # readings are cells without a verdict
        self.cells = cells = _Rows(*(np.concatenate([old, new]) for old, new in zip(cells, more, strict=True)))
        self.ridge, self.centre, self.shown = ridge, centre, shown
        sizes = np.diff(offsets)
        self.groups, self.total = len(sizes), int(offsets[-1])
        self.owner = np.repeat(np.arange(self.groups), sizes)  # [N] the prompt of each response
        self.cell_owner = self.owner[cells.first]
        self.block_offsets = np.concatenate([[0], np.cumsum(sizes**2)])
        local = np.arange(self.total) - offsets[self.owner]
        base, size = self.block_offsets[self.owner], sizes[self.owner]
        self.diagonal = base + local * size + local  # [N] where b_i's own curvature stands among the blocks
        i, j = cells.first, cells.second
        self.upper, self.lower = base[i] + local[i] * size[i] + local[j], base[i] + local[j] * size[i] + local[i]
        self.buckets = []  # prompts of one size are solved together
        for k in np.unique(sizes):
            members = np.flatnonzero(sizes == k)
            self.buckets.append((int(k), offsets[members][:, None] + np.arange(k), self.block_offsets[members][:, None] + np.arange(k * k)))

    def difference(self, b: np.ndarray, gamma: float) -> np.ndarray:
        return b[self.cells.first] - b[self.cells.second] + gamma * self.cells.position

    def terms(self, b: np.ndarray, gamma: float) -> _Terms:
        """Of verdicts and readings, by cell."""
        d = self.difference(b, gamma)
        verdicts, off = _half(self.cells, d, 0.0), self.goal - d
        pull = self.precision * off
        return verdicts._replace(value=verdicts.value - pull * off / 2, d=verdicts.d + pull, dd=verdicts.dd + self.precision)

    def likelihood(self, b: np.ndarray, gamma: float) -> np.ndarray:
        """[G]"""
        return np.bincount(self.cell_owner, self.terms(b, gamma).value, self.groups)

    def objective(self, b: np.ndarray, gamma: float) -> np.ndarray:
        """[G], or [1] where gamma ties the prompts together"""
        parts = self.ridge / 2 * np.bincount(self.owner, (b - self.centre) ** 2, self.groups) - self.likelihood(b, gamma)
        return np.array([parts.sum() + self.ridge / 2 * gamma**2]) if self.shown else parts

    def curvature(self, b: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        """Gradient [N], blocks [sum of K^2], border [N], and gamma's own gradient and curvature."""
        cells = self.cells
        at = self.terms(b, gamma)
        gradient = self.ridge * (b - self.centre) - self._spread(at.d)
        blocks = np.zeros(self.block_offsets[-1])  # bincount of nothing would be whole numbers
        blocks -= np.bincount(self.upper, at.dd, self.block_offsets[-1]) + np.bincount(self.lower, at.dd, self.block_offsets[-1])
        blocks[self.diagonal] += np.bincount(cells.first, at.dd, self.total) + np.bincount(cells.second, at.dd, self.total) + self.ridge
        border = self._spread(cells.position * at.dd)
        return gradient, blocks, border, self.ridge * gamma - float(cells.position @ at.d), self.ridge + float(cells.position**2 @ at.dd)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """X' values: added to the first response of each cell, taken from the second. [E] -> [N]"""
        return np.bincount(self.cells.first, values, self.total) - np.bincount(self.cells.second, values, self.total)

    def solve(self, blocks: np.ndarray, rights: list[np.ndarray]) -> list[np.ndarray]:
        """The block-diagonal solutions of several right-hand sides. [sum of K^2], [N] each -> [N] each"""
        found = [np.zeros(self.total) for _ in rights]
        for k, where, block in self.buckets:
            stiff, _ = self._held(blocks[block].reshape(-1, k, k))
            solved = np.linalg.solve(stiff, np.stack([right[where] for right in rights], axis=-1))
            for column, out in enumerate(found):
                out[where] = solved[..., column]
        return found

    @staticmethod
    def _held(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blocks [G, K, K] made stiff along (1, ..., 1), where all they have is the ridge, and that stiffness [G, 1, 1]: regular for any ridge."""
        k = blocks.shape[1]
        stiffness = np.einsum("gkk->g", blocks)[:, None, None] / k
        return blocks + stiffness / k, stiffness + blocks.sum(axis=(1, 2))[:, None, None] / k

    def minimize(self) -> tuple[np.ndarray, float, int]:
        """Newton's method; without gamma each prompt has its own step length."""
        b, gamma = self.centre.copy(), 0.0
        current = self.objective(b, gamma)
        for iteration in range(1, ITERATIONS + 1):
            gradient, blocks, border, slope, bend = self.curvature(b, gamma)
            if self.shown:
                v, u = self.solve(blocks, [gradient, border])
                turn = (slope - border @ v) / (bend - border @ u)
                v = v - u * turn
                squared = np.array([gradient @ v + slope * turn])
            else:
                v, turn = self.solve(blocks, [gradient])[0], 0.0
                squared = np.bincount(self.owner, gradient * v, self.groups)
            scale, rounding = np.ones(len(current)), 1e-13 * (1 + np.abs(current))
            while True:
                trial_b, trial_gamma = b - (scale if self.shown else scale[self.owner]) * v, gamma - (float(scale[0]) * turn if self.shown else 0.0)
                trial = self.objective(trial_b, trial_gamma)
                short = trial > current - ARMIJO * scale * squared + rounding
                if not short.any():
                    break
                scale = np.where(short, scale / 2, scale)
                if scale.min() < 1e-12:
                    raise ValueError("fit_many: no step along the Newton direction lowers the objective; use a larger ridge")
            b, gamma, current = trial_b, trial_gamma, trial
            if (squared < DECREMENT**2).all():
                return b, gamma, iteration
        raise ValueError(f"fit_many: not converged after {ITERATIONS} Newton steps; use a larger ridge")

    def covariance(self, b: np.ndarray, gamma: float) -> tuple[np.ndarray, float]:
        """Covariance blocks [sum of K^2] of strengths minus their prompt's mean, and the error of gamma."""
        _, blocks, border, _, bend = self.curvature(b, gamma)
        u = self.solve(blocks, [border])[0] if self.shown else np.zeros(self.total)
        schur = bend - float(border @ u)
        inverse = np.zeros_like(blocks)
        for k, where, block in self.buckets:
            stiff, stiffness = self._held(blocks[block].reshape(-1, k, k))
            part = np.linalg.inv(stiff) - 1 / (stiffness * k)  # less the gauge's own part of the inverse
            inverse[block] = (part + u[where][:, :, None] * u[where][:, None, :] / schur).reshape(-1, k * k)
        return inverse, 1 / np.sqrt(schur)
