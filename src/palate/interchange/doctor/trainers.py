"""Trainers that take a reward model as judge or critic: OpenRLHF, NeMo-RL, LLaMA-Factory, DeepSpeed-Chat."""

from __future__ import annotations

from collections.abc import Iterator

from palate.interchange.doctor.checks import Check, Folder, one_label, pad_check
from palate.interchange.doctor.python_consumers import bias_check, loads_as_classifier
from palate.interchange.weights import find_weights


def openrlhf_checks(folder: Folder) -> Iterator[Check]:
    yield loads_as_classifier(folder)
    prefix = folder.config.get("value_head_prefix", "score")
    if not folder.is_adapter:
        there = f"{prefix}.weight" in folder.tensors
        advice = f"it reads {prefix}.weight (value_head_prefix of the config, or its default score)"
        absent = ", which is not among the tensors: `palate export --format openrlhf` writes a decoder's; an encoder is served to it (`palate serve`)"
        yield Check("head", there, advice + ("" if there else absent))
        yield one_label(folder, "its head has one output")
    yield bias_check(folder)
    statistics = "mean" in folder.config and "std" in folder.config
    yield Check(
        "normalisation",
        True,
        "normalize_reward uses the config's mean and std"
        if statistics
        else "no mean and std in the config, so normalize_reward changes nothing; `palate export --format openrlhf` writes what was measured",
    )
    yield folder.same_ids("openrlhf", "Give --reward.remote_url a file with openrlhf_reward, or the address of `palate serve`")
    yield Check("/get_reward", True, "cuts long text on the right and appends no EOS: send text that ends with EOS, or `palate serve`, which has this endpoint")


def nemo_rl_checks(folder: Folder) -> Iterator[Check]:
    yield loads_as_classifier(folder)
    yield one_label(folder, "it loads with num_labels=1")
    yield pad_check(folder, "it pools as transformers does")
    yield bias_check(folder)
    yield folder.same_ids("nemo-rl", "Use NemoRLEnvironment of palate.serving.adapters")
    yield Check("settings", True, "env.reward_model.reward_model_cfg: {enabled: true, reward_model_type: bradley_terry}; DTensor without packing")


def llamafactory_checks(folder: Folder) -> Iterator[Check]:
    head = (folder.path / "value_head.safetensors").is_file()
    yield Check("value head", head, "value_head.safetensors beside a language model" + ("" if head else "; `palate export --format llamafactory` writes it"))
    named = folder.architecture.endswith("ForCausalLM") or folder.is_adapter
    yield Check(
        "language model",
        named,
        f"{folder.architecture}; it loads AutoModelForCausalLM and reads the last hidden state" + ("" if named else ". `palate export` writes that too"),
    )


def deepspeed_chat_checks(folder: Folder) -> Iterator[Check]:
    weights = find_weights(folder.path)
    pickled = weights is not None and weights.pickled and weights.files[0].name == "pytorch_model.bin"
    advice = "pytorch_model.bin with rwtransformer.* and v_head.weight"
    yield Check("weights", pickled, advice if pickled else f"{advice} is needed; `palate export --format deepspeed-chat` writes it")
    rows, tokens = folder.config.get("vocab_size"), len(folder.tokenizer) if folder.tokenizer is not None else None
    expected = None if tokens is None else -(-tokens // 8) * 8
    yield Check(
        "vocabulary",
        rows == expected,
        f"{rows} rows, {tokens} tokens; it makes {expected} rows, and leaves out a table of another size without a word"
        + ("" if rows == expected else ". `palate export --format deepspeed-chat` writes as many"),
    )
    pad, eos = (folder.tokenizer.pad_token_id, folder.tokenizer.eos_token_id) if folder.tokenizer is not None else (None, None)
    yield Check(
        "pad token",
        True,
        "it sets pad to EOS unless the tokenizer is Llama's, and then reads the token before EOS"
        + ("" if pad != eos else "; this model's pad is EOS")
        + ": train with loss.type token_divergence, whose every token has a value, or keep a pad token of its own",
    )
