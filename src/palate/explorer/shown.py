"""A pair as a page shows it: its turns, its two sides with their differences, its numbers and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from palate.explorer.pairs import Pairs
from palate.reports.differences import SHOWN, Piece, marked_differences
from palate.reports.wording import shortened
from palate.types import Conversation, TokenIds, content_text, text_of

EXCERPT = 380  # characters of a side in a list
PROMPT_EXCERPT = 260
LEAD = 60  # characters of what both sides share, shown before they part
METADATA_SHOWN = 400  # characters of a value
HIDDEN = ("location",)


class Turn(NamedTuple):
    role: str
    text: str


class Side(NamedTuple):
    """One response: its reward, and its text in pieces, those marked that the other side lacks."""

    reward: float | None
    other: float | None  # by the model that is compared with
    pieces: list[Piece]
    length: int  # characters
    cut: bool  # whether the text goes on


class Shown(NamedTuple):
    row: int
    identity: str
    name: str
    place: str  # file and line
    subset: str
    source: str
    findings: tuple[str, ...]
    prompt: list[Turn]
    chosen: Side
    rejected: Side
    margin: float | None
    other_margin: float | None
    probability: float | None
    calibrated: float | None  # the probability at the best temperature
    outcome: str  # right, wrong, equal, tie, unscored
    suspect: bool
    bar: int  # -100 to 100: the margin against the widest ones

    @property
    def gap(self) -> int:
        return self.chosen.length - self.rejected.length


def turns(conversation: Conversation) -> list[Turn]:
    """A prompt as turns; plain text is one without a role."""
    if isinstance(conversation, (str, TokenIds)):
        return [Turn("", text_of(conversation))] if conversation else []
    return [Turn(str(message.get("role", "")), content_text(message)) for message in conversation]


def whole_pair(pairs: Pairs, row: int) -> Shown:
    prompt, *sides = pairs.conversations(row)
    texts = [text_of(side) for side in sides]
    compared = marked_differences(*texts)
    # differences are marked in the beginnings; the rest stands as it is
    pieces = [[*found, *([Piece(text[SHOWN:], False)] if len(text) > SHOWN else [])] for found, text in zip(compared, texts, strict=True)]
    return _shown(pairs, row, turns(prompt), pieces, texts, cut=False)


def excerpt(pairs: Pairs, row: int) -> Shown:
    """What a list shows: the last thing asked, and both sides from shortly before they part."""
    prompt, *sides = pairs.conversations(row)
    last = last_asked(prompt)
    texts = [text_of(side) for side in sides]
    start = _start(texts)
    compared = marked_differences(*(text[start : start + EXCERPT] for text in texts))
    pieces = [[*([Piece("... ", False)] if start else []), *found] for found in compared]
    return _shown(pairs, row, [Turn(last.role, shortened(last.text, PROMPT_EXCERPT))], pieces, texts, cut=True, end=start + EXCERPT)


def last_asked(prompt: Conversation) -> Turn:
    """The last thing that the user said; of a prompt without any, its last turn."""
    asked = turns(prompt)
    return next((turn for turn in reversed(asked) if turn.role in ("user", "")), asked[-1] if asked else Turn("", ""))


def _start(texts: Sequence[str]) -> int:
    """Where an excerpt begins: at the front, or at the blank before the words in which two long texts part."""
    shared = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))  # noqa: B905 (the shorter one ends it)
    if shared <= EXCERPT // 2:
        return 0
    blank = texts[0].rfind(" ", 0, shared - LEAD)
    return blank + 1


def _shown(pairs: Pairs, row: int, prompt: list[Turn], pieces: Sequence[list[Piece]], texts: Sequence[str], *, cut: bool, end: int = 0) -> Shown:
    items, group = pairs.items, pairs.groups[pairs.items.group[row]]
    margin = _number(pairs.margin[row])
    places = (items.chosen[row], items.rejected[row])
    rewards = [_number(items.scored.rewards[place]) for place in places]
    others = [_number(pairs.other.scored.rewards[place]) if pairs.other else None for place in places]
    sides = [Side(rewards[i], others[i], pieces[i], len(texts[i]), cut and len(texts[i]) > end) for i in range(2)]
    return Shown(
        row=row,
        identity=pairs.identity(row),
        name=str(group.metadata.get("id") or f"row {row + 1}"),
        place=str(group.metadata.get("location", "")),
        subset=pairs.subset.of(row) if pairs.subset else "",
        source=pairs.source.of(row) if pairs.source else "",
        findings=pairs.findings(row),
        prompt=prompt,
        chosen=sides[0],
        rejected=sides[1],
        margin=margin,
        other_margin=None if None in others else others[0] - others[1],  # type: ignore[operator]
        probability=pairs.probability(row),
        calibrated=float(expit(margin / pairs.temperature)) if margin is not None and pairs.temperature else None,
        outcome=outcome(margin, decided=bool(pairs.decided[row])),
        suspect=bool(pairs.suspect[row]),
        bar=0 if margin is None else round(100 * float(np.clip(margin / pairs.widest, -1, 1))),
    )


def outcome(margin: float | None, *, decided: bool) -> str:
    if margin is None:
        return "unscored"
    if not decided:
        return "tie"
    return "equal" if margin == 0 else "right" if margin > 0 else "wrong"


def metadata(pairs: Pairs, row: int) -> dict[str, str]:
    """What else the row says, each value on one line: texts as they are, the rest as JSON."""
    group = pairs.groups[pairs.items.group[row]]
    found: Mapping[str, Any] = {**group.metadata, **group.template_args}
    texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for key, value in found.items() if value is not None}
    return {str(key): shortened(text, METADATA_SHOWN) for key, text in texts.items() if key not in HIDDEN}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
