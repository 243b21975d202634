"""The weights of another stack as transformers' own sequence classifier, with nothing missing, nothing left over, and the head's bias kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from palate.errors import ConfigError, ModelError
from palate.interchange.import_options import Found, ImportOptions, Say
from palate.interchange.layouts import ADAPTER_WEIGHTS, HEADS, NOT_OF_A_CLASSIFIER, as_classifier, head_file, head_tensors
from palate.interchange.weights import find_weights, read_json, read_tensors, refuse_code, refuse_pickle
from palate.models.heads import give_bias, head_name
from palate.models.reward_model import ONE_REWARD, as_reward_model, check_local, fit_tokenizer, load_pretrained, load_tokenizer, turn_dropout_off
from palate.types import Readout


def build_model(found: Found, options: ImportOptions, say: Say) -> tuple[PreTrainedModel, Readout]:
    """The classifier with the stranger's weights, and how one reward is read from it."""
    folder = found.folder
    if found.layout == "adapter":
        return _of_adapter(folder, options, say), Readout()
    if found.layout == "llamafactory" and (folder / "adapter_config.json").is_file():
        config, tensors = _merged_language_model(folder, options, say)
    else:
        if found.weights is None:
            raise ModelError(f"{folder}: no weights: neither *.safetensors nor a pytorch_model.bin")
        config = _config(folder, options, say)
        tensors = found.tensors if found.tensors is not None else read_tensors(found.weights, allow_pickle=options.allow_pickle)
    if found.layout == "llamafactory" and (head := head_file(folder)) is not None:
        tensors |= read_tensors(head, allow_pickle=options.allow_pickle)
    readout = _readout(found, tensors, options, say)
    model = _filled(folder, config, found.layout, tensors, len(readout.outputs), options, say)
    for name in ("value_head_prefix", "normalize_reward", "mean", "std", "end_token_id", "auto_map"):  # of the other stack; what they say is in the contract
        if name in config.to_dict() and not (name == "auto_map" and runs_code(model)):
            delattr(model.config, name)
    return model, readout


def runs_code(model: PreTrainedModel) -> bool:
    """Whether its class came with its folder, and not from transformers."""
    return type(model).__module__.startswith("transformers_modules.")


def _config(folder: Path, options: ImportOptions, say: Say) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json is not one that transformers reads: {error}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder}: is an encoder-decoder ({config.model_type}); reward models here are decoders or encoders")
    text = config.get_text_config()
    if text.pad_token_id is not None and not 0 <= text.pad_token_id < text.vocab_size:
        say(f"pad: config.json names id {text.pad_token_id} of {text.vocab_size} rows, with which transformers does not build the model; it is not used")
        text.pad_token_id = None
    return config


def _readout(found: Found, tensors: Mapping[str, Tensor], options: ImportOptions, say: Say) -> Readout:
    """One output is the reward; of several the user says what each weighs. A head of 2 has no id2label in config.json where they were never named."""
    named = read_json(found.folder / "config.json").get("id2label")
    if isinstance(named, dict):
        outputs = tuple(str(named[key]) for key in sorted(named, key=int))
    else:
        outputs = tuple(f"LABEL_{i}" for i in range(next((len(tensors[name]) for name in HEADS if name in tensors), 1)))
    if found.layout != "classifier" or len(outputs) == 1:
        if options.weights:
            raise ConfigError("--weights are for a head of several outputs; this one has a single reward")
        if found.layout == "classifier" and named is None:
            say("labels: config.json has no id2label, so other tools would build a head of 2; one reward is written")
        return Readout()
    if not options.weights:
        for_example = f"{outputs[0]}=-1 {outputs[1]}=1 (the log-odds of {outputs[1]})" if len(outputs) == 2 else f"{outputs[0]}=1 ..."
        raise ConfigError(f"{found.folder}: its head has the outputs {', '.join(outputs)}; say what the reward is with --weights, for example {for_example}")
    if unknown := set(options.weights) - set(outputs):
        raise ConfigError(f"--weights {', '.join(sorted(unknown))}: the head has no such output, only {', '.join(outputs)}")
    say("reward: " + " + ".join(f"{options.weights[name]:g} x {name}" for name in outputs if options.weights.get(name)))
    return Readout(outputs, tuple(float(options.weights.get(name, 0.0)) for name in outputs))


def _filled(folder: Path, config: Any, layout: str, tensors: dict[str, Tensor], outputs: int, options: ImportOptions, say: Say) -> PreTrainedModel:
    """transformers' own classifier for this config, with these tensors and nothing missing or left over."""
    model_class: Any = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    if model_class is None and not options.trust_remote_code:
        raise ModelError(f"{folder}: transformers has no sequence classifier for model_type {config.model_type!r}")
    config.num_labels = outputs
    given = dict(config.to_dict())
    if model_class is None:  # code of the model's own, which the user has trusted
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                str(folder), config=config, trust_remote_code=True, use_safetensors=options.use_safetensors
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ModelError(f"{folder}: its own code does not load it as a sequence classifier: {str(error).splitlines()[0]}") from error
        return _finished(model, None, tensors, outputs, folder, say)
    with torch.device("meta"):
        empty = model_class(config)
    head = head_name(empty)
    if head is None:
        raise ModelError(f"{folder}: {model_class.__name__} has no single output layer to read a reward from")
    state = as_classifier(layout, tensors, prefix=empty.base_model_prefix, head=head, config=given, value_head=options.value_head)
    dtype = Counter({t.dtype: 0 for t in state.values()})
    for tensor in state.values():
        dtype[tensor.dtype] += tensor.numel() * tensor.is_floating_point()
    try:
        model, info = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype.most_common(1)[0][0], output_loading_info=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its tensors do not fit {model_class.__name__}: {error}") from error
    left_over = {str(name) for name in info["unexpected_keys"]} - {f"{head}.bias"}
    odd = sorted(name for name in left_over if not NOT_OF_A_CLASSIFIER.search(name))
    if odd or info["missing_keys"] or info["mismatched_keys"]:
        raise ModelError(
            f"{folder}: not a {model_class.__name__}: {len(odd)} tensors have no place in it {odd[:4]}, "
            f"{len(info['missing_keys'])} are missing {sorted(map(str, info['missing_keys']))[:4]}"
        )
    if left_over:
        say(f"left out: {', '.join(sorted(left_over)[:4])}{' ...' if len(left_over) > 4 else ''}, which no reward reads")
    return _finished(model, head, state, outputs, folder, say)


def _finished(model: Any, head: str | None, state: Mapping[str, Tensor], outputs: int, folder: Path, say: Say) -> PreTrainedModel:
    """The head at its full precision, with its bias; dropout off; named as its class is named."""
    head = head or head_name(model)
    if head is None:
        raise ModelError(f"{folder}: {type(model).__name__} has no single output layer to read a reward from")
    layer: nn.Linear = model.get_submodule(head)
    if f"{head}.weight" in state:
        layer.weight = nn.Parameter(state[f"{head}.weight"].float())
    bias = state.get(f"{head}.bias")
    if bias is not None and bias.any() and (layer.bias is None or layer.bias.shape != bias.shape):
        say(
            f"bias: {', '.join(f'{b:.6g}' for b in bias.tolist())}, kept as {head}.bias. palate, vLLM (0.33 on) and SGLang add it to the reward; "
            "transformers' class has no place for it, so its rewards are lower by it, all of them alike"
        )
        give_bias(layer, bias)
    elif bias is not None and layer.bias is not None:
        layer.bias = nn.Parameter(bias.float())
    names = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)] if outputs > 1 else list(ONE_REWARD)
    model = as_reward_model(model, names)
    turn_dropout_off(model)
    return model.eval()


def _base_of(folder: Path, options: ImportOptions, say: Say) -> str:
    base = options.base or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder}: adapter_config.json names no base model; give it with --base")
    say(f"base: {base}" + (", as --base says" if options.base else ", as adapter_config.json says"))
    try:
        check_local(str(base))
    except ModelError as error:
        raise ModelError(f"{error}. It is the base that the adapter in {folder} names; give where it lies with --base") from error
    if Path(base).is_dir():
        refuse_code(Path(base), options.trust_remote_code)
        weights = find_weights(Path(base))
        if weights is not None and weights.pickled:
            refuse_pickle(weights.files[0], options.allow_pickle)
    return str(base)


def _of_adapter(folder: Path, options: ImportOptions, say: Say) -> PreTrainedModel:
    """A PEFT adapter merged into its base; the head must be in one of the two."""
    from peft import PeftModel

    base = _base_of(folder, options, say)
    weights = find_weights(folder, ADAPTER_WEIGHTS)
    if weights is None:
        raise ModelError(f"{folder}: has an adapter_config.json, but neither of {', '.join(ADAPTER_WEIGHTS)}")
    names = list(read_tensors(weights, allow_pickle=options.allow_pickle)) if weights.pickled else weights.names()
    heads = head_tensors(names)
    trained_base = any(str(one).endswith("ForSequenceClassification") for one in _config_of(base).architectures or ())
    if not heads and not trained_base:
        raise ModelError(
            f"{folder}: the adapter holds no head ({len(names)} tensors), and its base {base} has none either: the head was trained, or random, and not saved. "
            "PEFT saves it with task_type SEQ_CLS or modules_to_save"
        )
    say(f"head: {heads[0]}" if heads else "head: the base's own")
    model = load_pretrained(base, trust_remote_code=options.trust_remote_code, dtype="auto", use_safetensors=options.use_safetensors)
    fit_tokenizer(model, load_tokenizer(options.tokenizer or str(folder)))
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: the adapter does not hold what its config says it saved, or is not of {base}: {error}") from error
    return as_reward_model(merged).eval()


def _config_of(base: str) -> Any:
    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ModelError(f"{base}: the adapter's base cannot be read; give a folder that has it with --base ({str(error).splitlines()[0]})") from error


def _merged_language_model(folder: Path, options: ImportOptions, say: Say) -> tuple[Any, dict[str, Tensor]]:
    """LLaMA-Factory's adapter is one of a language model, with the value head beside it."""
    from peft import PeftModel

    base = _base_of(folder, options, say)
    weights = find_weights(folder, ADAPTER_WEIGHTS)
    if weights is not None and weights.pickled:
        refuse_pickle(weights.files[0], options.allow_pickle)
    try:
        model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=options.trust_remote_code, dtype="auto", use_safetensors=options.use_safetensors)
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: cannot be merged into {base}: {error}") from error
    return merged.config, dict(merged.state_dict())
