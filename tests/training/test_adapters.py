"""Adapters of every kind train and save the head, load and merge to the same scores; the traps that lose it in other trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from palate.cli.main import main
from palate.errors import ConfigError, ContractError, ModelError
from palate.models.reward_model import load_pretrained
from palate.scoring.contract import check_saved
from palate.scoring.local import load_scorer
from palate.training.adapters import adapter_config, quantization_config
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora"},
    "dora": {"type": "lora", "use_dora": True, "r": 4},
    "rslora on attention": {"type": "lora", "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "the head named already": {"type": "lora", "modules_to_save": ["score"]},
    "ia3": {"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ia3 by its own defaults": {"type": "ia3"},
    "vera": {"type": "vera", "r": 4, "target_modules": ["q_proj", "o_proj"]},
    "loha": {"type": "loha", "target_modules": ["q_proj", "v_proj"]},
}


def train(folder: Path, base: Path, pairs: list[dict], adapter: Any, **options: Any) -> RewardTrainer:
    settings: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, **options}
    args = RewardConfig(output_dir=str(folder), save_strategy="no", disable_tqdm=True, **settings)
    trainer = RewardTrainer(str(base), args, train_dataset=Dataset.from_list(pairs), peft_config=adapter)
    trainer.train()
    return trainer


def head(trainer: RewardTrainer) -> torch.Tensor:
    return next(p for n, p in trainer.model.named_parameters() if "score" in n and p.requires_grad and "lora" not in n)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_head_is_trained_saved_reloaded_and_merged(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path], name: str) -> None:
    start = load_pretrained(str(base_models["qwen3"]), seed=42).score.weight
    trainer = train(tmp_path / "run", base_models["qwen3"], pairs, adapter_config(ADAPTERS[name]))
    assert not torch.allclose(head(trainer), start)
    rewards = trainer.predict(Dataset.from_list(pairs)).predictions
    trainer.save_model(str(tmp_path / "adapter"))
    assert check_saved(tmp_path / "adapter") is None
    exchanges = [(p["prompt"], p[side]) for p in pairs for side in ("chosen", "rejected")]
    np.testing.assert_allclose(load_scorer(tmp_path / "adapter").score(exchanges), rewards.flatten(), rtol=1e-4, atol=1e-5)
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    merged = load_scorer(tmp_path / "merged")
    np.testing.assert_allclose(merged.score(exchanges), rewards.flatten(), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == ["Qwen3ForSequenceClassification"]
    assert main(["doctor", str(tmp_path / "adapter")]) == 0 and main(["doctor", str(tmp_path / "merged")]) == 0
    trainer.save_merged(str(tmp_path / "merged-at-once"))
    assert not (tmp_path / "merged-at-once" / "adapter_config.json").exists()
    np.testing.assert_allclose(load_scorer(tmp_path / "merged-at-once").score(exchanges), rewards.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"])
def test_whatever_task_the_config_names(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path], task: str | None) -> None:
    """LoraConfig() freezes a random head elsewhere; CAUSAL_LM, a command line's default elsewhere, ends in an AttributeError."""
    from peft import LoraConfig

    trainer = train(tmp_path / "run", base_models["qwen3"], pairs, LoraConfig(task_type=task))
    trainer.save_model(str(tmp_path / "adapter"))
    assert any("score" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert check_saved(tmp_path / "adapter") is None


def test_several_outputs_and_a_learned_threshold(tmp_path: Path, base_models: dict[str, Path]) -> None:
    rows = [{"prompt": f"p {i}", "response_1": "a fox", "response_2": "the sea", "label": i % 3} for i in range(9)]
    loss = {"type": "rao_kupper", "length_decorrelation": 0.1}
    trainer = train(tmp_path / "run", base_models["qwen3"], rows, adapter_config({"type": "lora"}), loss=loss, ties="soft")
    trainer.save_model(str(tmp_path / "adapter"))
    assert not any("loss_parameters" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    scorer = load_scorer(tmp_path / "adapter")
    assert scorer.readout.outputs == ("quality", "length") and scorer.contract is not None
    assert scorer.contract.loss_parameters["tie_threshold"] == pytest.approx(trainer._loss_parameters()["tie_threshold"].tolist())
    expected = trainer.predict(Dataset.from_list(rows)).predictions[0]
    np.testing.assert_allclose(scorer.score([("p 0", "a fox"), ("p 0", "the sea")]), expected[::1], rtol=1e-4, atol=1e-5)


def test_a_lost_head_is_found_at_saving(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path]) -> None:
    trainer = train(tmp_path / "run", base_models["qwen3"], pairs, adapter_config({"type": "lora"}))
    trainer.save_model(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if "score" not in key}, file)
    with pytest.raises(ModelError, match="does not hold what its config says"):
        check_saved(tmp_path / "adapter")
    tensors["base_model.model.score.weight"] += 1.0
    save_file(tensors, file)
    with pytest.raises(ContractError, match="what was trained is not all saved"):
        check_saved(tmp_path / "adapter")
    assert main(["doctor", str(tmp_path / "adapter")]) != 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"type": "lorra"}, "did you mean lora"),
        ({"type": "lora", "rank": 8}, "lora has no such field"),
        ({"type": "lora", "use_dorra": True}, "did you mean use_dora"),
    ],
)
def test_bad_adapters_end_with_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        adapter_config(settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could do it")
def test_quantization_needs_a_gpu() -> None:
    with pytest.raises(ModelError, match="needs a CUDA device"):
        quantization_config("4bit", torch.float32)


def test_merge_wants_an_adapter(tmp_path: Path, base_models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(base_models["qwen3"]), str(tmp_path / "out")]) == 4
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_a_learned_threshold_survives_merging_at_once(tmp_path: Path, base_models: dict[str, Path]) -> None:
    rows = [{"prompt": f"p {i}", "response_1": "a fox", "response_2": "the sea", "label": i % 3} for i in range(9)]
    trainer = train(tmp_path / "run", base_models["qwen3"], rows, adapter_config({"type": "lora"}), loss={"type": "davidson"}, ties="soft")
    learned = trainer._loss_parameters()["tie_threshold"].tolist()
    trainer.save_merged(str(tmp_path / "merged"))
    contract = load_scorer(tmp_path / "merged").contract
    assert contract is not None and contract.loss_parameters["tie_threshold"] == pytest.approx(learned)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="4-bit weights need a CUDA device")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_weights_leave_the_head_alone(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path], bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    args = RewardConfig(output_dir=str(tmp_path), max_steps=2, learning_rate=0.01, report_to="none", save_strategy="no", disable_tqdm=True)
    trainer = RewardTrainer(
        str(base_models["qwen3"]),
        args,
        train_dataset=Dataset.from_list(pairs),
        peft_config=adapter_config({"type": "lora"}),
        quantization_config=quantization_config(bits, torch.bfloat16),
    )
    before = head(trainer).detach().clone()
    trainer.train()
    assert head(trainer).dtype == torch.float32 and not torch.equal(before, head(trainer))


@pytest.mark.parametrize("settings", [{"type": "prompt_tuning", "num_virtual_tokens": 4}, {"type": "prefix_tuning", "num_virtual_tokens": 4}])
def test_adapters_that_do_not_fit_are_refused_at_setup(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        train(tmp_path, base_models["qwen3"], pairs, adapter_config(settings))
