"""Soft labels on one token: the divergence and its gradient by hand, SFT's cross-entropy as a case of it, and a model that learns a probability."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.conftest import DECODER, chatml_tokenizer
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from palate.data.generative_rows import generative_rows
from palate.data.label_tokens import LabelCollator
from palate.errors import DataError
from palate.losses.label_tokens import label_divergence, label_token_loss
from palate.models.generative import label_features, label_logits
from palate.types import Comparison, PreferenceGroup

LOGITS = torch.tensor([[0.0, math.log(3.0), 5.0, 0.0]])
TOKENS = torch.tensor([[1, 0]])  # the labels' logits are log 3 and 0: q = (3/4, 1/4)


def test_the_divergence_and_its_gradient_by_hand() -> None:
    """p = (1/2, 1/2): KL = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3); the gradient is q - p = (1/4, -1/4) on the labels and 0 elsewhere."""
    logits = LOGITS.clone().requires_grad_()
    loss = label_divergence(logits, TOKENS, torch.tensor([[0.5, 0.5]]))
    assert loss.item() == pytest.approx(0.5 * math.log(4 / 3))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.25, 0.0, 0.0]]))


def test_it_is_nothing_where_the_model_says_what_is_true() -> None:
    assert label_divergence(LOGITS, TOKENS, torch.tensor([[0.75, 0.25]])).item() == pytest.approx(0, abs=1e-6)
    assert label_divergence(LOGITS, TOKENS, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(4 / 3))  # 0 log 0 is 0


def test_over_the_whole_vocabulary_a_hard_label_is_sfts_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(6, 11, generator=generator), torch.randint(0, 5, (6, 1), generator=generator)
    tokens = torch.cat([tokens, tokens + 6], dim=1)
    found = label_divergence(logits, tokens, torch.tensor([[1.0, 0.0]]).repeat(6, 1), whole_vocabulary=True)
    torch.testing.assert_close(found, cross_entropy(logits, tokens[:, 0], reduction="none"))


def test_the_mean_is_over_the_rows_of_a_whole_step() -> None:
    """Weights 1 and 3, divergences d and 0: d / 2 alone; a quarter of d as one of two batches with four rows between them."""
    logits = LOGITS.repeat(2, 1)[:, None]
    labels = torch.tensor([[[1, 0], [0.5, 0.5]], [[1, 0], [2.25, 0.75]]])
    d = 0.5 * math.log(4 / 3)
    assert label_token_loss(SimpleNamespace(logits=logits), labels).item() == pytest.approx(d / 2, abs=1e-6)
    assert label_token_loss(SimpleNamespace(logits=logits), labels, torch.tensor(16)).item() == pytest.approx(d / 4, abs=1e-6)
    heavy = torch.tensor([[[1, 0], [1.5, 1.5]]])
    assert label_token_loss(SimpleNamespace(logits=logits[:1]), heavy).item() == pytest.approx(3 * d, abs=1e-6)


# --- rows -----------------------------------------------------------------------------------------------------------------------------------------


def tokenizer_with_labels() -> Any:
    tokenizer = chatml_tokenizer()
    tokenizer.add_tokens(["Yes", "No", "Unsure", " A", " B", " C"])
    return tokenizer


TOKENIZER = tokenizer_with_labels()


def language_model() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8, vocab_size=len(TOKENIZER), initializer_range=0.1))


def pair(n: int, probability: float, **metadata: Any) -> PreferenceGroup:
    return PreferenceGroup("two plus two", (f"four {n}", "five " * (n + 1)), (Comparison(0, 1, probability=probability),), metadata=metadata)


def test_features_of_rows_with_and_without_reasons() -> None:
    rows = generative_rows([pair(0, 0.8), pair(1, 0.5)], "pair_label", ties="label", orders="both").rows
    features = label_features(TOKENIZER, rows, ("A", "B", "C")).features
    assert [[round(t, 6) for t in one["targets"]] for one in features] == [[0.8, 0.2, 0], [0.2, 0.8, 0], [0, 0, 1], [0, 0, 1]]
    assert TOKENIZER.convert_ids_to_tokens(features[0]["label_ids"]) == ["A", "B", "C"] and features[0]["weight"] == 0.5
    reasoned = generative_rows([pair(0, 0.8, rationale="{chosen} is right")], "pair_reasoning").rows
    (one,) = label_features(TOKENIZER, reasoned, ("A", "B")).features
    assert TOKENIZER.decode(one["input_ids"]).endswith("is right\n\nVerdict:")  # the blank belongs to the label
    assert TOKENIZER.convert_ids_to_tokens(one["label_ids"]) == [" A", " B"]


def test_rows_that_do_not_fit_are_counted_and_foreign_labels_refused() -> None:
    rows = generative_rows([pair(0, 0.9), pair(30, 0.9)], "yes_no").rows
    lengths = sorted(len(one["input_ids"]) for one in label_features(TOKENIZER, rows, ("Yes", "No")).features)
    found = label_features(TOKENIZER, rows, ("Yes", "No"), max_length=lengths[2] + 1)  # the label is the one token more
    assert len(found.features) == 3 and found.too_long == 1
    with pytest.raises(DataError, match=r"row 1: its label 'Yes' is none of \['A', 'B'\]"):
        label_features(TOKENIZER, rows, ("A", "B"))


@torch.no_grad()
def test_a_padded_batch_reads_what_each_row_alone_does() -> None:
    model, rows = language_model().eval(), generative_rows([pair(n, 0.8) for n in range(3)], "yes_no").rows
    batch = LabelCollator(TOKENIZER.pad_token_id)(label_features(TOKENIZER, rows, ("Yes", "No")).features)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    assert logits.shape[1] == 1 and batch["attention_mask"].sum(dim=1).unique().numel() > 1
    together = logits[:, 0].log_softmax(-1).gather(1, labels[:, 0].long())
    alone = label_logits(model, TOKENIZER, [row["prompt"] for row in rows], ("Yes", "No")).logprobs
    torch.testing.assert_close(together, torch.from_numpy(alone), atol=1e-5, rtol=1e-5)


def trained(tmp_path: Path, **options: Any) -> Any:
    """Six probabilities, each of its own short question."""
    told = {"sea": 0.9, "the wind": 0.2, "paris": 0.6, "no": 0.5, "two plus": 0.05, "fox": 0.75}
    rows = [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"content": "A" if p > 0.5 else "B"}], "label": "A" if p > 0.5 else "B"}
        | {"probability": p, "weight": 1.0}
        for text, p in told.items()
    ]
    model = language_model()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            **{"per_device_train_batch_size": 6, "max_steps": 60, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "weight_decay": 0.0, **options},
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=Dataset.from_list(label_features(TOKENIZER, rows, ("A", "B")).features),
        data_collator=LabelCollator(TOKENIZER.pad_token_id),
        compute_loss_func=label_token_loss,
    )
    trainer.train()
    return model.eval(), rows, trainer


def test_a_model_learns_the_probabilities(tmp_path: Path) -> None:
    """SFT on the letters would push every one of them to 0 or 1."""
    model, rows, _ = trained(tmp_path)
    odds = label_logits(model, TOKENIZER, [row["prompt"] for row in rows], ("A", "B")).log_odds("A", "B")
    assert (1 / (1 + torch.from_numpy(odds).neg().exp())).tolist() == pytest.approx([row["probability"] for row in rows], abs=0.05)


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    """Two batches of three rows, accumulated, move the weights as one of six does."""
    common: dict[str, Any] = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
    whole, _, _ = trained(tmp_path, **common)
    parts, _, _ = trained(tmp_path, **common, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
