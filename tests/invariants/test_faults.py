"""kill -9 at any moment, resume, and the weights are those of a run that was never stopped."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from palate.cli.main import main
from palate.training.launch import newest_checkpoint
from palate.training.resume import COMPLETE, checkpoints, last_complete, mark_complete, remove_incomplete

KILLS = 20
STEPS = 12


def in_a_child(arguments: Sequence[str], *, kill_after: float | None = None) -> int:
    """`palate ...` in a forked process (imports are done), its exit code; negative where it was killed."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(main(list(arguments)))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path, base_models: dict[str, Path], pairs: list[dict], write_jsonl: Any) -> None:
    """Half of them while data are read, steps are made and checkpoints written; every step saves, so that most moments are in the middle of a save."""
    data = write_jsonl([{**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(pairs * 4)])

    def run(folder: Path, *flags: str) -> list[str]:
        settings = {
            "model.name_or_path": base_models["qwen3"],
            "data.train": data,
            "training.output_dir": folder,
            "training.max_steps": STEPS,
            "training.save_steps": 1,
            "training.save_total_limit": 3,
            "training.per_device_train_batch_size": 4,
            "training.learning_rate": "1e-2",
            "training.report_to": "none",
            "training.use_cpu": "true",
        }
        return ["train", *(part for key, value in settings.items() for part in (f"--{key}", str(value))), *flags]

    started = time.monotonic()
    assert in_a_child(run(tmp_path / "whole")) == 0
    length = time.monotonic() - started
    wanted = weights(tmp_path / "whole")
    draw, killed, halves, resumed_from = random.Random(0), 0, 0, set()
    while killed < KILLS:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        if in_a_child(run(folder), kill_after=draw.uniform(0.0, length)) >= 0:
            continue  # it was done before
        killed += 1
        halves += any(not (path / COMPLETE).is_file() for _, path in checkpoints(folder))
        last = last_complete(folder)
        resumed_from.add(last.name if last else None)
        began = (folder / "run.yaml").is_file()
        if not began:
            shutil.rmtree(folder, ignore_errors=True)
        assert in_a_child(run(folder, *(["--resume"] if began else []))) == 0
        assert weights(folder) == wanted, f"after kill {killed}, from {last}"
    print(f"{killed} kills, {halves} left a checkpoint half-written, resumed from {sorted(map(str, resumed_from))}")
    assert len(resumed_from) > 3, "the kills did not spread over the run"


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_with_a_sentence(tmp_path: Path, base_models: dict[str, Path], pairs: list[dict], write_jsonl: Any) -> None:
    """One of two processes is killed: the other is ended, the command names the last whole checkpoint, and the run goes on from there."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "palate", "train", "--model.name_or_path", str(base_models["qwen3"]), "--data.train", str(write_jsonl(pairs))]
    command += ["--training.output_dir", str(out), "--training.use_cpu", "true", "--training.report_to", "none", "--training.save_steps", "5"]
    command += ["--training.per_device_train_batch_size", "2", "--launch.nproc", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, "--training.max_steps", "100000"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if last_complete(out) or run.poll() is not None:
            break
        time.sleep(0.2)
    (torchrun,) = psutil.Process(run.pid).children()
    torchrun.children()[1].kill()
    _, errors = run.communicate(timeout=120)
    last = last_complete(out)
    assert run.returncode == 4 and last is not None
    assert errors.strip().splitlines()[-1] == f"palate train: one of 2 processes failed (see above); the last checkpoint is {last}; go on with --resume"
    again = subprocess.run(
        [*command, "--training.max_steps", str(int(last.name.split("-")[1]) + 3), "--resume"], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert (out / "run.json").is_file()


def test_half_written_checkpoints_are_never_picked_up(tmp_path: Path) -> None:
    """By number, not by name or date; without its mark a folder is not a checkpoint."""
    for step in (2, 10, 9, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 11:
            mark_complete(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 9, 10, 11]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert remove_incomplete(tmp_path) == [tmp_path / "checkpoint-11"] and not (tmp_path / "checkpoint-11").exists()
    assert (tmp_path / "checkpoint-best").is_dir()


def test_the_newest_checkpoint_of_members_is_that_of_the_one_that_wrote_last(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for written, (member, step) in enumerate(((1, 4), (2, 2), (10, 1))):
        folder = tmp_path / f"member-{member}" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        mark_complete(folder, step)
        os.utime(folder, (written, written))
    assert newest_checkpoint(tmp_path) == tmp_path / "member-10" / "checkpoint-1"
