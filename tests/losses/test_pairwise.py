"""Pairwise losses by hand, against closed forms and other libraries, in their limits and at the edge of the number range."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.losses.tensors import f64, normal, slopes
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, softplus

from palate.losses.pairwise import (
    LINKS,
    TIES,
    bradley_terry,
    davidson_log_probabilities,
    expected,
    focal,
    hinge,
    log_barrier,
    logistic,
    rao_kupper_log_probabilities,
    raw_tie_threshold,
    squared,
    tied,
)

LOG_2 = math.log(2.0)
ALL_LINKS = {"logistic": logistic, "hinge": hinge, "squared": squared, "focal": focal, "focal_half": partial(focal, gamma=0.5)}
LABELS = {
    "plain": {},
    "soft": {"probability": 0.7},
    "tie": {"probability": 0.5},
    "smoothed": {"label_smoothing": 0.1},
    "soft_smoothed": {"probability": 0.7, "label_smoothing": 0.2},
    "unbiased": {"label_smoothing": 0.1, "unbiased": True},
    "soft_unbiased": {"probability": 0.9, "label_smoothing": 0.2, "unbiased": True},
}
GRID = torch.linspace(-6.1, 6.1, 24, dtype=torch.float64)  # no point at 0 or 1, where focal and hinge have kinks
each_link = pytest.mark.parametrize("link", list(ALL_LINKS.values()), ids=list(ALL_LINKS))
each_label = pytest.mark.parametrize("label", list(LABELS.values()), ids=list(LABELS))
each_kind = pytest.mark.parametrize("kind", list(TIES))


def options(label: dict, like: Tensor) -> dict:
    """A label's keyword arguments, its probability as a tensor."""
    return {key: torch.full_like(like, value) if key == "probability" else value for key, value in label.items()}


# --- links ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "x", "value", "slope"),
    [
        (logistic, 0.8, 0.37110, -0.31003),
        (logistic, -0.8, 1.17110, -0.68997),
        (hinge, 0.4, 0.6, -1.0),
        (hinge, 1.5, 0.0, 0.0),
        (hinge, -2.0, 3.0, -1.0),
        (squared, 0.4, 0.36, -1.2),
        (squared, 3.0, 4.0, 4.0),
        (focal, 1.0, 0.09063, -0.21032),
        (focal, -1.0, 1.31326, -0.73106),
    ],
)
def test_links_by_hand(link: Callable[[Tensor], Tensor], x: float, value: float, slope: float) -> None:
    """Focal at 1: P = .73106, q = 1 - P = .26894, (2q)^2 = .28932; value .28932 * .31326, slope -.28932 * (2 * .73106 * .31326 + .26894)."""
    assert link(f64(x)).item() == pytest.approx(value, abs=1e-5)
    assert slopes(link, f64(x))[0].item() == pytest.approx(slope, abs=1e-5)


def focal_slope(x: Tensor, gamma: float) -> Tensor:
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    return torch.where(x > 0, -((2 * q) ** gamma) * (gamma * p * -torch.log(p) + q), -q)


@pytest.mark.parametrize(
    ("link", "slope"),
    [
        (logistic, lambda x: -torch.sigmoid(-x)),
        (hinge, lambda x: -(x < 1).double()),
        (squared, lambda x: 2 * (x - 1)),
        (focal, partial(focal_slope, gamma=2.0)),
        (partial(focal, gamma=0.5), partial(focal_slope, gamma=0.5)),
    ],
    ids=list(ALL_LINKS),
)
def test_slopes_are_the_closed_forms(link: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(slopes(link, GRID)[0], slope(GRID))
    assert gradcheck(link, GRID.clone().requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_its_formula(gamma: float) -> None:
    """(1 - 2 max(0, P - 1/2))^gamma * -log P, literally; a pair in the wrong order costs what it costs without."""
    p = torch.sigmoid(GRID)
    torch.testing.assert_close(focal(GRID, gamma), (1 - 2 * (p - 0.5).clamp(min=0)) ** gamma * -torch.log(p))
    wrong = GRID[GRID < 0]
    torch.testing.assert_close(focal(wrong, gamma), logistic(wrong), rtol=1e-14, atol=0.0)


def test_focal_of_gamma_zero_is_bradley_terry() -> None:
    torch.testing.assert_close(focal(GRID, 0.0), logistic(GRID), rtol=0.0, atol=0.0)
    torch.testing.assert_close(slopes(partial(focal, gamma=0.0), GRID)[0], slopes(logistic, GRID)[0])


def test_focal_keeps_its_precision_where_p_rounds_to_one() -> None:
    """At 20: (2 e^-20)^2 * e^-20 = 4 e^-60, although P = 1 in float32."""
    x = torch.tensor([20.0])
    assert torch.sigmoid(x).item() == 1.0
    assert focal(x).item() == pytest.approx(4 * math.exp(-60), rel=1e-4)


def test_table_of_links() -> None:
    assert {"bradley_terry": logistic, "scaled_bradley_terry": logistic, "hinge": hinge, "squared": squared, "focal": focal} == LINKS


# --- Bradley-Terry --------------------------------------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    """r = (1.2, 0.4): difference 0.8, sigmoid 0.6900, loss 0.3711, gradient -/+ 0.3100."""
    chosen, rejected = torch.tensor([1.2]), torch.tensor([0.4])
    assert bradley_terry(chosen, rejected).item() == pytest.approx(0.3711, abs=5e-5)
    up, down = slopes(bradley_terry, chosen, rejected)
    assert up.item() == pytest.approx(-0.3100, abs=5e-5) and down.item() == pytest.approx(0.3100, abs=5e-5)


def test_equal_rewards_cost_log_2() -> None:
    rewards = torch.tensor([-7.0, 0.0, 3.5])
    torch.testing.assert_close(bradley_terry(rewards, rewards), torch.full((3,), LOG_2))
    torch.testing.assert_close(slopes(bradley_terry, rewards, rewards)[0], torch.full((3,), -0.5))


def test_scores_of_a_list_as_all_pairs() -> None:
    """(2,1,0): mean of log(1 + e^-1), log(1 + e^-2), log(1 + e^-1) = .25115; (2,1,-.5,0) in that order: .33464."""
    for scores, mean in [((2.0, 1.0, 0.0), 0.25115), ((2.0, 1.0, -0.5, 0.0), 0.33464)]:
        r = torch.tensor(scores)
        better, worse = torch.triu_indices(len(r), len(r), 1)
        assert bradley_terry(r[better], r[worse]).mean().item() == pytest.approx(mean, abs=5e-6)


def test_margins_by_hand() -> None:
    """rc = [1,2,3], rr = 0, margins [0,1,2]: every difference less its margin is 1, loss 0.31326 (a broadcast to [3,3] gives 0.43798)."""
    loss = bradley_terry(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), margin=torch.tensor([0.0, 1.0, 2.0]))
    assert loss.shape == (3,) and loss.mean().item() == pytest.approx(0.31326, abs=1e-5)


@each_link
def test_a_margin_shifts_the_difference(link: Callable[[Tensor], Tensor]) -> None:
    c, r, m = normal(20), normal(20, seed=1), normal(20, seed=2).abs()
    torch.testing.assert_close(bradley_terry(c, r, margin=m, link=link), link(c - r - m))
    torch.testing.assert_close(bradley_terry(c, r, margin=torch.zeros_like(m), link=link), bradley_terry(c, r, link=link), rtol=0.0, atol=0.0)


def test_plain_labels_are_two_way_cross_entropy() -> None:
    c, r = normal(50), normal(50, seed=1)
    wanted = cross_entropy(torch.stack([c, r], 1), torch.zeros(50, dtype=torch.long), reduction="none")
    torch.testing.assert_close(bradley_terry(c, r), wanted)
    torch.testing.assert_close(bradley_terry(c, r), binary_cross_entropy_with_logits(c - r, torch.ones_like(c), reduction="none"))


@pytest.mark.parametrize("e", [0.0, 0.1, 0.4])
def test_soft_labels_and_smoothing_are_binary_cross_entropy(e: float) -> None:
    c, r, m, p = normal(50), normal(50, seed=1), normal(50, seed=2).abs(), torch.sigmoid(normal(50, seed=3))
    wanted = binary_cross_entropy_with_logits(c - r - m, (1 - e) * p + e * (1 - p), reduction="none")
    torch.testing.assert_close(bradley_terry(c, r, margin=m, probability=p, label_smoothing=e), wanted)


@each_link
@each_label
def test_only_differences_count(link: Callable[[Tensor], Tensor], label: dict) -> None:
    """A shift per comparison changes no loss, and the gradients of the two sides are opposite."""
    c, r, shift = normal(30), normal(30, seed=1), 5 * normal(30, seed=2)
    loss = partial(bradley_terry, link=link, **options(label, c))
    torch.testing.assert_close(loss(c + shift, r + shift), loss(c, r), rtol=1e-12, atol=1e-12)
    up, down = slopes(loss, c, r)
    torch.testing.assert_close(up, -down, rtol=0.0, atol=0.0)


def test_gradient_vanishes_at_the_fit_of_scikit_learn() -> None:
    """Linear rewards w.x, C = 1: scikit-learn's w minimises w.w / 2 + the sum of losses, so the losses' gradient there is -w."""
    features = normal(200, 2, 3)
    better = torch.rand(200, generator=torch.Generator().manual_seed(4)) < torch.sigmoid((features[:, 0] - features[:, 1]) @ f64(1.0, -2.0, 0.5))
    difference = (features[:, 0] - features[:, 1]).numpy()
    fit = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=1000).fit(difference, better.numpy())
    chosen, rejected = torch.where(better[:, None], features[:, 0], features[:, 1]), torch.where(better[:, None], features[:, 1], features[:, 0])
    w = torch.from_numpy(np.asarray(fit.coef_[0], dtype=np.float64))
    torch.testing.assert_close(slopes(lambda w: bradley_terry(chosen @ w, rejected @ w), w)[0], -w, rtol=0.0, atol=1e-5)


WINS = [[0, 5, 6, 3], [2, 0, 4, 0], [1, 3, 0, 4], [2, 0, 2, 0]]  # WINS[i][j]: how often i beat j
STRENGTHS = f64(0.7875662403, -0.0690717862, -0.3065845596, -0.4119098944)  # choix 0.4.1, ilsr_pairwise and mm_pairwise without a penalty


def test_strengths_of_a_table_of_wins() -> None:
    """The gradient vanishes at choix's maximum of the likelihood, and there Hunter's minorise-maximise iteration stands still too."""
    wins = torch.tensor(WINS, dtype=torch.float64)
    gradient = slopes(lambda r: wins * bradley_terry(r[:, None], r[None, :]), STRENGTHS)[0]
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64), rtol=0.0, atol=1e-8)
    power = STRENGTHS.exp()
    torch.testing.assert_close(wins.sum(1) / ((wins + wins.T) / (power[:, None] + power[None, :])).sum(1), power)


# --- labels ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "p"), [({}, 1.0), (LABELS["soft"], 0.7), ({"probability": 0.75, "label_smoothing": 0.1}, 0.7)])
@each_link
def test_labels_by_hand(link: Callable[[Tensor], Tensor], label: dict, p: float) -> None:
    """p f(x) + (1 - p) f(-x); smoothing .75 by .1: .9 * .75 + .1 * .25 = .7."""
    torch.testing.assert_close(expected(link, GRID, **options(label, GRID)), p * link(GRID) + (1 - p) * link(-GRID))


def test_unbiased_label_by_hand() -> None:
    """p = .75, e = .1: (.75 - .1) / .8 = .8125. A plain pair: .9 / .8 = 1.125, the other side -.125."""
    torch.testing.assert_close(
        expected(logistic, GRID, probability=f64(0.75), label_smoothing=0.1, unbiased=True), 0.8125 * logistic(GRID) + 0.1875 * logistic(-GRID)
    )
    torch.testing.assert_close(expected(logistic, GRID, label_smoothing=0.1, unbiased=True), 1.125 * logistic(GRID) - 0.125 * logistic(-GRID))


@each_link
@pytest.mark.parametrize("unbiased", [False, True])
def test_without_doubt_it_is_the_link(link: Callable[[Tensor], Tensor], unbiased: bool) -> None:
    ones = torch.ones_like(GRID)
    torch.testing.assert_close(expected(link, GRID, label_smoothing=0.0, unbiased=unbiased), link(GRID), rtol=0.0, atol=0.0)
    torch.testing.assert_close(expected(link, GRID, probability=ones, unbiased=unbiased), link(GRID), rtol=0.0, atol=0.0)
    torch.testing.assert_close(slopes(lambda x: expected(link, x, probability=ones), GRID)[0], slopes(link, GRID)[0])


@pytest.mark.parametrize(("e", "optimum"), [(0.1, 2.197), (0.2, 1.386), (0.4, 0.405)])
def test_smoothing_has_its_minimum_at_the_log_odds(e: float, optimum: float) -> None:
    """log((1 - e) / e); the slope anywhere is sigmoid(x) - (1 - e)."""
    best = math.log((1 - e) / e)
    assert best == pytest.approx(optimum, abs=1e-3)
    smoothed = partial(expected, logistic, label_smoothing=e)
    assert slopes(smoothed, f64(best))[0].item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(slopes(smoothed, GRID)[0], torch.sigmoid(GRID) - (1 - e))
    assert (smoothed(GRID) >= smoothed(f64(best))).all()


@each_link
@pytest.mark.parametrize("e", [0.05, 0.2, 0.45])
@pytest.mark.parametrize("p", [1.0, 0.7])
def test_unbiased_means_the_clean_loss_over_flips(link: Callable[[Tensor], Tensor], e: float, p: float) -> None:
    """With chance e the label's p is seen as 1 - p: the mean over both is the loss of the clean label, and so is the mean gradient."""

    def seen(x: Tensor, probability: float) -> Tensor:
        return expected(link, x, probability=torch.full_like(x, probability), label_smoothing=e, unbiased=True)

    def mean(x: Tensor) -> Tensor:
        return (1 - e) * seen(x, p) + e * seen(x, 1 - p)

    def clean(x: Tensor) -> Tensor:
        return p * link(x) + (1 - p) * link(-x)

    torch.testing.assert_close(mean(GRID), clean(GRID), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes(mean, GRID)[0], slopes(clean, GRID)[0], rtol=1e-10, atol=1e-10)


def test_unbiased_has_no_lower_bound() -> None:
    """Far right the slope is -e / (1 - 2e): e = .1 gives -.125, at 1000 a loss of -125."""
    unbiased = partial(expected, logistic, label_smoothing=0.1, unbiased=True)
    assert unbiased(f64(1000.0)).item() == pytest.approx(-125.0)
    assert slopes(unbiased, f64(1000.0))[0].item() == pytest.approx(-0.125)


# --- ties -----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "strengths", "parameter", "values"),
    [(rao_kupper_log_probabilities, (2, 1), 2.0, (0.5, 0.2, 0.3)), (davidson_log_probabilities, (4, 1), 1.0, (4 / 7, 1 / 7, 2 / 7))],
    ids=["rao_kupper", "davidson"],
)
def test_ties_by_hand(probabilities: Callable, strengths: tuple[int, int], parameter: float, values: tuple[float, ...]) -> None:
    """Rao-Kupper, strengths 2 and 1, theta 2: 2 / (2 + 2), 1 / (1 + 4), 3 * 2 / (4 * 5). Davidson, 4 and 1, nu 1: 4, 1 and sqrt(4) of 7."""
    log_p = probabilities(f64(math.log(strengths[0] / strengths[1])), f64(math.log(parameter))[0])
    assert [x.exp().item() for x in log_p] == pytest.approx(values, abs=1e-12)


def odds(kind: str, a: Tensor, b: Tensor, parameter: float) -> tuple[Tensor, Tensor, Tensor]:
    """The models as their papers print them, on strengths a and b."""
    if kind == "rao_kupper":
        return a / (a + parameter * b), b / (b + parameter * a), (parameter**2 - 1) * a * b / ((a + parameter * b) * (b + parameter * a))
    total = a + b + parameter * (a * b).sqrt()
    return a / total, b / total, parameter * (a * b).sqrt() / total


@each_kind
@pytest.mark.parametrize("parameter", [1.01, 1.5, 5.0, 40.0])
def test_ties_are_the_printed_models(kind: str, parameter: float) -> None:
    """Also: the three probabilities sum to 1, and swapping the sides swaps win and loss."""
    h = f64(math.log(parameter))[0]
    log_p = TIES[kind](GRID, h)
    for got, wanted in zip(log_p, odds(kind, GRID.exp(), torch.ones_like(GRID), parameter), strict=True):
        torch.testing.assert_close(got.exp(), wanted)
    torch.testing.assert_close(torch.stack(log_p).exp().sum(0), torch.ones_like(GRID))
    win, loss, tie = TIES[kind](-GRID, h)
    for got, wanted in zip((loss, win, tie), log_p, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("kind", "parameter", "tie"), [("davidson", 0.5, 0.2), ("davidson", 2.0, 0.5), ("rao_kupper", 1.5, 0.2), ("rao_kupper", 3.0, 0.5)])
def test_chance_of_a_tie_at_equal_rewards(kind: str, parameter: float, tie: float) -> None:
    """Davidson nu / (2 + nu); Rao-Kupper (theta - 1) / (theta + 1); it is greatest there."""
    h = f64(math.log(parameter))[0]
    assert TIES[kind](f64(0.0), h)[2].exp().item() == pytest.approx(tie)
    assert (TIES[kind](GRID, h)[2].exp() < tie).all()


@each_kind
def test_gradients_of_the_tie_models(kind: str) -> None:
    """Against finite differences, and the score identity: sum of P * d log P = 0 in the difference and in the threshold."""
    h = f64(0.4)[0]
    assert gradcheck(lambda d, h: torch.stack(TIES[kind](d, h)), (GRID.clone().requires_grad_(), h.clone().requires_grad_()))
    weights = torch.stack(TIES[kind](GRID, h)).exp()
    for slope in slopes(lambda d, h: weights * torch.stack(TIES[kind](d, h)), GRID, h):
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0.0, atol=1e-12)


def test_slopes_of_the_tie_models() -> None:
    """Rao-Kupper: d log P(win) = P(not win). Davidson: d log P(win) = (1 - P(win) + P(loss)) / 2, d log P(tie) = (P(loss) - P(win)) / 2."""
    h = f64(0.7)[0]
    win, loss, _ = (x.exp() for x in rao_kupper_log_probabilities(GRID, h))
    torch.testing.assert_close(slopes(lambda d: rao_kupper_log_probabilities(d, h)[0], GRID)[0], 1 - win)
    torch.testing.assert_close(slopes(lambda d: rao_kupper_log_probabilities(d, h)[2], GRID)[0], loss - win)
    win, loss, _ = (x.exp() for x in davidson_log_probabilities(GRID, h))
    torch.testing.assert_close(slopes(lambda d: davidson_log_probabilities(d, h)[0], GRID)[0], (1 - win + loss) / 2)
    torch.testing.assert_close(slopes(lambda d: davidson_log_probabilities(d, h)[2], GRID)[0], (loss - win) / 2)


@each_kind
def test_without_ties_it_is_bradley_terry(kind: str) -> None:
    """theta -> 1 and nu -> 0: the wins are Bradley-Terry's, values and gradients, and nothing ties."""
    raw = f64(-20.0)[0]
    chosen, rejected, ones = GRID, torch.zeros_like(GRID), torch.ones_like(GRID)
    torch.testing.assert_close(tied(kind, chosen, rejected, raw, probability=ones), bradley_terry(chosen, rejected), rtol=0.0, atol=1e-8)
    got = slopes(lambda c, r: tied(kind, c, r, raw, probability=ones), chosen, rejected)
    for a, b in zip(got, slopes(bradley_terry, chosen, rejected), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-8)
    assert (tied(kind, chosen, rejected, raw, probability=0.5 * ones) > 19).all()


def test_breaking_ties_at_random_shrinks_bradley_terry() -> None:
    """theta = 5, ties broken by a coin: P = P(win) + P(tie) / 2. The fit logit(P) falls short by at most log((1 + 25) / 10) = .9555 and has slope
    4 * 5 / 6^2 = .5556 at 0."""
    h = f64(math.log(5.0))[0]

    def fitted(d: Tensor) -> Tensor:
        win, loss, tie = (x.exp() for x in rao_kupper_log_probabilities(d, h))
        return torch.log(win + tie / 2) - torch.log(loss + tie / 2)

    d = torch.linspace(0.0, 25.0, 200, dtype=torch.float64)
    short = d - fitted(d)
    assert (short.diff() > -1e-9).all() and short[-1].item() == pytest.approx(math.log(2.6), abs=1e-6) == pytest.approx(0.9555, abs=5e-5)
    assert slopes(fitted, f64(0.0))[0].item() == pytest.approx(0.5556, abs=5e-5)


@each_kind
def test_what_a_comparison_says_chooses_its_term(kind: str) -> None:
    """1 is a win, 0 a loss, 0.5 a tie, 0.7 a win with weight .7 and a loss with .3."""
    d, raw = f64(0.3, 0.3, 0.3, 0.3), f64(0.2)[0]
    win, loss, tie = (x[0] for x in TIES[kind](d, softplus(raw) if kind == "rao_kupper" else raw))
    got = tied(kind, d, torch.zeros_like(d), raw, probability=f64(1.0, 0.0, 0.5, 0.7))
    torch.testing.assert_close(got, -torch.stack([win, loss, tie, 0.7 * win + 0.3 * loss]))


@pytest.mark.parametrize(("kind", "best"), [("rao_kupper", 1.5), ("davidson", 0.5)])
def test_threshold_of_twenty_ties_in_a_hundred(kind: str, best: float) -> None:
    """Equal rewards, t = 20 of 100 tied: theta = (1 + t) / (1 - t) = 1.5, nu = 2t / (1 - t) = .5; there the gradient vanishes, elsewhere it points there."""
    probability = torch.tensor([0.5] * 20 + [1.0] * 40 + [0.0] * 40, dtype=torch.float64)
    zeros = torch.zeros_like(probability)

    def slope(value: float) -> float:
        return slopes(lambda raw: tied(kind, zeros, zeros, raw, probability=probability), f64(raw_tie_threshold(kind, value))[0])[0].item()

    assert slope(best) == pytest.approx(0.0, abs=1e-10)
    assert slope(best * 0.9) < 0 < slope(best * 1.1)


@pytest.mark.parametrize("value", [1.001, 1.2, 2.0, 5.0, 1000.0])
def test_raw_thresholds_are_read_back(value: float) -> None:
    assert softplus(f64(raw_tie_threshold("rao_kupper", value))).exp().item() == pytest.approx(value, rel=1e-12)
    assert math.exp(raw_tie_threshold("davidson", value)) == pytest.approx(value, rel=1e-12)


@each_kind
def test_tied_depends_on_differences_only(kind: str) -> None:
    c, r, raw, p = normal(9), normal(9, seed=1), f64(0.2)[0], f64(1.0, 0.5, 0.8).repeat(3)
    torch.testing.assert_close(tied(kind, c + 3, r + 3, raw, probability=p), tied(kind, c, r, raw, probability=p))
    up, down = slopes(lambda c, r: tied(kind, c, r, raw, probability=p), c, r)
    torch.testing.assert_close(up, -down)


@each_kind
@pytest.mark.parametrize("raw", [-1e4, -200.0, -104.0, -90.0, -20.0, 20.0, 200.0, 1e4])
@pytest.mark.parametrize("probability", [1.0, 0.5, 0.0])
def test_a_raw_threshold_is_free_to_take_any_value(kind: str, raw: float, probability: float) -> None:
    c, r, p = torch.tensor([1.0, -0.5]), torch.zeros(2), torch.full((2,), probability)
    threshold = torch.tensor(raw)
    assert tied(kind, c, r, threshold, probability=p).isfinite().all()
    for slope in slopes(lambda c, r, t: tied(kind, c, r, t, probability=p), c, r, threshold):
        assert slope.isfinite().all()


# --- barrier --------------------------------------------------------------------------------------------------------------------------------------


def test_log_barrier_by_hand() -> None:
    """(3, 0): -(log 2 + log 8) - (log 5 + log 5) = -log 400 = -5.9915; gradient 2r / (25 - r^2): 6 / 16 and 0."""
    chosen, rejected = f64(3.0), f64(0.0)
    assert log_barrier(chosen, rejected).item() == pytest.approx(-5.9915, abs=5e-5)
    assert [x.item() for x in slopes(log_barrier, chosen, rejected)] == pytest.approx([0.375, 0.0])


def test_log_barrier_pulls_in_and_lets_go_outside() -> None:
    """Gradient 2r / (25 - r^2) within the bound, none beyond 4.999, where the value stays -log(.001 * 9.999) a side. Even in each reward."""
    r = torch.linspace(-4.9, 4.9, 25, dtype=torch.float64)
    zero = torch.zeros_like(r)
    torch.testing.assert_close(slopes(lambda r: log_barrier(r, zero), r)[0], 2 * r / (25 - r**2))
    torch.testing.assert_close(log_barrier(r, -r), 2 * log_barrier(r, zero) + 4 * math.log(5.0))
    outside = f64(-1e4, -5.0, 4.9995, 1e4)
    assert (slopes(lambda r: log_barrier(r, torch.zeros_like(r)), outside)[0] == 0).all()
    torch.testing.assert_close(log_barrier(outside, outside), torch.full_like(outside, -2 * math.log(0.001 * 9.999)))
    assert gradcheck(log_barrier, (r.clone().requires_grad_(), r.flip(0).clone().requires_grad_()))


# --- number range ---------------------------------------------------------------------------------------------------------------------------------

PAIR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        f"{link}-{label}": lambda c, r, link=link, label=label: bradley_terry(c, r, link=ALL_LINKS[link], **options(LABELS[label], c))
        for link in ALL_LINKS
        for label in LABELS
    },
    **{
        f"{kind}-{p}": lambda c, r, kind=kind, p=p: tied(kind, c, r, c.new_tensor(raw_tie_threshold(kind, 1.5)), probability=torch.full_like(c, p))
        for kind in TIES
        for p in (1.0, 0.5, 0.2)
    },
    "log_barrier": log_barrier,
}
each_loss = pytest.mark.parametrize("loss", list(PAIR_LOSSES.values()), ids=list(PAIR_LOSSES))


@each_loss
def test_finite_at_huge_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    c, r = torch.tensor([1e4, -1e4, 5e3, -5e3, 1e4]), torch.tensor([0.0, 0.0, -5e3, 5e3, 1e4])
    assert loss(c, r).isfinite().all()
    for slope in slopes(loss, c, r):
        assert slope.isfinite().all()


def test_huge_differences_cost_what_they_should() -> None:
    """Float32 at -1e4 and 1e4: the logistic link is the line -x or nothing; the slope is -1 or 0."""
    x = torch.tensor([-1e4, 1e4])
    assert logistic(x).tolist() == [1e4, 0.0] and slopes(logistic, x)[0].tolist() == [-1.0, 0.0]
    assert focal(x).tolist() == [1e4, 0.0] and slopes(focal, x)[0].tolist() == [-1.0, 0.0]
    assert hinge(x).tolist() == [10001.0, 0.0] and squared(x).tolist() == pytest.approx([10001.0**2, 9999.0**2], rel=1e-6)


@each_loss
def test_bfloat16_rewards(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rewards rounded to bfloat16 and read as float32 cost what float64 says of the same numbers, and move the loss by slope * rounding at most.

    Slopes between two points are bounded by those at the ends, or 1.5 where a loss is not convex (focal, soft ties)."""
    exact = [1.2 * normal(200), 1.2 * normal(200, seed=1)]
    rounded = [x.bfloat16().float() for x in exact]
    got = loss(*rounded)
    assert got.dtype == torch.float32 and got.isfinite().all()
    torch.testing.assert_close(got.double(), loss(*(x.double() for x in rounded)), rtol=2e-6, atol=2e-6)
    steep = sum(torch.maximum(a.abs(), b.double().abs()) for a, b in zip(slopes(loss, *exact), slopes(loss, *rounded), strict=True))
    moved = sum((a - b.double()).abs() for a, b in zip(exact, rounded, strict=True))
    assert ((got.double() - loss(*exact)).abs() <= moved * (steep + 1.5) + 1e-6).all()


@each_link
def test_links_read_bfloat16(link: Callable[[Tensor], Tensor]) -> None:
    x = GRID.bfloat16()
    got = link(x)
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    torch.testing.assert_close(got.float(), link(x.float()), rtol=2**-6, atol=2**-6)
    assert slopes(link, x)[0].isfinite().all()


def test_logistic_is_the_stable_form() -> None:
    torch.testing.assert_close(logistic(GRID), torch.log1p(torch.exp(-GRID)))
    torch.testing.assert_close(logistic(GRID), -logsigmoid(GRID))
