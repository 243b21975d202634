"""Raw answers that were paid for once, in one SQLite file (WAL): keyed by the whole request, committed before anybody reads them, failures never among them."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from palate.errors import StorageError
from palate.judging.calls import ChatReply, ChatRequest

COLUMNS = "key BLOB PRIMARY KEY, model TEXT, reply TEXT NOT NULL, created REAL NOT NULL"
BUSY = 60.0  # seconds that one process waits for another to finish its transaction, which takes it milliseconds
KEPT_REASONS = ("stop", "length", "tool_calls", "function_call", "eos_token", "eos")
"""Endings of an answer that the same request would meet again. A content filter is a whim of the moment and is asked again."""


class CallCache:
    """`get`, `put` and `put_all`. An answer is on disk before anybody reads it, so a killed run repeats nothing that was read. Processes may share a file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._writing = threading.Lock()  # one transaction at a time
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)  # autocommit; SQLite takes turns by itself
            self._write_ahead()
            self._database.execute("PRAGMA synchronous=NORMAL")  # survives a killed process; a power cut may cost the last answers
            self._database.execute(f"CREATE TABLE IF NOT EXISTS answers ({COLUMNS})")
            self._database.execute("SELECT key, model, reply, created FROM answers LIMIT 1").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"{self.path}: expected the answers of earlier calls in an SQLite file, or no file yet: {error}; move it away, or give another file"
            ) from error

    def _write_ahead(self) -> None:
        """The switch to a write-ahead log does not wait for other processes that make it at the same moment, so it is tried again."""
        for _ in range(100):
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                time.sleep(BUSY / 1000)
            else:
                return

    def get(self, key: bytes) -> ChatReply | None:
        rows = self._execute("SELECT reply FROM answers WHERE key = ?", (key,))
        return self._reply(rows[0][0]) if rows else None

    def put(self, key: bytes, request: ChatRequest, reply: ChatReply) -> ChatReply:
        """Keep one answer, as `put_all` does."""
        return self.put_all([(key, request, reply)])[0]

    def put_all(self, answers: Sequence[tuple[bytes, ChatRequest, ChatReply]]) -> list[ChatReply]:
        """Keep answers, in one transaction, but for those that a filter cut short or that are empty. Returns the ones that count: where another process was
        first, its answer."""
        with self._writing:
            self._execute("BEGIN IMMEDIATE")
            try:
                kept = [self._kept(*one) for one in answers]
                self._execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise
        return kept

    def _kept(self, key: bytes, request: ChatRequest, reply: ChatReply) -> ChatReply:
        if reply.finish_reason not in KEPT_REASONS or not reply.text.strip():
            return reply
        body = {**reply._asdict(), "top_logprobs": [dict(one) for one in reply.top_logprobs]}
        del body["cached"]
        values = (key, request.model, json.dumps(body, ensure_ascii=False), time.time())
        new = self._execute("INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING 1", values)
        return reply if new else self.get(key) or reply

    def __len__(self) -> int:
        return int(self._execute("SELECT COUNT(*) FROM answers")[0][0])

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: the cache of answers failed: {error}; {_advice(error)}") from error

    def _reply(self, text: str) -> ChatReply:
        try:
            body = json.loads(text)
            return ChatReply(**{**body, "top_logprobs": tuple(body["top_logprobs"]), "cached": True})
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path}: expected an answer, found {text[:80]!r}; the file is damaged: move it away, or give another file") from error

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> CallCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _advice(error: sqlite3.Error) -> str:
    if isinstance(error, sqlite3.OperationalError) or type(error) is not sqlite3.DatabaseError:  # busy, disk full, closed
        return "what is in it is kept: make room or end what holds it, and run again"
    return "the file is damaged: move it away, or give another file"
