"""Listwise losses: Plackett-Luce against every order written out, ties against two exact sums, missing entries, ragged groups, the number range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.tensors import f64, normal
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, softplus

from palate.losses.listwise import listwise_softmax, log1mexp, padded, plackett_luce, rankable
from palate.losses.pairwise import bradley_terry

NAN = float("nan")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
each_loss = pytest.mark.parametrize("loss", [plackett_luce, listwise_softmax])


def one(n: int) -> Tensor:
    """One group of n responses."""
    return torch.zeros(n, dtype=torch.long)


def ranks_of(shape: Sequence[int]) -> Tensor:
    """Block sizes, best first, as ranks: (1, 2) -> [0, 1, 1]."""
    return torch.repeat_interleave(torch.arange(len(shape)), torch.tensor(shape)).double()


def value_and_slope(loss: Callable[[Tensor], Tensor], rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum."""
    leaf = rewards.detach().clone().requires_grad_()
    values = loss(leaf)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- Plackett-Luce: complete orders ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "value"), [((2.0, 1.0, 0.0), 0.72087), ((2.0, 1.0, -0.5, 0.0), 1.89922), ((1.2, 0.4), 0.37110)])
def test_plackett_luce_by_hand(scores: tuple[float, ...], value: float) -> None:
    """(2,1,0): log(e^2 + e + 1) - 2 = .40761 and log(e + 1) - 1 = .31326, together .72087."""
    n = len(scores)
    assert plackett_luce(torch.tensor(scores), torch.arange(n) + 1.0, one(n)).item() == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_gradient_is_softmax_less_the_placed(k: int) -> None:
    """d/dr_m: the sum over places 0 to min(m, K - 2) of m's softmax among those not yet placed, less 1 unless m is last."""
    r = normal(k)
    wanted = torch.zeros(k, dtype=torch.float64)
    for place in range(k - 1):
        wanted[place:] += torch.softmax(r[place:], 0)
        wanted[place] -= 1
    places = sum(torch.logsumexp(r[place:], 0) - r[place] for place in range(k - 1)).reshape(1)
    same(value_and_slope(lambda r: plackett_luce(r, torch.arange(k).double(), one(k)), r), (places, wanted))


@pytest.mark.parametrize("ranks", [(1.0, 2.0), (2.0, 1.0)])
def test_two_responses_are_bradley_terry(ranks: tuple[float, float]) -> None:
    r = normal(40, 2)
    better = 0 if ranks[0] < ranks[1] else 1
    groups = torch.arange(40).repeat_interleave(2)
    got = value_and_slope(lambda r: plackett_luce(r.flatten(), f64(*ranks).repeat(40), groups), r)
    same(got, value_and_slope(lambda r: bradley_terry(r[:, better], r[:, 1 - better]), r))


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_probabilities_of_all_orders_sum_to_one(k: int) -> None:
    """Over all K! orders; and the score identity: the sum of P * gradient is 0."""
    orders = torch.tensor(list(permutations(range(k)))).double()
    r, groups = 2 * normal(k), torch.arange(len(orders)).repeat_interleave(k)

    def losses(r: Tensor) -> Tensor:
        return plackett_luce(r.repeat(len(orders)), orders.flatten(), groups)

    probabilities = torch.exp(-losses(r))
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(value_and_slope(lambda r: probabilities * losses(r), r)[1], torch.zeros_like(r), rtol=0.0, atol=1e-12)


ORDERS = [(0, 1, 2, 3), (1, 0, 3, 2), (0, 2, 1, 3), (3, 0, 1), (2, 0, 3), (0, 1, 3, 2), (1, 3, 2, 0)]
STRENGTHS = f64(0.51170942666, 0.43413005227, -0.41483422689, -0.53100525205)  # choix 0.4.1, ilsr_rankings and mm_rankings without a penalty


def test_strengths_of_a_table_of_rankings() -> None:
    """Four items ranked by seven raters, two of whom left one out: the loss at choix's maximum is its log-likelihood, and the gradient vanishes."""
    ranks = torch.full((len(ORDERS), 4), NAN, dtype=torch.float64)
    for row, order in zip(ranks, ORDERS, strict=True):
        row[list(order)] = torch.arange(len(order)).double()
    groups = torch.arange(len(ORDERS)).repeat_interleave(4)
    value, slope = value_and_slope(lambda r: plackett_luce(r.repeat(len(ORDERS)), ranks.flatten(), groups), STRENGTHS)
    assert value.sum().item() == pytest.approx(17.893382118633, abs=1e-9)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0.0, atol=1e-8)


# --- Plackett-Luce: ties --------------------------------------------------------------------------------------------------------------------------


def over_orders(r: Tensor, shape: Sequence[int]) -> Tensor:
    """-log of the sum over every complete order that agrees with blocks of these sizes, best first. [K] -> [1]"""
    starts = [sum(shape[:i]) for i in range(len(shape))]
    inside = [list(permutations(range(start, start + n))) for start, n in zip(starts, shape, strict=True)]
    orders = torch.tensor([sum(blocks, ()) for blocks in product(*inside)])
    placed = r[orders]
    remaining = placed.flip(1).logcumsumexp(1).flip(1)
    return -torch.logsumexp((placed - remaining).sum(1), 0).reshape(1)


def over_subsets(r: Tensor, tied: int) -> Tensor:
    """-log P(the first `tied` all come before the rest), by inclusion and exclusion: sum over subsets S of them, (-1)^|S| * R / (R + S)."""
    strength = r.exp()
    rest = strength[tied:].sum()
    subsets = torch.tensor(list(product((0.0, 1.0), repeat=tied)), dtype=r.dtype)
    return -torch.log(((-1) ** subsets.sum(1) * rest / (rest + subsets @ strength[:tied])).sum()).reshape(1)


@pytest.mark.parametrize(
    ("strengths", "shape", "probability"),
    [
        ((1, 1, 1), (2, 1), 1 / 3),
        ((1, 1, 1, 1), (3, 1), 1 / 4),
        ((1, 1, 1, 1), (2, 2), 1 / 6),
        ((1, 1, 1, 1), (1, 2, 1), 1 / 4 * 1 / 3),
        ((2, 1, 1), (2, 1), 5 / 12),
        ((2, 1, 1), (1, 2), 1 / 2),
    ],
)
def test_ties_by_hand(strengths: tuple[int, ...], shape: tuple[int, ...], probability: float) -> None:
    """Strengths (2, 1, 1), the first two before the last: 2/4 * 1/2 in one order and 1/4 * 2/3 in the other, 5/12 together."""
    r = torch.tensor(strengths, dtype=torch.float64).log()
    assert plackett_luce(r, ranks_of(shape), one(len(r))).exp().item() == pytest.approx(1 / probability, rel=1e-6)


SHAPES = [(2, 1), (3, 1), (4, 1), (2, 2), (2, 3), (3, 3), (4, 2), (1, 2, 1), (2, 2, 1), (1, 3, 2), (2, 1, 2, 1), (6, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lead", [-6.0, 0.0, 6.0])
def test_ties_are_the_sum_over_all_their_orders(shape: tuple[int, ...], lead: float) -> None:
    """Value and gradient to 1e-6 for random rewards, with the tied ones below, among and above the rest."""
    for seed in range(3):
        r = normal(sum(shape), seed=seed)
        r[: shape[0]] += lead
        got = value_and_slope(lambda r: plackett_luce(r, ranks_of(shape), one(len(r))), r)
        same(got, value_and_slope(lambda r: over_orders(r, shape), r), 1e-6)


@pytest.mark.parametrize("tied", [2, 5, 8, 10])
@pytest.mark.parametrize("below", [1, 4])
def test_large_blocks_are_the_sum_over_subsets(tied: int, below: int) -> None:
    r = normal(tied + below, seed=tied)
    r[:tied] += 1.0  # keeps the alternating sum well away from 0
    got = value_and_slope(lambda r: plackett_luce(r, ranks_of((tied, below)), one(len(r))), r)
    same(got, value_and_slope(lambda r: over_subsets(r, tied), r), 1e-6)


@pytest.mark.parametrize(("tied", "below", "lead"), [(8, 8, 0.0), (16, 16, 0.0), (32, 32, 0.0), (63, 1, 0.0), (4, 60, 0.0), (24, 1, -9.0), (64, 4, -4.0)])
def test_blocks_as_large_as_a_batch_of_samples(tied: int, below: int, lead: float) -> None:
    """Right and wrong samples of one prompt, equal rewards within each: the last of k still tied goes next with k s / (k s + R), so P is the product of
    these over k = 1 to the number tied; with lead 0, 1 / C(tied + below, tied)."""
    two, at = f64(lead, 0.0), torch.repeat_interleave(torch.arange(2), torch.tensor([tied, below]))

    def literal(two: Tensor) -> Tensor:
        strength = torch.arange(1, tied + 1).double() * two[0].exp()
        return torch.log1p(below * two[1].exp() / strength).sum().reshape(1)

    got = value_and_slope(lambda two: plackett_luce(two[at], ranks_of((tied, below)), one(len(at))), two)
    same(got, value_and_slope(literal, two), 1e-6)
    if lead == 0.0:
        assert got[0].item() == pytest.approx(math.log(math.comb(tied + below, tied)), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ties_in_float32(shape: tuple[int, ...]) -> None:
    """Float32 keeps about six digits of the value and five of the gradient."""
    for seed in range(3):
        r = normal(sum(shape), seed=seed)
        value, slope = value_and_slope(lambda r: plackett_luce(r, ranks_of(shape).float(), one(len(r))), r.float())
        wanted_value, wanted_slope = value_and_slope(lambda r: over_orders(r, shape), r)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted_value, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(slope.double(), wanted_slope, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 2), (1, 2, 1), (2, 1, 2), (3, 2)], ids=str)
def test_probabilities_of_all_tied_rankings_sum_to_one(shape: tuple[int, ...]) -> None:
    """Over every way to deal the responses into blocks of these sizes."""
    deals = torch.tensor(sorted(set(permutations(ranks_of(shape).tolist()))), dtype=torch.float64)
    assert len(deals) == math.factorial(sum(shape)) / math.prod(map(math.factorial, shape))
    r = normal(sum(shape), seed=1)
    losses = plackett_luce(r.repeat(len(deals)), deals.flatten(), torch.arange(len(deals)).repeat_interleave(len(r)))
    assert torch.exp(-losses).sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_tie_adds_up_its_orders() -> None:
    """P({a, b} > c) = P(a > b > c) + P(b > a > c), each from the loss itself."""
    r = normal(3, seed=5)
    rankings = f64(1, 1, 2, 1, 2, 3, 2, 1, 3)
    tie, ab, ba = torch.exp(-plackett_luce(r.repeat(3), rankings, torch.arange(3).repeat_interleave(3)))
    assert tie.item() == pytest.approx((ab + ba).item(), abs=1e-6)


def test_best_k_of_a_list() -> None:
    """[1, 2, 3, 3, 3]: the two places that were won, and nothing about the last three."""
    got = value_and_slope(lambda r: plackett_luce(r, f64(1, 2, 3, 3, 3), one(5)), r := normal(5))
    same(got, value_and_slope(lambda r: (torch.logsumexp(r, 0) - r[0] + torch.logsumexp(r[1:], 0) - r[1]).reshape(1), r))


# --- Plackett-Luce: what does not count -----------------------------------------------------------------------------------------------------------


def test_only_the_order_of_ranks_counts() -> None:
    r = normal(5)
    got = plackett_luce(r, f64(1, 2, 2, 3, 4), one(5))
    torch.testing.assert_close(plackett_luce(r, f64(-7, 0.5, 0.5, 10, 1000), one(5)), got, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("ranks", [(3, 1, 2, 4), (1, 2, 2, 3), (2, 1, 2, 1), (1, 1, 1, 2), (NAN, 2, 1, 2)])
def test_where_a_response_stands_does_not_count(ranks: tuple[float, ...]) -> None:
    r, ranking = normal(4), f64(*ranks)
    value, slope = value_and_slope(lambda r: plackett_luce(r, ranking, one(4)), r)
    for order in permutations(range(4)):
        at = torch.tensor(order)
        same(value_and_slope(lambda r, at=at: plackett_luce(r, ranking[at], one(4)), r[at]), (value, slope[at]), 1e-9)


@pytest.mark.parametrize("ranks", [(1, 2, 3), (1, 1, 2), (1, 1, 2, 2, 3), (1,), (1, 1)])
@pytest.mark.parametrize("at", [0, 1, -1])
@each_loss
def test_unranked_is_left_out(loss: Loss, ranks: tuple[int, ...], at: int) -> None:
    """A response without a rank, wherever it stands, changes neither loss nor gradient of the others and gets exactly none."""
    r, ranking = normal(len(ranks)), f64(*ranks)
    where = at % (len(ranks) + 1)
    more = torch.cat([r[:where], f64(50.0), r[where:]])
    value, slope = value_and_slope(lambda x: loss(x, torch.cat([ranking[:where], f64(NAN), ranking[where:]]), one(len(x))), more)
    same((value, torch.cat([slope[:where], slope[where + 1 :]])), value_and_slope(lambda x: loss(x, ranking, one(len(x))), r))
    assert slope[where].item() == 0.0


@pytest.mark.parametrize("ranks", [(1, 1, 1), (4,), (NAN,), (NAN, NAN), (NAN, 2), (2, NAN, 2)])
def test_a_group_that_says_nothing_costs_nothing(ranks: tuple[float, ...]) -> None:
    """Alone and beside a group that says something, which is left as it is."""
    r, ranking = normal(len(ranks)), f64(*ranks)
    value, slope = value_and_slope(lambda r: plackett_luce(r, ranking, one(len(r))), r)
    assert value.tolist() == [0.0] and (slope == 0).all()
    assert rankable(ranking, one(len(r))).tolist() == [False]
    both = torch.cat([one(len(r)), one(3) + 1])
    value, slope = value_and_slope(lambda x: plackett_luce(x, torch.cat([ranking, f64(1, 1, 2)]), both), torch.cat([r, f64(0.3, -1.0, 2.0)]))
    alone = value_and_slope(lambda x: plackett_luce(x, f64(1, 1, 2), one(3)), f64(0.3, -1.0, 2.0))
    same((value[1:], slope[len(r) :]), alone)
    assert value[0].item() == 0.0 and (slope[: len(r)] == 0).all()


def test_which_groups_say_something() -> None:
    ranks = f64(1, 2, 3, 3, NAN, 1, NAN, NAN, 2, NAN, 1)
    groups = torch.tensor([0, 0, 5, 5, 5, 2, 2, 9, 7, 7, 7])
    assert rankable(ranks, groups).tolist() == [True, False, False, False, True]


def test_padded_by_hand() -> None:
    table = padded(f64(1, 2, 3, 4, 5, 6), torch.tensor([4, 4, 4, 1, 9, 9]), fill=0.0)
    assert table.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]


# --- both: groups, shifts, derivatives ------------------------------------------------------------------------------------------------------------

ENTRIES = st.tuples(st.floats(-20, 20), st.sampled_from([1.0, 2.0, 2.5, 3.0, NAN]))
GROUPS = st.lists(st.lists(ENTRIES, min_size=1, max_size=6), min_size=1, max_size=5)


@each_loss
@settings(max_examples=60, deadline=None, derandomize=True)
@given(GROUPS)
def test_ragged_groups_are_computed_as_if_alone(loss: Loss, lists: list[list[tuple[float, float]]]) -> None:
    """Also: nothing is negative, and the gradient of each group sums to 0 (only differences count)."""
    rewards, scores = (f64(*(entry[i] for group in lists for entry in group)) for i in (0, 1))
    groups = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([len(group) for group in lists]))
    value, slope = value_and_slope(lambda r: loss(r, scores, groups), rewards)
    assert value.shape == (len(lists),) and (value >= -1e-8).all() and slope.isfinite().all()
    alone = [value_and_slope(lambda r, n=n: loss(r, scores[groups == n], one(len(r))), rewards[groups == n]) for n in range(len(lists))]
    same((value, slope), (torch.cat([v for v, _ in alone]), torch.cat([s for _, s in alone])))
    assert all(s.sum().abs() < 1e-6 for _, s in alone)


@each_loss
@pytest.mark.parametrize("scores", [(1, 2, 3, 4), (1, 1, 2, 3), (2, 2, 1, NAN)])
def test_only_differences_count(loss: Loss, scores: tuple[float, ...]) -> None:
    """A shift per group changes nothing."""
    r, groups = normal(3, 4), torch.arange(3).repeat_interleave(4)
    got = loss((r + f64(-40.0, 0.5, 7.0)[:, None]).flatten(), f64(*scores).repeat(3), groups)
    torch.testing.assert_close(got, loss(r.flatten(), f64(*scores).repeat(3), groups), rtol=1e-10, atol=1e-10)


@each_loss
@pytest.mark.parametrize("scores", [(1, 2, 3, 4, 5), (1, 1, 2, 3, 3), (2, 2, 2, 1, NAN), (1, 1, 1, 1, 2), (NAN, 3, NAN, 3, 4)])
def test_derivatives_are_those_of_finite_differences(loss: Loss, scores: tuple[float, ...]) -> None:
    assert gradcheck(lambda r: loss(r, f64(*scores), one(5)), normal(5, seed=3).requires_grad_())


def test_log1mexp_over_the_whole_range() -> None:
    """log(1 - e^-x) at log x: log x far left, 0 far right; slope x / (e^x - 1)."""
    log_x = f64(-1e4, -40.0, -16.0, -14.0, -3.0, 0.0, 2.0, 4.0, 5.0, 50.0, 1e4)
    value, slope = value_and_slope(log1mexp, log_x)
    x = log_x.clamp(max=6.0).exp()
    torch.testing.assert_close(value, torch.where(log_x < -40.0, log_x, torch.log(-torch.expm1(-x))), rtol=0.0, atol=2e-7)
    torch.testing.assert_close(slope, torch.where(log_x < -40.0, 1.0, x / torch.expm1(x)), rtol=0.0, atol=2e-7)


# --- softmax on ratings ---------------------------------------------------------------------------------------------------------------------------


def test_listwise_softmax_by_hand() -> None:
    """Ratings (log 3, 0): target (3/4, 1/4). Rewards (0, 0): log 2. Rewards (log 3, 0): -3/4 log 3/4 - 1/4 log 1/4 = .56234, the least."""
    ratings = f64(math.log(3.0), 0.0)
    value, slope = value_and_slope(lambda r: listwise_softmax(r, ratings, one(2)), f64(0.0, 0.0))
    assert value.item() == pytest.approx(math.log(2.0)) and slope.tolist() == pytest.approx([-0.25, 0.25])
    value, slope = value_and_slope(lambda r: listwise_softmax(r, ratings, one(2)), ratings)
    assert value.item() == pytest.approx(0.56234, abs=5e-6) and slope.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_listwise_softmax_is_cross_entropy_of_soft_targets(temperature: float) -> None:
    """Against PyTorch's own; the gradient is softmax(rewards) - target; no rewards cost less than the target's entropy."""
    r, ratings = normal(6, 5), normal(6, 5, seed=1)
    target = torch.softmax(ratings / temperature, 1)
    groups = torch.arange(6).repeat_interleave(5)
    got = value_and_slope(lambda r: listwise_softmax(r.flatten(), ratings.flatten(), groups, temperature=temperature), r)
    same(got, (cross_entropy(r, target, reduction="none"), torch.softmax(r, 1) - target))
    entropy = -(target * target.log()).sum(1)
    assert (got[0] >= entropy).all()
    best = listwise_softmax((ratings / temperature).flatten(), ratings.flatten(), groups, temperature=temperature)
    torch.testing.assert_close(best, entropy)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softmax_of_two_is_bradley_terry_of_a_soft_label(temperature: float) -> None:
    """With P = sigmoid((rating a - rating b) / temperature)."""
    r, ratings = normal(30, 2), normal(30, 2, seed=1)
    p = torch.sigmoid((ratings[:, 0] - ratings[:, 1]) / temperature)
    groups = torch.arange(30).repeat_interleave(2)
    got = value_and_slope(lambda r: listwise_softmax(r.flatten(), ratings.flatten(), groups, temperature=temperature), r)
    same(got, value_and_slope(lambda r: bradley_terry(r[:, 0], r[:, 1], probability=p), r))


def test_limits_of_the_temperature() -> None:
    """Towards 0 the best rating takes all, which is the first place of Plackett-Luce; towards infinity every response counts the same."""
    r, ratings = normal(4), f64(2.0, 5.0, 1.0, 4.0)
    cold = value_and_slope(lambda r: listwise_softmax(r, ratings, one(4), temperature=1e-3), r)
    same(cold, value_and_slope(lambda r: plackett_luce(r, f64(2, 1, 2, 2), one(4)), r))
    hot = listwise_softmax(r, ratings, one(4), temperature=1e9)
    torch.testing.assert_close(hot, (torch.logsumexp(r, 0) - r.mean()).reshape(1), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("ratings", [(3,), (NAN,), (NAN, NAN), (NAN, 2, NAN)])
def test_fewer_than_two_ratings_cost_nothing(ratings: tuple[float, ...]) -> None:
    value, slope = value_and_slope(lambda r: listwise_softmax(r, f64(*ratings), one(len(r))), normal(len(ratings)))
    assert value.tolist() == [0.0] and (slope == 0).all()


# --- number range ---------------------------------------------------------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize(
    "scores", [(1, 2, 3, 4), (4, 3, 2, 1), (1, 1, 2, 3), (1, 1, 1, 2), (2, 1, 1, 1), (2, 2, 1, 1), (2, 2, 3, 1), (3, NAN, 1, 1), (1, 1, 2, NAN)]
)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_finite_at_huge_differences(loss: Loss, scores: tuple[float, ...], scale: float) -> None:
    r = scale * torch.tensor([1.0, 0.5, 0.0, -1.0])
    value, slope = value_and_slope(lambda r: loss(r, torch.tensor(scores, dtype=torch.float32), one(4)), r)
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize(
    ("rewards", "ranks", "value"),
    [
        ((1e4, 0.0), (1, 2), 0.0),
        ((-1e4, 0.0), (1, 2), 1e4),
        ((-1e4, -1e4, 1e4), (1, 1, 2), 4e4),
        ((1e4, 1e4, -1e4), (1, 1, 2), 0.0),
        ((1e4, -1e4, 0.0), (1, 1, 2), 1e4),
        ((-1e4, 0.0, 1e4), (1, 2, 3), 3e4),
    ],
)
def test_huge_differences_cost_what_they_should(rewards: tuple[float, ...], ranks: tuple[int, ...], value: float) -> None:
    """Each response that was placed above a better one pays the difference; log 2! and the like vanish beside it."""
    got = plackett_luce(torch.tensor(rewards), torch.tensor(ranks, dtype=torch.float32), one(len(ranks)))
    assert got.item() == pytest.approx(value, rel=1e-4, abs=1e-6)


@each_loss
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 2), (1, 3, 1), (4, 1)], ids=str)
def test_bfloat16_rewards(loss: Loss, shape: tuple[int, ...]) -> None:
    """Rounded to bfloat16 and read as float32: as float64 has it, and moved by at most 1 per reward and place times the rounding."""
    r, groups = 3 * normal(20, 5), torch.arange(20).repeat_interleave(5)
    scores = ranks_of(shape).repeat(20)
    rounded = r.bfloat16().float()
    value, slope = value_and_slope(lambda r: loss(r.flatten(), scores.float(), groups), rounded)
    assert value.dtype == torch.float32 and slope.isfinite().all()
    torch.testing.assert_close(value.double(), loss(rounded.double().flatten(), scores, groups), rtol=1e-5, atol=1e-5)
    steepest = sum(shape[:-1])  # a reward's slope lies between -1 and the number of places that were won
    moved = (rounded.double() - r).abs().sum(1)
    assert ((value.double() - loss(r.flatten(), scores, groups)).abs() <= max(steepest, 1) * moved + 1e-4).all()


def test_plackett_luce_of_two_is_softplus() -> None:
    r = normal(2)
    torch.testing.assert_close(plackett_luce(r, f64(1, 2), one(2)), softplus(r[1] - r[0]).reshape(1))
