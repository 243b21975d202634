"""`palate best-of` on files: what it writes, counts and prints, and what it refuses before it reads anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import chatml_tokenizer, tiny_model

from palate.cli.main import main
from palate.scoring.local import load_scorer
from palate.stats.best_of_n import expected_best_of_n


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    made = tiny_model("qwen3", seed=3)
    torch.nn.init.normal_(made.score.weight, std=0.5)
    made.save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


RESPONSES = [["the sea", "paris is the capital", "no"], ["four", "four", "go away, you fool"]]


def test_the_best_by_the_model_and_its_curve(model: Path, write_jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl([{"prompt": f"ask {i}", "responses": texts} for i, texts in enumerate(RESPONSES)])
    output = tmp_path / "best.jsonl"
    assert main(["best-of", "--model", str(model), "--data", str(data), "--output", str(output)]) == 0
    rewards = [load_scorer(model).score([(f"ask {i}", text) for text in texts]) for i, texts in enumerate(RESPONSES)]
    rows = read(output)
    assert [row["completion"] for row in rows] == [texts[int(r.argmax())] for texts, r in zip(RESPONSES, rewards, strict=True)]
    assert [row["reward"] for row in rows] == pytest.approx([float(r.max()) for r in rewards], abs=1e-6)
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["prompts"] == 2 and report["responses"] == 6 and report["curve"]["n"] == [1, 2, 3]
    expected = [np.mean([expected_best_of_n(r, r, n) for r in rewards]) for n in (1, 2, 3)]
    assert report["curve"]["expected"] == pytest.approx(expected, abs=1e-6) and report["curve"]["kl"][0] == 0
    printed = capsys.readouterr().out
    assert "2 rows written" in printed and "best of n" in printed


def test_rewards_of_a_column_pairs_and_gold(write_jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl([{"prompt": "q", "responses": ["a", "b", "c"], "reward": [1, 3, None], "human": [5, 1, 9]}])
    output = tmp_path / "pairs.jsonl"
    flags = ["best-of", "--rewards", "reward", "--data", str(data), "--output", str(output)]
    assert main([*flags, "--pairs", "--gold", "human"]) == 0
    assert read(output)[0]["chosen"] == "b" and read(output)[0]["rejected"] == "a"
    curve = json.loads(output.with_suffix(".report.json").read_text())["curve"]
    assert curve["judged_by"] == "human" and curve["expected"] == [3, 1] and curve["oracle"] == [3, 5]  # the reward prefers what people do not
    printed = capsys.readouterr().out
    assert "perfect choice" in printed and "none of one prompt" in printed and "nan" not in printed
    assert main([*flags, "-n", "1"]) == 5  # the file is there already
    assert main([*flags, "-n", "1", "--overwrite"]) == 0
    assert read(output)[0]["completion"] == "a" and json.loads(output.with_suffix(".report.json").read_text())["curve"] is None


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--output", "x.csv"], 2, "expected a .jsonl or .parquet file"),
        (["--output", "x.jsonl", "--keep", "none"], 2, "or all"),
        (["--output", "x.jsonl", "--keep", "2", "--pairs"], 2, "--pairs makes one row"),
        (["--output", "x.jsonl", "-n", "0"], 2, "at least 1"),
        (["--output", "x.jsonl", "--threshold", "nan"], 2, "expected a finite reward"),
        (["--output", "x.jsonl", "--max-length", "9"], 2, "with --rewards nothing is scored"),
        (["--output", "x.jsonl"], 3, "has no column 'reward'"),
    ],
)
def test_what_is_refused(
    flags: list[str], code: int, says: str, write_jsonl: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_jsonl([{"prompt": "q", "responses": ["a", "b"]}])
    assert main(["best-of", "--rewards", "reward", "--data", str(data), *flags]) == code
    assert says in capsys.readouterr().err and not list(tmp_path.glob("x.*"))
