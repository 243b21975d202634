"""Canaries among the pairs of a build: how many, where they stand, what they tell of a judge whose faults are known, and that none becomes a row."""

from __future__ import annotations

import pytest
from tests.judging.stub_server import Dials
from tests.judging.stubs import Counted, Told, responses

from palate.errors import ConfigError, DataError
from palate.judging.build import BuildSettings, build
from palate.judging.caller import Caller
from palate.judging.combining import BothOrders
from palate.judging.judge import ChatJudge
from palate.judging.watched import Watched, draw_canaries, usual_canaries
from palate.types import Matchup, Verdict

GROUPS = [responses(f"{g} a good answer with a few words more", f"{g} a bad answer with a few words more") for g in range(12)]
PROMPTS = [f"Question {g}?" for g in range(12)]


def test_how_many_where_nothing_is_said() -> None:
    assert [usual_canaries(pairs) for pairs in (0, 1, 20, 21, 500, 1000, 10**6)] == [0, 1, 1, 2, 25, 50, 50]


def test_prompts_come_once_before_any_comes_again() -> None:
    drawn = draw_canaries(PROMPTS, GROUPS, 12, seed=3)
    assert len(drawn) == 24 and {canary.matchup.prompt for canary in drawn} == set(PROMPTS) and drawn == draw_canaries(PROMPTS, GROUPS, 12, seed=3)
    assert len(draw_canaries(PROMPTS, GROUPS, 30)) == 60 and draw_canaries(PROMPTS, GROUPS, 12, seed=4) != drawn
    assert {canary.kind for canary in draw_canaries(PROMPTS, GROUPS, 5, kinds=["shuffled"])} == {"shuffled"}
    assert draw_canaries(["p"], [responses("alone")], 3) == [] and draw_canaries(PROMPTS, GROUPS, 0) == []
    with pytest.raises(ConfigError, match="-1 canary pairs"):
        draw_canaries(PROMPTS, GROUPS, -1)


def test_verdicts_on_matchups_come_out_in_order_and_canaries_once() -> None:
    judge = Told(lambda a, b: Verdict("a", raw=f"{a}|{b}"))
    watched = Watched(judge, draw_canaries(PROMPTS, GROUPS, 4), seed=1)
    matchups = [Matchup("p", f"{k}", f"{-k}") for k in range(1, 40)]
    assert [verdict.raw for verdict in watched.compare(matchups)] == [f"{k}|{-k}" for k in range(1, 40)] and len(judge.asked) == 39 + 8
    among = [k for k, matchup in enumerate(judge.asked) if str(matchup.prompt).startswith("Question")]
    assert len(among) == 8 and among != list(range(8)) and among != list(range(39, 47)), "among the others, not before or after them"
    watched.compare(matchups)
    assert len(judge.asked) == 39 + 8 + 39 and Watched(judge, []).figures() is None


def test_what_canaries_tell_of_a_judge_that_goes_by_position() -> None:
    """Always the first: every identical pair is told apart, all for the first; a shuffled one is mistaken where the copy stands first."""
    watched = Watched(Told(lambda a, b: "a"), draw_canaries(PROMPTS, GROUPS, 12))
    watched.compare([])
    found = watched.figures()
    assert found and (found["asked"], found["invalid"]) == (24, 0)
    assert found["told_apart"]["value"] == found["first_position"]["value"] == 1.0 and found["told_apart"]["n"] == 12
    copies_first = sum(canary.expected == "b" for canary in watched.asked)
    assert found["mistaken"]["value"] == pytest.approx(copies_first / 12) and 0 < copies_first < 12
    low, high = found["mistaken"]["interval"]
    assert low < copies_first / 12 < high
    fair = Watched(Told(lambda a, b: "tie" if a == b else "a" if " a good answer" in a or " a bad answer" in a else "b"), watched.asked)
    fair.compare([])
    assert fair.figures() == {
        "asked": 24,
        "invalid": 0,
        "told_apart": {"value": 0.0, "interval": pytest.approx([0.0, 0.2425], abs=1e-3), "n": 12},
        "first_position": None,
        "mistaken": {"value": 0.0, "interval": pytest.approx([0.0, 0.2425], abs=1e-3), "n": 12},
    }
    without_ties = Watched(Told(lambda a, b: "a"), watched.asked, has_tie=False)
    without_ties.compare([])
    assert without_ties.figures()["told_apart"] is None  # type: ignore[index]
    silent = Watched(Told(lambda a, b: "invalid"), watched.asked)
    silent.compare([])
    assert silent.figures() == {"asked": 24, "invalid": 24, "told_apart": None, "first_position": None, "mistaken": None}


def test_canaries_are_asked_and_never_built() -> None:
    """The same rows with canaries and without, and their calls on top: one each, in one order; identical pairs are asked about, which both orders spare."""
    plain, watching = (Counted(Dials(strengths={str(one.text): float("good" in str(one.text)) for group in GROUPS for one in group})) for _ in range(2))
    rows = build(BothOrders(ChatJudge(Caller(plain.client), "stub")).judge_pairs, PROMPTS, GROUPS).rows
    watched = Watched(ChatJudge(Caller(watching.client), "stub"), draw_canaries(PROMPTS, GROUPS, 6))
    assert build(BothOrders(watched).judge_pairs, PROMPTS, GROUPS, settings=BuildSettings()).rows == rows
    assert len(plain.requests) == 24 and len(watching.requests) == 24 + 12
    assert {request.key("e") for request in plain.requests} < {request.key("e") for request in watching.requests}


def test_a_judge_that_loses_verdicts_is_caught() -> None:
    class Losing:
        def compare(self, matchups: list[Matchup]) -> list[Verdict]:
            return [Verdict("a")] * (len(matchups) - 1)

    with pytest.raises(DataError, match="7 verdicts for 8 matchups"):
        Watched(Losing(), draw_canaries(PROMPTS, GROUPS, 4)).compare([])  # type: ignore[arg-type]
