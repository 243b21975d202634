"""Where two responses part: the tokens that DeepSpeed-Chat's loss compares one by one, and the cases in which it has none.

Shapes: L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from palate.errors import DataError


class Span(NamedTuple):
    """Tokens [start, stop) of a pair that are compared one by one, and the index of each side's last real token."""

    start: int
    stop: int
    chosen_end: int
    rejected_end: int


NO_TOKEN = -1
"""Stands for padding where sequences come without any."""


def compared_span(chosen: Sequence[int], rejected: Sequence[int], *, padding: bool) -> Span:
    """`divergence_span` of two sequences that are not padded yet."""
    length = max(len(chosen), len(rejected))
    padded = [[*ids, *[NO_TOKEN] * (length - len(ids))] for ids in (chosen, rejected)]
    return divergence_span(padded[0], padded[1], NO_TOKEN, padding=padding)


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
