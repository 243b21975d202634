"""Exact figures: sums and weights kept on the device while training, and by group while evaluating; no means of batch means.

`Tally` adds up training metrics until the next log; nothing is synchronised before. `Evaluation` keeps every group's figures once, so that a group
that was repeated to fill up a rank, or that several ranks saw, counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from palate.losses.objective import Objective, ObjectiveOutput
from palate.losses.terms import Items, Outputs


class Tally:
    """Sums of training metrics on one rank."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.dtype = dtype  # Apple's GPUs have no float64
        self.episodes, self.tokens = 0, 0
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._step_terms: set[str] = set()
        self._extremes: list[Tensor] = []

    def add(self, metrics: Mapping[str, Items], scores: Tensor, tokens: Any, groups: Tensor) -> None:
        """One part: its metrics, the rewards of its responses [N], how many tokens it had, and the group of each of its responses or comparisons."""
        for name, items in metrics.items():
            self._add(name, torch.stack([(items.values * items.weights).sum(), items.weights.sum()]))
        counts = torch.stack([scores.new_tensor(len(scores)), scores.sum(), torch.as_tensor(tokens, device=scores.device)])
        self._add("_counts", counts)
        # items of a group stand together, so changes count groups (and nothing is synchronised)
        self._add("_groups", 1 + (groups[1:] != groups[:-1]).sum()[None])
        self._extremes.append(torch.stack([scores.min(), -scores.max()]).to(self.dtype))

    def add_term(self, name: str, value: Tensor, share: Tensor | float = 1.0) -> None:
        """A term of a whole step, coefficient included; the log shows its mean over steps. `share`: of the step, where its parts each add theirs."""
        self._step_terms.add(name)
        share = torch.as_tensor(share, device=value.device, dtype=value.dtype)
        self._add(name, torch.stack([value * share, share]))

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().to(self.dtype)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, accelerator: Any, objective: Objective) -> dict[str, float]:
        """Loss and metrics over everything since the last call, over all ranks; starts anew."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        total = accelerator.reduce(torch.cat([self._sums[name] for name in names]), "sum").cpu()
        lowest, highest = accelerator.gather(torch.stack(self._extremes).min(dim=0).values[None]).min(dim=0).values.tolist()
        parts = dict(zip(names, torch.split(total, [len(self._sums[name]) for name in names]), strict=True))
        step_terms = self._step_terms
        self._clear()
        num_rewards, reward_sum, tokens = parts.pop("_counts").tolist()
        self.episodes += int(parts.pop("_groups").item())
        self.tokens += int(tokens)
        terms = torch.stack([parts[term.name] for term in objective.terms])
        metrics = {name: (value[0] / value[1]).item() for name, value in parts.items() if value[1] > 0}
        loss = float(objective.loss(terms[:, 0], terms[:, 1])) + sum(metrics[name] for name in step_terms)
        if len(terms) + len(step_terms) == 1:
            metrics.pop(objective.terms[0].name, None)
        return metrics | {
            "loss": loss,
            "min_reward": lowest,
            "mean_reward": reward_sum / num_rewards,
            "max_reward": -highest,
            "num_tokens": self.tokens,
            "episode": self.episodes,
        }


class GroupFigures(NamedTuple):
    """What one group gave: (sum, weight) by metric, rewards of its responses, and its comparisons as [P, 3] of chosen, rejected, probability."""

    metrics: dict[str, tuple[float, float]]
    rewards: np.ndarray
    comparisons: np.ndarray


@dataclass
class Evaluation:
    """Every group's figures, by its number."""

    groups: dict[int, GroupFigures] = field(default_factory=dict)

    def add(self, result: ObjectiveOutput, outputs: Outputs, batch: Mapping[str, Tensor]) -> None:
        scores = outputs.scores.detach().double().cpu().numpy()
        owner = _numpy(batch["response_group"]) if "response_group" in batch else _owners(batch, len(scores))
        chosen, rejected, compared = _numpy(batch["chosen"]), _numpy(batch["rejected"]), _numpy(batch["group"])
        table = np.stack([scores[chosen], scores[rejected], _numpy(batch["probability"])], axis=1)
        for group in dict.fromkeys(owner.tolist()):
            self.groups[group] = GroupFigures({}, scores[owner == group], table[compared == group])
        for name, items in result.metrics.items():
            numbers, place = np.unique(_numpy(items.groups), return_inverse=True)
            weights = _numpy(items.weights).astype(float)
            sums = np.bincount(place, _numpy(items.values).astype(float) * weights, len(numbers))
            for group, total, weight in zip(numbers.tolist(), sums, np.bincount(place, weights, len(numbers)), strict=True):
                self.groups[group].metrics[name] = (total, weight)

    def summary(self, objective: Objective) -> tuple[dict[str, float], np.ndarray]:
        """(metrics, all comparisons [P, 3]) over all groups, in the order of their numbers."""
        figures = [self.groups[number] for number in sorted(self.groups)]
        sums: dict[str, np.ndarray] = {}
        for one in figures:
            for name, pair in one.metrics.items():
                sums[name] = sums.get(name, np.zeros(2)) + pair
        metrics = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
        terms = torch.tensor(np.array([sums.get(term.name, np.zeros(2)) for term in objective.terms]))
        if len(terms) == 1:  # the loss itself
            metrics.pop(objective.terms[0].name, None)
        metrics["loss"] = float(objective.loss(terms[:, 0], terms[:, 1]))
        rewards = np.concatenate([one.rewards for one in figures])
        table = np.concatenate([one.comparisons for one in figures])
        metrics |= {"min_reward": rewards.min(), "mean_reward": rewards.mean(), "max_reward": rewards.max(), "comparisons": len(table)}
        return {name: float(value) for name, value in metrics.items()}, table


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy() if tensor.is_floating_point() else tensor.detach().cpu().numpy()


def _owners(batch: Mapping[str, Tensor], responses: int) -> np.ndarray:
    """The group of each response where only comparisons name it. A response that no comparison names belongs to that of its neighbour before it."""
    owner = np.full(responses, -1)
    for side in ("chosen", "rejected"):
        owner[_numpy(batch[side])] = _numpy(batch["group"])
    known = np.maximum.accumulate(np.where(owner >= 0, np.arange(responses), 0))
    return owner[known]
