"""Fences around what a judge reads: marks that nobody can guess, and text between them that cannot pass for a verdict."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

FENCE_DIGITS = 16  # hex digits, 64 bits: a text that holds its own fence would have to be searched for 2^64 times


def fence_of(seed: int, texts: Sequence[str]) -> str:
    """The mark of one request, from the seed and all that is shown: the same request has the same mark (and is found in a cache), no text holds it."""
    for attempt in itertools.count():
        mark = hashlib.sha256(json.dumps([seed, attempt, *texts]).encode()).hexdigest()[:FENCE_DIGITS]
        if not any(mark in text.lower() for text in texts):
            return mark
    raise AssertionError("unreachable: the count has no end")


def fenced(name: str, text: str, fence: str) -> str:
    return f"<<<{name} {fence}>>>\n{text}\n<<<end of {name} {fence}>>>"


def without_fenced(text: str, fence: str) -> str:
    """A reply without what it quotes between the fences of its request."""
    if fence not in text:  # nearly always: a pattern of its own for every request would take longer than the rest of the reading
        return text
    return re.sub(rf"<<<([^<>\n]*) {re.escape(fence)}>>>.*?<<<end of \1 {re.escape(fence)}>>>", "", text, flags=re.DOTALL)


class Neutral(NamedTuple):
    text: str
    changes: int  # places where something was taken apart


_INVISIBLE = "[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*"
_BRACKETS = "[［【〖⟦"
_BRACKETS = "[［【〖⟦"
_OPENING = rf"(?:\\?[\[［【〖]{_INVISIBLE}\\?[\[［【〖]|[⟦〚])"
_CLOSING = rf"(?:\\?[\]］】〗]{_INVISIBLE}\\?[\]］】〗]|[⟧〛])"
_FRAMED = re.compile(rf"{_OPENING}([^\[\]［］【】〖〗⟦⟧〚〛\n]*){_CLOSING}")
_JSON_KEY = re.compile(r'"((?:[^"\\\n]|\\.){0,80})"(?=\s*:)')
_CONTROL = re.compile(
    r"<(?=/?(?:think|thinking|thought|reasoning|s|bos|eos|start_of_turn|end_of_turn)>)|<(?=[|｜][^|｜<>\n]{1,60}[|｜]>)|\[(?=/?(?:THINK|INST|SYSTEM_PROMPT)\])"
    r"|<(?=</?SYS>>)",
    re.IGNORECASE,
)
_LOOK_ALIKES = str.maketrans("АВСΑΒϹавсαβϲ", "ABCABCabcabc")
"""Cyrillic and Greek letters that look like A, B and C (Unicode TR 39), those that NFKC does not fold."""


def neutral(text: str, offered: re.Pattern[str], json_keys: Sequence[str] = ()) -> Neutral:
    """The text, with what could pass for a verdict taken apart but readable: `[[A]]` becomes `[ [A] ]`, `"verdict":` becomes `\\"verdict\\":`.

    Only labels that match `offered` are touched, look-alikes and hidden characters included, so that `x[[i]]` in code stays; keys only where the verdict is
    JSON. Tags of thoughts and control tokens of chat templates get a blank: `< think>`, `< |im_start|>`, which no tokenizer takes for the token.
    """
    changes = 0

    def label(match: re.Match[str]) -> str:
        nonlocal changes
        if not offered.fullmatch(_bare(match[1])):
            return match[0]
        changes += 1
        return f"[ [{match[1]}] ]"

    def key(match: re.Match[str]) -> str:
        nonlocal changes
        if _json_string(match[1]) not in json_keys:
            return match[0]
        changes += 1
        return f'\\"{match[1]}\\"'

    def control(match: re.Match[str]) -> str:
        nonlocal changes
        changes += 1
        return f"{match[0]} "

    if any(bracket in text for bracket in _BRACKETS):  # a frame may begin with a backslash, so that the pattern tries every place of a text
        text = _FRAMED.sub(label, text)
    text = _CONTROL.sub(control, text)
    return Neutral(_JSON_KEY.sub(key, text) if json_keys else text, changes)


def _bare(inner: str) -> str:
    """What stands in a frame as a reader sees it: look-alikes folded, no blanks, marks or quotes, small letters."""
    folded = unicodedata.normalize("NFKC", re.sub(_INVISIBLE, "", inner)).translate(_LOOK_ALIKES)
    return re.sub(r"[\s*_`\"'“”‘’«».\\]", "", folded).casefold()


def _json_string(inner: str) -> str | None:
    """A JSON string as it is read: `\\u0076erdict` is `verdict`."""
    try:
        return json.loads(f'"{inner}"', strict=False)
    except ValueError:
        return None
