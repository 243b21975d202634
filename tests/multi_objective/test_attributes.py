"""Ridge heads: the closed form, missing ratings by hand, alpha by held-out prompts, the checkpoint that comes of it, and the readout's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.scoring.test_uncertainty import CPU, ITEMS, local

from palate.data.loading import load_groups
from palate.errors import ConfigError, DataError
from palate.models.checkpoints import read_contract
from palate.multi_objective.attributes import ALPHAS, Ratings, attribute_readout, fit_attributes, ratings_of, ridge, ridge_path
from palate.multi_objective.heads import save_heads
from palate.multi_objective.pessimism import held_out_prompts
from palate.scoring.local import load_scorer
from palate.types import Readout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)) + 0.5
Y = X @ RNG.normal(size=(6, 2)) + RNG.normal(size=(60, 2)) * 0.3 + 2.0
PROMPTS = np.repeat(np.arange(20), 3)


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e3])
def test_ridge_is_its_closed_form(alpha: float) -> None:
    """(X^T X + alpha I)^-1 X^T y; with an intercept the same on centred columns, and the intercept itself is not penalised."""
    weight, bias = ridge(X, Y[:, 0], alpha)
    np.testing.assert_allclose(weight, np.linalg.solve(X.T @ X + alpha * np.eye(6), X.T @ Y[:, 0]), rtol=1e-8)
    assert bias == 0
    weight, bias = ridge(X, Y[:, 0], alpha, intercept=True)
    ones = np.column_stack([X, np.ones(60)])
    both = np.linalg.solve(ones.T @ ones + alpha * np.diag([1.0] * 6 + [0.0]), ones.T @ Y[:, 0])
    np.testing.assert_allclose([*weight, bias], both, rtol=1e-7)
    path, offsets = ridge_path(X, Y[:, 0], [alpha, 7.0], intercept=True)
    np.testing.assert_allclose([*path[0], offsets[0]], both, rtol=1e-7)


def test_ridge_by_hand() -> None:
    """x = 1, 2, y = 2, 3 and alpha 1: w = (1*2 + 2*3) / (1 + 4 + 1) = 4/3."""
    assert ridge(np.array([[1.0], [2.0]]), np.array([2.0, 3.0]), 1.0)[0] == pytest.approx([4 / 3])


def test_missing_ratings_take_no_part() -> None:
    """Each attribute is fitted to its own rated rows: as if the other rows were not there; a row without an embedding likewise."""
    values, x = Y.copy(), X.copy()
    values[::4, 0] = np.nan
    x[5] = np.nan
    heads, fits = fit_attributes(x, Ratings(("a", "b"), values), PROMPTS, intercept=True)
    for column, (name, fit) in enumerate(zip(("a", "b"), fits, strict=True)):
        rated = ~np.isnan(values[:, column]) & np.isfinite(x).all(axis=1)
        weight, bias = ridge(x[rated], values[rated, column], fit.alpha, intercept=True)
        np.testing.assert_allclose(heads.weights[column], weight, rtol=1e-5)
        assert heads.bias[column] == pytest.approx(bias, rel=1e-5)
        assert (fit.name, fit.rated) == (name, rated.sum())
        assert fit.mean == pytest.approx(values[rated, column].mean()) and fit.deviation == pytest.approx(values[rated, column].std())
    assert [fit.rated for fit in fits] == [44, 59]


def test_alpha_has_the_least_error_on_held_out_prompts() -> None:
    """Twelve noisy columns for forty rows: the smallest alpha overfits and the largest says nothing; recomputed here split by split."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 12))
    y = x[:, 0] + rng.normal(size=40) * 3
    prompts = np.repeat(np.arange(20), 2)
    _, (fit,) = fit_attributes(x, Ratings(("y",), y[:, None]), prompts, intercept=False, seed=1)
    test = held_out_prompts(prompts, 0.2, 1)
    errors = []
    for alpha in ALPHAS:
        weight, _ = ridge(x[~test], y[~test], alpha)
        errors.append(np.mean((x[test] @ weight - y[test]) ** 2))
    assert fit.alpha == ALPHAS[int(np.argmin(errors))] and ALPHAS[0] < fit.alpha
    assert fit.r2 == pytest.approx(1 - min(errors) / np.mean((y[test] - y[~test].mean()) ** 2)) and fit.held_out == test.sum() == 8


def test_what_cannot_be_fitted_is_said() -> None:
    few = np.full((60, 1), np.nan)
    few[:4] = 1.0
    with pytest.raises(DataError, match="`a` is rated 4 times on 2 prompts; 10 times on two at least are needed"):
        fit_attributes(X, Ratings(("a",), few), PROMPTS, intercept=True)
    constant = np.column_stack([Y[:, 0], np.where(np.arange(60) % 2, np.nan, 4.3)])  # whose deviation is not 0, but that of its rounding
    with pytest.raises(DataError, match="`b` is 4.3 for all 30 rated responses, so there is nothing to learn; leave it out"):
        fit_attributes(X, Ratings(("a", "b"), constant), PROMPTS, intercept=True)
    with pytest.raises(ConfigError, match=r"alphas are \[0.0\], expected numbers above 0"):
        fit_attributes(X, Ratings(("a",), Y[:, :1]), PROMPTS, intercept=True, alphas=[0.0])


def test_held_out_ratings_that_do_not_vary_leave_the_correlation_undefined() -> None:
    test = held_out_prompts(PROMPTS, 0.2, 0)
    values = np.where(test, 4.3, Y[:, 0])[:, None]
    heads, (fit,) = fit_attributes(X, Ratings(("a",), values), PROMPTS, intercept=True)
    assert np.isfinite(heads.weights).all() and fit.deviation > 0.1
    assert np.isnan([fit.spearman, fit.spearman_interval.low, fit.spearman_interval.high]).all() and fit.spearman_interval.method == "undefined"


def test_ratings_of_groups() -> None:
    rows = [{"prompt": "a", "response": "x", "helpfulness": 3, "verbosity": 1}, {"prompt": "b", "response": "y", "helpfulness": 4, "verbosity": None}]
    groups = load_groups(rows).groups
    found = ratings_of(groups)
    assert found.names == ("helpfulness", "verbosity")
    np.testing.assert_array_equal(found.values, [[3, 1], [4, np.nan]])
    assert ratings_of(groups, ["verbosity"]).values.shape == (2, 1)
    with pytest.raises(DataError, match="no response is rated for `kindness`; the data rate helpfulness, verbosity"):
        ratings_of(groups, ["kindness"])
    with pytest.raises(DataError, match="no response is rated; give rows with `score`"):
        ratings_of(load_groups([{"prompt": "a", "chosen": "x", "rejected": "y"}]).groups)


def test_the_reward_weighs_attributes_alike_on_standard_scales_or_as_told() -> None:
    _, fits = fit_attributes(X, Ratings(("a", "b"), Y * [1.0, 10.0]), PROMPTS, intercept=True)
    readout = attribute_readout(fits)
    assert readout.weights == pytest.approx((0.5 / Y[:, 0].std(), 0.5 / (10 * Y[:, 1].std())))
    assert attribute_readout(fits, {"b": 0.65}) == Readout(("a", "b"), (0.0, 0.65))
    with pytest.raises(ConfigError, match="--weights names c, which is not among the attributes a, b"):
        attribute_readout(fits, {"c": 1.0})
    with pytest.raises(ConfigError, match="--weights are all 0"):
        attribute_readout(fits, {"a": 0.0})


def test_saved_heads_give_the_fitted_attributes_and_their_weighted_sum(tmp_path: Path) -> None:
    scorer = local(("reward",), (1.0,))
    embeddings = scorer.embed(ITEMS * 2)
    ratings = Ratings(("helpfulness", "verbosity"), np.random.default_rng(0).normal(size=(16, 2)) + 3)
    heads, fits = fit_attributes(embeddings, ratings, np.arange(16) % 8, intercept=False)
    readout = attribute_readout(fits, {"helpfulness": 0.65, "verbosity": -0.4})
    save_heads(scorer, heads, tmp_path / "out", golden=ITEMS[:2], readout=readout)
    loaded = load_scorer(tmp_path / "out", **CPU)  # type: ignore[arg-type]
    np.testing.assert_allclose(loaded.outputs(ITEMS), heads.score(scorer.embed(ITEMS)), atol=1e-4)
    rewards, shown = loaded.score_detailed(ITEMS)
    np.testing.assert_allclose(rewards, loaded.outputs(ITEMS) @ np.array([0.65, -0.4]), atol=1e-5)
    assert list(shown[0]) == ["helpfulness", "verbosity"]
    assert read_contract(tmp_path / "out").readout == readout
