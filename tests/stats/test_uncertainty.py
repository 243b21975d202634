"""Stated uncertainties: the moderated probability against its integral, growth and coverage on errors drawn as stated, and as not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from palate.stats.uncertainty import coverage, error_growth, moderated


def test_the_moderated_probability_is_near_its_integral() -> None:
    """E[sigmoid(x)] of x ~ N(m, s^2) by quadrature; m = 1, s^2 = 4 gives 0.651."""
    assert expit(moderated(np.array([1.0]), np.array([4.0])))[0] == pytest.approx(0.651, abs=1e-3)
    for m in (-4.0, -1.0, 0.0, 0.5, 3.0):
        for s in (0.1, 1.0, 3.0):
            exact = quad(lambda x, m=m, s=s: expit(x) * norm.pdf(x, m, s), m - 12 * s, m + 12 * s)[0]
            assert expit(moderated(np.array([m]), np.array([s**2])))[0] == pytest.approx(exact, abs=0.02)
    np.testing.assert_array_equal(moderated(np.array([2.0]), np.array([0.0])), [2.0])


def test_errors_drawn_as_stated_grow_and_are_covered() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 3.0, 4000)
    error = rng.normal(size=4000) * spread
    growth = error_growth(error, spread, np.arange(4000))
    assert growth.interval.low < growth.spearman < growth.interval.high and growth.spearman > 0.4
    assert [size for _, _, size in growth.bins] == [800] * 5
    for stated, seen, _ in growth.bins:
        assert seen == pytest.approx(stated, rel=0.15)
    for row in coverage(error, spread, np.arange(4000)):
        assert row.interval.low <= row.level <= row.interval.high and row.n == 4000


def test_an_uncertainty_that_means_nothing_shows() -> None:
    rng = np.random.default_rng(1)
    spread, error = rng.uniform(0.1, 3.0, 2000), rng.normal(size=2000)
    growth = error_growth(error, spread, np.arange(2000))
    assert growth.interval.low < 0 < growth.interval.high
    half = coverage(error, 0.5 * np.ones(2000), np.arange(2000), levels=[0.9])[0]  # twice too sure: 1.645 / 2 deviations cover 59 %
    assert half.covered == pytest.approx(norm.cdf(0.8224) - norm.cdf(-0.8224), abs=0.03) and half.interval.high < 0.9


def test_coverage_by_hand() -> None:
    """Of errors 0.5, 1, 2 at deviation 1 the 80 % interval of +-1.2816 holds two."""
    assert coverage(np.array([0.5, -1.0, 2.0]), np.ones(3), range(3), levels=[0.8])[0].covered == pytest.approx(2 / 3)
