"""Members of one head: each is trained as if it were alone, on its own resample, and evaluated on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from palate.losses.objective import Objective
from palate.losses.pairwise import bradley_terry
from palate.losses.terms import MemberTerm, PairwiseTerm, hashed


def batch(pairs: int) -> dict[str, Tensor]:
    index = torch.arange(pairs)
    ones = torch.ones(pairs)
    return {"chosen": 2 * index, "rejected": 2 * index + 1, "margin": ones * 0, "weight": ones, "probability": ones, "group": index}


def members(count: int, draws: int | None = None) -> Objective:
    terms = tuple(MemberTerm(PairwiseTerm(), m, draws) for m in range(count))
    share = (1 / count,) * count
    return Objective(terms, share, outputs=tuple(f"reward#{m + 1}" for m in range(count)), reward=share, reading=share)


def loss_of(objective: Objective, outputs: Tensor, columns: dict[str, Tensor]) -> Tensor:
    result = objective(objective.read(outputs, columns), columns)
    return objective.loss(result.totals, result.weights)


def test_the_loss_is_the_mean_of_each_head_alone_and_so_is_its_gradient() -> None:
    outputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    columns = batch(20)
    loss = loss_of(members(3), outputs, columns)
    alone = torch.stack([bradley_terry(outputs[0::2, m], outputs[1::2, m]).mean() for m in range(3)])
    torch.testing.assert_close(loss, alone.mean())
    torch.testing.assert_close(torch.autograd.grad(loss, outputs)[0], torch.autograd.grad(alone.mean(), outputs)[0])


def test_a_resample_is_poisson_of_its_own_and_the_same_every_time() -> None:
    """Counts of mean 1 and variance 1, 1/e of them 0, as a bootstrap of many groups has them; members and seeds differ, epochs do not."""
    columns = batch(20_000)
    counts = [MemberTerm(PairwiseTerm(), m, draws).weights(columns) for draws in (0, 1) for m in (0, 1)]
    for count in counts:
        assert abs(count.mean() - 1) < 0.03 and abs(count.var() - 1) < 0.05 and abs((count == 0).float().mean() - 0.3679) < 0.012
        assert torch.equal(count, count.round()) and 5 <= count.max() <= 11
    together = torch.corrcoef(torch.stack(counts))
    assert (together - torch.eye(4)).abs().max() < 0.03
    assert torch.equal(counts[0], MemberTerm(PairwiseTerm(), 0, 0).weights(columns))
    some = {name: value[500:700] for name, value in columns.items()}  # another batch: a group keeps its count
    assert torch.equal(MemberTerm(PairwiseTerm(), 0, 0).weights(some), counts[0][500:700])


def test_resampled_in_training_whole_in_evaluation() -> None:
    columns = batch(30)
    outputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    whole = loss_of(members(2), outputs, columns)
    torch.testing.assert_close(loss_of(members(2, draws=0), outputs, columns), whole)
    trained = loss_of(members(2, draws=0), outputs.clone().requires_grad_(), columns)
    expected = []
    for m, term in enumerate(members(2, draws=0).terms):
        count = term.weights(columns)
        expected.append((count * bradley_terry(outputs[0::2, m], outputs[1::2, m])).sum() / count.sum())
    torch.testing.assert_close(trained, torch.stack(expected).mean())
    assert abs(float((trained - whole).detach())) > 1e-3


def test_hashes_are_uniform_and_stay_below_one() -> None:
    values = hashed(torch.arange(100_000), 3)
    assert values.min() >= 0 and values.max() < 1
    shares = torch.histc(values.float(), 10, 0, 1) / 100_000
    assert (shares - 0.1).abs().max() < 0.005
