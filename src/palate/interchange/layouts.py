"""Which trainer's layout a folder has, from its files and the names of its tensors; and those names as transformers' classifier has them.

deepspeed-chat   rwtransformer.<base model>, v_head.weight
llamafactory     a language model (or its adapter), and value_head.safetensors with v_head.summary.weight and .bias
openrlhf         <base model>, and score.weight or value_head.weight; architectures: ["RewardModel"]
classifier       *ForSequenceClassification: TRL, open-instruct, NeMo-RL and most of what lies on the hub; *ForTokenClassification: critics
adapter          adapter_config.json with the head among its tensors
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from palate.errors import ConfigError, ModelError
from palate.interchange.weights import Weights, find_weights, read_json

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

VALUE_HEAD = ("value_head.safetensors", "value_head.bin")
"""LLaMA-Factory's files of a value head (llamafactory/extras/constants.py)."""

OPENRLHF_HEADS = ("score", "value_head")
"""Its `value_head_prefix`: today's default, and the one of before."""

NOT_OF_A_CLASSIFIER = re.compile(r"(^|\.)(lm_head|embed_out|output)\.(weight|bias)$|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""Tensors that may be left out: a language model's output layer, and tables that transformers makes anew."""

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""What most of transformers' sequence classifiers call their last layer."""

CLASSES = ("ForSequenceClassification", "ForTokenClassification")
"""transformers' classes of a reward model and of a critic, whose tensors have the same names."""

TOKEN_HEADS = ("score", "classifier")
"""What transformers' token classifiers call their head, which is not always what the sequence classifier of the same family calls it."""

CLASSIFIERS = ("trl", "open-instruct", "nemo-rl", "classifier")
"""Trainers that save a plain classifier; they differ in what they fed it (see conventions.py)."""


class Layout(NamedTuple):
    name: str  # deepspeed-chat, llamafactory, openrlhf, classifier, adapter
    seen: str  # what says so


def detect_layout(folder: Path, weights: Weights | None, names: Iterable[str]) -> Layout:
    """The one layout that a folder has. Raises ConfigError where nothing, or more than one thing, says what it is; `names` are those of its tensors."""
    names = list(names)
    found = list(dict.fromkeys(_layouts(folder, names)))
    if len({layout.name for layout in found}) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{folder}: " + "; ".join(f"{one.seen} ({one.name})" for one in found) + ". Say which it is with --format")
    if weights is None:
        raise ModelError(f"{folder}: no weights: neither *.safetensors nor a pytorch_model.bin, nor an adapter")
    if weights.pickled:
        raise ConfigError(f"{folder}: its weights are a pickle, {weights.files[0].name}, so nothing shows its layout. Pass --allow-pickle if you trust it")
    architectures = read_json(folder / "config.json").get("architectures")
    if heads := [name for name in HEADS if name in names]:
        raise ConfigError(
            f"{folder}: {heads[0]} is among its tensors, but architectures {architectures} does not say whose layout it is. "
            f"Say it with --format: {', '.join((*CLASSIFIERS, 'openrlhf'))}"
        )
    raise ConfigError(f"{folder}: architectures {architectures}, and no value head among its tensors: this is no reward model, or give --value-head NAME")


def _layouts(folder: Path, names: list[str]) -> Iterable[Layout]:
    config = read_json(folder / "config.json")
    architectures = [str(name) for name in config.get("architectures") or ()]
    heads = [name for name in VALUE_HEAD if (folder / name).is_file()]
    if heads or any("v_head.summary." in name for name in names):
        yield Layout("llamafactory", f"a value head of TRL's in {heads[0] if heads else 'the weights'}")
    elif (folder / "adapter_config.json").is_file():
        yield Layout("adapter", "adapter_config.json")
    if any(name.startswith("rwtransformer.") for name in names):
        yield Layout("deepspeed-chat", "tensors named rwtransformer.*")
    if architectures and architectures[0] in ("RewardModel", "CriticModel"):
        yield Layout("openrlhf", f"architectures is {architectures[0]}")
    elif "value_head.weight" in names or "value_head_prefix" in config:
        yield Layout("openrlhf", "value_head.weight among the tensors" if "value_head.weight" in names else "value_head_prefix in its config")
    if architectures and architectures[0].endswith(CLASSES) and "value_head_prefix" not in config:
        yield Layout("classifier", f"architectures is {architectures[0]}")


def trained_by(folder: Path) -> str | None:
    """The trainer that a model card names in its tags, where it is one of those that save plain classifiers."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    tags = set(re.findall(r"^\s*-\s*([\w-]+)\s*$", text.split("\n---", 1)[0], flags=re.MULTILINE))
    return "trl" if {"trl", "reward-trainer"} <= tags else None


def head_tensors(names: Iterable[str]) -> list[str]:
    """Those of a classifier's or an adapter's tensors that are its head, saved whole."""
    return [name for name in names if name.rsplit(".", 2)[-2] in ("score", "classifier", "out_proj") and "lora" not in name]


def head_file(folder: Path) -> Weights | None:
    """LLaMA-Factory's value head beside a model or an adapter."""
    return find_weights(folder, VALUE_HEAD)


def as_classifier(
    layout: str, tensors: Mapping[str, Tensor], *, prefix: str, head: str, config: Mapping[str, Any], value_head: str | None
) -> dict[str, Tensor]:
    """The tensors under the names of transformers' classifier, whose base model is called `prefix` and whose output layer `head`.

    `value_head`: the name of the head in the file, where it is not the layout's own. Raises ModelError where there is no head.
    """
    if layout == "deepspeed-chat":
        renamed = {f"{prefix}.{name.removeprefix('rwtransformer.')}" if name.startswith("rwtransformer.") else name: t for name, t in tensors.items()}
        source = value_head or "v_head"
    elif layout == "llamafactory":
        renamed = {name.removeprefix("pretrained_model."): tensor for name, tensor in tensors.items()}
        source = value_head or "v_head.summary"
    elif layout == "openrlhf":
        renamed = dict(tensors)
        present = [name for name in (value_head, config.get("value_head_prefix"), *OPENRLHF_HEADS) if name and f"{name}.weight" in tensors]
        source = present[0] if present else value_head or OPENRLHF_HEADS[0]
    else:
        renamed, source = dict(tensors), value_head or next((name for name in (head, *TOKEN_HEADS) if f"{name}.weight" in tensors), head)
    if f"{source}.weight" not in renamed:
        few = ", ".join(sorted(name for name in renamed if name.count(".") <= 2)[:6])
        raise ModelError(
            f"no {source}.weight among the tensors ({few}, ...): the head was not saved, and a reward cannot be made up. Is it called otherwise? (--value-head)"
        )
    for part in ("weight", "bias"):
        if f"{source}.{part}" in renamed:
            renamed[f"{head}.{part}"] = renamed.pop(f"{source}.{part}")
    return renamed
