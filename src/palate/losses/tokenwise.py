"""Tokenwise losses: DeepSpeed-Chat's divergence loss, outcomes on every response token, process rewards on step ends.

Shapes: L tokens of a sequence, R tokens read from a batch, P comparisons, N responses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from palate.types import IGNORED


def divergence(chosen: Tensor, rejected: Tensor, owner: Tensor, comparisons: int) -> Tensor:
    """Mean over a comparison's tokens of -log sigmoid(v_chosen - v_rejected), token by token. [S], [S], [S] -> [P]

    `owner`: the comparison that each of the S compared tokens belongs to. One token a comparison gives Bradley-Terry.
    Source: DeepSpeed-Chat (arXiv 2308.01320); which tokens: data/divergence.py.
    """
    losses = -logsigmoid(chosen - rejected)
    total = losses.new_zeros(comparisons).index_add(0, owner, losses)
    return total / torch.bincount(owner, minlength=comparisons).clamp(min=1)


def aggregate(good: Tensor, rows: Tensor, ends: Tensor, responses: int, how: str) -> Tensor:
    """One reward a response from P(good) at its step ends. [R], [R], booleans [R] -> [N]; NaN where a response has no step.

    `how`: min, product, mean or last. Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6.
    """
    good, rows = good[ends], rows[ends]
    counts = torch.bincount(rows, minlength=responses)
    if how == "min":
        found = good.new_ones(responses).scatter_reduce(0, rows, good, "amin")
    elif how == "product":
        found = good.new_ones(responses).scatter_reduce(0, rows, good, "prod")
    elif how == "mean":
        found = good.new_zeros(responses).index_add(0, rows, good) / counts.clamp(min=1)
    else:
        last = torch.cumsum(counts, 0) - 1
        found = good[last.clamp(min=0)]
    return torch.where(counts > 0, found, good.new_tensor(float("nan")))


def steps(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of step classes at step ends. [R, C], [R] of 0 to C-1 or IGNORED -> [R]

    Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6; two classes as in TRL's PRMTrainer.
    """
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
