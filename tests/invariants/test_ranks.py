"""One rank == two: the same global batch gives the same losses, metrics, evaluation and weights under torchrun (gloo, CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from palate.scoring.local import load_scorer
from palate.scoring.sources import open_scorer
from palate.scoring.uncertainty import UncertainScorer

SCRIPT = """
import json, sys
import numpy as np
import torch
import palate.training.embeddings
from tests.conftest import chatml_tokenizer
from palate.data.loading import load_groups
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

output, batch, budget, wrapping, loss, packing = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]), sys.argv[6]
sharding = {"fsdp": {"fsdp": "full_shard", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]}}}
sharding |= {
    f"zero{stage}": {"deepspeed": {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}, "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "zero_force_ds_cpu_optimizer": False,
    }} for stage in (2, 3)
}
palate.training.embeddings.embed_prompts = lambda prompts, encoder=None: np.array([[1.0, len(p), ord(p[-1]) - 50] for p in prompts], dtype=np.float32)
scores = ([1, 0], [3, 2, 1], [2, 2, 1], [4, 3, 2, 1])
if wrapping.startswith("zero"):  # on GPUs TrainingArguments does this
    import deepspeed
    deepspeed.init_distributed("gloo")
rows = []
for i in range(16):
    responses = [f"answer {s} of {i} {'x' * s}" + "!" * j for j, s in enumerate(scores[i % 4])]
    rows.append({"prompt": f"p{i}", "responses": responses, "scores": scores[i % 4]})
groups = load_groups(rows).groups
trainer = RewardTrainer(
    model=sys.argv[7],
    args=RewardConfig(
        output_dir=output, per_device_train_batch_size=batch, per_device_eval_batch_size=3, learning_rate=0.1, optim="sgd", logging_steps=1,
        num_train_epochs=2, report_to="none", ties="soft", save_strategy="no", use_cpu=True, disable_tqdm=True, eval_strategy="epoch",
        token_budget=budget, loss=loss, packing=packing,
        **sharding.get(wrapping, {}),
    ),
    train_dataset=groups, eval_dataset=groups[:7], processing_class=chatml_tokenizer(),
)
trainer.train()
assert packing == "padded" or (trainer.engine.packing == "shared" and trainer.packing_checked)
trainer.save_model()
if trainer.is_world_process_zero():
    json.dump(trainer.state.log_history, open(output + "/history.json", "w"))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


LOSSES = {
    "pairs": {"type": "bradley_terry"},
    "learned threshold": {"type": "rao_kupper"},
    "across": {
        "terms": [{"type": "bradley_terry"}, {"type": "plackett_luce", "weight": 0.5}],
        "zero_sum": 0.1,
        "cross_prompt": {"weight": 0.5, "own_floor": 0.2},
    },
    "members": {"type": "bradley_terry", "members": {"count": 3, "bootstrap": True}, "centering": 0.01},
}


CASES = [
    ("ddp", "pairs", "auto"),
    ("ddp", "pairs", "padded"),
    ("ddp", "learned threshold", "auto"),
    ("ddp", "across", "auto"),
    ("ddp", "members", "auto"),
    ("fsdp", "pairs", "auto"),
    ("fsdp", "across", "padded"),
    ("fsdp", "members", "padded"),
    ("zero2", "across", "auto"),
    ("zero3", "pairs", "auto"),
    ("zero3", "across", "auto"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("wrapping", "loss", "packing"), CASES)
def test_two_ranks_equal_one(wrapping: str, loss: str, packing: str, tmp_path: Path, base_models: dict[str, Path]) -> None:
    """Two ranks cut their batches into parts, not as many on each; one rank computes each batch at once. Terms across the step see both ranks.

    The model is a folder without a head, so that a head drawn while its parameters are split (ZeRO-3) would show.
    """
    if wrapping.startswith("zero"):
        pytest.importorskip("deepspeed")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    for ranks, batch, budget in ((1, 8, 100_000), (2, 4, 60)):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={ranks}",
            str(script),
            str(tmp_path / str(ranks)),
            str(batch),
            str(budget),
            wrapping if ranks > 1 else "one",
            json.dumps(LOSSES[loss]),
            packing,
            str(base_models["qwen3"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / n / "history.json").read_text()) for n in "12")
    compared = 0
    for a, b in zip(one, two, strict=True):
        for name in (
            "loss",
            "accuracy",
            "margin",
            "mean_reward",
            "min_reward",
            "max_reward",
            "num_tokens",
            "episode",
            "eval_loss",
            "eval_accuracy",
            "eval_margin",
            "eval_comparisons",
            "zero_sum",
            "cross_prompt",
            "plackett_luce",
            *(f"{of}bradley_terry#{member}" for of in ("", "eval_") for member in (1, 2, 3)),
        ):
            if name in a:
                assert a[name] == pytest.approx(b[name], abs=1e-5), name
                compared += 1
    assert compared > 30
    states = [load_file(tmp_path / n / "model.safetensors") for n in "12"]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-5, rtol=1e-5)
    texts = [(f"p{i}", f"answer {i} {'x' * i}") for i in range(5)]
    one_rank, two_ranks = (load_scorer(tmp_path / n).outputs(texts) for n in "12")
    np.testing.assert_allclose(two_ranks, one_rank, rtol=1e-4, atol=1e-5)
    if loss == "members":
        assert one_rank.std(axis=1).max() > 0.01, "three members, not one three times"


@pytest.mark.slow
def test_adapters_of_one_run_on_two_ranks_are_those_on_one(tmp_path: Path, base_models: dict[str, Path], pairs: list[dict], write_jsonl: Any) -> None:
    """`model.members` through the command: each member has the weights, and the ensemble the rewards and uncertainties, that one rank gives."""
    command = [sys.executable, "-m", "palate", "train", "--model.name_or_path", str(base_models["qwen3"]), "--model.adapter", "{type: lora, r: 2}"]
    command += [
        "--model.members",
        "2",
        "--data.train",
        str(write_jsonl(pairs)),
        "--data.eval.split",
        "0.3",
        "--training.max_steps",
        "4",
        "--training.use_cpu",
        "true",
    ]
    command += ["--training.learning_rate", "0.1", "--training.optim", "sgd", "--training.report_to", "none", "--training.bf16", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ranks, batch in ((1, 4), (2, 2)):
        own = ["--training.output_dir", str(tmp_path / str(ranks)), "--training.per_device_train_batch_size", str(batch)]
        own += ["--launch.nproc", str(ranks)] if ranks > 1 else []
        done = subprocess.run([*command, *own], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    for member in ("member-1", "member-2"):
        one, two = (load_file(tmp_path / n / member / "adapter_model.safetensors") for n in "12")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-5)
        assert json.loads((tmp_path / "2" / member / "run.json").read_text())["world_size"] == 2
    texts = [(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    one_rank, two_ranks = (open_scorer(f"ensemble:{tmp_path / n}", device="cpu").scorer for n in "12")
    assert isinstance(one_rank, UncertainScorer) and isinstance(two_ranks, UncertainScorer)
    for own, theirs in zip(one_rank.estimate(texts), two_ranks.estimate(texts), strict=True):
        np.testing.assert_allclose(theirs, own, rtol=1e-3, atol=1e-4)
    assert one_rank.estimate(texts).uncertainty.max() > 0.01
