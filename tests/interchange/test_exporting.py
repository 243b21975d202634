"""Every export gives the same rewards in what consumes it; what a format cannot say is refused, and a wrong export is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interchange import stacks
from tests.interchange.checkpoints import CHATS, checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from palate.cli.main import main
from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, ContractError, ModelError, StorageError
from palate.interchange import exporting
from palate.interchange.doctor.examine import examine
from palate.interchange.exporting import export_model
from palate.interchange.import_options import ImportOptions
from palate.interchange.importing import import_model
from palate.interchange.merging import merge_saved
from palate.interchange.value_model import ValueModel
from palate.models.checkpoints import RewardStatistics
from palate.scoring.local import load_scorer
from palate.types import Readout

SEVERAL = Readout(("helpful", "long", "polite"), (1.0, -0.25, 0.5))
STEPS = Readout(("bad", "good"), (0.0, 1.0), "min")


def exported(source: Path, output: Path, format: str, **options: Any) -> list[str]:
    said: list[str] = []
    export_model(source, output, format, say=said.append, **options)
    return said


def ids_of(folder: Path) -> list[list[int]]:
    return load_scorer(folder).encoder.encode([as_exchange(chat) for chat in CHATS])


def rewards(folder: Path) -> np.ndarray:
    return load_scorer(folder).score(CHATS)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "bert"])
def test_hf_in_everything_that_reads_classifiers(tmp_path: Path, kind: str) -> None:
    source = checkpoint(tmp_path / "ours", kind)
    exported(source, tmp_path / "hf", "hf")
    expected = rewards(source)
    np.testing.assert_array_equal(rewards(tmp_path / "hf"), expected)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids])).logits.item() for ids in ids_of(source)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    golden = load_scorer(source).contract.golden  # type: ignore[union-attr]
    classify = pipeline("text-classification", model=str(tmp_path / "hf"), device="cpu")
    np.testing.assert_allclose([one["score"] for one in classify([g.text for g in golden])], [g.score for g in golden], atol=1e-5)


@pytest.mark.slow
def test_hf_rewards_a_grpo_step(tmp_path: Path) -> None:
    """TRL's GRPOTrainer with reward_funcs="folder": the rewards of a several-headed model, folded, in a real step."""
    from datasets import Dataset
    from tests.conftest import DECODER
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    source = checkpoint(tmp_path / "ours", readout=SEVERAL)
    exported(source, tmp_path / "hf", "hf", fold=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    policy = Qwen3ForCausalLM(
        Qwen3Config(**DECODER, head_dim=8, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=str(tmp_path / "hf"),
        args=GRPOConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=6,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": CHATS[0][:1]}] * 2),
        processing_class=tokenizer,
    )
    prompts, completions = [chat[:-1] for chat in CHATS], [chat[-1:] for chat in CHATS]
    found = trainer._calculate_rewards([{"prompt": p} for p in prompts], prompts, completions, [[1]] * len(CHATS))
    np.testing.assert_allclose(found[:, 0].detach().numpy(), rewards(source), atol=1e-5)
    trainer.train()
    assert any("reward" in row for row in trainer.state.log_history)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "llama", "bert"])
def test_hf_in_cross_encoders(tmp_path: Path, kind: str) -> None:
    """It renders messages by the folder's template, without [CLS] and [SEP], which an encoder's template leaves to the tokenizer: the doctor says that."""
    from sentence_transformers import CrossEncoder

    exported(checkpoint(tmp_path / "ours", kind), tmp_path / "hf", "hf")
    found = CrossEncoder(str(tmp_path / "hf"), device="cpu").predict(CHATS)
    told = {check.name: check.passed for check in examine(tmp_path / "hf", ["sentence-transformers"])}
    assert told["sentence-transformers: ids"] == np.allclose(found, rewards(tmp_path / "hf"), atol=1e-5) == (kind != "bert")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_openrlhf(tmp_path: Path, kind: str) -> None:
    source = checkpoint(tmp_path / "ours", kind, rewards=RewardStatistics(0.5, 2.0, 1.1, 40))
    exported(source, tmp_path / "out", "openrlhf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["value_head_prefix"], config["mean"], config["std"]) == ("score", 0.5, 2.0)
    assert config["architectures"][0].endswith("ForSequenceClassification")  # RewardModel would be an embedder in vLLM
    np.testing.assert_allclose(rewards(tmp_path / "out"), rewards(source), atol=1e-5)  # and it stays a checkpoint of ours


@pytest.mark.parametrize(("kind", "bias"), [("qwen3", None), ("llama", [0.375])])
def test_llamafactory_there_and_back(tmp_path: Path, kind: str, bias: list[float] | None) -> None:
    source = checkpoint(tmp_path / "ours", kind, bias=bias)
    said = exported(source, tmp_path / "out", "llamafactory")
    head = load_file(tmp_path / "out" / "value_head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)}
    assert head["v_head.summary.bias"].item() == (bias[0] if bias else 0.0)
    assert any("lm_head: zero" in line for line in said)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM") and "problem_type" not in config
    import_model(tmp_path / "out", tmp_path / "back", ImportOptions(), say=lambda line: None)
    np.testing.assert_allclose(rewards(tmp_path / "back"), rewards(source), atol=1e-5)


def test_llamafactory_takes_the_output_layer_of_a_base(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours")
    model = AutoModelForCausalLM.from_config(AutoModelForSequenceClassification.from_pretrained(source).config)
    model.save_pretrained(tmp_path / "base")
    exported(source, tmp_path / "out", "llamafactory", base=str(tmp_path / "base"))
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"], model.lm_head.weight.detach())


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_deepspeed_chat_there_and_back(tmp_path: Path, kind: str) -> None:
    source = checkpoint(tmp_path / "ours", kind)
    said = exported(source, tmp_path / "out", "deepspeed-chat")
    state = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = -(-len(tokenizer) // 8) * 8
    assert state["rwtransformer.embed_tokens.weight"].shape == (rows, 32) and state["v_head.weight"].shape == (1, 32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == rows and config["pad_token_id"] == config["end_token_id"] == tokenizer.eos_token_id and config["n_embd"] == 32
    assert any("reads the token before EOS" in line for line in said)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    if kind == "llama":  # whose own pad token DeepSpeed-Chat keeps
        options = ImportOptions(format="deepspeed-chat", allow_pickle=True, end_text="")
        import_model(tmp_path / "out", tmp_path / "back", options, say=lambda line: None)
        np.testing.assert_allclose(rewards(tmp_path / "back"), rewards(source), atol=1e-5)
        return
    critic = ValueModel.from_checkpoint(source)
    before_eos = [critic(torch.tensor([ids]))[0, -2].item() for ids in ids_of(source)]
    for number, end_text in enumerate(["", "<|endoftext|>", " the end"]):  # behind the template's EOS, which is its padding, nothing is read
        back = tmp_path / f"back {number}"
        import_model(tmp_path / "out", back, ImportOptions(allow_pickle=True, end_text=end_text), say=lambda line: None)
        np.testing.assert_allclose(rewards(back), before_eos, atol=1e-5)


def test_deepspeed_chat_shrinks_a_padded_embedding(tmp_path: Path) -> None:
    """Qwen's embeddings have more rows than its tokenizer has tokens; DeepSpeed-Chat's loader would silently leave such a table out."""
    source = checkpoint(tmp_path / "ours", rows=700)
    exported(source, tmp_path / "out", "deepspeed-chat")
    rows = -(-len(AutoTokenizer.from_pretrained(tmp_path / "out")) // 8) * 8
    assert rows < 700 and torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)["rwtransformer.embed_tokens.weight"].shape[0] == rows


@pytest.mark.parametrize(("kind", "bias"), [("qwen3", None), ("llama", [-0.5])])
def test_token_classification(tmp_path: Path, kind: str, bias: list[float] | None) -> None:
    source = checkpoint(tmp_path / "ours", kind, bias=bias)
    exported(source, tmp_path / "out", "token-classification")
    model, info = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", num_labels=1, output_loading_info=True)
    assert not info["missing_keys"] and model.dropout.p == 0.0
    with torch.no_grad():
        found = [model.eval()(torch.tensor([ids])).logits[0, -1, 0].item() for ids in ids_of(source)]
    np.testing.assert_allclose(found, rewards(source), atol=1e-5)


@pytest.mark.parametrize("format", ["deepspeed-chat", "openrlhf", "llamafactory", "token-classification"])
@pytest.mark.parametrize("bias", [None, [1.0, 2.0, -1.0]])
def test_several_outputs_are_folded_into_one(tmp_path: Path, format: str, bias: list[float] | None) -> None:
    """By hand: the folded row is 1 w_1 - .25 w_2 + .5 w_3, the bias 1 - .5 - .5 = 0."""
    source = checkpoint(tmp_path / "ours", readout=SEVERAL, bias=bias)
    drop = bias is not None and format in ("deepspeed-chat", "openrlhf")
    said = exported(source, tmp_path / "out", format, drop_bias=drop)
    assert "3 outputs folded into one reward" in said[0]
    files = list((tmp_path / "out").glob("*head.safetensors")) or list((tmp_path / "out").glob("*.safetensors"))
    tensors = load_file(files[0]) if files else torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    head = next(t for name, t in tensors.items() if name in ("v_head.weight", "score.weight", "v_head.summary.weight"))
    w = load_file(source / "model.safetensors")["score.weight"]
    torch.testing.assert_close(head, (w[0] - 0.25 * w[1] + 0.5 * w[2])[None])


def test_hf_keeps_several_outputs_unless_it_is_folded(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours", readout=SEVERAL)
    assert any("--fold" in line for line in exported(source, tmp_path / "all", "hf"))
    exported(source, tmp_path / "one", "hf", fold=True)
    for folder, labels in (("all", 3), ("one", 1)):
        assert len(json.loads((tmp_path / folder / "config.json").read_text())["id2label"]) == labels
        np.testing.assert_allclose(rewards(tmp_path / folder), rewards(source), atol=1e-5)
    exported(checkpoint(tmp_path / "encoder", "bert", readout=SEVERAL), tmp_path / "folded", "hf", fold=True)
    np.testing.assert_allclose(rewards(tmp_path / "folded"), rewards(tmp_path / "encoder"), atol=1e-5)


def test_step_rewards_keep_their_classes(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours", readout=STEPS)
    exported(source, tmp_path / "out", "token-classification")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    exported(source, tmp_path / "hf", "hf")
    for format in ("openrlhf", "deepspeed-chat", "llamafactory"):
        with pytest.raises(ModelError, match="P\\(good\\) of each step"):
            exported(source, tmp_path / format, format)


@pytest.mark.parametrize("format", ["hf", "openrlhf", "deepspeed-chat"])
def test_a_bias_is_dropped_only_where_that_is_said(tmp_path: Path, format: str) -> None:
    source = checkpoint(tmp_path / "ours", bias=[0.5])
    with pytest.raises(ModelError, match="bias.*0.5.*--drop-bias"):
        exported(source, tmp_path / "out", format)
    exported(source, tmp_path / "out", format, drop_bias=True)
    if format == "hf":
        np.testing.assert_allclose(rewards(tmp_path / "out"), rewards(source) - 0.5, atol=1e-5)


def test_adapters(tmp_path: Path) -> None:
    """As trained; with another name of its base; and out of the merged checkpoint: rank 2 as it was, the same rewards."""
    from peft import LoraConfig, get_peft_model

    base = checkpoint(tmp_path / "base")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    expected = rewards(tmp_path / "adapter")
    assert np.abs(expected - rewards(base)).max() > 0.01
    exported(tmp_path / "adapter", tmp_path / "hf", "hf")
    exported(tmp_path / "adapter", tmp_path / "copy", "adapter")
    said = exported(tmp_path / "hf", tmp_path / "out", "adapter", base=str(base))
    assert "4 layers" in said[0] and "up to 2 dimensions" in said[0]
    for folder in ("hf", "copy", "out"):
        np.testing.assert_allclose(rewards(tmp_path / folder), expected, atol=1e-5)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1).eval()
    with torch.no_grad():
        np.testing.assert_allclose([found(torch.tensor([ids])).logits.item() for ids in ids_of(base)], expected, atol=1e-5)
    assert not [check for check in examine(tmp_path / "out", ["trl", "nemo-rl", "ms-swift"]) if not check.passed]
    (tmp_path / "out" / "laplace.safetensors").write_bytes(b"of this head")
    merge_saved(tmp_path / "out", tmp_path / "merged")
    np.testing.assert_allclose(rewards(tmp_path / "merged"), expected, atol=1e-5)
    assert (tmp_path / "merged" / "laplace.safetensors").read_bytes() == b"of this head"
    with pytest.raises(ModelError, match=r"no reward_contract.json.*palate import"):
        merge_saved(tmp_path / "adapter", tmp_path / "never")
    with pytest.raises(ModelError, match="embed_tokens.*trained in full"):
        exported(checkpoint(tmp_path / "other", initializer_range=0.1), tmp_path / "never", "adapter", base=str(base))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 0.01 * torch.randn(64, 32)
    save_file(weights, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "hf" / "reward_contract.json").unlink()
    with pytest.raises(ModelError, match="up_proj.weight differs in 32 of 32 dimensions"):
        exported(tmp_path / "hf", tmp_path / "never", "adapter", base=str(base))
    with pytest.raises(ModelError, match="another architecture|shape"):
        exported(checkpoint(tmp_path / "llama", "llama"), tmp_path / "never", "adapter", base=str(base))


def test_rounded_weights(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours", dtype=torch.bfloat16)
    for format in ("hf", "deepspeed-chat", "llamafactory", "token-classification", "openrlhf"):
        exported(source, tmp_path / format, format)
    assert torch.load(tmp_path / "deepspeed-chat" / "pytorch_model.bin", weights_only=True)["rwtransformer.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("format", ["openrlhf", "deepspeed-chat", "llamafactory", "token-classification"])
def test_encoders_are_refused_where_values_of_tokens_are_read(tmp_path: Path, format: str) -> None:
    with pytest.raises(ModelError, match="pooled first token"):
        exported(checkpoint(tmp_path / "ours", "bert"), tmp_path / "out", format)


def test_a_foreign_classifier_is_exported_without_a_contract(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours")
    (source / "reward_contract.json").unlink()
    exported(source, tmp_path / "out", "hf")
    assert len(load_scorer(tmp_path / "out").contract.golden) == 3  # type: ignore[union-attr]
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2, ignore_mismatched_sizes=True)
    model.save_pretrained(source)
    with pytest.raises(ModelError, match="num_labels=2"):
        exported(source, tmp_path / "never", "hf")


def test_a_foreign_classifier_that_leaves_its_reward_open_is_imported_first(tmp_path: Path) -> None:
    """Padding is EOS, so that transformers reads before the one that ends a chat; a pad id without a row; no tokenizer."""
    stacks.classifier(tmp_path / "eos", "llama", pad="</s>", labels=True)
    with pytest.raises(ModelError, match="its padding is EOS.*`palate import` settles that"):
        exported(tmp_path / "eos", tmp_path / "never", "hf")
    reward = stacks.classifier(tmp_path / "ends otherwise", "qwen3", pad="<|im_end|>", labels=True)  # a line break is read whoever asks
    exported(tmp_path / "ends otherwise", tmp_path / "kept", "hf")
    np.testing.assert_allclose(rewards(tmp_path / "kept"), [reward(chat) for chat in CHATS], atol=1e-5)
    stacks.classifier(tmp_path / "row", "llama", pad=None, labels=True)
    stacks.edit_config(tmp_path / "row", pad_token_id=10_000)
    with pytest.raises(ModelError, match="does not build the model.*`palate import` mends that"):
        exported(tmp_path / "row", tmp_path / "never", "hf")
    stacks.classifier(tmp_path / "mute", "qwen3", pad=None, labels=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer.*`palate import --tokenizer`"):
        exported(tmp_path / "mute", tmp_path / "never", "hf")


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_a_random_head_is_not_exported(tmp_path: Path, base_models: dict[str, Path], kind: str) -> None:
    """A base model, or an adapter that lost its head, loads with one that was drawn a moment ago; it would score the same wherever it is loaded."""
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ModelError, match="no trained reward head is in it"):
        exported(base_models[kind], tmp_path / "never", "hf")
    model = AutoModelForSequenceClassification.from_pretrained(base_models[kind], num_labels=1)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj" if kind == "qwen3" else "query"])).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base_models[kind]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="no trained reward head is in it"):
        exported(tmp_path / "adapter", tmp_path / "never", "hf")


def test_a_lost_head_is_not_exported(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "ours")
    (source / "reward_contract.json").unlink()
    tensors = load_file(source / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no trained reward head is in it"):
        exported(source, tmp_path / "never", "hf")


@pytest.mark.parametrize(
    ("format", "options", "says"),
    [
        ("openrlhf", {"zero_bias": True}, "openrlhf has no place for one"),
        ("llamafactory", {"zero_bias": True}, "llamafactory has a bias anyway"),
        ("hf", {"base": "model"}, "nothing of a base is written as hf"),
        ("huggingface", {}, "expected one of hf, adapter"),
    ],
)
def test_options_that_a_format_does_not_know(tmp_path: Path, format: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        exported(tmp_path / "ours", tmp_path / "never", format, **options)


def test_a_gate_and_a_posterior(tmp_path: Path) -> None:
    """Weights that depend on the prompt are in no other stack's format; an uncertainty is left behind, and that is said."""
    source = checkpoint(tmp_path / "ours", readout=SEVERAL)
    (source / "laplace.safetensors").touch()
    assert "stays behind" in exported(source, tmp_path / "out", "hf")[0]
    (source / "gate.json").write_text("{}")
    with pytest.raises(ModelError, match="gated: what each output weighs depends on the prompt"):
        exported(source, tmp_path / "never", "openrlhf")


@pytest.mark.parametrize("format", list(exporting.FORMATS))
def test_a_wrong_export_is_not_kept(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that loses a little of the head, in whatever format, is found by reading the folder as its consumer does."""
    source = checkpoint(tmp_path / "ours")
    right = exporting.FORMATS[format]

    def wrong(source: Any, folder: Path, base: str | None) -> Any:
        before = source.head.weight
        source.head.weight = torch.nn.Parameter(before * 1.01)
        yield from right.write(source, folder, base)
        source.head.weight = before

    monkeypatch.setitem(exporting.FORMATS, format, right._replace(write=wrong))
    base = str(checkpoint(tmp_path / "base")) if format == "adapter" else None
    with pytest.raises(ContractError, match="Nothing was kept"):
        exported(source, tmp_path / "out", format, base=base)
    assert {path.name for path in tmp_path.iterdir()} <= {"ours", "base", "cache"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "ours")
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "openrlhf"]) == 0
    assert "score the same" in capsys.readouterr().out
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "hf"]) == StorageError.exit_code
    assert main(["export", str(source), str(tmp_path / "x"), "--format", "adapter"]) == 2
    assert "--base MODEL writes its difference" in capsys.readouterr().err
