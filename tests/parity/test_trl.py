"""Ours == TRL's: the same batches and seed give the same loss, rewards and gradients for 20 steps.

Both trainers start from the same weights, see the same pre-tokenized pairs in the same order, and use plain SGD without clipping, so that a
difference in any gradient would show in every later loss.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from tests.conftest import chatml_tokenizer, tiny_model
from transformers import TrainerCallback

from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

STEPS = 20


def pairs(margin: bool) -> Dataset:
    g = torch.Generator().manual_seed(0)

    def ids() -> list[int]:
        return torch.randint(5, 200, (int(torch.randint(3, 20, (1,), generator=g)),), generator=g).tolist() + [2]

    rows = [{"chosen_ids": ids(), "rejected_ids": ids()} | ({"margin": float(i % 3)} if margin else {}) for i in range(STEPS * 4)]
    return Dataset.from_list(rows)


class Recorder(TrainerCallback):
    """Gradients before each step and the loss of each log."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.logs: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.logs.append(dict(logs))


COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "learning_rate": 0.02,  # SGD at larger rates turns rounding into divergence
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 7,
    "bf16": False,
    "gradient_checkpointing": False,
}


def run(library: Any, tmp_path: Any, *, margin: bool, **options: Any) -> tuple[Recorder, torch.Tensor]:
    recorder = Recorder()
    trainer_class, config_class = (RewardTrainer, RewardConfig) if library == "palate" else (trl.RewardTrainer, trl.RewardConfig)
    torch.manual_seed(0)
    trainer = trainer_class(
        model=copy.deepcopy(tiny_model("qwen3", seed=1)),
        args=config_class(output_dir=str(tmp_path / str(library)), **{**COMMON, **options}),
        train_dataset=pairs(margin),
        processing_class=chatml_tokenizer(),
        callbacks=[recorder],
    )
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return recorder, weights


@pytest.mark.parametrize(
    ("margin", "options"),
    [(False, {}), (True, {}), (False, {"center_rewards_coefficient": 0.01}), (True, {"center_rewards_coefficient": 0.1})],
    ids=["plain", "margin", "centering", "margin and centering"],
)
def test_twenty_steps_equal_trl(margin: bool, options: dict[str, Any], tmp_path: Any) -> None:
    ours, our_weights = run("palate", tmp_path, margin=margin, **options)
    theirs, their_weights = run("trl", tmp_path, margin=margin, **options)
    assert len(ours.logs) == len(theirs.logs) == STEPS
    for a, b in zip(ours.logs, theirs.logs, strict=True):
        for name in ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    for a, b in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_weights, their_weights, atol=1e-5, rtol=1e-5)
    assert ours.logs[0]["loss"] != ours.logs[-1]["loss"]


def test_text_gives_the_token_ids_of_trl(tmp_path: Any) -> None:
    """Plain text that brings its own blanks, and chat whose template ends in EOS: the same ids as TRL's preparation."""
    rows = [{"prompt": "what is paris?", "chosen": " the capital", "rejected": " a river"}]
    theirs = trl.RewardTrainer(
        model=tiny_model("qwen3"),
        args=trl.RewardConfig(output_dir=str(tmp_path / "t"), **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=chatml_tokenizer(),
    ).train_dataset[0]
    ours = RewardTrainer(
        model=tiny_model("qwen3"),
        args=RewardConfig(output_dir=str(tmp_path / "o"), **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=chatml_tokenizer(),
    ).train_dataset[0]
    assert ours["token_ids"] == [theirs["chosen_ids"], theirs["rejected_ids"]]


def test_configuration_accepts_every_argument_of_trl() -> None:
    """Code written for TRL's RewardConfig and RewardTrainer must run with only the import changed."""
    import dataclasses
    import inspect

    ours = {f.name for f in dataclasses.fields(RewardConfig)}
    assert {f.name for f in dataclasses.fields(trl.RewardConfig)} <= ours
    assert (
        list(inspect.signature(trl.RewardTrainer.__init__).parameters)
        == list(inspect.signature(RewardTrainer.__init__).parameters)[: len(inspect.signature(trl.RewardTrainer.__init__).parameters)]
    )
