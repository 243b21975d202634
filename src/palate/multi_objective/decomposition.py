"""Directions of preference: the principal components of chosen minus rejected embeddings (Decomposed Reward Models, Luo et al. 2025, arXiv 2502.13131).

What separates better from worse responses is a cloud of differences z = e(chosen) - e(rejected) in H dimensions. Its directions of largest variance,
each with both signs, are reward heads on the model as it stands: nothing is trained. One pass over the differences, batch by batch, gives their
H x H second moments; K leading eigenvectors of those are all that is kept.

Centred (the paper's, scikit-learn's PCA), a direction is one along which differences vary about their mean, and labels decide which mean. Uncentred, z and
-z count alike, so that labels play no part at all, and the mean difference itself, which a trained head points along, is among the directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.linalg import blas
from scipy.sparse.linalg import eigsh

from palate.errors import DataError
from palate.multi_objective.pairs import Pairs

LANCZOS = 1000
"""Width from which K leading eigenvectors are found by Lanczos iterations (ARPACK, to machine precision), not by a whole eigendecomposition:
at a width of 4096 and 50 components 2 s in place of 20 (2 cores)."""

RANK = 1e-10
"""Share of the largest eigenvalue, or of the squared mean if that is larger, below which one is rounding: second moments are float64, sums of float32
differences."""


@dataclass(frozen=True)
class Decomposition:
    """K directions of chosen minus rejected, by decreasing variance. The mean difference lies on the positive side of each."""

    directions: np.ndarray  # float64 [K, H], orthonormal rows
    variance: np.ndarray  # [K], of the differences along each: eigenvalues
    total_variance: float  # over all H dimensions
    mean: np.ndarray  # [H], the mean difference, labels and weights taken into account
    centred: bool
    pairs: int

    @property
    def names(self) -> tuple[str, ...]:
        """pc01, pc02, ..."""
        digits = max(2, len(str(len(self.directions))))
        return tuple(f"pc{k:0{digits}d}" for k in range(1, len(self.directions) + 1))

    @property
    def explained(self) -> np.ndarray:
        """Share of the variance along each direction, [K]."""
        return self.variance / self.total_variance


class Moments:
    """Weighted first and second moments of rows that come batch by batch, as if they had come at once."""

    def __init__(self, width: int):
        self.first = np.zeros(width)
        self.second = np.zeros((width, width), order="F")  # its lower triangle
        self.weight = self.squared_weight = 0.0
        self.rows = 0

    def add(self, rows: np.ndarray, weights: np.ndarray, probability: np.ndarray) -> None:
        """Differences [b, H]: each holds with its probability, and the other way round with what is left of it."""
        scaled = np.ascontiguousarray(rows, dtype=np.float64) * np.sqrt(weights)[:, None]
        self.second = blas.dsyrk(1.0, scaled.T, beta=1.0, c=self.second, overwrite_c=1, lower=1)  # half of the work of a product
        self.first += (weights * (2 * probability - 1)) @ rows
        self.weight += float(weights.sum())
        self.squared_weight += float((weights**2).sum())
        self.rows += len(rows)

    @property
    def mean(self) -> np.ndarray:
        return self.first / self.weight

    def covariance(self, *, centred: bool) -> np.ndarray:
        """[H, H]. Centred: unbiased (of equal weights the divisor is n - 1); uncentred: the second moments about 0."""
        second = np.tril(self.second) / self.weight
        second += np.tril(second, -1).T
        if not centred:
            return second
        correction = 1 - self.squared_weight / self.weight**2
        if correction <= 0:
            raise DataError(f"{self.rows} comparison leaves nothing that varies; a centred decomposition needs two at least")
        return (second - np.outer(self.mean, self.mean)) / correction


def decompose(pairs: Pairs, *, components: int = 50, centred: bool = True) -> Decomposition:
    """The leading directions of the pairs' differences, in one pass. 50 components are the paper's.

    Raises DataError where the differences span fewer directions than `components`.
    """
    moments = Moments(pairs.embeddings.width)
    for differences, rows in pairs.differences():
        moments.add(differences, pairs.weight[rows], pairs.probability[rows])
    return principal_directions(moments, components=components, centred=centred)


def decompose_rows(batches: Iterable[np.ndarray], *, components: int = 50, centred: bool = True) -> Decomposition:
    """The same of differences [b, H] that are given as they are, batch by batch, each of weight 1."""
    moments: Moments | None = None
    for rows in batches:
        moments = moments or Moments(rows.shape[1])
        moments.add(rows, np.ones(len(rows)), np.ones(len(rows)))
    if moments is None:
        raise DataError("no differences to decompose; give one batch at least")
    return principal_directions(moments, components=components, centred=centred)


def principal_directions(moments: Moments, *, components: int, centred: bool) -> Decomposition:
    covariance = moments.covariance(centred=centred)
    width, total = len(covariance), float(np.trace(covariance))
    most = min(width, moments.rows - centred)
    if components > most:
        raise DataError(
            f"{components} components of {moments.rows} comparisons in {width} dimensions; there are {most} at most: ask for fewer, or give more data"
        )
    if width >= LANCZOS and components < width // 4:
        # a start that is the same every time: ARPACK's own is drawn anew by each process
        values, vectors = eigsh(covariance, k=components, which="LA", v0=np.random.default_rng(0).standard_normal(width))
    else:
        values, vectors = linalg.eigh(covariance, subset_by_index=(width - components, width - 1))
    values, directions = values[::-1], vectors.T[::-1]
    spanned = int((values > RANK * max(values[0], float(moments.mean @ moments.mean))).sum())
    if not spanned:
        raise DataError(f"the differences of {moments.rows} comparisons do not vary" + (" about their mean; leave them uncentred" if centred else ""))
    if spanned < components:
        raise DataError(f"the differences of {moments.rows} comparisons vary in {spanned} directions; ask for {spanned} components or fewer")
    along = directions @ moments.mean
    return Decomposition(directions * np.where(along < 0, -1.0, 1.0)[:, None], values, total, moments.mean, centred, moments.rows)
