"""What is measured: a model, its tokenizer, and encoded groups, made so that every contender gets the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

from palate.data.collation import encoded_row
from palate.data.loading import load_groups
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder, EncodeReport
from palate.models.reward_model import as_reward_model, fit_tokenizer, load_pretrained, load_tokenizer
from palate.types import PreferenceGroup, text_of

VOCABULARY = 8192
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
    },
    "qwen3-30m": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
    },
}
"""Random decoders (Qwen3 architecture) by size: one for tests, one that two CPU cores train, and Llama-3.1-8B's shape for an accelerator."""


@dataclass
class Workload:
    """`rows`: encoded groups as the collators take them; every step takes `batch_size` of them."""

    model: PreTrainedModel
    tokenizer: Any
    rows: list[dict[str, Any]]
    batch_size: int

    def batches(self, steps: int) -> list[list[dict[str, Any]]]:
        """`steps` batches; the rows are gone through again where they do not suffice."""
        size = self.batch_size
        rows = self.rows * (1 + steps * size // len(self.rows))
        return [rows[i * size : (i + 1) * size] for i in range(steps)]


def from_file(path: str | Path, *, model: str, batch_size: int, max_length: int, dtype: torch.dtype, limit: int | None = None) -> Workload:
    """Groups of a file (rows that cannot be used are left out) on a checkpoint, or on a random model of one of SHAPES with a tokenizer of its own."""
    groups = load_groups(path, on_bad_row="drop", margins=False).groups[:limit]
    if model in SHAPES:
        tokenizer = prepare_tokenizer(byte_pairs(groups))
        reward_model = random_model(model, tokenizer, dtype)
    else:
        tokenizer = prepare_tokenizer(load_tokenizer(model))
        reward_model = load_pretrained(model, dtype=dtype)
        fit_tokenizer(reward_model, tokenizer)
    encoded = Encoder(tokenizer, max_length=max_length).encode_groups(groups, EncodeReport())
    return Workload(reward_model, tokenizer, [encoded_row(e, i) for i, e in enumerate(encoded)], batch_size)


def synthetic(shape: str, *, prompt: int, responses: Sequence[int], groups: int, batch_size: int, dtype: torch.dtype = torch.float32) -> Workload:
    """Random token ids of given lengths: `groups` prompts, each with a response of every length; the first beats all others."""
    tokenizer = prepare_tokenizer(byte_pairs([]))
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(4, len(tokenizer), (count,), generator=generator).tolist()

    rows = []
    for group in range(groups):
        shared = ids(prompt)
        others = len(responses) - 1
        rows.append(
            {
                "token_ids": [shared + ids(length) for length in responses],
                "chosen": [0] * others,
                "rejected": list(range(1, others + 1)),
                "margin": [0.0] * others,
                "weight": [1.0] * others,
                "probability": [1.0] * others,
                "group": group,
                "length": prompt + max(responses),
                "tokens": prompt + sum(responses),
            }
        )
    return Workload(random_model(shape, tokenizer, dtype), tokenizer, rows, batch_size)


def random_model(shape: str, tokenizer: Any, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    arguments: dict[str, Any] = dict(
        **SHAPES[shape],
        vocab_size=max(VOCABULARY, len(tokenizer)),
        max_position_embeddings=16_384,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: Any = Qwen3ForSequenceClassification(Qwen3Config(**arguments))
    return as_reward_model(model.to(dtype))


def byte_pairs(groups: Sequence[PreferenceGroup]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on the groups' texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((text_of(text) for group in groups for text in (group.prompt, *group.responses)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    return tokenizer
