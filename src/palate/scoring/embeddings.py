"""Embeddings that are computed once: a store on disk a model, appended to, mapped into memory.

What the head reads of a response decides its reward under every head, so decompositions, adaptation and attributes all start from the same rows.
100 000 of 4096 numbers are 1.6 GB: they are written as they are computed, and read as a map of the file, never as one array.

    embedder = open_embedder("out").embedder
    rows = embedder.embed(exchanges)     # Embeddings: len, width, rows.take([3, 1]), rows.batches(4096)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, StorageError
from palate.models.checkpoints import write_text
from palate.scoring.cache import canonical, canonical_exchange, default_cache
from palate.scoring.local import LocalScorer
from palate.scoring.sources import Opened, open_scorer
from palate.types import Conversation, Exchange

CHUNK = 256  # responses computed between two writes: what an interruption can lose; packed rows are full enough with as many
BATCH = 4096  # rows read together: 64 MiB at a width of 4096
ROWS, KEYS, ABOUT = "embeddings.f32", "keys.bin", "about.json"
RECORD = np.dtype([("key", "V32"), ("sum", "<u4")])
"""One key a row, in the order of the rows: SHA-256 of what was embedded, CRC-32 of the key and its row."""


class Embedder(Protocol):
    """Anything that turns conversations into vectors."""

    @property
    def width(self) -> int:
        """H, the size of a vector."""
        ...

    def embed(self, conversations: Sequence[Exchange | Conversation], *, on_long: str | None = None) -> np.ndarray:
        """float32 [N, H]; a row of NaN for what cannot be embedded."""
        ...


class Embeddings:
    """N vectors of width H that lie in a larger array, on disk as a rule: `rows[index]`, a row of NaN where the index is -1."""

    def __init__(self, rows: np.ndarray, index: npt.ArrayLike | None = None):
        self.rows = rows
        self.index = np.arange(len(rows)) if index is None else np.asarray(index, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    @property
    def missing(self) -> np.ndarray:
        """Which of the N have no embedding (too long, or empty), bool [N]."""
        return self.index < 0

    def take(self, which: npt.ArrayLike) -> np.ndarray:
        """The embeddings of these of the N (numbers or a mask), float32 [n, H]: a view of the map where they lie one behind the other, a copy otherwise."""
        wanted = self._of(which)
        if len(wanted) and wanted[0] >= 0 and bool((np.diff(wanted) == 1).all()):
            return self.rows[wanted[0] : wanted[-1] + 1]
        if not (wanted < 0).any():
            return np.asarray(self.rows[wanted])
        found = np.full((len(wanted), self.width), np.nan, dtype=np.float32)
        found[wanted >= 0] = self.rows[wanted[wanted >= 0]]
        return found

    def subset(self, which: npt.ArrayLike) -> Embeddings:
        """These of the N, nothing copied."""
        return Embeddings(self.rows, self._of(which))

    def _of(self, which: npt.ArrayLike) -> np.ndarray:
        chosen = np.asarray(which)
        return self.index[chosen if chosen.size else chosen.astype(np.int64)]  # an empty list is an array of floats

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """All N in order, `size` rows at a time."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All N in memory."""
        found = self.take(np.arange(len(self)))
        return np.array(found, dtype=dtype, copy=True) if copy else np.asarray(found, dtype=dtype)


class EmbeddingStore:
    """Rows [M, H] under keys in one folder, appended by any number of processes.

    A row is on the disk before its key is, so an interruption leaves rows without keys, which are written over, and never a key without its row.
    """

    def __init__(self, folder: str | Path, width: int, about: Mapping[str, Any]):
        """`about`: what the rows are embeddings of, for people. Raises StorageError where the folder cannot be written or holds another width."""
        self.folder, self.width = Path(folder), width
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / ABOUT
            if not path.exists():
                write_text(path, json.dumps({"width": width, "about": about}, indent=1, default=str) + "\n")
            found = json.loads(path.read_text(encoding="utf-8")).get("width")
        if found != width:
            raise StorageError(f"{self.folder}: holds embeddings of width {found}, expected {width}; remove the folder or name another one")

    def rows(self) -> np.ndarray:
        """Every row with a key, float32 [M, H], mapped."""
        count = self._count()
        if not count:
            return np.empty((0, self.width), dtype=np.float32)
        with self._disk():
            return np.memmap(self.folder / ROWS, dtype="<f4", mode="r", shape=(count, self.width))

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Row of each of these keys that is here and whole; a row that is not the one that was written is not found, and so computed again."""
        wanted, found, rows = set(keys), {}, self.rows()
        for i, record in enumerate(self._records(len(rows))):
            key = bytes(record["key"])
            if key in wanted and _checksum(key, rows[i]) == record["sum"]:
                found[key] = i
        return found

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> int:
        """Write rows [n, H] under their keys; the number of the first."""
        rows = np.ascontiguousarray(rows, dtype="<f4")
        if rows.shape != (len(keys), self.width):
            raise StorageError(f"{self.folder}: {len(keys)} keys and rows of the shape {rows.shape}; expected ({len(keys)}, {self.width})")
        records = np.array([(key, _checksum(key, row)) for key, row in zip(keys, rows, strict=True)], dtype=RECORD)
        with self._disk(), self._alone():
            first = self._count()
            _write(self.folder / ROWS, first * rows.itemsize * self.width, rows)
            _write(self.folder / KEYS, first * RECORD.itemsize, records)
        return first

    def _count(self) -> int:
        """Keys that were written whole and have their rows."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self.folder / KEYS, self.folder / ROWS)]
        return min(sizes[0] // RECORD.itemsize, sizes[1] // (4 * self.width))

    def _records(self, count: int) -> np.ndarray:
        with self._disk():
            return np.fromfile(self.folder / KEYS, dtype=RECORD, count=count) if count else np.empty(0, dtype=RECORD)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ABOUT, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a process that was killed
            yield

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, json.JSONDecodeError) as error:
            raise StorageError(f"{self.folder}: the embeddings cannot be kept there: {error}; name another folder, or remove it if it is broken") from error


class CachedEmbedder:
    """An embedder through a store: what was embedded once is read, the rest is computed and kept. What has no embedding (NaN) is not kept."""

    def __init__(self, embedder: Embedder, folder: str | Path, identity: Mapping[str, Any]):
        """`identity` decides the embeddings (`open_scorer` tells it); each has a folder of its own in `folder`."""
        self.embedder = embedder
        self.identity = hashlib.sha256(canonical(identity)).digest()
        self.store = EmbeddingStore(Path(folder) / self.identity.hex()[:16], embedder.width, identity)
        self.cached = 0  # conversations found
        self.computed = 0  # conversations handed to the embedder

    @property
    def width(self) -> int:
        return self.store.width

    def embed(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> Embeddings:
        """Embeddings of N conversations in input order; equal ones are computed once. Interrupted, it goes on where it stopped."""
        exchanges = [as_exchange(item) for item in conversations]
        keys = [self._key(exchange, on_long) for exchange in exchanges]
        known = self.store.find(keys)
        self.cached += sum(key in known for key in keys)
        missing: dict[bytes, Exchange] = {key: exchange for key, exchange in zip(keys, exchanges, strict=True) if key not in known}
        with tqdm(total=len(missing), desc="embedding", unit="response", disable=not progress or not missing) as bar:
            todo = list(missing.items())
            for start in range(0, len(todo), CHUNK):
                part = todo[start : start + CHUNK]
                rows = self.embedder.embed([exchange for _, exchange in part], on_long=on_long)
                self.computed += len(part)
                whole = np.flatnonzero(np.isfinite(rows).all(axis=1))
                if len(whole):
                    first = self.store.append([part[i][0] for i in whole], rows[whole])
                    known |= {part[i][0]: first + n for n, i in enumerate(whole)}
                bar.update(len(part))
        return Embeddings(self.store.rows(), [known.get(key, -1) for key in keys])

    def _key(self, exchange: Exchange, on_long: str | None) -> bytes:
        cut = on_long == "truncate_prompt"  # the other policies decide whether there is an embedding, this one which
        return hashlib.sha256(self.identity + bytes([cut]) + canonical_exchange(exchange)).digest()


class OpenedEmbedder(NamedTuple):
    embedder: CachedEmbedder
    scorer: LocalScorer
    opened: Opened


def default_embeddings() -> Path:
    """`embeddings` beside the cache of scores (`$PALATE_CACHE`, else among the user's caches)."""
    return default_cache().parent / "embeddings"


def open_embedder(source: str, folder: str | Path | None = None, **options: Any) -> OpenedEmbedder:
    """The embeddings of a checkpoint, kept in `folder` (default: among the user's caches). `options` as `open_scorer` takes them.

    Raises ConfigError for what is no checkpoint (an endpoint, an ensemble, an implicit reward) and for one with an input format of its own.
    """
    opened = open_scorer(source, **options)
    if opened.local is None or opened.identity is None or "input_format" in opened.description:
        raise ConfigError(
            f"{source}: embeddings are what the head of a checkpoint in this process reads; give the folder or hub id of one without an input format"
        )
    return OpenedEmbedder(CachedEmbedder(opened.local, folder or default_embeddings(), opened.identity), opened.local, opened)


def _checksum(key: bytes, row: np.ndarray) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key))


def _write(path: Path, start: int, values: np.ndarray) -> None:
    """Bytes at `start`, on the disk when this returns; what an interruption left behind them goes."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(start)
        file.seek(start)
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())
