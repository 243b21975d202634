"""A model made ready for a loss: loaded with the outputs that it needs, checked, wrapped in adapters, given what the loss learns beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from palate.errors import ConfigError, ModelError
from palate.losses.objective import Objective
from palate.models.heads import head_name
from palate.models.reward_model import as_reward_model, is_decoder, load_pretrained, position_limit, turn_dropout_off
from palate.training.config import RewardConfig
from palate.training.supervision import Plan

logger = logging.getLogger(__name__)

LOSS_PARAMETERS = "loss_parameters"
"""Where a model in training carries what its loss learns; saving moves it to the contract."""


def build_model(model: str | Path | nn.Module, args: RewardConfig, quantization_config: Any, outputs: Sequence[str]) -> PreTrainedModel:
    if not isinstance(model, (str, Path)):
        if args.model_init_kwargs:
            raise ModelError("model_init_kwargs are for a model given by name; this one is loaded already")
        reward_model: Any = model
        if isinstance(getattr(model, "peft_config", None), dict):  # a PeftModel: its base does the scoring
            as_reward_model(reward_model.get_base_model(), outputs)
            check_head_trains(reward_model)
        else:
            as_reward_model(reward_model, outputs)
        if args.disable_dropout:
            turn_dropout_off(reward_model)
        return reward_model
    assert not isinstance(args.model_init_kwargs, str)  # TrainingArguments has parsed JSON by now
    kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ModelError("quantization_config is given twice: as an argument and in model_init_kwargs")
        kwargs["quantization_config"] = quantization_config
    kwargs.pop("num_labels", None)
    trust_remote_code = kwargs.pop("trust_remote_code", args.trust_remote_code)
    return load_pretrained(str(model), trust_remote_code=trust_remote_code, disable_dropout=args.disable_dropout, seed=args.seed, outputs=outputs, **kwargs)


def check_model(model: Any, plan: Plan, args: RewardConfig) -> None:
    """Refuse what a loss asks of a model that it cannot do. Raises ConfigError."""
    base = base_of(model)
    names = ", ".join(term.type for term in plan.settings.terms)
    if plan.on_tokens and not is_decoder(base):
        asks = "text" if plan.supervision.text else names
        raise ConfigError(f"loss {asks} reads several tokens of a sequence, which needs a decoder (Llama, Qwen ...); {type(base).__name__} is an encoder")
    if plan.objective.across and not args.disable_dropout:
        raise ConfigError("terms that look across the step compute every part twice, which dropout would make differ; set disable_dropout: true")
    if plan.supervision.reads == "divergence_padded" and args.packing not in ("auto", "padded"):
        raise ConfigError(f"packing is {args.packing}, but token_divergence with padding: include needs padding; set packing to auto or padded")


def wrap_peft(model: PreTrainedModel, peft_config: Any, args: RewardConfig) -> Any:
    """The model with adapters; the head joins `modules_to_save`, since PEFT would otherwise freeze it at its random start and not save it."""
    try:
        from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
    except ImportError as error:
        raise ModelError("peft_config needs the peft package: pip install 'palate[peft]'") from error
    if isinstance(model, PeftModel):
        raise ModelError("the model already is a PeftModel; merge it first, or leave out peft_config")
    head = head_name(model)
    # What pre-training did not have (a fresh pooler, say) is random until it is trained, and must be saved with the head.
    fresh = getattr(model, "_new_head_modules", [])
    if "modules_to_save" not in vars(peft_config):
        raise ConfigError(f"adapters of type {peft_config.peft_type.value} cannot train and save the reward head; take lora or its kin")
    peft_config.task_type = "SEQ_CLS"
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), *(name.removeprefix(f"{model.base_model_prefix}.") for name in (head, *fresh))})
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    if peft_config.is_prompt_learning:
        raise ConfigError(
            f"adapters of type {peft_config.peft_type.value} put tokens before the prompt, which no layout of rows here knows; take lora or its kin"
        )
    try:
        wrapped = get_peft_model(model, peft_config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the adapter {type(peft_config).__name__} does not fit {type(model).__name__}: {error}") from error
    check_head_trains(wrapped)
    if args.gradient_checkpointing:
        wrapped.enable_input_require_grads()
    return wrapped


def check_head_trains(model: Any) -> None:
    head = head_name(model.get_base_model())
    if not any(parameter.requires_grad and f".{head}." in name for name, parameter in model.named_parameters()):
        raise ModelError(f"the reward head `{head}` would not be trained; give task_type='SEQ_CLS' or modules_to_save=['{head}']")


def attach_loss_parameters(model: Any, objective: Objective, args: RewardConfig) -> None:
    """Put what the loss learns on the model, where optimizers find it; `_save` leaves it out of the weights and into the contract.

    The loss uses it outside of the forward pass, which DDP takes for unused when it looks for such parameters: it is told not to look.
    """
    if objective.parameters:
        if args.ddp_find_unused_parameters:
            raise ConfigError("ddp_find_unused_parameters=True would take the loss's learned threshold for unused; leave it unset, or fix the threshold")
        args.ddp_find_unused_parameters = False
        device = next(model.parameters()).device
        values = {name: nn.Parameter(torch.tensor(value, device=device)) for name, value in objective.parameters.items()}
        setattr(model, LOSS_PARAMETERS, nn.ParameterDict(values))


def base_of(model: Any) -> Any:
    """The classifier itself, of a PEFT model or a plain one."""
    return model.get_base_model() if isinstance(getattr(model, "peft_config", None), dict) else model


def unwrapped(accelerator: Any, model: Any) -> Any:
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def within_positions(max_length: int | None, model: PreTrainedModel) -> int | None:
    """`max_length`, lowered (and said so) to what the model's learned positions allow."""
    limit = position_limit(model)
    if limit is None or (max_length is not None and max_length <= limit):
        return max_length
    logger.warning("max_length is %s, but %s has %s positions: %s is used", max_length, type(model).__name__, limit, limit)
    return limit
