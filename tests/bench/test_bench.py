"""The measuring measures: all contenders do their work, ratios and counts are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palate.bench import workload
from palate.bench.speed import measure
from palate.cli.main import main


def test_synthetic_groups_have_the_lengths_asked_for() -> None:
    work = workload.synthetic("tiny", prompt=7, responses=(3, 5, 2), groups=4, batch_size=2)
    assert [len(ids) for ids in work.rows[0]["token_ids"]] == [10, 12, 9] and work.rows[0]["tokens"] == 17
    assert work.rows[0]["token_ids"][0][:7] == work.rows[0]["token_ids"][2][:7] != work.rows[1]["token_ids"][0][:7]
    assert [len(batch) for batch in work.batches(5)] == [2] * 5


def test_training_contenders_take_turns() -> None:
    work = workload.synthetic("tiny", prompt=20, responses=(5, 6, 7), groups=6, batch_size=2)
    result = measure(work, ["shared", "padded", "trl"], kind="train", rounds=2)
    assert result["contenders"]["shared"]["ratio"] == 1.0
    for figures in result["contenders"].values():
        assert len(figures["ratios"]) == 2 and figures["seconds"] > 0
        # 2 groups of 2 comparisons, 3 responses and 20 + 18 unique tokens
        assert figures["comparisons_per_second"] * 3 == pytest.approx(figures["sequences_per_second"] * 2, rel=0.5)
        assert figures["unique_tokens_per_second"] / figures["comparisons_per_second"] == pytest.approx(19, rel=0.5)


def test_scoring_contenders_give_the_same_rewards() -> None:
    from palate.bench.contenders import plain_classifier, scoring_pass

    work = workload.synthetic("tiny", prompt=20, responses=(5, 6), groups=3, batch_size=3)
    assert type(plain_classifier(work.model)).__module__.startswith("transformers.models")
    for name in ("shared", "packed", "padded"):
        scoring_pass(name, work)(work.rows)
    assert set(measure(work, ["shared", "padded", "pipeline"], kind="score", rounds=1)["contenders"]) == {"shared", "padded", "pipeline"}


def test_the_command_writes_figures_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"prompt": f"tell me about {i}", "chosen": f"yes, gladly {i}", "rejected": "no"} for i in range(12)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["bench", "--data", str(data), "--model", "tiny", "--rounds", "1", "--batch-size", "3", "--no-memory", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--against", "padded"]) == 0
    assert "palate" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert set(record["contenders"]) == {"auto", "padded"} and record["machine"]["versions"]["torch"]
    assert (tmp_path / "out" / "bench.png").stat().st_size > 5000
    assert main([*arguments, "--against", "nobody"]) == 2


@pytest.mark.slow
def test_peak_memory_and_growth_come_from_fresh_processes(tmp_path: Path) -> None:
    from palate.bench.speed import memory_growth

    figures = memory_growth(rows=(64, 256), steps=2)["rows"]
    assert set(figures) == {"64", "256"} and all(100 < figure["peak"] < 4000 for figure in figures.values())
