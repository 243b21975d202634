"""Cross-prompt comparisons: every chosen response of the batch against every rejected one, weighted by how alike their prompts are.

Shapes: P comparisons of the batch (the whole optimizer step over all ranks), E the size of a prompt's embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def similarity_weights(embeddings: Tensor, prompts: Tensor, *, temperature: float, own_floor: float = 0.0) -> Tensor:
    """w_ij = softmax over j of -(1 - cos(e_i, e_j)) / temperature: how much comparison i's chosen meets j's rejected. [P, E], [P] -> [P, P]

    Other comparisons of the same prompt (equal numbers in `prompts`) get 0: there the data themselves say who is better. `own_floor`: the least weight
    of the own pair; the rest of the row is scaled down to make room. Rows sum to 1.
    Source: Yin et al. 2024 (Relative Preference Optimization, arXiv 2402.10958); masking and floor are ours.
    """
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    same = (prompts[:, None] == prompts[None, :]) & ~own
    logits = (-(1 - unit @ unit.T) / temperature).masked_fill(same, float("-inf"))
    weights = torch.softmax(logits, 1)
    diagonal = weights.diagonal()
    raised = diagonal.clamp(min=own_floor)
    others = (1 - raised) / (1 - diagonal).clamp(min=torch.finfo(weights.dtype).tiny)
    scaled = weights * torch.where(diagonal < own_floor, others, torch.ones_like(others))[:, None]
    return torch.where(own, raised[:, None], scaled)


def relative_preference(chosen: Tensor, rejected: Tensor, weights: Tensor, *, inside: bool, beta: float = 1.0, margin: Tensor | None = None) -> Tensor:
    """Loss of each comparison against the rejected side of all. [P], [P], [P, P] -> [P]

        inside (the paper's)   mean over j of -log sigmoid(beta * w_ij * (r_i - r_j))
        outside (ours)         sum over j of w_ij * -log sigmoid(r_i - r_j - m_ij)         m_ij = margin_i on the diagonal, else 0

    Inside, a weight near 1/P shrinks the difference itself, so rewards must grow with the batch to say the same; outside, it weighs the loss.
    One comparison alone gives Bradley-Terry in both (beta = 1). Pairs of weight 0 give log 2 inside, nothing outside.
    `beta` is read by the inside form, `margin` by the outside form. Source: arXiv 2402.10958 (inside).
    """
    difference = chosen[:, None] - rejected[None, :]
    if inside:
        return -logsigmoid(beta * weights * difference).mean(1)
    if margin is not None:
        difference = difference - torch.diag(margin)
    return (weights * -logsigmoid(difference)).sum(1)
