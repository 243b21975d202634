"""Consumers that load a classifier in Python: transformers, sentence-transformers, TRL, RewardBench, ms-swift."""

from __future__ import annotations

from collections.abc import Iterator

from palate.interchange.doctor.checks import Check, Folder, one_label, pad_check
from palate.interchange.weights import read_json

IDENTITY = "torch.nn.modules.linear.Identity"

REWARDBENCH_LENGTH = 512  # default of its --max_length


def loads_as_classifier(folder: Folder) -> Check:
    if folder.is_adapter and read_json(folder.path / "adapter_config.json").get("use_dora"):
        return Check("loads", False, f"an adapter of DoRA, of which from_pretrained gives other rewards (peft 0.21); {folder.merging}")
    if folder.is_adapter:
        return Check("loads", True, f"an adapter: from_pretrained needs num_labels={len(folder.outputs)} and the base; {folder.merging}")
    named = folder.architecture.endswith("ForSequenceClassification") and folder.is_classifier
    advice = folder.architecture if named else f"{folder.architecture}; a *ForSequenceClassification with safetensors is needed. `palate import` makes one"
    return Check("loads", named, advice)


def bias_check(folder: Folder) -> Check:
    return Check(
        "bias",
        not folder.has_bias,
        "score.bias is left out by transformers' class: every reward is lower by it. `palate export --format hf --drop-bias` makes that the reward"
        if folder.has_bias
        else "the head has none, as transformers' class",
    )


def transformers_checks(folder: Folder) -> Iterator[Check]:
    yield loads_as_classifier(folder)
    if folder.is_adapter:
        return
    same = folder.labels == list(folder.outputs) or len(folder.labels) == len(folder.outputs) == 1
    why = "" if same else f" in config.json (two where it names none) for {', '.join(folder.outputs)}; AutoModel builds a head of as many, and fails"
    yield Check("labels", same, ", ".join(folder.labels) + why)
    yield Check(
        "raw scores",
        folder.config.get("problem_type") == "regression",
        f"problem_type is {folder.config.get('problem_type')!r}; without 'regression', pipeline('text-classification') gives a sigmoid "
        "unless it is called with function_to_apply='none'",
    )
    yield pad_check(folder, "it reads the right-most token that is not padding: with pad == EOS the one before EOS, without a pad token no batch at all")
    yield bias_check(folder)
    yield double_bos(folder, "pipeline and a plain tokenizer call")


def double_bos(folder: Folder, who: str) -> Check:
    written, put = folder.bos()
    both = written and put
    return Check(
        "double BOS",
        True,
        f"{who} would add BOS to rendered text that has it; give messages, add_special_tokens=False, or the golden form without BOS"
        if both
        else "cannot occur: not both the template and the tokenizer put BOS",
    )


def sentence_transformers_checks(folder: Folder) -> Iterator[Check]:
    """CrossEncoder.predict([messages]) renders the folder's template, as TRL does; with a template there, a text becomes a message too."""
    yield loads_as_classifier(folder)
    activation = (folder.config.get("sentence_transformers") or {}).get("activation_fn")
    if not folder.is_adapter:
        yield Check("activation", activation == IDENTITY, f"activation_fn is {activation}; without Identity, CrossEncoder gives a sigmoid of one label")
    yield folder.same_ids("trl", "Score with load_scorer, or with `palate serve`")
    yield bias_check(folder)


def trl_checks(folder: Folder) -> Iterator[Check]:
    """GRPOTrainer and RLOOTrainer with reward_funcs="folder"; `.logits[:, 0]`, the folder's own template, no special tokens added."""
    yield loads_as_classifier(folder)
    yield one_label(folder, "it loads with num_labels=1 and reads the first output alone")
    yield pad_check(folder, "it writes the tokenizer's pad token, or else EOS, into the model's config")
    template = folder.tokenizer is not None and bool(folder.tokenizer.chat_template)
    yield Check(
        "chat template", template, "chats are rendered by the reward model's own template" + ("" if template else ": there is none, so give plain text")
    )
    remedy = "Give reward_funcs trl_reward(folder) of palate.serving.adapters"
    yield folder.same_bare_text(remedy) or folder.same_ids("trl", remedy)
    yield Check("bias", True, "is left out, which no advantage notices" if folder.has_bias else "the head has none")


def rewardbench_checks(folder: Folder) -> Iterator[Check]:
    yield loads_as_classifier(folder)
    yield one_label(folder, "it reads one score")
    yield pad_check(folder, "it falls back to EOS")
    yield bias_check(folder)
    yield Check(
        "8 bit", True, "it loads models in 8 bit unless their name has llama-3: pass --not_quantized (or --torch_dtype bfloat16), else rewards are rounded"
    )
    longest = folder.contract.max_length if folder.contract else None
    yield Check(
        "length",
        True,
        f"--max_length is {REWARDBENCH_LENGTH} by default and cuts; "
        + (f"pass --max_length {longest}, as in training" if longest else "nothing says what this model took in training: pass what holds your longest text"),
    )
    yield Check("device", True, "its rewards need a CUDA device")


def ms_swift_checks(folder: Folder) -> Iterator[Check]:
    yield loads_as_classifier(folder)
    yield one_label(folder, "it gives the raw score for one label alone, and logits of classes otherwise")
    yield Check("command", True, "--task_type seq_cls --num_labels 1 --problem_type regression, and --reward_model for RL; it uses templates of its own")
