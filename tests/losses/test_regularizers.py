"""Regularizers by hand, against SciPy and closed forms, with what they leave alone, and at the edge of the number range."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import pearsonr
from tests.losses.tensors import f64, normal, slopes
from torch import Tensor
from torch.autograd import gradcheck

from palate.losses.pairwise import bradley_terry
from palate.losses.regularizers import centering, head_overlap, length_correlation, pearson, text_dpo, text_sft, zero_sum

# --- scale of rewards -----------------------------------------------------------------------------------------------------------------------------


def test_centering_by_hand() -> None:
    """Coefficient 0.01 on rc = [1,2], rr = [.5,-1]: 0.01 * mean(1.5^2, 1^2) = 0.01625."""
    assert (0.01 * centering(torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])).mean()).item() == pytest.approx(0.01625)


def test_centering_leaves_differences_alone() -> None:
    """Its gradient is 2 (rc + rr) on both sides alike, so nothing along the difference; opposite rewards cost nothing."""
    c, r = normal(20), normal(20, seed=1)
    up, down = slopes(centering, c, r)
    torch.testing.assert_close(up, 2 * (c + r))
    assert up.equal(down)
    assert (centering(c, -c) == 0).all()
    assert gradcheck(centering, (c.clone().requires_grad_(), r.clone().requires_grad_()))


def test_centering_fixes_what_bradley_terry_leaves_open() -> None:
    """A free offset per pair beside the loss: its best value makes the pair's mean 0, and there the gradient in the offset is the centering's alone."""
    c, r, offset = normal(5), normal(5, seed=1), normal(5, seed=2)

    def loss(offset: Tensor) -> Tensor:
        return bradley_terry(c + offset, r + offset) + 0.01 * centering(c + offset, r + offset)

    torch.testing.assert_close(slopes(loss, -(c + r) / 2)[0], torch.zeros_like(c), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(slopes(loss, offset)[0], 0.04 * (c + r + 2 * offset))


def test_zero_sum_by_hand() -> None:
    """(1, 2, 6): mean 3, squared 9; gradient 2 * 3 / 3 on each. Rewards that sum to 0 cost nothing."""
    assert zero_sum(f64(1, 2, 6)).item() == pytest.approx(9.0)
    assert slopes(zero_sum, f64(1, 2, 6))[0].tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert zero_sum(f64(1, 2, -3)).item() == 0.0
    assert zero_sum(f64(1, 2, 6)).shape == ()
    assert gradcheck(zero_sum, normal(7).requires_grad_())


# --- correlation with length ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "rho"), [((1, 2, 3), (2, 4, 6), 1.0), ((1, 2, 3), (5, 4, 3), -1.0), ((1, 2, 3), (1, 3, 2), 0.5), ((1, -1, 1, -1), (1, 1, -1, -1), 0.0)]
)
def test_pearson_by_hand(a: tuple[int, ...], b: tuple[int, ...], rho: float) -> None:
    """(1,2,3) and (1,3,2) less their means: (-1,0,1).(-1,1,0) = 1 of sqrt(2 * 2)."""
    assert pearson(f64(*a), f64(*b)).item() == pytest.approx(rho, abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 100])
def test_pearson_is_that_of_scipy(n: int) -> None:
    """Its slope is (b^ - rho a^) / |a| with a^, b^ centred and of unit length; scale and shift change nothing."""
    a, b = normal(n), normal(n, seed=1) + 0.5 * normal(n)
    rho = pearson(a, b)
    assert rho.item() == pytest.approx(pearsonr(a.numpy(), b.numpy()).statistic, abs=1e-12)
    x, y = a - a.mean(), b - b.mean()
    torch.testing.assert_close(slopes(pearson, a, b)[0], (y / y.norm() - rho * x / x.norm()) / x.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pearson(-3 * a + 7, 100 * b + 1000), -rho)
    torch.testing.assert_close(pearson(b, a), rho)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e4, 1e9])
def test_pearson_at_any_scale_in_float32(scale: float) -> None:
    a, b = normal(50).float(), normal(50, seed=1).float()
    assert pearson(scale * a, scale * b).item() == pytest.approx(pearson(a, b).item(), abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1, 1e4 + 0.1])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_pearson_of_what_does_not_vary_is_nothing(constant: float, n: int) -> None:
    """0, and no gradient on either side, whichever side it is, also where the mean of equal numbers is rounded."""
    a, b = torch.full((n,), constant), torch.arange(float(n))
    for left, right in ((a, b), (b, a), (a, a)):
        assert pearson(left, right).item() == 0.0
        assert all((slope == 0).all() for slope in slopes(pearson, left, right))


def test_length_correlation_by_hand() -> None:
    """Quality follows length (1) and the length head does not (0): 1 - 0. The other way round: 0 - 1. Opposed to length counts like along it."""
    lengths, other = f64(1, 2, 1, 2), f64(1, 1, 2, 2)
    assert length_correlation(lengths, other, lengths).item() == pytest.approx(1.0)
    assert length_correlation(other, lengths, lengths).item() == pytest.approx(-1.0)
    assert length_correlation(-lengths, -lengths, lengths).item() == pytest.approx(1.0 + 1.0)


def test_length_correlation_is_that_of_scipy() -> None:
    q, length_reward, lengths = normal(30), normal(30, seed=1), (20 * normal(30, seed=2)).exp().clamp(1, 500)
    wanted = abs(pearsonr(q.numpy(), lengths.numpy()).statistic) - pearsonr(length_reward.numpy(), lengths.numpy()).statistic
    assert length_correlation(q, length_reward, lengths).item() == pytest.approx(wanted, abs=1e-12)
    assert gradcheck(lambda q, r: length_correlation(q, r, lengths), (q.clone().requires_grad_(), length_reward.clone().requires_grad_()))


# --- heads ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second", "overlap"), [((3, 4), (4, 3), 0.96), ((1, 0), (0, 2), 0.0), ((1, 2), (2, 4), 1.0), ((1, 2), (-3, -6), 1.0)])
def test_head_overlap_by_hand(first: tuple[int, int], second: tuple[int, int], overlap: float) -> None:
    """|(3,4).(4,3)| / 25 = .96."""
    assert head_overlap(f64(*first, *second).reshape(2, 2)).item() == pytest.approx(overlap, abs=1e-12)


def test_head_overlap_reads_directions() -> None:
    """The length of either head does not count, so the gradient of each is at right angles to it; two heads of unit length give |w.v|."""
    weight = normal(2, 16)
    torch.testing.assert_close(head_overlap(weight * f64(7.0, 0.01)[:, None]), head_overlap(weight))
    slope = slopes(head_overlap, weight)[0]
    torch.testing.assert_close((slope * weight).sum(1), torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-12)
    unit = torch.nn.functional.normalize(weight, dim=1)
    torch.testing.assert_close(head_overlap(unit), (unit[0] @ unit[1]).abs())
    assert gradcheck(head_overlap, weight.clone().requires_grad_())


@pytest.mark.parametrize("weight", [((0, 0), (0, 0)), ((0, 0), (1, 2)), ((1, 2), (0, 0))])
def test_heads_of_zeros_do_not_overlap(weight: tuple[tuple[int, int], tuple[int, int]]) -> None:
    w = torch.tensor(weight, dtype=torch.float32)
    assert head_overlap(w).item() == 0.0 and slopes(head_overlap, w)[0].isfinite().all()


# --- text -----------------------------------------------------------------------------------------------------------------------------------------


def test_text_sft_by_hand() -> None:
    """log p = -20, beta = .1: log(1 + e^2) = 2.12693; slope -beta sigmoid(2) = -.08808. The least is log 2, at log p = 0."""
    assert text_sft(f64(-20.0), 0.1).item() == pytest.approx(2.12693, abs=5e-6)
    assert slopes(lambda x: text_sft(x, 0.1), f64(-20.0))[0].item() == pytest.approx(-0.08808, abs=5e-6)
    assert text_sft(f64(0.0), 0.1).item() == pytest.approx(math.log(2.0))
    assert gradcheck(lambda x: text_sft(x, 0.1), (10 * normal(5)).requires_grad_())


def test_text_dpo_by_hand() -> None:
    """Log-probabilities -10 and -14, of the reference -11 and -13: log-ratios 1 and -1, so -log sigmoid(.1 * 2) = .59814; without it .1 * 4: .51302."""
    c, r, reference = f64(-10.0), f64(-14.0), (f64(-11.0), f64(-13.0))
    assert text_dpo(c, r, 0.1, reference).item() == pytest.approx(0.59814, abs=5e-6)
    assert text_dpo(c, r, 0.1).item() == pytest.approx(0.51302, abs=5e-6)


def test_text_dpo_is_bradley_terry_of_log_ratios() -> None:
    """Values and gradients; a model that is its own reference has log 2; a reference that prefers neither is none."""
    c, r, rc, rr = (10 * normal(20, seed=i) for i in range(4))
    torch.testing.assert_close(text_dpo(c, r, 0.3, (rc, rr)), bradley_terry(0.3 * (c - rc), 0.3 * (r - rr)))
    got = slopes(lambda c, r: text_dpo(c, r, 0.3, (rc, rr)), c, r)
    for a, b in zip(got, slopes(lambda c, r: bradley_terry(0.3 * (c - rc), 0.3 * (r - rr)), c, r), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(text_dpo(c, r, 0.3, (c, r)), torch.full((20,), math.log(2.0), dtype=torch.float64))
    torch.testing.assert_close(text_dpo(c, r, 0.3, (rc, rc)), text_dpo(c, r, 0.3))


# --- number range ---------------------------------------------------------------------------------------------------------------------------------

LENGTHS = (12.0, 500.0, 3.0, 77.0, 1024.0, 9.0)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "centering": centering,
    "zero_sum": lambda a, b: zero_sum(torch.cat([a, b])),
    "length_correlation": lambda a, b: length_correlation(a, b, a.new_tensor(LENGTHS)),
    "head_overlap": lambda a, b: head_overlap(torch.stack([a, b])),
    "text_sft": lambda a, b: text_sft(a, 0.1),
    "text_dpo": lambda a, b: text_dpo(a, b, 0.1),
    "text_dpo_reference": lambda a, b: text_dpo(a, b, 0.1, (b, a)),
}
each_loss = pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))


@each_loss
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_finite_at_huge_values(loss: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
    a = scale * torch.tensor([1.0, 0.0, -1.0, 0.5, 1.0, 1.0])
    b = scale * torch.tensor([0.0, 1.0, 1.0, 0.5, -1.0, 1.0])
    assert loss(a, b).isfinite().all()
    leaves = [a.requires_grad_(), b.requires_grad_()]
    found = torch.autograd.grad(loss(*leaves).sum(), leaves, allow_unused=True)
    assert all(slope.isfinite().all() for slope in found if slope is not None)


@each_loss
def test_bfloat16_values(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rounded to bfloat16 and read as float32: as float64 has it, and near the value of the exact numbers (8 bits)."""
    a, b = normal(6), normal(6, seed=1)
    rounded = [x.bfloat16().float() for x in (a, b)]
    got = loss(*rounded)
    assert got.dtype == torch.float32 and got.isfinite().all()
    torch.testing.assert_close(got.double(), loss(*(x.double() for x in rounded)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.double(), loss(a, b), rtol=2**-6, atol=2**-6)
