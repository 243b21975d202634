"""Fit the posterior of a linear reward's weights to comparisons: the precision that `laplace.safetensors` holds, and its ridge on held-out prompts.

With x the difference of two embeddings and d = w.x its reward, over P comparisons of weight c (summing to P):

    curvature   A = sum_p c_p s(d_p/T) s(-d_p/T) / T^2 x_p x_p^T + ridge I     Laplace: the log-loss's curvature at w, deviations in units of the reward
    uniform     A = 1/P sum_p c_p x_p x_p^T + ridge I                          Zhu, Jiao and Jordan 2023 (arXiv 2301.11270), Sigma_D + lambda I
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from palate.errors import ConfigError, DataError
from palate.multi_objective.pairs import Pairs
from palate.scoring.laplace import Posterior
from palate.stats.calibration import fit_temperature, log_loss
from palate.stats.uncertainty import moderated

RIDGES = tuple(10.0**k for k in range(-4, 5))
"""Grid of prior precisions; that of ArmoRM's ridge, as nothing better is known before the scale of the embeddings is."""

HELD_OUT = 0.2  # of the prompts, for the ridge; ArmoRM's share


class PosteriorFit(NamedTuple):
    posterior: Posterior
    ridge: float
    temperature: float  # T of sigmoid(d / T) on the held-out prompts
    held_out: dict[float, float]  # log loss of the moderated probability on held-out prompts, by ridge
    plain: float  # log loss there without uncertainty, at T


def fit_posterior(
    pairs: Pairs,
    weight: np.ndarray,
    *,
    ridges: Sequence[float] = RIDGES,
    form: Literal["curvature", "uniform"] = "curvature",
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> PosteriorFit:
    """The posterior around reward weights [H] (which stay as they are), by the ridge with the least held-out log loss of sigmoid(d / sqrt(1 + pi s^2 / 8)).

    Several ridges need held-out prompts; they and the temperature come from these, and the posterior is then fitted to all comparisons. Comparisons on
    which the reward was trained tell what it has seen, but make it look surer than it is: give held-out ones for the temperature's sake where you can.
    """
    if not len(ridges) or min(ridges) <= 0:
        raise ConfigError(f"ridges are {list(ridges)}, expected numbers above 0: without one, directions that no comparison spoke of have no precision")
    test = held_out_prompts(pairs.prompts, held_out, seed)
    rewards = _rewards(pairs, weight)
    temperature = fit_temperature(rewards[test], pairs.probability[test]).value if form == "curvature" else 1.0
    weights = pairs.weight * len(pairs) / pairs.weight.sum()
    share = weights * expit(rewards / temperature) * expit(-rewards / temperature) / temperature**2 if form == "curvature" else weights / len(pairs)
    losses: dict[float, float] = {}
    if len(ridges) > 1:
        scatter = weighted_scatter(pairs, np.where(test, 0.0, share))
        inside, eigen = np.linalg.eigh(scatter)
        along = np.concatenate([x @ eigen for x, _ in pairs[test].differences()])
        for ridge in ridges:
            variance = (along**2 / (np.maximum(inside, 0) + ridge)).sum(axis=1) / temperature**2
            losses[ridge] = log_loss(moderated(rewards[test] / temperature, variance), probability=pairs.probability[test])
    best = min(losses, key=lambda ridge: losses[ridge]) if losses else float(ridges[0])
    precision = weighted_scatter(pairs, share) + best * np.eye(len(weight))
    reference = _mean_embedding(pairs)
    about = {"form": form, "ridge": best, "temperature": temperature, "comparisons": len(pairs), "held_out_log_loss": losses.get(best)}
    plain = log_loss(rewards[test] / temperature, probability=pairs.probability[test])
    return PosteriorFit(Posterior(precision, reference, about), best, temperature, losses, plain)


def weighted_scatter(pairs: Pairs, share: np.ndarray) -> np.ndarray:
    """sum_p share_p x_p x_p^T over differences of embeddings, float64 [H, H]."""
    total = np.zeros((pairs.embeddings.width, pairs.embeddings.width))
    for x, rows in pairs.differences():
        total += (x * share[rows, None]).T @ x
    return total


def held_out_prompts(prompts: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows belong to prompts that are held out, bool [P]: `share` of the prompts, one at least on either side. Raises DataError for fewer than two."""
    distinct = np.unique(prompts)
    if len(distinct) < 2:
        raise DataError(f"{len(distinct)} prompt cannot be split; choosing by held-out prompts needs two at least, and means something from dozens on")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    held: np.ndarray = np.isin(prompts, np.random.default_rng(seed).choice(distinct, count, replace=False))
    return held


def _rewards(pairs: Pairs, weight: np.ndarray) -> np.ndarray:
    return np.concatenate([x @ weight for x, _ in pairs.differences()])


def _mean_embedding(pairs: Pairs) -> np.ndarray:
    """Mean embedding of the responses that are compared, each once, float64 [H]."""
    rows = np.unique(np.concatenate([pairs.chosen, pairs.rejected]))
    mean: np.ndarray = np.asarray(pairs.embeddings.take(rows), dtype=np.float64).mean(axis=0)
    return mean
