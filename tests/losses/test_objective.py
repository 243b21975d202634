"""Losses by hand, against binary cross-entropy, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from palate.errors import ConfigError
from palate.losses.objective import Objective
from palate.losses.pairwise import bradley_terry
from palate.losses.regularizers import centering


def batch(pairs, *, margin=None, weight=None, probability=None) -> dict[str, torch.Tensor]:
    n = len(pairs)
    return {
        "chosen": torch.tensor([a for a, _ in pairs]),
        "rejected": torch.tensor([b for _, b in pairs]),
        "margin": torch.tensor(margin or [0.0] * n),
        "weight": torch.tensor(weight or [1.0] * n),
        "probability": torch.tensor(probability or [1.0] * n),
    }


def test_bradley_terry_by_hand() -> None:
    """r = (1.2, 0.4): difference 0.8, sigmoid 0.6900, loss 0.3711, gradient -/+ 0.3100."""
    chosen, rejected = torch.tensor([1.2], requires_grad=True), torch.tensor([0.4], requires_grad=True)
    loss = bradley_terry(chosen, rejected)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.3711, abs=5e-5)
    assert chosen.grad.item() == pytest.approx(-0.3100, abs=5e-5) and rejected.grad.item() == pytest.approx(0.3100, abs=5e-5)


def test_margins_by_hand() -> None:
    """rc = [1,2,3], rr = 0, margins [0,1,2]: every difference less its margin is 1, loss 0.31326 (a broadcast to [3,3] gives 0.43798)."""
    loss = bradley_terry(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), margin=torch.tensor([0.0, 1.0, 2.0]))
    assert loss.shape == (3,) and loss.mean().item() == pytest.approx(0.31326, abs=1e-5)


def test_soft_labels_and_smoothing_are_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    c, r, m, p = (torch.randn(50, generator=g), torch.randn(50, generator=g), torch.rand(50, generator=g), torch.rand(50, generator=g))
    expected = binary_cross_entropy_with_logits(c - r - m, 0.9 * p + 0.1 * (1 - p), reduction="none")
    torch.testing.assert_close(bradley_terry(c, r, margin=m, probability=p, label_smoothing=0.1), expected)


def test_smoothing_has_its_minimum_at_log_odds() -> None:
    """cDPO: with flip chance e the loss is smallest at a difference of log((1 - e) / e)."""
    e = 0.1
    x = torch.tensor([math.log((1 - e) / e)], requires_grad=True)
    bradley_terry(x, torch.zeros(1), label_smoothing=e).sum().backward()
    assert x.grad.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_finite_at_large_differences(difference: float) -> None:
    x = torch.tensor([difference], requires_grad=True)
    loss = bradley_terry(x, torch.zeros(1), label_smoothing=0.05, probability=torch.tensor([0.9]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(x.grad).all()


def test_centering_by_hand() -> None:
    """Coefficient 0.01 on rc = [1,2], rr = [.5,-1]: 0.01 * mean(1.5^2, 1^2) = 0.01625."""
    value = 0.01 * centering(torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])).mean()
    assert value.item() == pytest.approx(0.01625)


def test_centering_leaves_differences_alone() -> None:
    rewards = torch.tensor([1.0, -0.3], requires_grad=True)
    centering(rewards[:1], rewards[1:]).sum().backward()
    assert (rewards.grad[0] - rewards.grad[1]).item() == 0.0


def test_k_wise_by_hand() -> None:
    """Scores (2,1,0), all pairs weighing 1/3: mean pair loss 0.25115 (InstructGPT, eq. 1)."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    out = Objective()(torch.tensor([2.0, 1.0, 0.0]), batch(pairs, weight=[1 / 3] * 3))
    assert out.total.item() == pytest.approx(0.25115, abs=1e-5) and out.weight.item() == pytest.approx(1.0)


def test_a_shift_of_all_rewards_changes_nothing() -> None:
    rewards = torch.tensor([0.3, -1.0, 2.0])
    b = batch([(0, 1), (2, 0)])
    torch.testing.assert_close(Objective()(rewards, b).total, Objective()(rewards + 7.0, b).total)


def test_index_batch_gradient_equals_explicit_pairs() -> None:
    """K = 4 as 4 rows and 6 comparisons, or as 12 rows: the same gradient on each response."""
    torch.manual_seed(0)
    rewards = torch.randn(4, dtype=torch.float64).float().requires_grad_()
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    Objective(centering=0.1)(rewards, batch(pairs)).total.backward()
    index = torch.tensor([i for pair in pairs for i in pair])
    explicit = rewards.detach()[index].requires_grad_()
    Objective(centering=0.1)(explicit, batch([(2 * i, 2 * i + 1) for i in range(6)])).total.backward()
    torch.testing.assert_close(rewards.grad, torch.zeros(4).index_add(0, index, explicit.grad))


def test_metrics_are_sums_over_decided_comparisons() -> None:
    b = batch([(0, 1), (1, 0), (0, 2), (0, 1)], weight=[1.0, 1.0, 2.0, 5.0], probability=[1.0, 1.0, 1.0, 0.5])
    metrics = Objective()(torch.tensor([1.0, 0.0, 1.0]), b).metrics
    assert [m.item() for m in metrics["accuracy"]] == [1.0, 3.0]  # right, wrong, a tie of rewards (wrong); the label tie is left out, weights do not count
    assert [m.item() for m in metrics["margin"]] == [0.0, 3.0]


def test_margins_can_be_left_out() -> None:
    b = batch([(0, 1)], margin=[3.0])
    rewards = torch.tensor([1.0, 0.0])
    assert Objective(margins=False)(rewards, b).total.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert Objective()(rewards, b).total.item() == pytest.approx(math.log1p(math.exp(2)))


@pytest.mark.parametrize(
    ("options", "words"), [({"type": "hinges"}, "loss.type"), ({"label_smoothing": 0.5}, "less than 0.5"), ({"centering": -1.0}, "0 or more")]
)
def test_bad_settings(options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        Objective(**options)


def test_bfloat16_rewards_are_compared_in_float32() -> None:
    rewards = torch.tensor([8.0, 8.03125], dtype=torch.bfloat16)
    assert Objective()(rewards, batch([(0, 1)])).total.dtype == torch.float32
