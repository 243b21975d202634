"""Each consumer's rules: a sound checkpoint passes, and every trap that a consumer has is found where it is, with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.interchange import stacks
from tests.interchange.checkpoints import checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from palate.cli.main import main
from palate.errors import ConfigError
from palate.interchange.doctor.examine import CONSUMERS, examine
from palate.interchange.doctor.servers import vllm_activation, vllm_task
from palate.interchange.exporting import export_model
from palate.types import Readout

IDENTITY = "torch.nn.modules.linear.Identity"


def failures(folder: Path, *consumers: str) -> dict[str, str]:
    return {check.name: check.advice for check in examine(folder, consumers) if not check.passed}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {kind: checkpoint(root / kind, kind) for kind in ("qwen3", "llama", "bert")}


def edited(source: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(source, folder)
    stacks.edit_config(folder, **config)
    return folder


# --- ports ---


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("Qwen3ForSequenceClassification", "classify"),
        ("LlamaForTokenClassification", "classify"),
        ("LlamaForCausalLM", "generate"),
        ("RewardModel", "embed"),
        ("Qwen2ForRewardModeling", "embed"),
        ("LlamaModel", "embed"),
        ("GPT2LMHeadModel", "generate"),
    ],
)
def test_what_vllm_makes_of_an_architecture(architecture: str, task: str) -> None:
    assert vllm_task(architecture) == task


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"problem_type": "regression", "id2label": {"0": "reward"}}, "identity"),
        ({"problem_type": "regression", "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "identity"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}, "id2label": {"0": "a"}}, "identity"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "tanh"),
        ({"id2label": {"0": "LABEL_0"}}, "sigmoid"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "softmax"),
        ({}, "softmax"),
    ],
)
def test_what_vllm_does_to_a_reward(config: dict[str, Any], activation: str) -> None:
    assert vllm_activation(config) == activation


# --- sound folders ---


@pytest.mark.parametrize(
    ("kind", "consumers"),
    [
        ("qwen3", ["transformers", "sentence-transformers", "trl", "vllm", "verl", "openrlhf", "nemo-rl", "ms-swift", "rewardbench"]),
        ("llama", ["transformers", "sentence-transformers", "trl", "vllm", "sglang", "verl", "nemo-rl", "ms-swift", "rewardbench", "openrlhf"]),
        ("bert", ["transformers", "vllm", "sglang", "tei", "rewardbench"]),
    ],
)
def test_a_sound_checkpoint_passes(folders: dict[str, Path], kind: str, consumers: list[str]) -> None:
    assert failures(folders[kind], *consumers) == {}


@pytest.mark.parametrize("format", ["hf", "openrlhf", "llamafactory", "deepspeed-chat"])
def test_exports_pass_where_they_go(folders: dict[str, Path], tmp_path: Path, format: str) -> None:
    export_model(folders["qwen3"], tmp_path / "out", format, say=lambda line: None)
    assert failures(tmp_path / "out", {"hf": "trl"}.get(format, format)) == {}


def test_sglang_wants_a_bias_of_qwen(folders: dict[str, Path], tmp_path: Path) -> None:
    found = failures(folders["qwen3"], "sglang")
    assert set(found) == {"sglang: bias"} and "0.18" in found["sglang: bias"]  # 1 / sqrt(32)
    export_model(folders["qwen3"], tmp_path / "out", "hf", zero_bias=True, say=lambda line: None)
    assert failures(tmp_path / "out", "sglang") == {}
    assert load_file(tmp_path / "out" / "model.safetensors")["score.bias"].tolist() == [0.0]


# --- traps ---


@pytest.mark.parametrize(
    ("changes", "consumer", "found"),
    [
        ({"problem_type": None}, "vllm", set()),  # the other key still says Identity
        ({"problem_type": None, "sentence_transformers": None}, "vllm", {"vllm: activation"}),
        ({"problem_type": None}, "transformers", {"transformers: raw scores"}),
        ({"problem_type": None}, "verl", {"verl: raw scores"}),
        ({"sentence_transformers": None}, "sentence-transformers", {"sentence-transformers: activation"}),
        ({"architectures": ["RewardModel"]}, "vllm", {"vllm: task"}),
        ({"architectures": ["RewardModel"]}, "trl", {"trl: loads"}),
        ({"architectures": ["MistralForSequenceClassification"]}, "sglang", {"sglang: class"}),
        ({"id2label": ...}, "tei", {"tei: label maps", "tei: one label", "tei: backend"}),
        ({"id2label": {"0": "a", "1": "b"}}, "trl", {"trl: one label"}),
        ({"value_head_prefix": "value_head"}, "openrlhf", {"openrlhf: head"}),
    ],
)
def test_a_config_that_a_consumer_misreads(folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], consumer: str, found: set[str]) -> None:
    folder = edited(folders["llama"], tmp_path / "out", **changes)
    assert {name for name in failures(folder, consumer) if name.startswith(f"{consumer}:")} == found


@pytest.mark.parametrize("consumer", ["transformers", "trl", "vllm", "sglang", "verl", "nemo-rl", "rewardbench"])
def test_a_pad_token_that_is_eos(folders: dict[str, Path], tmp_path: Path, consumer: str) -> None:
    folder = edited(folders["llama"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    assert f"{consumer}: pad token" in failures(folder, consumer)


def test_a_bias_that_transformers_leaves_out(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ours", bias=[0.5])
    assert set(failures(folder, "transformers", "vllm", "sglang", "trl")) == {"transformers: bias"}


def test_trl_and_nemo_end_a_chat_otherwise(tmp_path: Path) -> None:
    """An OpenRLHF model of a template without EOS reads at " </s>"; its own closed template keeps every stack at the same ids, an open one does not."""
    stacks.classifier(tmp_path / "theirs", "llama", pad=None, labels=True)
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}")
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--format", "trl"]) == 0
    found = failures(tmp_path / "ours", "trl", "nemo-rl", "openrlhf")
    assert set(found) == {"nemo-rl: ids", "openrlhf: ids"}
    assert "</s>" in found["nemo-rl: ids"]


def test_encoders_lose_their_frame_where_a_chat_is_rendered(folders: dict[str, Path]) -> None:
    found = failures(folders["bert"], "trl", "sentence-transformers")
    assert set(found) == {"trl: ids", "sentence-transformers: ids"} and "'[CLS]'" in found["trl: ids"]


def test_rendered_chats_of_an_encoder_go_to_vllm_as_text(folders: dict[str, Path]) -> None:
    advice = {check.name: check.advice for check in examine(folders["bert"], ["vllm"])}
    assert advice["vllm: ids"] == 'send the golden form as "input"; "messages" lose the special tokens'


def test_plain_text_gets_no_eos_in_grpo(tmp_path: Path) -> None:
    """A model of plain text that reads at EOS: TRL would read at the last word. One of a plain classifier's kind is read alike."""
    for name, form in (("trl", "trl"), ("bare", "classifier")):
        stacks.classifier(tmp_path / name, "qwen3", pad="<|endoftext|>", labels=True)
        assert main(["import", str(tmp_path / name), str(tmp_path / f"{name} out"), "--format", form, "--template", "none"]) == 0
    found = failures(tmp_path / "trl out", "trl", "vllm")
    assert "trl_reward(folder)" in found["trl: ids"] and "Send token ids" in found["vllm: ids"]  # EOS is put by its id
    advice = {check.name: check.advice for check in examine(tmp_path / "bare out", ["vllm"])}
    assert advice["vllm: ids"].startswith('send the golden form as "input"')
    assert "trl: ids" in failures(tmp_path / "bare out", "trl")  # the separator of prompt and response, which TRL joins bare
    contract = tmp_path / "bare out" / "reward_contract.json"
    whole = json.loads(contract.read_text())
    for golden in whole["golden"]:
        golden["exchange"] |= {"prompt": "", "response": golden["text"]}
    contract.write_text(json.dumps(whole))
    assert set(failures(tmp_path / "bare out", "trl")) == {"trl: chat template"}


def test_a_label_may_have_any_name_and_two_have_none(tmp_path: Path) -> None:
    """transformers leaves its own names of two labels out of config.json, which is no head of none."""
    stacks.classifier(tmp_path / "one", "qwen3", pad="<|endoftext|>", labels=True)
    assert "transformers: labels" not in failures(tmp_path / "one", "transformers")
    folder = checkpoint(tmp_path / "two", readout=Readout(("LABEL_0", "LABEL_1"), (-1.0, 1.0)))
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    assert failures(folder, "transformers", "vllm") == {}


def test_a_pad_id_outside_the_embedding(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = json.loads((folders["llama"] / "config.json").read_text())["vocab_size"]
    found = failures(edited(folders["llama"], tmp_path / "out", pad_token_id=rows))
    assert f"the embedding has {rows} rows" in found["pad id agrees"]


def test_an_adapter_of_dora_is_to_be_merged(folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(folders["qwen3"])
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], use_dora=True)).save_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path / "out")
    found = failures(tmp_path / "out", "trl", "vllm", "sentence-transformers")
    assert "DoRA" in found["trl: loads"] and "`palate import` makes a full checkpoint" in found["vllm: loads"]  # without a contract there is no merging
    assert "sentence-transformers: activation" not in found  # its base's config is another's


def test_double_bos_is_pointed_out(folders: dict[str, Path]) -> None:
    advice = {check.name: check.advice for check in examine(folders["llama"], ["vllm"])}
    assert "would add BOS" in advice["vllm: double BOS"]
    advice = {check.name: check.advice for check in examine(folders["qwen3"], ["vllm"])}
    assert "cannot occur" in advice["vllm: double BOS"]


def test_verl_needs_a_tokenizer_that_puts_bos(folders: dict[str, Path], tmp_path: Path) -> None:
    """Gemma 3's way, BOS from the template alone: verl takes it off, and no one puts it back."""
    folder = edited(folders["llama"], tmp_path / "out")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    assert "verl: BOS" in failures(folder, "verl") and "trl: ids" not in failures(folder, "trl")


def test_several_outputs(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ours", readout=Readout(("a", "b"), (1.0, 0.5)))
    assert set(failures(folder, "transformers", "vllm", "trl", "tei")) == {"trl: one label", "tei: one label", "tei: backend"}


def test_other_layouts_are_pointed_to_their_export(folders: dict[str, Path]) -> None:
    found = failures(folders["qwen3"], "deepspeed-chat", "llamafactory")
    assert "palate export --format deepspeed-chat" in found["deepspeed-chat: weights"]
    assert "palate export --format llamafactory" in found["llamafactory: value head"]


def test_a_foreign_folder_is_judged_by_its_consumer(tmp_path: Path) -> None:
    stacks.classifier(tmp_path / "theirs", "qwen3", pad="<|im_end|>")
    found = failures(tmp_path / "theirs", "transformers", "vllm")
    assert {"transformers: raw scores", "transformers: labels", "vllm: activation", "vllm: pad token", "reward_contract.json"} <= set(found)


def test_a_broken_weight_file_does_not_end_the_examination(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(folders["llama"], tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "score.weight"}, folder / "model.safetensors", metadata={"format": "pt"})
    assert {"loads", "openrlhf: head"} <= set(failures(folder, "openrlhf"))


def test_the_command(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folders["llama"]), "--for", "trl,vllm"]) == 0
    assert "vllm: activation" in capsys.readouterr().out
    assert main(["doctor", str(folders["llama"]), "--for", "all"]) == 4
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in CONSUMERS) and "1 of tei" in printed
    assert main(["doctor", str(folders["llama"]), "--for", "vlm"]) == 2
    with pytest.raises(ConfigError, match="vlm"):
        list(examine(folders["llama"], ["vlm"]))
