"""Parameter-efficient training from settings: any PEFT adapter by its name, and 8- or 4-bit base weights."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch

from palate.errors import ConfigError, ModelError

HEAD_NAMES = ["score", "classifier", "out_proj"]
"""Layers that are never quantized: a reward read in 4 bits has sixteen values."""


def adapter_config(settings: Mapping[str, Any]) -> Any:
    """A PEFT config from `{type: lora, r: 16, ...}`; every type and field that the installed peft knows.

    `target_modules` defaults to `all-linear` where the type has it (ia3: peft's own choice).
    Raises ConfigError for what peft does not know, ModelError without peft.
    """
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ModelError("model.adapter needs the peft package: pip install 'palate[peft]'") from error
    types = {str(getattr(kind, "value", kind)).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(settings.get("type", "lora")).lower()
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        raise ConfigError(f"model.adapter.type is {name!r}; " + (f"did you mean {near[0]}? " if near else "") + f"peft knows {', '.join(sorted(types))}")
    fields = {field.name for field in dataclasses.fields(types[name]) if field.init} - {"task_type", "peft_type"}
    options = {key: value for key, value in settings.items() if key != "type"}
    if unknown := sorted(set(options) - fields):
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        raise ConfigError(
            f"model.adapter.{unknown[0]}: {name} has no such field" + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(fields))}")
        )
    if "target_modules" in fields and "feedforward_modules" not in fields:  # ia3 tells the two apart and has its own defaults by model
        options.setdefault("target_modules", "all-linear")
    try:
        return types[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.adapter: {error}") from error


def quantization_config(bits: str, dtype: torch.dtype) -> Any:
    """bitsandbytes weights in 8 bits, or 4 (NF4, doubly quantized: QLoRA, arXiv 2305.14314); the head keeps its float32.

    Raises ModelError without CUDA or bitsandbytes.
    """
    if not torch.cuda.is_available():
        raise ModelError(f"model.quantization: {bits} needs a CUDA device; leave it out on this machine")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(f"model.quantization: {bits} needs bitsandbytes: pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEAD_NAMES)
    compute = torch.bfloat16 if dtype == torch.float32 else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=HEAD_NAMES
    )
