"""Cross-prompt comparisons: weights and losses by hand and against plain loops, their limits, and the number range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.tensors import f64, normal, slopes
from torch import Tensor
from torch.autograd import gradcheck

from palate.losses.cross_prompt import relative_preference, similarity_weights
from palate.losses.pairwise import bradley_terry

P = 6
GROUPS = torch.tensor([0, 0, 1, 2, 2, 2])  # comparisons of three prompts
each_side = pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])


def some_weights(groups: Tensor = GROUPS) -> Tensor:
    return similarity_weights(normal(len(groups), 8, seed=5)[groups], groups, temperature=0.5)


# --- weights --------------------------------------------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    """Two prompts at right angles, temperature .5: 1 and e^-2 of their sum, .88080 and .11920. With a third comparison of the first prompt, masked there,
    the second prompt's row is 1 / (1 + 2 e^-2) = .78699 and twice .10651."""
    two = similarity_weights(f64(1, 0, 0, 3).reshape(2, 2), torch.tensor([0, 1]), temperature=0.5)
    assert two.flatten().tolist() == pytest.approx([0.88080, 0.11920, 0.11920, 0.88080], abs=5e-6)
    three = similarity_weights(f64(1, 0, 0, 3, 1, 0).reshape(3, 2), torch.tensor([0, 1, 0]), temperature=0.5)
    assert three.flatten().tolist() == pytest.approx([0.88080, 0.11920, 0, 0.10651, 0.78699, 0.10651, 0, 0.11920, 0.88080], abs=5e-6)


def literal_weights(embeddings: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """The formula in plain loops."""
    rows = []
    for i, e in enumerate(embeddings):
        cosine = [float(e @ f / (e.norm() * f.norm())) for f in embeddings]
        row = [0.0 if groups[i] == groups[j] and i != j else math.exp(-(1 - cosine[j]) / temperature) for j in range(len(embeddings))]
        rows.append([w / sum(row) for w in row])
    return f64(*(w for row in rows for w in row)).reshape(len(rows), -1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=7), st.sampled_from([0.05, 0.25, 0.5, 2.0]), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(0, 1000)
)
def test_weights_are_the_formula(groups: list[int], temperature: float, floor: float, seed: int) -> None:
    """Rows sum to 1; other comparisons of a prompt weigh 0; the own pair weighs its floor at least; what is beside it keeps its proportions."""
    group = torch.tensor(groups)
    embeddings = normal(5, 4, seed=seed)[group]
    plain = literal_weights(embeddings, group, temperature)
    torch.testing.assert_close(similarity_weights(embeddings, group, temperature=temperature), plain)
    weights = similarity_weights(embeddings, group, temperature=temperature, own_floor=floor)
    own, same_prompt = torch.eye(len(groups), dtype=torch.bool), group[:, None] == group[None, :]
    alone = same_prompt.all(1)  # no other prompt to compare with: the own pair has it all
    torch.testing.assert_close(weights.sum(1), torch.ones(len(groups), dtype=torch.float64))
    assert (weights[same_prompt & ~own] == 0).all() and (weights >= 0).all()
    torch.testing.assert_close(weights.diagonal(), torch.where(alone, 1.0, plain.diagonal().clamp(min=floor)))
    others, plain_others = weights.masked_fill(own, 0), plain.masked_fill(own, 0)
    torch.testing.assert_close(others * plain_others.sum(1, keepdim=True), plain_others * others.sum(1, keepdim=True))


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_cold_weights_are_the_diagonal(floor: float) -> None:
    """Temperature towards 0, prompts all different: every comparison meets itself alone."""
    cold = similarity_weights(normal(5, 8), torch.arange(5), temperature=1e-3, own_floor=floor)
    torch.testing.assert_close(cold, torch.eye(5, dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_hot_weights_are_uniform_over_other_prompts() -> None:
    """Temperature towards infinity: the own pair and each comparison of another prompt weigh the same; with prompts all different, 1 / P."""
    hot = similarity_weights(normal(P, 8), GROUPS, temperature=1e9)
    meets = (GROUPS[:, None] != GROUPS[None, :]) | torch.eye(P, dtype=torch.bool)
    torch.testing.assert_close(hot, meets / meets.sum(1, keepdim=True).double(), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(
        similarity_weights(normal(P, 8), torch.arange(P), temperature=1e9), torch.full((P, P), 1 / P, dtype=torch.float64), rtol=0.0, atol=1e-8
    )


def test_equal_prompts_of_different_groups_share_their_weight() -> None:
    weights = similarity_weights(normal(3, 8)[[0, 0, 1]], torch.arange(3), temperature=0.01)
    torch.testing.assert_close(weights[:2], f64(0.5, 0.5, 0).repeat(2, 1), rtol=0.0, atol=1e-6)


def test_only_directions_count() -> None:
    embeddings = normal(P, 8)
    scaled = embeddings * f64(1, 1e-3, 50, 7, 1e4, 2)[:, None]
    torch.testing.assert_close(similarity_weights(scaled, GROUPS, temperature=0.5), similarity_weights(embeddings, GROUPS, temperature=0.5))


@pytest.mark.parametrize("groups", [[3], [3, 3, 3]])
@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_one_prompt_has_only_its_own_pairs(groups: list[int], floor: float) -> None:
    weights = similarity_weights(normal(len(groups), 8), torch.tensor(groups), temperature=0.5, own_floor=floor)
    assert weights.equal(torch.eye(len(groups), dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1e-6, 0.5, 1e6])
def test_weights_in_float32_and_bfloat16(temperature: float) -> None:
    """Finite at any temperature, rows of 1; embeddings rounded to bfloat16 give weights near the exact ones."""
    embeddings, groups = normal(P, 384)[GROUPS].float(), GROUPS
    weights = similarity_weights(embeddings, groups, temperature=temperature, own_floor=0.2)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(P))
    rounded = similarity_weights(embeddings.bfloat16().float(), groups, temperature=temperature, own_floor=0.2)
    torch.testing.assert_close(rounded, weights, rtol=0.0, atol=2**-8)


# --- losses ---------------------------------------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    """Chosen (2, 0), rejected (1, -1): differences (1, 3) and (-1, 1). Weights (.75, .25) and (.25, .75).

    Inside, row 0: both arguments are .75, log(1 + e^-.75) = .38687. Row 1: -.25 and .75, mean of .82594 and .38687.
    Outside, row 0: .75 * .31326 + .25 * .04859 = .24709. Row 1: .25 * 1.31326 + .75 * .31326 = .56326.
    """
    c, r, w = f64(2, 0), f64(1, -1), f64(0.75, 0.25, 0.25, 0.75).reshape(2, 2)
    assert relative_preference(c, r, w, inside=True).tolist() == pytest.approx([0.38687, 0.60640], abs=1e-5)
    assert relative_preference(c, r, w, inside=False).tolist() == pytest.approx([0.24709, 0.56326], abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_losses_are_the_formulas_in_loops(beta: float) -> None:
    """Values and gradients in both sides; outside the margin of a comparison counts on its own pair alone."""
    c, r, w, m = normal(P), normal(P, seed=1), some_weights(), normal(P, seed=2).abs()

    def softplus(x: Tensor) -> Tensor:
        return torch.log1p(x.exp())

    def inside(c: Tensor, r: Tensor) -> Tensor:
        return torch.stack([sum(softplus(-beta * w[i, j] * (c[i] - r[j])) for j in range(P)) / P for i in range(P)])

    def outside(c: Tensor, r: Tensor) -> Tensor:
        return torch.stack([sum(w[i, j] * softplus(r[j] - c[i] + (m[i] if i == j else 0.0)) for j in range(P)) for i in range(P)])

    for literal, loss in (
        (inside, lambda c, r: relative_preference(c, r, w, inside=True, beta=beta)),
        (outside, lambda c, r: relative_preference(c, r, w, inside=False, margin=m)),
    ):
        torch.testing.assert_close(loss(c, r), literal(c, r))
        for a, b in zip(slopes(loss, c, r), slopes(literal, c, r), strict=True):
            torch.testing.assert_close(a, b)
        assert gradcheck(loss, (c.clone().requires_grad_(), r.clone().requires_grad_()))


@each_side
def test_one_comparison_is_bradley_terry(inside: bool) -> None:
    c, r = f64(1.2), f64(0.4)
    w = similarity_weights(normal(1, 8), torch.tensor([0]), temperature=0.5)
    assert relative_preference(c, r, w, inside=inside).item() == pytest.approx(0.3711, abs=5e-5)
    for a, b in zip(slopes(lambda c, r: relative_preference(c, r, w, inside=inside), c, r), slopes(bradley_terry, c, r), strict=True):
        torch.testing.assert_close(a, b)


def test_diagonal_weights_are_bradley_terry_outside() -> None:
    """Inside, the pairs of weight 0 add log 2 each before the mean, and no gradient."""
    c, r, m, eye = normal(P), normal(P, seed=1), normal(P, seed=2).abs(), torch.eye(P, dtype=torch.float64)
    torch.testing.assert_close(relative_preference(c, r, eye, inside=False, margin=m), bradley_terry(c, r, margin=m))
    torch.testing.assert_close(relative_preference(c, r, eye, inside=True), (bradley_terry(c, r) + (P - 1) * math.log(2.0)) / P)
    got = slopes(lambda c, r: relative_preference(c, r, eye, inside=True), c, r)
    for a, b in zip(got, slopes(bradley_terry, c, r), strict=True):
        torch.testing.assert_close(a, b / P)


def test_masked_comparisons_do_not_meet() -> None:
    """Outside, a rejected response gets no gradient from another chosen one of its prompt."""
    c, r, w = normal(P), normal(P, seed=1), some_weights()
    for i in range(P):
        slope = slopes(lambda r, i=i: relative_preference(c, r, w, inside=False)[i], r)[0]
        assert ((slope == 0) == ((GROUPS[i] == GROUPS) & (torch.arange(P) != i))).all()


@each_side
def test_equal_rewards_cost_log_2(inside: bool) -> None:
    equal = torch.full((P,), 3.0, dtype=torch.float64)
    loss = relative_preference(equal, equal, some_weights(), inside=inside)
    torch.testing.assert_close(loss, torch.full((P,), math.log(2.0), dtype=torch.float64))


@each_side
def test_one_shift_for_all_costs_nothing_and_one_per_prompt_does(inside: bool) -> None:
    """Only an offset common to all prompts is left open: gradients of the whole batch sum to 0."""
    c, r, w = normal(P), normal(P, seed=1), some_weights()
    loss = relative_preference(c, r, w, inside=inside)
    torch.testing.assert_close(relative_preference(c + 7, r + 7, w, inside=inside), loss)
    per_prompt = f64(0, 1, -2)[GROUPS]
    assert (relative_preference(c + per_prompt, r + per_prompt, w, inside=inside) - loss).abs().max() > 0.01
    assert sum(s.sum() for s in slopes(lambda c, r: relative_preference(c, r, w, inside=inside), c, r)).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("size", [4, 64])
def test_inside_the_gradient_fades_with_the_batch(size: int) -> None:
    """Uniform weights 1 / P and rewards near each other: inside, a chosen response's slope of the mean loss is -1 / (2 P^2), outside -1 / (2 P)."""
    c, r, w = torch.zeros(size).double(), torch.zeros(size).double(), torch.full((size, size), 1 / size).double()
    for inside, slope in ((True, -1 / (2 * size**2)), (False, -1 / (2 * size))):
        got = slopes(lambda c, inside=inside: relative_preference(c, r, w, inside=inside).mean(), c)[0]
        torch.testing.assert_close(got, torch.full_like(c, slope))


@each_side
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_finite_at_huge_differences(inside: bool, scale: float) -> None:
    c, r = scale * torch.linspace(-1, 1, P), scale * torch.linspace(1, -1, P)
    for w in (some_weights().float(), torch.eye(P)):
        assert relative_preference(c, r, w, inside=inside, margin=None if inside else torch.ones(P)).isfinite().all()
        assert all(s.isfinite().all() for s in slopes(lambda c, r, w=w: relative_preference(c, r, w, inside=inside), c, r))


@each_side
def test_bfloat16_rewards(inside: bool) -> None:
    """Rounded to bfloat16 and read as float32: a loss moves by at most the largest rounding of either side."""
    c, r, w = 3 * normal(P), 3 * normal(P, seed=1), some_weights()
    rounded = [x.bfloat16().float() for x in (c, r)]
    got = relative_preference(*rounded, w.float(), inside=inside)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), relative_preference(*(x.double() for x in rounded), w, inside=inside), rtol=1e-5, atol=1e-5)
    moved = sum((a - b.double()).abs().max() for a, b in zip((c, r), rounded, strict=True))
    assert ((got.double() - relative_preference(c, r, w, inside=inside)).abs() <= moved + 1e-5).all()
