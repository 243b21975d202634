"""Objective: weighted terms over one index batch -> sums, weights and metrics; and terms that look across the whole optimizer step.

Nothing is averaged here. A term gives sums and what they weigh; the trainer divides once, by the weight of the whole optimizer step over all ranks,
so that 8 steps of accumulation equal one batch of 8. Terms that look across a batch (`across`) see the outputs of the whole step at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from palate.losses import cross_prompt, regularizers, tokenwise
from palate.losses.terms import Batch, Items, Outputs, PairwiseTerm, Parameters, Term, own_metrics, sides


class ObjectiveOutput(NamedTuple):
    totals: Tensor  # [T] sum of weight * loss of each term, with gradient
    weights: Tensor  # [T]
    metrics: dict[str, Items]  # unreduced, detached; the loss of a term stands under its name


@dataclass(frozen=True)
class Across:
    """Terms over a whole optimizer step, all parts and ranks: coefficients of 0 turn them off."""

    zero_sum: float = 0.0
    length_decorrelation: float = 0.0
    cross_prompt: float = 0.0
    inside: bool = False  # the weights of cross-prompt pairs inside the sigmoid (the paper's form) or outside
    temperature: float = 0.5
    own_floor: float = 0.5
    beta: float = 1.0
    margins: bool = True

    def __bool__(self) -> bool:
        return bool(self.zero_sum or self.length_decorrelation or self.cross_prompt)

    @property
    def columns(self) -> tuple[str, ...]:
        """Batch columns that the terms read, besides chosen and rejected."""
        found = ("response_length",) if self.length_decorrelation else ()
        return (*found, "prompt_number", "margin", "weight", "probability", "prompt_embedding") if self.cross_prompt else found

    def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms by name, each []. `outputs` and `batch` hold every response and comparison of the step."""
        losses = {}
        if self.zero_sum:
            losses["zero_sum"] = self.zero_sum * regularizers.zero_sum(outputs.rewards)
        if self.length_decorrelation:
            quality, length = outputs.responses[:, 0], outputs.responses[:, 1]
            losses["length_decorrelation"] = self.length_decorrelation * regularizers.length_correlation(quality, length, batch["response_length"])
        if self.cross_prompt:
            losses["cross_prompt"] = self.cross_prompt * self._cross_prompt(outputs.rewards, batch)
        return losses

    def _cross_prompt(self, rewards: Tensor, batch: Batch) -> Tensor:
        decided = batch["probability"] != 0.5
        if not bool(decided.any()):
            return rewards.sum() * 0.0
        chosen, rejected = (side[decided] for side in sides(rewards, batch))
        weights = cross_prompt.similarity_weights(
            batch["prompt_embedding"][decided], batch["prompt_number"][decided], temperature=self.temperature, own_floor=self.own_floor
        )
        margin = batch["margin"][decided] if self.margins else None
        values = cross_prompt.relative_preference(chosen, rejected, weights, inside=self.inside, beta=self.beta, margin=margin)
        # a soft label speaks as surely as it is far from a tie
        weight = batch["weight"][decided] * (2 * batch["probability"][decided] - 1).abs()
        return (weight * values).sum() / weight.sum()


@dataclass(frozen=True)
class Objective:
    """What training minimises: the sum over terms of coefficient * mean loss, and the terms across the step.

    `outputs` names the head's D outputs; `reward` weighs them into the reward that comparisons see in training, `reading` into the one that is read
    when scoring; `parameters` holds the initial values of what the loss learns beside the model; `orthogonal` weighs the overlap of two heads;
    `gather_steps` says how the steps of a response make one reward.
    """

    terms: tuple[Term, ...] = (PairwiseTerm(),)
    coefficients: tuple[float, ...] = (1.0,)
    across: Across = Across()
    outputs: tuple[str, ...] = ("reward",)
    reward: tuple[float, ...] = (1.0,)
    reading: tuple[float, ...] = (1.0,)
    parameters: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    orthogonal: float = 0.0
    gather_steps: str | None = None

    def weights(self, batch: Batch) -> Tensor:
        """What each term weighs in a batch. [T]"""
        return torch.stack([term.weights(batch).sum() for term in self.terms])

    def read(self, tokens: Tensor, batch: Batch, text: Tensor | None = None) -> Outputs:
        """The head's outputs [R, D] as terms read them; `text` [R] are log-probabilities of the tokens that follow those read."""
        tokens = tokens.float()
        responses = tokens[batch["last_read"]] if "last_read" in batch else tokens
        rewards = responses @ responses.new_tensor(self.reward)
        if self.gather_steps is not None:
            good = torch.softmax(tokens, dim=1) @ tokens.new_tensor(self.reading)
            scores = tokenwise.aggregate(good, batch["read_row"], batch["read_step"], len(responses), self.gather_steps)
        else:
            scores = rewards if self.reading == self.reward else responses @ responses.new_tensor(self.reading)
        if text is not None:
            text = text.new_zeros(len(responses)).index_add(0, batch["read_row"], text)
        return Outputs(tokens, responses, rewards, scores, text)

    def __call__(self, outputs: Outputs, batch: Batch, parameters: Parameters | None = None) -> ObjectiveOutput:
        """Sums of each term over an index batch (see collation). Computed in float32 whatever the model's dtype."""
        items = {term.name: term.items(outputs, batch, parameters or {}) for term in self.terms}
        totals = torch.stack([(one.weights * one.values).sum() for one in items.values()])
        weights = torch.stack([one.weights.sum() for one in items.values()])
        with torch.no_grad():
            metrics = {name: Items(one.values.detach(), one.weights, one.groups) for name, one in items.items()}
            metrics |= comparison_metrics(outputs, batch)
            for term in self.terms:
                metrics |= own_metrics(term, outputs, batch)
        return ObjectiveOutput(totals, weights, metrics)

    def loss(self, totals: Tensor, weights: Tensor) -> Tensor:
        """Coefficients times means; a term without items in the step adds nothing. [T], [T] -> []"""
        weights = weights.to(totals)
        means = torch.where(weights > 0, totals / torch.where(weights > 0, weights, torch.ones_like(weights)), torch.zeros_like(totals))
        return (means * means.new_tensor(self.coefficients)).sum()


def comparison_metrics(outputs: Outputs, batch: Batch) -> dict[str, Items]:
    """Accuracy (a tie of rewards is wrong), margin and mean rewards over decided comparisons, unreduced (of length 0 where there are none).

    Every comparison counts once, as in evaluation; only the loss is weighted.
    """
    chosen, rejected = (side.detach() for side in sides(outputs.scores, batch))
    decided = (batch["probability"] != 0.5).to(chosen.dtype)
    columns = {"accuracy": (chosen > rejected).to(chosen.dtype), "margin": chosen - rejected, "chosen_rewards": chosen, "rejected_rewards": rejected}
    return {name: Items(values, decided, batch["group"]) for name, values in columns.items()}
