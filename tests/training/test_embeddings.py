"""Prompts as unit vectors: those of the encoder itself, one a text, computed once and then read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tests.conftest import chatml_tokenizer
from transformers import AutoModel, AutoTokenizer

from palate.data.collation import PreferenceCollator
from palate.data.loading import load_groups
from palate.data.preparation import prepare
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder
from palate.errors import ConfigError, ModelError
from palate.training.embeddings import HUB_ENCODER, PACKAGED_ENCODER, default_encoder, embed_prompts, with_prompt_embeddings
from palate.types import Supervision

sentence_transformers = pytest.importorskip("sentence_transformers")
packaged = pytest.mark.skipif(default_encoder() == HUB_ENCODER, reason=f"{PACKAGED_ENCODER} is not installed")

PROMPTS = ["what is the capital of france?", "write a poem about the sea", "what is the capital of france?", "Which city is the capital of France?"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no look at the network."""
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompt_embeddings"


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no encoder can be loaded."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"an encoder was loaded: {args}")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)


class Letters:
    """A stand-in for SentenceTransformer that counts letters; every text that it is given is noted."""

    def __init__(self, seen: list[str], scale: float = 1.0):
        self.seen, self.scale = seen, scale

    def encode(self, texts: Sequence[str], *, normalize_embeddings: bool, **options: Any) -> np.ndarray:
        self.seen += texts
        counts = np.array([[self.scale + text.count(letter) for letter in "aeiou"] for text in texts], dtype=np.float64)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True) if normalize_embeddings else counts


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that went through an encoder; its name decides its vectors."""
    texts: list[str] = []
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda name: Letters(texts, scale=float(len(name))))
    return texts


def numbered(prompts: Sequence[str]) -> Dataset:
    return Dataset.from_dict({"prompt": prompts, "group": list(range(len(prompts)))})


def mean_pooled(folder: str, texts: Sequence[str]) -> torch.Tensor:
    """What all-MiniLM-L6-v2 is: the mean of BERT's last hidden states over real tokens, as a unit vector."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    with torch.no_grad():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    return torch.stack(vectors)


@packaged
def test_embeddings_are_those_of_the_model() -> None:
    found = embed_prompts(PROMPTS)
    assert found.dtype == np.float32 and found.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, mean_pooled(default_encoder(), PROMPTS).numpy(), atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    likeness = found @ found[0]
    assert likeness[3] > 0.8 > 0.4 > likeness[1], "one question in other words is near, another is not"


@packaged
def test_a_data_set_gets_the_embedding_of_each_row_s_own_prompt(cache: Path, request: pytest.FixtureRequest) -> None:
    """Rows keep their order, equal prompts are equal to the bit, and a second run loads no model."""
    data = numbered(PROMPTS)
    first = with_prompt_embeddings(data, None)
    assert sorted(first.column_names) == ["group", "prompt_embedding", "prompt_number"] and list(first["group"]) == [0, 1, 2, 3]
    numbers = list(first["prompt_number"])
    assert numbers[0] == numbers[2] and len(set(numbers)) == 3, "equal prompts share a number"
    vectors = np.array(list(first["prompt_embedding"]), dtype=np.float32)
    np.testing.assert_allclose(vectors, mean_pooled(default_encoder(), PROMPTS).numpy(), atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert len(list(cache.glob("*.npy"))) == 1 == len(list(cache.iterdir()))
    request.getfixturevalue("no_encoder")
    again = with_prompt_embeddings(data.select([3, 2, 1, 0]), None)
    np.testing.assert_array_equal(np.array(list(again["prompt_embedding"]), dtype=np.float32), vectors[::-1])


def test_each_text_goes_through_the_encoder_once(seen: list[str]) -> None:
    found = with_prompt_embeddings(numbered(PROMPTS), "any/encoder")
    assert sorted(seen) == sorted(set(PROMPTS))
    with_prompt_embeddings(numbered(PROMPTS[::-1] * 2), "any/encoder")
    assert len(seen) == 3, "the same texts in another order are the same"
    expected = Letters([], scale=11.0).encode(PROMPTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.array(list(found["prompt_embedding"])), expected, atol=1e-6)


def test_other_texts_and_other_encoders_are_computed_anew(seen: list[str], cache: Path) -> None:
    first = embed_prompts(["a", "b"], "one/encoder")
    assert not np.array_equal(embed_prompts(["a", "b"], "another/encoder"), first)
    embed_prompts(["a", "bb"], "one/encoder")
    assert seen == ["a", "b", "a", "b", "a", "bb"] and len(list(cache.iterdir())) == 3
    np.testing.assert_array_equal(embed_prompts(["a", "b"], "one/encoder"), first)
    assert len(seen) == 6


def test_a_local_encoder_that_was_trained_again_is_asked_again(seen: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for content, total in (("one", 1), ("other", 2)):
        (folder / "model.safetensors").write_text(content)
        for _ in range(2):
            embed_prompts(["a"], str(folder))
        assert len(seen) == total


def test_texts_that_join_alike_are_told_apart(seen: list[str]) -> None:
    """A text may hold what stands between two of them."""
    assert embed_prompts(["a", "e"], "e").shape == (2, 5)
    assert embed_prompts(["a\0e"], "e").shape == (1, 5)


def test_a_half_written_cache_is_never_read(seen: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while vectors are written: nothing stands under their name."""

    def full(path: Any, array: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="no space left"):
            embed_prompts(["a"], "any/encoder")
    assert embed_prompts(["a"], "any/encoder").shape == (1, 5) and seen == ["a", "a"]


def test_prompts_of_encoded_data_reach_the_batch(seen: list[str]) -> None:
    """Text prompts and chats, from rows to the collator: one vector a comparison, that of its group's prompt."""
    rows = [
        {"prompt": "aaa", "responses": ["x", "y", "z"], "scores": [3, 2, 1]},
        {"prompt": [{"role": "user", "content": "eee"}], "responses": ["x", "y"], "scores": [1, 2]},
    ]
    supervision = Supervision(prompts=True)
    encoder = Encoder(prepare_tokenizer(chatml_tokenizer()), max_length=64)
    encoded = with_prompt_embeddings(prepare(load_groups(rows).groups, encoder, name="train", supervision=supervision)[0], "any/encoder")
    batch = PreferenceCollator(0, supervision=supervision)([encoded[0], encoded[1]])
    expected = Letters([], scale=11.0).encode(["aaa", "user: eee"], normalize_embeddings=True)
    assert sorted(seen) == ["aaa", "user: eee"]
    torch.testing.assert_close(batch["prompt_embedding"], torch.tensor(expected[[0, 0, 0, 1]], dtype=torch.float32))
    first, second = batch["prompt_number"][0].item(), batch["prompt_number"][3].item()
    assert batch["prompt_number"].tolist() == [first, first, first, second] and first != second


@pytest.mark.parametrize("name", ["no-such/encoder", "./no/such/folder", "not a name at all", "empty"])
def test_a_name_that_is_no_encoder_is_refused(name: str, cache: Path, tmp_path: Path) -> None:
    if name == "empty":
        (tmp_path / "empty").mkdir()
        name = str(tmp_path / "empty")
    with pytest.raises(ModelError, match=f"loss.cross_prompt.encoder: {name} cannot be loaded as an encoder of sentences"):
        embed_prompts(["a"], name)
    assert not cache.exists()


def test_a_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs data in memory, not a stream"):
        with_prompt_embeddings(IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), None)
