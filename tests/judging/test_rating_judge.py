"""Ratings from raw reply to row: what is read, what stays missing, votes and aspects by hand, and every call counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.judging.stub_server import Dials
from tests.judging.stubs import Counted, responses
from tests.judging.test_judge import ALL, GREEDY, scripted

from palate.errors import ConfigError, DataError
from palate.judging.budget import Budget
from palate.judging.build import BuildSettings, build_rated
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Sampling
from palate.judging.combining import BothOrders
from palate.judging.function_client import FunctionClient
from palate.judging.prompts import RatingPrompt
from palate.judging.questions import RESAMPLE_TEMPERATURE
from palate.judging.rated import Rated, rating_figures, verdict_of, vote_deviation
from palate.judging.rating_judge import RatingJudge
from palate.judging.strengths import RATING_SPAN, fit_ratings
from palate.types import Exchange, Matchup

POINT = RATING_SPAN / 9
"""Logits of one point on a scale from 1 to 10."""

SHOWN = re.compile(r"<<<response [0-9a-f]{16}>>>\n(.*?)\n<<<end of response", re.DOTALL)


def shown(request: ChatRequest) -> str:
    """The response that a request is about."""
    found = SHOWN.search(str(request.messages[1]["content"]))
    assert found
    return found[1]


def saying(replies: dict[str, Answer | str], asked: list[ChatRequest] | None = None) -> FunctionClient:
    """A client that answers by the response that is to be rated."""

    def answer(request: ChatRequest) -> Answer | str:
        if asked is not None:
            asked.append(request)
        return replies[shown(request)]

    return FunctionClient(answer, name="saying")


def judge_of(replies: dict[str, Answer | str], **settings: object) -> RatingJudge:
    return RatingJudge(Caller(saying(replies)), "m", **settings)  # type: ignore[arg-type]


# --- raw reply -> row --------------------------------------------------------------------------------------------------------------------------

RAW: dict[str, Answer | str] = {
    "eight of ten": "Good on the whole.\n\n8/10",  # RewardBench reads 10
    "bold": "**7**",  # RewardBench reads nothing
    "dotted": "Rating: 6.",
    "one": "[[1]]",  # UltraFeedback made 10 of it
    "none said": "Rating: N/A",  # open-instruct averages -1 in
    "silent": "It has its merits.",  # open-instruct rates it 1
    "cut": ChatReply("I would say [[9]], but", "length"),
    "withheld": CallFailure("refused", "a filter held it back"),
    "beyond": "[[11]]",
    "also seven": "[[7]] is my rating.",
}
READ = {"eight of ten": 8.0, "bold": 7.0, "also seven": 7.0, "dotted": 6.0, "one": 1.0}


def test_no_wrong_label_from_raw_reply_to_row() -> None:
    """Documented mistakes with ratings: 1 becomes 10, "8/10" is 10, "**8**" nothing, a failure is 1 or -1, equal ratings are chosen and rejected."""
    built = build_rated(judge_of(RAW), ["Why?"], [responses(*RAW)])
    better = {(row["chosen"], row["rejected"]) for row in built.rows}
    assert better == {(a, b) for a in READ for b in READ if READ[a] > READ[b]}, "9 pairs of read and different ratings, and no other"
    for row in built.rows:
        assert (row["rating_chosen"], row["rating_rejected"]) == (READ[row["chosen"]], READ[row["rejected"]])
        difference = POINT * (READ[row["chosen"]] - READ[row["rejected"]])
        assert row["margin"] == pytest.approx(min(3.0, difference)) and row["p_hat"] == pytest.approx(1 / (1 + np.exp(-difference)))
        assert row["pair_weight"] == pytest.approx(1 / 9) and row["beta_se"] is None, "one vote tells nothing of its error"
    card = built.card
    assert card["left_out"] == {"both tie": 1, "one invalid": 25, "both invalid": 10} and card["judged_pairs"] == 45 == len(built.rows) + 36
    assert card["ratings"]["rated"] == 5 and card["ratings"]["responses"] == 10 and card["position"] is None and card["style"] == "rating"
    assert set(card["ratings"]["failures"]) == {"no verdict", "not offered", "cut off", "out of range", "refused: a filter held it back"}
    json.dumps(built.rows, allow_nan=False)


@pytest.mark.parametrize("select", ["all", "best_worst", "best_mean2sd", "adjacent", "best_random"])
def test_a_response_without_a_rating_is_in_no_row_whatever_is_selected(select: str) -> None:
    """z would be the worst (or the best) if its failure counted as a number."""
    replies: dict[str, Answer | str] = {"x": "[[9]]", "y": "[[4]]", "z": "no idea"}
    built = build_rated(judge_of(replies), ["Why?"], [responses("z", "y", "x")], settings=BuildSettings(select=select))  # type: ignore[arg-type]
    assert [(row["chosen"], row["rejected"]) for row in built.rows] == [("x", "y")]
    assert built.card["judged_pairs"] == 3 and built.card["left_out"] == {"one invalid": 2}


def test_nothing_rated_and_all_equal_make_no_rows_and_say_why() -> None:
    with pytest.raises(DataError, match=r"of 1 judgments: 1 x both invalid; 2 times: no verdict; look at the judge"):
        build_rated(judge_of({"x": "well", "y": "well"}), ["Why?"], [responses("x", "y")])
    with pytest.raises(DataError, match=r"no pair becomes a row: of 1 judgments: 1 x both tie"):
        build_rated(judge_of({"x": "[[5]]", "y": "5/10"}), ["Why?"], [responses("x", "y")])
    with pytest.raises(ConfigError, match="style rating asks about all responses"):
        build_rated(judge_of(RAW), ["Why?"], [responses("x", "y")], settings=BuildSettings(pairs_per_prompt=3))


# --- votes and aspects -------------------------------------------------------------------------------------------------------------------------


def test_votes_are_averaged_and_failures_left_out() -> None:
    """x: 8, nothing, 6; y: 3, 3, 6. Means 7 and 4; pooled variance (1 + 1 + 1 + 1 + 4) / (1 + 2) = 8/3 of a vote."""
    replies = {"x": ["[[8]]", "well", "[[6]]"], "y": ["[[3]]", "[[3]]", "[[6]]"]}
    asked: list[ChatRequest] = []

    def answer(request: ChatRequest) -> str:
        asked.append(request)
        return replies[shown(request)][request.sample]

    judge = RatingJudge(Caller(FunctionClient(answer)), "m", votes=3, repairs=0, resamples=0)
    built = build_rated(judge, ["Why?"], [responses("x", "y")])
    (row,) = built.rows
    assert len(asked) == 6 and {request.sampling.temperature for request in asked} == {RESAMPLE_TEMPERATURE} and {r.sample for r in asked} == {0, 1, 2}
    assert (row["rating_chosen"], row["rating_rejected"], row["votes_chosen"], row["votes_rejected"]) == (7.0, 4.0, 2, 3)
    deviation = np.sqrt(8 / 3) * POINT
    assert row["beta_chosen_se"] == pytest.approx(deviation / np.sqrt(2)) and row["beta_rejected_se"] == pytest.approx(deviation / np.sqrt(3))
    assert row["beta_se"] == pytest.approx(deviation * np.sqrt(1 / 2 + 1 / 3)) and built.card["ratings"]["vote_deviation"] == pytest.approx(np.sqrt(8 / 3))
    assert built.card["ratings"]["failed_votes"] == 1 and built.card["ratings"]["failures"] == {"no verdict": 1}


def test_aspects_are_asked_one_by_one_and_a_vote_needs_all_of_them() -> None:
    """Mean of both aspects; where one of them was not read the response has no rating: the other alone would be another scale."""
    aspects = {"truth": "Is it true?", "brevity": "Is it brief?"}
    replies = {("x", "truth"): "[[9]]", ("x", "brevity"): "[[5]]", ("y", "truth"): "[[8]]", ("y", "brevity"): "[[4]]"}
    replies |= {("z", "truth"): "[[10]]", ("z", "brevity"): "?"}

    def answer(request: ChatRequest) -> str:
        own = next(name for name, text in aspects.items() if text in str(request.messages))
        return replies[shown(request), own]

    judge = RatingJudge(Caller(FunctionClient(answer)), "m", aspects=aspects, repairs=0, resamples=0)
    x, y, z = judge.rate([Exchange("Why?", text) for text in "xyz"])
    assert x == Rated(7.0, (7.0,), 0, (), {"truth": 9.0, "brevity": 5.0}) and y.value == 6.0
    assert z == Rated(None, (), 1, ("no verdict",), {})
    (row,) = build_rated(judge, ["Why?"], [responses("x", "y", "z")]).rows
    assert row["aspects_chosen"] == {"truth": 9.0, "brevity": 5.0} and row["rating_rejected"] == 6.0
    with pytest.raises(ConfigError, match="give one of them"):
        RatingJudge(Caller(FunctionClient(answer)), "m", aspects=aspects, criteria="Is it kind?")


def test_strengths_of_ratings_by_hand() -> None:
    """Ratings 9, 6, none and 4, 4 on 1 to 10, errors of one vote 0.5 points: strengths around the mean of each prompt, 6 logits for 9 points."""
    rated = [[Rated(9.0, (9.0,)), Rated(6.0, (5.0, 7.0)), Rated(None)], [Rated(4.0, (4.0,)), Rated(4.0, (4.0,))]]
    fit = fit_ratings(rated, scale=9, deviation=0.5)
    assert fit.strengths[[0, 1, 3, 4]] == pytest.approx([1.0, -1.0, 0.0, 0.0]) and np.isnan(fit.strengths[2])
    assert fit.errors[[0, 1]] == pytest.approx([0.5 * POINT, 0.5 * POINT / np.sqrt(2)]) and np.isnan(fit.errors[2])
    assert vote_deviation(rated) == pytest.approx(np.sqrt(2)) and np.isnan(vote_deviation([[Rated(4.0, (4.0,))]]))
    assert rating_figures(rated)["given"] == {"4": 2, "6": 1, "9": 1} and rating_figures([[Rated(None)]])["mean"] is None


# --- as any judge ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "winner", "strength"), [(9, 5, "a", 2.0), (5, 9, "b", 2.0), (6, 5, "a", 1.0), (5, 7, "b", 1.0), (5, 5, "tie", 0.0)])
def test_two_ratings_as_a_verdict(a: float, b: float, winner: str, strength: float) -> None:
    verdict = verdict_of(Rated(a, (a,)), Rated(b, (b,)), scale=9)
    assert (verdict.winner, verdict.strength, verdict.probability, verdict.raw) == (winner, strength, None, f"{a} / {b}")
    assert verdict_of(Rated(0.1 + 0.2), Rated(0.3), scale=1).winner == "tie", "rounding decides nothing"


def test_a_missing_rating_is_an_invalid_verdict_with_its_reason() -> None:
    replies: dict[str, Answer | str] = {"x": "[[8]]", "y": "[[12]]", "z": CallFailure("refused", "no")}
    verdicts = judge_of(replies).compare([Matchup("Why?", a, b) for a, b in ("xy", "yx", "zx", "yz")])
    assert [(verdict.winner, verdict.reason) for verdict in verdicts] == [
        ("invalid", "out of range"),
        ("invalid", "out of range"),
        ("invalid", "refused: no"),
        ("invalid", "out of range; refused: no"),
    ]


@pytest.mark.parametrize("variant", ["number", "json"])
def test_in_both_orders_every_response_is_asked_about_once(variant: str) -> None:
    stub = Counted(Dials(strengths={"good": 1.5, "fair": 0.0, "bad": -1.5}, position_bias=5.0))
    judge = RatingJudge(Caller(stub.client), "stub", prompt=RatingPrompt(variant=variant))  # type: ignore[arg-type]
    judgments = BothOrders(judge).judge_pairs([Matchup("Why?", a, b) for a, b in (("good", "bad"), ("bad", "fair"), ("fair", "good"))])
    assert [one.winner for one in judgments] == ["a", "b", "b"] and {one.reason for one in judgments} == {"agreed"} and len(stub.requests) == 3
    assert all((request.schema is None) == (variant == "number") for request in stub.requests)
    assert judge.provenance()["variant"] == variant and judge.provenance()["style"] == "rating" and judge.name == "stub"


def test_another_prompt_reference_or_history_is_another_question() -> None:
    asked: list[ChatRequest] = []
    judge = RatingJudge(Caller(saying({"x": "[[5]]"}, asked)), "m", references={"Why?": "Because of the tides."}, rubric="Ten is perfect.")
    chat = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Why?"})
    judge.rate([Exchange("Why?", "x"), Exchange("How?", "x"), Exchange(chat, "x"), Exchange("Why?", "x")])
    texts = [str(request.messages) for request in asked]
    assert len(asked) == 3 and sum("Because of the tides." in text for text in texts) == 1 and all("Ten is perfect." in text for text in texts)
    assert sum("Hello" in text for text in texts) == 1
    judge.rate([Exchange("Why?", "x")], references=["Because of the moon."])
    assert "Because of the moon." in str(asked[-1].messages)
    with pytest.raises(DataError, match="1 responses and 2 references"):
        judge.rate([Exchange("Why?", "x")], references=[None, None])


# --- asking ------------------------------------------------------------------------------------------------------------------------------------


def test_repair_then_fresh_answers_then_missing() -> None:
    asked, client = scripted("Fine.", "As I said.", "Hard to say.", "[[7]]")
    (rated,) = RatingJudge(Caller(client), "m").rate([Exchange("Why?", "x")])
    assert rated.value == 7.0 and [request.sample for request in asked] == [0, 0, 1000, 2000]
    assert "double square brackets" in asked[1].messages[-1]["content"] and asked[2].sampling.temperature == RESAMPLE_TEMPERATURE
    asked, client = scripted(*["Fine."] * 4)
    assert RatingJudge(Caller(client), "m").rate([Exchange("Why?", "x")]) == [Rated(None, (), 1, ("no verdict",))] and len(asked) == 4


def test_a_spent_budget_leaves_ratings_missing() -> None:
    judge = RatingJudge(Caller(saying({"x": "[[9]]", "y": "[[2]]"}), budget=Budget(max_requests=1), concurrency=1), "m")
    x, y = judge.rate([Exchange("Why?", "x"), Exchange("Why?", "y")])
    assert x.value == 9.0 and y.value is None and y.reasons[0].startswith("budget") and judge.questioner.caller.stopped


def test_from_the_cache_without_a_call(tmp_path: Path) -> None:
    with CallCache(tmp_path / "answers.sqlite") as cache:
        exchanges = [Exchange(f"Question {k}?", f"answer (strength {k % 3})") for k in range(9)]
        stub = Counted(Dials(malformed_rate=0.5, rating_noise=1.0))
        first = RatingJudge(Caller(stub.client, cache=cache), "stub", votes=2).rate(exchanges)
        dead = Caller(FunctionClient(lambda _: CallFailure("bad request", "dead"), name="stub"), cache=cache)
        assert RatingJudge(dead, "stub", votes=2).rate(exchanges) == first and dead.spent.requests == 0
        assert len(stub.requests) > 18 and all(one.value is not None for one in first)


def test_requests_are_those_that_are_made() -> None:
    stub = Counted(Dials())
    judge = RatingJudge(Caller(stub.client), "stub", votes=2, aspects={"truth": "True?", "style": "Fine?"}, capabilities=ALL)
    exchanges = [Exchange("Why?", "x"), Exchange("Why?", "y")]
    counted = list(judge.requests(exchanges))
    judge.rate(exchanges)
    key: Callable[[ChatRequest], bytes] = lambda request: request.key("e")  # noqa: E731
    assert sorted(map(key, counted)) == sorted(map(key, stub.requests)) and len(counted) == 8
    assert list(map(key, judge.requests_to_compare([Matchup("Why?", "x", "y")]))) == list(map(key, counted))


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    caller = Caller(Counted().client)
    with pytest.raises(ConfigError, match="working sampling"):
        RatingJudge(caller, "stub", votes=2, capabilities=GREEDY)
    with pytest.raises(ConfigError, match="working structured"):
        RatingJudge(caller, "stub", prompt=RatingPrompt(variant="json"), capabilities=GREEDY)
    with pytest.raises(ConfigError, match="votes=0"):
        RatingJudge(caller, "stub", votes=0)
    assert RatingJudge(caller, "stub", votes=2, sampling=Sampling(temperature=1.2), capabilities=ALL).questioner.sampling.temperature == 1.2
