"""The last layer, computed only where a reward is read.

A reward needs one token of each sequence from the last layer: its keys and values come from every token, but queries, the output projection and
the feed-forward block are wasted on all others, one layer's worth of work in a model of eight layers. Exact, gradients included: what is left
out is read by nobody. Where a layer is built in a way not known here, it is computed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from palate.models.layout import Layout, untraced

FEED_FORWARDS = ("mlp", "feed_forward", "ffn")
"""Names of the block that works on each token alone (Llama, Qwen, Gemma, GPT-2, ModernBERT: mlp)."""

PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "attention.self.query")
"""Linear layers whose output at a token is used at that token only. Fused projections (`qkv_proj`) hold keys and values and stay whole."""

OUTPUTS = ("attention.output",)
"""BERT's and RoBERTa's output projection with its residual and norm."""


class OnlyReads:
    """Mixed in front of a module that works on each token alone: while `_reads` is set, it runs on those tokens; the others get zeros."""

    _reads: Tensor | None = None

    @untraced  # torch.compile would compile anew for every number of reads
    def forward(self, *hidden: Tensor) -> Tensor:
        run: Callable[..., Tensor] = super().forward  # type: ignore[misc]
        return run(*hidden) if self._reads is None else at_rows(run, hidden, self._reads)


def at_rows(run: Callable[..., Tensor], hidden: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """`run` on some tokens of a row, each named once. [1, T, H], ... -> [1, T, H'] with zeros elsewhere."""
    part = run(*(tokens[:, rows] for tokens in hidden))
    return part.new_zeros(1, hidden[0].shape[1], part.shape[2]).index_copy(1, rows, part)


class LastLayer:
    """Mixed in front of the class of the last layer; its forward also runs when gradient checkpointing computes it again."""

    _reads: Tensor | None = None

    @untraced
    def forward(self, *args: Any, palate_layout: Layout | None = None, **kwargs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if palate_layout is None:
            return forward(*args, **kwargs)
        if palate_layout.asks is None:  # so many tokens are read that nothing is left to save
            return forward(*args, palate_layout=palate_layout, **kwargs)
        with self._only(palate_layout.asks):
            return forward(*args, palate_layout=palate_layout.at_reads(), **kwargs)

    @contextmanager
    def _only(self, reads: Tensor) -> Iterator[None]:
        parts = [part for part in self.modules() if isinstance(part, (OnlyReads, LastLayer))]  # type: ignore[attr-defined]
        for part in parts:
            part._reads = reads
        try:
            yield
        finally:
            for part in parts:
                part._reads = None

    @untraced
    def feed_forward_chunk(self, hidden: Tensor) -> Tensor:
        """BERT's and RoBERTa's feed-forward block is a method of the layer."""
        run: Callable[[Tensor], Tensor] = super().feed_forward_chunk  # type: ignore[misc]
        return run(hidden) if self._reads is None else at_rows(run, (hidden,), self._reads)


def read_sparsely(model: PreTrainedModel) -> bool:
    """Let the last layer work only where rewards are read, if it is built in a known way; says whether it is. Twice changes nothing."""
    layer = last_layer(model)
    if layer is None or isinstance(layer, LastLayer):
        return layer is not None
    blocks = [block for name in FEED_FORWARDS if isinstance(block := getattr(layer, name, None), nn.Module) and _token_by_token(block)]
    if not blocks and not callable(getattr(layer, "feed_forward_chunk", None)):
        return False
    named = dict(layer.named_modules())
    outputs = [named[name] for name in OUTPUTS if name in named and _token_by_token(named[name])]
    for part in [*blocks, *outputs, *(named[name] for name in PROJECTIONS if type(named.get(name)) is nn.Linear)]:
        _mix_in(part, OnlyReads)
    _mix_in(layer, LastLayer)
    return True


def last_layer(model: PreTrainedModel) -> nn.Module | None:
    """The last of the model's layers; None where they are not one list of `num_hidden_layers` modules."""
    backbone: nn.Module = getattr(model, model.base_model_prefix)
    layers = [part for part in backbone.modules() if isinstance(part, GradientCheckpointingLayer)]
    return layers[-1] if len(layers) == model.config.get_text_config().num_hidden_layers else None


def _token_by_token(block: nn.Module) -> bool:
    """Linear layers, norms and activations only: no router that counts tokens, no experts."""
    return all(isinstance(part, (nn.Linear, Conv1D, nn.LayerNorm)) or not any(True for _ in part.parameters()) for part in block.children())


def _mix_in(module: nn.Module, mixin: type) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
