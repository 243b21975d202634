"""Groups or `datasets` objects to encoded training data: flat columns in Arrow, with every dropped row counted.

One function encodes a chunk of groups; plain lists call it in this process, `datasets.Dataset.map` calls it in several, streams as they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as SequenceOf

from palate import __version__
from palate.data.collation import encoded_row, extra_columns
from palate.data.formats import detect_layout, parse_row
from palate.data.loading import located
from palate.data.pairing import with_off_topic
from palate.data.supervision import PAIRWISE
from palate.data.tokenization import Encoder, EncodeReport
from palate.errors import DataError, RowError
from palate.types import PreferenceGroup, Supervision

ENCODED_FEATURES = Features(
    {
        "token_ids": SequenceOf(SequenceOf(Value("int32"))),
        "chosen": SequenceOf(Value("int32")),
        "rejected": SequenceOf(Value("int32")),
        "margin": SequenceOf(Value("float32")),
        "weight": SequenceOf(Value("float32")),
        "probability": SequenceOf(Value("float32")),
        "group": Value("int64"),
        "length": Value("int32"),
        "tokens": Value("int32"),
    }
)


EXTRA_FEATURES = {
    "rank": SequenceOf(Value("float32")),  # also `rank <attribute>`, where a loss ranks by ratings
    "rating": SequenceOf(Value("float32")),  # `rating <attribute>`, a column each
    "start": SequenceOf(Value("int32")),
    "step_end": SequenceOf(Value("int32")),
    "step_label": SequenceOf(Value("int32")),
    "prompt": Value("string"),
}
"""Columns that only some losses read."""


def encoded_features(supervision: Supervision) -> Features:
    return Features({**ENCODED_FEATURES, **{name: EXTRA_FEATURES[name.partition(" ")[0]] for name in extra_columns(supervision)}})


def is_encoded(dataset: Any) -> bool:
    return isinstance(dataset, (Dataset, IterableDataset)) and set(dataset.column_names or ()) >= {"token_ids", "chosen", "weight"}


def prepare(
    data: Dataset | IterableDataset | Sequence[PreferenceGroup],
    encoder: Encoder,
    *,
    name: str,
    ties: str = "drop",
    on_bad_row: str = "error",
    supervision: Supervision = PAIRWISE,
    off_topic: int = 0,
    num_proc: int | None = None,
    seed: int = 42,
) -> tuple[Dataset | IterableDataset, EncodeReport]:
    """Encoded data and the account of it. Raises DataError when rows are bad (see `on_bad_row`) or when nothing is left.

    `off_topic`: responses to other prompts added to each group (from its batch of rows, where `datasets` maps or streams them).
    """
    report = EncodeReport()
    if is_encoded(data):
        columns: Any = data
        if missing := set(extra_columns(supervision)) - set(columns.column_names or ()):
            raise DataError(f"the encoded {name} data has no column {', '.join(sorted(missing))}, which the loss reads; encode it with this loss")
        return numbered(data), report
    reading = _Reading(encoder, supervision, ties=ties, name=name, on_bad_row=on_bad_row, off_topic=off_topic, seed=seed)
    if isinstance(data, IterableDataset):
        return _stream(data, reading, report), report
    if isinstance(data, Dataset):
        return _map(data, reading, num_proc=num_proc)
    groups = with_off_topic(data, off_topic, seed)
    rows = [encoded_row(e, i, supervision) for i, e in enumerate(encoder.encode_groups(groups, report, ties=ties, supervision=supervision))]
    if not rows:
        raise nothing_left(name, report)
    return Dataset.from_list(rows, features=encoded_features(supervision)), report


@dataclass(frozen=True)
class _Reading:
    """How rows become encoded groups."""

    encoder: Encoder
    supervision: Supervision
    ties: str
    name: str
    on_bad_row: str
    off_topic: int
    seed: int

    def parse(self, rows: Iterable[tuple[int, Mapping[str, Any]]], layout: Any) -> tuple[list[PreferenceGroup], list[tuple[str, str]]]:
        """(groups, (kind, message) of each row that is none)."""
        groups, bad = [], []
        read = {"margins": self.supervision.margins.source == "column", "strengths": self.supervision.margins.reads_strength}
        for i, row in rows:
            place = f"{self.name} row {i + 1}"
            try:
                groups.append(located(parse_row(row, layout, **read), self.name, place))
            except RowError as error:
                bad.append((error.kind, f"{place}: {error.kind}: {error}"))
        return groups, bad

    def encode(self, groups: Sequence[PreferenceGroup], report: EncodeReport, first: int) -> list[dict[str, Any]]:
        """Encoded rows of some groups, numbered from `first` on; off-topic responses come from the same groups."""
        own = [replace(group, metadata={**group.metadata, "source": self.name}) for group in groups]
        mixed = with_off_topic(own, self.off_topic, self.seed + first)
        kept = self.encoder.encode_groups(mixed, report, ties=self.ties, supervision=self.supervision)
        return [encoded_row(e, first + i, self.supervision) for i, e in enumerate(kept)]


def numbered(data: Any) -> Any:
    """Encoded data whose groups have numbers of their own (sets that were put together bring the same numbers twice)."""
    if isinstance(data, IterableDataset) or len(np.unique(data.select_columns("group").with_format("numpy")[:]["group"])) == len(data):
        return data
    return data.remove_columns("group").add_column("group", np.arange(len(data)))


def nothing_left(name: str, report: EncodeReport) -> DataError:
    return DataError(
        f"nothing is left to train on in the {name} data.\n{report.summary()}\n"
        "Raise max_length, choose another length_policy or ties, or look at `palate data check`."
    )


def _map(data: Dataset, reading: _Reading, *, num_proc: int | None) -> tuple[Dataset, EncodeReport]:
    layout, name = detect_layout(data.column_names), reading.name
    columns_of = encoded_features(reading.supervision)
    version = __version__  # part of the closure, and so of the cache's key: another palate may encode otherwise

    def encode_batch(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        assert version
        groups, bad = reading.parse(zip(indices, rows, strict=True), layout)
        # `source` columns of the data keep their meaning in metadata; here every row belongs to the data set as a whole
        account = EncodeReport()
        # a row gives one group at most, so numbers counted from the batch's first row are its own
        encoded = reading.encode(groups, account, indices[0])
        columns: dict[str, list[Any]] = {key: [row[key] for row in encoded] for key in columns_of}
        notes = [("cut", "", account.cut[name]), ("tokens", "", account.tokens), ("unique", "", account.unique_tokens), ("longest", "", account.longest)]
        notes += [("dropped", reason, count) for reason, count in account.dropped.get(name, {}).items()]
        notes += [("fact", fact, count) for fact, count in account.facts.items()]
        notes += [(f"bad {kind}", message, 1) for kind, message in bad]
        columns["note"] = [""] * len(encoded)
        for kind, text, count in notes:
            for key in columns_of:
                columns[key].append({"group": -1, "length": count, "tokens": 0, "prompt": ""}.get(key, []))
            columns["note"].append(f"{kind}\t{text}")
        return columns

    features = Features({**columns_of, "note": Value("string")})
    mapped = data.map(
        encode_batch, batched=True, with_indices=True, remove_columns=data.column_names, features=features, num_proc=num_proc, desc=f"Encoding {name} data"
    )
    notes = mapped.filter(lambda note: bool(note), input_columns="note")
    encoded = mapped.filter(lambda note: not note, input_columns="note").remove_columns("note")
    report, bad = EncodeReport(), []
    for note, count in zip(notes["note"], notes["length"], strict=True):
        kind, text = note.split("\t", 1)
        if kind == "cut":
            report.cut[name] += count
        elif kind == "tokens":
            report.tokens += count
        elif kind == "unique":
            report.unique_tokens += count
        elif kind == "longest":
            report.longest = max(report.longest, count)
        elif kind == "dropped":
            report.drop(name, text, count)
        elif kind == "fact":
            report.facts[text] += count
        else:
            bad.append(text)
            report.drop(name, kind.removeprefix("bad "))
    if bad and reading.on_bad_row == "error":
        shown = "\n  ".join(bad[:3])
        raise DataError(f"{name}: {len(bad)} of {len(data)} rows cannot be used\n  {shown}\nMend the rows, or set on_bad_row to drop (such rows are counted).")
    report.groups[name], report.kept[name] = len(data), len(encoded)
    if not len(encoded):
        raise nothing_left(name, report)
    return encoded, report


def _stream(data: IterableDataset, reading: _Reading, report: EncodeReport) -> IterableDataset:
    """Encode while training; bad rows of a stream are counted in `report`, for a stream cannot be looked over first."""
    features = encoded_features(reading.supervision)

    def encode_batch(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        groups, bad = reading.parse(zip(indices, rows, strict=True), None)
        if bad and reading.on_bad_row == "error":
            raise DataError(f"{bad[0][1]}\nMend the row, or set on_bad_row to drop (such rows are counted).")
        for kind, _ in bad:
            report.groups[reading.name] += 1
            report.drop(reading.name, kind)
        encoded = reading.encode(groups, report, indices[0])
        return {key: [row[key] for row in encoded] for key in features}

    columns = data.column_names or list(next(iter(data)))
    return data.map(encode_batch, batched=True, batch_size=64, with_indices=True, remove_columns=columns, features=features)
