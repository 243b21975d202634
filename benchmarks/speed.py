"""Speed and memory against TRL, transformers' pipeline and our own padded path: the same batches in turn, medians of ratios.

    python benchmarks/speed.py [--works hh_fp32 hh_bf16 ...] [--data FOLDER] [--output benchmarks/results/speed.json]

Each work is run alone and added to the output as it is done. On a CPU two threads are set: more than the physical cores only slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from palate.bench.speed import machine, measure, memory_growth, peak_memory
from palate.bench.workload import from_file, synthetic
from palate.sample import base_model_path

SHAPE = "qwen3-30m"
SWEEP = [(64, (64, 64)), (256, (64, 64)), (512, (128, 128)), (1000, (100, 100)), (256, (256, 256)), (256, (64,) * 4), (256, (64,) * 9)]
"""(prompt, responses) in tokens."""


def pairs(folder: Path, *, bf16: bool) -> dict[str, Any]:
    work = from_file(folder / "hh_harmless.jsonl", model=SHAPE, batch_size=16, max_length=1024, dtype=torch.float32, limit=400)
    return measure(work, ["shared", "shared+compile", "padded", "trl"], kind="train", bf16=bf16, rounds=9)


def kwise(folder: Path, *, bf16: bool = False) -> dict[str, Any]:
    """One group of 4 to 9 responses a step, all its comparisons; TRL gets them as pairs, 16 at a time."""
    work = from_file(folder / "alpaca_eval_kwise.jsonl", model=SHAPE, batch_size=1, max_length=1024, dtype=torch.float32, limit=60)
    return measure(work, ["shared", "padded", "trl"], kind="train", bf16=bf16, rounds=7)


def encoder(folder: Path) -> dict[str, Any]:
    work = from_file(folder / "ukpconvarg_pairs_train.jsonl", model=str(base_model_path()), batch_size=16, max_length=512, dtype=torch.float32, limit=400)
    return measure(work, ["packed", "padded", "trl"], kind="train", rounds=9)


def best_of_16(_: Path) -> dict[str, Any]:
    work = synthetic(SHAPE, prompt=500, responses=(100,) * 16, groups=10, batch_size=2)
    return measure(work, ["shared", "packed", "padded"], kind="score", rounds=5)


def both_sides(folder: Path) -> dict[str, Any]:
    work = from_file(folder / "hh_harmless.jsonl", model=SHAPE, batch_size=32, max_length=1024, dtype=torch.float32, limit=400)
    return measure(work, ["shared", "padded", "pipeline"], kind="score", rounds=5)


def memory(folder: Path) -> dict[str, Any]:
    """MiB at the peak of a process that trains on a few batches of hh_harmless, beside one that only loads model and data."""
    source = {"path": str(folder / "hh_harmless.jsonl"), "model": SHAPE, "batch_size": 16, "max_length": 1024, "limit": 400}
    return {
        f"{name} {'bf16' if bf16 else 'fp32'}": round(peak_memory(source, name, kind="train", bf16=bf16))
        for bf16 in (False, True)
        for name in ("shared", "trl")
    }


def sweep(_: Path) -> dict[str, Any]:
    """The gain of sharing over padding, without any padding to win, against the ratio of tokens."""
    results = []
    for prompt, responses in SWEEP:
        tokens = prompt + sum(responses)
        work = synthetic(SHAPE, prompt=prompt, responses=responses, groups=30, batch_size=max(1, 3000 // tokens))
        gain = measure(work, ["shared", "padded"], kind="train", rounds=5)["contenders"]["padded"]["ratio"]
        bound = (prompt * len(responses) + sum(responses)) / tokens
        results.append({"prompt": prompt, "responses": list(responses), "gain": gain, "bound": bound, "of_bound": gain / bound})
        print(results[-1], flush=True)
    return {"results": results}


def growth(_: Path) -> dict[str, Any]:
    """Memory of training on 10 000 and on 1 000 000 rows."""
    return memory_growth(rows=(10_000, 1_000_000))


WORKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hh_fp32": lambda folder: pairs(folder, bf16=False),
    "hh_bf16": lambda folder: pairs(folder, bf16=True),
    "kwise": kwise,
    "encoder": encoder,
    "best_of_16": best_of_16,
    "both_sides": both_sides,
    "memory": memory,
    "sweep": sweep,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PALATE_SHARED_DATA", "../shared/data")))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(2)
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    for name in options.works:
        results[name] = WORKS[name](options.data)
        results["machine"] = machine()
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        for contender, figures in results[name].get("contenders", {}).items():
            print(f"{name:12} {contender:16} {figures['comparisons_per_second']:8.2f} comparisons/s, ratio {figures['ratio']:.2f}", flush=True)


if __name__ == "__main__":
    main()
