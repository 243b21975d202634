"""Every kind of bad input ends with its own sentence and exit code; nothing is lost and nothing half-written remains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from palate.cli.main import main


@pytest.fixture
def train(tmp_path: Path, base_models: dict[str, Path], write_jsonl, pairs: list[dict], capsys: pytest.CaptureFixture[str]):
    """Run `palate train` on `rows` with extra flags; returns (exit code, what stood on stderr)."""

    def run(*flags: str, rows: list[dict[str, Any]] | None = None, model: str = "qwen3") -> tuple[int, str]:
        path = write_jsonl(pairs if rows is None else rows)
        base = {
            "--model.name_or_path": str(base_models[model]),
            "--data.train": str(path),
            "--training.output_dir": str(tmp_path / "out"),
            "--training.max_steps": "2",
            "--training.use_cpu": "true",
            "--training.report_to": "none",
        }
        given = {flag.split("=")[0] for flag in flags}
        arguments = [part for key, value in base.items() if key not in given for part in (key, value)]
        code = main(["train", *arguments, *flags])
        return code, capsys.readouterr().err

    return run


def one(**change: Any) -> list[dict[str, Any]]:
    return [{"prompt": "p", "chosen": "good", "rejected": "bad"}, {"prompt": "p", "chosen": "good", "rejected": "bad", **change}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (one(chosen=5), ["line 2", "column `chosen` holds int 5"]),
        (one(chosen=""), ["line 2", "empty side"]),
        (one(chosen="bad"), ["line 2", "identical sides", "data.on_bad_row: drop"]),
        (one(margin=float("nan")), ["line 2", "column `margin` holds nan"]),
        (one(margin=-0.5), ["line 2", "`margin` is -0.5"]),
        ([{"prompt": "p", "responses": ["a", "b"], "ratings": [1]}], ["line 1", "ragged", "1 entries for 2 responses"]),
        ([{"prompt": "p", "chosen": "a", "rejectd": "b"}], ["line 1", "did you mean `rejected` by `rejectd`"]),
        ([{"prompt": "p", "response": "only one"}], ["nothing is left to train on", "1 without a comparison"]),
    ],
)
def test_rows(train, tmp_path: Path, rows: list[dict], words: list[str]) -> None:
    code, error = train(rows=rows)
    assert code == 3
    for word in words:
        assert word in error
    assert not (tmp_path / "out" / "run.yaml").exists() and not list((tmp_path / "out").glob("*"))


def test_broken_line(train, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": \n')
    code, error = train(f"--data.train={path}")
    assert code == 3 and "broken.jsonl line 2: broken line" in error


def test_missing_file(train, tmp_path: Path) -> None:
    code, error = train(f"--data.train={tmp_path / 'pref.jsonl'}")
    assert code == 3 and "no such file" in error and "did you mean prefs.jsonl" in error


def test_everything_too_long(train) -> None:
    code, error = train("--data.max_length=8")
    assert code == 3 and "12 longer than 8 tokens" in error
    code, error = train("--data.max_length=8", "--data.length_policy=error")
    assert code == 3 and "more than max_length 8" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loss.centring=0.01"], "flag --loss.centring: unknown key `loss.centring`; did you mean `loss.centering`?"),
        (["--training.learning_rte=1"], "unknown key `training.learning_rte`; did you mean `training.learning_rate`?"),
        (["--training.max_length=9"], "`training.max_length` is set with data.max_length"),
        (["--loss.label_smoothing=0.7"], "`loss.label_smoothing` is 0.7"),
        (["--losses.type=x"], "unknown key `losses`; did you mean `loss`?"),
        (["--data.length_policy=cut"], "`data.length_policy` is 'cut'"),
        (["--verbose"], "unknown option --verbose"),
        (["--training.eval_strategy=steps"], "there is no evaluation data; set data.eval"),
        (["--training.save_strategy=sometimes"], "training:"),
        (["--data.streaming", "--data.train.cap=2"], "cap counts the rows of a source"),
        (["--data.streaming", "--training.max_steps=0"], "set training.max_steps"),
    ],
)
def test_configuration(train, flags: list[str], words: str) -> None:
    code, error = train(*flags)
    assert code == 2 and words in error


def test_the_training_file_is_no_test_file(train, tmp_path: Path) -> None:
    code, error = train(f"--data.eval={tmp_path / 'prefs.jsonl'}")
    assert code == 2 and "is named in data.train and in data.eval" in error


def test_an_empty_flag_is_an_empty_text(tmp_path: Path) -> None:
    from palate.training.settings import read_settings

    flags = ["--model.name_or_path", "m", "--data.train", "a.jsonl", "--data.eval", "o/x", "--data.separator", "", "--training.output_dir", "out"]
    settings = read_settings(None, flags)
    assert settings.data.separator == "" and settings.data.eval[0].split == "test"


def test_configuration_file_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {name_or_path: x}\ndata:\n  train: a.jsonl\n  max_lenght: 5\ntraining: {output_dir: out}\n")
    assert main(["train", "--config", str(path)]) == 2
    assert f"{path}:4: unknown key `data.max_lenght`; did you mean `data.max_length`?" in capsys.readouterr().err
    path.write_text("model: {name_or_path: x}\ndata: {train: a.jsonl}\ntraining:\n  output_dir: out\n  learning_rat: 1e-5\n")
    assert main(["train", "--config", str(path)]) == 2
    assert f"{path}:5: unknown key `training.learning_rat`" in capsys.readouterr().err
    path.write_text("model: {\n")
    assert main(["train", "--config", str(path)]) == 2
    assert main(["train", "--config", str(tmp_path / "no.yaml")]) == 2
    path.write_text("data: {train: a.jsonl}\n")
    assert main(["train", "--config", str(path)]) == 2
    assert "`model` is missing" in capsys.readouterr().err


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2 and "did you mean 'train'" in capsys.readouterr().err


def test_models(train, tmp_path: Path) -> None:
    from tests.conftest import bert_tokenizer, tiny_model

    model = tiny_model("bert")
    model.config.num_labels = 2
    type(model)(model.config).save_pretrained(tmp_path / "two")
    bert_tokenizer().save_pretrained(tmp_path / "two")
    code, error = train(f"--model.name_or_path={tmp_path / 'two'}")
    assert code == 4 and "num_labels=2" in error
    code, error = train(f"--model.name_or_path={tmp_path / 'none'}")
    assert code == 4 and "no such folder" in error


def test_no_template(train) -> None:
    code, error = train(rows=[{"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}], model="bert")
    assert code == 4 and "has no chat template" in error and "model.chat_template" in error


def test_a_directory_with_another_run(train) -> None:
    assert train()[0] == 0
    code, error = train()
    assert code == 5 and "holds another run" in error
    code, error = train("--resume")
    assert code == 5 and "this run is finished" in error


def test_nothing_to_resume(train) -> None:
    code, error = train("--resume")
    assert code == 5 and "holds no run to resume" in error


COMMAND = [sys.executable, "-m", "palate", "train"]


def arguments(tmp_path: Path, base_models: dict[str, Path], write_jsonl, pairs: list[dict], steps: int) -> list[str]:
    flags = {
        "model.name_or_path": base_models["qwen3"],
        "data.train": write_jsonl(pairs),
        "training.output_dir": tmp_path / "out",
        "training.max_steps": steps,
        "training.use_cpu": "true",
        "training.report_to": "none",
        "training.save_strategy": "no",
        "training.per_device_train_batch_size": 1,
    }
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, base_models, write_jsonl, pairs) -> None:
    """A real limit of the system: no file may grow beyond 20 kB, less than the weights."""
    run = ["bash", "-c", 'ulimit -f 20; exec "$@"', "limited", *COMMAND, *arguments(tmp_path, base_models, write_jsonl, pairs, 1)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "could not be written" in done.stderr and "nothing half-written was left" in done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"run.yaml"} and not list(tmp_path.glob(".out*"))


def test_interrupt_leaves_a_checkpoint_that_resumes_to_the_same_weights(tmp_path: Path, base_models, write_jsonl, pairs) -> None:
    flags = arguments(tmp_path, base_models, write_jsonl, pairs, 400)
    process = subprocess.Popen([*COMMAND, *flags], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    seen = ""
    while "/400 [" not in seen or " 0/400" in seen[-80:]:  # until the bar moves
        seen += process.stderr.read(1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "is saved. Go on with --resume" in error
    checkpoints = list((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == 1 and not (tmp_path / "out" / "model.safetensors").exists()
    step = int(checkpoints[0].name.split("-")[1])
    assert 0 < step < 400
    assert main(["train", *flags, "--loss.centering", "0.5", "--resume"]) == 5, "another loss section may not continue this run"
    assert subprocess.run([*COMMAND, *flags, "--resume"], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    whole = [str(tmp_path / "whole") if flag == str(tmp_path / "out") else flag for flag in flags]
    assert subprocess.run([*COMMAND, *whole], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["data_fingerprint"]
