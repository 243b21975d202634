"""Embeddings are what the head reads: the head's weights times them are the rewards, packed, shared or padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.templates import prepare_tokenizer
from palate.errors import DataError
from palate.models.heads import head_name
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.scoring.local import LocalScorer
from palate.types import Exchange, Readout

ITEMS = [Exchange(f"ask {i % 3}", f"good {'bad ' * (i % 5)}{i}") for i in range(12)]


def scorer_of(kind: str, packing: str, outputs: tuple[str, ...] = ("reward",), **options: object) -> LocalScorer:
    model, tokenizer = tiny_model(kind, seed=3, num_labels=len(outputs)), prepare_tokenizer(TOKENIZERS[kind](), close=False)
    fit_tokenizer(model, tokenizer)
    scorer = LocalScorer(as_reward_model(model, outputs), tokenizer, packing=packing, **options)  # type: ignore[arg-type]
    scorer.readout = Readout(outputs, (1.0,) * len(outputs))
    return scorer


@pytest.mark.parametrize("packing", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "bert"])
def test_the_head_times_the_embeddings_are_the_rewards(kind: str, packing: str) -> None:
    scorer = scorer_of(kind, packing)
    head = scorer.model.get_submodule(str(head_name(scorer.model)))
    embeddings = scorer.embed(ITEMS)
    assert embeddings.shape == (12, scorer.width) and embeddings.dtype == np.float32
    bias = 0.0 if head.bias is None else float(head.bias.detach()[0])
    np.testing.assert_allclose(embeddings @ head.weight.detach().numpy()[0] + bias, scorer.score(ITEMS), atol=1e-5)
    np.testing.assert_allclose(scorer.embed_ids(scorer.encoder.encode(ITEMS)), embeddings, atol=1e-5)
    np.testing.assert_allclose(scorer_of(kind, "padded").embed(ITEMS[::-1])[::-1], embeddings, atol=1e-5)


def test_scores_are_what_they_were_after_embedding() -> None:
    scorer = scorer_of("llama", "auto")
    before = scorer.score(ITEMS)
    scorer.embed(ITEMS)
    np.testing.assert_array_equal(scorer.score(ITEMS), before)
    with pytest.raises(DataError, match="conversation 0"):
        LocalScorer(scorer.model, scorer.tokenizer, max_length=4).embed(ITEMS)
    np.testing.assert_array_equal(scorer.score(ITEMS), before)  # the head is back after an error


def test_what_cannot_be_embedded_is_a_row_of_nan() -> None:
    scorer = scorer_of("qwen3", "auto", ("a", "b"), max_length=32)
    long = Exchange("ask", "good " * 50)
    embeddings = scorer.embed([ITEMS[0], long, ITEMS[1]], on_long="nan")
    assert np.isnan(embeddings).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(scorer.outputs([ITEMS[0], long], on_long="nan")).all(axis=1).tolist() == [False, True]


def test_a_step_model_gives_nan_for_what_is_too_long() -> None:
    scorer = scorer_of("qwen3", "auto", ("bad", "good"), max_length=32)
    scorer.readout = Readout(("bad", "good"), (0.0, 1.0), "min")
    steps = scorer.score_steps([ITEMS[0], Exchange("ask", "good " * 50)], on_long="nan")
    assert torch.isfinite(torch.from_numpy(steps[0])).all() and np.isnan(steps[1]).all()
