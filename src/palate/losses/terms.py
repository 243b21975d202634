"""Terms of an objective: each reads its own items of an index batch (comparisons, lists, ratings, tokens) and gives one loss an item.

What a term weighs is known from the batch alone (`weights`), so that a whole optimizer step can be counted before its first forward pass.
Batch columns are those of data/collation.py. D head outputs are read by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from palate.losses import listwise, pairwise, pointwise, regularizers, tokenwise
from palate.losses.tokenwise import IGNORED

Batch = Mapping[str, Tensor]
Parameters = Mapping[str, Tensor]

TIE_THRESHOLD, ORDINAL_THRESHOLDS = "tie_threshold", "ordinal_thresholds"
"""Names of parameters that a loss learns beside the model."""


class Items(NamedTuple):
    """M unreduced values, what each weighs, and the group that it belongs to. Each [M]."""

    values: Tensor
    weights: Tensor
    groups: Tensor


class Outputs(NamedTuple):
    """What the model gave for a batch, in float32."""

    tokens: Tensor  # [R, D] the head's outputs at every token read (R = N where only last tokens are)
    responses: Tensor  # [N, D] those that speak for a response
    rewards: Tensor  # [N] the reward of a response, as comparisons see it in training
    scores: Tensor  # [N] the reward of a response, as it is read when scoring
    text: Tensor | None = None  # [N] log-probability of each response's text, where a term asks for it


class Term(Protocol):
    @property
    def name(self) -> str: ...

    def weights(self, batch: Batch) -> Tensor:
        """What each item weighs. [M]"""
        ...

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items: ...


def own_metrics(term: Term, outputs: Outputs, batch: Batch) -> dict[str, Items]:
    """What a term shows beside its loss, unreduced: how often an outcome or a step was told right."""
    if isinstance(term, PointwiseTerm) and term.name == "outcome":
        target = batch["rating"][:, term.columns[0]]
        right = ((outputs.scores > 0) == (target > 0.5)).to(outputs.scores.dtype)
        return {"outcome_accuracy": Items(right, pointwise.present(target), batch["response_group"])}
    if isinstance(term, StepTerm):
        labels = batch["read_label"]
        right = (outputs.tokens.argmax(1) == labels).to(outputs.tokens.dtype)
        return {"step_accuracy": Items(right, term.weights(batch), batch["response_group"][batch["read_row"]])}
    return {}


def sides(rewards: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return rewards[batch["chosen"]], rewards[batch["rejected"]]


class OverComparisons(ABC):
    """Items are comparisons, weighted as the data say."""

    def weights(self, batch: Batch) -> Tensor:
        return batch["weight"]

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        return Items(self.values(outputs, batch, parameters), batch["weight"], batch["group"])

    @abstractmethod
    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        """One loss a comparison. [P]"""


# --- pairwise -------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairwiseTerm(OverComparisons):
    """A link loss; `scaled` multiplies it by the margin (the strength of the preference) in place of subtracting that."""

    name: str = "bradley_terry"
    link: pairwise.Link = pairwise.logistic
    margins: bool = True
    scaled: bool = False
    label_smoothing: float = 0.0
    unbiased: bool = False
    barrier: float = 0.0

    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        chosen, rejected = sides(outputs.rewards, batch)
        losses = pairwise.bradley_terry(
            chosen,
            rejected,
            margin=batch["margin"] if self.margins and not self.scaled else None,
            probability=batch["probability"],
            label_smoothing=self.label_smoothing,
            unbiased=self.unbiased,
            link=self.link,
        )
        if self.scaled:
            losses = losses * batch["margin"]
        return losses + self.barrier * pairwise.log_barrier(chosen, rejected) if self.barrier else losses


@dataclass(frozen=True)
class TieTerm(OverComparisons):
    """Ties with a probability of their own, by a threshold that is fixed (`raw_threshold`) or learned (None)."""

    name: str
    raw_threshold: float | None = None

    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        chosen, rejected = sides(outputs.rewards, batch)
        threshold = parameters[TIE_THRESHOLD].float() if self.raw_threshold is None else chosen.new_tensor(self.raw_threshold)
        return pairwise.tied(self.name, chosen, rejected, threshold.reshape(()), probability=batch["probability"])


@dataclass(frozen=True)
class CenteringTerm(OverComparisons):
    name: str = "centering"

    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        return regularizers.centering(*sides(outputs.rewards, batch))


@dataclass(frozen=True)
class TextTerm(OverComparisons):
    """GRM's text regularisation on the log-probabilities of both sides' tokens. `variant`: sft, dpo (against the model before training), dpo_free."""

    name: str = "text"
    variant: str = "sft"
    beta: float = 0.1

    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        assert outputs.text is not None
        chosen, rejected = sides(outputs.text, batch)
        if self.variant == "sft":
            return regularizers.text_sft(chosen, self.beta)
        reference = sides(batch["reference"], batch) if self.variant == "dpo" else None
        return regularizers.text_dpo(chosen, rejected, self.beta, reference)


# --- listwise -------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListwiseTerm:
    """Items are the lists (groups) of a batch; those that say nothing weigh 0. `temperature`: of the softmax over ratings."""

    name: str = "plackett_luce"
    temperature: float = 1.0

    def weights(self, batch: Batch) -> Tensor:
        return listwise.rankable(batch["rank"], batch["response_group"]).float()

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        groups = batch["response_group"]
        if self.name == "plackett_luce":
            values = listwise.plackett_luce(outputs.rewards, batch["rank"], groups)
        else:  # a rank is a rating with the sign turned
            values = listwise.listwise_softmax(outputs.rewards, -batch["rank"], groups, temperature=self.temperature)
        return Items(values, self.weights(batch), torch.unique_consecutive(groups))


# --- pointwise ------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PointwiseTerm:
    """Items are the ratings of a batch, a response and attribute each; missing ones weigh 0.

    `columns`: which of the batch's attributes it reads. `first`: its first head output. `quantiles`: of the `quantile` loss.
    """

    name: str
    columns: tuple[int, ...] = (0,)
    first: int = 0
    quantiles: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def weights(self, batch: Batch) -> Tensor:
        return pointwise.present(self._target(batch)).flatten()

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        target = self._target(batch)
        groups = batch["response_group"][:, None].expand_as(target).flatten()
        return Items(self._losses(outputs, target, parameters).flatten(), pointwise.present(target).flatten(), groups)

    def _target(self, batch: Batch) -> Tensor:
        return batch["rating"][:, list(self.columns)]

    def _losses(self, outputs: Outputs, target: Tensor, parameters: Parameters) -> Tensor:
        if self.name == "outcome":
            return pointwise.outcome(outputs.rewards[:, None], target)
        if self.name == "ordinal":
            thresholds = pointwise.rising(parameters[ORDINAL_THRESHOLDS].float())
            return pointwise.ordinal(outputs.rewards, self._level(target[:, 0]), thresholds)[:, None]
        count = len(self.columns)
        mine = outputs.responses[:, self.first :]
        if self.name == "quantile":
            predicted = mine[:, : count * len(self.quantiles)].reshape(len(target), count, -1)
            return pointwise.quantile(predicted, target, target.new_tensor(self.quantiles))
        if self.name == "gaussian":
            return pointwise.gaussian(mine[:, :count], mine[:, count : 2 * count], target)
        return pointwise.regression(mine[:, :count], target)

    def _level(self, rating: Tensor) -> Tensor:
        """Ratings as places in `levels`; a missing one stays NaN."""
        place = torch.searchsorted(rating.new_tensor(self.levels), rating.nan_to_num(self.levels[0]).contiguous())
        return torch.where(rating.isnan(), rating, place.to(rating.dtype))


# --- members --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberTerm:
    """A term on one output of a head of several, in place of the reward: a member of an ensemble on one backbone.

    With `draws` set (a seed), each group counts as often as a resample of the data with replacement would have it (Poisson of mean 1, the bootstrap's
    limit), the same in every epoch and on every rank. Only in training: without gradients every group counts once, so that evaluation is on the data.
    """

    term: Term
    member: int
    draws: int | None = None

    @property
    def name(self) -> str:
        return f"{self.term.name}#{self.member + 1}"

    def weights(self, batch: Batch) -> Tensor:
        weights = self.term.weights(batch)
        return weights if self.draws is None else weights * self._counts(self._groups(batch))

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        column = slice(self.member, self.member + 1)
        mine = outputs.responses[:, self.member]
        items = self.term.items(Outputs(outputs.tokens[:, column], outputs.responses[:, column], mine, mine), batch, parameters)
        if self.draws is None or not outputs.responses.requires_grad:
            return items
        return items._replace(weights=items.weights * self._counts(items.groups))

    def _groups(self, batch: Batch) -> Tensor:
        """The group of each item that the term weighs."""
        if isinstance(self.term, ListwiseTerm):
            return torch.unique_consecutive(batch["response_group"])
        return batch["group"] if isinstance(self.term, OverComparisons) else batch["response_group"]

    def _counts(self, groups: Tensor) -> Tensor:
        """How often the member's resample has each group. [M] -> [M]"""
        uniform = hashed(groups, (self.draws or 0) * 1009 + self.member)
        steps = torch.tensor([1 / math.factorial(k) for k in range(12)], dtype=torch.float64, device=groups.device)
        return (uniform[:, None] > torch.cumsum(steps, 0) / math.e).sum(1).float()


def hashed(numbers: Tensor, seed: int) -> Tensor:
    """Numbers in [0, 1) that look random and depend on (number, seed) alone, on any device. int64 [M] -> float64 [M]

    Source: the finaliser of MurmurHash3 (Appleby), on 32 bits held in int64 so that products do not overflow the sign.
    """
    mask = 0xFFFFFFFF
    x = (numbers.long() * 0x9E3779B1 + (seed + 1) * 0x85EBCA6B) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 16)).double() / 2**32


# --- tokenwise ------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DivergenceTerm(OverComparisons):
    """DeepSpeed-Chat's loss on the tokens `divergence_start` to `divergence_stop` of each comparison, which the collator found."""

    name: str = "token_divergence"

    def values(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Tensor:
        start, stop = batch["divergence_start"], batch["divergence_stop"]
        lengths = stop - start
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        token = torch.arange(len(owner), device=lengths.device) - (torch.cumsum(lengths, 0) - lengths)[owner] + start[owner]
        first = first_reads(batch)
        values = outputs.tokens[:, 0]
        at = [first[batch[side]][owner] + token - batch["read_position"][first[batch[side]]][owner] for side in ("chosen", "rejected")]
        return tokenwise.divergence(values[at[0]], values[at[1]], owner, len(lengths))


@dataclass(frozen=True)
class TokenOutcomeTerm:
    """Binary cross-entropy of the outcome at every response token; a response counts once, whatever its length."""

    column: int = 0
    name: str = "token_outcome"

    def weights(self, batch: Batch) -> Tensor:
        return pointwise.present(batch["rating"][:, self.column])

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        target, rows = batch["rating"][:, self.column], batch["read_row"]
        losses = binary_cross_entropy_with_logits(outputs.tokens[:, 0], target.nan_to_num()[rows], reduction="none")
        mean = losses.new_zeros(len(target)).index_add(0, rows, losses) / torch.bincount(rows, minlength=len(target)).clamp(min=1)
        return Items(mean, self.weights(batch), batch["response_group"])


@dataclass(frozen=True)
class StepTerm:
    """Process rewards: cross-entropy of the step classes at step ends; items are labelled steps."""

    name: str = "steps"

    def weights(self, batch: Batch) -> Tensor:
        return (batch["read_label"] != IGNORED).float()

    def items(self, outputs: Outputs, batch: Batch, parameters: Parameters) -> Items:
        values = tokenwise.steps(outputs.tokens, batch["read_label"])
        return Items(values, self.weights(batch), batch["response_group"][batch["read_row"]])


def first_reads(batch: Batch) -> Tensor:
    """Index of the first token read of each response. [N]"""
    counts = torch.bincount(batch["read_row"], minlength=len(batch["last_read"]))
    return torch.cumsum(counts, 0) - counts
