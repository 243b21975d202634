"""Each written format, loaded and read as its consumer does it: what an export is compared with. Nothing here knows how a format was written.

Shapes: N sequences, L tokens, D outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from palate.interchange.value_model import end_scores

Sequences = Sequence[Sequence[int]]


def padded(sequences: Sequences, pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """(ids [N, L], mask [N, L])"""
    length = max(map(len, sequences))
    ids, mask = torch.full((len(sequences), length), pad), torch.zeros(len(sequences), length, dtype=torch.long)
    for i, one in enumerate(sequences):
        where = slice(length - len(one), length) if left else slice(0, len(one))
        ids[i, where], mask[i, where] = torch.tensor(one), 1
    return ids, mask


def at_last(values_NL: Tensor, mask_NL: Tensor) -> Tensor:
    """Values at the last token of right-padded rows. [N, L, ...] -> [N, ...]"""
    return values_NL[torch.arange(len(mask_NL)), mask_NL.sum(1) - 1]


def by_transformers(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """AutoModelForSequenceClassification, one padded batch; what TRL and pipelines do. [N, D]"""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids, mask = padded(sequences, AutoTokenizer.from_pretrained(folder).pad_token_id)
    return model(input_ids=ids, attention_mask=mask).logits.float()


def by_peft(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """AutoModelForSequenceClassification on an adapter's folder, whose base says nothing of labels or padding: rows go singly. [N, D]"""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=outputs).eval()
    return torch.cat([model(input_ids=torch.tensor([list(one)])).logits.float() for one in sequences])


def by_token_classification(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """AutoModelForTokenClassification, the value at the last token; verl's critic and reward worker."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    ids, mask = padded(sequences, AutoTokenizer.from_pretrained(folder).pad_token_id)
    return at_last(model(input_ids=ids, attention_mask=mask).logits.float(), mask)


def by_openrlhf(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """Its own class around the base model: left padding, positions by the mask, the head that the config names. Source: openrlhf/models/model.py."""
    config = AutoConfig.from_pretrained(folder)
    base_class: Any = AutoModel._model_mapping[type(config)]
    prefix = config.value_head_prefix

    class RewardModel(base_class.__base__):
        def __init__(self, config: Any):
            super().__init__(config)
            setattr(self, self.base_model_prefix, base_class(config))
            setattr(self, prefix, nn.Linear(config.hidden_size, 1, bias=False))
            self.post_init()

    model, info = RewardModel.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(f"missing {sorted(info['missing_keys'])}, without a place {sorted(info['unexpected_keys'])}")
    ids, mask = padded(sequences, AutoTokenizer.from_pretrained(folder).pad_token_id, left=True)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    hidden = getattr(model.eval(), model.base_model_prefix)(ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return getattr(model, prefix)(hidden)[:, -1].float()


def by_llamafactory(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """A causal language model and TRL's old value head, read at sum(mask) - 1. Source: llamafactory/train/rm/trainer.py."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    head = load_file(folder / "value_head.safetensors")
    ids, mask = padded(sequences, AutoTokenizer.from_pretrained(folder).pad_token_id)
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    return at_last(hidden.float() @ head["v_head.summary.weight"].float().T + head["v_head.summary.bias"].float(), mask)


class DeepSpeedChat(nn.Module):
    """The modules of its RewardModel. Source: dschat/utils/model/{model_utils,reward_model}.py, create_critic_model with rlhf_training."""

    def __init__(self, folder: Path, vocabulary: int):
        super().__init__()
        self.rwtransformer = AutoModel.from_config(AutoConfig.from_pretrained(folder))
        self.rwtransformer.resize_token_embeddings(int(8 * math.ceil(vocabulary / 8.0)), mean_resizing=False)
        config = self.rwtransformer.config
        self.v_head = nn.Linear(config.word_embed_proj_dim if "word_embed_proj_dim" in config.to_dict() else config.n_embd, 1, bias=False)


def by_deepspeed_chat(folder: Path, sequences: Sequences, outputs: int = 1) -> Tensor:
    """The end scores of `forward_value`. It loads without asking what did not fit; here everything must."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model = DeepSpeedChat(folder, len(tokenizer)).to(next(iter(state.values())).dtype).eval()
    model.load_state_dict(state, strict=True)
    ids, mask = padded(sequences, tokenizer.pad_token_id)
    values = model.v_head(model.rwtransformer(ids, attention_mask=mask).last_hidden_state).squeeze(-1)
    return end_scores(values, ids, tokenizer.pad_token_id, prompt_length=2)[:, None].float()


CONSUMERS: dict[str, Callable[[Path, Sequences, int], Tensor]] = {
    "hf": by_transformers,
    "adapter": by_peft,
    "token-classification": by_token_classification,
    "openrlhf": by_openrlhf,
    "llamafactory": by_llamafactory,
    "deepspeed-chat": by_deepspeed_chat,
}
"""Format -> outputs [N, D] of sequences as its consumer computes them."""
