"""Findings row by row: which comparisons repeat, contradict another, differ by blanks alone, stand in their prompt, refuse.

`palate data check` counts these for a whole set and finds more (cycles, near-duplicate prompts, overlap with test sets); here each row carries its own, to be
filtered by. The rules and their limits are those of `data.validation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from palate.data.contamination import COMMON_PROMPTS, COMMON_SHARE
from palate.data.ngrams import MIN_WORDS, NOTHING, folded, folded_key, words
from palate.data.validation import REFUSAL
from palate.evaluation.items import Items
from palate.types import text_of

OPENING = 100  # characters in which a refusal begins

MEANINGS = {
    "duplicates": "the same prompt, chosen and rejected stand in another row too",
    "contradictions": "another row prefers the other side",
    "sides alike": "both sides are equal but for letter case and blanks",
    "responses in their prompts": f"a response of {MIN_WORDS} or more words stands in its prompt",
    "constant responses": "a response stands under many prompts",
    "chosen refuses": "the chosen side begins like a refusal, the rejected one does not",
    "rejected refuses": "the rejected side begins like a refusal, the chosen one does not",
}
"""What a row may be marked with."""


class _Responses(NamedTuple):
    """What is read of each response in one pass, [N] each."""

    texts: list[str]
    keys: list[bytes]  # equal but for letter case and blanks
    refuses: np.ndarray
    inside: np.ndarray  # whether it stands in its prompt


def flags_of(items: Items) -> dict[str, np.ndarray]:
    """Finding -> bool [P]; findings that no row has are left out."""
    read = _read(items)
    chosen, rejected = items.chosen.astype(int), items.rejected.astype(int)
    found = {
        **_repeated(items, read.texts),
        "sides alike": np.array([read.keys[c] == read.keys[r] for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)], dtype=bool),
        "responses in their prompts": _of_sides(read.inside, chosen, rejected),
        "constant responses": _of_sides(_constant(items, read.keys), chosen, rejected),
        "chosen refuses": read.refuses[chosen] & ~read.refuses[rejected],
        "rejected refuses": read.refuses[rejected] & ~read.refuses[chosen],
    }
    return {name: found[name] for name in MEANINGS if found[name].any()}


def _read(items: Items) -> _Responses:
    texts, keys, refuses, inside = [], [], [], []
    for group in items.scored.groups:
        asked = folded(text_of(group.prompt))
        for response in group.responses:
            text = text_of(response)
            answer = folded(text)
            texts.append(text)
            keys.append(folded_key(answer))
            refuses.append(REFUSAL.match(text[:OPENING].lower().replace("\u2019", "'")) is not None)
            inside.append(answer in asked and len(words(answer)) >= MIN_WORDS)
    return _Responses(texts, keys, np.array(refuses, dtype=bool), np.array(inside, dtype=bool))


def _of_sides(of_response: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    return of_response[chosen] | of_response[rejected]


def _repeated(items: Items, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """A tie contradicts nothing, but it may stand twice."""
    ties = items.is_tie.tolist()
    rows: list[tuple[Hashable, ...]] = [
        (prompt, texts[c], texts[r], tie)
        for prompt, c, r, tie in zip(items.prompts.tolist(), items.chosen.tolist(), items.rejected.tolist(), ties, strict=True)
    ]
    times = Counter(rows)
    return {
        "duplicates": np.array([times[row] > 1 for row in rows], dtype=bool),
        "contradictions": np.array([not tie and (prompt, r, c, tie) in times for prompt, c, r, tie in rows], dtype=bool),
    }


def _constant(items: Items, keys: Sequence[bytes]) -> np.ndarray:
    codes = {key: code for code, key in enumerate(dict.fromkeys(items.scored.keys))}
    sizes = [len(group.responses) for group in items.scored.groups]
    prompt_of = np.repeat([codes[key] for key in items.scored.keys], sizes).tolist()
    under = Counter(key for _, key in set(zip(prompt_of, keys, strict=True)))
    limit = max(COMMON_PROMPTS, COMMON_SHARE * len(codes))
    return np.array([key != NOTHING and under[key] > limit for key in keys], dtype=bool)
