"""Regularizers: terms that are weighted and added to a loss. What each looks at (a comparison, the whole batch, the head) stands with it.

Shapes: P comparisons, N responses, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, which pulls rewards towards mean zero and leaves their differences alone. [P], [P] -> [P]

    Bradley-Terry fixes rewards only up to a constant per prompt; this term fixes the constant. Recommended coefficient: 0.01.
    Source: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2; coefficient from TRL's `center_rewards_coefficient`.
    """
    return (chosen + rejected).square()


def zero_sum(rewards: Tensor) -> Tensor:
    """(mean of all rewards of the batch)^2. [N] -> []

    The batch is the whole optimizer step over all ranks. Trades easy comparisons for hard ones: 0.001 is the published middle.
    Source: Hong et al. 2025 (batch-wise sum-to-zero, arXiv 2505.07271).
    """
    return rewards.mean().square()


def length_correlation(quality: Tensor, length_reward: Tensor, lengths: Tensor) -> Tensor:
    """|rho(r_Q, length)| - rho(r_L, length), Pearson correlations over the batch: the length head takes up what length explains. [N], [N], [N] -> []

    The batch is the whole optimizer step over all ranks. Source: Chen et al. 2024 (ODIN, arXiv 2402.07319).
    """
    return pearson(quality, lengths).abs() - pearson(length_reward, lengths)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation; 0 (and no gradient) where one side does not vary. [N], [N] -> []"""
    varies = (a.amax() > a.amin()) & (b.amax() > b.amin())  # asked before centring, which leaves rounding behind
    unit_a, unit_b = (_unit(side - side.mean(), varies) for side in (a, b))
    return torch.where(varies, (unit_a * unit_b).sum(), torch.zeros_like(unit_a[0]))


def _unit(side: Tensor, varies: Tensor) -> Tensor:
    """Divided by its norm; left alone where nothing varies, so that no gradient divides by zero."""
    side = torch.where(varies, side, torch.zeros_like(side))
    return side / torch.where(varies, torch.linalg.vector_norm(torch.where(varies, side, torch.ones_like(side))), torch.ones_like(side[0]))


def head_overlap(weight: Tensor) -> Tensor:
    """|cosine| of the two heads' weights, so that they read different directions of the hidden state. [2, H] -> []

    The paper keeps |W_Q W_L^T| small on heads of unit length; the cosine says the same of heads of any length. Source: ODIN (arXiv 2402.07319).
    """
    return torch.nn.functional.cosine_similarity(weight[0], weight[1], dim=0).abs()


def text_sft(chosen_logp: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * log pi(chosen)): the hidden states must still be able to write the chosen response. [P] -> [P]

    Log-probabilities are sums over the response's tokens. Source: Yang et al. 2024 (GRM, arXiv 2406.10216), SFT regularisation; beta = 0.1 is theirs.
    """
    return -logsigmoid(beta * chosen_logp)


def text_dpo(chosen_logp: Tensor, rejected_logp: Tensor, beta: float, reference: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)). [P], [P] -> [P]; without a reference, of plain log-probabilities.

    Source: GRM (arXiv 2406.10216), DPO regularisation and its reference-free form.
    """
    ratio = chosen_logp - rejected_logp
    if reference is not None:
        ratio = ratio - (reference[0] - reference[1])
    return -logsigmoid(beta * ratio)
