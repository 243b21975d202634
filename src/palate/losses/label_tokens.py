"""Soft labels of a generative judge: the divergence of what the model says from a probability, read at the token where the label stands.

Shapes: N rows, V vocabulary, C labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def label_divergence(logits: Tensor, tokens: Tensor, targets: Tensor, *, whole_vocabulary: bool = False) -> Tensor:
    """KL(p || q) of targets p from q, the softmax over the labels' tokens. [N, V], [N, C] ids, [N, C] -> [N]

    Of the logits of label tokens, q - p is the gradient. `whole_vocabulary`: q is the softmax over all V tokens, so that what is no label is unlearned
    too; with p on one label that is SFT's cross-entropy. Source: the label as next token is GenRM's (Zhang et al. 2024, arXiv 2408.15240), which trains on
    hard labels.
    """
    logits = logits.float()
    log_q = log_softmax(logits, dim=-1).gather(1, tokens) if whole_vocabulary else log_softmax(logits.gather(1, tokens), dim=-1)
    return (torch.xlogy(targets, targets) - targets * log_q).sum(dim=1)


def label_token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, *, whole_vocabulary: bool = False) -> Tensor:
    """Mean of weight times divergence: the `compute_loss_func` of transformers' Trainer, on batches of `data.label_tokens.LabelCollator`.

    `labels` [N, 2, C]: ids of the label tokens, and weight times target. `num_items_in_batch` counts their entries over a whole optimizer step, so that
    gradient accumulation divides by the rows of all its batches.
    """
    tokens, weighted = labels[:, 0].long(), labels[:, 1]
    weight = weighted.sum(dim=1)
    divergence = label_divergence(outputs.logits[:, -1], tokens, weighted / weight[:, None], whole_vocabulary=whole_vocabulary)
    rows = len(labels) if num_items_in_batch is None else num_items_in_batch / labels[0].numel()
    return (weight * divergence).sum() / rows
