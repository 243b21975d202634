"""The commands as a user runs them: a small run from YAML, its evaluation, scoring, doctor, data check, dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from palate.cli.main import main


@pytest.fixture
def config(tmp_path: Path, base_models: dict[str, Path], write_jsonl, pairs: list[dict]) -> Path:
    settings = {
        "model": {"name_or_path": str(base_models["qwen3"])},
        "data": {"train": str(write_jsonl(pairs * 2)), "eval": {"split": 0.25}, "max_length": 128},
        "loss": {"type": "bradley_terry", "centering": 0.01, "margins": True},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1.0e-3,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, base_models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    rows = [{"prompt": f"tell me about {i}", "chosen": f"Sure, here is {i}.", "rejected": f"No, go away {i}."} for i in range(16)]
    (folder / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "model.name_or_path": base_models["qwen3"],
        "data.train": folder / "prefs.jsonl",
        "data.eval.split": 0.25,
        "data.max_length": 64,
        "training.output_dir": folder / "out",
        "training.learning_rate": "1e-3",
        "training.use_cpu": "true",
        "training.report_to": "none",
        "training.num_train_epochs": 6,
    }
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    assert main(["train", *arguments]) == 0
    return folder / "out"


def test_train_writes_everything_beside_the_checkpoint(checkpoint: Path) -> None:
    names = {p.name for p in checkpoint.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "reward_contract.json",
        "run.yaml",
        "run.json",
        "results.json",
        "results.items.jsonl",
    } <= names
    assert not any(name.startswith(".") for name in names)
    run = json.loads((checkpoint / "run.json").read_text())
    assert run["data_fingerprint"] and run["versions"]["torch"] and run["encoded"]["train"]["prefs.jsonl"]["kept"] == 12
    contract = json.loads((checkpoint / "reward_contract.json").read_text())
    assert contract["rewards"]["comparisons"] == 4 and contract["golden"] and contract["data_fingerprint"] == run["data_fingerprint"]


def test_the_resolved_config_trains_the_same_model_again(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(checkpoint / "run.yaml"), "--training.output_dir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_file_and_flags_share_names(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(config), "--training.learning_rate", "2e-5", "--data.max_length=99", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "max_length: 99" in out and "learning rate 2e-05" in out and "centering: 0.01" in out
    assert "18 of 18 groups kept" in out or "prefs.jsonl: 1" in out
    assert "First encoded pair" in out and "<|im_end|>" in out
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_eval_writes_results(checkpoint: Path, tmp_path: Path, write_jsonl, pairs: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    output, page = tmp_path / "r" / "results.json", tmp_path / "r" / "page.html"
    assert main(["eval", "--model", str(checkpoint), "--data", str(write_jsonl(pairs)), "--output", str(output), "--page", str(page)]) == 0
    result = json.loads(output.read_text())
    assert result["n"] == 12 and {"accuracy", "accuracy_ties_half", "interval", "subsets", "calibration", "baselines"} <= set(result)
    html = page.read_text()
    assert "<svg" in html and "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert "length alone" in capsys.readouterr().out


def test_score_keeps_rows_and_order(checkpoint: Path, tmp_path: Path, write_jsonl) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "tell me about 3", "response": "Sure, here is 3.", "id": "a"},
        {"prompt": "tell me about 3", "response": "No, go away 3.", "id": "b"},
        {"prompt": "tell me", "response": "fox " * 200, "id": "long"},
        {"prompt": "tell me", "response": "", "id": "nothing said"},
        {"prompt": "tell me", "response": 7, "id": "number"},
    ]
    out = tmp_path / "scored.jsonl"
    assert main(["score", "--model", str(checkpoint), "--data", str(write_jsonl(rows)), "--output", str(out)]) == 0
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in scored] == ["a", "b", "long", "nothing said", "number"]
    assert scored[0]["reward"] > scored[1]["reward"]
    assert scored[2]["reward"] is None and scored[2]["reward_error"] == "longer than 64 tokens"
    assert isinstance(scored[3]["reward"], float), "an empty answer is an answer when it is only scored"
    assert scored[4]["reward"] is None and "line 5" in scored[4]["reward_error"] and "int 7" in scored[4]["reward_error"]
    assert main(["score", "--model", str(checkpoint), "--data", str(write_jsonl(rows)), "--output", str(out)]) == 5, "nothing is overwritten unasked"


def test_score_to_parquet_and_preference_rows(checkpoint: Path, tmp_path: Path, write_jsonl, pairs: list[dict]) -> None:
    import pyarrow.parquet

    out = tmp_path / "scored.parquet"
    assert main(["score", "--model", str(checkpoint), "--data", str(write_jsonl(pairs)), "--output", str(out)]) == 0
    table = pyarrow.parquet.read_table(out).to_pylist()
    assert "reward_error" in table[0], "a column that only later rows have must not get lost"
    assert [row["prompt"] for row in table] == [row["prompt"] for row in pairs] and len(table[0]["reward"]) == 2


def test_score_reads_what_generate_writes(checkpoint: Path, tmp_path: Path, write_jsonl) -> None:
    """Responses that nothing compares, of any number: a reward each, that of the response by itself; into a file or by shards, and again over the result."""
    generated = [
        {"id": f"p{k}", "prompt": f"tell me about {k}", "responses": [f"Sure, here is {k}.", f"No, go away {k}."][: 1 + k % 2], "models": ["m", "n"]}
        for k in range(4)
    ]
    alone = [{"prompt": row["prompt"], "response": response} for row in generated for response in row["responses"]]
    rewards: dict[str, list[Any]] = {}
    for name, rows in (("generated", generated), ("alone", alone)):
        out = tmp_path / f"{name}.jsonl"
        assert main(["score", "--model", str(checkpoint), "--data", str(write_jsonl(rows, f"{name}.in.jsonl")), "--output", str(out)]) == 0
        rewards[name] = [json.loads(line)["reward"] for line in out.read_text().splitlines()]

    def flat(found: list[Any]) -> list[float]:
        return [value for reward in found for value in (reward if isinstance(reward, list) else [reward])]

    assert (
        flat(rewards["generated"]) == pytest.approx(rewards["alone"], abs=1e-6)
        and [isinstance(reward, list) for reward in rewards["generated"]] == [False, True] * 2
    )
    for data, folder in (("generated.in.jsonl", "shards"), ("generated.jsonl", "again")):
        assert main(["score", "--model", str(checkpoint), "--data", str(tmp_path / data), "--output", str(tmp_path / folder)]) == 0
        (part,) = (tmp_path / folder).glob("**/*.jsonl")
        assert flat([json.loads(line)["reward"] for line in part.read_text().splitlines()]) == pytest.approx(rewards["alone"], abs=1e-6)


def test_doctor(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(checkpoint)]) == 0
    assert "All checks passed" in capsys.readouterr().out
    assert main(["doctor", str(checkpoint.parent)]) == 4


def test_data_check(write_jsonl, pairs: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_jsonl([*pairs, pairs[0], {"prompt": "p", "chosen": "x", "rejected": "x"}]))
    assert main(["data", "check", path]) == 0
    out = capsys.readouterr().out
    assert "chosen and rejected" in out and "1 x identical sides" in out and "1 x duplicates" in out
    assert main(["data", "check", path, "--json", "--against", path]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"]["bad_rows"] == {"identical sides": 1} and {f["kind"] for f in report["findings"]} == {
        "duplicates",
        "prompts in both sets",
        "responses in both sets",
    }


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--version"]) == 0
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "label_smoothing" in out and "length_policy" in out and "[default 0.0]" in out
    for command in ("eval", "score", "doctor", "data", "quickstart"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0


def test_streaming_run(config: Path, tmp_path: Path, write_jsonl, pairs: list[dict]) -> None:
    test = write_jsonl(pairs, "test.jsonl")
    flags = ["--data.streaming", "--data.eval", str(test), "--training.max_steps", "3"]
    assert main(["train", "--config", str(config), *flags]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["n"] == 12
