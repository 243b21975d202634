"""`palate generate`, `palate judge audit` and `palate build` as a user runs them, against a stub endpoint and a tiny reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from tests.conftest import TOKENIZERS, tiny_model
from tests.judging.stub_server import Dials, running

from palate.cli.main import main

GROUPS = [{"prompt": f"Question {k}?", "responses": [f"{word} {k} (strength {s})" for word, s in (("good", 2), ("fair", 0), ("bad", -2))]} for k in range(6)]
GOLD = [
    {
        "prompt": f"Question {k}?",
        "chosen": f"good {k} (strength 2)",
        "rejected": f"bad {k} (strength -2)",
        "chosen_model": "m",
        "rejected_model": "n",
    }
    for k in range(12)
]


def flags(url: str, tmp_path: Path) -> list[str]:
    return ["--judge", "stub", "--base-url", url, "--cache", str(tmp_path / "answers.sqlite"), "--price", "1", "2"]


@pytest.fixture
def rows(write_jsonl) -> str:
    return str(write_jsonl([{**row, "models": ["m", "n", "o"]} for row in GROUPS], "responses.jsonl"))


def test_build_writes_rows_and_card_and_asks_once(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "prefs.jsonl"
    with running(Dials()) as stub:
        arguments = ["build", "--data", rows, "--output", str(output), *flags(stub.url, tmp_path)]
        assert main([*arguments, "--dry-run"]) == 0
        assert "36 requests, 0 answered before: 36 calls" in capsys.readouterr().out
        assert stub.stats()["served"] == 0 and not (tmp_path / "answers.sqlite").exists() and not output.exists()
        assert main(arguments) == 0
        served, first = stub.stats()["served"], output.read_text()
        assert main(arguments) == 0 and stub.stats()["served"] == served and output.read_text() == first
    built = [json.loads(line) for line in first.splitlines()]
    card = json.loads(output.with_suffix(".card.json").read_text())
    assert len(built) == card["rows"] == 18 and all(row["chosen"].split()[0] in ("good", "fair") for row in built)
    assert card["judged_pairs"] == card["rows"] + sum(card["left_out"].values()) and card["source_strengths"]["m"] > card["source_strengths"]["o"]
    assert card["provenance"]["judge"] == "stub" and card["provenance"]["policy"] == "drop" and card["calls"]["requests"] == 0 < card["calls"]["cached"]
    assert main(["data", "check", str(output)]) == 0


def test_rows_as_parquet(rows: str, tmp_path: Path) -> None:
    with running(Dials()) as stub:
        common = ["build", "--data", rows, *flags(stub.url, tmp_path)]
        assert main([*common, "--output", str(tmp_path / "p.parquet")]) == main([*common, "--output", str(tmp_path / "p.jsonl")]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert table == [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert main(["data", "check", str(tmp_path / "p.parquet")]) == 0


@pytest.mark.parametrize("flag", ["--limit=-1", "--concurrency=0", "--ridge=0", "--margin-clip=-1", "--rating-span=-3", "--temperature=-1", "--max-tokens=0"])
def test_numbers_that_cannot_be_are_refused_before_anything_is_asked(flag: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(Dials()) as stub:
        with pytest.raises(SystemExit) as ended:
            main(["build", "--data", rows, "--output", str(tmp_path / "p.jsonl"), *flags(stub.url, tmp_path), flag])
        assert ended.value.code == 2 and stub.stats()["served"] == 0
    assert f"argument {flag.split('=')[0]}" in capsys.readouterr().err


def test_a_budget_ends_a_build_with_what_it_has_and_the_next_goes_on(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """18 pairs in both orders with calls for ten: ten rows, the others counted. With a larger budget the rows are those of a run that was never stopped."""

    def build(name: str, cache: str, *more: str) -> tuple[bytes, dict[str, Any]]:
        output = tmp_path / f"{name}.jsonl"
        arguments = ["build", "--data", rows, "--output", str(output), "--judge", "stub", "--base-url", stub.url, "--cache", str(tmp_path / cache)]
        assert main([*arguments, "--no-probe", "--canaries", "0", "--concurrency", "1", *more]) == 0
        return output.read_bytes(), json.loads(output.with_suffix(".card.json").read_text())

    with running(Dials()) as stub:
        undisturbed, _ = build("undisturbed", "one.sqlite")
        served = stub.stats()["served"]
        part, card = build("part", "two.sqlite", "--max-requests", "20")
        assert "The budget ended the run" in capsys.readouterr().out and stub.stats()["served"] == served + 20
        assert len(part.splitlines()) == card["rows"] == 10 and card["left_out"] == {"both invalid": 8} and card["calls"]["failures"] == {"budget": 16}
        whole, _ = build("part", "two.sqlite", "--max-requests", "20")
        assert whole == undisturbed and stub.stats()["served"] == served + 36, "no answer was asked for twice"


@pytest.mark.parametrize(
    "changed", [["--temperature", "0.5"], ["--criteria", "Be kind."], ["--form", "binary"], ["--judge", "other"], ["--sampling-seed", "1"]]
)
def test_another_question_is_asked_anew_and_the_same_one_never(changed: list[str], rows: str, tmp_path: Path) -> None:
    with running(Dials()) as stub:
        common = ["build", "--data", rows, "--output", str(tmp_path / "p.jsonl"), *flags(stub.url, tmp_path), "--no-probe", "--canaries", "0"]
        for given, served in ((common, 36), (common, 36), ([*common, *changed], 72), ([*common, *changed], 72)):
            assert main(given) == 0 and stub.stats()["served"] == served


def test_build_with_log_odds_and_votes(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "prefs.jsonl"
    with running(Dials(position_bias=0.5)) as stub:
        common = ["build", "--data", rows, "--output", str(output), *flags(stub.url, tmp_path)]
        assert main([*common, "--form", "token", "--policy", "keep_mean"]) == 0
        card = json.loads(output.with_suffix(".card.json").read_text())
        assert card["position"]["gamma"] == pytest.approx(0.5, abs=1e-6) and card["position"]["from"] == "log-odds"
        assert main([*common, "--votes", "3", "--limit", "2"]) == 0
        stub.turn(Dials(sampling=False))
        other = [part if not part.endswith(".sqlite") else str(tmp_path / "other.sqlite") for part in common]
        assert main([*other, "--votes", "3"]) == 2
    assert "working sampling" in capsys.readouterr().err


def test_audit_and_its_gate(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold, output = str(write_jsonl(GOLD, "gold.jsonl")), tmp_path / "audit.json"
    with running(Dials()) as stub:
        common = ["judge", "audit", "--data", gold, "--output", str(output), *flags(stub.url, tmp_path)]
        assert main([*common, "--min-kappa", "0.6", "--writer", "m"]) == 0
        figures = json.loads(output.read_text())
        assert figures["accuracy"]["value"] == 1.0 and figures["kappa"]["value"] == 1.0 and figures["cost_per_kept_pair"] > 0
        assert figures["self_preference"]["writer"] == "m" and figures["provenance"]["judge"] == "stub"
        stub.turn(Dials(position_bias=9.0))
        other = [part if not part.endswith(".sqlite") else str(tmp_path / "other.sqlite") for part in common]
        assert main([*other, "--min-kappa", "0.6"]) == 1
    assert "under 0.6" in capsys.readouterr().out and json.loads(output.read_text())["contradictions"] == 12


LLMBAR = [
    {"id": f"{subset}-{k}", "subset": subset, "input": f"Do {k}.", "output_1": texts[k % 2], "output_2": texts[1 - k % 2], "label": 1 + k % 2}
    for subset, texts in (("Natural", ("right (strength 2)", "wrong (strength -2)")), ("GPTOut", ("right (strength -1)", "wrong (strength 1)")))
    for k in range(6)
]
"""Items that a judge of strengths gets right in one subset and wrong in the other."""


def test_a_judge_by_the_table_of_a_benchmark(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Live and from what was recorded meanwhile: one table. Read again, the replies give the verdicts on record."""
    items, output = str(write_jsonl(LLMBAR, "llmbar.jsonl")), tmp_path / "audit.json"
    with running(Dials()) as stub:
        common = ["judge", "audit", "--benchmark", "llmbar", "--data", items, "--output", str(output), *flags(stub.url, tmp_path), "--no-probe"]
        assert main(common) == 3 and "no item of 3 of its 5 subsets" in " ".join(capsys.readouterr().err.split())
        assert stub.stats()["served"] == 0, "said before anything is asked"
        assert main([*common, "--partial"]) == 0
    figures, out = json.loads(output.read_text()), capsys.readouterr().out
    scores = {name: score["value"] for name, score in figures["benchmark"]["scores"].items()}
    assert (scores["Natural"], scores["GPTOut"], scores["average"], scores["same verdict in both orders"]) == (1.0, 0.0, 0.5, 1.0)
    assert figures["accuracy"]["value"] == 0.5 and figures["benchmark"]["unscored"] == 0
    judgments = output.with_suffix(".judgments.jsonl")
    assert main(["eval", "--benchmark", "llmbar", "--scores", str(judgments), "--partial"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert table and [line for line in out.splitlines() if "%" in line][: len(table)] == table
    assert main(["judge", "replay", str(judgments), "--form", "five_step"]) == 0
    assert "24 replies read; 0 give another verdict" in " ".join(capsys.readouterr().out.split())


def test_what_a_judge_did_not_say_counts_as_wrong_in_a_benchmark(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, output = str(write_jsonl(LLMBAR[:6], "llmbar.jsonl")), tmp_path / "audit.json"
    with running(Dials(bad_request_rate=1.0)) as stub:
        common = ["judge", "audit", "--benchmark", "llmbar", "--data", items, "--output", str(output), "--partial", "--no-probe"]
        assert main([*common, *flags(stub.url, tmp_path)]) == 0
    figures = json.loads(output.read_text())
    assert figures["benchmark"]["scores"]["Natural"]["value"] == 0.0 and figures["benchmark"]["unscored"] == 6 and figures["invalid"] == 12
    assert "6 items could not be scored and count as wrong" in " ".join(capsys.readouterr().out.split())


def test_ratings_are_scored_as_rewards_are(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RewardBench 2: one right of four, and a tie of the right one with a wrong one counts half; each response is rated once."""
    rows = [
        {"id": "1", "subset": "Focus", "prompt": "p1", "chosen": ["a (strength 2)"], "rejected": ["b (strength 0)", "c (strength -1)", "d (strength -2)"]},
        {"id": "2", "subset": "Focus", "prompt": "p2", "chosen": ["a (strength 1)"], "rejected": ["b (strength 1)", "c (strength -1)", "d (strength -2)"]},
    ]
    items, output = str(write_jsonl(rows, "items.jsonl")), tmp_path / "audit.json"
    with running(Dials()) as stub:
        common = ["judge", "audit", "--benchmark", "rewardbench2", "--data", items, "--output", str(output), "--partial", "--no-probe"]
        common += flags(stub.url, tmp_path)
        assert main(common) == 2 and "rate them (--style rating)" in " ".join(capsys.readouterr().err.split())
        assert main([*common, "--style", "rating"]) == 0 and stub.stats()["served"] == 8
    assert json.loads(output.read_text())["benchmark"]["scores"]["Focus"]["value"] == 0.75


@pytest.mark.parametrize(("given", "said"), [([], "nothing to measure"), (["--data", "sample", "--partial"], "--partial does nothing")])
def test_an_audit_of_nothing(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "audit", "--judge", "stub", *given]) == 2
    assert said in capsys.readouterr().err


def test_a_reward_model_as_judge(rows: str, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "rm", tmp_path / "prefs.jsonl"
    tiny_model().save_pretrained(folder)
    TOKENIZERS["qwen3"]().save_pretrained(folder)
    arguments = ["build", "--data", rows, "--output", str(output), "--judge", f"rm:{folder}"]
    assert main([*arguments, "--dry-run"]) == 0 and "no calls" in capsys.readouterr().out
    assert main(arguments) == 0
    card = json.loads(output.with_suffix(".card.json").read_text())
    assert card["provenance"]["kind"] == "reward model" and card["outcomes"] == {"agreed": 18} and card["calls"] == {}
    assert main(["judge", "audit", "--data", str(write_jsonl(GOLD, "gold.jsonl")), "--judge", f"rm:{folder}"]) == 0


def test_generate(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = str(write_jsonl([{"prompt": f"Say something about {k}.", "id": k} for k in range(5)], "prompts.jsonl"))
    config, output = tmp_path / "sources.yaml", tmp_path / "responses.jsonl"
    sources: list[dict[str, Any]] = [{"model": "one"}, {"model": "two", "temperature": [0.7, 1.0], "on_policy": True}]
    config.write_text(yaml.safe_dump({"sources": sources, "per_prompt": 4}))
    with running(Dials()) as stub:
        common = ["generate", "--config", str(config), "--prompts", prompts, "--output", str(output), "--cache", str(tmp_path / "a.sqlite")]
        arguments = [*common, "--base-url", stub.url]
        assert main([*arguments, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "one: 10 calls" in out and "20 requests, 0 answered before: 20 calls" in out and "Besides these" in out and stub.stats()["served"] == 0
        assert main(arguments) == 0 and main(arguments) == 0 and stub.stats()["served"] == 20 + 2 * 5, "each model is probed once"
        written = [json.loads(line) for line in output.read_text().splitlines()]
        report = json.loads(output.with_suffix(".report.json").read_text())
        assert [row["id"] for row in written] == ["0", "1", "2", "3", "4"] and report["responses"] == 20 and report["by_source"] == {"one": 10, "two": 10}
        assert report["diversity"]["overall"]["identical"] == 0.0 and report["calls"]["cached"] == 30
        assert main(["build", "--data", str(output), "--output", str(tmp_path / "p.jsonl"), "--judge", "x", "--base-url", stub.url, "--dry-run"]) == 0
        stub.turn(Dials(sampling=False))
        other = [part if part != str(tmp_path / "a.sqlite") else str(tmp_path / "b.sqlite") for part in arguments]
        assert main(other) == 4 and "decodes greedily" in capsys.readouterr().err
        assert main([*other, "--allow-constant"]) == 0
    config.write_text(yaml.safe_dump({"sources": [{"modle": "one"}]}))
    assert main(arguments) == 2 and "did you mean `model`?" in capsys.readouterr().err


def test_sources_at_their_own_price_and_the_alarm_before_anything_is_spent(write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`one` costs 1 and 2 a million, `two` 10 and 20; a server that decodes greedily is found by 5 calls a model, not by the run."""
    prompts = str(write_jsonl([{"prompt": f"Say something about {k}."} for k in range(5)], "prompts.jsonl"))
    config, output = tmp_path / "sources.yaml", tmp_path / "responses.jsonl"
    config.write_text(yaml.safe_dump({"sources": [{"model": "one", "price": [1, 2]}, {"model": "two", "price": [10, 20]}], "per_prompt": 2}))
    with running(Dials()) as stub:
        arguments = ["generate", "--config", str(config), "--prompts", prompts, "--output", str(output), "--base-url", stub.url]
        arguments += ["--cache", str(tmp_path / "a.sqlite")]
        assert main([*arguments, "--dry-run"]) == 0 and "cost: unknown" not in capsys.readouterr().out
        assert main([*arguments, "--max-cost", "1.0", "--no-probe"]) == 0
        calls = json.loads(output.with_suffix(".report.json").read_text())["calls"]
        tokens = calls["prompt_tokens"] / 1e6, calls["completion_tokens"] / 1e6
        assert 1.5 * (tokens[0] + 2 * tokens[1]) < calls["cost"] < 9.5 * (tokens[0] + 2 * tokens[1]) and calls["requests"] == 10
        stub.turn(Dials(sampling=False))
        served = stub.stats()["served"]
        assert main([*arguments[:-1], str(tmp_path / "b.sqlite")]) == 4 and stub.stats()["served"] == served + 10
        assert "one (1 different answers of 4 at temperature 1), two" in " ".join(capsys.readouterr().err.split())


def test_the_key_of_the_command_line_is_not_for_the_endpoints_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palate.cli.generate import open_callers, parse, with_endpoints
    from palate.cli.panels import read_members
    from palate.judging.generation import Prompt, plan
    from palate.judging.sources import parse_generation

    monkeypatch.setenv("MINE", "secret")
    monkeypatch.setenv("THEIRS", "other")
    sources = [{"model": "a"}, {"model": "b", "base_url": "http://b.test/v1"}, {"model": "c", "base_url": "http://c.test/v1", "api_key_env": "THEIRS"}]
    options = parse(["--config", "x", "--prompts", "x", "--output", "x", "--base-url", "http://a.test/v1", "--api-key-env", "MINE"])
    options.cache = str(tmp_path / "a.sqlite")
    settings = with_endpoints(parse_generation({"sources": sources, "per_prompt": 3}), options.base_url, options.api_key_env)
    callers = open_callers(options, plan([Prompt("p", "1")], settings))
    keys = {url: caller.client._settings["api_key"] for url, caller in callers.items()}  # type: ignore[attr-defined]
    assert keys == {"http://a.test/v1": "secret", "http://b.test/v1": "none", "http://c.test/v1": "other"}

    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump({"judges": sources}))
    options.judge, options.style, options.votes = f"panel:{path}", "pairwise", 1
    assert [member.api_key_env for member in read_members(options)[1]] == ["MINE", None, "THEIRS"]


def test_no_key_goes_to_an_address_that_it_was_not_given_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from palate.cli.judging import _key
    from palate.errors import ConfigError

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert _key(None) is None
    monkeypatch.setenv("OTHER_KEY", "mine")
    assert _key("OTHER_KEY") == "mine"
    with pytest.raises(ConfigError, match="--api-key-env NO_KEY: this environment variable is not set"):
        _key("NO_KEY")
