"""Training on packed rows: the same run as on padded ones, whatever the budget, the accumulation and the source of the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.loading import load_groups
from palate.errors import ConfigError, ModelError
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

STEPS = 30


def groups() -> list[Any]:
    """Groups of two to five responses, of several lengths, some with ties and margins left out by the loader's rules."""
    rows = []
    for i in range(24):
        scores = list(range(2 + i % 4))
        rows.append(
            {"prompt": f"tell me about {'the sea ' * (1 + i % 7)}{i}", "responses": [f"answer {s} {'x ' * (s * i % 9)}" for s in scores], "scores": scores}
        )
    return load_groups(rows).groups


def run(folder: Path, kind: str = "qwen3", data: Any = None, **options: Any) -> RewardTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.003,  # at 0.01 rounding grows tenfold in ten steps, between two padded runs too
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    trainer = RewardTrainer(model=tiny_model(kind, seed=1), args=RewardConfig(**settings), train_dataset=data or groups(), processing_class=TOKENIZERS[kind]())
    trainer.train()
    return trainer


def history(trainer: RewardTrainer) -> list[dict[str, float]]:
    names = ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "num_tokens", "episode")
    return [{name: entry[name] for name in names} for entry in trainer.state.log_history if "loss" in entry]


def assert_same_run(one: RewardTrainer, other: RewardTrainer) -> None:
    a, b = history(one), history(other)
    assert len(a) == len(b) == one.args.max_steps
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=1e-6)
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_thirty_steps_packed_and_padded(kind: str, tmp_path: Path) -> None:
    padded = run(tmp_path / "padded", kind, packing="padded")
    packed = run(tmp_path / "packed", kind, packing="packed")
    automatic = run(tmp_path / "auto", kind)
    assert (padded.engine.packing, packed.engine.packing, automatic.engine.packing) == ("padded", "packed", "packed" if kind == "bert" else "shared")
    assert history(padded)[0]["loss"] != history(padded)[-1]["loss"]
    assert_same_run(padded, packed)
    assert_same_run(padded, automatic)


@pytest.mark.parametrize("options", [{"token_budget": 1}, {"token_budget": 60}, {"token_budget": 60, "packing": "padded"}], ids=str)
def test_a_budget_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", max_steps=10, token_budget=100_000)
    cut = run(tmp_path / "cut", max_steps=10, **options)
    inputs = cut.data_collator([cut.train_dataset[i] for i in range(4)])
    assert len(inputs["parts"]) > 1
    assert_same_run(whole, cut)


def test_accumulation_and_checkpointing_change_nothing(tmp_path: Path) -> None:
    one = run(tmp_path / "one", max_steps=6)
    several = run(tmp_path / "several", max_steps=6, per_device_train_batch_size=1, gradient_accumulation_steps=4, token_budget=40, gradient_checkpointing=True)
    assert_same_run(one, several)


def test_a_stream_is_packed_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"tell me about the sea {i}", "chosen": f"yes {i}", "rejected": "no " * (1 + i % 5)} for i in range(24)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    packed = run(tmp_path / "packed", data=stream, max_steps=5)
    padded = run(tmp_path / "padded", data=stream, max_steps=5, packing="padded")
    assert packed.engine.packing == "shared"
    assert_same_run(packed, padded)


def test_evaluation_is_the_same_in_every_layout(tmp_path: Path) -> None:
    results = []
    for packing, budget in (("padded", None), ("shared", None), ("shared", 50), ("packed", 50)):
        trainer = run(tmp_path / f"{packing}{budget}", packing=packing, token_budget=budget, max_steps=1, learning_rate=0.0, per_device_eval_batch_size=5)
        metrics = trainer.evaluate(groups())
        results.append({key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second"))})
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


def test_resuming_gives_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    through = run(tmp_path / "through", max_steps=8, token_budget=60)
    run(tmp_path / "halves", max_steps=4, token_budget=60, save_strategy="steps", save_steps=4)
    second = RewardTrainer(
        model=tiny_model("qwen3", seed=9),
        args=dataclasses.replace(through.args, output_dir=str(tmp_path / "halves")),
        train_dataset=groups(),
        processing_class=TOKENIZERS["qwen3"](),
    )
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    for p, q in zip(through.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_bfloat16_run_passes_the_check_and_keeps_its_golden_examples(tmp_path: Path) -> None:
    """The first batch is compared in float32, without the autocast that a prepared model carries; so are the golden examples."""
    from palate.scoring.local import load_scorer

    trainer = run(tmp_path, max_steps=3, bf16=True)
    assert trainer.engine.packing == "shared" and trainer.packing_checked
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    assert scorer.contract is not None and scorer.contract.golden


def broken(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A layer that looks at its neighbour in the row: it breaks packing in a way that no config shows."""
    return output + 3 * output.roll(1, dims=1)


def test_a_model_that_is_not_exact_falls_back_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def trained(packing: str) -> RewardTrainer:
        model = tiny_model("qwen3", seed=1)
        model.model.layers[0].mlp.register_forward_hook(broken)
        args = RewardConfig(
            output_dir=str(tmp_path / packing), max_steps=4, report_to="none", save_strategy="no", use_cpu=True, packing=packing, logging_steps=1, seed=3
        )
        trainer = RewardTrainer(model=model, args=args, train_dataset=groups(), processing_class=TOKENIZERS["qwen3"]())
        trainer.train()
        return trainer

    with pytest.raises(ModelError, match="shared is not exact for this model: packed rows give"):
        trained("shared")
    automatic = trained("auto")
    assert automatic.engine.packing == "padded" and "packed rows give" in automatic.engine.reason
    assert any("packing: padded (packed rows give" in message for message in caplog.messages)
    # padded from the first step on: the same run as the padded one
    assert_same_run(trained("padded"), automatic)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="packing is 'tight', expected one of auto, shared, packed, padded"):
        RewardConfig(output_dir="x", packing="tight")
    with pytest.raises(ConfigError, match="token_budget is 0"):
        RewardConfig(output_dir="x", token_budget=0)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path: Path) -> None:
    eager = run(tmp_path / "eager", max_steps=4)
    compiled = run(tmp_path / "compiled", max_steps=4, torch_compile=True)
    for x, y in zip(history(eager), history(compiled), strict=True):
        assert x == pytest.approx(y, abs=1e-4)
