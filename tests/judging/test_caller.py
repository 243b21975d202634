"""Many calls at once: order, retries, budget, cache, streaming, interrupts, and a run that is killed again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.judging.stub_server import Dials, hash_of, running, spawned

from palate.errors import ConfigError
from palate.judging import caller as caller_module
from palate.judging.budget import Budget, Estimate, Purse, dry_run
from palate.judging.call_cache import CallCache
from palate.judging.caller import AHEAD, FEW_SECONDS, Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Price, Sampling
from palate.judging.function_client import FunctionClient
from palate.judging.openai_client import OpenAIClient, body_of

HERE = Path(__file__).parent


def requests(count: int, **more: Any) -> list[ChatRequest]:
    return [ChatRequest("stub", ({"role": "user", "content": f"question {i}"},), **more) for i in range(count)]


def number(request: ChatRequest) -> int:
    return int(request.messages[0]["content"].split()[1])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_module, "FIRST_PAUSE", 0.001)


class Scripted:
    """Answers from a list of failures for each question, then with text; counts what it is asked."""

    endpoint = "scripted"

    def __init__(self, *failures: CallFailure, latency: float = 0.0):
        self.failures, self.latency = failures, latency
        self.asked: Counter[int] = Counter()
        self.running = self.peak = 0

    async def complete(self, request: ChatRequest) -> Answer:
        i = number(request)
        self.asked[i] += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.latency)
        finally:
            self.running -= 1
        return self.failures[self.asked[i] - 1] if self.asked[i] <= len(self.failures) else ChatReply(f"answer {i}", prompt_tokens=100, completion_tokens=20)


# -- answers and failures


def test_answers_stand_in_the_order_of_their_requests() -> None:
    async def answer(request: ChatRequest) -> str:
        await asyncio.sleep(random.random() / 100)
        return f"answer {number(request)}"

    answers = Caller(FunctionClient(answer)).run(requests(200))
    assert [one.text for one in answers if isinstance(one, ChatReply)] == [f"answer {i}" for i in range(200)]


def test_nothing_to_ask() -> None:
    assert Caller(Scripted()).run([]) == []


@pytest.mark.parametrize("kind", ["rate limit", "timeout", "server", "connection"])
def test_another_attempt_is_made(kind: Any) -> None:
    client = Scripted(CallFailure(kind, "once"), CallFailure(kind, "twice"))
    caller = Caller(client, concurrency=4)
    assert [isinstance(answer, ChatReply) for answer in caller.run(requests(10))] == [True] * 10
    assert (caller.spent.requests, caller.spent.answered, caller.spent.retries) == (30, 10, {kind: 20})
    assert (caller.gate.lowered > 0) == (kind in ("rate limit", "timeout"))


@pytest.mark.parametrize("kind", ["bad request", "refused", "denied"])
def test_no_other_attempt_is_made(kind: Any) -> None:
    client = Scripted(CallFailure(kind, "no", prompt_tokens=50, completion_tokens=5))
    caller = Caller(client, budget=Budget(price=Price(1e6, 1e6)))
    assert caller.run(requests(3)) == [CallFailure(kind, "no", None, 50, 5)] * 3
    assert (client.asked.total(), caller.spent.failures, caller.spent.answered) == (3, {kind: 3}, 0)
    assert caller.spent.cost == 3 * 55  # a refusal is paid for


def test_attempts_end(no_waiting: None) -> None:
    """The last failure comes back as it is: no exception, no label."""
    client = Scripted(*(CallFailure("server", f"attempt {i}") for i in range(1, 9)))
    assert Caller(client, attempts=3).run(requests(2)) == [CallFailure("server", "attempt 3")] * 2
    assert client.asked == {0: 3, 1: 3}


def test_retry_after_holds_all_calls() -> None:
    client = Scripted(CallFailure("rate limit", "later", 0.3))
    began = time.monotonic()
    caller = Caller(client, start_concurrency=1, concurrency=1)
    caller.run(requests(1))
    assert time.monotonic() - began >= 0.3 and caller.gate.lowered == 1


def test_a_storm() -> None:
    """429 beyond 6 at once, bursts of it, 500s: everything is answered in the end, and not by hammering on."""
    dials = Dials(latency=0.002, max_concurrency=6, burst_every=100, burst_size=10, retry_after=0.02, error_rate=0.1)
    with running(dials) as stub:
        # the stub's bursts are counted in calls: the last request alone may get a whole one, and errors before and after it
        caller = Caller(OpenAIClient(stub.url), start_concurrency=4, concurrency=32, attempts=2 * dials.burst_size)
        answers = caller.run(requests(400))
        stats = stub.stats()
    assert all(isinstance(answer, ChatReply) for answer in answers)
    assert caller.spent.requests == stats["served"] == 400 + caller.spent.retries.total()
    assert caller.spent.retries["server"] == stats["statuses"]["500"] and caller.spent.retries["rate limit"] == stats["statuses"]["429"]
    assert caller.gate.lowered > 0


# -- what is wrong with the program


@pytest.mark.parametrize("error", [ZeroDivisionError("in the client"), SystemExit("in the client"), KeyboardInterrupt("in the client")], ids=repr)
def test_an_error_of_the_client_reaches_the_reader(error: BaseException) -> None:
    def answer(request: ChatRequest) -> str:
        if number(request) == 5:
            raise error
        return "fine"

    caller = Caller(FunctionClient(answer))
    with pytest.raises(type(error), match="in the client"):
        caller.run(requests(20))
    assert caller.gate.running == 0
    assert len(caller.run(requests(5))) == 5  # the loop goes on


def test_an_error_of_the_requests_reaches_the_reader() -> None:
    def broken() -> Iterator[ChatRequest]:
        yield from requests(5)
        raise ZeroDivisionError("in the requests")

    client = Scripted(latency=60)
    with pytest.raises(ZeroDivisionError, match="in the requests"):
        Caller(client).run(broken())  # type: ignore[arg-type]
    assert client.running == 0


def test_a_function_that_runs_calls_of_its_own() -> None:
    """In the one thread of all calls it would wait for itself for ever."""
    inner = Caller(FunctionClient(lambda request: "inner"))

    def ask_on(request: ChatRequest) -> str:
        return "outer and " + inner.run([request])[0].text  # type: ignore[union-attr]

    with pytest.raises(RuntimeError, match="give the FunctionClient `threads`"):
        Caller(FunctionClient(ask_on)).run(requests(1))
    assert Caller(FunctionClient(ask_on, threads=2)).run(requests(3)) == [ChatReply("outer and inner")] * 3


def test_blocking_functions_run_side_by_side_in_threads() -> None:
    together = threading.Barrier(4, timeout=30)

    def answer(request: ChatRequest) -> str:
        together.wait()
        return "met"

    assert Caller(FunctionClient(answer, threads=4)).run(requests(4)) == [ChatReply("met")] * 4


# -- streaming


def test_requests_are_taken_as_they_can_be_sent() -> None:
    taken = 0

    def many() -> Iterator[ChatRequest]:
        nonlocal taken
        for request in requests(1000):
            taken += 1
            yield request

    stream = Caller(Scripted(latency=0.001), concurrency=4).stream(many())
    for read in range(1, 200):
        next(stream)
        assert taken <= read + AHEAD * 4
    stream.close()


def test_slow_requests_are_sent_one_by_one() -> None:
    """The first is on its way before the second has been made: none waits until there is a whole share of them."""
    sent = threading.Event()

    def answer(request: ChatRequest) -> str:
        sent.set()
        return "fine"

    def slow() -> Iterator[ChatRequest]:
        for i, request in enumerate(requests(50)):
            time.sleep(2 * FEW_SECONDS)
            assert i == 0 or sent.wait(30)
            yield request

    assert sum(1 for _ in Caller(FunctionClient(answer), concurrency=64).stream(slow())) == 50


def test_a_slow_reader_holds_up_new_calls_and_not_those_that_run() -> None:
    """Answers come in while nobody reads: else calls would run into their timeouts for no fault of the endpoint."""
    taken = 0
    client = Scripted(latency=0.001)

    def many() -> Iterator[ChatRequest]:
        nonlocal taken
        for request in requests(100):
            taken += 1
            yield request

    caller = Caller(client, concurrency=4)
    stream = caller.stream(many())
    next(stream)
    until = time.monotonic() + 30
    while caller.spent.answered < taken and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)  # in which more could begin
    assert caller.spent.answered == taken == client.asked.total() <= AHEAD * 4 + 1
    assert sum(1 for _ in stream) == 99


def test_a_reader_may_stop(tmp_path: Path) -> None:
    client, cache = Scripted(latency=0.001), CallCache(tmp_path / "answers.sqlite")
    caller = Caller(client, cache=cache, concurrency=8)
    threads = threading.active_count()
    read = [i for _, (i, _) in zip(range(20), caller.stream(requests(1000)), strict=False)]
    assert client.running == 0 and caller.gate.running == 0
    assert client.asked.total() <= 20 + AHEAD * 8
    assert threading.active_count() <= threads + 1  # the one thread of all calls
    again = Caller(Scripted(*[CallFailure("server", "asked again")]), cache=cache, attempts=1)
    assert all(isinstance(answer, ChatReply) for answer in again.run([requests(1000)[i] for i in read]))


def test_streams_of_one_caller_beside_and_within_each_other() -> None:
    caller = Caller(Scripted(latency=0.001), concurrency=4)

    def second_turn() -> Iterator[ChatRequest]:
        for i, _ in caller.stream(requests(50)):
            yield requests(100)[50 + i]

    found = dict(caller.stream(second_turn()))
    assert len(found) == 50 and caller.spent.answered == 100 and caller.client.peak <= 4  # type: ignore[attr-defined]

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(len(caller.run(requests(200))))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [200] * 4 and caller.gate.running == 0


def test_progress_is_told_to_the_reader() -> None:
    told: list[tuple[str, int]] = []
    caller = Caller(Scripted(), on_progress=lambda spent: told.append((threading.current_thread().name, spent.answered)))
    caller.run(requests(30))
    assert len(told) == 30 and told[-1] == (threading.current_thread().name, 30)


def test_seconds_are_those_in_which_calls_ran() -> None:
    caller = Caller(Scripted(latency=0.05), concurrency=4, start_concurrency=4)
    running = 0.0
    for _ in range(2):
        began = time.monotonic()
        caller.run(requests(4))
        running += time.monotonic() - began
        time.sleep(0.05)
    assert 0.1 <= caller.spent.seconds <= running


INTERRUPTED = """
import asyncio, os, signal, sys, threading, time
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import ChatRequest
from palate.judging.function_client import FunctionClient

async def answer(request):
    await asyncio.sleep(600 if request.messages[0]["content"] > "q 20" else 0.001)
    return "fine"

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background deaf to interrupts
caller = Caller(FunctionClient(answer), cache=CallCache(sys.argv[1]))

def interrupt():
    while len(caller.cache) < 21:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    caller.run([ChatRequest("m", ({"role": "user", "content": f"q {i:02}"},)) for i in range(60)])
except KeyboardInterrupt:
    print("stopped", caller.gate.running, len(caller.cache))
"""


def test_an_interrupt_ends_a_run_at_once(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path / "answers.sqlite")], capture_output=True, text=True, timeout=60)
    assert out.stdout == "stopped 0 21\n" and out.stderr == ""


# -- the cache


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with CallCache(tmp_path / "answers.sqlite") as cache:
        first = Caller(Scripted(), cache=cache).run(requests(50))
        second = Caller(Scripted(CallFailure("bad request", "asked again")), cache=cache)
        assert [one._replace(cached=False) for one in second.run(requests(50)) if isinstance(one, ChatReply)] == first
        assert (second.spent.cached, second.spent.requests, second.spent.cost) == (50, 0, 0.0)


def test_what_failed_or_was_filtered_is_asked_again(tmp_path: Path) -> None:
    answers: list[Answer] = [
        CallFailure("refused", "no"),
        CallFailure("bad request", "no"),
        ChatReply("", "stop"),
        ChatReply("Resp", "content_filter"),
        ChatReply("A", "stop"),
        ChatReply("Resp", "length"),  # the same request would be cut off again
    ]
    asked: list[int] = []

    def answer(request: ChatRequest) -> Answer:
        asked.append(number(request))
        return answers[number(request)]

    with CallCache(tmp_path / "answers.sqlite") as cache:
        for _ in range(2):
            assert [one[:2] for one in Caller(FunctionClient(answer), cache=cache).run(requests(6))] == [one[:2] for one in answers]
        assert sorted(asked) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    client = Scripted(latency=0.01)
    with CallCache(tmp_path / "answers.sqlite") as cache:
        caller = Caller(client, cache=cache)
        answers = caller.run(requests(5) * 10)
        assert client.asked == dict.fromkeys(range(5), 1) and caller.spent.cached == 45
        assert {one.text for one in answers[7::5] if isinstance(one, ChatReply)} == {"answer 2"}
        draws = [ChatRequest("stub", requests(1)[0].messages, Sampling(1.0), sample=k) for k in range(4)]
        caller.run(draws)
    assert client.asked[0] == 1 + 4  # draws are no repetitions


def test_equal_requests_that_fail_are_each_asked(tmp_path: Path) -> None:
    client = Scripted(CallFailure("bad request", "the first time"))
    with CallCache(tmp_path / "answers.sqlite") as cache:
        answers = Caller(client, cache=cache).run(requests(1) * 3)
    assert [type(answer) for answer in answers] == [CallFailure, ChatReply, ChatReply] and client.asked[0] == 2


# -- the budget


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_max_requests(tmp_path: Path, concurrency: int) -> None:
    client = Scripted(CallFailure("server", "the first time"), latency=0.002)
    with CallCache(tmp_path / "answers.sqlite") as cache:
        caller = Caller(client, cache=cache, budget=Budget(max_requests=101), concurrency=concurrency, start_concurrency=concurrency)
        answers = caller.run(requests(300))
        answered = [answer for answer in answers if isinstance(answer, ChatReply)]
        assert client.asked.total() == caller.spent.requests == 101
        assert caller.stopped and len(answered) == len(cache) == caller.spent.answered
        rest = [answer for answer in answers if isinstance(answer, CallFailure)]
        assert {one.kind for one in rest} == {"budget"} and "run again with a larger one" in rest[0].message and len(answered) + len(rest) == 300
        more = Caller(client, cache=cache, budget=Budget(max_requests=1000))
        assert all(isinstance(answer, ChatReply) for answer in more.run(requests(300)))
        assert not more.stopped and more.spent.cached == len(answered)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_max_cost_is_never_passed(tmp_path: Path, concurrency: int) -> None:
    """A call costs 1.2, and could cost at most 3.45: the budget is used up to that, however many run at once."""
    client, price = Scripted(latency=0.002), Price(prompt=1e4, completion=1e4)
    asked = requests(300, sampling=Sampling(max_tokens=300))
    most = Budget(max_cost=1.0, price=price).most(asked[0])
    assert most == pytest.approx((len("question 0") + 2 * 16 + 300) / 100)
    with CallCache(tmp_path / "answers.sqlite") as cache:
        caller = Caller(client, cache=cache, budget=Budget(max_cost=100.0, price=price), concurrency=concurrency, start_concurrency=concurrency)
        answers = caller.run(asked)
        assert caller.stopped and caller.spent.cost == pytest.approx(1.2 * client.asked.total())
        assert 100.0 - most - 0.05 < caller.spent.cost <= 100.0
        assert len(cache) == sum(isinstance(answer, ChatReply) for answer in answers) == client.asked.total()
        more = Caller(client, cache=cache, budget=Budget(max_cost=1000.0, price=price))
        assert all(isinstance(answer, ChatReply) for answer in more.run(asked)) and not more.stopped
        assert client.asked == dict.fromkeys(range(300), 1)


def test_a_budget_too_small_for_one_call_says_so() -> None:
    caller = Caller(Scripted(), budget=Budget(max_cost=0.001, price=Price(1.0, 1.0)))
    (answer,) = caller.run(requests(1))
    assert isinstance(answer, CallFailure) and "0 of 0.001 is spent and the next call may cost 0.00209" in answer.message


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_cost needs the price of tokens"):
        Budget(max_cost=1.0)
    unbounded = Caller(Scripted(), budget=Budget(max_cost=1.0, price=Price(1, 1)))
    with pytest.raises(ConfigError, match="max_cost needs max_tokens"):
        unbounded.run(requests(1, sampling=Sampling(max_tokens=None)))
    assert len(unbounded.run(requests(1, sampling=Sampling(max_tokens=None), extra={"max_completion_tokens": 100, "n": 2}))) == 1


def test_the_price_is_stated_only_where_it_is_known() -> None:
    caller = Caller(Scripted(), budget=Budget(prices={"other": Price(1, 1)}))
    caller.run(requests(2))
    assert caller.spent.as_dict(Budget())["cost"] is None and caller.spent.unpriced == 2
    assert caller.spent.as_dict(caller.budget)["cost"] is None, "the price of another model"
    assert Caller(Scripted()).spent.as_dict(Budget(price=Price(1, 1)))["cost"] == 0.0


def test_each_model_at_its_own_price() -> None:
    """100 tokens in and 20 out: at 10 and 100 a million 0.003, at the common 1 and 1 0.00012."""
    caller = Caller(Scripted(), budget=Budget(price=Price(1, 1), prices={"dear": Price(10, 100)}))
    caller.run([*requests(1), ChatRequest("dear", ({"role": "user", "content": "question 7"},))])
    assert caller.spent.as_dict(caller.budget)["cost"] == pytest.approx(0.003 + 0.00012) == caller.budget.purse.cost
    asked = [ChatRequest(model, ({"role": "user", "content": "12345678"},), Sampling(max_tokens=50)) for model in ("stub", "dear")]
    assert dry_run(asked, price=Price(1, 1), prices={"dear": Price(10, 100)}).cost == pytest.approx((2 + 50 + 20 + 5000) / 1e6)
    assert dry_run(asked, prices={"dear": Price(10, 100)}).cost is None


@pytest.mark.parametrize("of", ["requests", "money"])
def test_one_purse_for_several_callers(of: str) -> None:
    """A jury's members are asked out of one budget, also at the same time."""
    limits: dict[str, Any] = {"max_requests": 30} if of == "requests" else {"max_cost": 30 * 1.2 + 3.4, "price": Price(1e4, 1e4)}
    purse, client = Purse(), Scripted(latency=0.002)
    callers = [Caller(client, budget=Budget(**limits, purse=purse)) for _ in range(3)]
    threads = [threading.Thread(target=lambda one=one: one.run(requests(40, sampling=Sampling(max_tokens=300)))) for one in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert client.asked.total() == purse.requests == 30 and all(caller.stopped for caller in callers) and not purse.reserved
    assert sum(caller.spent.requests for caller in callers) == 30


# -- the dry run


def test_a_dry_run_by_hand(tmp_path: Path) -> None:
    """3 of 10 are known, 2 ask the same: 6 calls of 'question N' (10 characters, 3 tokens) and at most 50 tokens of answer."""
    asked = [*requests(9, sampling=Sampling(max_tokens=50)), requests(9, sampling=Sampling(max_tokens=50))[8]]
    with CallCache(tmp_path / "answers.sqlite") as cache:
        client = Scripted()
        Caller(client, cache=cache).run(asked[:3])
        found = dry_run(asked, price=Price(10.0, 100.0), cache=cache, endpoint=client.endpoint)
        assert found == Estimate(10, 4, 6, 18, 300, pytest.approx((18 * 10 + 300 * 100) / 1e6), "prompts at 4 characters a token, answers at most")  # type: ignore[comparison-overlap]
        assert dry_run(asked, cache=cache, endpoint="another").calls == 9
    assert client.asked.total() == 3
    assert str(found).splitlines() == [
        "10 requests, 4 answered before: 6 calls",
        "tokens: about 18 of prompts, 300 of answers (prompts at 4 characters a token, answers at most)",
        "cost: 0.0302",
    ]


def test_what_a_dry_run_does_not_know() -> None:
    free = requests(2, sampling=Sampling(max_tokens=None))
    assert "cost: unknown" in str(dry_run(requests(2)))
    assert dry_run(free, price=Price(1, 1))[4:6] == (None, None) and "unknown of answers" in str(dry_run(free, price=Price(1, 1)))
    found = dry_run(iter(free), price=Price(1e6, 1e6), completion_tokens=7, count_tokens=lambda text: len(text.split()))
    assert found[:6] == (2, 0, 2, 4, 14, 18.0) and found.how == "prompts by the tokenizer, answers at 7 tokens"
    assert dry_run([], price=Price(1, 1)).cost == 0.0


# -- a run that is killed


RUN = """
import json, sys
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.openai_client import OpenAIClient
from tests.judging.test_caller import killed_requests
url, cache, log = sys.argv[1:]
caller = Caller(OpenAIClient(url), cache=CallCache(cache), concurrency=16)
with open(log, "a", buffering=1) as delivered:
    for i, answer in caller.stream(killed_requests()):
        delivered.write(json.dumps([i, answer.text]) + "\\n")
"""


def killed_requests() -> list[ChatRequest]:
    return requests(400, sampling=Sampling(temperature=1.0, seed=1))


def _start(url: str, cache: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen([sys.executable, "-c", RUN, url, str(cache), str(log)], env=environment)


def _delivered(log: Path) -> dict[int, str]:
    """Whole lines only: the last one may be cut by the kill."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return dict(map(json.loads, lines))


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_repeats_nothing_that_was_finished(tmp_path: Path, kills: int) -> None:
    """SIGKILL at random moments; then to the end. What had been committed or handed on is never asked again, and the answers are an undisturbed run's."""
    chance = random.Random(kills)
    asked = killed_requests()
    bodies = [hash_of(body_of(request)) for request in asked]
    path, log = tmp_path / "answers.sqlite", tmp_path / "delivered.jsonl"
    with spawned(Dials(latency=0.02, jitter=0.03)) as stub:
        keys = [request.key(stub.url) for request in asked]
        finished_before: list[tuple[set[str], Counter[str]]] = []
        for _ in range(kills):
            known = len(_kept(path, keys))
            process = _start(stub.url, path, log)
            while process.poll() is None and len(_kept(path, keys)) < known + min(60, 300 // kills):  # imports take seconds: the clock starts at work
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished = {bodies[i] for i in _kept(path, keys) | _delivered(log).keys()}
            finished_before.append((finished, Counter(stub.stats()["by_body"])))
        assert _start(stub.url, path, log).wait() == 0
        last = Counter(stub.stats()["by_body"])
        for finished, counted in finished_before:
            assert finished and {body: last[body] for body in finished} == {body: counted[body] for body in finished}
        assert len(_kept(path, keys)) == 400
        undisturbed = Caller(OpenAIClient(stub.url)).run(asked)
        with CallCache(path) as cache:
            assert [cache.get(key).text for key in keys] == [answer.text for answer in undisturbed]  # type: ignore[union-attr]
        assert _delivered(log) == {i: answer.text for i, answer in enumerate(undisturbed)}  # type: ignore[union-attr]


def _kept(path: Path, keys: list[bytes]) -> set[int]:
    if not path.exists():
        return set()
    with CallCache(path) as cache:
        return {i for i, key in enumerate(keys) if cache.get(key) is not None}
