"""The label file: one JSON line a decision, only ever appended to, with who, when, and what was to be seen; undoing is a line as well.

    {"pair": "9f...", "annotator": "ada", "time": "2026-03-01T12:00:00+00:00", "verdict": "rejected", "left": "rejected", "blind": true, "location": "..."}
    {"pair": "9f...", "annotator": "ada", "time": "2026-03-01T12:00:04+00:00", "undo": true}

`pair` is the identity of prompt, chosen and rejected (`Pairs.identity`), so that labels find their pair in another order of the rows too. `verdict` names the
side of the data that was preferred. Several people may write to one file, from several servers: what others appended is read before each answer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from palate.errors import DataError, StorageError

VERDICTS = ("chosen", "rejected", "tie", "both_bad", "skip")
CHOICES = ("a", "b", "tie", "both_bad", "skip")
"""What an annotator says of what stands left (a) and right (b)."""

LONGEST_NAME = 40  # characters of an annotator's name


@dataclass(frozen=True)
class Label:
    """One annotator's decision on one pair."""

    pair: str
    annotator: str
    time: str  # ISO 8601, UTC
    verdict: str  # one of VERDICTS
    left: str  # the side that stood left: chosen or rejected
    blind: bool  # whether rewards and the data's label were hidden
    location: str = ""  # where the pair stood in the data, for people

    @property
    def decides(self) -> bool:
        return self.verdict != "skip"


def left_side(pair: str, annotator: str) -> str:
    """Which side stands left: a fair coin by pair and annotator, so that it comes out alike whenever the page is loaded."""
    coin = hashlib.blake2b(f"{pair}|{annotator}".encode(), digest_size=1).digest()[0] & 1
    return "chosen" if coin else "rejected"


def verdict_of(choice: str, left: str) -> str:
    """What a choice between left (a) and right (b) says of the sides of the data."""
    if choice not in CHOICES:
        raise DataError(f"choice={choice!r:.40}: expected one of {', '.join(CHOICES)}")
    if choice not in ("a", "b"):
        return choice
    return left if choice == "a" else {"chosen": "rejected", "rejected": "chosen"}[left]


def choice_of(verdict: str, left: str) -> str:
    """The choice that said so, with this side on the left: `verdict_of` the other way round."""
    return verdict if verdict not in ("chosen", "rejected") else "a" if verdict == left else "b"


def annotator_name(given: str) -> str:
    """A name that fits into a line and a table. Raises DataError for none."""
    name = " ".join(given.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(f"annotator {given!r:.60}: expected a name of 1 to {LONGEST_NAME} characters")
    return name


class LabelFile:
    """The labels of one file as they stand, and its one way to grow."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.version = 0  # grows with every line read
        self._said: dict[str, list[Label]] = defaultdict(list)  # annotator -> decisions that were not undone, in order
        self._current: dict[tuple[str, str], Label] = {}
        self._read = 0  # bytes
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended since. Raises DataError for a line that is no label."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size < self._read:
            raise DataError(
                f"{self.path}: has {size} bytes, {self._read} were read before; the file only ever grows. Start again if it was replaced on purpose"
            )
        if size == self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read(size - self._read)
        whole = new[: new.rfind(b"\n") + 1]  # another server may be writing the rest right now
        for line in whole.split(b"\n")[:-1]:
            if line.strip():
                self._take(line)
            self._read += len(line) + 1

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if row.get("undo"):
                self._forget(row["annotator"], row["pair"])
            else:
                label = Label(**row)
                if label.verdict not in VERDICTS or label.left not in ("chosen", "rejected"):
                    raise ValueError(f"verdict {label.verdict!r}, left {label.left!r}")
                if not 0 <= int(label.pair, 16) < 1 << 64:
                    raise ValueError(f"pair {label.pair!r}")
                self._said[label.annotator].append(label)
                self._current[label.pair, label.annotator] = label
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path}, from byte {self._read}: no label ({error}): {line[:80]!r}; mend the line or name another file") from error
        self.version += 1

    def _forget(self, annotator: str, pair: str) -> None:
        """Take back the annotator's last decision on the pair; the one before it, if any, holds again."""
        said = self._said[annotator]
        at = next((i for i in reversed(range(len(said))) if said[i].pair == pair), None)
        if at is None:
            raise ValueError(f"{annotator} undoes a label of {pair} that is not there")
        del said[at]
        before = next((label for label in reversed(said) if label.pair == pair), None)
        if before:
            self._current[pair, annotator] = before
        else:
            del self._current[pair, annotator]

    # --- writing ---

    def add(self, label: Label) -> None:
        with self._alone() as file:
            self._append(file, asdict(label))

    def undo(self, annotator: str) -> Label | None:
        """Take back this annotator's last decision; None where there is none."""
        self.refresh()
        if not self._said[annotator]:
            return None
        with self._alone() as file:
            if not self._said[annotator]:  # another server took it back just now
                return None
            last = self._said[annotator][-1]
            self._append(file, {"pair": last.pair, "annotator": annotator, "time": now(), "undo": True})
            return last

    @contextmanager
    def _alone(self) -> Iterator[FileIO]:
        """The file, read to its end and open for another line, which no other thread or server writes meanwhile: one decision is undone once."""
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab+", buffering=0) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a process that was killed
                    self._refresh()
                    yield file
            except OSError as error:
                raise StorageError(f"{self.path}: the label cannot be written: {error}") from error

    def _append(self, file: FileIO, row: Mapping[str, Any]) -> None:
        size = file.seek(0, os.SEEK_END)
        if size > self._read:
            raise DataError(f"{self.path}: ends with half a line, from byte {self._read}; remove it (a server was stopped while it wrote)")
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if file.write(line) < len(line):
            file.truncate(size)  # half a line would stop every label after it
            raise StorageError(f"{self.path}: the label cannot be written: there is room for a part of it only")
        os.fsync(file.fileno())
        self._refresh()

    # --- reading ---

    @property
    def current(self) -> list[Label]:
        """Every decision that holds, in the order of pairs and annotators first seen."""
        return list(self._current.values())  # in one step: another thread may be adding

    def of(self, pair: str, annotator: str) -> Label | None:
        return self._current.get((pair, annotator))

    def on(self, pair: str) -> list[Label]:
        return [label for label in self.current if label.pair == pair]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
