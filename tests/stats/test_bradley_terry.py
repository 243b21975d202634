"""Bradley-Terry fits against choix, sklearn, statsmodels, scipy and hand arithmetic; invariances; coverage of every interval."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import choix
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from palate.stats import bradley_terry, newton
from palate.stats.bradley_terry import (
    Readings,
    Ties,
    difference,
    difference_within,
    fit_bradley_terry,
    fit_many,
    intransitive_share,
    next_pairs,
    outcomes,
    position_effect,
    probability,
    tally,
)

RUNS = 2000


class Games(NamedTuple):
    first: np.ndarray
    second: np.ndarray
    p: np.ndarray
    z: np.ndarray


def play(rng: np.random.Generator, b: np.ndarray, rows: int, *, gamma: float = 0.0, ties: Ties = "half", tie: float | None = None) -> Games:
    i = rng.integers(0, len(b), rows)
    j = (i + rng.integers(1, len(b), rows)) % len(b)
    z = rng.choice([-1.0, 1.0], rows)
    edges = np.cumsum(outcomes(b[i] - b[j] + gamma * z, ties, tie), axis=1)
    return Games(i, j, np.array([1.0, 0.5, 0.0, 0.0])[(rng.random(rows)[:, None] > edges).sum(1)], z)


B = np.array([-0.9, 0.3, 1.2, 0.0, -0.4, 0.7])
G = play(np.random.default_rng(0), B, 300, gamma=0.5, ties="davidson", tie=0.5)
HARD = Games(*(column[G.p != 0.5] for column in G))


def covers(share: float) -> bool:
    return 0.93 <= share <= 0.97


def design(games: Games, n: int, position: bool) -> np.ndarray:
    x = np.zeros((len(games.first), n + position))
    rows = np.arange(len(x))
    x[rows, games.first], x[rows, games.second] = 1, -1
    if position:
        x[:, n] = games.z
    return x


# ---------------------------------------------------------------- by hand


def test_three_wins_to_one_by_hand() -> None:
    """Maximum likelihood: difference log(3 / 1), its variance 1/3 + 1/1; each strength is half of it off the mean, so has half the error."""
    fit = fit_bradley_terry(2, [0, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1], ridge=0)
    assert fit.strengths == pytest.approx([np.log(3) / 2, -np.log(3) / 2])
    assert difference(fit, 0, 1).value == pytest.approx(np.log(3)) and difference(fit, 0, 1).error == pytest.approx(np.sqrt(4 / 3))
    assert fit.errors == pytest.approx(np.sqrt(4 / 3) / 2)
    assert fit.log_likelihood == pytest.approx(3 * np.log(0.75) + np.log(0.25))
    assert (fit.low, fit.high) == (pytest.approx(fit.strengths - norm.ppf(0.975) * fit.errors), pytest.approx(fit.strengths + norm.ppf(0.975) * fit.errors))
    assert (fit.components, fit.separable, fit.position, fit.tie) == (1, False, None, None)


@pytest.mark.parametrize(("ridge", "expected"), [(0.1, [2.0, 1.8, 2.0]), (0.25, [1.45, 1.31, 1.45]), (0.5, [1.09, 1.01, 1.09]), (1.0, [0.79, 0.75, 0.79])])
def test_a_consistent_chain_of_four_has_the_known_margins(ridge: float, expected: list[float]) -> None:
    """Round robin of four responses in both orders, all verdicts consistent: adjacent margins of the design table."""
    pairs = np.array(list(itertools.combinations(range(4), 2)) * 2)
    fit = fit_bradley_terry(4, pairs[:, 0], pairs[:, 1], ridge=ridge)
    assert -np.diff(fit.strengths) == pytest.approx(expected, abs=0.06)
    assert fit.separable


def test_a_tie_is_two_halves_and_a_soft_label_two_weighted_rows() -> None:
    soft = fit_bradley_terry(2, [0, 0], [1, 1], [0.7, 0.5])
    split = fit_bradley_terry(2, [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], weight=[0.7, 0.3, 0.5, 0.5])
    assert soft.strengths == pytest.approx(split.strengths, abs=1e-12)
    one = fit_bradley_terry(2, [0], [1], [0.8], ridge=1e-9)
    assert np.ptp(one.strengths) == pytest.approx(np.log(0.8 / 0.2), abs=1e-6), "a soft label's optimum is its logit"


def test_tally_sums_unique_cells() -> None:
    cells = tally(4, [0, 1, 3, 0, 2], [1, 0, 2, 1, 3], [1, 1, 0.5, 0.25, 1], weight=[1, 2, 1, 1, 0])
    assert (cells.first.tolist(), cells.second.tolist()) == ([0, 2], [1, 3])
    assert cells.wins.tolist() == [1.25, 0] and cells.losses.tolist() == [2.75, 0] and cells.ties.tolist() == [0, 1]
    shown = tally(2, [0, 1, 0], [1, 0, 1], position=[1, -1, -1])
    assert shown.position.tolist() == [-1, 1] and shown.wins.tolist() == [1, 1] and shown.losses.tolist() == [0, 1]
    assert len(tally(3, [], [], []).first) == 0


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("ridge", [0.5, 0.01, 3.0])
def test_equals_choix(ridge: float) -> None:
    wins = [(int(i), int(j)) if p else (int(j), int(i)) for i, j, p in zip(HARD.first, HARD.second, HARD.p, strict=True)]
    expected = choix.opt_pairwise(6, wins, alpha=ridge / 2, tol=1e-12)
    assert fit_bradley_terry(6, HARD.first, HARD.second, HARD.p, ridge=ridge).strengths == pytest.approx(expected - expected.mean(), abs=1e-6)


def test_maximum_likelihood_equals_choix() -> None:
    wins = [(int(i), int(j)) if p else (int(j), int(i)) for i, j, p in zip(HARD.first, HARD.second, HARD.p, strict=True)]
    expected = choix.ilsr_pairwise(6, wins, tol=1e-12)
    assert fit_bradley_terry(6, HARD.first, HARD.second, HARD.p, ridge=0).strengths == pytest.approx(expected - expected.mean(), abs=1e-8)


def test_position_equals_sklearn() -> None:
    """The ridge is on gamma too, so the fit is logistic regression with C = 1 / ridge on +1, -1 and z."""
    fit = fit_bradley_terry(6, HARD.first, HARD.second, HARD.p, position=HARD.z)
    theirs = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(design(HARD, 6, True), HARD.p).coef_[0]
    assert np.append(fit.strengths, fit.position) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("clustered", [False, True])
def test_errors_equal_statsmodels(clustered: bool) -> None:
    """Maximum likelihood with item 0 left out: their coefficients are differences to it. Theirs scales by (N - 1) / (N - K) besides C / (C - 1)."""
    clusters = np.arange(len(HARD.p)) // 4
    x = design(HARD, 6, True)[:, 1:]
    options: dict[str, Any] = {"cov_type": "cluster", "cov_kwds": {"groups": clusters}} if clustered else {}
    theirs = sm.Logit(HARD.p, x).fit(disp=0, method="newton", tol=1e-12, **options)
    fit = fit_bradley_terry(6, HARD.first, HARD.second, HARD.p, ridge=0, position=HARD.z, clusters=clusters if clustered else None)
    extra = np.sqrt((len(HARD.p) - 1) / (len(HARD.p) - 6)) if clustered else 1.0
    ours = difference(fit, np.arange(1, 6), np.zeros(5, dtype=int))
    assert np.append(ours.value, fit.position) == pytest.approx(theirs.params, abs=1e-8)
    assert np.append(ours.error, fit.position_error) * extra == pytest.approx(theirs.bse, rel=1e-6)
    assert fit.log_likelihood == pytest.approx(theirs.llf)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
@pytest.mark.parametrize("ridge", [0.5, 0.0])
def test_tie_models_equal_brute_force(ties: Ties, ridge: float) -> None:
    """scipy's optimizer on the outcome probabilities themselves, in (b, gamma, tie); errors from a numerical Hessian."""
    column = np.array([2, 1, 0])[(2 * G.p).astype(int)]  # win, tie, loss

    def objective(x: np.ndarray) -> float:
        if x[7] <= (1 if ties == "rao_kupper" else 0):
            return 1e9
        p = outcomes(x[G.first] - x[G.second] + x[6] * G.z, ties, x[7])[np.arange(len(column)), column]
        return float(-np.log(p).sum() + (ridge or 1e-7) / 2 * np.sum(x[:7] ** 2))

    start = np.append(np.zeros(7), 1.5)
    theirs = optimize.minimize(
        objective, start, method="Nelder-Mead", options={"maxiter": 40_000, "maxfev": 40_000, "xatol": 1e-9, "fatol": 1e-12, "adaptive": True}
    )
    theirs = optimize.minimize(objective, theirs.x, method="BFGS", options={"gtol": 1e-7})
    fit = fit_bradley_terry(6, G.first, G.second, G.p, position=G.z, ties=ties, ridge=ridge)
    assert np.concatenate([fit.strengths, [fit.position, fit.tie]]) == pytest.approx(theirs.x - np.append(np.full(6, theirs.x[:6].mean()), [0, 0]), abs=2e-4)
    best, step = np.concatenate([fit.strengths, [fit.position, fit.tie]]), 1e-3
    unit = np.eye(8) * step
    hessian = np.array([[objective(best + u + v) - objective(best + u - v) - objective(best - u + v) + objective(best - u - v) for u in unit] for v in unit])
    covariance = np.linalg.pinv(hessian / (4 * step**2), rcond=1e-6, hermitian=True)
    assert [fit.position_error, fit.tie_error] == pytest.approx(np.sqrt(np.diag(covariance)[6:]), rel=1e-3)


def test_tie_models_go_over_into_each_other() -> None:
    d = np.linspace(-4, 4, 9)
    for ties, tie in (("davidson", 1e-9), ("rao_kupper", 1 + 1e-9)):
        assert outcomes(d, ties, tie) == pytest.approx(outcomes(d), abs=1e-8)  # type: ignore[arg-type]
    for ties, tie in (("davidson", 0.8), ("rao_kupper", 2.5)):
        table = outcomes(d, ties, tie)  # type: ignore[arg-type]
        assert table.sum(1) == pytest.approx(1) and table[::-1, ::-1] == pytest.approx(table)
    assert outcomes(0.0, "davidson", 0.8)[1] == pytest.approx(0.8 / 2.8)
    assert outcomes(0.0, "rao_kupper", 2.5)[1] == pytest.approx(1.5 / 3.5)
    with pytest.raises(ValueError, match=r"needs its parameter \(nu > 0 or theta > 1\), got 1.0"):
        outcomes(0.0, "rao_kupper", 1.0)


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper"])
def test_order_sides_and_copies_do_not_matter(ties: Ties) -> None:
    fit = fit_bradley_terry(6, G.first, G.second, G.p, position=G.z, ties=ties)
    shuffle = np.random.default_rng(1).permutation(len(G.p))
    turned = fit_bradley_terry(6, G.second[shuffle], G.first[shuffle], 1 - G.p[shuffle], position=-G.z[shuffle], ties=ties)
    doubled = fit_bradley_terry(6, *(np.tile(column, 2) for column in G[:3]), position=np.tile(G.z, 2), ties=ties, ridge=1.0)
    weighted = fit_bradley_terry(6, G.first, G.second, G.p, position=G.z, ties=ties, ridge=1.0, weight=2.0)
    assert turned.strengths == pytest.approx(fit.strengths, abs=1e-10) and turned.position == pytest.approx(fit.position)
    assert doubled.strengths == pytest.approx(fit.strengths, abs=1e-9), "twice the data and twice the ridge: the same optimum"
    assert doubled.errors == pytest.approx(fit.errors / np.sqrt(2), rel=1e-6) and weighted.errors == pytest.approx(doubled.errors, rel=1e-9)
    assert turned.tie == pytest.approx(fit.tie) and weighted.tie_error == pytest.approx(doubled.tie_error)


def test_the_prior_moves_strengths_and_its_mean_is_kept() -> None:
    prior = np.array([3.0, 0, 0, 0, 0, 0])
    fit = fit_bradley_terry(6, [0, 1], [1, 0], prior=prior)
    assert fit.strengths[2:] == pytest.approx(0) and fit.strengths.sum() == pytest.approx(3) and 0 < fit.strengths[1] < fit.strengths[0] < 3
    shifted = fit_bradley_terry(6, HARD.first, HARD.second, HARD.p, prior=np.full(6, 7.0))
    assert shifted.strengths - 7 == pytest.approx(fit_bradley_terry(6, HARD.first, HARD.second, HARD.p).strengths)


def test_sparse_equals_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = np.arange(len(G.p)) // 5
    for ridge, ties, by in ((0.5, "davidson", None), (0.0, "half", None), (0.5, "half", clusters)):
        dense = fit_bradley_terry(6, G.first, G.second, G.p, position=G.z, ties=ties, ridge=ridge, clusters=by)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(newton, "DENSE", 4)
            patch.setattr(bradley_terry, "SMALL", 0)
            thin = fit_bradley_terry(6, G.first, G.second, G.p, position=G.z, ties=ties, ridge=ridge, clusters=by)  # type: ignore[arg-type]
        assert thin.strengths == pytest.approx(dense.strengths, abs=1e-10) and thin.errors == pytest.approx(dense.errors, rel=1e-8)
        assert thin.position_error == pytest.approx(dense.position_error) and thin.covariance is None
        with pytest.raises(ValueError, match="no covariance is kept"):
            difference(thin, 0, 1)


# ---------------------------------------------------------------- existence


def test_separable_and_disconnected_data_stay_finite() -> None:
    """Items 0 > 1 always; 2 and 3 apart; 4 never compared; 5 too."""
    fit = fit_bradley_terry(6, [0, 0, 2, 3], [1, 1, 3, 2])
    assert np.isfinite(fit.strengths).all() and np.isfinite(fit.errors).all()
    assert fit.separable and fit.components == 4 and fit.strengths[2:] == pytest.approx(0)
    apart = fit_bradley_terry(4, [0, 1, 2, 3], [1, 0, 3, 2])
    assert not apart.separable and apart.components == 2
    assert difference(apart, 0, 2).error > difference(apart, 0, 1).error, "across components only the prior speaks"
    assert fit_bradley_terry(3, [], [], []).strengths.tolist() == [0, 0, 0]


def test_a_tiny_ridge_on_separable_data_converges() -> None:
    fit = fit_bradley_terry(3, [0, 0, 1] * 50, [1, 2, 2] * 50, ridge=1e-8)
    assert fit.strengths[0] > fit.strengths[1] > fit.strengths[2] and np.ptp(fit.strengths) > 15


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (([0, 0], [1, 1], 1.0), {}, "strengths do not exist, some strengths or terms are infinite .* use ridge > 0"),
        (([0, 1, 2, 3], [1, 0, 3, 2], 1.0), {}, "fall into 2 groups"),
        # the side shown first always wins: gamma is infinite although every item wins and loses
        (([0, 1], [1, 0], 1.0), {"position": [1, 1]}, "infinite"),
        # one win and one tie: nu and the difference run off together, 1/4 is approached and never reached
        (([0, 0], [1, 1], [1.0, 0.5]), {"ties": "davidson"}, "infinite"),
        (([0, 0], [1, 1], [1.0, 0.5]), {"ties": "rao_kupper"}, "infinite"),
        # one pair, one order: gamma and the difference are one number
        (([0, 0], [1, 1], [1.0, 0.0]), {"position": [1, 1]}, "cannot tell the parameters apart"),
    ],
)
def test_maximum_likelihood_that_does_not_exist_is_refused(rows: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(1 + max(max(rows[0]), max(rows[1])), *rows, ridge=0, **options)
    assert np.isfinite(fit_bradley_terry(4, *rows, ridge=0.1, **options).strengths).all()


def test_a_judge_that_always_takes_the_first_has_a_large_finite_gamma() -> None:
    fit = fit_bradley_terry(2, [0, 1] * 20, [1, 0] * 20, position=np.ones(40))
    assert fit.strengths == pytest.approx(0, abs=1e-12) and fit.position is not None and fit.position > 2.5 and fit.separable


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_bradley_terry(0, [], []), "`n_items` must be at least 1, got 0"),
        (lambda: fit_bradley_terry(2, [0], [0]), r"row 0: an item is compared with itself \(0\)"),
        (lambda: fit_bradley_terry(2, [0], [2]), "item 2 is outside the 2 items"),
        (lambda: fit_bradley_terry(2, [0], [-1]), "item numbers from 0, got -1"),
        (lambda: fit_bradley_terry(2, [0.5], [1]), "`first` must hold 1 whole numbers"),
        (lambda: fit_bradley_terry(2, [0, 0], [1, 1], [0.5, 1.5]), "row 1: `p_first` must lie between 0 and 1, got 1.5"),
        (lambda: fit_bradley_terry(2, [0], [1], weight=[-1]), "`weight` must lie between 0"),
        (lambda: fit_bradley_terry(2, [0], [1], position=[np.nan]), "`position` must lie between -1 and 1, got nan"),
        (lambda: fit_bradley_terry(2, [0], [1], ridge=-1), "`ridge` must be a finite number >= 0, got -1"),
        (lambda: fit_bradley_terry(2, [0], [1], prior=[0.0]), "`prior` must hold 2 finite strengths"),
        (lambda: fit_bradley_terry(2, [0, 1], [1, 0], ridge=0, prior=[0.0, 1.0]), "`prior` is read with ridge > 0"),
        (lambda: fit_bradley_terry(2, [0], [1], ties="draw"), "one of half, davidson, rao_kupper, got 'draw'"),  # type: ignore[arg-type]
        (lambda: fit_bradley_terry(2, [0, 1], [1, 0], ties="davidson"), "needs at least one tie"),
        (lambda: fit_bradley_terry(2, [0, 1], [1, 0], clusters=["a", "a"]), "two clusters at least"),
        (lambda: fit_many([0], [0], [1], ridge=0), "fit_many needs ridge > 0"),
        (lambda: fit_many([0], [0], [1], sizes=[1]), "`sizes` must give each of 1 prompts"),
        (lambda: intransitive_share([[0, 1]]), r"must be square, \[n, n\], got \(1, 2\)"),
        (lambda: next_pairs(np.zeros(2), np.eye(2), np.zeros((2, 2)), 2), "between 1 and the 1 pairs of 2 items, got 2"),
        (lambda: position_effect([0], [0], [1], position=[0.5]), r"`position` must be \+1, -1 or 0 here, got 0.5"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- many prompts


def many(rng: np.random.Generator, prompts: int) -> tuple[np.ndarray, Games, list[int]]:
    """Ragged prompts of 2 to 5 responses with 1 to 9 games each."""
    names, games, sizes = [], [], []
    for g in range(prompts):
        size = int(rng.integers(2, 6))
        games.append(play(rng, rng.normal(size=size), int(rng.integers(1, 10)), gamma=0.5, ties="davidson", tie=0.4))
        names += [f"prompt {g:03d}"] * len(games[-1].p)
        sizes.append(size)
    return np.array(names), Games(*(np.concatenate(columns) for columns in zip(*games, strict=True))), sizes


def test_many_equal_one_by_one() -> None:
    rng = np.random.default_rng(3)
    prompt, games, sizes = many(rng, 60)
    prior = rng.normal(size=sum(sizes))
    weight = rng.random(len(prompt)) * 2
    shuffle = rng.permutation(len(prompt))
    fit = fit_many(*(c[shuffle] for c in (prompt, games.first, games.second, games.p)), weight=weight[shuffle], sizes=sizes, prior=prior, ridge=0.3)
    total = 0.0
    for g, name in enumerate(fit.prompts):
        here, where = prompt == name, slice(fit.offsets[g], fit.offsets[g + 1])
        one = fit_bradley_terry(sizes[g], games.first[here], games.second[here], games.p[here], weight=weight[here], ridge=0.3, prior=prior[where])
        strengths, covariance = fit.block(g)
        assert strengths == pytest.approx(one.strengths, abs=1e-8) and covariance == pytest.approx(one.covariance, abs=1e-8)
        assert fit.errors[where] == pytest.approx(one.errors, abs=1e-8)
        ours, theirs = difference_within(fit, [g], [0], [1]), difference(one, 0, 1)
        assert ours.value[0] == pytest.approx(theirs.value, abs=1e-8) and ours.error[0] == pytest.approx(theirs.error, abs=1e-8)
        total += one.log_likelihood
    assert fit.log_likelihood == pytest.approx(total)


def test_many_with_a_shared_position_equal_one_joint_fit() -> None:
    """All prompts as one pool of disconnected items: the same objective, solved without the arrow."""
    prompt, games, sizes = many(np.random.default_rng(4), 40)
    fit = fit_many(prompt, games.first, games.second, games.p, position=games.z, sizes=sizes)
    start = fit.offsets[:-1][np.unique(prompt, return_inverse=True)[1]]
    joint = fit_bradley_terry(sum(sizes), games.first + start, games.second + start, games.p, position=games.z)
    assert fit.strengths == pytest.approx(joint.strengths, abs=1e-8)
    assert (fit.position, fit.position_error) == (pytest.approx(joint.position, abs=1e-8), pytest.approx(joint.position_error, abs=1e-8))
    ours, theirs = difference_within(fit, 5, 0, 1), difference(joint, fit.offsets[5], fit.offsets[5] + 1)
    assert ours.error == pytest.approx(theirs.error, abs=1e-8)


def test_no_prompts_and_prompts_without_decided_rows() -> None:
    assert len(fit_many([], [], []).strengths) == 0 and fit_many([], [], [], position=[]).position == 0
    assert fit_many(["a"], [0], [1], weight=0.0, sizes=[3], position=[1.0]).errors == pytest.approx(np.sqrt(2 * 2 / 3))
    quiet = fit_many(["a", "b"], [0, 0], [1, 2], [1.0, 0.5], weight=[0.0, 1.0], sizes=[3, 4])
    assert quiet.strengths == pytest.approx(np.zeros(7), abs=1e-12) and quiet.offsets.tolist() == [0, 3, 7]


# ---------------------------------------------------------------- position effect


def test_position_effect_by_hand() -> None:
    """Four pairs in both orders: 3 go to the side shown first both times, 1 to the second, and the rest is consistent.

    gamma = log(3.5 / 1.5) / 2 with half a pair each way; its variance is (1/3.5 + 1/1.5) / 4.
    """
    first_wins = [(1, 1)] * 3 + [(0, 0)] + [(1, 0)] * 5 + [(1, 0.5)]  # P(first shown wins) in order (0, 1), then in order (1, 0)
    prompt = np.repeat(np.arange(len(first_wins)), 2)
    p = np.array(first_wins).ravel()
    effect = position_effect(prompt, [0, 1] * 10, [1, 0] * 10, p, position=np.ones(20))
    assert effect.gamma == pytest.approx(np.log(3.5 / 1.5) / 2) and effect.error == pytest.approx(np.sqrt(1 / 3.5 + 1 / 1.5) / 2)
    assert effect.pairs == 9, "the pair with a tie has one order only"
    assert effect.interval.low == pytest.approx(effect.gamma - norm.ppf(0.975) * effect.error)


def test_position_effect_is_exact_for_soft_verdicts() -> None:
    """logit(AB) = D + gamma and logit(BA) = -D + gamma: every pair's odds ratio is exp(2 gamma), so D drops out."""
    d = np.repeat(np.random.default_rng(5).normal(0, 3, 4000), 2)
    sign = np.tile([1, -1], 4000)
    effect = position_effect(np.arange(8000) // 2, (sign < 0).astype(int), (sign > 0).astype(int), expit(sign * d + 0.6), position=np.ones(8000))
    assert effect.gamma == pytest.approx(0.6, abs=1e-3)  # half a pair each way is all that is left


def test_position_effect_recovers_what_the_joint_fit_cannot() -> None:
    """3000 prompts of two responses, one verdict per order, true gamma 0.8; the joint fit with a small ridge overshoots (Neyman and Scott)."""
    rng = np.random.default_rng(6)
    d = np.repeat(rng.normal(0, 1.4, 3000), 2)
    sign = np.tile([1, -1], 3000)
    p = (rng.random(6000) < expit(sign * d + 0.8)).astype(float)
    rows = (np.arange(6000) // 2, (sign < 0).astype(int), (sign > 0).astype(int), p)
    effect, joint = position_effect(*rows, position=np.ones(6000)), fit_many(*rows, position=np.ones(6000), ridge=0.1)
    assert effect.interval.low < 0.8 < effect.interval.high
    assert joint.position is not None and joint.position_error is not None and joint.position - 5 * joint.position_error > 0.8


def test_position_effect_covers() -> None:
    rng = np.random.default_rng(7)
    hits, sign = 0, np.tile([1, -1], 120)
    prompt, first, second = np.arange(240) // 2, (sign < 0).astype(int), (sign > 0).astype(int)
    for _ in range(RUNS):
        d = np.repeat(rng.normal(0, 1.4, 120), 2)
        effect = position_effect(prompt, first, second, (rng.random(240) < expit(sign * d + 0.4)).astype(float), position=np.ones(240))
        hits += effect.interval.low <= 0.4 <= effect.interval.high
    assert covers(hits / RUNS), hits / RUNS


# ---------------------------------------------------------------- coverage


def test_intervals_cover() -> None:
    """2000 pools of four items as 2000 prompts, 30 games a pair: strengths (off their mean) and differences."""
    rng = np.random.default_rng(8)
    b = np.array([-0.8, 0.0, 0.2, 0.6])
    pairs = np.repeat(list(itertools.combinations(range(4), 2)), 30, axis=0)
    prompt = np.repeat(np.arange(RUNS), len(pairs))
    i, j = np.tile(pairs[:, 0], RUNS), np.tile(pairs[:, 1], RUNS)
    fit = fit_many(prompt, i, j, (rng.random(len(i)) < expit(b[i] - b[j])).astype(float), ridge=1e-3)
    z = norm.ppf(0.975)
    off = np.abs(fit.strengths.reshape(-1, 4) - (b - b.mean())) <= z * fit.errors.reshape(-1, 4)
    gap = difference_within(fit, np.arange(RUNS), np.full(RUNS, 3), np.zeros(RUNS, dtype=int))
    assert all(covers(share) for share in off.mean(0)), off.mean(0)
    assert covers(float(np.mean(np.abs(gap.value - 1.4) <= z * gap.error)))


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper"])
def test_position_and_tie_intervals_cover(ties: Ties) -> None:
    rng = np.random.default_rng(9)
    b, tie = np.array([-0.6, 0.0, 0.1, 0.5]), {"half": None, "davidson": 0.7, "rao_kupper": 1.8}[ties]
    z, hits = norm.ppf(0.975), np.zeros(6)
    for _ in range(RUNS):
        games = play(rng, b, 300, gamma=0.3, ties=ties, tie=tie)
        fit = fit_bradley_terry(4, games.first, games.second, games.p, position=games.z, ties=ties, ridge=1e-3)
        assert fit.position is not None and fit.position_error is not None
        hits[:4] += (fit.low <= b - b.mean()) & (b - b.mean() <= fit.high)
        hits[4] += abs(fit.position - 0.3) <= z * fit.position_error
        hits[5] += tie is None or abs(fit.tie - tie) <= z * fit.tie_error  # type: ignore[operator]
    shares = hits[: 5 if ties == "half" else 6] / RUNS
    assert all(covers(share) for share in shares), shares


def test_clustered_intervals_cover_where_plain_ones_do_not() -> None:
    """120 prompts of 6 verdicts that agree with each other (Gaussian copula, correlation 0.6) while each has its Bradley-Terry probability."""
    rng = np.random.default_rng(10)
    b = np.array([-0.5, 0.0, 0.2, 0.3])
    pairs = np.array(list(itertools.combinations(range(4), 2)))
    clusters, hits, plain = np.repeat(np.arange(120), 6), np.zeros(4), np.zeros(4)
    for run in range(RUNS):
        i, j = pairs[np.repeat(rng.integers(0, 6, 120), 6)].T
        latent = np.sqrt(0.6) * np.repeat(rng.normal(size=120), 6) + np.sqrt(0.4) * rng.normal(size=720)
        won = (norm.cdf(latent) < expit(b[i] - b[j])).astype(float)
        robust = fit_bradley_terry(4, i, j, won, ridge=1e-3, clusters=clusters)
        hits += (robust.low <= b) & (b <= robust.high)
        if run < 300:
            naive = fit_bradley_terry(4, i, j, won, ridge=1e-3)
            plain += (naive.low <= b) & (b <= naive.high)
    assert all(covers(share) for share in hits / RUNS), hits / RUNS
    assert (plain / 300 < 0.85).all(), plain / 300


# ---------------------------------------------------------------- tools


def test_probability_and_intransitivity() -> None:
    assert probability(np.array([np.log(3), 0.0]), [0, 1], [1, 0]) == pytest.approx([0.75, 0.25])
    rng = np.random.default_rng(11)
    wins = rng.integers(0, 3, (9, 9))
    cyclic = triples = 0
    for a, b, c in itertools.combinations(range(9), 3):
        signs = [np.sign(wins[x, y] - wins[y, x]) for x, y in ((a, b), (b, c), (c, a))]
        triples += 0 not in signs
        cyclic += abs(sum(signs)) == 3
    found = intransitive_share(wins)
    assert (found.cyclic, found.triples, found.share) == (cyclic, triples, cyclic / triples)
    assert intransitive_share(np.zeros((3, 3))).share is None
    assert intransitive_share([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) == (1.0, 1, 1)


def test_a_fair_coin_runs_in_circles_a_quarter_of_the_time() -> None:
    rng = np.random.default_rng(12)
    upper = np.triu(rng.random((200, 200)) < 0.5, 1)
    assert intransitive_share(upper + np.tril(~upper.T, -1)).share == pytest.approx(0.25, abs=0.01)


def test_next_pairs_raise_the_determinant_most() -> None:
    """Gain = log-determinant of the information after one more verdict on the pair, less before; the second choice knows of the first."""
    fit = fit_bradley_terry(4, [0, 0, 1, 2, 2, 0], [1, 1, 2, 3, 3, 2], [1, 0, 1, 1, 1, 0.3])
    b, c = fit.strengths, fit.covariance
    assert c is not None
    gauge = np.full((4, 4), 1.0)  # the covariance is singular along (1, ..., 1); any fill there cancels
    information = np.linalg.inv(c + gauge)
    found, counts = next_pairs(b, c, np.zeros((4, 4)), 3), np.zeros((4, 4))
    for step in range(3):
        gains = {}
        for i, j in itertools.combinations(range(4), 2):
            x, p = np.eye(4)[i] - np.eye(4)[j], expit(b[i] - b[j])
            gains[i, j] = np.linalg.slogdet(information + p * (1 - p) * np.outer(x, x))[1] - np.linalg.slogdet(information)[1]
        for done in zip(found.first[:step], found.second[:step], strict=True):
            gains.pop(done)
        best = max(gains, key=lambda pair: gains[pair])
        assert (found.first[step], found.second[step]) == best and found.gain[step] == pytest.approx(gains[best])
        x, p = np.eye(4)[best[0]] - np.eye(4)[best[1]], expit(b[best[0]] - b[best[1]])
        information = information + p * (1 - p) * np.outer(x, x)
    counts[0, 1] = counts[0, 2] = 5
    blank = next_pairs(np.zeros(3), np.eye(3), counts[:3, :3], 1)
    assert (blank.first[0], blank.second[0]) == (1, 2), "equal gains: the pair with the fewest verdicts"


def test_a_fit_that_does_not_converge_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "ITERATIONS", 2)
    monkeypatch.setattr(bradley_terry, "ITERATIONS", 2)
    with pytest.raises(ValueError, match="Bradley-Terry fit: not converged after 2 Newton steps"):
        fit_bradley_terry(6, G.first, G.second, G.p)
    with pytest.raises(ValueError, match="fit_many: not converged after 2 Newton steps"):
        fit_many(np.zeros(len(G.p)), G.first, G.second, G.p)


# --- readings ----------------------------------------------------------------------------------------------------------------------------------


def test_readings_are_ridge_least_squares() -> None:
    """Prompts 3 (four responses, all pairs read) and 5 (two): the normal equations (X' W X + ridge I) b = X' W y, and their inverse as covariance."""
    random = np.random.default_rng(0)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    first, second = np.array(pairs).T
    value, precision = random.normal(0, 2, 6), random.uniform(0.5, 4, 6)
    fit = fit_many([], [], [], readings=Readings([*[3] * 6, 5], [*first, 1], [*second, 0], [*value, 2.0], [*precision, 4.75]), ridge=0.5)
    design = np.eye(4)[first] - np.eye(4)[second]
    information = design.T @ (design * precision[:, None]) + 0.5 * np.eye(4)
    assert fit.prompts.tolist() == [3, 5] and fit.strengths[:4] == pytest.approx(np.linalg.solve(information, design.T @ (precision * value)))
    assert fit.strengths[4:] == pytest.approx([-0.95, 0.95]), "2 * 4.75 / (4.75 + 0.5 / 2), half on either side"
    contrast = np.array([1.0, 0, 0, -1.0])
    variance = contrast @ np.linalg.inv(information) @ contrast
    assert difference_within(fit, [0], [0], [3]).error == pytest.approx([variance**0.5])


def test_readings_and_verdicts_share_one_objective() -> None:
    """0 beats 1 twice, 1 - 2 reads 3 with precision 2, and a prior: the minimum of the written objective, found by another way."""

    def objective(b: np.ndarray) -> float:
        return float(2 * np.logaddexp(0, b[1] - b[0]) + (3 - (b[1] - b[2])) ** 2 + 0.25 * ((b - [0.3, 0, -0.3]) ** 2).sum())

    fit = fit_many([7], [0], [1], [1.0], weight=[2.0], readings=Readings([7], [1], [2], [3.0], [2.0]), prior=[0.3, 0.0, -0.3])
    assert fit.strengths == pytest.approx(optimize.minimize(objective, np.zeros(3), tol=1e-12).x, abs=1e-5)
    shown = fit_many([7, 7], [0, 0], [1, 1], [1.0, 0.0], position=[1.0, -1.0], readings=Readings([7], [0], [1], [2.0], [1e6]))
    assert shown.position and shown.position > 0 and shown.strengths[0] - shown.strengths[1] == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(("name", "value"), [("precision", -1.0), ("value", np.inf), ("precision", np.nan)])
def test_readings_that_are_none(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"row 0: `{name}` must lie between"):
        fit_many([], [], [], readings=Readings([1], [0], [1], [2.0], [1.0])._replace(**{name: [value]}))
