"""Pointwise losses on ratings and outcomes: regression, binary, ordinal, quantile and Gaussian.

Shapes: N responses, A attributes, Q quantiles, C levels. Targets are float32 with NaN where a rating is missing; the loss there is 0 and has no
gradient (count what is present with `present`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from palate.types import VARIANCE_FLOOR


def present(target: Tensor) -> Tensor:
    """1 where a target is given, 0 where it is missing. Element-wise."""
    return (~target.isnan()).to(target.dtype)


def _given(target: Tensor, loss: Tensor) -> Tensor:
    return torch.where(target.isnan(), torch.zeros_like(loss), loss)


def regression(outputs: Tensor, target: Tensor) -> Tensor:
    """Squared error per attribute. [N, A], [N, A] -> [N, A]. Source: HelpSteer2 (arXiv 2406.08673)."""
    return _given(target, (outputs - target.nan_to_num()).square())


def outcome(outputs: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of right (1) and wrong (0), on a logit. [N], [N] -> [N]. A target between them is a soft label.

    Source: Cobbe et al. 2021 (arXiv 2110.14168), verifiers; for unpaired feedback, Sun et al. 2024 (arXiv 2411.04991).
    """
    return _given(target, binary_cross_entropy_with_logits(outputs, target.nan_to_num(), reduction="none"))


def ordinal(outputs: Tensor, level: Tensor, thresholds: Tensor) -> Tensor:
    """Proportional odds: P(level > k) = sigmoid(r - b_k) with rising thresholds b. [N], [N] of 0 to C-1, [C-1] -> [N]

    P(level = k) = sigmoid(a) - sigmoid(c) with a = r - b_(k-1) > c = r - b_k, computed as log sigmoid(a) + log sigmoid(-c) + log(1 - e^(c - a)).
    Source: McCullagh 1980.
    """
    infinite = thresholds.new_full((1,), float("inf"))
    edges = torch.cat([-infinite, thresholds, infinite])
    k = level.nan_to_num().long()
    low, high = edges[k], edges[k + 1]
    gap = torch.where(low.isinf() | high.isinf(), torch.ones_like(outputs), high - low)  # an open side takes nothing away
    between = torch.where(low.isinf() | high.isinf(), torch.zeros_like(outputs), torch.log(-torch.expm1(-gap)))
    above = torch.where(low.isinf(), torch.zeros_like(outputs), logsigmoid(outputs - low.clamp(min=-1e30)))
    under = torch.where(high.isinf(), torch.zeros_like(outputs), logsigmoid(high.clamp(max=1e30) - outputs))
    return _given(level, -(above + under + between))


LEAST_GAP = 1e-3
"""Between two thresholds: a level that never occurs would otherwise close its gap until its probability is 0."""


def rising(raw: Tensor) -> Tensor:
    """Thresholds from free numbers: the first as it is, each further one a softplus (and LEAST_GAP) above the last. [C-1] -> [C-1]"""
    return torch.cumsum(torch.cat([raw[:1], softplus(raw[1:]) + LEAST_GAP]), 0)


def quantile(outputs: Tensor, target: Tensor, quantiles: Tensor) -> Tensor:
    """Pinball loss max(q u, (q - 1) u) with u = target - output, mean over quantiles. [N, A, Q], [N, A], [Q] -> [N, A]

    Its minimiser is the q-quantile of the target. Source: Koenker and Bassett 1978; for rewards, QRM (arXiv 2409.10164).
    """
    u = target.nan_to_num()[..., None] - outputs
    return _given(target, torch.maximum(quantiles * u, (quantiles - 1) * u).mean(-1))


def variance(raw: Tensor) -> Tensor:
    """A positive variance from a free output. Element-wise."""
    return softplus(raw) + VARIANCE_FLOOR


def gaussian(mean: Tensor, raw_variance: Tensor, target: Tensor) -> Tensor:
    """Negative log-density of the target under N(mean, variance), without the constant log(2 pi) / 2. [N, A], [N, A], [N, A] -> [N, A]

    Source: URM (arXiv 2410.00847).
    """
    spread = variance(raw_variance)
    return _given(target, 0.5 * (torch.log(spread) + (target.nan_to_num() - mean).square() / spread))
