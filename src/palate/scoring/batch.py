"""Millions of rows scored in shards: by this process, by the ranks of a launcher, or by Ray Data actors; stopped at any moment and gone on with.

A shard is a range of rows of one JSONL or Parquet file. Whoever scores it writes `part-00012.jsonl` whole or not at all, then `part-00012.done`; a
shard with a done file is never scored again. Shards do not depend on who scores them, so every engine writes the same bytes. `manifest.json` says
what was scored with what, and a folder goes on only with the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tqdm.auto import tqdm

from palate.data.formats import LAYOUTS, detect_layout
from palate.errors import ConfigError, DataError, ModelError, StorageError
from palate.models.checkpoints import package_versions, write_text
from palate.scoring.rows import Detailed, LocatedRow, open_detailed, scored_rows
from palate.scoring.unranked import as_read

SHARD_ROWS = 4096
"""Rows scored and written together: some seconds of work on a GPU, so that little is lost when a worker dies."""

FINGERPRINTED = 2**20  # bytes at the beginning and at the end of an input that are hashed, beside its size

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """Rows [first, first + rows) of a file; `offset` is where a JSONL file holds them, in bytes."""

    number: int
    path: str
    first: int
    rows: int
    offset: int = 0


@dataclass(frozen=True)
class ScoringJob:
    """All that a worker needs to know."""

    model: str
    output: str
    layout: str
    columns: dict[str, str] | None = None
    on_long: str = "nan"
    options: dict[str, Any] = field(default_factory=dict)  # of open_scorer


# --- planning -------------------------------------------------------------------------------------------------------------------------------------


def plan_shards(paths: Sequence[Path], shard_rows: int) -> list[Shard]:
    """The shards of some files, in order. Raises DataError for files that are neither JSONL nor Parquet."""
    if shard_rows < 1:
        raise ConfigError(f"--shard-rows is {shard_rows}, expected at least 1")
    shards: list[Shard] = []
    for path in paths:
        for first, rows, offset in _jsonl_ranges(path, shard_rows) if path.suffix in (".jsonl", ".ndjson") else _parquet_ranges(path, shard_rows):
            shards.append(Shard(len(shards), str(path), first, rows, offset))
    if not shards:
        raise DataError(f"{', '.join(map(str, paths))}: no rows to score")
    return shards


def input_files(data: str | Path) -> list[Path]:
    """The JSONL and Parquet files of a path."""
    path = Path(data)
    found = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".ndjson", ".parquet")) if path.is_dir() else [path]
    if not found or not all(p.is_file() and p.suffix in (".jsonl", ".ndjson", ".parquet") for p in found):
        raise DataError(f"{path}: expected a .jsonl or .parquet file, or a folder of them; other formats are scored into a single output file")
    return found


def _jsonl_ranges(path: Path, shard_rows: int) -> Iterator[tuple[int, int, int]]:
    """(first row, rows, offset in bytes) of each shard; every line counts, blank and broken ones too."""
    first = rows = offset = at = 0
    with path.open("rb") as file:
        for line in file:
            rows, at = rows + 1, at + len(line)
            if rows == shard_rows:
                yield first, rows, offset
                first, rows, offset = first + rows, 0, at
    if rows:
        yield first, rows, offset


def _parquet_ranges(path: Path, shard_rows: int) -> Iterator[tuple[int, int, int]]:
    try:
        total = pyarrow.parquet.ParquetFile(path).metadata.num_rows
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    for first in range(0, total, shard_rows):
        yield first, min(shard_rows, total - first), 0


def read_shard(shard: Shard) -> list[LocatedRow]:
    """The rows of a shard with their places. A line that is no JSON object becomes the row {"line": its text}; blank lines are left out."""
    path = Path(shard.path)
    if path.suffix == ".parquet":
        return [(f"{path.name} row {shard.first + i}", row) for i, row in enumerate(_parquet_rows(path, shard.first, shard.rows), 1)]
    rows: list[LocatedRow] = []
    with path.open("rb") as file:
        file.seek(shard.offset)
        for number, line in enumerate(islice(file, shard.rows), shard.first + 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").strip()
            if text:
                rows.append((f"{path.name} line {number}", _object(text)))
    return rows


def _object(text: str) -> dict[str, Any]:
    """The object of a line, or the line as text where it is none that can be read and written again (half a surrogate pair, endless nesting)."""
    try:
        row = json.loads(text)
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return {"line": text}
    return row if isinstance(row, dict) else {"line": text}


def _parquet_rows(path: Path, first: int, rows: int) -> list[dict[str, Any]]:
    """Rows [first, first + rows), from the row groups that hold them."""
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    found: list[dict[str, Any]] = []
    start = 0
    for group in range(metadata.num_row_groups):
        stop = start + metadata.row_group(group).num_rows
        if stop > first and start < first + rows:
            begin, end = max(first, start), min(first + rows, stop)
            found += _row_group(path, group).slice(begin - start, end - begin).to_pylist()
        start = stop
    return found


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int) -> pyarrow.Table:
    """The last one is kept: shards follow each other, and several lie in one group."""
    return pyarrow.parquet.ParquetFile(path).read_row_group(group)


# --- one shard ------------------------------------------------------------------------------------------------------------------------------------


class ShardScorer:
    """Scores shards one after the other with a model loaded once; what Ray makes an actor of."""

    def __init__(self, job: ScoringJob, scorer: Detailed | None = None):
        self.job = job
        self.scorer = scorer or open_detailed(job.model, **job.options)
        self.layout = next(layout for layout in LAYOUTS if layout.name == job.layout)

    def score(self, shard: Shard) -> dict[str, int]:
        """Write the part of a shard, then its done file. Returns {rows, failed}."""
        rows = scored_rows(self.scorer, read_shard(shard), self.layout, columns=self.job.columns, on_long=self.job.on_long)
        counts = {"rows": len(rows), "failed": sum("reward_error" in row for row in rows)}
        part, done = part_files(self.job.output, shard.number)
        write_text(part, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
        write_text(done, json.dumps(counts))
        return counts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Shards as Ray Data hands them over: columns of their fields."""
        columns = (batch[name] for name in ("number", "path", "first", "rows", "offset"))
        shards = [Shard(int(number), str(path), int(first), int(rows), int(offset)) for number, path, first, rows, offset in zip(*columns, strict=True)]
        counts = [self.score(shard) for shard in shards]
        return {name: [one[name] for one in counts] for name in ("rows", "failed")}


def part_files(output: str | Path, number: int) -> tuple[Path, Path]:
    return Path(output) / f"part-{number:05d}.jsonl", Path(output) / f"part-{number:05d}.done"


# --- whole jobs -----------------------------------------------------------------------------------------------------------------------------------


def open_output(
    job: ScoringJob, paths: Sequence[Path], shards: Sequence[Shard], contract_sha256: str | None, template_sha256: str | None, *, resume: bool
) -> list[Shard]:
    """Write the manifest, or compare with the one that is there. Returns the shards that are still to be scored.

    Raises StorageError where the folder holds another job, or this one without `resume`.
    """
    folder = Path(job.output)
    manifest = {
        "model": job.model,
        "contract_sha256": contract_sha256,
        "chat_template_sha256": template_sha256,
        "inputs": [{"path": str(path), "bytes": path.stat().st_size, "sha256_of_ends": _fingerprint(path)} for path in paths],
        "layout": job.layout,
        "columns": job.columns,
        "on_long": job.on_long,
        "options": {key: str(value) for key, value in job.options.items()},
        "rows": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "shards_sha256": hashlib.sha256(json.dumps([asdict(shard) for shard in shards]).encode()).hexdigest(),
        "weights": [_fingerprint(file) for file in sorted(Path(job.model).glob("*.safetensors"))],
        "versions": package_versions(),
    }
    path = folder / MANIFEST
    rank, _ = rank_and_ranks()
    if rank:  # the first rank looks after the folder; the others come when its manifest is there
        waited = 0.0
        while not path.is_file():
            if waited > PATIENCE:
                raise StorageError(f"{path}: was not written within {PATIENCE:.0f} s; did the first rank fail?")
            time.sleep(0.5)
            waited += 0.5
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in manifest if key != "versions" and before.get(key) != manifest[key]]:
            raise StorageError(f"{folder}: holds another job ({', '.join(changed)} differ); choose another --output")
        if not resume and not rank:
            raise StorageError(f"{folder}: holds this job already; go on with it by --resume, or choose another --output")
    elif folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder}: is not empty and holds no {MANIFEST}; choose another --output")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(manifest, indent=1) + "\n")
    return [shard for shard in shards if not part_files(folder, shard.number)[1].is_file()]


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(FINGERPRINTED))
        file.seek(max(0, path.stat().st_size - FINGERPRINTED))
        found.update(file.read(FINGERPRINTED))
    return found.hexdigest()


def first_layout(shards: Sequence[Shard], columns: dict[str, str] | None) -> str:
    """The layout that the first readable row has. Raises DataError where none has one."""
    for shard in shards:
        for location, row in read_shard(shard):
            if "line" not in row or len(row) > 1:
                return detect_layout(as_read(row, columns, location)).name
    raise DataError("no line of the input is a JSON object")


PATIENCE = 600.0  # seconds that a rank waits for the first one


def rank_and_ranks() -> tuple[int, int]:
    """Which process this is, and of how many, as launchers (torchrun, srun with its variables renamed) say."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def score_here(job: ScoringJob, shards: Sequence[Shard], scorer: Detailed | None = None) -> None:
    """One shard after the other; of several ranks each takes its own, by the shard's number, so that it does not matter when they start."""
    rank, ranks = rank_and_ranks()
    mine = [shard for shard in shards if shard.number % ranks == rank]
    if not mine:
        return
    worker = ShardScorer(job, scorer)
    for shard in tqdm(mine, desc="scoring", unit="shard", disable=rank != 0):
        worker.score(shard)


def score_on_ray(job: ScoringJob, shards: Sequence[Shard], workers: int | None) -> None:
    """Ray Data actors, one a GPU (or `workers` of them on CPUs); an actor that dies is started again and its shard scored by another."""
    try:
        import ray
    except ImportError as error:
        raise ModelError("--engine ray needs Ray: pip install 'palate[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    count = workers or gpus or 1
    if gpus and count > gpus:
        raise ConfigError(f"--workers is {count}, but Ray has {gpus} GPUs; one actor a device")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    blocks = min(len(shards), MOST_BLOCKS)
    scored = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=blocks).map_batches(
        ShardScorer,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
        max_restarts=-1,
        max_task_retries=-1,
    )
    with tqdm(total=len(shards), desc=f"scoring with {count} actors", unit="shard") as bar:
        for batch in scored.iter_batches(batch_size=1):
            bar.update(len(batch["rows"]))


MOST_BLOCKS = 10_000
"""Ray Data plans a task for each block; with more shards than this a task takes several."""


def totals(output: str | Path, shards: Sequence[Shard]) -> dict[str, int]:
    """{shards, rows, failed} of what is finished."""
    done = [part_files(output, shard.number)[1] for shard in shards]
    counts = [json.loads(path.read_text(encoding="utf-8")) for path in done if path.is_file()]
    return {"shards": len(counts), **{name: sum(one[name] for one in counts) for name in ("rows", "failed")}}
