"""What scoring costs against the number of rows: seconds and memory of `palate score` into shards, by the local engine and by Ray Data actors.

    python benchmarks/batch_scoring.py [--rows 1000 10000 100000] [--workers 2] [--output benchmarks/results/batch_scoring.json]

A tiny random decoder, one thread a process: what is measured is the engine, not the model. Seconds are of scoring alone (the first part to the last);
memory is the highest of any scoring process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def checkpoint(folder: Path) -> None:
    import torch
    from datasets import Dataset

    from palate import RewardConfig, RewardTrainer
    from palate.bench.workload import byte_pairs, random_model

    torch.set_num_threads(1)
    tokenizer = byte_pairs([])
    rows = [{"prompt": f"p {i}", "chosen": "yes it is", "rejected": "no"} for i in range(8)]
    args = RewardConfig(output_dir=str(folder), max_steps=1, max_length=128, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = RewardTrainer(random_model("tiny", tokenizer, torch.float32), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.save_model()


def measure(model: Path, data: Path, output: Path, flags: list[str]) -> dict[str, Any]:
    """Run the command and watch its processes."""
    command = [sys.executable, "-m", "palate", "score", "--model", str(model), "--data", str(data), "--output", str(output), "--shard-rows", "1000", *flags]
    started = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        for one in psutil.process_iter(["name", "memory_info", "pid"]):
            scoring = one.info["pid"] == process.pid or "ShardScorer" in (one.info["name"] or "")
            peak = max(peak, one.info["memory_info"].rss if scoring and one.info["memory_info"] else 0)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    done = sorted(path.stat().st_mtime for path in output.glob("*.done"))
    begun = min(path.stat().st_mtime for path in [output / "manifest.json"])
    return {"seconds": round(time.monotonic() - started, 1), "scoring_seconds": round(done[-1] - begun, 1), "peak_mib": round(peak / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "batch_scoring.json")
    options = parser.parse_args()
    from palate.models.checkpoints import package_versions

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint(folder / "model")
        for count in options.rows:
            data = folder / f"{count}.jsonl"
            with data.open("w") as file:
                for i in range(count):
                    file.write(
                        json.dumps({"id": i, "prompt": f"question {i % 97} {'and so on ' * (i % 5)}", "response": f"answer {i} {'x ' * (i % 9)}"}) + "\n"
                    )
            for engine, flags in {"local": [], "ray": ["--engine", "ray", "--workers", str(options.workers)]}.items():
                results.append({"rows": count, "engine": engine, **measure(folder / "model", data, folder / f"{engine}-{count}", flags)})
                print(results[-1], flush=True)
    record = {"hardware": f"{os.cpu_count()} CPU cores", "workers": options.workers, "versions": package_versions(), "results": results}
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
