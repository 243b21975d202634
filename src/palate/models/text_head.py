"""The language-model head beside the reward head: log-probabilities of a response's own tokens, for text regularisation in training.

It is the base model's, kept as it is (where it is tied to the input embedding, it moves with that), and it is never saved: the checkpoint stays a
plain reward model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from palate.errors import ModelError
from palate.types import IGNORED

TOKENS_AT_A_TIME = 1024
"""Logits held at once: 1024 tokens of a vocabulary of 128 000 take half a gibibyte in float32; each block is computed again for its gradient."""

UNSUPPORTED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config entries that change logits behind the head, which is not imitated here."""


class TextHead(nn.Module):
    """hidden [R, H], next tokens [R] -> log-probabilities [R] in float32; 0 where the next token is IGNORED."""

    def __init__(self, weight: Tensor | None, embedding: nn.Embedding | None, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.tied = [embedding] if embedding is not None else []  # in a list: a module of the backbone, not one of this head's own

    def forward(self, hidden: Tensor, next_token: Tensor) -> Tensor:
        weight = self.tied[0].weight if self.tied else self.weight
        blocks = zip(hidden.split(TOKENS_AT_A_TIME), next_token.split(TOKENS_AT_A_TIME), strict=True)
        return torch.cat([checkpoint(_log_probabilities, h, weight, self.bias, t, use_reentrant=False) for h, t in blocks])


def _log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None, next_token: Tensor) -> Tensor:
    logits = linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)).float()
    return -cross_entropy(logits, next_token, ignore_index=IGNORED, reduction="none")


def attach_text_head(model: PreTrainedModel, name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Give a decoder the language-model head of the base model that it was loaded from. Raises ModelError when there is none."""
    config = model.config.get_text_config()
    if found := [name for name in UNSUPPORTED if getattr(config, name, None) not in (None, 1, 1.0)]:
        raise ModelError(f"loss.text: {type(model).__name__} changes its logits by {', '.join(found)}, which text regularisation does not imitate")
    if getattr(config, "tie_word_embeddings", False):
        model.text_head = TextHead(None, model.get_input_embeddings())  # type: ignore[arg-type]
        return
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=model.dtype, revision=revision, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"loss.text: the language-model head of {name_or_path or 'a model without a name'} cannot be loaded: {error}") from error
    language_model, info = loaded
    if any("lm_head" in str(key) or "embed_out" in str(key) for key in info["missing_keys"]):
        raise ModelError(f"{name_or_path}: has no language-model head, which loss.text needs; start from a base or instruct model")
    output = language_model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    model.text_head = TextHead(output.weight.detach().clone(), None, None if bias is None else bias.detach().clone())
