"""`palate decompose` and `palate adapt` as a user runs them: a checkpoint of many heads, adapted to one user, saved as a plain reward model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TOKENIZERS, tiny_model

from palate.cli.main import main
from palate.models.reward_model import as_reward_model
from palate.scoring.local import load_scorer
from palate.types import Exchange


@pytest.fixture
def model(tmp_path: Path) -> Path:
    as_reward_model(tiny_model("qwen3", seed=2)).save_pretrained(tmp_path / "model")
    TOKENIZERS["qwen3"]().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rows(n: int = 120) -> list[dict[str, object]]:
    """Ann likes the river, Bob the harbour; each prompt once."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        words = [" ".join(rng.choice(["sea", "wind", "night", "poem"], 4)) for _ in range(2)]
        texts = [f"the river {words[0]} {i}", f"the harbour {words[1]} {i}"]
        who = ("ann", "bob")[i % 2]
        found.append({"prompt": f"write {i}", "chosen": texts[i % 2], "rejected": texts[1 - i % 2], "worker": who})
    return found


def test_from_preferences_to_an_adapted_reward_model(model: Path, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_jsonl(rows()))
    heads = tmp_path / "heads"
    how = ["--components", "6", "--no-center", "--by", "worker", "--page", str(tmp_path / "page.html")]
    assert main(["decompose", "--model", str(model), "--data", data, "--output", str(heads), *how]) == 0
    printed = capsys.readouterr().out
    assert "120 comparisons of 120 prompts; 240 responses embedded, 0 from the cache" in printed and "13 heads" in printed
    record = json.loads((heads / "directions.json").read_text())
    assert len(record["directions"]) == 6 and record["agreement"]["by"] == "worker" and not record["centred"]
    # what ann and bob prefer is opposite along the most disputed direction; no prompt has two annotators, so there is no test of it
    first = record["agreement"]["directions"][0]
    assert first["spread"] > 1 > abs(first["mean"]) and first["p_value"] is None
    assert "Where annotators differ" in (tmp_path / "page.html").read_text()
    items = [Exchange("write 1", "the river sea"), Exchange("write 1", "the harbour sea")]
    np.testing.assert_allclose(load_scorer(heads).score(items), load_scorer(model).score(items), atol=1e-5)  # the readout is the original head

    command = ["adapt", "--model", str(heads), "--data", data, "--by", "worker"]
    results = tmp_path / "results.json"
    assert main([*command, "--n", "5", "--draws", "4", "--shared-base", data, "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 users" in printed and "ann" in printed
    overall = json.loads(results.read_text())["trials"][0]["overall"]
    assert list(overall) == [
        "single head",
        *(f"{name}, adapted" for name in ("heads", "shared-base ensemble", "random uniform heads", "random Gaussian heads")),
    ]
    assert overall["heads, adapted"]["accuracy"] > 0.7 > 0.55 > overall["single head"]["accuracy"]

    assert main([*command, "--user", "bob", "--output", str(tmp_path / "bob")]) == 0
    rewards = load_scorer(tmp_path / "bob").score(items)
    assert rewards[1] > rewards[0]
    assert main([*command, "--user", "ann", "--output", str(tmp_path / "ann")]) == 0
    rewards = load_scorer(tmp_path / "ann").score(items)
    assert rewards[0] > rewards[1]
    adapted = json.loads((tmp_path / "ann" / "adaptation.json").read_text())
    assert adapted["user"] == "ann" and adapted["comparisons"] == 60
    assert sum(head["weight"] for head in adapted["heads"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("readout", "names"),
    [("projection", {"original": 0.0}), ("first", {"original": 0.0, "pc01+": 1.0, "pc01-": 0.0})],
)
def test_the_one_reward_may_be_read_otherwise(model: Path, write_jsonl, tmp_path: Path, readout: str, names: dict[str, float]) -> None:
    output = tmp_path / "heads"
    files = ["--page", str(tmp_path / "p.html"), "--markdown", str(tmp_path / "p.md")]
    command = ["decompose", "--model", str(model), "--data", str(write_jsonl(rows(40))), "--output", str(output), "--components", "3"]
    assert main([*command, "--readout", readout, *files]) == 0
    contract = load_scorer(output).readout
    weights = dict(zip(contract.outputs, contract.weights, strict=True))
    assert {name: weights[name] for name in names} == names
    if readout == "projection":
        assert weights["pc01+"] == -weights["pc01-"] != 0.0
    assert (tmp_path / "p.html").is_file() and "pc03" in (tmp_path / "p.md").read_text()


def test_mistakes_end_in_a_sentence(model: Path, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_jsonl(rows(30)))
    decompose = ["decompose", "--model", str(model), "--data", data, "--output"]
    assert main([*decompose, str(tmp_path / "x"), "--components", "33"]) == 3
    assert main([*decompose, str(model)]) == 5
    assert main([*decompose, str(tmp_path / "x"), "--components", "3", "--by", "nobody"]) == 3
    assert main(["adapt", "--model", str(model), "--data", data, "--output", str(tmp_path / "x")]) == 4
    assert main([*decompose, str(tmp_path / "heads"), "--components", "3"]) == 0
    assert main(["adapt", "--model", str(tmp_path / "heads"), "--data", data, "--n", "25"]) == 3
    said = capsys.readouterr().err
    for sentence in (
        "there are 29 at most",
        "is not empty; give a new folder",
        "columns that may: worker",
        "has the one output reward",
        "25 comparisons to adapt on",
    ):
        assert sentence in said
    assert not (tmp_path / "x").exists()
    for wrong in (["--by", "worker", "--output", "x"], ["--user", "ann"], ["--draws", "1"], ["--output", "x", "--results", "r"], ["--n", "0"]):
        with pytest.raises(SystemExit):
            main(["adapt", "--model", str(model), "--data", data, *wrong])
