"""Terms that look across a whole optimizer step, whatever parts, accumulation steps and ranks it was cut into: two passes.

First every part of the step is computed without gradients and all rewards are brought together; there the loss across the step and its gradient
with respect to each reward are computed. Then training goes on as ever, and each part adds (its rewards times their gradients), which gives the
parameters exactly the gradient of the whole (the chain rule; Gao et al. 2021, arXiv 2101.06983, do the same for contrastive losses). It costs one
forward pass more. A step of one part on one rank needs no first pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from palate.losses.objective import Across
from palate.losses.terms import Outputs

STEP_SHARE, STEP_GRADIENT, STEP_VALUE = "step_share", "step_gradient", "step_value"
"""Marks on a part: its share of the step (1 / parts, 1 for a step of one part), the gradient of the terms across the step for its responses' outputs
[N, D], and their value."""


def mark_parts(across: Across, reward: Sequence[float], parts: Sequence[dict[str, Any]], outputs: Sequence[Outputs], rank: int) -> dict[str, Tensor]:
    """Put gradient and value of the terms across the step on every part of this rank. Returns the value of each term, []."""
    mine = [_columns(across, part, output) for part, output in zip(parts, outputs, strict=True)]
    ranks: list[list[dict[str, Tensor]]] = gather_object([mine])
    everything = [columns for one in ranks for columns in one]
    batch, sizes = _joined(everything)
    responses = batch.pop("responses").requires_grad_()
    rewards = responses @ responses.new_tensor(reward)
    losses = across(Outputs(responses, responses, rewards, rewards), batch)
    total = torch.stack(list(losses.values())).sum()
    (gradient,) = torch.autograd.grad(total, responses)
    before = sum(len(one) for one in ranks[:rank])
    for i, part in enumerate(parts):
        at = sum(sizes[: before + i])
        device = outputs[i].responses.device
        part[STEP_GRADIENT] = gradient[at : at + sizes[before + i]].to(device)
        part[STEP_VALUE] = total.detach().to(device)
    return {name: value.detach() for name, value in losses.items()}


def _columns(across: Across, part: dict[str, Any], outputs: Outputs) -> dict[str, Tensor]:
    names = ("chosen", "rejected", *across.columns)
    return {"responses": outputs.responses.detach().float().cpu(), **{name: part[name].cpu() for name in names}}


def _joined(everything: Sequence[dict[str, Tensor]]) -> tuple[dict[str, Tensor], list[int]]:
    """All parts as one batch, and how many responses each has."""
    sizes = [len(columns["responses"]) for columns in everything]
    batch = {name: torch.cat([columns[name] for columns in everything]) for name in everything[0]}
    offsets = torch.cumsum(torch.tensor([0, *sizes[:-1]]), 0)
    shift = torch.repeat_interleave(offsets, torch.tensor([len(columns["chosen"]) for columns in everything]))
    for side in ("chosen", "rejected"):
        batch[side] = batch[side] + shift
    return batch, sizes
