"""Questions streamed: taken as there is room, read as answers come, in the order asked; only what was not read is asked again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from palate.judging.caller import AHEAD, Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest
from palate.judging.function_client import FunctionClient
from palate.judging.prompts import PairPrompt
from palate.judging.questions import Question, Questioner, Said

PROMPT = PairPrompt("binary")
MANY, PLACES = 600, 4


def question(i: int) -> Question:
    return Question(PROMPT, PROMPT.render(f"Question {i}?", (f"one {i}", f"two {i}")))


def number_of(request: ChatRequest) -> int:
    text = str(request.messages[1]["content"])
    return int(text[text.index("Question ") + 9 : text.index("?")])


def test_many_questions_take_the_room_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more taken than may be ahead; the first replies are read long before the last question is made; results in the order asked."""
    taken, read = 0, 0
    ahead: list[int] = []
    plain = Questioner.read

    def reading(answer: Answer, asked: Question) -> Said:
        nonlocal read
        read += 1
        return plain(answer, asked)

    def questions() -> Iterator[Question]:
        nonlocal taken
        for i in range(MANY):
            taken += 1
            ahead.append(taken - read)
            yield question(i)

    monkeypatch.setattr(Questioner, "read", staticmethod(reading))
    client = FunctionClient(lambda request: f"[[{'AB'[number_of(request) % 2]}]]")
    said = Questioner(Caller(client, concurrency=PLACES, start_concurrency=PLACES), "m").ask(questions())
    assert max(ahead) <= AHEAD * PLACES + 1 and taken == read == MANY
    assert [one.parsed.winner for one in said] == ["a", "b"] * (MANY // 2)  # type: ignore[union-attr]


def test_only_what_was_not_read_is_asked_again() -> None:
    """Of thirty, every fifth says nothing at first and every tenth nothing at all; a call that fails is not asked again."""
    asked: list[int] = []

    def answer(request: ChatRequest) -> str | Answer:
        i = number_of(request)
        asked.append(i)
        if i == 7:
            return CallFailure("bad request", "no")
        silent = asked.count(i) <= (99 if i % 10 == 0 else 1 if i % 5 == 0 else 0)
        return "Hard to say." if silent else ChatReply("[[A]]")

    said = Questioner(Caller(FunctionClient(answer)), "m", repairs=1, resamples=2).ask(question(i) for i in range(30))
    assert {i: asked.count(i) for i in range(30)} == {i: 4 if i % 10 == 0 else 2 if i % 5 == 0 else 1 for i in range(30)}
    reasons = {0: "no verdict", 10: "no verdict", 20: "no verdict", 7: "bad request: no"}
    assert {i: one.reason for i, one in enumerate(said) if one.parsed is None} == reasons


def test_no_questions_no_calls() -> None:
    assert Questioner(Caller(FunctionClient(lambda _: "[[A]]")), "m").ask([]) == []
