"""Pairwise losses: Bradley-Terry with margin, soft labels and label smoothing.

Shapes: P comparisons. Every function takes rewards [P] in float32 and returns one unreduced value per comparison, [P].
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, probability: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of the preferences under Bradley-Terry. [P], [P] -> [P]

        x = r_chosen - r_rejected - margin
        p = (1 - e) * probability + e * (1 - probability)
        loss = -p log sigmoid(x) - (1 - p) log sigmoid(-x)

    Inputs: `margin` in reward units (Llama 2, arXiv 2307.09288, eq. 2); `probability` = P(chosen is better), a soft label, 1 for a plain pair
    and 0.5 for a tie; `label_smoothing` e, the chance that a label is flipped (cDPO; its minimiser is x = log((1 - e) / e)).
    Relations: equals TRL's loss for e = 0; binary cross-entropy on x with target p; depends on reward differences only.
    Source: Christiano et al. 2017 (arXiv 1706.03741); Stiennon et al. 2020 (arXiv 2009.01325), eq. in section 3.4.
    """
    x = chosen - rejected
    if margin is not None:
        x = x - margin
    if probability is None and label_smoothing == 0.0:
        return -logsigmoid(x)
    p = x.new_ones(()) if probability is None else probability
    p = (1 - label_smoothing) * p + label_smoothing * (1 - p)
    return -(p * logsigmoid(x) + (1 - p) * logsigmoid(-x))


PAIRWISE = {"bradley_terry": bradley_terry}
