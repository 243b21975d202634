"""Objective: the weighted sum of loss terms over one index batch -> (total, weight, metrics).

The total is a *sum* of weight x loss over comparisons; the trainer divides once, by the weight of the whole optimizer step over all ranks, so
that 8 steps of accumulation equal one batch of 8. Metrics are (sum, weight) pairs for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from palate.errors import ConfigError
from palate.losses.pairwise import PAIRWISE
from palate.losses.regularizers import centering


class ObjectiveOutput(NamedTuple):
    total: Tensor  # [] sum over comparisons of weight * loss, with gradient
    weight: Tensor  # [] sum of weights
    metrics: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, weight), detached


@dataclass(frozen=True)
class Objective:
    """What training minimises: a pairwise loss plus `centering` times the centering term.

    `margins`: subtract the margin column inside the loss. `label_smoothing`: chance of a flipped label, in [0, 0.5).
    """

    type: str = "bradley_terry"
    margins: bool = True
    label_smoothing: float = 0.0
    centering: float = 0.0

    def __post_init__(self) -> None:
        if self.type not in PAIRWISE:
            raise ConfigError(f"loss.type is {self.type!r}, expected one of {', '.join(PAIRWISE)}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}, expected at least 0 and less than 0.5 (the chance that a label is wrong)")
        if self.centering < 0.0:
            raise ConfigError(f"loss.centering is {self.centering}, expected 0 or more (0.01 is recommended)")

    def __call__(self, rewards: Tensor, batch: Mapping[str, Tensor]) -> ObjectiveOutput:
        """Rewards [N] of an index batch (see collation) -> ObjectiveOutput. Computed in float32 whatever the model's dtype."""
        rewards = rewards.float()
        chosen, rejected = rewards[batch["chosen"]], rewards[batch["rejected"]]
        weight = batch["weight"]
        losses = PAIRWISE[self.type](
            chosen,
            rejected,
            margin=batch["margin"] if self.margins else None,
            probability=batch["probability"],
            label_smoothing=self.label_smoothing,
        )
        if self.centering:
            losses = losses + self.centering * centering(chosen, rejected)
        total = (weight * losses).sum()
        with torch.no_grad():
            metrics = comparison_metrics(chosen.detach(), rejected.detach(), batch["probability"])
            metrics["loss"] = (total.detach(), weight.sum())
        return ObjectiveOutput(total, weight.sum(), metrics)


def comparison_metrics(chosen: Tensor, rejected: Tensor, probability: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Accuracy (a tie of rewards is wrong), margin and mean rewards as (sum, count) over decided comparisons. All [P].

    Every comparison counts once, as in evaluation; only the loss is weighted.
    """
    decided = (probability != 0.5).to(chosen.dtype)
    norm = decided.sum()
    return {
        "accuracy": (((chosen > rejected).to(chosen.dtype) * decided).sum(), norm),
        "margin": (((chosen - rejected) * decided).sum(), norm),
        "chosen_rewards": ((chosen * decided).sum(), norm),
        "rejected_rewards": ((rejected * decided).sum(), norm),
    }
