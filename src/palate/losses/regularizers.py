"""Regularizers on rewards: centering. Each returns one unreduced value per comparison, to be weighted and added to a loss."""

from __future__ import annotations

from torch import Tensor


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, which pulls rewards towards mean zero and leaves their differences alone. [P], [P] -> [P]

    Bradley-Terry fixes rewards only up to a constant per prompt; this term fixes the constant. Recommended coefficient: 0.01.
    Source: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2; coefficient from TRL's `center_rewards_coefficient`.
    """
    return (chosen + rejected).square()
