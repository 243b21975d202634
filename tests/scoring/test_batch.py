"""Scoring in shards: every row once, the same bytes whoever scores them, and nothing twice after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from tests.conftest import chatml_tokenizer, tiny_model

from palate.cli.main import main
from palate.errors import DataError
from palate.scoring.batch import Shard, input_files, plan_shards, read_shard
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    rows = [{"prompt": f"p {i}", "chosen": "the fox", "rejected": "a sea"} for i in range(4)]
    args = RewardConfig(output_dir=str(folder), max_steps=1, max_length=64, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = RewardTrainer(tiny_model("qwen3", seed=1), args, train_dataset=Dataset.from_list(rows), processing_class=chatml_tokenizer())
    trainer.train()
    trainer.save_model()
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "prompt": f"tell me about {'the sea ' * (i % 5)}", "response": f"answer {'x ' * (i % 7)}{i}"} for i in range(count)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def parts(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("part-*.jsonl")))


def score(model: Path, data: Path, output: Path, *flags: str) -> int:
    return main(["score", "--model", str(model), "--data", str(data), "--output", str(output), *flags])


# --- shards ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_rows", [1, 3, 7, 10, 11, 100])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_shards_hold_every_row_once_and_in_order(tmp_path: Path, suffix: str, shard_rows: int) -> None:
    wanted = [{**row, "prompt": row["prompt"] + " é∴"} for row in rows(10)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write(path, [json.dumps(row, ensure_ascii=False) for row in wanted])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wanted), path, row_group_size=4)
    shards = plan_shards([path], shard_rows)
    assert [shard.number for shard in shards] == list(range(len(shards))) and all(shard.rows <= shard_rows for shard in shards)
    read = [located for shard in shards for located in read_shard(shard)]
    assert [row for _, row in read] == wanted
    assert read[7][0] == ("rows.jsonl line 8" if suffix == "jsonl" else "rows.parquet row 8")


def test_broken_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ['{"prompt": "p", "response": "a"}', "", "{broken", "[1]", '{"prompt": "q", "response": "b"}'])
    (first, second) = plan_shards([path], 3)
    assert read_shard(first) == [("rows.jsonl line 1", {"prompt": "p", "response": "a"}), ("rows.jsonl line 3", {"line": "{broken"})]
    assert read_shard(second) == [("rows.jsonl line 4", {"line": "[1]"}), ("rows.jsonl line 5", {"prompt": "q", "response": "b"})]


def test_inputs_are_jsonl_or_parquet(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", ["{}"])
    write(tmp_path / "a.jsonl", ["{}"])
    assert [path.name for path in input_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match=r"expected a \.jsonl or \.parquet"):
        input_files(write(tmp_path / "rows.csv", ["a"]))
    with pytest.raises(DataError, match="no rows"):
        plan_shards([write(tmp_path / "empty.jsonl", [])], 5)
    assert plan_shards([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 5)[1] == Shard(1, str(tmp_path / "b.jsonl"), 0, 1)


# --- jobs -----------------------------------------------------------------------------------------------------------------------------------------


def test_shards_give_what_one_file_gives(checkpoint: Path, tmp_path: Path) -> None:
    """Also an over-long row and one that is no row: kept, with their reasons."""
    lines = [json.dumps(row) for row in rows(20)]
    lines[5] = json.dumps({"id": "long", "prompt": "p", "response": "word " * 100})
    lines[6] = json.dumps({"id": "number", "prompt": "p", "response": 7})
    path = write(tmp_path / "rows.jsonl", lines)
    assert score(checkpoint, path, tmp_path / "one.jsonl") == 0
    assert score(checkpoint, path, tmp_path / "shards", "--shard-rows", "100") == 0
    assert parts(tmp_path / "shards") == (tmp_path / "one.jsonl").read_bytes()
    scored = [json.loads(line) for line in parts(tmp_path / "shards").splitlines()]
    assert [row.get("reward_error") for row in scored[5:7]] == ["longer than 64 tokens", scored[6]["reward_error"]] and "int 7" in scored[6]["reward_error"]
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["rows"] == 20 and manifest["contract_sha256"] and manifest["chat_template_sha256"]


def test_a_line_that_is_no_json_never_ends_the_job(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", ["{broken", *(json.dumps(row) for row in rows(4))])
    assert score(checkpoint, path, tmp_path / "out", "--shard-rows", "2") == 0
    first, *others = [json.loads(line) for line in parts(tmp_path / "out").splitlines()]
    assert first["line"] == "{broken" and first["reward"] is None and "rows.jsonl line 1" in first["reward_error"] and len(others) == 4
    assert "5 rows in 3 of 3 parts" in " ".join(capsys.readouterr().out.split())


def test_resuming_scores_no_finished_shard_again(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "rows.jsonl", [json.dumps(row) for row in rows(10)]), tmp_path / "out"
    assert score(checkpoint, path, out, "--shard-rows", "3") == 0
    whole, stamps = parts(out), {p: p.stat().st_mtime_ns for p in out.glob("part-*.jsonl")}
    assert score(checkpoint, path, out, "--shard-rows", "3") == 5 and "go on with it by --resume" in capsys.readouterr().err
    (out / "part-00002.done").unlink()  # as a worker leaves it that died between its two files
    (out / "part-00002.jsonl").write_text("half")
    assert score(checkpoint, path, out, "--shard-rows", "3", "--resume") == 0
    assert parts(out) == whole
    again = {p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert again == {"part-00002.jsonl"}


def test_another_cut_into_shards_is_another_job(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two shards of six and four rows, or of five and five: as many, but a row would be lost or scored twice."""
    path, out = write(tmp_path / "rows.jsonl", [json.dumps(row) for row in rows(10)]), tmp_path / "out"
    assert score(checkpoint, path, out, "--shard-rows", "6") == 0
    assert score(checkpoint, path, out, "--shard-rows", "5", "--resume") == 5 and "shards_sha256" in capsys.readouterr().err
    assert score(checkpoint, path, tmp_path / "none", "--shard-rows", "0") == 2


def test_whatever_is_wrong_with_a_row_stays_with_it(checkpoint: Path, tmp_path: Path) -> None:
    """A missing column under --columns, half a surrogate pair, a number without end, a reason from an earlier scoring."""
    good = {"question": "p", "answer": "a"}
    lines = [
        json.dumps(good),
        json.dumps({"question": "p"}),
        '{"question": "p", "answer": "\\ud83d"}',
        '{"question": "p", "answer": ' + "9" * 5000 + "}",
        json.dumps({**good, "reward": None, "reward_error": "longer than 8 tokens"}),
        "{broken",
    ]
    path = write(tmp_path / "rows.jsonl", lines)
    assert score(checkpoint, path, tmp_path / "out", "--columns", "prompt=question", "response=answer") == 0
    scored = [json.loads(line) for line in parts(tmp_path / "out").splitlines()]
    assert [row["reward"] is not None for row in scored] == [True, False, False, False, True, False]
    assert ["reward_error" in row for row in scored] == [False, True, True, True, False, True]
    assert scored[0]["reward"] == scored[4]["reward"] and "not a JSON object" in scored[5]["reward_error"]


def test_a_chat_that_the_template_refuses_stays_a_row(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "reward_contract.json").unlink()
    template = model / "chat_template.jinja"
    template.write_text("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + template.read_text())
    chats = [[{"role": role, "content": "hi"}, {"role": "assistant", "content": "yes"}] for role in ("user", "system", "user")]
    path = write(tmp_path / "rows.jsonl", [json.dumps({"messages": chat}) for chat in chats])
    assert score(model, path, tmp_path / "out") == 0
    scored = [json.loads(line) for line in parts(tmp_path / "out").splitlines()]
    assert [row["reward"] is None for row in scored] == [False, True, False] and "no system role" in scored[1]["reward_error"]


@pytest.mark.parametrize(("change", "words"), [("data", "inputs"), ("shards", "shards"), ("model", "model")])
def test_a_folder_of_another_job_is_left_alone(checkpoint: Path, tmp_path: Path, change: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "rows.jsonl", [json.dumps(row) for row in rows(10)]), tmp_path / "out"
    assert score(checkpoint, path, out) == 0
    if change == "data":
        write(path, [json.dumps(row) for row in rows(11)])
    model = checkpoint
    if change == "model":
        model = tmp_path / "other"
        model.symlink_to(checkpoint)
    flags = ["--shard-rows", "3"] if change == "shards" else []
    assert score(model, path, out, "--resume", *flags) == 5
    assert "holds another job" in (error := capsys.readouterr().err) and words in error


def test_ranks_take_turns(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", [json.dumps(row) for row in rows(10)])
    assert score(checkpoint, path, tmp_path / "alone", "--shard-rows", "2") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert score(checkpoint, path, tmp_path / "ranks", "--shard-rows", "2") == 0
        assert len(list((tmp_path / "ranks").glob("*.done"))) == (3 if rank == "0" else 5)
    assert parts(tmp_path / "ranks") == parts(tmp_path / "alone")


# --- Ray ------------------------------------------------------------------------------------------------------------------------------------------


def on_ray(model: Path, data: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "palate",
        "score",
        "--model",
        str(model),
        "--data",
        str(data),
        "--output",
        str(output),
        "--engine",
        "ray",
        "--workers",
        "2",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([*command, *flags], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def actors() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::.*ShardScorer"], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


@pytest.mark.slow
def test_ray_writes_the_same_bytes_and_survives(checkpoint: Path, tmp_path: Path) -> None:
    """20 000 rows over two actors, one of them killed, the whole job killed and resumed: the bytes of the local engine, no finished shard scored twice."""
    pytest.importorskip("ray")
    lines = [json.dumps(row) for row in rows(20_000)]
    lines[1234] = "{broken"
    lines[4321] = json.dumps({"id": "long", "prompt": "p", "response": "word " * 100})
    path = write(tmp_path / "rows.jsonl", lines)
    assert score(checkpoint, path, tmp_path / "local", "--shard-rows", "500") == 0

    out = tmp_path / "ray"
    job = on_ray(checkpoint, path, out, "--shard-rows", "500")
    wait_for(lambda: len(list(out.glob("*.done"))) >= 4, job)
    os.kill(actors()[0], signal.SIGKILL)
    wait_for(lambda: len(list(out.glob("*.done"))) >= 12, job)
    os.killpg(job.pid, signal.SIGKILL)
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"], capture_output=True)
    stamps = {done: done.stat().st_mtime_ns for done in out.glob("*.done")}
    assert 12 <= len(stamps) < 40

    job = on_ray(checkpoint, path, out, "--shard-rows", "500", "--resume")
    _, errors = job.communicate(timeout=600)
    assert job.returncode == 0, errors[-2000:]
    assert all(done.stat().st_mtime_ns == stamp for done, stamp in stamps.items())
    assert parts(out) == parts(tmp_path / "local")


def wait_for(ready: Any, job: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if ready():
            return
        assert job.poll() is None, job.communicate()[1][-2000:]
        time.sleep(0.2)
    raise AssertionError("nothing came of it in ten minutes")
