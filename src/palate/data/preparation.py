"""Groups or `datasets` objects to encoded training data: flat columns in Arrow, with every dropped row counted.

One function encodes a chunk of groups; plain lists call it in this process, `datasets.Dataset.map` calls it in several, streams as they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as SequenceOf

from palate import __version__
from palate.data.collation import encoded_row
from palate.data.formats import detect_layout, parse_row
from palate.data.loading import located
from palate.data.tokenization import EncodedGroup, Encoder, EncodeReport
from palate.errors import DataError, RowError
from palate.types import PreferenceGroup

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


def is_encoded(dataset: Any) -> bool:
    return isinstance(dataset, (Dataset, IterableDataset)) and set(dataset.column_names or ()) >= {"token_ids", "chosen", "weight"}


def prepare(
    data: Dataset | IterableDataset | Sequence[PreferenceGroup],
    encoder: Encoder,
    *,
    name: str,
    ties: str = "drop",
    on_bad_row: str = "error",
    margins: bool = True,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, EncodeReport]:
    """Encoded data and the account of it. Raises DataError when rows are bad (see `on_bad_row`) or when nothing is left."""
    report = EncodeReport()
    if is_encoded(data):
        return numbered(data), report
    if isinstance(data, IterableDataset):
        return _stream(data, encoder, report, ties=ties, name=name, margins=margins, on_bad_row=on_bad_row), report
    if isinstance(data, Dataset):
        encoded, report = _map(data, encoder, ties=ties, num_proc=num_proc, name=name, on_bad_row=on_bad_row, margins=margins)
    else:
        rows = [encoded_row(e, i) for i, e in enumerate(encoder.encode_groups(data, report, ties=ties))]
        if not rows:
            raise nothing_left(name, report)
        encoded = Dataset.from_list(rows, features=ENCODED_FEATURES)
    return encoded, report


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


def _parse(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str, layout: Any, margins: bool) -> tuple[list[PreferenceGroup], list[tuple[str, str]]]:
    groups, bad = [], []
    for i, row in rows:
        try:
            groups.append(located(parse_row(row, layout, margins=margins), name, f"{name} row {i + 1}"))
        except RowError as error:
            bad.append((error.kind, f"{name} row {i + 1}: {error.kind}: {error}"))
    return groups, bad


def _map(data: Dataset, encoder: Encoder, *, ties: str, num_proc: int | None, name: str, on_bad_row: str, margins: bool) -> tuple[Dataset, EncodeReport]:
    layout = detect_layout(data.column_names)
    version = __version__  # part of the closure, and so of the cache's key: another palate may encode otherwise

    def encode_batch(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        assert version
        groups, bad = _parse(zip(indices, rows, strict=True), name, layout, margins)
        # `source` columns of the data keep their meaning in metadata; here every row belongs to the data set as a whole
        account = EncodeReport()
        # a row gives one group at most, so numbers counted from the batch's first row are its own
        kept = encoder.encode_groups((_of(group, name) for group in groups), account, ties=ties)
        encoded = [encoded_row(e, indices[0] + i) for i, e in enumerate(kept)]
        columns: dict[str, list[Any]] = {key: [row[key] for row in encoded] for key in ENCODED_FEATURES}
        notes = [("cut", "", account.cut[name]), ("tokens", "", account.tokens), ("unique", "", account.unique_tokens), ("longest", "", account.longest)]
        notes += [("dropped", reason, count) for reason, count in account.dropped.get(name, {}).items()]
        notes += [(f"bad {kind}", message, 1) for kind, message in bad]
        columns["note"] = [""] * len(encoded)
        for kind, text, count in notes:
            empty = {"token_ids": [], "chosen": [], "rejected": [], "margin": [], "weight": [], "probability": [], "group": -1, "length": count, "tokens": 0}
            for key, value in empty.items():
                columns[key].append(value)
            columns["note"].append(f"{kind}\t{text}")
        return columns

    features = Features({**ENCODED_FEATURES, "note": Value("string")})
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
        else:
            bad.append(text)
            report.drop(name, kind.removeprefix("bad "))
    if bad and on_bad_row == "error":
        shown = "\n  ".join(bad[:3])
        raise DataError(f"{name}: {len(bad)} of {len(data)} rows cannot be used\n  {shown}\nMend the rows, or set on_bad_row to drop (such rows are counted).")
    report.groups[name], report.kept[name] = len(data), len(encoded)
    if not len(encoded):
        raise nothing_left(name, report)
    return encoded, report


def _of(group: PreferenceGroup, source: str) -> PreferenceGroup:
    return PreferenceGroup(group.prompt, group.responses, group.comparisons, group.ratings, {**group.metadata, "source": source}, group.template_args)


def _stream(data: IterableDataset, encoder: Encoder, report: EncodeReport, *, ties: str, name: str, margins: bool, on_bad_row: str) -> IterableDataset:
    """Encode while training; bad rows of a stream are counted in `report`, for a stream cannot be looked over first."""

    def encode_batch(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        groups, bad = _parse(zip(indices, rows, strict=True), name, None, margins)
        if bad and on_bad_row == "error":
            raise DataError(f"{bad[0][1]}\nMend the row, or set on_bad_row to drop (such rows are counted).")
        for kind, _ in bad:
            report.groups[name] += 1
            report.drop(name, kind)
        encoded: list[EncodedGroup] = list(encoder.encode_groups((_of(group, name) for group in groups), report, ties=ties))
        numbered = [encoded_row(e, indices[0] + i) for i, e in enumerate(encoded)]
        return {key: [row[key] for row in numbered] for key in ENCODED_FEATURES}

    columns = data.column_names or list(next(iter(data)))
    return data.map(encode_batch, batched=True, batch_size=64, with_indices=True, remove_columns=columns, features=ENCODED_FEATURES)
