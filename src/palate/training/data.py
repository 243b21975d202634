"""The data of a run: read into memory, mapped from Arrow files on disk, or streamed; mixed by the weights of their sources.

In memory groups are shuffled and held out at will. Mapped data take no memory to speak of: rows are read and encoded by several processes into Arrow
files, which are kept and found again while the source, the tokenizer and the settings are the same. A stream's sources take turns by chance, as often
as their weights say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset, concatenate_datasets

from palate.data.collation import encoded_row
from palate.data.loading import LoadReport, iter_groups, load_groups, mix, picked, rename_columns, split_by_prompt
from palate.data.preparation import encoded_features, prepare
from palate.data.tokenization import Encoder, EncodeReport
from palate.errors import ConfigError, DataError
from palate.training.embeddings import with_prompt_embeddings
from palate.training.settings import HeldOut, RunSettings, SourceSettings
from palate.training.supervision import Plan, check_data
from palate.types import PreferenceGroup, Supervision

SHUFFLE_BUFFER = 1024  # groups shuffled at a time while streaming


@dataclass
class RunData:
    """Training groups (None where they are mapped or streamed), evaluation groups, and what became of every source's rows."""

    train: list[PreferenceGroup] | None
    evaluation: list[PreferenceGroup] | None
    reports: list[LoadReport] = field(default_factory=list)


def load_data(settings: RunSettings) -> RunData:
    """Read, mix and split the data of a run. Raises DataError when a row is bad (see data.on_bad_row) or a split is impossible."""
    data = settings.data
    reports: list[LoadReport] = []

    def read(sources: Sequence[SourceSettings]) -> list[list[PreferenceGroup]]:
        loaded = [load_groups(source.path, split=source.split, on_bad_row=data.on_bad_row, name=source.name, **reading(settings, source)) for source in sources]
        reports.extend(report for one in loaded for report in one.reports)
        return [one.groups for one in loaded]

    def mixed(sources: Sequence[SourceSettings], groups: Sequence[Sequence[PreferenceGroup]]) -> list[PreferenceGroup]:
        parts = zip(sources, groups, strict=True)
        return [group for i, (source, part) in enumerate(parts) for group in mix(part, weight=source.weight, cap=source.cap, seed=data.seed + i)]

    if data.streaming or data.mapped:
        if isinstance(data.eval, HeldOut):
            raise ConfigError("data.eval: {split: ...} needs the whole data in memory; with data.streaming or data.mapped give data.eval a file")
        if data.streaming and not settings.training.get("max_steps"):
            raise ConfigError("data.streaming: a stream has no known end; set training.max_steps")
        return RunData(None, mixed(data.eval, read(data.eval)) if data.eval else None, reports)
    sources = read(data.train)
    if isinstance(data.eval, HeldOut):
        # held out before mixing, so that a source counted twice is not evaluated twice
        _, evaluation = split_by_prompt([group for part in sources for group in part], fraction=data.eval.split, seed=data.seed)
        held = {id(group) for group in evaluation}
        return RunData(mixed(data.train, [[g for g in part if id(g) not in held] for part in sources]), evaluation, reports)
    return RunData(mixed(data.train, sources), mixed(data.eval, read(data.eval)) if data.eval else None, reports)


def reading(settings: RunSettings, source: SourceSettings) -> dict[str, Any]:
    """Which columns of a source are read, and as what."""
    rule = settings.loss.margin_source
    return {
        "columns": source.columns or settings.data.columns,
        "margins": rule == "column",
        "strengths": rule in ("strength", "llama2_small", "llama2_large"),
    }


# --- mapped ---------------------------------------------------------------------------------------------------------------------------------------

READERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def mapped(settings: RunSettings, encoder: Encoder, plan: Plan) -> tuple[Dataset, EncodeReport]:
    """Encoded data in Arrow files, source after source by their weights and caps, and the account of them."""
    data, total, parts = settings.data, EncodeReport(), []
    for i, source in enumerate(data.train):
        rows = renamed(read_mapped(source), source.columns or data.columns)
        encoded, report = prepare(
            rows,
            encoder,
            name=source.name or Path(source.path).name,
            ties=data.ties,
            on_bad_row=data.on_bad_row,
            supervision=plan.supervision,
            off_topic=data.off_topic_negatives,
            num_proc=data.num_proc,
            seed=data.seed,
        )
        total.add(report)
        parts.append(encoded.select(picked(len(encoded), source.weight, source.cap, data.seed + i)))
    check_data(plan, total, "train", ties=data.ties)
    whole = concatenate_datasets(parts)
    whole = whole.remove_columns("group").add_column("group", range(len(whole)))
    if settings.loss.cross_prompt is not None:
        whole = with_prompt_embeddings(whole, settings.loss.cross_prompt.encoder)
    return whole, total


def read_mapped(source: SourceSettings) -> Dataset:
    """The raw rows of a source as an Arrow file. Raises DataError for what `datasets` cannot read."""
    path = Path(source.path)
    try:
        if path.is_dir():
            return datasets.load_dataset(str(path), split=source.split)
        if path.exists():
            if path.suffix not in READERS:
                raise DataError(f"{path}: data.mapped reads {', '.join(READERS)}; leave it out for other files")
            return datasets.load_dataset(READERS[path.suffix], data_files=str(path), split="train")
        return datasets.load_dataset(source.path, split=source.split)
    except (FileNotFoundError, ConnectionError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{source.path}: cannot be read for data.mapped: {error.__cause__ or error}") from error


def renamed(rows: Dataset, columns: dict[str, str] | None) -> Dataset:
    if not columns:
        return rows
    names = list(rename_columns(dict.fromkeys(rows.column_names), columns, "the data"))
    return rows.rename_columns({old: new for old, new in zip(rows.column_names, names, strict=True) if old != new})


# --- streamed -------------------------------------------------------------------------------------------------------------------------------------


def streamed(settings: RunSettings, encoder: Encoder, report: EncodeReport, supervision: Supervision) -> IterableDataset:
    """Encoded groups read as training asks for them, shuffled within a buffer; sources are drawn by their weights."""
    if supervision.prompts:
        raise ConfigError("loss.cross_prompt embeds all prompts before training; it needs data in memory, not data.streaming")

    def rows() -> Iterator[dict[str, Any]]:
        for i, encoded in enumerate(encoder.encode_groups(drawn(settings), report, ties=settings.data.ties, supervision=supervision)):
            yield encoded_row(encoded, i, supervision)

    return IterableDataset.from_generator(rows, features=encoded_features(supervision)).shuffle(seed=settings.data.seed, buffer_size=SHUFFLE_BUFFER)


def drawn(settings: RunSettings) -> Iterator[PreferenceGroup]:
    """Groups of all sources, each as often as its weight says, until every source has ended once; those that end before are begun again."""
    sources = settings.data.train
    draw = random.Random(settings.data.seed)
    running = {i: once(settings, source) for i, source in enumerate(sources)}
    ended: set[int] = set()
    while True:
        (i,) = draw.choices(list(running), [sources[i].weight for i in running])
        group = next(running[i], None)
        if group is None:
            ended.add(i)
            if len(ended) == len(sources):
                return
            running[i] = once(settings, sources[i])
            group = next(running[i], None)
        if group is None:
            del running[i]  # not one usable row in it
        else:
            yield group


def once(settings: RunSettings, source: SourceSettings) -> Iterator[PreferenceGroup]:
    """One pass over a source. Raises DataError at its end for rows that could not be used (see data.on_bad_row)."""
    account = LoadReport(source.name or source.path)
    yield from iter_groups(source.path, account, split=source.split, streaming=True, **reading(settings, source))
    if account.bad and settings.data.on_bad_row == "error":
        raise DataError(f"{account.source}: {sum(account.bad.values())} rows cannot be used: " + "; ".join(account.examples))
