"""The Markdown card says what the data card says, its metadata are what the Hub reads, and nothing in a name or a reason breaks its tables."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.judging.stub_server import Dials
from tests.judging.stubs import Counted, Told, responses

from palate.judging.build import Built, build, build_listed, build_rated
from palate.judging.caller import Caller
from palate.judging.card_markdown import card_markdown, metadata
from palate.judging.combining import BothOrders
from palate.judging.judge import ChatJudge, Instructions
from palate.judging.list_judge import ListJudge
from palate.judging.prompts import PairPrompt
from palate.judging.rating_judge import RatingJudge
from palate.judging.watched import Watched, draw_canaries

PROMPTS = [f"Question {g}?" for g in range(8)]
GROUPS = [responses(*(f"answer {g} {k} (strength {s})" for k, s in enumerate((1.5, 0.5, 0.5))), sources=("m", "n", "o|p")) for g in range(8)]


def built_by(style: str) -> Built:
    caller = Caller(Counted(Dials(position_bias=0.3, tie_width=0.1)).client)
    if style == "rating":
        judge = RatingJudge(caller, "stub", votes=2)
        return build_rated(judge, PROMPTS, GROUPS, provenance=judge.provenance())
    if style == "list":
        ranking = ListJudge(caller, "stub")
        return build_listed(ranking, PROMPTS, GROUPS, policy="keep_mean", provenance=ranking.provenance())
    chat = ChatJudge(caller, "stub", instructions=Instructions(PairPrompt("token" if style == "log-odds" else "five_step"), criteria="Short | and [plain]."))
    return build(BothOrders(chat, "keep_mean").judge_pairs, PROMPTS, GROUPS, provenance=chat.provenance() | {"policy": "keep_mean"})


def parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def tables(body: str) -> list[list[list[str]]]:
    """Cells of every table; an escaped bar is no border."""
    found: list[list[list[str]]] = [[]]
    for line in body.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def facts(body: str) -> dict[str, str]:
    return {row[0]: row[1] for table in tables(body) for row in table if len(row) >= 2}


@pytest.mark.parametrize("style", ["pairwise", "log-odds", "rating", "list"])
def test_every_style_has_a_card_with_its_figures(style: str) -> None:
    built = built_by(style)
    card = built.card
    front, body = parts(card_markdown(card, name="prefs", file="prefs.jsonl"))
    assert front["size_categories"] == ["n<1K"] and front["configs"][0]["data_files"] == [{"split": "train", "path": "prefs.jsonl"}]
    assert front["tags"][0] == "preference" and front["pretty_name"] == "prefs" and "license" not in front
    told = facts(body)
    assert told["rows"] in (f"{len(built.rows)}", f"`{card['fingerprint']}`") and told["prompts"] in ("8", f"`{card['prompts_hash']}`")
    assert told["pairs with a judgment"] == str(card["judged_pairs"]) and told["longer response chosen"] == f"{100 * card['longer_chosen']:.1f} %"
    for table in tables(body):
        assert len({len(row) for row in table}) == 1, f"ragged: {table}"
    histogram = next(table for table in tables(body) if table[0][0] == "margin")
    assert sum(int(row[1]) for row in histogram[2:]) == len(built.rows) and max(len(row[2]) for row in histogram[2:]) == 30
    assert {"pairwise": "Bradley-Terry fit of the prompt's", "log-odds": "log-odds, averaged", "rating": "6 logits for the whole", "list": "every ranking"}[
        style
    ] in body
    assert ("worth of being shown first" in body) == (style != "rating") and ("mean rank" in body) == (style == "list")
    assert ("| none could be read | 0 |" in body) == (style == "rating")
    assert "palate train --config run.yaml --data.train prefs.jsonl" in body and "## Cost" not in body and "canaries" not in body


def test_what_a_run_adds_is_told() -> None:
    """Cost by row, canaries, what was left out before; a judge's name and criteria cannot break a table or make a heading."""
    watched = Watched(Told(lambda a, b: "a"), draw_canaries(PROMPTS, GROUPS, 8))
    watched.compare([])
    calls = {"requests": 1234, "cached": 5, "prompt_tokens": 10**6, "completion_tokens": 2000, "cost": 0.5}
    built = built_by("pairwise")
    provenance = built.card["provenance"] | {"judge": "a|b\n# c"}
    more = {
        "calls": calls,
        "cost_per_row": 0.5 / len(built.rows),
        "canaries": watched.figures(),
        "left_out_before": {"empty response": 3, "repeated response": 1},
    }
    _, body = parts(card_markdown({**built.card, **more, "provenance": provenance}, name="prefs", file="prefs.jsonl"))
    told = facts(body)
    assert "1,234 calls" in body and f"{0.5 / len(built.rows):.4g} a kept pair" in body and "3 empty response, 1 repeated response." in body
    assert told["a response against itself, not called a tie"].startswith("100.0 % (") and "16 canaries" in body
    assert told["judge"] == r"a\|b \# c" and told["criteria"] == r"Short \| and \[plain\]." and r"strength of o\|p, in logits" in told
    assert "\n# c" not in body and all(len({len(row) for row in table}) == 1 for table in tables(body))
    unknown = {**built.card, "calls": calls | {"cost": None}, "cost_per_row": None}
    assert "What they cost is not known." in card_markdown(unknown, name="prefs", file="prefs.jsonl")


@pytest.mark.parametrize(("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (10**8, "100M<n<1B")])
def test_size_categories(rows: int, size: str) -> None:
    assert metadata(rows, "prefs", "prefs.jsonl")["size_categories"] == [size]
