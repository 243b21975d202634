"""Embeddings are computed once, survive torn writes and other writers, and never become other rows than those that were written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TOKENIZERS, tiny_model

from palate.errors import ConfigError, DataError, StorageError
from palate.models.reward_model import as_reward_model
from palate.scoring.embeddings import CHUNK, KEYS, RECORD, ROWS, CachedEmbedder, Embeddings, EmbeddingStore, open_embedder
from palate.types import Exchange

IDENTITY = {"kind": "letters"}


class Letters:
    """Counts of the letters a to d; what holds an x has no embedding. Remembers what it was asked."""

    width = 4

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, conversations: Sequence[Any], *, on_long: str | None = None) -> np.ndarray:
        self.asked += [item.response for item in conversations]
        if on_long == "error" and any("x" in item.response for item in conversations):
            raise DataError("an x")
        rows = np.array([[item.response.count(letter) for letter in "abcd"] for item in conversations], dtype=np.float32)
        rows[["x" in item.response for item in conversations]] = np.nan
        return rows


def counts(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.count(letter) for letter in "abcd"] for text in texts], dtype=np.float32)


def texts_of(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcd"), size=rng.integers(1, 30))) for _ in range(n)]


def test_each_conversation_is_embedded_once(tmp_path: Path) -> None:
    letters = Letters()
    embedder = CachedEmbedder(letters, tmp_path, IDENTITY)
    found = embedder.embed(["ab", "cc", "ab", "d"])
    np.testing.assert_array_equal(np.asarray(found), counts(["ab", "cc", "ab", "d"]))
    assert letters.asked == ["ab", "cc", "d"]
    again = CachedEmbedder(letters, tmp_path, IDENTITY)
    np.testing.assert_array_equal(np.asarray(again.embed(["d", "new", "cc"])), counts(["d", "new", "cc"]))
    assert letters.asked == ["ab", "cc", "d", "new"] and (again.cached, again.computed) == (2, 1)
    assert isinstance(found.rows, np.memmap) and found.rows.dtype == np.float32


def test_another_model_another_prompt_and_cut_prompts_are_other_embeddings(tmp_path: Path) -> None:
    letters = Letters()
    CachedEmbedder(letters, tmp_path, IDENTITY).embed([Exchange("p", "a")])
    CachedEmbedder(letters, tmp_path, {"kind": "other"}).embed([Exchange("p", "a")])
    CachedEmbedder(letters, tmp_path, IDENTITY).embed([Exchange("q", "a")])
    CachedEmbedder(letters, tmp_path, IDENTITY).embed([Exchange("p", "a")], on_long="truncate_prompt")
    assert len(letters.asked) == 4
    CachedEmbedder(letters, tmp_path, IDENTITY).embed([Exchange("p", "a")], on_long="nan")  # this policy changes no embedding
    assert len(letters.asked) == 4


def test_what_has_no_embedding_is_nan_and_asked_for_again(tmp_path: Path) -> None:
    letters = Letters()
    embedder = CachedEmbedder(letters, tmp_path, IDENTITY)
    found = embedder.embed(["ab", "x", "c"], on_long="nan")
    assert found.missing.tolist() == [False, True, False]
    np.testing.assert_array_equal(np.asarray(found), np.vstack([counts(["ab"]), np.full((1, 4), np.nan), counts(["c"])]))
    with pytest.raises(DataError, match="an x"):
        embedder.embed(["x"], on_long="error")
    assert letters.asked == ["ab", "x", "c", "x"]


def test_take_is_a_view_where_rows_lie_together() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    found = Embeddings(rows, [2, 3, 4, 9, -1, 0])
    assert np.shares_memory(found.take([0, 1, 2]), rows)
    np.testing.assert_array_equal(found.take([3, 0]), rows[[9, 2]])
    assert found.take([]).shape == (0, 2) and len(found) == 6 and found.width == 2
    np.testing.assert_array_equal(np.concatenate(list(found.batches(4))), found.take(np.arange(6)))
    np.testing.assert_array_equal(found.subset([5, 3]).take([1, 0]), rows[[9, 0]])
    np.testing.assert_array_equal(found.take(np.array([True, False, False, False, False, True]).nonzero()[0]), rows[[2, 0]])


@pytest.mark.parametrize("torn", ["keys", "rows", "no keys"])
def test_a_write_that_was_interrupted_costs_what_it_wrote_and_no_more(tmp_path: Path, torn: str) -> None:
    letters, texts = Letters(), texts_of(9)
    store = CachedEmbedder(letters, tmp_path, IDENTITY).store
    CachedEmbedder(letters, tmp_path, IDENTITY).embed(texts)
    keys, rows = store.folder / KEYS, store.folder / ROWS
    if torn == "keys":  # the last record half written
        keys.write_bytes(keys.read_bytes()[: -RECORD.itemsize // 2])
    elif torn == "rows":  # rows of the next batch without keys, the last of them half
        rows.write_bytes(rows.read_bytes() + b"\x01" * 37)
    else:  # a disk that lost the rows' end: keys without rows are no rows
        rows.write_bytes(rows.read_bytes()[:-20])
    letters.asked.clear()
    more = [*texts, "new one", "dada"]
    np.testing.assert_array_equal(np.asarray(CachedEmbedder(letters, tmp_path, IDENTITY).embed(more)), counts(more))
    assert letters.asked == {"keys": [texts[8]], "rows": [], "no keys": texts[7:]}[torn] + ["new one", "dada"]
    np.testing.assert_array_equal(np.asarray(CachedEmbedder(letters, tmp_path, IDENTITY).embed(more)), counts(more))


def test_a_flipped_bit_is_computed_again(tmp_path: Path) -> None:
    letters = Letters()
    embedder = CachedEmbedder(letters, tmp_path, IDENTITY)
    embedder.embed(["ab", "cd"])
    path = embedder.store.folder / ROWS
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(np.asarray(embedder.embed(["ab", "cd"])), counts(["ab", "cd"]))
    assert letters.asked == ["ab", "cd", "cd"]


def test_an_interrupted_run_keeps_what_it_wrote(tmp_path: Path) -> None:
    texts = [f"a{i}" for i in range(2 * CHUNK + 7)]

    class Stops(Letters):
        def embed(self, conversations: Sequence[Any], *, on_long: str | None = None) -> np.ndarray:
            if self.asked:
                raise KeyboardInterrupt
            return super().embed(conversations, on_long=on_long)

    with pytest.raises(KeyboardInterrupt):
        CachedEmbedder(Stops(), tmp_path, IDENTITY).embed(texts)
    letters = Letters()
    np.testing.assert_array_equal(np.asarray(CachedEmbedder(letters, tmp_path, IDENTITY).embed(texts)), counts(texts))
    assert letters.asked == texts[CHUNK:]


def test_two_writers_do_not_write_over_each_other(tmp_path: Path) -> None:
    stores = [EmbeddingStore(tmp_path / "one", 4, {}) for _ in range(4)]
    threads = []
    for number, store in enumerate(stores):

        def write(number: int = number, store: EmbeddingStore = store) -> None:
            for i in range(20):
                store.append([bytes([number, i]) + bytes(30)], np.full((1, 4), 100 * number + i))

        threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [bytes([number, i]) + bytes(30) for number in range(4) for i in range(20)]
    where, rows = stores[0].find(keys), stores[0].rows()
    assert len(rows) == 80
    for number in range(4):
        for i in range(20):
            assert rows[where[bytes([number, i]) + bytes(30)]].tolist() == [100 * number + i] * 4


def test_a_folder_of_another_width_or_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path / "a", 4, {})
    with pytest.raises(StorageError, match=r"width 4, expected 5"):
        EmbeddingStore(tmp_path / "a", 5, {})
    with pytest.raises(StorageError, match="expected \\(1, 4\\)"):
        EmbeddingStore(tmp_path / "a", 4, {}).append([bytes(32)], np.zeros((2, 4)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be kept"):
        EmbeddingStore(tmp_path / "file", 4, {})


def test_a_checkpoint_through_the_store(tmp_path: Path) -> None:
    model, tokenizer = as_reward_model(tiny_model("qwen3", seed=1)), TOKENIZERS["qwen3"]()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    items = [Exchange("ask", f"good {i}") for i in range(5)]
    first = open_embedder(str(tmp_path / "model"), tmp_path / "cache")
    np.testing.assert_allclose(np.asarray(first.embedder.embed(items)), first.scorer.embed(items), atol=1e-6)
    second = open_embedder(str(tmp_path / "model"), tmp_path / "cache")
    second.embedder.embed(items)
    assert second.embedder.computed == 0 and second.embedder.cached == 5
    with pytest.raises(ConfigError, match="give the folder or hub id"):
        open_embedder(f"ensemble:{tmp_path / 'model'},{tmp_path / 'model'}", tmp_path / "cache")
