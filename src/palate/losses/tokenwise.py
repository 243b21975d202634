"""Tokenwise losses: DeepSpeed-Chat's divergence loss, outcomes on every response token, process rewards on step ends.

Shapes: L tokens of a sequence, R tokens read from a batch, P comparisons, N responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from palate.errors import DataError

IGNORED = -100
"""Label of a token that has none (PyTorch's own `ignore_index`)."""


class Span(NamedTuple):
    """Tokens [start, stop) of a pair that are compared one by one, and the index of each side's last real token."""

    start: int
    stop: int
    chosen_end: int
    rejected_end: int


def divergence_span(chosen: Sequence[int], rejected: Sequence[int], pad_id: int, *, padding_at_beginning: int = 0, padding: bool = True) -> Span:
    """Where two right-padded rows of equal length are compared: from the first token that differs to the end of the longer. [L], [L] -> Span

    `padding=True` is DeepSpeed-Chat's rule: the shorter side takes part with the values at its padding. `padding=False` ends with the shorter side.
    `padding_at_beginning`: pad ids that belong to the text (1 for OPT, whose BOS is its pad token).
    Identical rows compare their last token alone, which gives log 2. Raises DataError where DeepSpeed-Chat's rule has no defined loss: a first token
    that differs, padding on the left, a pad id inside the text; and, without padding, a side that ends where the other goes on.
    Source: DeepSpeedExamples, dschat/utils/model/reward_model.py.
    """
    length = len(chosen)
    if not length:
        raise DataError("a side has no tokens; expected a prompt and a response")
    if length != len(rejected):
        raise DataError(f"the sides have {length} and {len(rejected)} tokens; expected rows padded to one length")
    ends = [_first_pad(ids, pad_id, padding_at_beginning, side) for ids, side in ((chosen, "chosen"), (rejected, "rejected"))]
    start = next((t for t in range(length) if chosen[t] != rejected[t]), None)
    if start is None:
        return Span(length - 1, length, ends[0] - 1, ends[1] - 1)
    if start == 0:
        raise DataError("the first token of both sides differs; expected sides that begin with the same prompt")
    stop = max(ends) if padding else min(ends)
    if stop <= start:
        raise DataError(f"the sides differ at token {start} for the first time, but the compared tokens end at {stop}; nothing is left to compare")
    return Span(start, stop, ends[0] - 1, ends[1] - 1)


def _first_pad(ids: Sequence[int], pad_id: int, at_beginning: int, side: str) -> int:
    pads = [t for t, token in enumerate(ids) if token == pad_id]
    beginning, rest = pads[:at_beginning], pads[at_beginning:]
    if beginning and beginning != list(range(len(beginning))):
        raise DataError(f"{side}: expected {at_beginning} pad tokens at the beginning, found them at {beginning}; set padding_at_beginning to 0")
    if not rest:
        return len(ids)
    if rest[0] == 0 or (rest[0] <= at_beginning and len(rest) < len(ids) - at_beginning):
        raise DataError(f"{side}: the row begins with the pad token; pad on the right, or set padding_at_beginning where the text begins with it")
    if rest != list(range(rest[0], len(ids))):
        raise DataError(f"{side}: the pad token {pad_id} stands inside the text (at {rest[0]}); use a pad token that is not the end of a turn")
    return rest[0]


def divergence(chosen: Tensor, rejected: Tensor, owner: Tensor, comparisons: int) -> Tensor:
    """Mean over a comparison's tokens of -log sigmoid(v_chosen - v_rejected), token by token. [S], [S], [S] -> [P]

    `owner`: the comparison that each of the S compared tokens belongs to. One token a comparison gives Bradley-Terry.
    Source: DeepSpeed-Chat (arXiv 2308.01320); see `divergence_span`.
    """
    losses = -logsigmoid(chosen - rejected)
    total = losses.new_zeros(comparisons).index_add(0, owner, losses)
    return total / torch.bincount(owner, minlength=comparisons).clamp(min=1)


def steps(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of step classes at step ends. [R, C], [R] of 0 to C-1 or IGNORED -> [R]

    Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6; two classes as in TRL's PRMTrainer.
    """
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
