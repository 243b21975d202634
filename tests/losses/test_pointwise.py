"""Pointwise losses by hand, against PyTorch, SciPy and scikit-learn, at their minima, with missing targets and at the edge of the number range."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import log_loss, mean_pinball_loss
from tests.losses.tensors import f64, normal, slopes
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import binary_cross_entropy_with_logits, gaussian_nll_loss, mse_loss, softplus

from palate.losses.pairwise import bradley_terry
from palate.losses.pointwise import VARIANCE_FLOOR, gaussian, ordinal, outcome, present, quantile, regression, rising, variance

NAN = float("nan")
LEVELS, THRESHOLDS, QUANTILES = 4, (-1.0, 0.3, 2.0), (0.1, 0.5, 0.9)


def raw_of(value: float) -> float:
    """The raw number of which softplus makes a value."""
    return math.log(math.expm1(value))


# Every loss as a function of one output tensor and a target, on 8 responses: (loss, outputs, targets).
N = 8
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "regression": (regression, normal(N, 2), normal(N, 2, seed=1)),
    "outcome": (outcome, normal(N), torch.tensor([0.0, 1.0] * 4, dtype=torch.float64)),
    "ordinal": (lambda o, t: ordinal(o, t, torch.tensor(THRESHOLDS, dtype=o.dtype)), normal(N), torch.arange(N).double() % LEVELS),
    "quantile": (lambda o, t: quantile(o, t, torch.tensor(QUANTILES, dtype=o.dtype)), normal(N, 2, 3), normal(N, 2, seed=1)),
    "gaussian": (lambda o, t: gaussian(o[..., 0], o[..., 1], t), normal(N, 2, 2), normal(N, 2, seed=1)),
}
each_case = pytest.mark.parametrize(("loss", "outputs", "target"), list(CASES.values()), ids=list(CASES))


@each_case
def test_missing_targets_cost_nothing(loss: Callable, outputs: Tensor, target: Tensor) -> None:
    """0, without NaN and without any gradient; the others are as they were."""
    target = target.clone()
    full, slope = loss(outputs, target), slopes(lambda o: loss(o, target), outputs)[0]
    gone = torch.zeros(target.shape, dtype=torch.bool)
    gone[::2] = True
    got, got_slope = loss(outputs, target.masked_fill(gone, NAN)), slopes(lambda o: loss(o, target.masked_fill(gone, NAN)), outputs)[0]
    torch.testing.assert_close(got, full.masked_fill(gone, 0.0), rtol=0.0, atol=0.0)
    torch.testing.assert_close(got_slope, slope.masked_fill(gone.reshape(gone.shape + (1,) * (slope.dim() - gone.dim())), 0.0), rtol=0.0, atol=0.0)
    assert present(target.masked_fill(gone, NAN)).equal((~gone).double())


@each_case
def test_all_targets_missing(loss: Callable, outputs: Tensor, target: Tensor) -> None:
    nothing = torch.full_like(target, NAN)
    assert (loss(outputs, nothing) == 0).all() and (slopes(lambda o: loss(o, nothing), outputs)[0] == 0).all()


@each_case
def test_derivatives_are_those_of_finite_differences(loss: Callable, outputs: Tensor, target: Tensor) -> None:
    assert gradcheck(lambda o: loss(o, target), outputs.clone().requires_grad_())


@each_case
def test_one_value_per_target(loss: Callable, outputs: Tensor, target: Tensor) -> None:
    assert loss(outputs, target).shape == target.shape


@each_case
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_finite_at_huge_outputs(loss: Callable, outputs: Tensor, target: Tensor, scale: float) -> None:
    huge = torch.full_like(outputs, scale).float()
    assert loss(huge, target.float()).isfinite().all()
    assert slopes(lambda o: loss(o, target.float()), huge)[0].isfinite().all()


@each_case
def test_bfloat16_outputs(loss: Callable, outputs: Tensor, target: Tensor) -> None:
    """Rounded to bfloat16 and read as float32: as float64 has it, and near the loss of the exact outputs (the slope's rounding, 2^-8 of them)."""
    rounded = outputs.bfloat16().float()
    got = loss(rounded, target.float())
    assert got.dtype == torch.float32 and got.isfinite().all()
    torch.testing.assert_close(got.double(), loss(rounded.double(), target.float().double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.double(), loss(outputs, target), rtol=2**-5, atol=2**-5)


# --- regression and outcome -----------------------------------------------------------------------------------------------------------------------


def test_regression_by_hand() -> None:
    """(2 - 3)^2 = 1, (0.5 - 0)^2 = .25; gradient 2 (output - target)."""
    outputs, target = f64(2.0, 0.5)[None], f64(3.0, 0.0)[None]
    assert regression(outputs, target).tolist() == [[1.0, 0.25]]
    assert slopes(lambda o: regression(o, target), outputs)[0].tolist() == [[-2.0, 1.0]]
    torch.testing.assert_close(regression(*CASES["regression"][1:]), mse_loss(*CASES["regression"][1:], reduction="none"))


@pytest.mark.parametrize(("logit", "target", "value"), [(0.0, 1.0, 0.69315), (2.0, 1.0, 0.12693), (2.0, 0.0, 2.12693), (-1.0, 0.25, 0.56326)])
def test_outcome_by_hand(logit: float, target: float, value: float) -> None:
    """At 2: log(1 + e^-2) = .12693, and 2 more where wrong. Soft .25 at -1: .25 * 1.31326 + .75 * .31326 = .56326. Gradient P - target."""
    assert outcome(f64(logit), f64(target)).item() == pytest.approx(value, abs=5e-6)
    assert slopes(lambda o: outcome(o, f64(target)), f64(logit))[0].item() == pytest.approx(1 / (1 + math.exp(-logit)) - target)


def test_outcome_is_log_loss() -> None:
    logits, target = CASES["outcome"][1:]
    assert outcome(logits, target).mean().item() == pytest.approx(log_loss(target.numpy(), torch.sigmoid(logits).numpy()))


def test_outcome_is_bradley_terry_against_zero() -> None:
    r = normal(20)
    torch.testing.assert_close(outcome(r, torch.ones_like(r)), bradley_terry(r, torch.zeros_like(r)))
    torch.testing.assert_close(outcome(r, torch.zeros_like(r)), bradley_terry(torch.zeros_like(r), r))


def test_outcome_at_the_base_rate() -> None:
    """3 right of 4: the gradient vanishes at log 3."""
    logit = f64(math.log(3.0)).expand(4)
    assert slopes(lambda o: outcome(o, f64(1, 1, 1, 0)), logit)[0].sum().item() == pytest.approx(0.0, abs=1e-12)


# --- ordinal --------------------------------------------------------------------------------------------------------------------------------------


def level_probabilities(r: Tensor, thresholds: Tensor) -> Tensor:
    """Differences of the cumulative probabilities, literally. [N], [C-1] -> [N, C]"""
    above = torch.sigmoid(r[:, None] - thresholds)
    return torch.cat([torch.ones(len(r), 1), above], 1) - torch.cat([above, torch.zeros(len(r), 1)], 1)


def test_ordinal_by_hand() -> None:
    """Thresholds -1 and 1, reward 0: P = .26894, .46212, .26894."""
    loss = ordinal(f64(0, 0, 0), f64(0, 1, 2), f64(-1.0, 1.0))
    assert torch.exp(-loss).tolist() == pytest.approx([0.26894, 0.46212, 0.26894], abs=5e-6)


def test_ordinal_is_the_difference_of_cumulative_probabilities() -> None:
    """Values, and gradients in the reward and in the thresholds; the levels' probabilities sum to 1."""
    r, level, thresholds = 2 * normal(60), torch.arange(60).double() % LEVELS, f64(*THRESHOLDS)

    def literal(r: Tensor, thresholds: Tensor) -> Tensor:
        return -torch.log(level_probabilities(r, thresholds)[torch.arange(60), level.long()])

    torch.testing.assert_close(ordinal(r, level, thresholds), literal(r, thresholds))
    for a, b in zip(slopes(lambda r, t: ordinal(r, level, t), r, thresholds), slopes(literal, r, thresholds), strict=True):
        torch.testing.assert_close(a, b)
    each = torch.stack([ordinal(r, torch.full_like(r, k), thresholds) for k in range(LEVELS)])
    torch.testing.assert_close(torch.exp(-each).sum(0), torch.ones_like(r))
    assert gradcheck(lambda t: ordinal(r, level, t), thresholds.clone().requires_grad_())


def test_ordinal_with_one_threshold_is_logistic_regression() -> None:
    """On r - b, with gradients in both."""
    r, level, b = normal(30), torch.arange(30).double() % 2, f64(0.7)
    torch.testing.assert_close(ordinal(r, level, b), binary_cross_entropy_with_logits(r - b, level, reduction="none"))
    wanted = slopes(lambda r, b: binary_cross_entropy_with_logits(r - b, level, reduction="none"), r, b)
    for got, want in zip(slopes(lambda r, b: ordinal(r, level, b), r, b), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_thresholds_of_equal_rewards() -> None:
    """Levels seen 1, 2, 3 and 4 times of 10, rewards 0: P(level > k) = .9, .7, .4, so the best thresholds are -logit of them."""
    level = torch.repeat_interleave(torch.arange(4), torch.arange(1, 5)).double()
    best = -torch.logit(f64(0.9, 0.7, 0.4))
    slope = slopes(lambda t: ordinal(torch.zeros(10, dtype=torch.float64), level, t), best)[0]
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0.0, atol=1e-12)


def test_ordinal_shifts_with_its_thresholds() -> None:
    r, level, thresholds = normal(12), torch.arange(12).double() % LEVELS, f64(*THRESHOLDS)
    torch.testing.assert_close(ordinal(r + 5, level, thresholds + 5), ordinal(r, level, thresholds))


def test_ordinal_far_away_costs_the_distance() -> None:
    """Reward 1e4 and the middle level of -1 and 1: log sigmoid(1 - 1e4) + log(1 - e^-2), although both cumulative probabilities round to 1."""
    loss = ordinal(torch.tensor([1e4, -1e4]), torch.ones(2), torch.tensor([-1.0, 1.0]))
    assert loss.tolist() == pytest.approx([9999.0 - math.log(1 - math.exp(-2.0))] * 2, rel=1e-6)


@pytest.mark.parametrize("thresholds", [(-1e4, 0.0, 1e4), (0.0, 1e-3, 2e-3), (-1e4, -9999.0, 1e4)])
def test_ordinal_is_finite_with_thresholds_far_and_near(thresholds: tuple[float, ...]) -> None:
    level = torch.arange(4).float()
    for r in (-1e4, 0.0, 1e4):
        outputs = torch.full((4,), r)
        assert ordinal(outputs, level, torch.tensor(thresholds)).isfinite().all()
        assert all(s.isfinite().all() for s in slopes(lambda r, t: ordinal(r, level, t), outputs, torch.tensor(thresholds)))


def test_rising_by_hand() -> None:
    """-1, then softplus(0) = .69315 above it, then 1 above that (softplus(log(e - 1)) = 1), each gap .001 wider. Slopes: 1, then sigmoid(raw)."""
    raw = f64(-1.0, 0.0, raw_of(1.0))
    assert rising(raw).tolist() == pytest.approx([-1.0, -0.30585, 0.69515], abs=5e-6)
    assert slopes(lambda raw: rising(raw)[2:], raw)[0].tolist() == pytest.approx([1.0, 0.5, 1 - math.exp(-1.0)])
    assert rising(f64(3.0)).tolist() == [3.0]


@pytest.mark.parametrize("raw", [(1.0, -5.0, -5.0), (1.0, -20.0, 0.0), (-3.0, -200.0, -200.0), (0.0, 20.0, -1e4)])
def test_thresholds_from_any_numbers_rise_and_give_finite_losses(raw: tuple[float, ...]) -> None:
    """Float32: the levels between two thresholds keep a finite loss and gradient, however near the thresholds come."""
    start, level = torch.tensor(raw), torch.arange(4).float()
    assert (rising(start).diff() > 0).all()
    assert ordinal(torch.zeros(4), level, rising(start)).isfinite().all()
    assert slopes(lambda raw: ordinal(torch.zeros(4), level, rising(raw)), start)[0].isfinite().all()


# --- quantile -------------------------------------------------------------------------------------------------------------------------------------


def test_quantile_by_hand() -> None:
    """q = .9: one too low costs .9, one too high .1; q = .5: half of each. Outputs (0, 2), target 1: (.9 * 1 + .5 * 1) / 2. Slope -q / Q below."""
    q = f64(0.9, 0.5)
    assert quantile(f64(0.0, 2.0)[None, None], f64(1.0)[None], q).item() == pytest.approx((0.9 + 0.5) / 2)
    assert quantile(f64(2.0, 0.0)[None, None], f64(1.0)[None], q).item() == pytest.approx((0.1 + 0.5) / 2)
    assert slopes(lambda o: quantile(o, f64(1.0)[None], q), f64(0.0, 2.0)[None, None])[0].flatten().tolist() == pytest.approx([-0.45, 0.25])


def test_quantile_is_the_pinball_loss() -> None:
    outputs, target = CASES["quantile"][1:]
    for i, q in enumerate(QUANTILES):
        wanted = mean_pinball_loss(target.flatten().numpy(), outputs[..., i].flatten().numpy(), alpha=q)
        assert quantile(outputs[..., i : i + 1], target, f64(q)).mean().item() == pytest.approx(wanted)


def test_median_is_half_the_absolute_error() -> None:
    outputs, target = CASES["regression"][1:]
    torch.testing.assert_close(quantile(outputs[..., None], target, f64(0.5)), (outputs - target).abs() / 2)


@pytest.mark.parametrize("q", [0.05, 0.25, 0.5, 0.73, 0.95])
def test_its_minimiser_is_the_quantile_of_the_data(q: float) -> None:
    """Of 99 numbers: none costs less than the order statistic of place ceil(99 q); left of it the loss falls, right of it it rises."""
    data = normal(99)
    best = data.sort().values[math.ceil(99 * q) - 1]

    def loss(guess: Tensor) -> Tensor:
        return quantile(guess.reshape(-1, 1, 1).expand(-1, 99, 1), data.expand(guess.numel(), 99), f64(q)).sum(1)

    grid = torch.cat([data, torch.linspace(-4, 4, 401, dtype=torch.float64)])
    assert (loss(grid) >= loss(best) - 1e-12).all()
    assert slopes(loss, (best - 1e-6).reshape(1))[0] < 0 < slopes(loss, (best + 1e-6).reshape(1))[0]


# --- Gaussian -------------------------------------------------------------------------------------------------------------------------------------


def test_gaussian_by_hand() -> None:
    """Mean 1, variance 4, target 3: (log 4 + 4 / 4) / 2 = 1.19315; slope in the mean (1 - 3) / 4."""
    mean, raw, target = f64(1.0)[None], f64(raw_of(4.0 - VARIANCE_FLOOR))[None], f64(3.0)[None]
    assert variance(raw).item() == pytest.approx(4.0)
    assert gaussian(mean, raw, target).item() == pytest.approx(1.19315, abs=5e-6)
    assert slopes(lambda m: gaussian(m, raw, target), mean)[0].item() == pytest.approx(-0.5)


def test_gaussian_is_a_log_density() -> None:
    """SciPy's, less log(2 pi) / 2; and PyTorch's own loss."""
    mean, raw, target = normal(9, 2), normal(9, 2, seed=1), normal(9, 2, seed=2)
    got = gaussian(mean, raw, target)
    density = norm.logpdf(target.numpy(), mean.numpy(), variance(raw).sqrt().numpy())
    torch.testing.assert_close(got, -torch.from_numpy(density) - math.log(2 * math.pi) / 2)
    torch.testing.assert_close(got, gaussian_nll_loss(mean, target, variance(raw), reduction="none"))


def test_variance_is_positive() -> None:
    raw = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4])
    assert variance(raw).tolist() == pytest.approx([VARIANCE_FLOOR, VARIANCE_FLOOR + math.exp(-20.0), VARIANCE_FLOOR + math.log(2.0), 20.0, 1e4], rel=1e-4)
    assert slopes(variance, raw)[0].tolist() == pytest.approx(torch.sigmoid(raw).tolist())
    torch.testing.assert_close(variance(raw), softplus(raw) + VARIANCE_FLOOR)


@pytest.mark.parametrize("spread", [0.5, 1.0, 4.0])
def test_gaussian_of_a_fixed_variance_is_regression(spread: float) -> None:
    """Squared error / (2 variance) and a constant; so are the slopes in the mean."""
    mean, target = normal(9, 2), normal(9, 2, seed=1)
    raw = torch.full_like(mean, raw_of(spread - VARIANCE_FLOOR))
    torch.testing.assert_close(gaussian(mean, raw, target), regression(mean, target) / (2 * spread) + math.log(spread) / 2)
    got, wanted = slopes(lambda m: gaussian(m, raw, target), mean)[0], slopes(lambda m: regression(m, target), mean)[0]
    torch.testing.assert_close(got, wanted / (2 * spread))


def test_the_best_gaussian_has_the_mean_and_variance_of_the_data() -> None:
    data = normal(50, 1)
    mean, raw = data.mean(), torch.tensor(raw_of(data.var(correction=0).item() - VARIANCE_FLOOR), dtype=torch.float64)
    for slope in slopes(lambda m, raw: gaussian(m.expand(50, 1), raw.expand(50, 1), data), mean, raw):
        assert slope.item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("raw", [-1e4, -20.0, 0.0, 1e4])
def test_gaussian_is_finite_with_any_variance(raw: float) -> None:
    mean, raws, target = torch.tensor([[1e4, -1e4, 0.0]]), torch.full((1, 3), raw), torch.zeros(1, 3)
    assert gaussian(mean, raws, target).isfinite().all()
    assert all(s.isfinite().all() for s in slopes(lambda m, raw: gaussian(m, raw, target), mean, raws))
