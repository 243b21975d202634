"""Fit the gate of `scoring/gated.py`: attributes standardised and freed of verbosity, then an MLP on prompts trained on comparisons by log loss.

Source: Wang et al. 2024 (ArmoRM, arXiv 2406.12845), section 3 and its released code: 3 layers of 1024, dropout 0.2, softmax at temperature 10, AdamW at
1e-3 with cosine decay, 2000 steps of 1024 pairs. What differs: lambdas by bisection in place of a grid, prompt embeddings standardised, the step with the
least log loss on held-out prompts kept, and the lambdas used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from palate.errors import ConfigError, DataError
from palate.multi_objective.pessimism import held_out_prompts
from palate.scoring.gated import LENGTH, Gate, GateInputs, GateSettings, debiased, verbosity
from palate.stats.intervals import Interval, accuracy_interval
from palate.stats.ranking import spearman

LARGEST_CORRELATION = 0.03
"""What is left of Spearman's correlation between an attribute and verbosity (ArmoRM's threshold)."""

CHECKS = 20  # how often held-out prompts are looked at while training


@dataclass(frozen=True)
class GateTraining:
    hidden: tuple[int, ...] = (1024, 1024, 1024)
    temperature: float = 10.0
    dropout: float = 0.2
    steps: int = 2000
    batch: int = 1024  # pairs
    learning_rate: float = 1e-3
    held_out: float = 0.2  # of the prompts
    seed: int = 0


class GateFit(NamedTuple):
    gate: Gate
    settings: GateSettings
    correlations: tuple[tuple[float, float], ...]  # Spearman of each attribute with verbosity, before and after; empty where nothing is taken out
    left_out: int  # comparisons of a response without attributes
    held_out: int  # comparisons of held-out prompts
    log_loss: float  # on them
    accuracy: float
    accuracy_interval: Interval
    alike: float  # accuracy there of the debiased attributes weighed alike
    step: int  # that was kept


def fit_gate(
    inputs: GateInputs,
    chosen: np.ndarray,
    rejected: np.ndarray,
    attributes: Sequence[str],
    *,
    probability: np.ndarray | None = None,
    against: str | None = None,
    training: GateTraining | None = None,
) -> GateFit:
    """A gate from comparisons of N responses, `chosen` and `rejected` [P] being rows of `inputs`; `probability` [P] of the label, 1 where not given.

    `against`: an attribute, or `length` (tokens), that is taken out of every attribute. Raises ConfigError for one that is not there.
    """
    training = training or GateTraining()
    scored = np.isfinite(inputs.outputs).all(axis=1)
    kept = scored[chosen] & scored[rejected]
    if not kept.any():
        raise DataError(f"none of {len(chosen)} comparisons has attributes on both sides; their responses are longer than the model's max_length, or empty")
    chosen, rejected = chosen[kept], rejected[kept]
    settings = fit_debiasing(inputs, tuple(attributes), against, training)
    values = debiased(settings, inputs.outputs.astype(np.float64), inputs.lengths)
    before = (inputs.outputs - np.array(settings.means)) / np.array(settings.deviations)
    verbose = verbosity(settings, before, inputs.lengths) if against else np.empty(len(values))
    pairs = _Pairs(
        torch.from_numpy(inputs.prompts),
        torch.from_numpy(inputs.prompt[chosen]),
        torch.from_numpy(values[chosen] - values[rejected]).float(),
        torch.ones(len(chosen)) if probability is None else torch.from_numpy(np.asarray(probability)[kept]).float(),
    )
    prompts = inputs.prompt[chosen]
    test = held_out_prompts(prompts, training.held_out, training.seed)
    gate, loss, step = _train(pairs, test, training, len(attributes))
    with torch.inference_mode():
        difference = pairs.difference(gate, np.flatnonzero(test)).numpy()
    right, plain = ((d > 0).astype(float) + (d == 0) / 2 for d in (difference, pairs.values[test].mean(dim=1).numpy()))
    return GateFit(
        gate,
        settings,
        tuple((spearman(before[scored, i], verbose[scored]), spearman(values[scored, i], verbose[scored])) for i in range(len(attributes))) if against else (),
        int((~kept).sum()),
        int(test.sum()),
        loss,
        float(right.mean()),
        accuracy_interval(right, prompts[test]),
        float(plain.mean()),
        step,
    )


# --- verbosity --------------------------------------------------------------------------------------------------------------------------------------


def fit_debiasing(inputs: GateInputs, attributes: tuple[str, ...], against: str | None, training: GateTraining) -> GateSettings:
    """How attributes are standardised, and the lambda of each against verbosity, from N responses."""
    if against is not None and against != LENGTH and against not in attributes:
        raise ConfigError(f"--debias {against}: expected `{LENGTH}`, or one of the attributes {', '.join(attributes)}")
    scored = np.isfinite(inputs.outputs).all(axis=1)
    outputs, lengths = inputs.outputs[scored].astype(np.float64), inputs.lengths[scored]
    settings = GateSettings(
        attributes,
        tuple(outputs.mean(axis=0).tolist()),
        tuple(float(deviation) or 1.0 for deviation in outputs.std(axis=0)),
        against,
        float(lengths.mean()),
        float(lengths.std()) or 1.0,
        hidden=training.hidden,
        temperature=training.temperature,
    )
    if against is None:
        return settings
    standard = (outputs - np.array(settings.means)) / np.array(settings.deviations)
    verbose = verbosity(settings, standard, lengths)
    lambdas = tuple(1.0 if name == against else smallest_lambda(standard[:, i], verbose) for i, name in enumerate(attributes))
    return replace(settings, lambdas=lambdas)


def smallest_lambda(attribute: np.ndarray, verbose: np.ndarray, *, largest: float = LARGEST_CORRELATION) -> float:
    """The lambda nearest to 0 with |Spearman(attribute - lambda verbosity, verbosity)| <= `largest`; [N], [N], both standardised.

    The correlation only falls as lambda grows: a pair of responses can turn from agreeing with their verbosity to disagreeing, never back. So the edge
    is found by bisection. It is negative where an attribute falls with verbosity. Where ranks jump over the whole band (few responses), it is the jump.
    """
    rho = spearman(attribute, verbose)
    if not abs(rho) > largest:  # NaN, where one of them does not vary, has nothing to take out
        return 0.0
    sign = 1.0 if rho > 0 else -1.0
    inside, outside = sign, 0.0  # lambda whose correlation is on the far side of the edge, and on the near one
    while sign * spearman(attribute - inside * verbose, verbose) > largest:
        inside *= 2
    for _ in range(60):
        middle = (inside + outside) / 2
        if sign * spearman(attribute - middle * verbose, verbose) > largest:
            outside = middle
        else:
            inside = middle
    return inside


# --- training ---------------------------------------------------------------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    prompts: Tensor  # [M, H] distinct
    prompt: Tensor  # [P]
    values: Tensor  # [P, A] debiased attributes of chosen minus those of rejected
    probability: Tensor  # [P]

    def difference(self, gate: Gate, rows: np.ndarray) -> Tensor:
        """Reward of chosen minus that of rejected of these comparisons."""
        prompts, places = self.prompt[rows].unique(return_inverse=True)
        return gate.scale * (gate(self.prompts[prompts])[places] * self.values[rows]).sum(dim=1)

    def loss(self, gate: Gate, rows: np.ndarray) -> Tensor:
        """-p log sigmoid(d) - (1 - p) log sigmoid(-d), mean."""
        d = self.difference(gate, rows)
        return (softplus(-d) + (1 - self.probability[rows]) * d).mean()


def _train(pairs: _Pairs, test: np.ndarray, training: GateTraining, attributes: int) -> tuple[Gate, float, int]:
    """(gate, its log loss on held-out comparisons, the step that it is from: the best of those that were looked at)."""
    if training.steps < 1 or training.batch < 1:
        raise ConfigError(f"a gate takes {training.steps} steps of {training.batch} pairs, expected one at least of each")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        gate = Gate(pairs.prompts.shape[1], attributes, hidden=training.hidden, temperature=training.temperature, dropout=training.dropout)
        taught, held = np.flatnonzero(~test), np.flatnonzero(test)
        seen = pairs.prompts[pairs.prompt[taught].unique()]
        gate.centre.copy_(seen.mean(dim=0))
        gate.spread.copy_(seen.std(dim=0, correction=0).clamp(min=1e-6))  # a dimension that does not vary says nothing; it must not divide by 0
        optimizer = torch.optim.AdamW(gate.parameters(), lr=training.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
        draw = np.random.default_rng(training.seed)
        best, kept, at = _held_out_loss(pairs, gate, held), copy.deepcopy(gate.state_dict()), 0
        for step in range(1, training.steps + 1):
            gate.train()
            rows = draw.choice(taught, min(training.batch, len(taught)), replace=False)
            optimizer.zero_grad()
            pairs.loss(gate, rows).backward()
            optimizer.step()
            schedule.step()
            if step % max(1, training.steps // CHECKS) == 0 or step == training.steps:
                loss = _held_out_loss(pairs, gate, held)
                if loss < best:
                    best, kept, at = loss, copy.deepcopy(gate.state_dict()), step
    gate.load_state_dict(kept)
    return gate.eval(), best, at


def _held_out_loss(pairs: _Pairs, gate: Gate, rows: np.ndarray) -> float:
    gate.eval()
    with torch.inference_mode():
        return float(pairs.loss(gate, rows))
