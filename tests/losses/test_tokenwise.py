"""Tokenwise losses: DeepSpeed-Chat's examples to the digit, the rows it has no loss for, and outcomes of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from tests.losses.tensors import f64, normal, slopes
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from palate.data.divergence import Span, divergence_span
from palate.errors import DataError
from palate.losses.pairwise import bradley_terry
from palate.losses.tokenwise import divergence, steps
from palate.types import IGNORED

C, R = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.0, 0.1, -0.2, 0.7, 0.8, 0.9)  # values at the tokens of the chosen and the rejected row


def of_span(span: Span, chosen: tuple[float, ...], rejected: tuple[float, ...]) -> float:
    """The loss of one comparison whose rows hold these values."""
    where = slice(span.start, span.stop)
    return divergence(f64(*chosen)[where], f64(*rejected)[where], torch.zeros(span.stop - span.start, dtype=torch.long), 1).item()


# --- where a pair is compared ---------------------------------------------------------------------------------------------------------------------

# chosen ids, rejected ids, pad id, pads at the beginning, values of both, loss, last values of both
EXAMPLES = {
    "A": ((5, 6, 7, 8, 0, 0), (5, 6, 9, 0, 0, 0), 0, 0, C, R, 0.664216, 0.4, -0.2),
    "B_identical": ((5, 6, 7, 0), (5, 6, 7, 0), 0, 0, C[:4], C[:4], 0.693147, 0.3, 0.3),
    "C_no_padding": ((5, 6, 7, 8), (5, 6, 7, 9), 0, 0, (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 1.0), 0.048587, 4.0, 1.0),
    "E_opt": ((2, 5, 6, 7, 2, 2), (2, 5, 8, 2, 2, 2), 2, 1, C, R, 0.664216, 0.4, -0.2),
}


@pytest.mark.parametrize(("chosen", "rejected", "pad", "beginning", "c", "r", "loss", "c_end", "r_end"), list(EXAMPLES.values()), ids=list(EXAMPLES))
def test_deepspeed_examples(chosen: tuple, rejected: tuple, pad: int, beginning: int, c: tuple, r: tuple, loss: float, c_end: float, r_end: float) -> None:
    """A: tokens 2 and 3 differ by .5 and -.3 (the second at the shorter side's padding): (.474077 + .854355) / 2 = .664216."""
    span = divergence_span(chosen, rejected, pad, padding_at_beginning=beginning)
    assert of_span(span, c, r) == pytest.approx(loss, abs=1e-6)
    assert (c[span.chosen_end], r[span.rejected_end]) == (c_end, r_end)
    mirrored = divergence_span(rejected, chosen, pad, padding_at_beginning=beginning)
    assert mirrored == Span(span.start, span.stop, span.rejected_end, span.chosen_end)


@pytest.mark.parametrize(
    ("chosen", "rejected", "pad", "beginning", "words"),
    [
        ((5, 6, 7, 0), (4, 6, 7, 0), 0, 0, "first token"),
        ((2, 5, 6, 7, 2, 2), (2, 5, 8, 2, 2, 2), 2, 0, "padding_at_beginning"),
        ((0, 0, 5, 6), (0, 0, 5, 7), 0, 0, "pad on the right"),
        ((2, 2, 2, 5, 6), (2, 2, 2, 5, 7), 2, 1, "pad on the right"),
        ((5, 0, 6, 7, 0, 0), (5, 0, 6, 8, 9, 0), 0, 0, "inside the text"),
        ((5, 6, 7, 8), (5, 6, 0, 8), 0, 0, "rejected.*inside the text"),
        ((2, 5, 2, 6, 2), (2, 5, 7, 6, 2), 2, 1, "chosen.*inside the text"),
        ((5, 6, 2, 2), (5, 7, 2, 2), 2, 1, "set padding_at_beginning to 0"),
        ((5, 6, 7), (5, 6, 7, 0), 0, 0, "3 and 4 tokens"),
    ],
    ids=["D_first_token", "E'_opt_unsaid", "F_left_padding", "left_padding_opt", "H_pad_in_text", "pad_in_one_text", "pad_in_text_opt", "opt_said", "lengths"],
)
def test_rows_without_a_defined_loss(chosen: tuple, rejected: tuple, pad: int, beginning: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        divergence_span(chosen, rejected, pad, padding_at_beginning=beginning)


def test_padding_of_the_shorter_side_takes_part_or_not() -> None:
    """Example A without padding: token 2 alone, log(1 + e^-.5) = .474077."""
    chosen, rejected = EXAMPLES["A"][:2]
    span = divergence_span(chosen, rejected, 0, padding=False)
    assert span == Span(2, 3, 3, 2)
    assert of_span(span, C, R) == pytest.approx(0.474077, abs=1e-6)
    with pytest.raises(DataError, match="nothing is left"):
        divergence_span((5, 6, 7, 0), (5, 6, 0, 0), 0, padding=False)  # one side is the beginning of the other
    assert divergence_span((5, 6, 7, 0), (5, 6, 0, 0), 0) == Span(2, 3, 2, 1)


def reference_span(chosen: tuple[int, ...], rejected: tuple[int, ...], pad: int, beginning: int) -> Span:
    """The rule in tensors, without any check."""
    c, r = torch.tensor(chosen), torch.tensor(rejected)
    ends = [hits[beginning].item() if len(hits := (row == pad).nonzero().flatten()) > beginning else len(row) for row in (c, r)]
    different = (c != r).nonzero().flatten()
    start, stop = (different[0].item(), max(ends)) if len(different) else (len(c) - 1, len(c))
    return Span(start, stop, ends[0] - 1, ends[1] - 1)


@pytest.mark.parametrize("beginning", [0, 1])
def test_every_short_pair_of_padded_rows(beginning: int) -> None:
    """All pairs of texts of 1 to 3 further tokens over two letters, behind a common first token, padded to 4 (and to 5 with a pad before the text)."""
    texts = [(5, *rest) for n in range(4) for rest in product((7, 8), repeat=n)]
    rows = [(0,) * beginning + text + (0,) * (4 - len(text)) for text in texts]
    for chosen in rows:
        for rejected in rows:
            span = divergence_span(chosen, rejected, 0, padding_at_beginning=beginning)
            assert span == reference_span(chosen, rejected, 0, beginning)
            assert 0 < span.start < span.stop <= len(chosen)


@pytest.mark.parametrize(("chosen", "rejected"), [((0, 0, 0), (0, 0, 0)), ((), ())])
def test_rows_without_text_are_refused(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> None:
    """No token ends a text that is not there."""
    with pytest.raises(DataError):
        divergence_span(chosen, rejected, 0)


# --- token by token -------------------------------------------------------------------------------------------------------------------------------


def test_divergence_is_the_mean_over_each_comparisons_tokens() -> None:
    """Comparison 0 owns tokens 0, 1 and 4, comparison 2 tokens 2 and 3, comparison 1 none. Slope -sigmoid(-d) / its count."""
    c, r, owner = normal(5), normal(5, seed=1), torch.tensor([0, 0, 2, 2, 0])
    pairs = bradley_terry(c, r)
    wanted = torch.stack([pairs[[0, 1, 4]].mean(), pairs[0] * 0, pairs[[2, 3]].mean()])
    torch.testing.assert_close(divergence(c, r, owner, 3), wanted)
    up, down = slopes(lambda c, r: divergence(c, r, owner, 3), c, r)
    torch.testing.assert_close(up, -torch.sigmoid(r - c) / f64(3, 3, 2, 2, 3))
    torch.testing.assert_close(down, -up)
    assert gradcheck(lambda c, r: divergence(c, r, owner, 3), (c.clone().requires_grad_(), r.clone().requires_grad_()))


def test_one_token_a_comparison_is_bradley_terry() -> None:
    c, r, owner = normal(9), normal(9, seed=1), torch.arange(9)
    torch.testing.assert_close(divergence(c, r, owner, 9), bradley_terry(c, r), rtol=0.0, atol=0.0)
    for a, b in zip(slopes(lambda c, r: divergence(c, r, owner, 9), c, r), slopes(bradley_terry, c, r), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_values_cost_log_2_and_a_shift_costs_nothing() -> None:
    c, r, owner = normal(6), normal(6, seed=1), torch.tensor([0, 0, 0, 1, 1, 2])
    torch.testing.assert_close(divergence(c, c, owner, 3), torch.full((3,), math.log(2.0), dtype=torch.float64))
    torch.testing.assert_close(divergence(c + 40, r + 40, owner, 3), divergence(c, r, owner, 3))


# --- steps ----------------------------------------------------------------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    """Two classes at (0, log 3): 1/4 and 3/4; three equal classes: log 3. Slope softmax - one-hot, none where there is no label."""
    logits = f64(0.0, math.log(3.0)).expand(3, 2)
    labels = torch.tensor([0, IGNORED, 1])
    assert steps(logits, labels).tolist() == pytest.approx([math.log(4.0), 0.0, math.log(4 / 3)])
    assert slopes(lambda x: steps(x, labels), logits)[0].flatten().tolist() == pytest.approx([-0.75, 0.75, 0.0, 0.0, 0.25, -0.25])
    assert steps(torch.zeros(1, 3), torch.tensor([2])).item() == pytest.approx(math.log(3.0))


def test_steps_are_cross_entropy_where_there_are_labels() -> None:
    """Also: two classes are Bradley-Terry of the two logits, and a row's shift costs nothing."""
    logits = normal(12, 3)
    labels = torch.arange(12) % 4 - 1
    labels[labels == -1] = IGNORED
    labelled = labels != IGNORED
    torch.testing.assert_close(steps(logits, labels)[labelled], cross_entropy(logits[labelled], labels[labelled], reduction="none"))
    assert (steps(logits, labels)[~labelled] == 0).all() and (slopes(lambda x: steps(x, labels), logits)[0][~labelled] == 0).all()
    torch.testing.assert_close(steps(logits + normal(12, 1, seed=1), labels), steps(logits, labels))
    torch.testing.assert_close(steps(logits[:, :2], torch.ones(12, dtype=torch.long)), bradley_terry(logits[:, 1], logits[:, 0]))
    assert gradcheck(lambda x: steps(x, labels), logits.clone().requires_grad_())


def test_no_step_has_a_label() -> None:
    """The label of none is the one PyTorch ignores by itself."""
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED
    labels = torch.full((4,), IGNORED)
    assert (steps(normal(4, 2), labels) == 0).all() and (slopes(lambda x: steps(x, labels), normal(4, 2))[0] == 0).all()


# --- number range ---------------------------------------------------------------------------------------------------------------------------------

OWNER, LABELS = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, IGNORED, 1])
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "divergence": lambda x: divergence(x[:, 0], x[:, 1], OWNER, 2),
    "steps": lambda x: steps(x, LABELS),
}
each_loss = pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))


@each_loss
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_finite_at_huge_differences(loss: Callable[[Tensor], Tensor], scale: float) -> None:
    x = scale * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5], [-1.0, -1.0]])
    assert loss(x).isfinite().all() and slopes(loss, x)[0].isfinite().all()


@each_loss
def test_bfloat16_values(loss: Callable[[Tensor], Tensor]) -> None:
    """Rounded to bfloat16 and read as float32; both losses move by at most the sum of the roundings."""
    exact = 3 * normal(4, 2)
    rounded = exact.bfloat16().float()
    got = loss(rounded)
    assert got.dtype == torch.float32 and slopes(loss, rounded)[0].isfinite().all()
    torch.testing.assert_close(got.double(), loss(rounded.double()), rtol=1e-6, atol=1e-6)
    assert ((got.double() - loss(exact)).abs() <= (rounded.double() - exact).abs().sum() + 1e-6).all()
