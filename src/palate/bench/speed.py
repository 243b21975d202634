"""The measuring itself: contenders take turns on the same batches, so that a busy machine slows all alike; what is reported are ratios.

Useful work is counted as 6 x parameters outside the embeddings x unique tokens for a training step, 2 x for scoring (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1), attention scores left out, and set against a 2048 x 2048 x 2048 product measured between the steps.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from palate.bench.contenders import Step, scoring_pass, synchronize, trainer_step
from palate.bench.workload import Workload, byte_pairs, from_file, random_model
from palate.models.checkpoints import package_versions
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

MATMUL = 2048
MATMUL_REPEATS = 4


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of this machine on a large product, now."""
    a, b = (torch.randn(MATMUL, MATMUL, device=device).to(dtype) for _ in range(2))
    a @ b
    synchronize()
    started = time.perf_counter()
    for _ in range(MATMUL_REPEATS):
        a @ b
    synchronize()
    return 2 * MATMUL**3 * MATMUL_REPEATS / (time.perf_counter() - started)


COMPILED_WARMUP = 6
"""Batches until torch.compile has met lengths of every range that it compiles for; two for the others."""

COMPILED = "+compile"
"""Ending of a contender's name: the same under torch.compile."""


def measure(work: Workload, contenders: Sequence[str], *, kind: str, bf16: bool = False, rounds: int = 5, token_budget: int | None = None) -> dict[str, Any]:
    """Times of all contenders over `rounds` batches in turn, after a few batches each to warm up; medians of per-batch figures.

    kind: `train` or `score`. Returns per contender comparisons/s, sequences/s and unique tokens/s, the share of the matmul rate, and the ratio
    (its time over that of the first contender on the same batch), beside the ratio of the total times.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps: dict[str, Step] = {
        name: trainer_step(name.removesuffix(COMPILED), work, bf16=bf16, compile_model=name.endswith(COMPILED), token_budget=token_budget)
        if kind == "train"
        else scoring_pass(name, work, token_budget=token_budget)
        for name in contenders
    }
    dtype = torch.bfloat16 if bf16 else next(work.model.parameters()).dtype
    weights = sum(p.numel() for name, p in work.model.named_parameters() if "embed" not in name)
    batches = work.batches(rounds + COMPILED_WARMUP)
    batches, warm = batches[:rounds], batches[rounds:]
    for name, step in steps.items():
        for batch in warm if name.endswith(COMPILED) else warm[:2]:
            step(batch)
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for batch in batches:
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - started)
        rates.append(matmul_rate(dtype, device))
    ours = times[contenders[0]]
    flops = (6 if kind == "train" else 2) * weights

    def figures(name: str) -> dict[str, Any]:
        taken = list(zip(times[name], batches, ours, rates, strict=True))

        def median(values: Any) -> float:
            return statistics.median(values)

        return {
            "seconds": median(times[name]),
            "comparisons_per_second": median(sum(len(row["chosen"]) for row in batch) / t for t, batch, _, _ in taken),
            "sequences_per_second": median(sum(len(row["token_ids"]) for row in batch) / t for t, batch, _, _ in taken),
            "unique_tokens_per_second": median(sum(row["tokens"] for row in batch) / t for t, batch, _, _ in taken),
            "share_of_matmul_rate": median(flops * sum(row["tokens"] for row in batch) / t / rate for t, batch, _, rate in taken),
            "ratio": median(t / mine for t, _, mine, _ in taken),
            "ratio_of_totals": sum(times[name]) / sum(ours),
            "ratios": [round(t / mine, 3) for t, _, mine, _ in taken],
        }

    return {
        "kind": kind,
        "bf16": bf16,
        "rounds": rounds,
        "batch_size": work.batch_size,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "contenders": {name: figures(name) for name in contenders},
    }


def peak_memory(source: Mapping[str, Any], name: str, *, kind: str, bf16: bool, rounds: int = 2, token_budget: int | None = None) -> float:
    """Peak memory in MiB of a fresh process that does a few batches of one contender: the accelerator's where there is one, else resident.

    `source`: arguments of `from_file`.
    """
    spec = json.dumps({"source": dict(source), "name": name, "kind": kind, "bf16": bf16, "rounds": rounds, "token_budget": token_budget})
    output = subprocess.run([sys.executable, "-m", "palate.bench.speed", spec], capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1])


def _measure_memory(spec: Mapping[str, Any]) -> float:
    work = from_file(**spec["source"], dtype=torch.float32)
    name, budget = spec["name"], spec["token_budget"]
    if spec["kind"] == "train":
        step = trainer_step(name.removesuffix(COMPILED), work, bf16=spec["bf16"], compile_model=name.endswith(COMPILED), token_budget=budget)
    else:
        step = scoring_pass(name, work, token_budget=budget)
    for batch in work.batches(spec["rounds"]):
        step(batch)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resident()["peak"]


def memory_growth(*, rows: Sequence[int], steps: int = 20) -> dict[str, Any]:
    """Peak resident memory in MiB of training `steps` steps of a tiny decoder on so many rows of an Arrow file, each in a fresh process.

    The rows are written to disk first and mapped, not loaded. `private` leaves out pages of mapped files, which the system can drop at any time.
    """
    results = {}
    for count in rows:
        spec = json.dumps({"growth": count, "steps": steps})
        output = subprocess.run([sys.executable, "-m", "palate.bench.speed", spec], capture_output=True, text=True, check=True).stdout
        results[str(count)] = json.loads(output.strip().splitlines()[-1])
    return {"rows": results}


def _train_on_rows(count: int, steps: int) -> dict[str, float]:
    words = np.array(["river", "stone", "answer", "because", "seven", "blue", "garden", "not", "maybe", "light"])
    draw = np.random.default_rng(0)

    def text() -> str:
        return " ".join(words[draw.integers(0, 10, 12)])

    with TemporaryDirectory() as folder:
        path = f"{folder}/rows.arrow"
        with ArrowWriter(path=path) as writer:
            for _ in range(count):
                prompt = text()
                writer.write({"prompt": prompt, "chosen": f"{text()} yes", "rejected": f"{text()} no"})
            writer.finalize()
        tokenizer = byte_pairs([])
        args = RewardConfig(output_dir=folder, max_steps=steps, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no")
        model = random_model("tiny", tokenizer, torch.float32)
        trainer = RewardTrainer(model, args, train_dataset=Dataset.from_file(path), processing_class=tokenizer)
        trainer.train()
        return resident()


def resident() -> dict[str, float]:
    """Memory of this process in MiB: the peak, what it holds now, and of that what is private (not pages of mapped files)."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            status = {name: value.split()[0] for name, _, value in (line.partition(":") for line in file) if value.strip()}
    except OSError:  # not Linux: only the peak is known (kibibytes; bytes on macOS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
        return {"peak": peak}
    # Not getrusage: its peak is inherited from the process that started this one.
    return {"peak": int(status["VmHWM"]) / 1024, "resident": int(status["VmRSS"]) / 1024, "private": int(status["RssAnon"]) / 1024}


def machine() -> dict[str, Any]:
    """Hardware and versions, for the record beside every figure."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor() or platform.processor(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "versions": package_versions(),
        "python": platform.python_version(),
    }


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), None)
    except OSError:  # not Linux
        return None


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(_train_on_rows(given["growth"], given["steps"]) if "growth" in given else _measure_memory(given)))
