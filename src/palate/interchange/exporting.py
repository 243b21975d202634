"""A checkpoint in another stack's format, written and then loaded again as that stack loads it; an export that scores differently is not kept."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from palate.errors import ConfigError, ContractError, ModelError
from palate.interchange.adapter import adapter_files, extracted_adapter
from palate.interchange.consumers import CONSUMERS
from palate.interchange.import_options import Say
from palate.interchange.merging import refuse_occupied
from palate.interchange.source import Source, folded, load_source, without_bias
from palate.models.checkpoints import whole_directory
from palate.models.heads import give_bias, read_rewards
from palate.scoring.laplace import LAPLACE_NAME

OF_CLASSIFIERS = ("id2label", "label2id", "problem_type", "sentence_transformers")
"""Keys of a config that say nothing of a model with a value head."""


class Format(NamedTuple):
    """How a format is written. `outputs`: it may hold a head of several; `bias`: it has a place for the bias of a decoder's head."""

    write: Callable[[Source, Path, str | None], Iterator[str]]
    outputs: bool
    bias: bool


def export_model(
    directory: str | Path,
    output: str | Path,
    format: str,
    *,
    base: str | None = None,
    fold: bool = False,
    drop_bias: bool = False,
    zero_bias: bool = False,
    say: Say = print,
) -> None:
    """Write a checkpoint, adapter or hub model into the new folder `output` in `format`, and compare its scores as the consumer computes them.

    `base`: a language model whose output layer is written along (llamafactory), or the base of an adapter. `fold`: one output in place of several where
    the format could hold them. `zero_bias`: write a bias of zero beside a decoder's head, which SGLang's Qwen classes start at random where it is
    missing. `say` hears what is worth knowing. Raises ModelError for what the format cannot say, ContractError where the written
    model scores differently (nothing of it is left then).
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    if zero_bias and format != "hf":
        raise ConfigError(f"--zero-bias is for --format hf; {format} has " + ("a bias anyway" if FORMATS[format].bias else "no place for one"))
    if base is not None and format not in ("adapter", "llamafactory"):
        raise ConfigError(f"--base is for --format adapter and llamafactory; nothing of a base is written as {format}")
    refuse_occupied(output)
    chosen = FORMATS[format]
    source = load_source(directory)
    if (Path(directory) / LAPLACE_NAME).is_file():
        say(f"uncertainty: {LAPLACE_NAME} stays behind; the export gives rewards alone")
    outputs = len(source.contract.readout.outputs)
    if fold or not chosen.outputs or (format == "token-classification" and source.contract.readout.aggregate is None):
        source = folded(source)
        if outputs > 1:
            say(f"head: {outputs} outputs folded into one reward by the contract's weights")
    if not chosen.bias:
        source = without_bias(source, format, dropped=drop_bias)
    if zero_bias and source.head.bias is None:
        give_bias(source.head, torch.zeros(source.head.out_features))
    with whole_directory(output) as part:
        for line in chosen.write(source, part, base):
            say(line)
        error = verify(part, format, source)
    say(f"saved: {output}; loaded again as {format}, {len(source.scores())} examples score the same (largest difference {error:.1e})")


@torch.no_grad()
def verify(folder: Path, format: str, source: Source) -> float:
    """Largest difference between the scores of a written folder, as its consumer reads it, and the source's. Raises ContractError beyond rounding."""
    readout = source.contract.readout
    try:
        outputs = CONSUMERS[format](folder, source.sequences(), len(readout.outputs))
    except (RuntimeError, ValueError, OSError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ContractError(f"{source.name}: written as {format}, it does not load as its consumer loads it: {reason}. Nothing was kept") from error
    scores = read_rewards(outputs, readout).tolist()
    differences = [abs(found - score) for found, score in zip(scores, source.scores(), strict=True)]
    for found, score, difference in zip(scores, source.scores(), differences, strict=True):
        if not difference <= source.tolerance * max(1.0, abs(score)):
            raise ContractError(f"{source.name}: written as {format}, an example scores {found:.6f} where it scored {score:.6f}. Nothing was kept")
    return max(differences)


# --- writers: each fills an empty folder, and says what is worth knowing -----------------------------------------------------------------------------


def write_hf(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """The canonical form: transformers' classifier, raw scores, tokenizer, template, contract."""
    source.model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    source.contract.save(folder)
    if len(source.contract.readout.outputs) > 1:
        yield f"outputs: {', '.join(source.contract.readout.outputs)}; TRL and rerankers read the first alone (--fold writes the one reward)"


def write_openrlhf(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """The canonical form with what OpenRLHF reads off the config: the head's name, and mean and std for its `normalize_reward`."""
    source.need_decoder("openrlhf")
    yield from write_hf(source, folder, base)
    statistics = source.contract.rewards
    found: dict[str, Any] = {"value_head_prefix": "score"}
    if statistics is not None:
        found |= {"mean": statistics.mean, "std": statistics.std}
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | found, indent=2) + "\n", encoding="utf-8")
    yield "normalize_reward: " + (
        f"mean {statistics.mean:.4f}, std {statistics.std:.4f}"
        if statistics
        else "changes nothing, since no statistics were measured (`palate eval --record` does)"
    )


def write_token_classification(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """The critic of verl, NeMo-RL and PPO code: the same head at every token, with a bias (zero where there was none), dropout off."""
    source.need_decoder("token-classification")
    config = copy.deepcopy(source.model.config)
    model_class: Any = AutoModelForTokenClassification._model_mapping.get(type(config), None)
    if model_class is None:
        raise ModelError(f"{source.name}: transformers has no token classifier for model_type {config.model_type!r}")
    config.classifier_dropout = 0.0  # its classes drop 0.1 while training where nothing is said
    with torch.device("meta"):
        model = model_class(config)
    head = source.head
    biased = nn.Linear(head.in_features, head.out_features)
    biased.weight, biased.bias = head.weight, head.bias if head.bias is not None else nn.Parameter(torch.zeros(head.out_features))
    name = next(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == config.num_labels and "." not in name
    )
    setattr(model, name, biased)
    setattr(model, model.base_model_prefix, source.backbone)
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    yield f"head: {name} of {type(model).__name__}, bias {'kept' if head.bias is not None else 'zero'}"


def write_llamafactory(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """A language model's folder, and TRL's old value head in a file of its own."""
    source.need_decoder("llamafactory")
    config = copy.deepcopy(source.model.config)
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        raise ModelError(f"{source.name}: transformers has no language model for model_type {config.model_type!r}")
    with torch.device("meta"):
        model = model_class(config)
    setattr(model, model.base_model_prefix, source.backbone)
    embedding = source.backbone.get_input_embeddings().weight
    output = model.get_output_embeddings()
    if config.tie_word_embeddings:
        output.weight = embedding
    else:
        output.weight = nn.Parameter(_output_layer(base, embedding) if base else torch.zeros_like(embedding))
        yield f"lm_head: {f'of {base}' if base else 'zero, since a reward model has none; no reward reads it (--base MODEL fills it in)'}"
    for key in OF_CLASSIFIERS:
        vars(model.config).pop(key, None)
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    bias = source.head.bias if source.head.bias is not None else torch.zeros(1)
    tensors = {"v_head.summary.weight": source.head.weight, "v_head.summary.bias": bias}
    save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, folder / "value_head.safetensors", metadata={"format": "pt"})


def _output_layer(base: str, embedding: Tensor) -> Tensor:
    """A language model's output layer, with as many rows as the reward model has tokens. [V, H]"""
    try:
        weight = AutoModelForCausalLM.from_pretrained(base, dtype=embedding.dtype).get_output_embeddings().weight.detach()
    except (OSError, ValueError) as error:
        raise ModelError(f"--base {base}: not a language model: {error}") from error
    if weight.shape[1] != embedding.shape[1]:
        raise ModelError(f"--base {base}: its hidden size is {weight.shape[1]}, the reward model's {embedding.shape[1]}")
    return fitted_rows(weight, len(embedding))


def fitted_rows(weight: Tensor, rows: int) -> Tensor:
    """The first `rows` rows, with zeros for those that are not there."""
    return torch.cat([weight[:rows], weight.new_zeros(max(0, rows - len(weight)), weight.shape[1])])


def write_deepspeed_chat(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """Its critic's pickle: rwtransformer.*, v_head.weight, as many embeddings as the tokenizer has tokens, made a multiple of 8.

    The number of rows must be exact: its loader leaves out what does not fit without a word.
    """
    source.need_decoder("deepspeed-chat")
    backbone, tokenizer = source.backbone, source.tokenizer
    rows = 8 * math.ceil(len(tokenizer) / 8)
    embedding = backbone.get_input_embeddings().weight
    state = {
        f"rwtransformer.{name}": fitted_rows(tensor, rows) if tensor.data_ptr() == embedding.data_ptr() else tensor
        for name, tensor in backbone.state_dict().items()
    }
    state["v_head.weight"] = source.head.weight.detach().to(embedding.dtype)
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    config = source.model.config.to_dict()
    for key in OF_CLASSIFIERS:
        config.pop(key, None)
    eos = tokenizer.eos_token_id
    config |= {"architectures": [type(backbone).__name__], "vocab_size": rows, "end_token_id": eos, "pad_token_id": eos, "eos_token_id": eos}
    if "word_embed_proj_dim" not in config:
        config["n_embd"] = source.head.in_features
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    yield f"embedding: {rows} rows for {len(tokenizer)} tokens"
    yield from _before_eos(source)


@torch.no_grad()
def _before_eos(source: Source) -> Iterator[str]:
    """What DeepSpeed-Chat reads where its tokenizer's pad token is EOS, as it makes it for all but Llama's: the token before."""
    eos = source.tokenizer.eos_token_id
    before = []
    for ids, score in zip(source.sequences(), source.scores(), strict=True):
        if ids[-1] == eos:
            hidden = source.backbone(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state[0, -1]
            before.append(abs(float(source.head(hidden)) - score))
    if before:
        yield (
            f"pad: DeepSpeed-Chat sets pad to EOS unless the tokenizer is Llama's, and then reads the token before EOS: the examples' rewards change by up to "
            f"{max(before):.3g}. A model trained with loss.type: token_divergence has its reward at every token"
        )


def write_adapter(source: Source, folder: Path, base: str | None) -> Iterator[str]:
    """A PEFT folder: the adapter as it is, or the difference from `base` where that has few dimensions."""
    if (Path(source.name) / "adapter_config.json").is_file():
        yield from adapter_files(Path(source.name), folder, base)
    elif base is None:
        raise ConfigError(f"{source.name}: is no adapter; --base MODEL writes its difference from that model as one")
    else:
        yield from extracted_adapter(source, folder, base)
    source.tokenizer.save_pretrained(folder)
    source.contract.save(folder)


FORMATS: dict[str, Format] = {
    "hf": Format(write_hf, outputs=True, bias=False),
    "adapter": Format(write_adapter, outputs=True, bias=False),
    "deepspeed-chat": Format(write_deepspeed_chat, outputs=False, bias=False),
    "openrlhf": Format(write_openrlhf, outputs=False, bias=False),
    "llamafactory": Format(write_llamafactory, outputs=False, bias=True),
    "token-classification": Format(write_token_classification, outputs=True, bias=True),
}
