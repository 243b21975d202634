"""Reward models that TRL's RewardTrainer trained and saved, imported: their rewards are those of TRL's model on the ids that TRL made, encoders' too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tests.conftest import TINY, TOKENIZERS, bert_tokenizer, tiny_model
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, ModernBertConfig, ModernBertForSequenceClassification
from trl import RewardConfig, RewardTrainer

from palate.interchange.import_options import ImportOptions
from palate.interchange.importing import import_model
from palate.scoring.local import LocalScorer, load_scorer

SUBJECTS = ("the sea", "the wind", "paris", "berlin")
SEP_CHAT = "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}[SEP]\n{% endfor %}"
"""ChatML's shape for a tokenizer whose turns end at [SEP]: nothing in it is [CLS]."""


def rows(chat: bool) -> Dataset:
    def turn(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if chat else text

    return Dataset.from_list(
        [{"prompt": turn("user", f"about {s} "), "chosen": turn("assistant", f"Sure, {s}"), "rejected": turn("assistant", "No, you fool")} for s in SUBJECTS]
    )


def encoder(kind: str, tokenizer: Any) -> Any:
    torch.manual_seed(4)
    sizes = {**TINY, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 1, "max_position_embeddings": 512}
    if kind == "bert":
        return tiny_model("bert", seed=4)
    if kind == "modernbert":
        return ModernBertForSequenceClassification(ModernBertConfig(**sizes, cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id))
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**sizes, **relative, pooler_hidden_size=32))


def trained(model: Any, tokenizer: Any, folder: Path, chat: bool, **options: Any) -> RewardTrainer:
    """Two steps of TRL's own trainer, saved as it saves."""
    settings = RewardConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=3,
    )
    trainer = RewardTrainer(model=model, processing_class=tokenizer, args=settings, train_dataset=rows(chat), **options)
    trainer.train()
    trainer.save_model(str(folder))
    trainer.create_model_card()
    return trainer


def rewards_of(trainer: RewardTrainer) -> list[float]:
    """TRL's model on the ids that its own preparation of the data made, one by one."""
    model = trainer.model.eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.item() for side in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[side]]


def scored(scorer: LocalScorer, chat: bool) -> np.ndarray:
    data = rows(chat)
    return scorer.score([row["prompt"] + row[side] for side in ("chosen", "rejected") for row in data])


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
@pytest.mark.parametrize("kind", ["bert", "deberta", "modernbert"])
def test_an_encoder_pools_the_first_token_that_trl_gave_it(tmp_path: Path, kind: str, chat: bool) -> None:
    """A chat is rendered and gets no [CLS]; plain text gets EOS as text and the tokenizer's frame, so that [SEP] stands there twice."""
    tokenizer = bert_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.chat_template = SEP_CHAT if chat else None
    trainer = trained(encoder(kind, tokenizer), tokenizer, tmp_path / "theirs", chat)
    ids = trainer.train_dataset[0]["chosen_ids"]
    assert (ids[0] == tokenizer.cls_token_id) is not chat and (ids[-2:] == [tokenizer.sep_token_id] * 2) is not chat
    said: list[str] = []
    import_model(tmp_path / "theirs", tmp_path / "ours", ImportOptions(template=None if chat else "none"), say=said.append)
    np.testing.assert_allclose(scored(load_scorer(tmp_path / "ours"), chat), rewards_of(trainer), rtol=1e-6, atol=1e-6)
    assert any(line.startswith("conventions: trl") for line in said)


@pytest.mark.parametrize(("kind", "chat"), [("llama", True), ("llama", False), ("bert", True)], ids=["llama-chat", "llama-text", "bert-chat"])
def test_an_adapter_of_trl(tmp_path: Path, kind: str, chat: bool) -> None:
    """Llama's tokenizer has no pad token: TRL pads by EOS, and transformers reads the token before it."""
    tokenizer, model = TOKENIZERS[kind](), tiny_model(kind, seed=4)
    if kind == "bert":
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.chat_template = SEP_CHAT if chat else None
    getattr(model, model.base_model_prefix).save_pretrained(tmp_path / "base")
    modules = ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]
    torch.manual_seed(6)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=modules, init_lora_weights=False)
    trainer = trained(str(tmp_path / "base"), tokenizer, tmp_path / "theirs", chat, peft_config=lora)
    said: list[str] = []
    import_model(tmp_path / "theirs", tmp_path / "ours", ImportOptions(template=None if chat else "none"), say=said.append)
    np.testing.assert_allclose(scored(load_scorer(tmp_path / "ours"), chat), rewards_of(trainer), rtol=1e-5, atol=1e-6)
    assert any(line.startswith("conventions: trl") for line in said)
    assert any(line.startswith("reward: read before EOS") for line in said) is (kind == "llama")
