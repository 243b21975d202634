"""Pairwise losses: Bradley-Terry and its relatives, soft labels, noisy labels, ties.

Shapes: P comparisons. Every function takes float32 [P] and returns one unreduced value per comparison, [P]. A *link* f(x) is the loss of a
comparison whose better side leads by x; `expected` turns it into the loss of a soft or noisy label.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

Link = Callable[[Tensor], Tensor]

LOG_2 = math.log(2.0)

# --- links ----------------------------------------------------------------------------------------------------------------------------------------


def logistic(x: Tensor) -> Tensor:
    """-log sigmoid(x): Bradley-Terry. Source: Christiano et al. 2017 (arXiv 1706.03741)."""
    return -logsigmoid(x)


def hinge(x: Tensor) -> Tensor:
    """max(0, 1 - x): nothing is gained beyond a lead of 1. Source: Zhao et al. 2023 (SLiC, arXiv 2305.10425)."""
    return relu(1.0 - x)


def squared(x: Tensor) -> Tensor:
    """(x - 1)^2: asks for a lead of exactly 1. Source: Azar et al. 2023 (IPO, arXiv 2310.12036), with tau = 1/2."""
    return (x - 1.0).square()


def focal(x: Tensor, gamma: float = 2.0) -> Tensor:
    """(1 - 2 max(0, P - 1/2))^gamma * -log P with P = sigmoid(x): pairs that are already right count less.

    For x > 0 the factor is (2 sigmoid(-x))^gamma, computed as a power of e, which keeps its precision where P rounds to 1.
    Source: InternLM2 (arXiv 2403.17297), eq. 2; gamma = 2 is theirs.
    """
    factor = torch.exp(gamma * (LOG_2 + logsigmoid(-relu(x))))
    return factor * -logsigmoid(x)


LINKS: dict[str, Link] = {"bradley_terry": logistic, "scaled_bradley_terry": logistic, "hinge": hinge, "squared": squared, "focal": focal}
"""Loss types that are a link; `scaled_bradley_terry` multiplies it by the strength of the preference."""


# --- labels ---------------------------------------------------------------------------------------------------------------------------------------


def expected(link: Link, x: Tensor, *, probability: Tensor | None = None, label_smoothing: float = 0.0, unbiased: bool = False) -> Tensor:
    """The loss of a label that may be soft or wrong: p f(x) + (1 - p) f(-x). [P] -> [P]

    `probability` [P] = P(chosen is better): 1 for a plain pair, 0.5 for a tie. `label_smoothing` e is the chance of a flipped label:

        cDPO     p <- (1 - e) p + e (1 - p)        with the logistic link its minimiser is x = log((1 - e) / e)
        unbiased p <- (p - e) / (1 - 2 e)          its mean over flips of the label is the loss of the clean label, exactly

    The unbiased form has negative weights, so with these links, which grow without end, it has no lower bound: stop early.
    Source: Mitchell 2023 (cDPO note); Chowdhury et al. 2024 (rDPO, arXiv 2403.00409); Natarajan et al. 2013, lemma 1.
    """
    if probability is None and label_smoothing == 0.0:
        return link(x)
    p = x.new_ones(()) if probability is None else probability
    p = (p - label_smoothing) / (1 - 2 * label_smoothing) if unbiased else (1 - label_smoothing) * p + label_smoothing * (1 - p)
    return p * link(x) + (1 - p) * link(-x)


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    probability: Tensor | None = None,
    label_smoothing: float = 0.0,
    unbiased: bool = False,
    link: Link = logistic,
) -> Tensor:
    """Negative log-likelihood of the preferences under Bradley-Terry (or another link). [P], [P] -> [P]

        x = r_chosen - r_rejected - margin
        loss = -p log sigmoid(x) - (1 - p) log sigmoid(-x)

    Inputs: `margin` in reward units (Llama 2, arXiv 2307.09288, eq. 2); for `probability`, `label_smoothing` and `unbiased` see `expected`.
    Relations: equals TRL's loss for plain labels; binary cross-entropy on x with target p; depends on reward differences only.
    Source: Christiano et al. 2017 (arXiv 1706.03741); Stiennon et al. 2020 (arXiv 2009.01325), eq. in section 3.4.
    """
    x = chosen - rejected
    if margin is not None:
        x = x - margin
    return expected(link, x, probability=probability, label_smoothing=label_smoothing, unbiased=unbiased)


# --- ties -----------------------------------------------------------------------------------------------------------------------------------------


def rao_kupper_log_probabilities(difference: Tensor, log_threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log P(win), log P(loss), log P(tie)) where a lead must exceed a threshold. [P], [] -> three of [P]

        P(win) = sigmoid(D - h), P(loss) = sigmoid(-D - h), P(tie) = (e^(2h) - 1) P(win) P(loss), h = log theta >= 0

    h -> 0 is Bradley-Terry, in which nothing ties. Source: Rao and Kupper 1967; for rewards, Liu et al. 2024 (arXiv 2410.05328).
    """
    win, loss = logsigmoid(difference - log_threshold), logsigmoid(-difference - log_threshold)
    # log(e^(2h) - 1) without overflow
    return win, loss, 2 * log_threshold + torch.log(-torch.expm1(-2 * log_threshold)) + win + loss


def davidson_log_probabilities(difference: Tensor, log_nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log P(win), log P(loss), log P(tie)): softmax over D/2, -D/2 and log nu, so that P(tie) at D = 0 is nu / (2 + nu). [P], [] -> three of [P]

    nu -> 0 is Bradley-Terry. Source: Davidson 1970.
    """
    logits = torch.stack([difference / 2, -difference / 2, log_nu.expand_as(difference)])
    win, loss, tie = torch.log_softmax(logits, dim=0)
    return win, loss, tie


TIES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "rao_kupper": rao_kupper_log_probabilities,
    "davidson": davidson_log_probabilities,
}
"""Loss types that give a tie a probability of its own."""


def tied(kind: str, chosen: Tensor, rejected: Tensor, raw_threshold: Tensor, *, probability: Tensor) -> Tensor:
    """Negative log-likelihood with ties: a comparison of probability 0.5 is a tie, any other a (soft) win. [P], [P], [], [P] -> [P]

    `raw_threshold` is free to take any value: h = softplus(raw) for `rao_kupper`, log nu = raw for `davidson`.
    """
    # the floor keeps log(e^2h - 1) finite where softplus has reached 0
    threshold = softplus(raw_threshold).clamp(min=1e-30) if kind == "rao_kupper" else raw_threshold
    win, loss, tie = TIES[kind](chosen - rejected, threshold)
    return torch.where(probability == 0.5, -tie, -(probability * win + (1 - probability) * loss))


def raw_tie_threshold(kind: str, value: float) -> float:
    """The raw threshold of a stated one: theta > 1 for `rao_kupper`, nu > 0 for `davidson`."""
    return math.log(value) if kind == "davidson" else inverse_softplus(math.log(value))  # log theta = softplus(raw)


def inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


# --- barrier --------------------------------------------------------------------------------------------------------------------------------------

BARRIER_BOUND = 5.0
"""Rewards are kept within (-5, 5). Source: InternLM2 (arXiv 2403.17297), section 4.2.1, as the weight 0.02 is."""

BARRIER_EDGE = 1e-3
"""How near to the bound a reward is read; beyond it the barrier is flat. Source: XTuner's implementation."""


def log_barrier(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-(log(5 - r) + log(5 + r)), summed over both sides: rewards stay within (-5, 5). [P], [P] -> [P]

    Source: InternLM2 (arXiv 2403.17297), eq. 3.
    """
    limit = BARRIER_BOUND - BARRIER_EDGE
    rewards = torch.stack([chosen, rejected]).clamp(-limit, limit)
    return -(torch.log(BARRIER_BOUND - rewards) + torch.log(BARRIER_BOUND + rewards)).sum(0)
