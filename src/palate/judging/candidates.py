"""Prompts with their candidate responses, from rows: one a prompt with a list, or one a response; what cannot be judged is counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from palate.data.formats import PROMPTS, RESPONSE_LISTS, SINGLE_RESPONSES
from palate.errors import DataError, tally
from palate.judging.schedule import Candidate
from palate.types import Conversation, text_of

SOURCE_LISTS = ("models", "sources")
SINGLE_SOURCES = ("model", "source", "generator")


class Candidates(NamedTuple):
    prompts: list[Conversation]
    responses: list[list[Candidate]]
    ids: list[str]
    references: list[Conversation | None]
    left_out: dict[str, int]  # why a response, or a prompt, takes no part


def read_candidates(rows: Iterable[tuple[str, Mapping[str, Any]]], *, min_responses: int = 2) -> Candidates:
    """(location, row) pairs to candidates by prompt, in order of appearance.

    A row has `prompt` and either `responses` (with `models`, `on_policy` lists beside it) or one `response` (with `model`, `on_policy`); a
    `reference` is a right answer to judge by. Rows belong together by `prompt_id`, else by the text of the prompt. Empty responses and repeated ones of a
    prompt are left out and counted, and so are prompts with fewer than `min_responses` after that. Raises DataError, with its place, for a row that is
    neither, for a `prompt_id` with two prompts, and where nothing is left.
    """
    groups: dict[str, tuple[Conversation, str, Conversation | None, list[Candidate]]] = {}
    left_out: Counter[str] = Counter()
    seen = 0
    for location, row in rows:
        seen += 1
        prompt = read_conversation(row, PROMPTS, location)
        found = _candidates(row, location)
        key = _key(row, prompt)
        first, _, _, kept = groups.setdefault(key, (prompt, key if row.get("id") is None else str(row["id"]), _reference(row, location), []))
        if text_of(first) != text_of(prompt):
            raise DataError(f"{location}: prompt {key!r} is {text_of(prompt)!r:.60} here and {text_of(first)!r:.60} before; give each prompt its own id")
        texts = {text_of(candidate.text).strip() for candidate in kept}
        for candidate in found:
            text = text_of(candidate.text).strip()
            if not text:
                left_out["empty response"] += 1
            elif text in texts:
                left_out["repeated response"] += 1
            else:
                texts.add(text)
                kept.append(candidate)
    usable = [group for group in groups.values() if len(group[3]) >= min_responses]
    left_out["prompt with too few responses"] += len(groups) - len(usable)
    if not usable:
        raise DataError(f"none of {len(groups)} prompts ({seen} rows) has {min_responses} different responses; left out: {tally(left_out)}")
    prompts, ids, references, responses = (list(column) for column in zip(*usable, strict=True))
    return Candidates(prompts, responses, ids, references, {reason: count for reason, count in left_out.items() if count})


def _key(row: Mapping[str, Any], prompt: Conversation) -> str:
    """What tells this prompt from the others."""
    given = next((row[name] for name in ("prompt_id", "group_id") if row.get(name) is not None), None)
    return hashlib.sha256(text_of(prompt).encode()).hexdigest()[:16] if given is None else str(given)


def _reference(row: Mapping[str, Any], location: str) -> Conversation | None:
    return None if row.get("reference") is None else _text(row["reference"], "reference", location)


def read_conversation(row: Mapping[str, Any], names: Sequence[str], location: str) -> Conversation:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise DataError(f"{location}: has no `{names[0]}`; columns: {', '.join(map(str, row))}")
    return _text(row[name], name, location)


def _text(value: Any, name: str, location: str) -> Conversation:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(message, Mapping) and "role" in message for message in value):
        return tuple(value)
    raise DataError(f"{location}: `{name}` is {type(value).__name__} {value!r:.60}, expected text or messages")


def _candidates(row: Mapping[str, Any], location: str) -> list[Candidate]:
    many = next((name for name in RESPONSE_LISTS if isinstance(row.get(name), (list, tuple))), None)
    if many is None:
        one = next((name for name in SINGLE_RESPONSES if row.get(name) is not None), None)
        if one is None:
            raise DataError(f"{location}: has neither `responses` (a list) nor `response`; columns: {', '.join(map(str, row))}")
        source = next((str(row[name]) for name in SINGLE_SOURCES if row.get(name) is not None), "")
        return [Candidate(_text(row[one], one, location), source, bool(row.get("on_policy", False)), str(row.get("response_id", "")))]
    values = row[many]
    sources = next((row[name] for name in SOURCE_LISTS if isinstance(row.get(name), (list, tuple))), [""] * len(values))
    marks = row.get("on_policy")
    policies = marks if isinstance(marks, (list, tuple)) else [bool(marks)] * len(values)
    if not len(values) == len(sources) == len(policies):
        raise DataError(f"{location}: {len(values)} responses, {len(sources)} models and {len(policies)} on_policy marks; expected one of each a response")
    return [Candidate(_text(v, many, location), str(s), bool(p)) for v, s, p in zip(values, sources, policies, strict=True)]
