"""A sequence classifier as reward model: forward(input_ids, attention_mask | trees) -> RewardOutput.

The model stays what transformers knows, a `*ForSequenceClassification` with its own class name, weights and config, so that saving, PEFT, FSDP,
DeepSpeed and every consumer of checkpoints work unchanged. Only its forward is ours: decoders pool the last real token by the attention mask
(`RewardForward`), encoders keep the pooler of their own class, and the head is float32 in both. Either reads N padded rows, or one packed row of
`trees` (see layout.py) once `choose_packing` has set the model up for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput, cached_file

from palate.errors import ModelError
from palate.models.attention import LAYOUT, no_mask
from palate.models.heads import give_bias, head_name, head_names, initialise_head, use_float32
from palate.models.layout import Layout, Trees, untraced
from palate.models.pooling import gather_tokens, last_token

ONE_REWARD = ("reward",)
"""The outputs of a plain reward model."""


@dataclass
class RewardOutput(ModelOutput):
    """logits [R, D] in float32: D outputs of the head at each token read, R = N where nothing but the last tokens is."""

    logits: Tensor | None = None
    text: Tensor | None = None  # [R] log-probability of the token that follows each token read, where asked for


class RewardForward:
    """Mixed in front of a decoder's sequence-classification class: pool by mask, then apply the head to the pooled token only."""

    @untraced  # torch.compile would compile anew for every list of trees; the backbone below is compiled
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        trees: Trees | None = None,
        backend: str | None = None,
        read_row: Tensor | None = None,
        read_position: Tensor | None = None,
        next_token: Tensor | None = None,
        **kwargs: Any,
    ) -> RewardOutput:
        """Rewards of N right- or left-padded rows, or of the N sequences of one packed row. [N, L], [N, L] or [1, T] -> RewardOutput

        `backend`: `segments`, `flex` or `dense` attention for a packed row; by default the device's. `read_row`, `read_position` [R]: tokens to read
        in place of each sequence's last, as the sequence's number and the position in it (rows padded on the right). `next_token` [R]: tokens whose
        log-probabilities are asked for as well (see text_head.py), IGNORED where none is.
        """
        kwargs = {key: value for key, value in kwargs.items() if key not in ("labels", "use_cache", "return_dict", "inputs_embeds")}
        backbone = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        read = None if read_row is None or read_position is None else (read_row, read_position)
        if trees is not None:
            layout = Layout.of(trees, causal=True, device=input_ids.device, backend=backend, read=read)
            # the cache must be off: with it, block masks are silently left out
            packed: Any = {"attention_mask": no_mask(), "position_ids": layout.positions, LAYOUT: layout}
            output = backbone(input_ids, use_cache=False, **packed, **kwargs)
            return self._read(output.last_hidden_state[0, layout.reads], next_token)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        output = backbone(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **kwargs)
        if read is not None:
            return self._read(output.last_hidden_state[read], next_token)
        return self._read(gather_tokens(output.last_hidden_state, last_token(attention_mask)), next_token)

    def _read(self, hidden: Tensor, next_token: Tensor | None) -> RewardOutput:
        text = None if next_token is None else self.text_head(hidden, next_token)  # type: ignore[attr-defined]
        return RewardOutput(logits=self.score(hidden), text=text)  # type: ignore[attr-defined]


class PackedEncoder:
    """Mixed in front of an encoder's classification class: given `trees`, its backbone runs on one packed row and the rest on first tokens."""

    @untraced
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, trees: Trees | None = None, backend: str | None = None, **kwargs: Any) -> Any:
        run = super().forward  # type: ignore[misc]
        if trees is None:
            return run(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        offset = position_offset(self)  # type: ignore[arg-type]
        layout = Layout.of(trees, causal=False, device=input_ids.device, backend=backend, offset=offset)
        return run(input_ids=input_ids, attention_mask=no_mask(), position_ids=layout.positions, **{LAYOUT: layout}, **kwargs)


class PackedBackbone:
    """Mixed in front of an encoder's backbone: after a packed row it gives what N padded rows of first tokens would look like."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        layout: Layout | None = kwargs.get(LAYOUT)
        if layout is not None:
            output.last_hidden_state = output.last_hidden_state[0, layout.reads][:, None]  # [N, 1, H]
            pooler = getattr(self, "pooler", None)
            if pooler is not None:
                output.pooler_output = pooler(output.last_hidden_state)
        return output


def pack_encoder(model: PreTrainedModel) -> None:
    """Teach an encoder to read packed rows, in place; class names stay what config.json records."""
    backbone: Any = getattr(model, model.base_model_prefix)
    for module, mixin in ((model, PackedEncoder), (backbone, PackedBackbone)):
        kind = type(module)
        if not issubclass(kind, mixin):
            module.__class__ = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def is_decoder(model: PreTrainedModel) -> bool:
    """Decoders score tokens with a bias-free `score` layer on the backbone; encoders have a pooler and a classifier of their own."""
    return isinstance(getattr(model, "score", None), nn.Linear) or type(getattr(model, "score", None)).__name__ == "ModulesToSaveWrapper"


def as_reward_model(model: PreTrainedModel, outputs: Sequence[str] = ONE_REWARD) -> PreTrainedModel:
    """Give a loaded `*ForSequenceClassification` our forward and a float32 head, in place; doing it twice changes nothing.

    `outputs`: the names of the head's outputs. Raises ModelError when the head has others.
    """
    if model.config.num_labels != len(outputs):
        wanted = "a reward model has one output" if len(outputs) == 1 else f"expected one for each of {', '.join(outputs)}"
        raise ModelError(
            f"{model.config._name_or_path or type(model).__name__} has num_labels={model.config.num_labels}; {wanted}. "
            f"Load it with num_labels={len(outputs)} (a classifier with other labels cannot be one), or give a base model."
        )
    given = _output_names(model.config)
    if len(outputs) > 1 and given != list(outputs) and set(given) & set(outputs):
        raise ModelError(f"the head's outputs are {', '.join(given)}, expected {', '.join(outputs)} in this order; load the model with these labels")
    names = head_names(model)
    if head_name(model) is None:
        raise ModelError(f"{type(model).__name__} has no single linear output layer (found: {names or 'none'}); use a *ForSequenceClassification model")
    for name in names:
        use_float32(model.get_submodule(name))  # type: ignore[arg-type]
    if is_decoder(model) and not isinstance(model, RewardForward):
        # The class keeps its name: it is what config.json records as the architecture.
        model.__class__ = type(type(model).__name__, (RewardForward, type(model)), {"__module__": type(model).__module__})
    mark_config(model, outputs)
    return model


def mark_config(model: PreTrainedModel, outputs: Sequence[str] = ONE_REWARD) -> None:
    """What makes every consumer read raw rewards: named outputs, `problem_type` regression (no sigmoid), identity for sentence-transformers."""
    config = model.config
    config.id2label, config.label2id = dict(enumerate(outputs)), {name: i for i, name in enumerate(outputs)}
    config.problem_type = "regression"
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}


def pooling_of(model: PreTrainedModel) -> str:
    """`last` for decoders; `first` or `mean` for encoders, by their own class."""
    if is_decoder(model):
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"


def load_pretrained(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    disable_dropout: bool = True,
    seed: int = 42,
    outputs: Sequence[str] = ONE_REWARD,
    **model_kwargs: Any,
) -> PreTrainedModel:
    """A reward model from a base model, an instruct model or a reward checkpoint. A trained head is kept; only a missing one is initialised.

    `outputs` names the head's outputs. Raises ModelError when the name cannot be loaded or the checkpoint's head has other outputs.
    """
    check_local(name_or_path)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if (Path(name_or_path) / "adapter_config.json").is_file():
        return load_adapter(name_or_path, trust_remote_code=trust_remote_code, disable_dropout=disable_dropout, seed=seed, outputs=outputs, **model_kwargs)
    try:
        config = AutoConfig.from_pretrained(name_or_path, **common)
        trained = any(str(a).endswith("ForSequenceClassification") for a in getattr(config, "architectures", None) or [])
        if trained and not _has_outputs(config, outputs):
            wanted = "a reward model has one output" if len(outputs) == 1 else f"the loss needs the outputs {', '.join(outputs)}"
            raise ModelError(
                f"{name_or_path} is a classifier with num_labels={config.num_labels} ({', '.join(map(str, config.id2label.values()))}); "
                f"{wanted}. Give a base model, or a reward model with such a head."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{name_or_path} is an encoder-decoder; reward models here are decoders (Llama, Qwen, Gemma ...) or encoders (BERT, ModernBERT ...)"
            )
        text_config = config.get_text_config()
        if (text_config.pad_token_id or 0) >= text_config.vocab_size:  # torch would assert, deep in the embedding
            raise ModelError(
                f"{name_or_path}: pad_token_id is {text_config.pad_token_id} and its vocabulary has {text_config.vocab_size} rows, so that transformers "
                "does not build the model; `palate import` mends that"
            )
        config.num_labels = len(outputs)
        model_kwargs.setdefault("dtype", torch.float32)
        with head_in_float32(config):
            model, info = AutoModelForSequenceClassification.from_pretrained(name_or_path, config=config, output_loading_info=True, **common, **model_kwargs)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"{name_or_path}: cannot be loaded as a sequence classifier: {error}") from error
    head = head_name(model)
    if head is None:
        raise ModelError(f"{name_or_path}: {type(model).__name__} has no linear output layer to train as reward head")
    missing = {str(key) for key in info["missing_keys"]}
    model._random_head = f"{head}.weight" in missing
    if model._random_head:
        initialise_head(model.get_submodule(head), seed)
        missing -= {f"{head}.weight", f"{head}.bias"}
    elif f"{head}.bias" in info["unexpected_keys"]:
        give_bias(model.get_submodule(head), stored_bias(name_or_path, f"{head}.bias", revision))
    model._new_head_modules = sorted({key.rpartition(".")[0] for key in missing})
    # Layers between backbone and output (a pooler or dense layer that pre-training did not have) start random, as their own class does it.
    if any(not _is_head_side(model, key) for key in missing):
        raise ModelError(f"{name_or_path}: weights missing for {sorted(missing)[:5]}; the checkpoint is incomplete")
    model = as_reward_model(model, outputs)
    if disable_dropout:
        turn_dropout_off(model)
    return model


def _output_names(config: Any) -> list[str]:
    return [str(config.id2label[i]) for i in sorted(config.id2label)]


def _has_outputs(config: Any, outputs: Sequence[str]) -> bool:
    """Whether a trained head is the one asked for: a single output may have any name, several must have theirs."""
    names = _output_names(config)
    return len(names) == len(outputs) and (len(names) == 1 or names == list(outputs))


def load_adapter(directory: str, **options: Any) -> PreTrainedModel:
    """A reward model from a PEFT adapter folder: its base with the trained head, adapters merged."""
    try:
        from peft import PeftConfig, PeftModel, load_peft_weights
    except ImportError as error:
        raise ModelError(f"{directory} holds an adapter, which needs the peft package: pip install 'palate[peft]'") from error
    base = load_pretrained(str(PeftConfig.from_pretrained(directory).base_model_name_or_path), **options)
    fit_tokenizer(base, load_tokenizer(directory))
    head = str(head_name(base)).rpartition(".")[2]
    try:
        saved = load_peft_weights(directory, device="cpu")
        merged = PeftModel.from_pretrained(base, directory).merge_and_unload()
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{directory}: the adapter does not hold what its config says it saved ({error}); a lost head cannot be made up for") from error
    merged._random_head = has_random_head(merged) and not any(name.endswith(f".{head}.weight") for name in saved)
    return as_reward_model(merged, options.get("outputs", ONE_REWARD))


def has_random_head(model: Any) -> bool:
    """Whether `load_pretrained` found no trained head and drew one: right for a training run's start, and no reward."""
    return bool(vars(model).get("_random_head", False))


@contextmanager
def head_in_float32(config: Any) -> Iterator[None]:
    """While loading, keep the head in the float32 that it was saved in; a 16-bit load would round it before we could."""
    model_class: Any = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    if model_class is None:  # code from the hub: its head is made float32 after loading
        yield
        return
    before = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = {*(before or ()), "score", "classifier", "out_proj"}
    try:
        yield
    finally:
        model_class._keep_in_fp32_modules_strict = before


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """The model as it will be used: evaluation mode, no gradients, no autocast, not even the one that accelerate builds into a prepared forward."""
    patched: dict[Any, Any] = {module: vars(module)["forward"] for module in model.modules() if "_original_forward" in vars(module)}
    training = model.training
    device = next(model.parameters()).device
    for module in patched:
        module.forward = module._original_forward
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        model.train(training)
        for module, forward in patched.items():
            module.forward = forward


def stored_bias(name_or_path: str, key: str, revision: str | None = None) -> Tensor:
    """The bias of a trained head, [D], off the file: transformers' decoders have no place for it and would leave it out of the reward."""
    index = cached_file(name_or_path, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"][key] if index else "model.safetensors"
    path = cached_file(name_or_path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise ModelError(f"{name_or_path}: its head has a bias, which is read from safetensors alone; run `palate import` on it first")
    with safe_open(path, "pt") as file:
        return file.get_tensor(key)


def _is_head_side(model: PreTrainedModel, key: str) -> bool:
    return not key.startswith(f"{model.base_model_prefix}.") or ".pooler." in key


def load_tokenizer(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    check_local(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        nowhere = "" if Path(name_or_path).exists() else "no such folder here, and from the hub "
        raise ModelError(f"{name_or_path}: {nowhere}no tokenizer could be loaded: {error}") from error
    files = set(tokenizer.vocab_files_names.values())
    if files and Path(name_or_path).is_dir() and not any((Path(name_or_path) / file).is_file() for file in files):  # transformers then makes an empty one
        raise ModelError(
            f"{name_or_path}: has no tokenizer, expected {' or '.join(sorted(files))}; put that of its base model there (`palate import --tokenizer` does)"
        )
    return tokenizer


def check_local(name_or_path: str) -> None:
    """A path that looks local but is not there is said so at once, before a hub is asked."""
    path = Path(name_or_path)
    if not path.exists() and (path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1):
        raise ModelError(f"{name_or_path}: no such folder; expected a checkpoint directory or a hub id like owner/model")
    if path.is_file():
        raise ModelError(f"{name_or_path}: is a file; expected a checkpoint directory or a hub id like owner/model")
    if path.is_dir() and not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ModelError(f"{name_or_path}: the folder has no config.json; expected a checkpoint directory")


def turn_dropout_off(model: nn.Module) -> None:
    """Probability 0 in every dropout module, and in every float of a module or config that is named after one (where attention reads it).

    Source: Ziegler et al. 2019 (arXiv 1909.08593), p. 3.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    config: Any = model.config
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
                setattr(part, name, 0.0)


def fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make model and tokenizer agree: embedding rows for added tokens, pad id in the config (and in a composite config's text part)."""
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
        if tokenizer.eos_token_id is not None:
            config.eos_token_id = tokenizer.eos_token_id


def position_limit(model: PreTrainedModel) -> int | None:
    """Longest sequence that learned absolute positions allow; None where positions are rotary or relative."""
    config = model.config.get_text_config()
    if getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None):
        return None
    table = position_table(model)
    if table is None:
        return None
    # The config knows the table's size, not always the usable part of it.
    return table.num_embeddings - (getattr(table, "offset", 0) or position_offset(model))


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """The table of learned absolute positions, if there is one."""
    names = ("wpe", "position_embeddings", "embed_positions")  # GPT-2; BERT and RoBERTa; OPT
    return next((m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and name.rsplit(".", 1)[-1] in names), None)


def position_offset(model: PreTrainedModel) -> int:
    """The number of a sequence's first position, as its caller must give it: RoBERTa counts from padding_idx + 1, all others from 0."""
    table = position_table(model)
    return table.padding_idx + 1 if table is not None and table.padding_idx is not None else 0
