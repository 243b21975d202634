"""Rewards that were computed once: a Scorer in front of a Scorer, over one SQLite file, keyed by (model, template, text).

An evaluation that was interrupted goes on where it stopped, and one that is repeated computes nothing. What could not be scored (NaN) is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.tokenization import as_exchange
from palate.errors import PalateError, StorageError
from palate.types import Conversation, Exchange, Scorer, TokenIds

CHUNK = 256  # responses scored between two writes: what an interruption can lose; packed rows are full enough with as many
LOOKUP = 500  # keys in one query; SQLite takes 999 variables in its older builds
# SQLite's own journal, not WAL: a home folder is often on a network file system, where WAL does not work
SCHEMA = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"
BROKEN = (sqlite3.Error, UnicodeDecodeError)  # the second where a damaged file names its tables in no text
NUMBERED = re.compile(r"^conversation (\d+)")


def default_cache() -> Path:
    """`$PALATE_CACHE`, else `palate/scores.sqlite` among the user's caches (XDG)."""
    if named := os.environ.get("PALATE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palate" / "scores.sqlite"


class CachedScorer:
    """`score` through the cache. `identity` says which model, under which template and limits, gives the rewards; `open_scorer` tells it."""

    def __init__(self, scorer: Scorer, path: str | Path, identity: Mapping[str, Any]):
        self.scorer = scorer
        self.path = Path(path)
        self.identity = hashlib.sha256(canonical(identity)).digest()
        self.cached = 0  # responses found
        self.computed = 0  # responses handed to the scorer

    def score(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> np.ndarray:
        """Rewards as the scorer gives them, float32 [N]; equal conversations are computed once.

        Raises StorageError where the file is not a cache or cannot be written.
        """
        exchanges = [as_exchange(item) for item in conversations]
        keys = [self._key(exchange, options) for exchange in exchanges]
        try:
            return self._through(exchanges, keys, options)
        except BROKEN as error:
            advice = "remove the file if it is broken, name another one, or pass --no-cache"
            raise StorageError(f"{self.path}: the score cache cannot be used: {error}; {advice}") from error

    def _through(self, exchanges: Sequence[Exchange], keys: Sequence[bytes], options: Mapping[str, Any]) -> np.ndarray:
        with closing(self._open()) as database:
            known = self._lookup(database, list(dict.fromkeys(keys)))
            self.cached += sum(key in known for key in keys)
            missing: dict[bytes, int] = {}
            for i, key in enumerate(keys):
                if key not in known:
                    missing.setdefault(key, i)
            todo = list(missing.items())
            for start in range(0, len(todo), CHUNK):
                part = todo[start : start + CHUNK]
                rewards = self._compute(exchanges, [i for _, i in part], options)
                found = {key: float(reward) for (key, _), reward in zip(part, rewards, strict=True)}
                known |= found
                with database:
                    database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", [(k, _sealed(k, r)) for k, r in found.items() if np.isfinite(r)])
        return np.array([known[key] for key in keys], dtype=np.float32)

    def _compute(self, exchanges: Sequence[Exchange], rows: Sequence[int], options: Mapping[str, Any]) -> np.ndarray:
        """Rewards of these rows by the scorer. An error that numbers a conversation of the part is given the number of its row."""
        try:
            rewards = np.asarray(self.scorer.score([exchanges[i] for i in rows], **options), dtype=np.float32)
        except PalateError as error:
            error.args = (NUMBERED.sub(lambda match: f"conversation {rows[int(match[1])] if int(match[1]) < len(rows) else match[1]}", str(error)),)
            raise
        rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
        if rewards.shape != (len(rows),):
            raise StorageError(f"the cache keeps one reward a response, the scorer gave the shape {rewards.shape} for {len(rows)}; pass --no-cache")
        self.computed += len(rows)
        return rewards

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path}: the score cache cannot be written: {error}; name another file, or pass --no-cache") from error
        database = sqlite3.connect(self.path, timeout=60)
        try:
            database.execute(SCHEMA)
        except BROKEN:
            database.close()
            raise
        return database

    def _lookup(self, database: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, float]:
        known: dict[bytes, float] = {}
        for start in range(0, len(keys), LOOKUP):
            part = keys[start : start + LOOKUP]
            marks = ",".join("?" * len(part))
            for key, sealed in database.execute(f"SELECT key, sealed FROM scores WHERE key IN ({marks})", part):
                reward = _opened(key, sealed)
                if reward is not None:
                    known[key] = reward
        return known

    def _key(self, exchange: Exchange, options: Mapping[str, Any]) -> bytes:
        # `progress` changes no reward, `on_long` does
        deciding = {name: value for name, value in options.items() if name != "progress"}
        return hashlib.sha256(self.identity + canonical(deciding) + canonical_exchange(exchange)).digest()


def canonical_exchange(exchange: Exchange) -> bytes:
    """The same bytes for the same exchange alone: keys of messages and tools keep their order, in which templates print them."""
    return canonical([_plain(exchange.prompt), _plain(exchange.response), exchange.template_args], in_order=True)


def _plain(conversation: Conversation) -> Any:
    if isinstance(conversation, str):
        return conversation
    return {"ids": list(conversation)} if isinstance(conversation, TokenIds) else list(conversation)


def canonical(value: Any, *, in_order: bool = False) -> bytes:
    """JSON of a value, as bytes to be hashed."""
    return json.dumps(value, sort_keys=not in_order, ensure_ascii=True, default=str).encode()


def _sealed(key: bytes, reward: float) -> bytes:
    """float32, and a checksum of it under its key: SQLite would not notice a flipped bit, which must not become a reward."""
    value = struct.pack("<f", reward)
    return value + zlib.crc32(key + value).to_bytes(4, "little")


def _opened(key: bytes, sealed: Any) -> float | None:
    """The reward, or None where it is not the one that was written."""
    if not isinstance(sealed, bytes) or len(sealed) != 8:
        return None
    reward = float(struct.unpack("<f", sealed[:4])[0])
    return reward if _sealed(key, reward) == sealed else None
