"""Attention over packed rows of shared-prefix trees: one function, registered with transformers, for every model that goes through its interface.

A model whose attention is `palate` behaves as before (SDPA, or its own eager attention) until its forward is given a `Layout`; then every layer
attends by it. Three backends give the same numbers:

- `segments` (CPU): each piece of the row by PyTorch's flash kernel for CPUs, in one autograd function over the whole row;
- `flex` (CUDA): compiled FlexAttention with a block mask made once a batch;
- `dense`: scores with the whole mask. The definition, the test's oracle, and, tree by tree, what serves logit soft-capping and attention sinks.

Shapes: T tokens of the row, A heads, B key-value heads, E head dimension.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from palate.errors import ModelError
from palate.models.layout import Layout, Piece

NAMES = {"sdpa": "palate", "eager": "palate_eager"}
"""Attention that a model had -> ours, which does the same without a layout. (A name with "sdpa" in it would be refused for models without SDPA.)"""

LAYOUT = "palate_layout"
"""Keyword under which a layout travels through the model's forward to every attention layer."""


def no_mask() -> Tensor:
    """Handed to a model as its mask: four dimensions, so transformers makes none, and empty, so that no other attention could use it unnoticed."""
    return torch.empty(1, 1, 0, 0)


def tree_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, palate_layout: Layout | None = None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """transformers' attention function: query [1, A, T, E], key and value [1, B, T, E] -> [1, T, A, E]."""
    if palate_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _attend(module, query, key, value, palate_layout, **kwargs), None


def tree_attention_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, palate_layout: Layout | None = None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """The same for models without SDPA (soft-capping, sinks): without a layout their own eager attention runs."""
    if palate_layout is None:
        own: Any = sys.modules[type(module).__module__]
        return own.eager_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _attend(module, query, key, value, palate_layout, **kwargs), None


ALL_ATTENTION_FUNCTIONS.register("palate", tree_attention)
ALL_ATTENTION_FUNCTIONS.register("palate_eager", tree_attention_eager)
ALL_MASK_ATTENTION_FUNCTIONS.register("palate", sdpa_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register("palate_eager", eager_mask)


def use_tree_attention(model: PreTrainedModel) -> None:
    """Make every attention layer of the model ours; padded forwards stay what they were. Doing it twice changes nothing."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            for config in (part.config, part.config.get_text_config()):
                config._attn_implementation = NAMES.get(config._attn_implementation, config._attn_implementation)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """[1, T, A, E]; the keyword arguments are those that transformers' attention layers pass."""
    if dropout:
        raise ModelError(f"attention dropout {dropout} with packed rows; set disable_dropout, or data.packing: padded")
    if position_bias is not None:
        raise ModelError(f"{type(module).__name__} adds a position bias to its scores, which packed rows do not know; set data.packing: padded")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout.backend == "flex":
        mask = layout.block_mask(sliding_window)
        return flex_attention_forward(module, query, key, value, mask, scaling=scale, softcap=softcap, s_aux=s_aux)[0]
    if layout.backend == "segments" and query.device.type == "cpu" and softcap is None and s_aux is None and query.shape[-1] == value.shape[-1]:
        return by_segments(query, key, value, layout, scale, sliding_window)
    spans = [(0, query.shape[2])] if layout.backend == "dense" else layout.tree_spans()
    lengths = [stop - start for start, stop in spans]
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), spans, strict=True)
    return torch.cat([dense(q, k, v, layout.mask(sliding_window, span), scale, softcap, s_aux) for q, k, v, span in parts], dim=2).transpose(1, 2)


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """Attention written out, in float32: scores, cap (Gemma 2), mask, sinks (gpt-oss: one more column that takes weight and gives nothing), softmax.

    query [1, A, T, E], key and value [1, B, T, E], mask [T, T] of booleans, sinks [A] -> [1, A, T, E].
    """
    groups = query.shape[1] // key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float(), key.float().repeat_interleave(groups, 1), value.float().repeat_interleave(groups, 1)
        scores = q @ k.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=3)
        weights = scores.softmax(dim=3)[..., : k.shape[2]]
        return (weights @ v).to(value.dtype)


# --- segments ---------------------------------------------------------------------------------------------------------------------------------


@torch.compiler.disable
def by_segments(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None) -> Tensor:
    """Attention piece by piece in float32 -> [1, T, A, E] in the dtype of `value`.

    Float32 also under autocast: PyTorch's bfloat16 flash backward on CPUs is slower than its float32 one on short segments (docs/log.md).
    """
    with torch.autocast("cpu", enabled=False):
        attended = SegmentAttention.apply(query.float(), key.float(), value.float(), layout.pieces(window), scale)
    return attended.to(value.dtype)


class SegmentAttention(torch.autograd.Function):
    """The pieces of a row, forward and backward, with buffers of the whole row written in place.

    Slicing keys and values under autograd instead would fill and add one gradient of the whole row for every piece, which is quadratic.
    Key-value heads are shared by a stride of 0, never copied: heads [A] are seen as [A/B, B].
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: list[Piece], scale: float) -> Tensor:
        q, k, v = _grouped(query[0], key.shape[1]), _shared(key[0], query.shape[1]), _shared(value[0], query.shape[1])
        complete = sum(piece.stop - piece.start for piece in pieces) == query.shape[2]
        out = (query.new_empty if complete else query.new_zeros)(query.shape[2], query.shape[1], query.shape[3])  # [T, A, E]
        o = _grouped(out.transpose(0, 1), key.shape[1])
        logsumexp = []
        for piece in pieces:
            result, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, piece.start : piece.stop], _joined(k, piece), _joined(v, piece), 0.0, piece.causal, attn_mask=piece.mask, scale=scale
            )
            o[:, :, piece.start : piece.stop] = result
            logsumexp.append(lse)
        ctx.save_for_backward(query, key, value, out, *logsumexp)
        ctx.pieces, ctx.scale, ctx.complete = pieces, scale, complete
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, *logsumexp = ctx.saved_tensors
        heads, shared = query.shape[1], key.shape[1]
        q, k, v = _grouped(query[0], shared), _shared(key[0], heads), _shared(value[0], heads)
        o, g = _grouped(out.transpose(0, 1), shared), _grouped(gradients[0][0].transpose(0, 1), shared)
        grad_query = (torch.empty_like if ctx.complete else torch.zeros_like)(query)
        dq = _grouped(grad_query[0], shared)
        dk, dv = (query.new_zeros(heads // shared, shared, query.shape[2], query.shape[3]) for _ in range(2))  # summed over the group at the end
        for piece, lse in zip(ctx.pieces, logsumexp, strict=True):
            rows = slice(piece.start, piece.stop)
            of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g[:, :, rows],
                q[:, :, rows],
                _joined(k, piece),
                _joined(v, piece),
                o[:, :, rows],
                lse,
                0.0,
                piece.causal,
                attn_mask=piece.mask,
                scale=ctx.scale,
            )
            dq[:, :, rows] = of_query
            at = 0
            for start, stop in piece.spans:  # a prefix collects the gradients of all its branches
                part = slice(at, at + stop - start)
                dk[:, :, start:stop] += of_key[:, :, part]
                dv[:, :, start:stop] += of_value[:, :, part]
                at += stop - start
        return grad_query, dk.sum(0)[None], dv.sum(0)[None], None, None


def _grouped(heads: Tensor, shared: int) -> Tensor:
    """[A, T, E] -> [A/B, B, T, E] without copying; head h of transformers uses key-value head h // (A/B)."""
    return heads.unflatten(0, (shared, -1)).transpose(0, 1)


def _shared(heads: Tensor, count: int) -> Tensor:
    """[B, T, E] -> [A/B, B, T, E] without copying."""
    return heads.expand(count // heads.shape[0], -1, -1, -1)


def _joined(heads: Tensor, piece: Piece) -> Tensor:
    """The keys or values of a piece. [A/B, B, T, E] -> [A/B, B, keys, E]"""
    spans = [heads[:, :, start:stop] for start, stop in piece.spans]
    return spans[0] if len(spans) == 1 else torch.cat(spans, dim=2)
