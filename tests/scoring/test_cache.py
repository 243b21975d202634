"""Rewards come back from the file exactly as they were computed, or are computed again; nothing is ever taken for something else."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.errors import DataError, RowError, StorageError
from palate.scoring import cache
from palate.scoring.cache import CHUNK, CachedScorer, default_cache
from palate.types import Exchange, TokenIds

IDENTITY = {"model": "m", "template": None, "max_length": 64}


def reward_of(exchange: Exchange) -> np.float32:
    """A number with all its 24 bits in use, another one for every exchange."""
    return np.float32(zlib.crc32(repr(exchange).encode()) / 3.7e8 - 5)


class Counting:
    """Rewards by `rule`; what was asked stands in `calls`."""

    def __init__(self, rule: Callable[[Exchange], Any] = reward_of):
        self.rule = rule
        self.calls: list[list[Exchange]] = []
        self.options: list[dict[str, Any]] = []

    def score(self, conversations: Sequence[Exchange], **options: Any) -> np.ndarray:
        self.calls.append(list(conversations))
        self.options.append(options)
        return np.array([self.rule(exchange) for exchange in conversations], dtype=np.float32)

    @property
    def asked(self) -> list[Exchange]:
        return [exchange for call in self.calls for exchange in call]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "scores.sqlite"


def pairs_of(words: Sequence[str]) -> list[tuple[str, str]]:
    return [("say it", word) for word in words]


def expected(items: Sequence[tuple[str, str]]) -> np.ndarray:
    return np.array([reward_of(Exchange(*item)) for item in items], dtype=np.float32)


# --- what is kept ---------------------------------------------------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing(path: Path) -> None:
    items = pairs_of("abcdef")
    first = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(first.score(items), expected(items))
    assert (first.computed, first.cached) == (6, 0)
    again = CachedScorer(Counting(), path, dict(reversed(IDENTITY.items())))  # the order of an identity says nothing
    rewards = again.score(items, progress=True)
    np.testing.assert_array_equal(rewards, expected(items))
    assert rewards.dtype == np.float32 and again.scorer.calls == []
    assert (again.computed, again.cached) == (0, 6)


def test_only_what_is_missing_is_computed_and_the_order_is_restored(path: Path) -> None:
    CachedScorer(Counting(), path, IDENTITY).score(pairs_of("gbe"))
    scorer = CachedScorer(Counting(), path, IDENTITY)
    items = pairs_of("abcdefgb")
    np.testing.assert_array_equal(scorer.score(items), expected(items))
    assert [exchange.response for exchange in scorer.scorer.asked] == ["a", "c", "d", "f"]
    assert (scorer.computed, scorer.cached) == (4, 4)
    np.testing.assert_array_equal(scorer.score(items[::-1]), expected(items[::-1]))
    assert len(scorer.scorer.calls) == 1


def test_equal_conversations_are_computed_once(path: Path) -> None:
    """A pair, an Exchange, and the same messages as list or tuple are one conversation each."""
    asked, answered = {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}
    items: list[Any] = [("p", "r"), Exchange("p", "r"), [asked, answered], Exchange((asked,), (answered,)), ("p", "r")]
    scorer = CachedScorer(Counting(), path, IDENTITY)
    rewards = scorer.score(items)
    assert scorer.scorer.asked == [Exchange("p", "r"), Exchange((asked,), (answered,))]
    assert rewards[0] == rewards[1] == rewards[4] == reward_of(Exchange("p", "r"))
    assert rewards[2] == rewards[3] == reward_of(Exchange((asked,), (answered,)))


def test_many_more_than_one_query_takes(path: Path) -> None:
    items = pairs_of([str(i) for i in range(3000)])
    scorer = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(scorer.score(items), expected(items))
    np.testing.assert_array_equal(scorer.score(items[::-1]), expected(items)[::-1])
    assert scorer.computed == 3000 and [len(call) for call in scorer.scorer.calls] == [CHUNK] * (3000 // CHUNK) + [3000 % CHUNK]


def test_nothing_to_score(path: Path) -> None:
    scorer = CachedScorer(Counting(), path, IDENTITY)
    assert scorer.score([]).shape == (0,) and scorer.scorer.calls == []


def test_every_float32_comes_back_bit_by_bit(path: Path) -> None:
    """Subnormal numbers, whole numbers and the negative zero among them."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1500, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.array([0.0, -0.0, 1.0, -3.0, 1e-45, 3.4028235e38, 0.1], dtype=np.float32)])
    items = pairs_of([str(i) for i in range(len(values))])
    CachedScorer(Counting(lambda e: values[int(e.response)]), path, IDENTITY).score(items)
    scorer = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(scorer.score(items).view(np.uint32), values.view(np.uint32))
    assert scorer.computed == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_never_kept(path: Path, value: float) -> None:
    items = pairs_of("abc")
    lost = CachedScorer(Counting(lambda e: value if e.response == "b" else reward_of(e)), path, IDENTITY)
    np.testing.assert_array_equal(lost.score(items), [*expected(items[:1]), value, *expected(items[2:])])
    found = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(found.score(items), expected(items))
    assert [exchange.response for exchange in found.scorer.asked] == ["b"]


# --- keys -----------------------------------------------------------------------------------------------------------------------------------------

OTHER: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "other weights": ({**IDENTITY, "model": "n"}, ("p", "r"), {}),
    "another template": ({**IDENTITY, "template": "t"}, ("p", "r"), {}),
    "another limit": ({**IDENTITY, "max_length": 65}, ("p", "r"), {}),
    "one entry more": ({**IDENTITY, "more": None}, ("p", "r"), {}),
    "on_long": (IDENTITY, ("p", "r"), {"on_long": "truncate_prompt"}),
    "another prompt": (IDENTITY, ("q", "r"), {}),
    "another response": (IDENTITY, ("p", "s"), {}),
    "a blank": (IDENTITY, ("p", "r "), {}),
    "template_args": (IDENTITY, Exchange("p", "r", {"tools": []}), {}),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_decides_a_reward_has_a_key_of_its_own(path: Path, name: str) -> None:
    identity, item, options = OTHER[name]
    CachedScorer(Counting(lambda e: 1.0), path, IDENTITY).score([("p", "r")])
    other = CachedScorer(Counting(lambda e: 2.0), path, identity)
    assert other.score([item], **options).tolist() == [2.0]
    assert other.scorer.options == [options]
    assert CachedScorer(Counting(lambda e: 3.0), path, IDENTITY).score([("p", "r")]).tolist() == [1.0]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


TOOL = {"name": "f", "arguments": {"x": 1, "y": 2}}
TURNED = {"name": "f", "arguments": {"y": 2, "x": 1}}
ALIKE: list[Exchange] = [
    *(Exchange(*parts) for parts in [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("a\n\nb", "c"), ("a", "b\n\nc"), ("a', 'b", "c")]),
    *(Exchange("", text) for text in ("1 2 3", "[1, 2, 3]", '{"ids": [1, 2, 3]}', "(1, 2, 3)", "null", "\ud800", "\\ud800", "é", "e\u0301")),
    *(Exchange("", TokenIds(ids)) for ids in ([1, 2, 3], [12, 3], [1, 23], [123], [])),
    Exchange("", (user("abc"),)),
    Exchange((user("abc"),), ()),
    Exchange((), (user("abc"),)),
    Exchange((user("a"), user("b")), (user("c"),)),
    Exchange((user("a"),), (user("b"), user("c"))),
    Exchange((user("a\nuser: b"),), (user("c"),)),
    Exchange("", str((user("abc"),))),
    Exchange("", ({"role": "assistant", "content": "abc"},)),
    Exchange("", ({"role": "user", "content": [{"type": "text", "text": "abc"}]},)),
    Exchange("a", "b", {"x": True}),
    Exchange("a", "b", {"x": "True"}),
    Exchange("a", "b", {"x": 1}),
    Exchange("a", "b", {"x": None}),
    Exchange("a", "b", {}),
    Exchange((user("a"),), "b", {"tools": [TOOL]}),
    Exchange((user("a"),), "b", {"tools": [TURNED]}),  # templates print tools in the order of their keys
]


def test_conversations_that_look_alike_are_not_taken_for_each_other(path: Path) -> None:
    numbers = {repr(exchange): float(i) for i, exchange in enumerate(ALIKE)}
    assert len(numbers) == len(ALIKE)
    scorer = CachedScorer(Counting(lambda e: numbers[repr(e)]), path, IDENTITY)
    assert scorer.score(ALIKE).tolist() == list(range(len(ALIKE)))
    assert scorer.computed == len(ALIKE)
    again = CachedScorer(Counting(), path, IDENTITY)
    assert again.score(ALIKE).tolist() == list(range(len(ALIKE))) and again.computed == 0


# --- interrupted ----------------------------------------------------------------------------------------------------------------------------------


class Stopping(Counting):
    """Stops in its third call."""

    def __init__(self, stop: Callable[[], Any]):
        super().__init__()
        self.stop = stop

    def score(self, conversations: Sequence[Exchange], **options: Any) -> np.ndarray:
        if len(self.calls) == 2:
            self.stop()
        return super().score(conversations, **options)


def test_an_interruption_loses_one_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)

    def stop() -> None:
        raise KeyboardInterrupt

    items = pairs_of("abcdefghij")
    with pytest.raises(KeyboardInterrupt):
        CachedScorer(Stopping(stop), path, IDENTITY).score(items)
    resumed = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(resumed.score(items), expected(items))
    assert [[exchange.response for exchange in call] for call in resumed.scorer.calls] == [["g", "h", "i"], ["j"]]
    assert (resumed.cached, resumed.computed) == (6, 4)


def test_a_killed_process_loses_one_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)
    items = pairs_of("abcdefghij")
    child = os.fork()
    if child == 0:
        CachedScorer(Stopping(lambda: os._exit(9)), path, IDENTITY).score(items)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    resumed = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(resumed.score(items), expected(items))
    assert (resumed.cached, resumed.computed) == (6, 4)


def test_an_error_names_the_row_of_the_input(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer counts among what it was given: the second chunk of what was not cached."""
    monkeypatch.setattr(cache, "CHUNK", 2)
    items = pairs_of("abcdefgh")
    CachedScorer(Counting(), path, IDENTITY).score([items[0], items[2], items[5]])

    class Refusing(Counting):
        def score(self, conversations: Sequence[Exchange], **options: Any) -> np.ndarray:
            for i, exchange in enumerate(conversations):
                if exchange.response == "g":
                    raise DataError(f"conversation {i} has 99 tokens, max_length is 64")
                if exchange.response == "h":
                    raise RowError("not text", f"conversation {i}: no text")
            return super().score(conversations, **options)

    with pytest.raises(DataError, match=r"^conversation 6 has 99 tokens, max_length is 64$"):
        CachedScorer(Refusing(), path, IDENTITY).score(items)
    with pytest.raises(RowError, match=r"^conversation 7: no text$") as caught:
        CachedScorer(Refusing(), path, IDENTITY).score([*items[:6], items[5], items[7]])
    assert caught.value.kind == "not text"


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from palate.scoring import cache

class Scorer:
    def score(self, conversations, **options):
        time.sleep(0.002)
        return np.array([float(exchange.response) for exchange in conversations], dtype=np.float32)

path, first, last, ready, go = sys.argv[1:]
cache.CHUNK = 10
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.005)
items = [("say it", str(i)) for i in range(int(first), int(last))]
rewards = cache.CachedScorer(Scorer(), path, {"model": "m"}).score(items)
assert rewards.tolist() == list(range(int(first), int(last))), rewards
"""


def test_two_processes_write_at_once(path: Path, tmp_path: Path) -> None:
    """Both make the file, both write into it for as long, half of it the same."""
    writers = []
    for first in (0, 300):
        arguments = [str(path), str(first), str(first + 600), str(tmp_path / f"ready{first}"), str(tmp_path / "go")]
        writers.append(subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stderr=subprocess.PIPE, text=True))
    while not all((tmp_path / f"ready{first}").exists() for first in (0, 300)) and all(writer.poll() is None for writer in writers):
        os.sched_yield()
    (tmp_path / "go").touch()
    for writer in writers:
        assert writer.communicate(timeout=600)[1] == "" and writer.returncode == 0
    scorer = CachedScorer(Counting(), path, {"model": "m"})
    assert scorer.score([("say it", str(i)) for i in range(900)]).tolist() == list(range(900))
    assert scorer.computed == 0


# --- files that are no cache ----------------------------------------------------------------------------------------------------------------------


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and no database\n" * 40)
    with pytest.raises(StorageError, match=r"notes\.txt: the score cache cannot be used: file is not a database; remove the file.*--no-cache"):
        CachedScorer(Counting(), path, IDENTITY).score([("p", "r")])
    assert path.read_text() == "these are my notes, and no database\n" * 40


def test_a_database_of_something_else_keeps_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE scores (player TEXT, points REAL)")
        database.execute("INSERT INTO scores VALUES ('ann', 3)")
    database.close()
    with pytest.raises(StorageError, match=r"mine\.sqlite: the score cache cannot be used: no such column: key"):
        CachedScorer(Counting(), path, IDENTITY).score([("p", "r")])
    with sqlite3.connect(path) as database:
        assert list(database.execute("SELECT * FROM scores")) == [("ann", 3.0)]
    database.close()


@pytest.mark.parametrize("where", ["/proc/nobody/scores.sqlite", "file/scores.sqlite", "folder"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    scorer = CachedScorer(Counting(), tmp_path / where, IDENTITY)
    with pytest.raises(StorageError, match=rf"{where}: the score cache cannot be (used|written): .*--no-cache"):
        scorer.score([("p", "r")])
    assert scorer.scorer.calls == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="the score cache cannot be used: .*--no-cache"):
        CachedScorer(Counting(), tmp_path / "scores.sqlite", IDENTITY).score([("p", "r")])


def damaged(whole: bytes, how: str, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole))
    if how == "cut":
        return whole[:at]
    if how == "bit":
        return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    size = 512 if how == "sector" else 4096
    start = at // size * size
    return whole[:start] + bytes(size) + whole[start + size :]


@pytest.mark.parametrize("how", ["cut", "bit", "sector", "page"])
def test_a_damaged_cache_is_refused_or_mended_and_never_believed(tmp_path: Path, how: str) -> None:
    """Whatever became of the file, rewards are those of the scorer, or the error says what to do."""
    path = tmp_path / "scores.sqlite"
    items = pairs_of([str(i) for i in range(400)])
    CachedScorer(Counting(), path, IDENTITY).score(items)
    whole = path.read_bytes()
    rng = random.Random(7)
    mended = refused = 0
    for _ in range(80 if how == "bit" else 25):
        path.write_bytes(damaged(whole, how, rng))
        try:
            scorer = CachedScorer(Counting(), path, IDENTITY)
            np.testing.assert_array_equal(scorer.score(items), expected(items))
            mended += scorer.computed > 0
        except StorageError as error:
            assert str(path) in str(error) and "remove the file" in str(error)
            refused += 1
        for leftover in tmp_path.glob("scores.sqlite-*"):
            leftover.unlink()
    assert mended + refused > 10, "the damage was never met"
    path.write_bytes(b"")  # what a full disk leaves
    assert CachedScorer(Counting(), path, IDENTITY).score(items).tolist() == expected(items).tolist()


def test_a_flipped_reward_is_computed_again_and_written(path: Path) -> None:
    scorer = CachedScorer(Counting(), path, IDENTITY)
    items = pairs_of("ab")
    scorer.score(items)
    with sqlite3.connect(path) as database:
        rows = list(database.execute("SELECT key, sealed FROM scores"))
        for (key, _), (_, sealed) in zip(rows, rows[::-1], strict=True):  # each the other's
            database.execute("UPDATE scores SET sealed = ? WHERE key = ?", (sealed, key))
    database.close()
    np.testing.assert_array_equal(scorer.score(items), expected(items))
    assert scorer.computed == 4
    np.testing.assert_array_equal(scorer.score(items), expected(items))
    assert scorer.computed == 4


# --- scorers and places ---------------------------------------------------------------------------------------------------------------------------


class Shaped:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def score(self, conversations: Sequence[Exchange], **options: Any) -> np.ndarray:
        return np.arange(np.prod(self.shape), dtype=np.float64).reshape(self.shape)


def test_one_column_is_one_reward(path: Path) -> None:
    assert CachedScorer(Shaped((3, 1)), path, IDENTITY).score(pairs_of("abc")).tolist() == [0.0, 1.0, 2.0]
    assert CachedScorer(Counting(), path, IDENTITY).score(pairs_of("cba")).tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(3, 2), (2,), (4,), (3, 1, 1), ()])
def test_other_shapes_are_refused_and_not_kept(path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(StorageError, match=r"one reward a response, the scorer gave the shape .* for 3; pass --no-cache"):
        CachedScorer(Shaped(shape), path, IDENTITY).score(pairs_of("abc"))
    scorer = CachedScorer(Counting(), path, IDENTITY)
    np.testing.assert_array_equal(scorer.score(pairs_of("abc")), expected(pairs_of("abc")))
    assert scorer.computed == 3


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PALATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_cache() == Path("/home/ann/.cache/palate/scores.sqlite")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/palate/scores.sqlite")
    monkeypatch.setenv("PALATE_CACHE", "/fast/x.sqlite")
    assert default_cache() == Path("/fast/x.sqlite")
