"""A linear head for each rated attribute, by ridge regression on what the reward head reads; the backbone stays as it is.

    w = argmin |X w - y|^2 + alpha |w|^2 = (X^T X + alpha I)^-1 X^T y      one attribute at a time, over the responses that were rated for it

Source: Wang et al. 2024 (ArmoRM, arXiv 2406.12845), section 3: no intercept, alpha from a grid by an 80/20 split. Here the split is by prompt, and a head
that has a bias (encoders) gets an intercept, which is not penalised; decoders of transformers have none, so theirs get none. Heads predict ratings in the
ratings' own units. `loss.type: regression` trains such heads together with the backbone and saves the same form of checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from palate.errors import ConfigError, DataError
from palate.multi_objective.heads import LinearHeads
from palate.multi_objective.pessimism import HELD_OUT, held_out_prompts
from palate.stats.bootstrap import bootstrap_statistic
from palate.stats.intervals import Interval
from palate.stats.ranking import spearman
from palate.types import PreferenceGroup, Readout

ALPHAS = tuple(10.0**k for k in range(-4, 5))
"""ArmoRM's grid."""

FEWEST = 10
"""Rated responses below which no alpha can be told: a fifth of them, held out, would be one or two."""


class Ratings(NamedTuple):
    """Ratings of N responses in the order of their groups."""

    names: tuple[str, ...]
    values: np.ndarray  # [N, A], NaN where a response was not rated for an attribute


class AttributeFit(NamedTuple):
    name: str
    alpha: float
    rated: int  # responses
    mean: float  # of the ratings
    deviation: float
    held_out: int  # responses of held-out prompts, on which the rest was measured by a fit to the others
    r2: float  # 1 - squared error / that of the other prompts' mean rating
    spearman: float  # NaN, as R2 may be, where the held-out ratings do not vary
    spearman_interval: Interval  # bootstrap over prompts


def ratings_of(groups: Sequence[PreferenceGroup], attributes: Sequence[str] | None = None) -> Ratings:
    """What the responses of these groups were rated for: the attributes named, or all, by first appearance. Raises DataError for one that nobody rated."""
    found = list(dict.fromkeys(name for group in groups for rating in group.ratings for name in rating))
    names = tuple(attributes) if attributes is not None else tuple(found)
    if not names:
        raise DataError("no response is rated; give rows with `score` (a number, or {attribute: number}), `scores`, or HelpSteer's columns (docs/formats.md)")
    if missing := [name for name in names if name not in found]:
        raise DataError(f"no response is rated for `{missing[0]}`; the data rate {', '.join(found) or 'nothing'}")
    rows = [rating for group in groups for rating in (group.ratings or [{}] * len(group.responses))]
    return Ratings(names, np.array([[rating.get(name, np.nan) for name in names] for rating in rows], dtype=float).reshape(len(rows), len(names)))


def ridge(x: np.ndarray, y: np.ndarray, alpha: float, *, intercept: bool = False) -> tuple[np.ndarray, float]:
    """(w [H], b) of the ridge regression of y [N] on x [N, H]; b is 0 without an intercept."""
    weights, biases = ridge_path(x, y, [alpha], intercept=intercept)
    return weights[0], float(biases[0])


def ridge_path(x: np.ndarray, y: np.ndarray, alphas: Sequence[float], *, intercept: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(weights [S, H], intercepts [S]) for S alphas at the price of one eigendecomposition of X^T X = V diag(e) V^T: w = V (V^T X^T y) / (e + alpha)."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    centre, level = (x.mean(axis=0), y.mean()) if intercept else (np.zeros(x.shape[1]), 0.0)
    x, y = x - centre, y - level
    values, vectors = eigh(x.T @ x)
    along = vectors.T @ (x.T @ y)
    weights = np.array([vectors @ (along / (np.maximum(values, 0) + alpha)) for alpha in alphas])
    return weights, level - weights @ centre


def fit_attributes(
    embeddings: np.ndarray,
    ratings: Ratings,
    prompts: np.ndarray,
    *,
    intercept: bool,
    alphas: Sequence[float] = ALPHAS,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> tuple[LinearHeads, list[AttributeFit]]:
    """Heads over embeddings [N, H], one an attribute, and how each did on held-out prompts; `prompts` [N] are equal for equal prompts.

    The alpha with the least squared error on held-out prompts is taken, and the head then fitted to all of them. Responses without a rating or without
    an embedding (NaN) take no part. Raises DataError for an attribute with too few, or with one rating for all.
    """
    if not len(alphas) or min(alphas) <= 0:
        raise ConfigError(f"alphas are {list(alphas)}, expected numbers above 0")
    embedded = np.isfinite(embeddings).all(axis=1)
    weights, biases, fits = [], [], []
    for column, name in enumerate(ratings.names):
        rated = embedded & ~np.isnan(ratings.values[:, column])
        if rated.sum() < FEWEST or len(np.unique(prompts[rated])) < 2:
            raise DataError(f"`{name}` is rated {rated.sum()} times on {len(np.unique(prompts[rated]))} prompts; {FEWEST} times on two at least are needed")
        if np.ptp(ratings.values[rated, column]) == 0:
            only = ratings.values[rated, column][0]
            raise DataError(f"`{name}` is {only:g} for all {rated.sum()} rated responses, so there is nothing to learn; leave it out (--attributes)")
        x, y, of = embeddings[rated].astype(np.float64), ratings.values[rated, column], prompts[rated]
        test = held_out_prompts(of, held_out, seed)
        tried, offsets = ridge_path(x[~test], y[~test], alphas, intercept=intercept)
        predicted = x[test] @ tried.T + offsets  # [n, S]
        errors = ((predicted - y[test, None]) ** 2).mean(axis=0)
        best = int(errors.argmin())
        weight, bias = ridge(x, y, alphas[best], intercept=intercept)
        weights.append(weight)
        biases.append(bias)
        fits.append(_measured(name, float(alphas[best]), y, test, predicted[:, best], of[test]))
    return LinearHeads(ratings.names, np.array(weights, dtype=np.float32), np.array(biases, dtype=np.float32)), fits


def _measured(name: str, alpha: float, y: np.ndarray, test: np.ndarray, predicted: np.ndarray, prompts: np.ndarray) -> AttributeFit:
    truth = y[test]
    against = float(((truth - y[~test].mean()) ** 2).mean())
    r2 = 1 - float(((predicted - truth) ** 2).mean()) / against if against else float("nan")
    rho, interval = spearman(predicted, truth), Interval(float("nan"), float("nan"), "undefined")
    if rho == rho:
        interval = bootstrap_statistic(lambda rows: spearman(predicted[rows], truth[rows]), prompts)
    return AttributeFit(name, alpha, len(y), float(y.mean()), float(y.std()), int(test.sum()), r2, rho, interval)


def attribute_readout(fits: Sequence[AttributeFit], weights: Mapping[str, float] | None = None) -> Readout:
    """One reward from the attributes: by the weights given, on ratings as they are (HelpSteer2's, say), or alike on standard scales (1 / (A deviation)).

    Raises ConfigError for a weight of an attribute that is not there, and for weights that are all 0.
    """
    names = tuple(fit.name for fit in fits)
    if weights is None:
        return Readout(names, tuple(1 / (len(fits) * fit.deviation) for fit in fits))
    if unknown := sorted(set(weights) - set(names)):
        raise ConfigError(f"--weights names {unknown[0]}, which is not among the attributes {', '.join(names)}")
    if not any(weights.values()):
        raise ConfigError("--weights are all 0, so every reward would be 0; give one attribute a weight")
    return Readout(names, tuple(float(weights.get(name, 0.0)) for name in names))
