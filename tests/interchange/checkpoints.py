"""Checkpoints of ours, made without training: random weights, a contract, golden examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.templates import PLAIN_CHAT_TEMPLATE, prepare_tokenizer
from palate.data.tokenization import Encoder
from palate.interchange.examples import default_examples
from palate.models.checkpoints import RewardStatistics
from palate.models.heads import give_bias
from palate.models.reward_model import ONE_REWARD, as_reward_model, fit_tokenizer
from palate.scoring.contract import build_contract
from palate.types import Readout

CHATS = [[{"role": "user", "content": "what is paris?"}, {"role": "assistant", "content": "the capital " * n}] for n in (1, 7, 3)] + [
    [
        {"role": "user", "content": "a poem"},
        {"role": "assistant", "content": "the sea"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "wind"},
    ]
]


def checkpoint(
    folder: Path,
    kind: str = "qwen3",
    *,
    readout: Readout | None = None,
    bias: Sequence[float] | None = None,
    rewards: RewardStatistics | None = None,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,  # of the embedding, where it has more than the tokenizer has tokens
    **config: Any,
) -> Path:
    outputs = readout.outputs if readout else ONE_REWARD
    tokenizer = prepare_tokenizer(TOKENIZERS[kind](), chat_template=PLAIN_CHAT_TEMPLATE if kind == "bert" else None)
    model = tiny_model(kind, seed=3, num_labels=len(outputs), **config)
    torch.manual_seed(11)
    head = model.classifier if kind == "bert" else model.score
    head.weight.data.normal_()
    model = as_reward_model(model.to(dtype), outputs).eval()
    if bias is not None:
        give_bias(head, torch.tensor(bias))
    fit_tokenizer(model, tokenizer)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    encoder = Encoder(tokenizer, max_length=128)
    contract = build_contract(model, encoder, golden=default_examples(chat=True), readout=readout, rewards=rewards)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    contract.save(folder)
    return folder
