"""The cache of answers: what is kept, what never is, damaged files, and several processes at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from palate.errors import StorageError
from palate.judging.call_cache import CallCache
from palate.judging.calls import ChatReply, ChatRequest

ASKED = ChatRequest("judge", ({"role": "user", "content": "?"},))
REPLY = ChatReply("Because … [[A]] 🙂", "stop", ({"A": -0.1, "B": -2.5}, {"ä": -0.5}), 700, 120, 2, 1.5)


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    with CallCache(tmp_path / "deep" / "answers.sqlite") as cache:
        assert cache.get(b"key") is None
        assert cache.put(b"key", ASKED, REPLY) == REPLY
    with CallCache(tmp_path / "deep" / "answers.sqlite") as again:
        assert again.get(b"key") == REPLY._replace(cached=True)
        assert again.get(b"other") is None and len(again) == 1


@pytest.mark.parametrize(
    "reply", [ChatReply(""), ChatReply(" \n"), ChatReply("Response", "content_filter"), ChatReply("No.", "refusal"), ChatReply("A", "error")], ids=repr
)
def test_what_another_attempt_may_mend_is_not_kept(tmp_path: Path, reply: ChatReply) -> None:
    with CallCache(tmp_path / "answers.sqlite") as cache:
        assert cache.put(b"key", ASKED, reply) == reply
        assert cache.get(b"key") is None and len(cache) == 0


def test_the_first_answer_counts(tmp_path: Path) -> None:
    """Two processes ask the same at temperature 1: both must go on with one answer, or a resumed run differs from the first."""
    with CallCache(tmp_path / "answers.sqlite") as one, CallCache(tmp_path / "answers.sqlite") as two:
        one.put(b"key", ASKED, ChatReply("first"))
        assert two.put(b"key", ASKED, ChatReply("second")) == ChatReply("first", cached=True)
        assert one.get(b"key") == ChatReply("first", cached=True)


def test_many_answers_in_one_transaction(tmp_path: Path) -> None:
    """What is not kept comes back all the same, another's answer stands, and a transaction that fails leaves nothing and blocks nobody."""
    with CallCache(tmp_path / "answers.sqlite") as one, CallCache(tmp_path / "answers.sqlite") as two:
        one.put(b"2", ASKED, ChatReply("first"))
        told = [(b"1", ASKED, REPLY), (b"2", ASKED, ChatReply("second")), (b"3", ASKED, ChatReply(""))]
        assert two.put_all(told) == [REPLY, ChatReply("first", cached=True), ChatReply("")] and len(one) == 2
        with pytest.raises(TypeError):
            two.put_all([(b"4", ASKED, REPLY), (b"5", ASKED, ChatReply("x", top_logprobs=({"A": object()},)))])  # type: ignore[dict-item]
        assert one.get(b"4") is None and one.put(b"4", ASKED, REPLY) == REPLY and two.put_all([]) == []


def test_a_file_of_the_first_version_is_read_and_written(tmp_path: Path) -> None:
    """It had its rows in the order of their keys (WITHOUT ROWID), which took twice the time to write."""
    with sqlite3.connect(tmp_path / "answers.sqlite") as old:
        old.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, model TEXT, reply TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID")
    with CallCache(tmp_path / "answers.sqlite") as cache:
        assert cache.put(b"key", ASKED, REPLY) == REPLY and cache.get(b"key") == REPLY._replace(cached=True)


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text('{"not": "a database"}\n' * 100)
    with pytest.raises(StorageError, match=r"answers\.sqlite: expected the answers of earlier calls .* move it away"):
        CallCache(path)
    assert path.read_text().startswith("{")  # it is somebody's


def test_a_database_of_something_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE answers (question TEXT, answer TEXT)")
    with pytest.raises(StorageError, match=r"other\.sqlite: expected the answers of earlier calls"):
        CallCache(tmp_path / "other.sqlite")


def test_a_damaged_page_and_a_damaged_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with CallCache(path) as cache:
        for i in range(200):
            cache.put(bytes([i]) * 32, ASKED, ChatReply("because " * 100))
        cache._database.execute("UPDATE answers SET reply = '{\"text\"' WHERE key = ?", (bytes([3]) * 32,))
        with pytest.raises(StorageError, match="the file is damaged: move it away"):
            cache.get(bytes([3]) * 32)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = b"\xa5" * (len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    with pytest.raises(StorageError, match="malformed; .*move it away"), CallCache(path) as cache:  # when it is opened, or at the answer that is hit
        for i in range(200):
            cache.get(bytes([i]) * 32)


def test_nowhere_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give another file"):
        CallCache(tmp_path / "file" / "answers.sqlite")


WRITER = """
import sys, time
from palate.judging.call_cache import CallCache
from palate.judging.calls import ChatReply, ChatRequest
path, name, at = sys.argv[1], sys.argv[2], float(sys.argv[3])
time.sleep(max(0, at - time.time()))
with CallCache(path) as cache:
    for i in range(300):
        stood = cache.put(str(i).encode(), ChatRequest("judge", ()), ChatReply(f"{i} from {name}"))
        assert cache.get(str(i).encode()).text == stood.text
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Opened for the first time by three at the same moment: the switch to WAL must not fail one of them."""
    import time

    at = time.time() + 3  # imports are over by then
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "answers.sqlite"), name, str(at)]) for name in ("one", "two", "three")]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    with CallCache(tmp_path / "answers.sqlite") as cache:
        assert len(cache) == 300
        assert all(cache.get(str(i).encode()).text.startswith(f"{i} from ") for i in range(300))
