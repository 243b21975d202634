"""The objective: sums and weights of terms over an index batch, metrics, and terms across a step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palate.losses.objective import Across, Objective, ObjectiveOutput
from palate.losses.terms import CenteringTerm, Outputs, PairwiseTerm, PointwiseTerm, TieTerm

CENTERED = Objective((PairwiseTerm(), CenteringTerm()), (1.0, 0.1))


def batch(pairs, *, margin=None, weight=None, probability=None) -> dict[str, torch.Tensor]:
    n = len(pairs)
    return {
        "chosen": torch.tensor([a for a, _ in pairs]),
        "rejected": torch.tensor([b for _, b in pairs]),
        "margin": torch.tensor(margin or [0.0] * n),
        "weight": torch.tensor(weight or [1.0] * n),
        "probability": torch.tensor(probability or [1.0] * n),
        "group": torch.arange(n),
    }


def run(objective: Objective, rewards: Tensor, columns: dict[str, Tensor]) -> ObjectiveOutput:
    """One output a response."""
    return objective(objective.read(rewards[:, None], columns), columns)


def loss(objective: Objective, rewards: Tensor, columns: dict[str, Tensor]) -> Tensor:
    return objective.loss(*run(objective, rewards, columns)[:2])


def test_k_wise_by_hand() -> None:
    """Scores (2,1,0), all pairs weighing 1/3: mean pair loss 0.25115 (InstructGPT, eq. 1)."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    out = run(Objective(), torch.tensor([2.0, 1.0, 0.0]), batch(pairs, weight=[1 / 3] * 3))
    assert out.totals.item() == pytest.approx(0.25115, abs=1e-5) and out.weights.item() == pytest.approx(1.0)


def test_a_shift_of_all_rewards_changes_nothing() -> None:
    rewards = torch.tensor([0.3, -1.0, 2.0])
    b = batch([(0, 1), (2, 0)])
    torch.testing.assert_close(loss(Objective(), rewards, b), loss(Objective(), rewards + 7.0, b))


def test_index_batch_gradient_equals_explicit_pairs() -> None:
    """K = 4 as 4 rows and 6 comparisons, or as 12 rows: the same gradient on each response."""
    torch.manual_seed(0)
    rewards = torch.randn(4, requires_grad=True)
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    loss(CENTERED, rewards, batch(pairs)).backward()
    index = torch.tensor([i for pair in pairs for i in pair])
    explicit = rewards.detach()[index].requires_grad_()
    loss(CENTERED, explicit, batch([(2 * i, 2 * i + 1) for i in range(6)])).backward()
    torch.testing.assert_close(rewards.grad, torch.zeros(4).index_add(0, index, explicit.grad))


def test_terms_are_weighted_means_of_their_own_items() -> None:
    """Bradley-Terry over two comparisons of weight 1 and 3, plus half the squared error over the two ratings that are there."""
    objective = Objective((PairwiseTerm(), PointwiseTerm("regression")), (1.0, 0.5))
    columns = batch([(0, 1), (1, 2)], weight=[1.0, 3.0])
    columns |= {"rating": torch.tensor([[1.0], [math.nan], [3.0]]), "response_group": torch.tensor([0, 0, 1])}
    rewards = torch.tensor([2.0, 1.0, 0.0])
    expected = math.log1p(math.exp(-1.0)) + 0.5 * ((2 - 1) ** 2 + (0 - 3) ** 2) / 2
    assert loss(objective, rewards, columns).item() == pytest.approx(expected, rel=1e-6)
    assert objective.weights(columns).tolist() == [4.0, 2.0]


def test_a_term_without_items_adds_nothing() -> None:
    objective = Objective((PairwiseTerm(), PointwiseTerm("regression")), (1.0, 0.5))
    columns = batch([(0, 1)]) | {"rating": torch.full((2, 1), math.nan), "response_group": torch.zeros(2, dtype=torch.long)}
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    value = loss(objective, rewards, columns)
    value.backward()
    assert value.item() == pytest.approx(math.log1p(math.exp(-1.0))) and torch.isfinite(rewards.grad).all()


def test_metrics_are_over_decided_comparisons() -> None:
    b = batch([(0, 1), (1, 0), (0, 2), (0, 1)], weight=[1.0, 1.0, 2.0, 5.0], probability=[1.0, 1.0, 1.0, 0.5])
    metrics = run(Objective(), torch.tensor([1.0, 0.0, 1.0]), b).metrics
    sums = {name: ((items.values * items.weights).sum().item(), items.weights.sum().item()) for name, items in metrics.items()}
    assert sums["accuracy"] == (1.0, 3.0)  # right, wrong, a tie of rewards (wrong); the label tie is left out, weights do not count
    assert sums["margin"] == (0.0, 3.0)


def test_metrics_read_the_reward_that_scoring_reads() -> None:
    """Two heads: training compares their sum, scoring and accuracy the first alone."""
    objective = Objective(outputs=("quality", "length"), reward=(1.0, 1.0), reading=(1.0, 0.0))
    columns = batch([(0, 1)])
    outputs = objective.read(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), columns)
    result = objective(outputs, columns)
    assert outputs.rewards.tolist() == [3.0, 1.0] and result.totals.item() == pytest.approx(math.log1p(math.exp(-2.0)))
    assert result.metrics["accuracy"].values.item() == 0.0


def test_margins_can_be_left_out() -> None:
    b = batch([(0, 1)], margin=[3.0])
    rewards = torch.tensor([1.0, 0.0])
    assert loss(Objective((PairwiseTerm(margins=False),)), rewards, b).item() == pytest.approx(math.log1p(math.exp(-1)))
    assert loss(Objective(), rewards, b).item() == pytest.approx(math.log1p(math.exp(2)))


def test_a_scaled_margin_multiplies() -> None:
    b = batch([(0, 1)], margin=[3.0])
    scaled = Objective((PairwiseTerm("scaled_bradley_terry", scaled=True),))
    assert loss(scaled, torch.tensor([1.0, 0.0]), b).item() == pytest.approx(3 * math.log1p(math.exp(-1)))


def test_a_learned_tie_threshold_gets_a_gradient() -> None:
    objective = Objective((TieTerm("rao_kupper"),), parameters={"tie_threshold": (0.0,)})
    raw = torch.zeros(1, requires_grad=True)
    columns = batch([(0, 1)], probability=[0.5])
    result = objective(objective.read(torch.tensor([[0.5], [0.5]]), columns), columns, {"tie_threshold": raw})
    result.totals.sum().backward()
    assert raw.grad.item() < 0  # a wider threshold makes the tie likelier


def test_bfloat16_rewards_are_compared_in_float32() -> None:
    rewards = torch.tensor([8.0, 8.03125], dtype=torch.bfloat16)
    assert run(Objective(), rewards, batch([(0, 1)])).totals.dtype == torch.float32


def test_terms_across_the_step_by_hand() -> None:
    """Zero sum of (1, 2, 3): 4. Cross-prompt on two comparisons of unlike prompts at a tiny temperature: each meets itself alone."""
    rewards = torch.tensor([2.0, 0.0, 1.0, 3.0])
    columns = batch([(0, 1), (2, 3)]) | {"prompt_embedding": torch.eye(2), "prompt_number": torch.arange(2)}
    outputs = Outputs(rewards[:, None], rewards[:, None], rewards, rewards)
    across = Across(zero_sum=0.5, cross_prompt=2.0, temperature=0.01, own_floor=0.0)
    values = across(outputs, columns)
    assert values["zero_sum"].item() == pytest.approx(0.5 * 1.5**2)
    own = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(2.0))) / 2
    assert values["cross_prompt"].item() == pytest.approx(2 * own, rel=1e-5)
    even = replace(across, temperature=1e6)(outputs, columns)["cross_prompt"]
    cross = [math.log1p(math.exp(-d)) for d in (2 - 0, 2 - 3, 1 - 0, 1 - 3)]
    assert even.item() == pytest.approx(2 * sum(cross) / 4, rel=1e-4)
