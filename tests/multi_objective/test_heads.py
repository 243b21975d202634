"""Many heads are a plain checkpoint: the same vector in LocalScorer, in transformers, and after adaptation one number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import TOKENIZERS, tiny_model
from transformers import AutoModelForSequenceClassification

from palate.data.collation import PreferenceCollator
from palate.errors import ContractError, StorageError
from palate.interchange.doctor.examine import examine
from palate.models.checkpoints import read_contract
from palate.models.reward_model import as_reward_model
from palate.multi_objective.adaptation import adapt
from palate.multi_objective.decomposition import decompose
from palate.multi_objective.heads import LinearHeads, heads_of, original_head, projection_weights, save_heads, signed_heads
from palate.multi_objective.pairs import embedded_pairs
from palate.scoring.embeddings import open_embedder
from palate.scoring.local import LocalScorer, load_scorer
from palate.types import Comparison, PreferenceGroup, Readout

GROUPS = [PreferenceGroup(f"ask {i % 9}", (f"good {i}", f"bad bad {i}"), (Comparison(i % 2, 1 - i % 2),)) for i in range(30)]
ITEMS = [exchange for group in GROUPS[:6] for exchange in group.exchanges()]


@pytest.fixture
def model(request, tmp_path: Path) -> str:
    kind = getattr(request, "param", "qwen3")
    reward_model = as_reward_model(tiny_model(kind, seed=1))
    if kind == "bert":
        reward_model.classifier.bias.data.fill_(0.7)
    reward_model.save_pretrained(tmp_path / "model")
    TOKENIZERS[kind]().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("model", ["qwen3", "llama", "bert"], indirect=True)
def test_a_hundred_heads_load_everywhere(model: str, tmp_path: Path) -> None:
    embedder, scorer, _ = open_embedder(model, tmp_path / "cache")
    before = scorer.score(ITEMS)
    original = original_head(scorer)
    heads = original.with_heads(signed_heads(decompose(embedded_pairs(embedder, GROUPS), components=8)))
    readout = Readout(heads.names, (1.0,) + (0.0,) * 16)
    save_heads(scorer, heads, tmp_path / "heads", golden=ITEMS[:3], readout=readout, files={"note.txt": "hello"})

    np.testing.assert_array_equal(scorer.score(ITEMS), before)  # the scorer has its own head again
    assert scorer.model.config.num_labels == 1
    expected = heads.score(embedder.embed(ITEMS))
    loaded = load_scorer(tmp_path / "heads")
    assert loaded.readout.outputs == heads.names == ("original", *(f"pc{j:02d}{s}" for j in range(1, 9) for s in "+-"))
    np.testing.assert_allclose(loaded.outputs(ITEMS), expected, atol=2e-5)
    np.testing.assert_allclose(loaded.score(ITEMS), before, atol=2e-5)
    assert (tmp_path / "heads" / "note.txt").read_text() == "hello"
    assert heads_of(loaded).names == heads.names

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "heads").eval()
    assert plain.config.id2label[1] == "pc01+"
    batch = PreferenceCollator(int(loaded.tokenizer.pad_token_id)).pad(loaded.encoder.encode(ITEMS))
    with torch.no_grad():
        logits = plain(**batch).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert all(check.passed for check in examine(tmp_path / "heads"))


@pytest.mark.parametrize("model", ["qwen3", "bert"], indirect=True)
def test_an_adapted_head_is_a_plain_reward_model(model: str, tmp_path: Path) -> None:
    embedder, scorer, _ = open_embedder(model, tmp_path / "cache")
    pairs = embedded_pairs(embedder, GROUPS)
    heads = signed_heads(decompose(pairs, components=6))
    scores = heads.score(pairs.embeddings)
    found = adapt(scores[pairs.chosen[:8]], scores[pairs.rejected[:8]], fallback=np.zeros(12))
    one = heads.combined(found.coefficients, found.offset)
    save_heads(scorer, one, tmp_path / "one", golden=ITEMS[:3])
    loaded = load_scorer(tmp_path / "one")
    expected = found.score(heads.score(embedder.embed(ITEMS)))
    rewards = loaded.score(ITEMS)
    if model and scorer.model.config.model_type == "bert":
        np.testing.assert_allclose(rewards, expected, atol=1e-4)
    else:  # without a bias the constant is gone, differences are not
        np.testing.assert_allclose(rewards - rewards[0], expected - expected[0], atol=1e-4)
    assert read_contract(tmp_path / "one").readout.outputs == ("reward",)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").config.num_labels == 1


def test_the_original_heads_part_in_the_directions(model: str, tmp_path: Path) -> None:
    embedder, scorer, _ = open_embedder(model, tmp_path / "cache")
    found = decompose(embedded_pairs(embedder, GROUPS), components=8)
    original, heads = original_head(scorer), signed_heads(found)
    weights = np.array(projection_weights(heads, original, found))
    projected = weights @ heads.weights
    np.testing.assert_allclose(projected, original.weights[0] @ found.directions.T @ found.directions, atol=1e-5)
    np.testing.assert_allclose(weights[0::2], -weights[1::2])
    assert projection_weights(original.with_heads(heads), original, found)[0] == 0.0


def test_a_folder_that_is_not_empty_is_left_alone_and_a_lossy_save_is_found(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    head = LinearHeads(("a", "b"), np.ones((2, 32), dtype=np.float32), np.zeros(2, dtype=np.float32))
    with pytest.raises(StorageError, match="not empty"):
        save_heads(scorer, head, tmp_path / "full", golden=ITEMS[:2], readout=Readout(("a", "b"), (1.0, 0.0)))
    save = scorer.model.save_pretrained

    def lossy(folder, **options):
        with torch.no_grad():
            scorer.model.score.weight.mul_(1.5)
        save(folder, **options)

    monkeypatch.setattr(scorer.model, "save_pretrained", lossy)
    with pytest.raises(ContractError, match="not all saved"):
        save_heads(scorer, head, tmp_path / "lossy", golden=ITEMS[:2], readout=Readout(("a", "b"), (1.0, 0.0)))
    assert not (tmp_path / "lossy").exists()
    assert isinstance(scorer, LocalScorer) and scorer.model.score.out_features == 1
