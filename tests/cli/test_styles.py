"""`palate build` and `palate judge audit` in every style, as a user runs them against a stub endpoint: rows, cards, dry runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.judging.stub_server import Dials, running

from palate.cli.main import main

WORDS = (("good", 1.5), ("fair", 0.2), ("bad", -1.0))
ROWS = [{"prompt": f"Question {k}?", "models": ["m", "n", "o"], "responses": [f"{w} answer number {k} (strength {s})" for w, s in WORDS]} for k in range(10)]
ORDER = ["good", "fair", "bad"]
STYLES: dict[str, tuple[list[str], int]] = {  # flags, calls of the first turn
    "pairs": ([], 60),
    "log-odds": (["--form", "token"], 60),
    "ratings": (["--style", "rating"], 30),
    "ratings as JSON with votes": (["--style", "rating", "--form", "json", "--votes", "3", "--scale", "1", "10"], 90),
    "lists": (["--style", "list"], 20),
    "lists as JSON": (["--style", "list", "--form", "json", "--orders", "4"], 40),
}


@pytest.fixture
def data(write_jsonl) -> str:
    return str(write_jsonl(ROWS, "responses.jsonl"))


def arguments(data: str, url: str, tmp_path: Path, *more: str) -> list[str]:
    common = ["--judge", "stub", "--base-url", url, "--cache", str(tmp_path / "answers.sqlite"), "--price", "1", "2"]
    return ["build", "--data", data, "--output", str(tmp_path / "prefs.jsonl"), *common, *more]


def card_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "prefs.card.json").read_text())


@pytest.mark.parametrize("style", STYLES)
def test_every_style_makes_the_right_rows(style: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, calls = STYLES[style]
    with running(Dials(position_bias=0.3)) as stub:
        command = arguments(data, stub.url, tmp_path, *flags)
        assert main([*command, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert f"{calls} requests, 0 answered before: {calls} calls" in out and "canaries:" in out and stub.stats()["served"] == 0
        assert main(command) == 0
        first, served = (tmp_path / "prefs.jsonl").read_text(), stub.stats()["served"]
        assert main(command) == 0 and stub.stats()["served"] == served and (tmp_path / "prefs.jsonl").read_text() == first
    out, card = capsys.readouterr().out, card_of(tmp_path)
    rows = [json.loads(line) for line in first.splitlines()]
    assert len(rows) == card["rows"] == 30 and card["judged_pairs"] == 30
    assert all(ORDER.index(row["chosen"].split()[0]) < ORDER.index(row["rejected"].split()[0]) for row in rows)
    asked = card["canaries"]["asked"]
    assert asked == (2 if "ratings" in style else 4), "5 % of 30 pairs are 2; a response rated twice has one rating"
    assert "Canaries:" in out and not any("Question" not in row["prompt"] or row["chosen"] == row["rejected"] for row in rows)
    front = yaml.safe_load((tmp_path / "prefs.card.md").read_text().split("---\n")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "prefs.jsonl" and main(["data", "check", str(tmp_path / "prefs.jsonl")]) == 0


def test_log_odds_are_averaged_where_nothing_is_said(data: str, tmp_path: Path) -> None:
    """Position worth 2 outweighs neighbours: by default their mean is kept, as a margin that is the judge's own; a flag wins."""
    with running(Dials(position_bias=2.0)) as stub:
        command = arguments(data, stub.url, tmp_path, "--no-source-prior", "--canaries", "0")
        assert main([*command, "--form", "token"]) == 0
        card, rows = card_of(tmp_path), [json.loads(line) for line in (tmp_path / "prefs.jsonl").read_text().splitlines()]
        assert card["provenance"]["policy"] == "keep_mean" and card["rows"] == 30 and card["outcomes"]["contradiction"] == 20 and card["canaries"] is None
        margins = {(row["chosen"].split()[0], row["rejected"].split()[0]): row["margin"] for row in rows}
        assert margins == {
            ("good", "fair"): pytest.approx(1.3, abs=0.01),
            ("fair", "bad"): pytest.approx(1.2, abs=0.01),
            ("good", "bad"): pytest.approx(2.5, abs=0.01),
        }
        assert main([*command, "--form", "token", "--policy", "drop"]) == 0
        assert card_of(tmp_path)["provenance"]["policy"] == "drop" and card_of(tmp_path)["left_out"] == {"contradiction": 20}
        assert main(command) == 0 and card_of(tmp_path)["provenance"]["policy"] == "drop"


def test_aspects_from_a_file(data: str, tmp_path: Path) -> None:
    aspects = tmp_path / "aspects.yaml"
    aspects.write_text("truth: Is it true?\nbrevity: Is it brief?\n")
    with running(Dials()) as stub:
        assert main(arguments(data, stub.url, tmp_path, "--style", "rating", "--aspects", str(aspects), "--limit", "4", "--rating-span", "9")) == 0
        row = json.loads((tmp_path / "prefs.jsonl").read_text().splitlines()[0])
        assert set(row["aspects_chosen"]) == {"truth", "brevity"} and row["margin"] == min(3.0, row["rating_chosen"] - row["rating_rejected"])
        assert card_of(tmp_path)["provenance"]["criteria"] == {"truth": "Is it true?", "brevity": "Is it brief?"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--style", "list", "--votes", "3"], "raise --orders"),
        (["--style", "list", "--orders", "3"], "mirror image"),
        (["--style", "list", "--form", "token"], "--form token is a verdict on a pair"),
        (["--style", "rating", "--policy", "drop"], "a rating is given without an order"),
        (["--style", "rating", "--scale", "10", "1"], "the lower one first"),
        (["--style", "rating", "--pairs-per-prompt", "2"], "style rating asks about all responses"),
        (["--aspects", "none.yaml"], "use --style rating, or --criteria"),
        (["--style", "rating", "--aspects", "none.yaml"], "cannot be read as YAML"),
        (["--style", "rating", "--judge", "rm:folder"], "use --style pairwise"),
        (["--canaries", "-1"], "-1 canary pairs"),
        (["--orders", "4"], "--orders is for --style list, and --style is pairwise"),
        (["--style", "rating", "--window", "3"], "--window is for --style list, and --style is rating"),
        (["--scale", "1", "5"], "--scale is for --style rating, and --style is pairwise"),
        (["--output", "rows.txt"], "expected a .jsonl or .parquet file"),
    ],
)
def test_what_is_asked_in_vain_is_refused(flags: list[str], message: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(Dials()) as stub:
        assert main(arguments(data, stub.url, tmp_path, "--no-probe", *flags)) == 2
        assert stub.stats()["served"] == 0
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("style", ["rating", "list"])
def test_audit_in_other_styles(style: str, write_jsonl, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {k}?", "chosen": f"good {k} (strength 2)", "rejected": f"bad {k} (strength -2)"} for k in range(8)]
    gold, output = str(write_jsonl(rows, "gold.jsonl")), tmp_path / "audit.json"
    with running(Dials()) as stub:
        common = ["--judge", "stub", "--base-url", stub.url, "--cache", str(tmp_path / "a.sqlite"), "--output", str(output), "--no-probe"]
        assert main(["judge", "audit", "--data", gold, "--style", style, *common]) == 0
        assert stub.stats()["served"] == 16, "two responses, or two orders, of eight pairs"
    figures = json.loads(output.read_text())
    assert figures["accuracy"]["value"] == 1.0 and figures["contradictions"] == 0 and figures["provenance"]["style"] == style


@pytest.mark.parametrize("mode", ["jury", "cascade"])
def test_a_panel_builds_rows_and_says_what_each_member_did(mode: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"mode": mode, "judges": [{"model": "one"}, {"model": "two", "form": "token"}]}))
    with running(Dials(position_bias=0.3)) as stub:
        command = arguments(data, stub.url, tmp_path, "--no-probe")
        command[command.index("stub")] = f"panel:{panel}"
        assert main([*command, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert out.count("60 requests, 0 answered before: 60 calls") == 2 and ("at most" in out.split("two (")[1][:60]) == (mode == "cascade")
        assert stub.stats()["served"] == 0 and main(command) == 0
        card = card_of(tmp_path)
        assert stub.stats()["served"] == 64 * (2 if mode == "jury" else 1), "60 verdicts and 4 canaries; a cascade passes nothing on that is decided"
    assert card["rows"] == 30 and card["panel"]["mode"] == mode and card["canaries"]["asked"] == 4
