"""Files, hub ids and `datasets` objects to preference groups: reading, mixing with weights and caps, splitting by prompt.

Local JSON, JSONL, CSV and Parquet files (also .gz), folders of them, ids on the Hugging Face Hub, `datasets.Dataset` objects and plain lists of
rows all become the same `PreferenceGroup`s. Rows may differ in shape (a prompt here a text, there a chat), so JSON is read line by line: a
broken line is named by its number. Every row that is not used is counted by kind in a `LoadReport`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from palate.data.formats import Layout, detect_layout, parse_row
from palate.errors import DataError, RowError, tally
from palate.types import Conversation, PreferenceGroup, text_of

Source: TypeAlias = str | Path | Iterable[Mapping[str, Any]]
"""A file, a folder, a hub id, a `datasets` object, or rows in memory."""

FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
LABELLED_PAIRS = "two responses and a label"
MIN_LABELS = 20  # labels needed before their base is judged
OPTIONAL_COLUMNS = ("margin", "weight", "tools", "system")  # may be absent from single rows
EXAMPLES_SHOWN = 3  # bad rows quoted in full in a message; the others are counted


@dataclass
class LoadReport:
    """What became of the rows of one source: n in, n out, and why the others were left out."""

    source: str
    layout: str = ""
    rows: int = 0
    groups: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # kind -> rows
    examples: list[str] = field(default_factory=list)

    def record(self, location: str, error: RowError) -> None:
        self.bad[error.kind] += 1
        if len(self.examples) < EXAMPLES_SHOWN:
            self.examples.append(f"{location}: {error.kind}: {error}")

    def as_dict(self) -> dict[str, Any]:
        return {"source": self.source, "layout": self.layout, "rows": self.rows, "groups": self.groups, "bad_rows": dict(self.bad), "examples": self.examples}


@dataclass(frozen=True)
class Loaded:
    groups: list[PreferenceGroup]
    reports: list[LoadReport]


def load_groups(
    source: Source,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    name: str | None = None,
    margins: bool = True,
    strengths: bool = False,
) -> Loaded:
    """All preference groups of one source.

    `columns` maps our column names to the source's ({"chosen": "better"}). `on_bad_row`: "error" raises one DataError that counts every kind of
    bad row and quotes the first ones; "drop" leaves them out, counted in the report. `margins=False` leaves a margin column unread,
    `strengths=True` reads a strength column.
    """
    report = LoadReport(name or source_name(source))
    groups = list(iter_groups(source, report, split=split, columns=columns, margins=margins, strengths=strengths))
    if not report.rows:
        raise DataError(f"{report.source}: no rows; expected at least one preference row")
    check_label_base(groups, report)
    if report.bad and on_bad_row == "error":
        kinds = tally(dict(report.bad.most_common()))
        shown = "\n".join(f"  {example}" for example in report.examples)
        raise DataError(
            f"{report.source}: {sum(report.bad.values())} of {report.rows} rows cannot be used ({kinds})\n{shown}\n"
            "Mend the rows, or set data.on_bad_row: drop to leave such rows out (they are counted)."
        )
    if not groups:
        raise DataError(f"{report.source}: none of its {report.rows} rows can be used: {tally(report.bad)}\n" + "\n".join(report.examples))
    return Loaded(groups, [report])


def check_label_base(groups: Sequence[PreferenceGroup], report: LoadReport) -> None:
    """Refuse labels that look 0-based: where 0 is a tie, a set with many ties in which the second response never wins is not believable."""
    decided = [c for group in groups for c in group.comparisons]
    ties = sum(c.is_tie for c in decided)
    if report.layout == LABELLED_PAIRS and len(decided) >= MIN_LABELS and ties >= len(decided) / 5 and not any(c.chosen == 1 for c in decided):
        raise DataError(
            f"{report.source}: of {len(decided)} labels {ties} are ties (0) and none says that the second response is better; labels seem to count "
            "from 0. Write 1 for the first, 2 for the second and 0 for a tie."
        )


def iter_groups(
    source: Source,
    report: LoadReport,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    margins: bool = True,
    strengths: bool = False,
    streaming: bool = False,
) -> Iterator[PreferenceGroup]:
    """Groups one by one (for streaming); bad rows are recorded in `report` and skipped."""
    layout: Layout | None = None
    for location, row in read_rows(source, split=split, report=report, streaming=streaming):
        report.rows += 1
        if columns:
            row = rename_columns(row, columns, location)
        try:
            if layout is None:
                layout = detect_layout(row)
                report.layout = layout.name
            group = parse_row(row, layout, margins=margins, strengths=strengths)
        except RowError as error:
            report.record(location, error)
            continue
        except DataError as error:
            raise DataError(f"{location}: {error}") from error
        report.groups += 1
        yield located(group, report.source, location)


def located(group: PreferenceGroup, source: str, location: str) -> PreferenceGroup:
    """The group with its origin in the metadata; a `source` column of the data set itself wins."""
    metadata = {"source": source, **group.metadata, "location": location}
    return replace(group, metadata=metadata)


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str], location: str) -> dict[str, Any]:
    missing = [theirs for ours, theirs in columns.items() if theirs not in row and ours not in OPTIONAL_COLUMNS]
    if missing:
        near = difflib.get_close_matches(missing[0], list(row), n=3, cutoff=0.3)
        raise DataError(
            f"{location}: data.columns names the column `{missing[0]}`, which is not there; columns: {', '.join(row)}; nearest: {', '.join(near) or 'none'}"
        )
    back = {theirs: ours for ours, theirs in columns.items()}
    renamed = {key: value for key, value in row.items() if key not in columns or key in back}
    return {back.get(key, key): value for key, value in renamed.items()}


# --- reading -----------------------------------------------------------------------------------------------------------------------------


def source_name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).name if Path(source).exists() else str(source)
    return type(source).__name__


def read_rows(
    source: Source, *, split: str = "train", report: LoadReport | None = None, streaming: bool = False, config: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(location, row) of every row; `streaming` reads a hub data set as it comes, without downloading it first.

    Of a hub data set `config` names the configuration, and the split `*` stands for all splits, each named in the column `hub_split`.

    Raises DataError for a missing file or a file that is not what its name says.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            yield from _read_folder(path, split, report)
        elif path.exists():
            yield from _read_file(path, report)
        elif path.suffix in FILE_SUFFIXES or path.suffix == ".gz" or not HUB_ID.match(str(source)):
            raise DataError(_missing_file(path))
        else:
            yield from _read_hub(str(source), split, streaming, config)
        return
    name = source_name(source)
    for i, row in enumerate(source, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name} row {i} is {type(row).__name__}, expected a mapping of columns")
        yield f"{name} row {i}", row


def _missing_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path(".")
    names = [p.name for p in folder.iterdir() if p.name.endswith((*FILE_SUFFIXES, ".gz"))]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return (
        f"{path}: no such file or folder (looked in {folder.resolve()}){hint} A name like `owner/dataset` without a suffix is read from the Hugging Face Hub."
    )


def _read_folder(folder: Path, split: str, report: LoadReport | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.removesuffix(".gz").endswith(FILE_SUFFIXES) and not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: the folder has no {', '.join(FILE_SUFFIXES)} file")
    splits = {path: split_of(path, folder) for path in files}
    wanted = [path for path, name in splits.items() if name == split]
    known = sorted({name for name in splits.values() if name})
    if not wanted and known:
        raise DataError(f"{folder}: no file of split `{split}`; the files name the splits {', '.join(known)}")
    for path in wanted or files:
        yield from _read_file(path, report)


SPLIT_NAME = re.compile(r"^(train|test|validation|valid|val|eval|dev)([_-]?[a-z]+)*$")


def split_of(path: Path, folder: Path) -> str | None:
    """The split that a file's name (`train_prefs-00000-of-00002.parquet`, `test.jsonl`) or its folder's name says; None where neither does."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.name.split(".")[0])
    parents = path.relative_to(folder).parts[:-1]
    return next((name for name in (stem, *reversed(parents)) if SPLIT_NAME.match(name.lower())), None)


def _read_file(path: Path, report: LoadReport | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(path, report)
        elif suffix == ".json":
            yield from _read_json(path)
        elif suffix in (".csv", ".tsv"):
            yield from _read_csv(path, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            yield from _read_parquet(path)
        else:
            raise DataError(f"{path}: unknown kind of file `{suffix}`, expected one of {', '.join(FILE_SUFFIXES)} (or .gz of it)")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from error


def _open_text(path: Path) -> IO[str]:
    """utf-8-sig: the byte-order mark that spreadsheets write is no part of the first column's name."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path, report: LoadReport | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            location = f"{path.name} line {number}"
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise RowError("broken line", f"holds a JSON {type(row).__name__}, expected an object")
            except (json.JSONDecodeError, RowError) as error:
                broken = RowError("broken line", f"not a JSON object: {error}")
                if report is None:
                    raise DataError(f"{location}: {broken}") from error
                report.rows += 1
                report.record(location, broken)
                continue
            yield location, row


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with _open_text(path) as file:
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: broken JSON at line {error.lineno}: {error.msg}; one object a line belongs in a .jsonl file") from error
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}, expected a list of objects")
    for number, row in enumerate(rows, 1):
        yield f"{path.name} row {number}", row


def _read_csv(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than one long dialogue
    with _open_text(path) as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for row in reader:
            location = f"{path.name} line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{location}: has another number of fields than the header ({len(reader.fieldnames or [])})")
            # CSV knows only text: an empty field of a column that is not text means "none given"
            yield location, {key: (None if value == "" and key in ("margin", "weight") else value) for key, value in row.items()}


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path.name} row {number}", row


def _read_hub(name: str, split: str, streaming: bool, config: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=None if split == "*" else split, streaming=streaming)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise DataError(f"{name}: neither a local file nor a data set that the Hugging Face Hub gave for split `{split}`: {error}") from error
    if split == "*":
        for part, rows in loaded.items():
            for number, row in enumerate(rows, 1):
                yield f"{name} {part} row {number}", {**row, "hub_split": part}
        return
    for number, row in enumerate(loaded, 1):
        yield f"{name} row {number}", row


# --- mixing and splitting --------------------------------------------------------------------------------------------------------------


def mix(groups: Sequence[PreferenceGroup], *, weight: float, cap: int | None, seed: int) -> list[PreferenceGroup]:
    """`weight` passes over a source per epoch (0.5 = a random half, 2 = every row twice), then at most `cap` rows, chosen by `seed`."""
    return [groups[i] for i in picked(len(groups), weight, cap, seed)]


def picked(size: int, weight: float, cap: int | None, seed: int) -> list[int]:
    """Indices of `weight` passes over `size` rows, at most `cap` of them."""
    order = random.Random(seed)
    chosen = list(range(size)) * int(weight)
    part = round((weight - int(weight)) * size)
    if part:
        chosen += order.sample(range(size), part)
    if cap is not None and len(chosen) > cap:
        chosen = [chosen[i] for i in sorted(order.sample(range(len(chosen)), cap))]
    return chosen


def prompt_key(prompt: Conversation) -> str:
    """A prompt's identity: equal but for blanks and letter case."""
    return hashlib.sha256(" ".join(text_of(prompt).lower().split()).encode()).hexdigest()[:16]


def split_by_prompt(groups: Sequence[PreferenceGroup], *, fraction: float, seed: int) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """(train, held out): whole prompts are held out until `fraction` of the groups is reached, so no prompt stands on both sides.

    Groups without a prompt (whole dialogues) go by their own text.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[prompt_key(group.prompt if text_of(group.prompt).strip() else group.responses[0])].append(i)
    keys = sorted(members)
    random.Random(seed).shuffle(keys)
    wanted, held = fraction * len(groups), set[int]()
    for key in keys:
        # stop where the next prompt would overshoot by more than stopping falls short
        if len(held) + len(members[key]) / 2 > wanted and (held or len(members) < 2):
            break
        held.update(members[key])
    train = [group for i, group in enumerate(groups) if i not in held]
    if not train or not held:
        raise DataError(
            f"cannot hold out {fraction:.0%} of {len(groups)} groups by prompt: there are only {len(members)} different prompts; "
            "give data.eval a file of its own"
        )
    return train, [groups[i] for i in sorted(held)]


def fingerprint(groups: Iterable[PreferenceGroup]) -> str:
    """SHA-256 over prompts, responses and comparisons, in order: what exactly was trained on."""
    digest = hashlib.sha256()
    for group in groups:
        payload = [_plain(group.prompt), [_plain(r) for r in group.responses], [list(c) for c in group.comparisons]]
        digest.update(json.dumps(payload, sort_keys=True, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()


def _plain(conversation: Conversation) -> Any:
    return conversation if isinstance(conversation, str) else list(conversation)
