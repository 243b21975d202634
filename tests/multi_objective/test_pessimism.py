"""The last layer's posterior: both forms by brute force, the ridge by its held-out loss, saved and read again, and what a lower bound is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from tests.scoring.test_uncertainty import CPU, ITEMS, local, saved

from palate.data.loading import load_groups
from palate.errors import ConfigError, ContractError, DataError
from palate.multi_objective.pairs import Pairs, embedded_pairs
from palate.multi_objective.pessimism import RIDGES, fit_posterior, held_out_prompts
from palate.scoring.embeddings import Embeddings
from palate.scoring.laplace import LAPLACE_NAME, LaplaceScorer, Posterior, linear_reward, read_posterior
from palate.scoring.sources import open_scorer

WIDTH = 5


class Table:
    """Embeddings by the response, drawn at random."""

    def __init__(self, width: int = WIDTH, seed: int = 0):
        self.rng, self.known, self.width = np.random.default_rng(seed), {}, width

    def embed(self, conversations, **_) -> Embeddings:  # type: ignore[no-untyped-def]
        rows = [self.known.setdefault(str(c), self.rng.normal(size=self.width) + 1) for c in conversations]
        return Embeddings(np.array(rows, dtype=np.float32))


def pairs_of(prompts: int = 40, each: int = 1) -> Pairs:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i} {k}", "rejected": f"bad {i} {k}"} for i in range(prompts) for k in range(each)]
    return embedded_pairs(Table(), load_groups(rows).groups)


def sides(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return (np.asarray(pairs.embeddings.take(side), dtype=np.float64) for side in (pairs.chosen, pairs.rejected))  # type: ignore[return-value]


@pytest.mark.parametrize("ridge", [0.1, 10.0])
def test_the_bound_of_zhu_by_brute_force(ridge: float) -> None:
    """w.phi - beta sqrt((phi - v)^T (Sigma + lambda I)^-1 (phi - v)), Sigma the mean outer product of differences."""
    pairs, weight = pairs_of(), np.arange(1.0, WIDTH + 1)
    posterior = fit_posterior(pairs, weight, ridges=[ridge], form="uniform").posterior
    chosen, rejected = sides(pairs)
    sigma = sum(np.outer(x, x) for x in chosen - rejected) / len(pairs)
    v = np.concatenate([chosen, rejected]).mean(axis=0)
    phi = np.random.default_rng(1).normal(size=(7, WIDTH))
    inverse = np.linalg.inv(sigma + ridge * np.eye(WIDTH))
    expected = [np.sqrt((one - v) @ inverse @ (one - v)) for one in phi]
    np.testing.assert_allclose(posterior.reference, v, atol=1e-6)
    np.testing.assert_allclose(posterior.deviations(phi), expected, rtol=1e-6)


def test_the_curvature_is_that_of_the_log_loss() -> None:
    """A - ridge I is the second derivative, by finite differences, of the summed log loss of d / T at w."""
    pairs, weight = pairs_of(), np.array([0.5, -0.2, 0.1, 0.9, -0.4])
    fit = fit_posterior(pairs, weight, ridges=[0.3])
    chosen, rejected = sides(pairs)

    def gradient(w: np.ndarray) -> np.ndarray:
        x = (chosen - rejected) / fit.temperature
        return -(expit(-x @ w) @ x)

    steps = np.eye(WIDTH) * 1e-5
    hessian = np.array([(gradient(weight + step) - gradient(weight - step)) / 2e-5 for step in steps])
    np.testing.assert_allclose(fit.posterior.precision, hessian + 0.3 * np.eye(WIDTH), rtol=1e-5, atol=1e-6)


def test_more_comparisons_of_a_direction_make_it_surer() -> None:
    """Embeddings that differ along the first axis alone: no comparison spoke of the others, where only the ridge holds."""
    pairs = pairs_of()
    flat = np.asarray(pairs.embeddings).copy()
    flat[:, 1:] = 1.0
    flat[pairs.chosen, 0] = flat[pairs.rejected, 0] + 1
    posterior = fit_posterior(Pairs(**{**vars(pairs), "embeddings": Embeddings(flat)}), np.eye(WIDTH)[0], ridges=[0.01], form="uniform").posterior
    along, across = posterior.deviations(posterior.reference + np.eye(WIDTH)[:2])
    assert along == pytest.approx(1 / np.sqrt(1.01)) and across == pytest.approx(10.0)


def test_the_ridge_has_the_least_held_out_loss() -> None:
    fit = fit_posterior(pairs_of(), np.array([0.5, -0.2, 0.1, 0.9, -0.4]))
    assert set(fit.held_out) == set(RIDGES) and fit.held_out[fit.ridge] == min(fit.held_out.values())
    assert fit.posterior.about["ridge"] == fit.ridge and fit.posterior.about["form"] == "curvature"


def test_prompts_are_held_out_whole() -> None:
    prompts = np.repeat(np.arange(10), 3)
    held = held_out_prompts(prompts, 0.2, 0)
    assert held.reshape(10, 3).all(axis=1).sum() == 2 and held.sum() == 6
    with pytest.raises(DataError, match="1 prompt cannot be split"):
        held_out_prompts(np.zeros(4), 0.2, 0)
    with pytest.raises(ConfigError, match="without one, directions that no comparison spoke of have no precision"):
        fit_posterior(pairs_of(), np.ones(WIDTH), ridges=[0.0])


# --- beside a checkpoint ------------------------------------------------------------------------------------------------------------------------------


def test_saved_beside_a_checkpoint_it_gives_the_same_rewards_with_an_uncertainty(tmp_path: Path) -> None:
    scorer = local(("a", "b"), (0.7, -0.4))  # the reward of two heads is linear as well
    folder = saved(tmp_path / "model", scorer)
    plain = open_scorer(str(folder), **CPU)
    embeddings = scorer.embed(ITEMS)
    root = np.random.default_rng(0).normal(size=(scorer.width, scorer.width))
    posterior = Posterior(root @ root.T + np.eye(scorer.width), embeddings.mean(axis=0), {"ridge": 1.0})
    posterior.save(folder, scorer)
    opened = open_scorer(str(folder), **CPU)
    assert isinstance(opened.scorer, LaplaceScorer) and opened.identity == plain.identity  # the same rewards: what was cached holds
    rewards, uncertainty = opened.scorer.score(ITEMS, return_uncertainty=True)
    np.testing.assert_allclose(rewards, plain.scorer.score(ITEMS), atol=1e-5)
    centred = embeddings.astype(np.float64) - posterior.reference
    expected = np.sqrt(np.einsum("nh,hk,nk->n", centred, np.linalg.inv(posterior.precision), centred))
    np.testing.assert_allclose(uncertainty, expected, rtol=1e-4)
    lower = open_scorer(f"lower=0.5:{folder}", **CPU)
    np.testing.assert_allclose(lower.scorer.score(ITEMS), rewards - 0.5 * expected, atol=1e-4)
    posterior.save(folder, scorer)  # fitted again
    assert open_scorer(f"lower=0.5:{folder}", **CPU).identity != lower.identity
    assert read_posterior(folder, scorer).about == {"ridge": 1.0}


def test_what_is_too_long_has_no_uncertainty(tmp_path: Path) -> None:
    scorer = local(("reward",), (1.0,), max_length=32)
    weight, bias = linear_reward(scorer)
    found = LaplaceScorer(scorer, Posterior(np.eye(scorer.width), np.zeros(scorer.width), {})).estimate([ITEMS[0], ("ask", "good " * 60)], on_long="nan")
    assert np.isnan(found.rewards).tolist() == np.isnan(found.uncertainty).tolist() == [False, True]
    np.testing.assert_allclose(found.rewards[0], scorer.embed(ITEMS[:1])[0] @ weight + bias, atol=1e-5)


def test_a_posterior_of_another_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", local(("reward",), (1.0,)))
    other = local(("reward",), (1.0,), seed=9)
    Posterior(np.eye(other.width), np.zeros(other.width), {}).save(folder, other)
    with pytest.raises(ContractError, match="was fitted for another reward head than this folder has"):
        open_scorer(str(folder), **CPU)
    (folder / LAPLACE_NAME).write_bytes(b"broken")
    with pytest.raises(ContractError, match=r"not a readable posterior: .*fit it again"):
        open_scorer(str(folder), **CPU)
