"""Which engine computes a model's rewards: packed rows that share prefixes, packed rows, or padded batches; with the reason, and a check of it.

Rows are packed wherever that is exact. What stands in the way is read off the model and its config (`choose_packing`); what cannot be read off
shows when a first batch is computed both ways (`packing_error`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from palate.errors import ConfigError, ModelError
from palate.models.attention import NAMES, use_tree_attention
from palate.models.last_layer import read_sparsely
from palate.models.reward_model import RewardForward, as_evaluated, pack_encoder, pooling_of
from palate.types import PACKINGS

CHECKED_SEQUENCES = 8  # sequences of the first batch that are computed both ways

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative difference of rewards that is rounding: sums in another order in float32; a few steps of 11 and 8 significant bits."""


class Engine(NamedTuple):
    """`shared`: rows of trees; `packed`: rows of whole sequences; `padded`. `reason` says in words why it is not the fastest one."""

    packing: str
    reason: str


def obstacle(model: PreTrainedModel, max_length: int | None = None) -> str | None:
    """Why rows of this model cannot be packed exactly; None where nothing is known against it."""
    config = model.config.get_text_config()
    kind = type(model).__name__
    if not model._supports_attention_backend:
        return f"{kind} computes attention itself, not through transformers' attention interface"
    implementation = config._attn_implementation
    if implementation not in NAMES and implementation not in NAMES.values():
        return f"attn_implementation is {implementation}; rows are packed in place of sdpa and eager"
    layers = set(getattr(config, "layer_types", None) or ())
    if other := layers - {"full_attention", "sliding_attention"}:
        return f"{kind} has {', '.join(sorted(other))} layers, which do not see where a sequence ends"
    if pooling_of(model) == "mean":
        return f"{kind} pools the mean of all tokens"
    if dropout := _attention_dropout(model):
        return f"attention dropout is {dropout}; disable_dropout turns it off"
    rope: Any = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        original = part.get("original_max_position_embeddings") or config.max_position_embeddings
        if part.get("rope_type") in ("dynamic", "longrope") and (max_length is None or max_length > original):
            return f"its rotary positions ({part['rope_type']}) depend on the longest sequence of a batch beyond {original} tokens"
    return None


def _attention_dropout(model: PreTrainedModel) -> float:
    """Highest dropout that an attention layer would apply to its weights."""
    names = ("attention_dropout", "attn_dropout", "attention_probs_dropout_prob", "attn_pdrop")
    found = [getattr(model.config.get_text_config(), name, 0.0) or 0.0 for name in names]
    return max(value for value in found if isinstance(value, float | int))


def choose_packing(model: PreTrainedModel, packing: str = "auto", max_length: int | None = None) -> Engine:
    """The engine for a model, set up on it; padded forwards of the model stay what they were.

    Raises ConfigError when what is asked for cannot be exact.
    """
    if packing not in PACKINGS:
        raise ConfigError(f"packing is {packing!r}, expected one of {', '.join(PACKINGS)}")
    wrapped: Any = model
    if isinstance(getattr(wrapped, "peft_config", None), dict):
        model = wrapped.get_base_model()
    if packing == "padded":
        return Engine("padded", "asked for")
    problem = obstacle(model, max_length)
    causal = pooling_of(model) == "last"
    if packing == "shared" and not causal and problem is None:
        problem = f"in {type(model).__name__} every token sees the whole sequence, so a prompt differs with its response; `packed` is exact"
    if problem:
        if packing != "auto":
            raise ConfigError(f"packing: {packing} would not be exact: {problem}. Set packing to auto or padded")
        return Engine("padded", problem)
    set_up(model)
    if packing == "packed":
        return Engine("packed", "asked for")
    return Engine("shared", "") if causal else Engine("packed", "an encoder's prompt differs with its response")


def set_up(model: PreTrainedModel) -> None:
    use_tree_attention(model)
    read_sparsely(model)
    if not isinstance(model, RewardForward):
        pack_encoder(model)


def packing_error(model: nn.Module, packed: Mapping[str, Any], padded: Mapping[str, Any], precision: torch.dtype | None = None) -> str | None:
    """In words, how the packed rewards of some sequences differ from the padded ones; None where they agree.

    `model` may be wrapped (DDP, FSDP); every rank must call this alike. Dropout is off meanwhile, and autocast too. `precision`: what the model
    computes in where that is not the dtype of its weights (FSDP's mixed precision).
    """
    dtypes = {precision} if precision else {parameter.dtype for parameter in model.parameters()}
    tolerance = max(TOLERANCE.get(dtype, TOLERANCE[torch.float32]) for dtype in dtypes)
    with as_evaluated(model):
        expected = model(**padded).logits.float().flatten()
        got = model(**packed).logits.float().flatten()
    difference = (got - expected).abs() / expected.abs().clamp(min=1.0)
    if bool((difference <= tolerance).all()):
        return None
    worst = int(difference.nan_to_num(float("inf")).argmax())
    return f"packed rows give {got[worst]:.6g} where padded ones give {expected[worst]:.6g} (tolerance {tolerance:g})"


def checked(engine: Engine, problem: str | None, asked: str) -> Engine:
    """The engine after the first batch was computed both ways. Raises ModelError when a packing that was asked for turns out not exact."""
    if problem is None:
        return engine
    if asked != "auto":
        raise ModelError(f"packing: {asked} is not exact for this model: {problem}. Set packing to auto or padded")
    return Engine("padded", problem)
