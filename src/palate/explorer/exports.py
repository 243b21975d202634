"""Labels as files for other tools: preference rows that `palate train` reads, Argilla records, Label Studio tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from palate.errors import DataError
from palate.explorer.labels import Label
from palate.explorer.pairs import Pairs
from palate.types import Conversation, TokenIds, text_of

VOTES = {"a": 1, "b": 2, "tie": 0, "both_bad": 0}
"""A choice as a vote of the layout "two responses and a label": 1 the first, 2 the second, 0 equal."""


class Export(NamedTuple):
    file: str
    media_type: str
    title: str
    write: Callable[[Pairs, Sequence[Label]], str]


class _Labelled(NamedTuple):
    """A pair with what was decided on it. Which side comes first is a bit of its identity: the order of the sides says nothing of the data's label."""

    row: int
    identity: str
    prompt: Conversation
    responses: tuple[Conversation, Conversation]
    choices: dict[str, str]  # annotator -> a (the first), b, tie, both_bad


def preference_rows(pairs: Pairs, labels: Sequence[Label]) -> str:
    """One JSON line a pair: prompt, both responses, every vote. Several votes become a soft label when they are read."""
    rows = []
    for one in _labelled(pairs, labels):
        group = pairs.groups[pairs.items.group[one.row]]
        row: dict[str, Any] = {"prompt": _plain(one.prompt), "response_1": _plain(one.responses[0]), "response_2": _plain(one.responses[1])}
        row |= {"votes": [VOTES[choice] for choice in one.choices.values()], "annotators": list(one.choices), "verdicts": list(one.choices.values())}
        row |= {name: group.metadata[name] for name in ("id", "subset", "domain", "category", "source") if group.metadata.get(name) is not None}
        row |= {"chat_template_kwargs": dict(group.template_args)} if group.template_args else {}
        rows.append(json.dumps({**row, "pair": one.identity}, ensure_ascii=False, default=str) + "\n")
    return "".join(rows)


def argilla_records(pairs: Pairs, labels: Sequence[Label]) -> str:
    """A list of flat records: the fields prompt, response_a, response_b, and the answers of each annotator to the question `preference`."""
    records = [
        {**_texts(one, "response_a", "response_b"), "preference": choice, "annotator": annotator, "id": f"{one.identity}-{annotator}"}
        for one in _labelled(pairs, labels)
        for annotator, choice in one.choices.items()
    ]
    return json.dumps(records, ensure_ascii=False, indent=1)


def label_studio_tasks(pairs: Pairs, labels: Sequence[Label]) -> str:
    """Tasks with an annotation each person made, for a `Choices` control named `preference` over the text `prompt`."""
    tasks: list[dict[str, Any]] = [
        {
            "data": {**_texts(one, "text1", "text2"), "pair": one.identity},
            "annotations": [
                {
                    "completed_by": {"email": annotator},
                    "result": [{"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}],
                }
                for annotator, choice in one.choices.items()
            ],
        }
        for one in _labelled(pairs, labels)
    ]
    return json.dumps(tasks, ensure_ascii=False, indent=1)


EXPORTS: Mapping[str, Export] = {
    "preferences": Export("labels-preferences.jsonl", "application/x-ndjson", "Preference rows (JSONL)", preference_rows),
    "argilla": Export("labels-argilla.json", "application/json", "Argilla records", argilla_records),
    "label-studio": Export("labels-label-studio.json", "application/json", "Label Studio tasks", label_studio_tasks),
}


def _labelled(pairs: Pairs, labels: Sequence[Label]) -> Iterator[_Labelled]:
    """Pairs of this data set that somebody decided, in the order of the data."""
    by_row: dict[int, list[Label]] = {}
    for label in labels:
        if label.decides and label.pair in pairs.rows:
            by_row.setdefault(pairs.rows[label.pair], []).append(label)
    for row in sorted(by_row):
        prompt, *sides = pairs.conversations(row)
        if any(isinstance(part, TokenIds) for part in (prompt, *sides)):
            raise DataError("these pairs are token ids, which other tools cannot show; export labels of the texts that they were made from")
        identity = pairs.identity(row)
        order = ("chosen", "rejected") if int(identity, 16) & 1 == 0 else ("rejected", "chosen")
        first, second = sides if order[0] == "chosen" else sides[::-1]
        choices = {label.annotator: dict(zip(order, "ab", strict=True)).get(label.verdict, label.verdict) for label in by_row[row]}
        yield _Labelled(row, identity, prompt, (first, second), choices)


def _texts(one: _Labelled, first: str, second: str) -> dict[str, str]:
    return {"prompt": text_of(one.prompt), first: text_of(one.responses[0]), second: text_of(one.responses[1])}


def _plain(conversation: Conversation) -> Any:
    return conversation if isinstance(conversation, str) else list(conversation)
