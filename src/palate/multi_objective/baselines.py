"""Heads to compare adapted directions with: random ones, and an ensemble trained on the same frozen backbone.

What adaptation gains over one head may come from having many heads at all. In the paper's table random heads, adapted in the same way, already bring most
of the gain on one backbone, so no gain is worth a sentence without them (arXiv 2502.13131, table 2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from palate.multi_objective.heads import LinearHeads
from palate.multi_objective.pairs import Pairs
from palate.scoring.embeddings import Embeddings

RANDOM_SETS = 20
"""Sets of random heads that take turns, one for each of the usual draws: two single sets differed by ten points on a small model."""

RIDGE = 1e-3
"""Pull towards a head's anchor, in units of the mean loss of a comparison on embeddings of unit scale; weak, so that data decide where they can. Ours."""

ITERATIONS = 200  # of L-BFGS; the loss is smooth and convex, and a few dozen suffice at a width of 384


def gaussian_heads(count: int, width: int, seed: int) -> LinearHeads:
    """`count` heads with normal entries; their scale does not matter to adaptation, which z-scores."""
    return _named("gaussian", np.random.default_rng(seed).standard_normal((count, width)))


def uniform_heads(count: int, width: int, seed: int) -> LinearHeads:
    """`count` heads with entries uniform in (-1, 1)."""
    return _named("uniform", np.random.default_rng(seed).uniform(-1.0, 1.0, (count, width)))


def random_scores(heads: Callable[[int, int, int], LinearHeads], embeddings: Embeddings, count: int, seed: int) -> np.ndarray:
    """Scores of RANDOM_SETS sets of `count` random heads (`gaussian_heads` or `uniform_heads`), as `run_trials` takes them: float32 [S, N, count]."""
    return np.stack([heads(count, embeddings.width, seed + s).score(embeddings) for s in range(RANDOM_SETS)])


def shared_base_ensemble(pairs: Pairs, count: int, seed: int, *, ridge: float = RIDGE) -> LinearHeads:
    """`count` Bradley-Terry heads trained on one frozen backbone, each pulled towards random weights of its own (the shared-base ensemble of HyRe).

    Each minimises the mean loss over the pairs plus ridge |w - anchor|^2 / 2 with a normal anchor of unit length, on differences scaled to a mean square of
    1: randomized priors (Osband et al. 2018, arXiv 1806.03335) for linear heads, which agree where the data are clear and differ where they say nothing.
    """
    differences = np.concatenate([rows for rows, _ in pairs.differences()])
    scale = float(np.sqrt((differences**2).sum(axis=1).mean()))
    z, w, p = differences / scale, pairs.weight / pairs.weight.sum(), pairs.probability
    width = z.shape[1]
    anchors = np.random.default_rng(seed).standard_normal((count, width)) / np.sqrt(width)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        heads = flat.reshape(count, width)
        margins = z @ heads.T
        away = heads - anchors
        value = (w @ (p[:, None] * np.logaddexp(0, -margins) + (1 - p)[:, None] * np.logaddexp(0, margins))).sum() + ridge / 2 * (away**2).sum()
        gradient = (w[:, None] * (expit(margins) - p[:, None])).T @ z + ridge * away
        return float(value), gradient.ravel()

    found = minimize(loss, anchors.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return _named("shared", found.x.reshape(count, width) / scale)


def _named(name: str, weights: np.ndarray) -> LinearHeads:
    return LinearHeads(tuple(f"{name}{j:03d}" for j in range(1, len(weights) + 1)), weights.astype(np.float32), np.zeros(len(weights), dtype=np.float32))
