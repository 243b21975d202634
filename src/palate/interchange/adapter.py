"""A PEFT folder of a reward model: the adapter as it was trained, or what a full checkpoint changed in a base, where that has few dimensions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palate.errors import ModelError
from palate.interchange.source import Source
from palate.interchange.weights import read_json
from palate.models.heads import head_name
from palate.models.reward_model import fit_tokenizer, load_pretrained

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapter_files(adapter: Path, folder: Path, base: str | None) -> Iterator[str]:
    """The adapter's own files, naming `base` in place of its base where one is given (that of this machine is seldom that of another)."""
    if not (adapter / WEIGHTS).is_file():
        raise ModelError(f"{adapter}: has no {WEIGHTS}; `palate import` reads adapters of other kinds")
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)
    config = read_json(adapter / CONFIG)
    if base is not None:
        config["base_model_name_or_path"] = base
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    yield f"base: {config['base_model_name_or_path']}, which who loads the adapter needs too, with num_labels={len_labels(adapter)}"


def len_labels(adapter: Path) -> int:
    contract = read_json(adapter / "reward_contract.json")
    return len((contract.get("readout") or {}).get("outputs") or [""])


def extracted_adapter(source: Source, folder: Path, base: str) -> Iterator[str]:
    """LoRA matrices that add up to a merged checkpoint: the singular vectors of each layer's difference from `base`, and the head.

    Raises ModelError where a layer changed in (nearly) all its dimensions, or one that LoRA cannot change: that was no adapter.
    """
    from peft import LoraConfig, get_peft_model

    model = load_pretrained(base, dtype=source.model.dtype, outputs=source.contract.readout.outputs)
    fit_tokenizer(model, source.tokenizer)
    factors = dict(_factors(source, model, base))
    if not factors:  # the head alone was trained; PEFT wants a layer all the same
        name, layer = next((name, layer) for name, layer in _linear_layers(model))
        factors[name] = (torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1))
    ranks = {name: len(down) for name, (down, _) in factors.items()}
    head = head_name(model)
    assert head is not None  # `load_pretrained` refuses a model without one
    largest = max(ranks.values())
    # alpha is the rank, layer by layer, so that the product is added as it stands
    config = LoraConfig(
        task_type="SEQ_CLS", r=largest, lora_alpha=largest, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, modules_to_save=[head]
    )
    wrapped: Any = get_peft_model(model, config)
    for name, (down, up) in factors.items():
        layer = wrapped.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down.to(model.dtype), up.to(model.dtype)
    wrapped.get_submodule(f"base_model.model.{head}").modules_to_save["default"].weight.data = source.head.weight.detach().clone()
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder)
    yield f"adapter: {len(factors)} layers of {base} differ, in up to {largest} dimensions"


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    prefix = model.base_model_prefix
    for name, module in getattr(model, prefix).named_modules():
        if isinstance(module, nn.Linear):
            yield f"{prefix}.{name}", module


def _factors(source: Source, model: Any, base: str) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(layer, (down [r, in], up [out, r])) of each layer that differs; r is what stands out of rounding."""
    prefix = model.base_model_prefix
    layers = {f"{name}.weight" for name, _ in _linear_layers(model)}
    ours, theirs = source.backbone.state_dict(), getattr(model, prefix).state_dict()
    embedding = source.backbone.get_input_embeddings().weight
    if ours.keys() != theirs.keys():
        raise ModelError(f"--base {base}: is another architecture ({sorted(ours.keys() ^ theirs.keys())[:3]})")
    for key, tensor in ours.items():
        name = f"{prefix}.{key}"
        rows = len(tensor) if tensor.data_ptr() != embedding.data_ptr() else min(len(tensor), len(source.tokenizer), len(theirs[key]))
        if tensor.shape[1:] != theirs[key].shape[1:] or (rows == len(tensor) != len(theirs[key])):
            raise ModelError(f"--base {base}: {name} has the shape {tuple(theirs[key].shape)}, the checkpoint's has {tuple(tensor.shape)}")
        difference = tensor[:rows].float() - theirs[key][:rows].float()
        if tensor.data_ptr() == embedding.data_ptr():  # the pad token's row may be new; nobody reads it
            difference[[i for i in (source.tokenizer.pad_token_id,) if i is not None and i < rows]] = 0
        if not difference.any():
            continue
        if name not in layers:
            raise ModelError(f"{source.name}: {name} differs from {base}, which LoRA cannot say: this was trained in full. Export it as hf")
        yield name.removesuffix(".weight"), _low_rank(name, tensor, difference)


def _low_rank(name: str, weight: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """The difference as up @ down, without what is rounding: of the merged weights, eps x rms x (sqrt(m) + sqrt(n)), and of the decomposition itself."""
    rows, columns = difference.shape
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    merged = torch.finfo(weight.dtype).eps * float(weight.float().square().mean().sqrt()) * (rows**0.5 + columns**0.5)
    decomposed = torch.finfo(torch.float32).eps * float(values[0]) * max(rows, columns)  # as numpy.linalg.matrix_rank counts
    rank = max(1, int((values > merged + decomposed).sum()))
    if rank * (rows + columns) >= rows * columns:
        raise ModelError(f"{name} differs in {rank} of {min(rows, columns)} dimensions: no adapter of less size than the layer says that. Export it as hf")
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root
