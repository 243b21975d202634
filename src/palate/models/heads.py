"""The reward head: linear, computed in float32, initialised N(0, 1/sqrt(h+1)) unless it is already trained; and how a reward is read from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.types import Readout


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under any autocast and for any dtype of its input.

    In bfloat16 rewards near 8 step by 0.06, which makes false ties and false margins; the head costs nothing in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight.float(), bias)


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that end the classifier: `score` (decoders), `classifier`, `classifier.out_proj`, ..."""
    backbone = getattr(model, model.base_model_prefix)
    inside = {id(module) for module in backbone.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside and module.out_features == model.config.num_labels
    ]


def head_name(model: PreTrainedModel) -> str | None:
    """The head's name, whether or not PEFT wrapped it in copies of its own; None when there is no single one."""
    names = {name.removesuffix(".original_module").split(".modules_to_save.")[0] for name in head_names(model)}
    return names.pop() if len(names) == 1 else None


def initialise_head(head: nn.Linear, seed: int) -> None:
    """Weight ~ N(0, 1/(h+1)) in variance, bias 0; drawn on the CPU from `seed`, so equal on every device and rank.

    Source: Stiennon et al. 2020 (arXiv 2009.01325), p. 11. (1/(h+1) as standard deviation, seen elsewhere, is sqrt(h+1) times too small.)
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (head.out_features, head.in_features)  # not the weight's own: ZeRO-3 leaves it empty
    weight = torch.empty(shape, dtype=torch.float32).normal_(0.0, 1.0 / math.sqrt(head.in_features + 1), generator=generator)
    with torch.no_grad(), whole(head):
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """The module's parameters as they are without DeepSpeed's ZeRO-3, which splits them over ranks while the model is loaded."""
    split = [parameter for parameter in module.parameters() if getattr(parameter, "ds_id", None) is not None]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split, modifier_rank=0):
        yield


def give_bias(head: nn.Linear, bias: Tensor) -> None:
    """Add a bias [D] to a head whose class has none (other trainers' value heads have one); saved and loaded with the rest."""
    head.bias = nn.Parameter(bias.to(head.weight.device, torch.float32))


def use_float32(head: nn.Linear) -> None:
    """Keep this head, its parameters and its output, in float32 (same parameter names, so checkpoints stay as they are)."""
    head.float()
    head.__class__ = Float32Linear


@contextmanager
def without_head(model: PreTrainedModel) -> Iterator[None]:
    """The model's outputs are what its head reads, float32 [R, H], in place of what the head makes of it."""
    name = head_name(model)
    assert name is not None  # `as_reward_model` refuses a model without one
    head = model.get_submodule(name)
    head.forward = Tensor.float
    try:
        yield
    finally:
        del head.forward


def read_rewards(outputs: Tensor, readout: Readout) -> Tensor:
    """One reward for each row of outputs, in float32. [R, D] -> [R]"""
    outputs = outputs.float()
    if readout.aggregate is not None:  # step classes
        outputs = torch.softmax(outputs, dim=1)
    return outputs @ outputs.new_tensor(readout.weights)
