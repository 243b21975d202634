"""Each kind of supervision end to end on real rows: load, train a few steps, evaluate, save, load, score. Skipped where the data are not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.loading import load_groups
from palate.scoring.local import load_scorer
from palate.training.config import RewardConfig
from palate.training.supervision import plan
from palate.training.trainer import RewardTrainer

pytestmark = pytest.mark.slow


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def votes(folder: Path, count: int) -> list[dict[str, Any]]:
    texts = {(row["topic"], row["id"]): row for row in lines(folder / "ukpconvarg_arguments.jsonl", 10_000)}
    rows = []
    for row in lines(folder / "ukpconvarg_votes.jsonl", count):
        first, second = (texts[row["topic"], row[name]] for name in ("arg_1", "arg_2"))
        rows.append({"prompt": first["prompt"], "response_1": first["text"], "response_2": second["text"], "votes": [vote for _, vote, _ in row["votes"]]})
    return rows


# name -> (file, rows, loss, options, metric of evaluation that must be there, groups used)
RUNS: dict[str, tuple[str, int, dict[str, Any], dict[str, Any], str, int]] = {
    "votes as soft labels": ("ukpconvarg_votes", 120, {}, {"ties": "soft"}, "eval_accuracy", 120),
    "votes with ties": ("ukpconvarg_votes", 400, {"type": "rao_kupper"}, {"ties": "soft"}, "eval_accuracy", 400),
    "plackett_luce": ("alpaca_eval_kwise", 6, {"type": "plackett_luce"}, {}, "eval_accuracy", 6),
    "all pairs": ("alpaca_eval_kwise", 6, {"type": "bradley_terry"}, {}, "eval_accuracy", 6),
    "softmax of scores": ("alpaca_eval_kwise", 6, {"type": "listwise_softmax", "temperature": 3.0}, {}, "eval_accuracy", 6),
    "soft labels": ("alpaca_eval_direct_soft", 40, {}, {}, "eval_accuracy", 40),
    "regression": ("gpt4_rated_mt_bench", 60, {"type": "regression"}, {}, "eval_mean_reward", 60),
    "regression, K-wise": ("gpt4_rated_vicuna", 8, {"type": "gaussian"}, {}, "eval_mean_reward", 8),
    "outcome": ("gsm8k_orm", 80, {"type": "outcome"}, {}, "eval_mean_reward", 80),
    "outcome at every token": ("gsm8k_orm", 80, {"type": "token_outcome"}, {}, "eval_mean_reward", 80),
    "rankings with ties": ("qa_feedback_kwise_human", 40, {"type": "plackett_luce"}, {}, "eval_accuracy", 36),
    "rankings, ties by Davidson": ("qa_feedback_kwise_human", 40, {"type": "davidson"}, {"ties": "soft"}, "eval_accuracy", 40),
    "token level": ("hh_harmless", 80, {"type": "token_divergence"}, {}, "eval_accuracy", 80),
    "token level as in DeepSpeed-Chat": ("hh_harmless", 80, {"type": "token_divergence", "padding": "include"}, {}, "eval_accuracy", 80),
}


@pytest.mark.parametrize("name", RUNS)
def test_real_rows(tmp_path: Path, shared_data: Path, name: str) -> None:
    file, count, loss, options, metric, used = RUNS[name]
    rows = votes(shared_data, count) if file == "ukpconvarg_votes" else lines(shared_data / f"{file}.jsonl", count)
    groups = load_groups(rows, on_bad_row="drop").groups
    args = RewardConfig(
        output_dir=str(tmp_path / "run"),
        loss=loss,
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=16_384,
        logging_steps=1,
        chat_template_path="plain",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    outputs = plan(args.loss_settings()).readout.outputs
    model = tiny_model("qwen3", seed=1, num_labels=len(outputs), max_position_embeddings=16_384)
    trainer = RewardTrainer(model=model, args=args, train_dataset=groups, eval_dataset=groups[:24], processing_class=TOKENIZERS["qwen3"]())
    assert sum(trainer.reports["train"].kept.values()) == used
    trainer.train()
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"]) and math.isfinite(metrics[metric])
    first, *_, last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(first) and last != first
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    rewards = scorer.score([exchange for group in groups[:24] for exchange in group.exchanges()], on_long="nan")
    assert np.nanmax(rewards) == pytest.approx(metrics["eval_max_reward"], rel=1e-4, abs=1e-5)
