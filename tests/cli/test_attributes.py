"""`palate attributes` as a user runs it: heads, a gate, a bound, and what the other commands make of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.scoring.test_uncertainty import local, saved

from palate.cli.main import main
from palate.models.checkpoints import read_contract
from palate.scoring.gated import GATE_NAME, GatedScorer
from palate.scoring.laplace import LAPLACE_NAME, LaplaceScorer
from palate.scoring.local import load_scorer
from palate.scoring.sources import open_scorer

WORDS = ["good", "bad", "sea", "wind", "fox", "river"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.scoring.local.own_device", lambda: "cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", local(("reward",), (1.0,)))


@pytest.fixture
def rated(write_jsonl: Any) -> Path:
    rows = []
    for i in range(40):
        words = " ".join(WORDS[(i * 5 + j) % 6] for j in range(1 + i % 5))
        rows.append({"prompt": f"ask {i % 10}", "response": words, "helpfulness": i % 5, "verbosity": None if i % 7 == 0 else 1 + i % 5})
    return write_jsonl(rows, "rated.jsonl")


@pytest.fixture
def prefs(write_jsonl: Any) -> Path:
    return write_jsonl(
        [{"prompt": f"ask {i}", "chosen": f"good {WORDS[i % 6]} {i}", "rejected": f"bad {'fox ' * (i % 3)}{i}"} for i in range(24)], "prefs.jsonl"
    )


def test_heads_then_a_gate_and_rows_scored_by_it(model: Path, rated: Path, prefs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    gate = ["--gate", str(prefs), "--debias", "length", "--gate-steps", "20", "--gate-hidden", "16"]
    assert main(["attributes", "--model", str(model), "--data", str(rated), "--output", str(out), *gate]) == 0
    printed = capsys.readouterr().out
    assert "helpfulness" in printed and "Spearman with length" in printed and "accuracy" in printed
    assert read_contract(out).readout.outputs == ("helpfulness", "verbosity") and (out / GATE_NAME).is_file()
    gated = open_scorer(str(out)).scorer
    assert isinstance(gated, GatedScorer) and len(gated.settings.golden) == 3
    assert main(["score", "--model", str(out), "--data", str(prefs), "--output", str(tmp_path / "scored.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    expected = gated.score([(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")])
    np.testing.assert_allclose([reward for row in rows for reward in row["reward"]], expected, atol=1e-4)
    assert sum(rows[0]["reward_outputs"][0]["gate"].values()) == pytest.approx(1, abs=1e-5)
    plain = load_scorer(out).score([(rows[0]["prompt"], rows[0]["chosen"])])[0]
    assert plain != pytest.approx(rows[0]["reward"][0], abs=1e-3)  # the folder alone gives attributes
    assert main(["eval", "--model", str(out), "--data", str(prefs), "--heads", "--output", str(tmp_path / "results.json")]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["model"]["gate"] == "helpfulness, verbosity"
    assert {name: row["n"] for name, row in result["heads"].items()} == {"helpfulness": 24, "verbosity": 24}
    assert main(["report", str(tmp_path / "results.json"), "--markdown", str(tmp_path / "report.md")]) == 0
    assert "## By output" in (shown := (tmp_path / "report.md").read_text()) and "| helpfulness | 24 |" in shown
    assert main(["eval", "--model", str(model), "--data", str(prefs), "--heads"]) == 2
    assert f"--heads is for a checkpoint with several outputs; {model} has one reward" in capsys.readouterr().err


def test_weights_and_a_bound(model: Path, rated: Path, prefs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["attributes", "--model", str(model), "--data", str(rated), "--output", str(out), "--attributes", "verbosity,helpfulness"]
    assert main([*command, "--weights", "helpfulness=0.65,verbosity=-0.4"]) == 0
    assert read_contract(out).readout.weights == (-0.4, 0.65)
    before = open_scorer(str(out)).scorer.score([("ask 1", "good fox")])
    assert main(["attributes", "--model", str(out), "--bound", str(prefs)]) == 0
    assert (out / LAPLACE_NAME).is_file()
    scorer = open_scorer(str(out)).scorer
    assert isinstance(scorer, LaplaceScorer)
    rewards, uncertainty = scorer.score([("ask 1", "good fox")], return_uncertainty=True)
    np.testing.assert_allclose(rewards, before, atol=1e-5)
    np.testing.assert_allclose(open_scorer(f"lower:{out}").scorer.score([("ask 1", "good fox")]), rewards - uncertainty, atol=1e-5)
    assert main(["score", "--model", str(out), "--data", str(prefs), "--output", str(tmp_path / "scored.jsonl")]) == 0
    assert json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])["reward_outputs"][1]["uncertainty"] > 0
    results = []
    for i, source in enumerate((str(out), f"lower=2:{out}")):
        results.append(str(tmp_path / f"{i}.json"))
        assert main(["eval", "--model", source, "--data", str(prefs), "--output", results[-1]]) == 0
    assert main(["compare", *results]) == 0


WRONG: dict[str, tuple[list[str], str]] = {
    "weights": (["--data", "RATED", "--output", "NEW", "--weights", "helpfulness"], "--weights 'helpfulness': expected ATTRIBUTE=NUMBER"),
    "unknown weight": (["--data", "RATED", "--output", "NEW", "--weights", "kindness=1"], "--weights names kindness"),
    "unknown attribute": (["--data", "RATED", "--output", "NEW", "--attributes", "kindness"], "no response is rated for `kindness`"),
    "occupied": (["--data", "RATED", "--output", "MODEL"], "is not empty; give a new folder"),
    "gate of one reward": (["--gate", "PREFS"], "gives reward; a gate weighs several attributes"),
    "widths": (["--gate", "PREFS", "--gate-hidden", "ten"], "--gate-hidden 'ten': expected widths with commas between"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_one_sentence(name: str, model: Path, rated: Path, prefs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[name]
    places = {"RATED": str(rated), "PREFS": str(prefs), "MODEL": str(model), "NEW": str(tmp_path / "new")}
    assert main(["attributes", "--model", str(model), *(places.get(part, part) for part in arguments)]) > 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--data", "x"], [], ["--debias", "length", "--bound", "x"], ["--gate", "x", "--bound", "x"], ["--bound", "x", "--held-out", "1"]],
    ids=str,
)
def test_flags_that_do_not_go_together(arguments: list[str], model: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["attributes", "--model", str(model), *arguments])
    assert ended.value.code == 2
