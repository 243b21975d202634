"""Juries and cascades on the command line: members from YAML, one budget, what each said and cost, in a build's card, in an audit and in a dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.conftest import TOKENIZERS, tiny_model
from tests.judging.stub_server import Dials, running

from palate.cli.main import main

GOLD = [{"prompt": f"Question {k}?", "chosen": f"good {k} (strength 2)", "rejected": f"bad {k} (strength 1)"} for k in range(20)]
GROUPS = [{"prompt": f"Question {k}?", "responses": [f"good {k} (strength 2)", f"bad {k} (strength 1)"], "models": ["m", "n"]} for k in range(12)]


def panel(tmp_path: Path, **settings: object) -> str:
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(settings))
    return f"panel:{path}"


def audit(tmp_path: Path, write_jsonl, judge: str, *more: str) -> dict:  # type: ignore[no-untyped-def]
    output = tmp_path / "audit.json"
    gold = str(write_jsonl(GOLD, "gold.jsonl"))
    arguments = ["judge", "audit", "--data", gold, "--judge", judge, "--output", str(output), "--cache", str(tmp_path / "a.sqlite"), *more]
    assert main(arguments) == 0
    return json.loads(output.read_text())


def test_an_audit_of_a_jury(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that are always right, one that goes for the first position: right in one order of each pair. Errors of the first two do not vary."""
    with running(Dials()) as good, running(Dials(position_bias=9.0)) as biased:
        members = [
            {"model": "stub", "name": "one", "base_url": good.url, "price": [1.0, 2.0]},
            {"model": "stub", "name": "two", "base_url": good.url, "price": [10.0, 20.0], "criteria": "Be strict.", "weight": 2},
            {"model": "stub", "name": "three", "base_url": biased.url, "price": [1.0, 2.0]},
        ]
        figures = audit(tmp_path, write_jsonl, panel(tmp_path, judges=members), "--canaries", "5")
    own = figures["panel"]
    assert [(one["name"], one["weight"], one["accuracy"]) for one in own["members"]] == [("one", 1.0, 1.0), ("two", 2.0, 1.0), ("three", 1.0, 0.5)]
    assert own["by_weight"] == pytest.approx(16 / 6) and own["effective_votes"] == pytest.approx(3.0)
    same = {tuple(one["of"]): one["same"] for one in own["agreement"]}
    canaries = figures["canaries"]["asked"]
    assert same["one", "two"] == 1.0 and 0.4 < same["one", "three"] < 0.6 and own["agreement"][0]["n"] == 40 + canaries
    assert figures["accuracy"]["value"] == 1.0
    assert figures["canaries"]["told_apart"]["value"] == 1.0, "ties are half a vote each way, so that one vote in four decides: 5/8"
    costs = [calls["cost"] for calls in own["calls"]]
    assert costs[1] > 5 * costs[0] and figures["calls"]["cost"] == pytest.approx(sum(costs))
    assert [one["criteria"] for one in figures["provenance"]["members"]] == ["", "Be strict.", ""] and figures["provenance"]["judge"] == "one + two + three"
    out = " ".join(capsys.readouterr().out.split())
    assert "independent votes by correlation of errors" in out and "agreement of one and three" in out


def test_a_cascade_asks_the_strong_judge_about_what_is_left(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cheap one goes for the first position, contradicts itself on every pair, and decides none: the strong one is asked about all, in both orders."""
    output = tmp_path / "prefs.jsonl"
    with running(Dials(position_bias=9.0)) as torn, running(Dials()) as strong:
        members = [{"model": "stub", "name": "weak", "base_url": torn.url}, {"model": "stub", "name": "strong", "base_url": strong.url}]
        arguments = ["build", "--data", rows, "--output", str(output), "--judge", panel(tmp_path, mode="cascade", judges=members)]
        arguments += ["--cache", str(tmp_path / "b.sqlite"), "--no-probe", "--canaries", "2"]
        assert main([*arguments, "--dry-run"]) == 0 and torn.stats()["served"] == strong.stats()["served"] == 0
        assert main(arguments) == 0
        weak, both = torn.stats()["served"], strong.stats()["served"]
    card = json.loads(output.with_suffix(".card.json").read_text())
    cascade = card["panel"]["cascade"]
    assert (cascade["pairs"], cascade["passed_on"], cascade["share_passed_on"]) == (12, 12, 1.0) and card["rows"] == 12
    assert both >= 24 and card["provenance"]["judge"] == "weak > strong" and [calls["requests"] for calls in card["panel"]["calls"]] == [weak, both]


def test_a_cascade_that_is_sure_asks_nobody_else(rows: str, tmp_path: Path) -> None:
    with running(Dials()) as sure, running(Dials()) as idle:
        members = [{"model": "stub", "name": "sure", "base_url": sure.url}, {"model": "stub", "name": "idle", "base_url": idle.url}]
        arguments = ["build", "--data", rows, "--output", str(tmp_path / "p.jsonl"), "--judge", panel(tmp_path, mode="cascade", judges=members)]
        assert main([*arguments, "--cache", str(tmp_path / "c.sqlite"), "--no-probe", "--canaries", "0"]) == 0
        assert (sure.stats()["served"], idle.stats()["served"]) == (24, 0)


def test_the_budget_is_one_for_all(write_jsonl, tmp_path: Path) -> None:
    with running(Dials()) as stub:
        members = [{"model": "stub", "name": name, "base_url": stub.url, "criteria": name} for name in ("one", "two")]
        figures = audit(tmp_path, write_jsonl, panel(tmp_path, judges=members), "--no-probe", "--max-requests", "50")
        assert stub.stats()["served"] == 50
    assert [calls["requests"] for calls in figures["panel"]["calls"]] == [40, 10] and figures["panel"]["members"][1]["invalid"] == 30


def test_members_of_other_kinds(write_jsonl, tmp_path: Path) -> None:
    folder = tmp_path / "rm"
    tiny_model().save_pretrained(folder)
    TOKENIZERS["qwen3"]().save_pretrained(folder)
    with running(Dials()) as stub:
        members = [{"model": f"rm:{folder}", "name": "rm"}, {"model": "stub", "base_url": stub.url, "form": "json", "votes": 3}]
        figures = audit(tmp_path, write_jsonl, panel(tmp_path, judges=members), "--limit", "5")
    assert (
        figures["panel"]["calls"][0] is None and figures["provenance"]["members"][1]["votes"] == 3 and figures["provenance"]["members"][1]["variant"] == "json"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"judges": [{"model": "a"}]}, "at least 2"),
        ({"judges": [{"model": "a"}, {"model": "a"}]}, "two judges are named 'a'"),
        ({"judges": [{"model": "a", "wieght": 2}, {"model": "b"}]}, "did you mean `weight`?"),
        ({"mode": "jury", "doubtful": 0.1, "judges": [{"model": "a"}, {"model": "b"}]}, "`doubtful` is for a cascade"),
        ({"mode": "cascade", "judges": [{"model": "a", "weight": 2}, {"model": "b"}]}, "`weight` is for a jury"),
        ({"judges": [{"model": "panel:x"}, {"model": "b"}]}, "is a panel itself"),
    ],
)
def test_panels_that_cannot_be_meant(settings: dict, said: str, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[type-arg]
    judge = panel(tmp_path, **settings)
    assert main(["judge", "audit", "--data", str(write_jsonl(GOLD, "gold.jsonl")), "--judge", judge]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_panel_has_no_style_or_votes_of_its_own(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = panel(tmp_path, judges=[{"model": "a"}, {"model": "b"}])
    gold = str(write_jsonl(GOLD, "gold.jsonl"))
    for flags in (["--votes", "3"], ["--style", "rating"]):
        assert main(["judge", "audit", "--data", gold, "--judge", judge, *flags]) == 2
        assert "a panel compares pairs" in " ".join(capsys.readouterr().err.split())
    assert main(["judge", "audit", "--data", gold, "--judge", "panel:nowhere.yaml"]) == 2 and "no such file" in capsys.readouterr().err


def test_the_gold_set_of_the_package(tmp_path: Path) -> None:
    """A judge that likes length: by the figures it does, and it is wrong where that is the trap."""
    with running(Dials(length_bias=5.0)) as stub:
        arguments = ["judge", "audit", "--data", "sample", "--judge", "stub", "--base-url", stub.url, "--cache", str(tmp_path / "a.sqlite")]
        assert main([*arguments, "--output", str(tmp_path / "audit.json"), "--canaries"]) == 0
    figures = json.loads((tmp_path / "audit.json").read_text())
    assert figures["length"]["prefers_longer"]["value"] == 1.0 and figures["accuracy"]["value"] == pytest.approx(27 / 66, abs=0.02)
    assert figures["canaries"]["asked"] > 90


@pytest.fixture
def rows(write_jsonl) -> str:  # type: ignore[no-untyped-def]
    return str(write_jsonl(GROUPS, "responses.jsonl"))
