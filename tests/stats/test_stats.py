"""Intervals and calibration against scipy, sklearn and hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss

from palate.stats.calibration import expected_calibration_error, fit_temperature, log_loss, reliability
from palate.stats.intervals import accuracy_interval, clustered_error, mcnemar, wilson

D = np.random.default_rng(0).normal(0.7, 1.5, 500)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (8, 10), (470, 500), (5, 5)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    low, high, _ = wilson(k, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_clustered_error_by_hand() -> None:
    """Values 1,1,0,0 in clusters aabb: mean .5, cluster sums of residuals +1 and -1, error sqrt(2)/4."""
    assert clustered_error(np.array([1, 1, 0, 0]), list("aabb")) == pytest.approx(np.sqrt(2) / 4)
    assert clustered_error(np.array([1, 1, 0, 0]), list("abcd")) == pytest.approx(0.25)


def test_repeating_every_item_does_not_narrow_the_interval() -> None:
    values = (D > 0).astype(float)
    once = accuracy_interval(values, range(500))
    thrice = accuracy_interval(np.repeat(values, 3), np.repeat(np.arange(500), 3))
    assert once.method == "wilson" and thrice.method == "prompt-clustered wilson"
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_interval_covers_with_clusters() -> None:
    """200 draws of 60 prompts x 5 correlated items: a 95 % interval must hold the truth about 95 % of the time (plain Wilson holds it in about 70 %)."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        p = rng.beta(2, 1, 60)
        values = (rng.random((60, 5)) < p[:, None]).astype(float).ravel()
        low, high, _ = accuracy_interval(values, np.repeat(np.arange(60), 5))
        hits += low <= 2 / 3 <= high
    assert hits >= 180


def test_mcnemar_is_the_exact_binomial() -> None:
    a, b = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 0, 1])
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b) == (2, 1) and result.p_value == pytest.approx(stats.binomtest(2, 3).pvalue)
    assert mcnemar(a, a).p_value == 1.0
    with pytest.raises(ValueError, match="same items"):
        mcnemar(a, b[:3])


def test_log_loss_equals_sklearn() -> None:
    p = 1 / (1 + np.exp(-D))
    assert log_loss(D) == pytest.approx(sklearn_log_loss(np.ones_like(p), np.c_[1 - p, p], labels=[0, 1]))
    assert np.isfinite(log_loss(np.array([1e4, -1e4])))


def test_calibration_error_by_hand() -> None:
    """Two items at confidence 0.9 (one right), two at 0.6 (both right): ECE = (|.5 - .9| + |1 - .6|) / 2 = 0.4."""
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    d = np.array([logit(0.9), -logit(0.9), logit(0.6), logit(0.6)])
    assert expected_calibration_error(d, bins=10) == pytest.approx(0.4)
    assert sum(b.size for b in reliability(d)) == 4
    assert reliability(np.zeros(3))[0].accuracy == 0.5


def test_temperature_recovers_the_scale() -> None:
    """Labels drawn from sigmoid(x); the model states 3x: the best temperature is 3."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(x)))
    found = fit_temperature(3 * np.where(right, np.abs(x), -np.abs(x)))
    assert found.value == pytest.approx(3.0, rel=0.05) and not found.bounded
    assert found.log_loss <= log_loss(3 * np.where(right, np.abs(x), -np.abs(x)))
    assert fit_temperature(np.array([1.0, 2.0])).bounded, "always right: no finite temperature"
