"""Sampled judgments as training rows: only those that are right in both orders teach, and a wrong one is set against a right one of the same question."""

from __future__ import annotations

from typing import Any

import pytest

from palate.errors import ConfigError, DataError
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatRequest
from palate.judging.capabilities import Capabilities
from palate.judging.function_client import FunctionClient
from palate.judging.judge import RESAMPLE_TEMPERATURE, ChatJudge, Instructions
from palate.judging.judge_rows import judge_rows
from palate.judging.prompts import PairPrompt
from palate.types import Comparison, PreferenceGroup


class Sampled:
    """Says by the number of the draw: 0 and 4 are right (in one wording), 1 always says A, 2 is wrong, 3 says nothing, 5 ties, 6 fails at the endpoint."""

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []

    def __call__(self, request: ChatRequest) -> str | Answer:
        self.requests.append(request)
        asked = str(request.messages[-1]["content"])
        good_first = asked.index("good answer") < asked.index("bad answer")
        right, wrong = ("A", "B") if good_first else ("B", "A")
        said = {0: right, 1: "A", 2: wrong, 4: right, 5: "C"}.get(request.sample)
        if request.sample == 6:
            return CallFailure("bad request", "too long")
        return f"reasons {0 if request.sample == 4 else request.sample} [[{said}]]" if said else "I cannot say."


def judged(groups: list[PreferenceGroup], samples: int, **options: Any) -> tuple[Any, Sampled]:
    client = Sampled()
    judge = ChatJudge(Caller(FunctionClient(client, name="sampled")), "judge", instructions=Instructions(PairPrompt("three_way")), **options)
    return judge_rows(judge, groups, samples=samples), client


PAIR = PreferenceGroup("Why?", ("good answer", "bad answer"), (Comparison(0, 1),))


def test_right_in_both_orders_teaches_and_the_rest_does_not() -> None:
    """Seven draws: 0 and 4 right, in one wording; 1 right in one order; 2 and 5 wrong in both; 3 and 6 not read. Pass rate 2 of 5."""
    found, client = judged([PAIR], 7)
    assert len(client.requests) == 14 and {request.sampling.temperature for request in client.requests} == {RESAMPLE_TEMPERATURE}
    assert [(row["completion"][0]["content"], row["label"], row["sample"]) for row in found.sft] == [("reasons 0 [[A]]", "A", 0), ("reasons 0 [[B]]", "B", 0)]
    assert found.pass_rates == [0.4] and found.sft[0]["pass_rate"] == 0.4
    assert found.counts == {
        "pairs": 1,
        "left_out": {},
        "judgments": {"right in both orders": 2, "right in one order": 1, "wrong in both orders": 2, "not read": 2},
        "pairs_never_right": 0,
        "pairs_not_read": 0,
        "sft_rows": 2,
        "dpo_rows": 2,
    }


def test_right_against_wrong_is_of_one_question() -> None:
    """In the first order draw 2 and the tie are wrong, in the second draw 1 as well; there is one right wording for either."""
    found, client = judged([PAIR], 7)
    first, second = found.dpo
    assert first["chosen"] == [{"role": "assistant", "content": "reasons 0 [[A]]"}] and first["rejected"][0]["content"] == "reasons 2 [[B]]"
    assert second["chosen"][0]["content"] == "reasons 0 [[B]]" and second["rejected"][0]["content"] == "reasons 1 [[A]]"
    asked = [[dict(message) for message in request.messages] for request in client.requests]
    assert first["prompt"] == asked[0] and second["prompt"] == asked[1] and first["prompt"] != second["prompt"]
    assert found.sft[0]["prompt"] == first["prompt"]


def test_the_better_response_is_the_likelier_one_and_ties_are_counted() -> None:
    turned = PreferenceGroup("Why?", ("bad answer", "good answer"), (Comparison(0, 1, probability=0.2),))
    tie = PreferenceGroup("Why?", ("good answer", "bad answer"), (Comparison(0, 1, probability=0.5), Comparison(0, 1, weight=0.0)))
    found, _ = judged([turned, tie, PreferenceGroup("a", ("x", "x"), (Comparison(0, 1),))], 1)
    assert found.counts["left_out"] == {"tie": 1, "no weight": 1, "equal responses": 1} and found.pass_rates == [1.0]
    with pytest.raises(DataError, match="none of 1 groups has a decided comparison"):
        judged([tie], 1)


def test_a_pair_that_is_never_read_has_no_pass_rate() -> None:
    group = PreferenceGroup("Why?", ("good answer", "bad answer"), (Comparison(0, 1),))
    client = FunctionClient(lambda request: "nothing", name="silent")
    found = judge_rows(ChatJudge(Caller(client), "judge"), [group], samples=2)
    assert found.pass_rates == [None] and not found.sft and not found.dpo and found.counts["pairs_not_read"] == 1


def test_a_reference_is_shown() -> None:
    found, client = judged([PreferenceGroup(PAIR.prompt, PAIR.responses, PAIR.comparisons, metadata={"reference": "because"})], 1)
    assert all("because" in str(request.messages[-1]["content"]) for request in client.requests) and found.sft


def test_judges_that_cannot_be_sampled_are_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        judge_rows(ChatJudge(Caller(FunctionClient(Sampled())), "judge"), [PAIR], temperature=0)
    with pytest.raises(ConfigError, match="one token"):
        judge_rows(ChatJudge(Caller(FunctionClient(Sampled())), "judge", instructions=Instructions(PairPrompt("token"))), [PAIR])
    greedy = Capabilities(False, False, False, False, False, ("sampling: 1 different answers of 4",))
    with pytest.raises(ConfigError, match="sampling"):
        judge_rows(ChatJudge(Caller(FunctionClient(Sampled())), "judge", capabilities=greedy), [PAIR])
