"""Listwise losses over the K responses of a prompt: Plackett-Luce on partial rankings with ties, and softmax cross-entropy on ratings.

Shapes: N responses, of which those of one group stand together; G groups, K the most responses of one. Every function takes float32 [N] and the
group of each response [N], and returns one unreduced value per group, [G], in order of appearance.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 0.125
NODES = torch.arange(-20.0, 6.0 + STEP / 2, STEP)
"""Points y = log s at which the race integral is summed. Its integrand is entire in y and falls off as e^y to the left and e^(-e^y) to the right, so
the trapezoid rule converges geometrically: for m tied responses far behind it errs by about 2 |Gamma(m + 1 + 2 pi i / step)| / Gamma(m + 1), which at
this step is below 1e-6 up to a hundred of them (a step of 0.5 loses five digits at six). What lies left of -20 is 2e-9 of the whole."""


def padded(values: Tensor, groups: Tensor, fill: float = float("nan")) -> Tensor:
    """Values of N responses as one row a group. [N], [N] -> [G, K], filled up with `fill`."""
    _, place, counts = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    start = torch.cumsum(counts, 0) - counts
    column = torch.arange(len(values), device=values.device) - start[place]
    table = values.new_full((len(counts), int(counts.max())), fill)
    return table.index_put((place, column), values)


def rankable(ranks: Tensor, groups: Tensor) -> Tensor:
    """Which groups say anything: two ranked responses of different rank at least. [N], [N] -> booleans [G]"""
    table = padded(ranks, groups)
    low, high = table.nan_to_num(float("inf")).amin(1), table.nan_to_num(float("-inf")).amax(1)
    return low < high


def plackett_luce(rewards: Tensor, ranks: Tensor, groups: Tensor) -> Tensor:
    """Negative log-probability of each group's ranking under Plackett-Luce. [N], [N], [N] -> [G]

        P(ranking) = product over places k of exp(r_k) / sum over j placed k or lower of exp(r_j)

    `ranks`: lower is better, NaN = not ranked, which takes no part (by the model's choice axiom the others are ranked as if it were not there).
    Equal ranks say nothing about each other, only about those above and below: their probability is the sum over all their orders, exactly, as
    the chance that all of them finish before everyone below in a race of exponential clocks,

        integral over s of e^-s * product over the tied i of (1 - exp(-s exp(r_i - R)))     with R = log-sum-exp of those below

    So the best k of a list are [1, 2, ..., k, k+1, k+1, ...]. Two responses give Bradley-Terry. Depends on reward differences only; not divided by K.
    A group without two different ranks gives 0. Source: Plackett 1975; Zhu, Jiao and Jordan 2023 (arXiv 2301.11270); ties: Ma et al. 2021
    (arXiv 2006.05067).
    """
    reward, rank = padded(rewards, groups, 0.0), padded(ranks, groups)  # [G, K]
    below = rank[:, None, :] > rank[:, :, None]  # [G, K, K]: the second is placed below the first
    level = rank[:, None, :] == rank[:, :, None]
    contested = below.any(2)  # someone is below, so the place was won
    rest = _log_sum_exp(reward[:, None, :].expand_as(below), below, contested)  # [G, K]
    lead = torch.where(contested, reward - rest, 0.0)
    single = contested & (level.sum(2) == 1)
    loss = torch.where(single, torch.nn.functional.softplus(-lead), 0.0).sum(1)
    blocks = contested & ~single
    if not bool(blocks.any()):
        return loss
    first = blocks & ~(level & torch.ones_like(level).tril(-1)).any(2)  # one response stands for its block
    nodes = NODES.to(lead)
    finished = log1mexp(lead[..., None] + nodes)  # [G, K, nodes] log P(this one has finished by s)
    together = torch.einsum("gij,gjn->gin", level.to(lead), finished * blocks[..., None])  # over the members of i's block
    density = torch.logsumexp(together + nodes - nodes.exp(), dim=2) + torch.log(lead.new_tensor(STEP))
    return loss - torch.where(first, density, 0.0).sum(1)


def log1mexp(log_x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x = exp(log_x), exact for tiny and huge x; gradients stay finite. Element-wise."""
    small = log_x < -15.0  # 1 - exp(-x) = x to float32's precision
    big = log_x > 4.6  # exp(-x) < 1e-43
    x = torch.where(small | big, 0.0, log_x).exp()
    middle = torch.log(-torch.expm1(-x))
    return torch.where(small, log_x, torch.where(big, torch.zeros_like(log_x), middle))


def listwise_softmax(rewards: Tensor, ratings: Tensor, groups: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy between softmax(ratings / temperature) and softmax(rewards) within each group. [N], [N], [N] -> [G]

    `ratings`: higher is better, NaN = not rated, which takes no part. Its minimum over rewards is the entropy of the target. Depends on reward
    differences only. A group with fewer than two ratings gives 0. Source: Cao et al. 2007 (ListNet), top-one probabilities.
    """
    reward, rating = padded(rewards, groups, 0.0), padded(ratings, groups)
    rated = ~rating.isnan()
    several = rated.sum(1, keepdim=True) >= 2
    rated = rated & several
    hidden = torch.where(several, float("-inf"), 0.0)  # a row without ratings stays finite and is left out below
    target = torch.softmax(torch.where(rated, rating / temperature, hidden), 1)
    log_p = torch.log_softmax(torch.where(rated, reward, hidden), 1)
    return -torch.where(rated, target * torch.where(rated, log_p, 0.0), 0.0).sum(1)


def _log_sum_exp(values: Tensor, where: Tensor, any_where: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension of the entries in `where`; 0 (and no gradient) where there are none."""
    safe = where | ~any_where[..., None]
    total = torch.logsumexp(values.masked_fill(~safe, float("-inf")), dim=-1)
    return torch.where(any_where, total, 0.0)
