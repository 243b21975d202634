"""Small tensors and slopes for tests of losses, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slopes(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradient of the sum of losses with respect to each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves).sum(), leaves)
