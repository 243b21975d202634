"""Long runs: memory that stays flat, all places of an endpoint taken and never one more, no request twice. Speed is measured by benchmarks/judging.py."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import psutil
from tests.judging.stub_server import Dials, spawned

from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import ChatReply, ChatRequest
from palate.judging.function_client import FunctionClient
from palate.judging.openai_client import OpenAIClient

MANY = 20_000
TEXT = "what was said and what was answered " * 80  # 3 kB, as of a prompt with two short responses


def many(count: int) -> Iterator[ChatRequest]:
    """Made one by one: together they would take 60 MB."""
    for i in range(count):
        yield ChatRequest("stub", ({"role": "user", "content": f"{i} {TEXT}"},))


def resident() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def test_memory_is_flat(tmp_path: Path) -> None:
    """20 000 requests of 3 kB, with answers of 1 kB into the cache: less than 30 MB more than before."""
    client = FunctionClient(lambda request: f"{request.messages[0]['content'][:1000]} [[A]]")
    with CallCache(tmp_path / "answers.sqlite") as cache:
        caller = Caller(client, cache=cache)
        assert sum(1 for _ in caller.stream(many(200))) == 200  # what is made once
        before = most = resident()
        for read, (_, answer) in enumerate(caller.stream(many(MANY))):
            assert isinstance(answer, ChatReply)
            if read % 2000 == 0:
                most = max(most, resident())
        assert most - before < 30, f"{most - before:.1f} MB more"
        assert len(cache) == MANY and caller.spent.cached == 200
        assert not caller._asking and not caller.budget.purse.reserved and caller.gate.running == 0


def test_all_places_and_no_more(tmp_path: Path) -> None:
    """A server that bears 16 at once, and a caller that is told so: it comes to 16, is never turned away, and asks each request once."""
    with spawned(Dials(latency=0.05, max_concurrency=16)) as stub, CallCache(tmp_path / "answers.sqlite") as cache:
        caller = Caller(OpenAIClient(stub.url), cache=cache, concurrency=16, start_concurrency=2)
        assert all(isinstance(answer, ChatReply) for _, answer in caller.stream(many(400)))
        stats = stub.stats()
    assert (stats["served"], stats["statuses"], stats["peak"]) == (400, {"200": 400}, 16)
    assert set(stats["by_body"].values()) == {1}
