"""A chat judge against known strengths: every form, repair and fresh answers counted call by call, what fails, and what the cache spares."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.judging.stub_server import Dials
from tests.judging.stubs import Counted

from palate.errors import ConfigError
from palate.judging.budget import Budget
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import CallFailure, ChatReply, ChatRequest, Sampling
from palate.judging.capabilities import Capabilities
from palate.judging.combining import BothOrders
from palate.judging.function_client import FunctionClient
from palate.judging.judge import RESAMPLE_TEMPERATURE, ChatJudge, Instructions
from palate.judging.prompts import PairPrompt, PairVariant
from palate.types import Matchup

STRENGTHS = {"good": 2.0, "fair": 0.0, "bad": -2.0}
FORMS: tuple[PairVariant, ...] = ("five_step", "three_way", "binary", "token", "json")
ALL = Capabilities(True, True, True, True, True)
GREEDY = Capabilities(False, False, False, False, False, ("sampling: 1 different answers of 4 at temperature 1", "structured: ignored", "logprobs: not given"))


def judge_of(stub: Counted, form: PairVariant = "five_step", **settings: object) -> ChatJudge:
    return ChatJudge(Caller(stub.client), "stub", instructions=Instructions(PairPrompt(form)), **settings)  # type: ignore[arg-type]


def scripted(*replies: object) -> tuple[list[ChatRequest], FunctionClient]:
    """A client that gives these answers one after the other."""
    asked: list[ChatRequest] = []

    def answer(request: ChatRequest) -> object:
        asked.append(request)
        return replies[len(asked) - 1]

    return asked, FunctionClient(answer)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("a", "b", "winner"), [("good", "bad", "a"), ("bad", "good", "b"), ("fair", "good", "b"), ("fair", "bad", "a")])
def test_every_form_names_the_better_response(form: PairVariant, a: str, b: str, winner: str) -> None:
    stub = Counted(Dials(strengths=STRENGTHS))
    (verdict,) = judge_of(stub, form).compare([Matchup("Why?", a, b)])
    assert verdict.winner == winner and len(stub.requests) == 1
    if form == "token":
        assert verdict.logit == pytest.approx(STRENGTHS[a] - STRENGTHS[b]) and stub.requests[0].sampling.max_tokens == 1
    if form == "five_step":
        assert verdict.strength == (2 if abs(STRENGTHS[a] - STRENGTHS[b]) > 2 else 1)


def test_the_schema_is_sent_with_json() -> None:
    """Without it an endpoint that can be held to a schema is not held to it."""
    stub = Counted(Dials(strengths=STRENGTHS))
    judge_of(stub, "json").compare([Matchup("Why?", "good", "bad")])
    assert stub.requests[0].schema == PairPrompt("json").schema is not None
    judge_of(stub, "five_step").compare([Matchup("Why?", "good", "bad")])
    assert stub.requests[1].schema is None


def test_a_judge_that_quotes_one_label_and_decides_the_other() -> None:
    """RewardBench's parser takes A first wherever it stands."""
    _, client = scripted('Response A says "[[A]]" itself.\n\n[[B>A]]')
    assert ChatJudge(Caller(client), "m").compare([Matchup("Why?", "x", "y")])[0].winner == "b"


def test_repair_then_fresh_answers() -> None:
    """No verdict, repair without one, a fresh answer without one, a fresh answer with one: four calls, the fresh ones warm and with numbers of their own."""
    asked, client = scripted("Both are fine.", "As I said.", "Hard to say.", "[[A>B]]")
    (verdict,) = ChatJudge(Caller(client), "m", sampling=Sampling(temperature=0.0), sample=3).compare([Matchup("Why?", "x", "y")])
    assert (verdict.winner, verdict.strength) == ("a", 1.0)
    assert [request.sample for request in asked] == [3, 3, 1003, 2003]
    assert [request.sampling.temperature for request in asked] == [0.0, 0.0, RESAMPLE_TEMPERATURE, RESAMPLE_TEMPERATURE]
    assert len(asked[1].messages) == len(asked[0].messages) + 2 and asked[1].messages[-2]["content"] == "Both are fine."
    assert asked[2].messages == asked[3].messages == asked[0].messages


def test_nothing_said_in_all_turns_is_invalid() -> None:
    asked, client = scripted(*["Well."] * 4)
    (verdict,) = ChatJudge(Caller(client), "m").compare([Matchup("Why?", "x", "y")])
    assert (verdict.winner, verdict.probability, verdict.reason) == ("invalid", None, "no verdict") and len(asked) == 4


def test_only_the_unread_are_asked_again() -> None:
    asked, client = scripted("[[A>B]]", "Well.", "[[B>>A]]")
    verdicts = ChatJudge(Caller(client, concurrency=1), "m").compare([Matchup("Why?", "x", "y"), Matchup("How?", "x", "y")])
    assert [verdict.winner for verdict in verdicts] == ["a", "b"] and len(asked) == 3


def test_a_greedy_endpoint_draws_no_fresh_answers() -> None:
    asked, client = scripted(*["Well."] * 4)
    assert ChatJudge(Caller(client), "m", capabilities=GREEDY).compare([Matchup("Why?", "x", "y")])[0].winner == "invalid"
    assert len(asked) == 2


def test_a_failed_call_is_not_asked_again() -> None:
    """A failure that no attempt mends: one call, no repair turn, no label."""
    asked, client = scripted(CallFailure("bad request", "status 400: no"))
    (verdict,) = ChatJudge(Caller(client), "m").compare([Matchup("Why?", "x", "y")])
    assert (verdict.winner, verdict.reason) == ("invalid", "bad request: status 400: no") and len(asked) == 1


def test_a_failed_repair_ends_the_matter() -> None:
    asked, client = scripted("Well.", CallFailure("refused", "no"))
    assert ChatJudge(Caller(client), "m").compare([Matchup("Why?", "x", "y")])[0].reason == "refused: no" and len(asked) == 2


def test_a_cut_answer_is_no_verdict() -> None:
    _, client = scripted(ChatReply("[[A>B]] but", "length"), *["Well."] * 3)
    assert ChatJudge(Caller(client), "m").compare([Matchup("Why?", "x", "y")])[0].winner == "invalid"


def test_a_spent_budget_is_invalid_not_a_label() -> None:
    stub = Counted(Dials(strengths=STRENGTHS))
    judge = ChatJudge(Caller(stub.client, budget=Budget(max_requests=1), concurrency=1), "stub")
    found = judge.compare([Matchup("Why?", "good", "bad"), Matchup("How?", "good", "bad")])
    assert [verdict.winner for verdict in found] == ["a", "invalid"] and found[1].reason.startswith("budget") and len(stub.requests) == 1


def test_from_the_cache_without_a_call(tmp_path: Path) -> None:
    """A second run, with a client that would fail, gives the same verdicts: repairs and fresh answers are kept too."""
    matchups = [Matchup(f"Question {k}?", "good", "bad") for k in range(12)]
    stub = Counted(Dials(strengths=STRENGTHS, malformed_rate=0.5))
    with CallCache(tmp_path / "answers.sqlite") as cache:
        first = ChatJudge(Caller(stub.client, cache=cache), "stub").compare(matchups)
        assert len(stub.requests) > len(matchups) and {verdict.winner for verdict in first} == {"a"}
        dead = Caller(FunctionClient(lambda _: CallFailure("bad request", "dead"), name="stub"), cache=cache)
        assert ChatJudge(dead, "stub").compare(matchups) == first
        assert dead.spent.requests == 0 and dead.spent.cached == len(stub.requests)
        changed = Caller(stub.client, cache=cache)
        ChatJudge(changed, "stub", sampling=Sampling(temperature=0.5)).compare(matchups[:1])
        ChatJudge(changed, "stub", instructions=Instructions(criteria="Shorter is better.")).compare(matchups[:1])
        assert changed.spent.requests >= 2, "another temperature or another prompt is another question"


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    stub = Counted()
    with pytest.raises(ConfigError, match="log-odds need an endpoint with working logprobs"):
        judge_of(stub, "token", capabilities=GREEDY)
    with pytest.raises(ConfigError, match="working structured"):
        judge_of(stub, "json", capabilities=GREEDY)
    judge_of(stub, "token", capabilities=ALL)


def test_a_seed_is_sent_and_asked_of_no_endpoint_that_ignores_it() -> None:
    stub = Counted(Dials(strengths=STRENGTHS))
    seeded = Sampling(seed=3)
    with pytest.raises(ConfigError, match="seed"):
        judge_of(stub, capabilities=GREEDY, sampling=seeded)
    judge_of(stub, capabilities=ALL, sampling=seeded).compare([Matchup("Why?", "good", "bad")])
    assert [request.seed for request in stub.requests] == [3]


def test_without_logprobs_a_token_judge_says_so() -> None:
    (verdict,) = judge_of(Counted(Dials(strengths=STRENGTHS, logprobs=False)), "token").compare([Matchup("Why?", "good", "bad")])
    assert verdict.winner == "invalid" and "no log-probabilities" in verdict.reason


def test_references_reach_the_prompt_through_every_combination() -> None:
    stub = Counted(Dials(strengths=STRENGTHS))
    judge = judge_of(stub, references={"Why?": "Because of the tides."})
    BothOrders(judge).judge_pairs([Matchup("Why?", "good", "bad"), Matchup("How?", "good", "bad")])
    shown = ["Because of the tides." in str(request.messages) for request in stub.requests]
    assert sorted(shown) == [False, False, True, True] and judge.with_sample(1, temperature=0.7).references == judge.references
    with pytest.raises(ConfigError, match="1 matchups and 2 references"):
        judge.compare([Matchup("Why?", "good", "bad")], references=[None, None])


def test_provenance_says_how_to_ask_the_same_again() -> None:
    told = judge_of(Counted(), capabilities=ALL).provenance()
    assert told["judge"] == "stub" and told["endpoint"] == "function:stub" and told["template_hash"] == PairPrompt("five_step").template_hash
    assert told["sampling"]["temperature"] == 0.0 and told["capabilities"]["sampling"] is True
