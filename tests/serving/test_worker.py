"""The queue and its threads: what is computed together, what is refused, what happens when computing fails or the server goes down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import tiny_scorer

from palate.data.tokenization import common_prefix
from palate.scoring.local import LocalScorer
from palate.serving.metrics import Metrics
from palate.serving.pieces import Piece, Problem
from palate.serving.routes import Refusal
from palate.serving.settings import ServerSettings
from palate.serving.worker import Scored, Served, Worker
from palate.types import Exchange


def texts(*given: str) -> list[Piece]:
    return [Piece(Exchange("", text)) for text in given]


class Held:
    """A scorer whose computing waits until it is let go; `batches` holds what came together."""

    def __init__(self, scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch):
        self.open, self.computing = threading.Event(), threading.Event()
        self.batches: list[list[list[int]]] = []
        read = scorer.read_ids

        def held(sequences: Sequence[list[int]], reads: Any = None) -> Any:
            self.batches.append(list(sequences))
            self.computing.set()
            assert self.open.wait(20)
            return read(sequences, reads)

        monkeypatch.setattr(scorer, "read_ids", held)


@pytest.fixture
def scorer() -> LocalScorer:
    return tiny_scorer("llama")


def started(scorer: LocalScorer, **settings: Any) -> Worker:
    worker = Worker("tiny", Served(scorer), ServerSettings(**settings), Metrics())
    worker.start()
    return worker


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


def test_what_waits_is_computed_together(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is being computed; the next three make one batch, and each client gets its own rewards in order."""
    worker = started(scorer)
    held = Held(scorer, monkeypatch)

    async def play() -> list[list[Scored | Problem]]:
        tasks = [asyncio.create_task(worker.score(texts("first")))]
        await asyncio.to_thread(held.computing.wait)
        tasks += [asyncio.create_task(worker.score(texts(*own))) for own in (("a", "b"), ("c",), ("d", "first"))]
        await until(lambda: len(worker._ready) == 5)
        assert worker.items == 6
        held.open.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(play())
    assert [len(batch) for batch in held.batches] == [1, 5]
    expected = scorer.score(["first", "a", "b", "c", "d", "first"])
    rewards = [one.reward for own in found for one in own if isinstance(one, Scored)]
    np.testing.assert_allclose(rewards, expected, atol=2e-6)
    assert worker.items == worker.tokens == 0
    worker.close()


def test_requests_that_share_a_prompt_share_its_computation(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight responses to one prompt, each a request of its own: the row that is computed holds the prompt once, and the budget of a batch counts it once."""
    prompt = ({"role": "user", "content": "tell me about the sea and the wind " * 6},)
    group = [Exchange(prompt, ({"role": "assistant", "content": f"answer {i}"},)) for i in range(8)]
    sequences = scorer.encoder.encode(group)
    lengths, prefix = [len(ids) for ids in sequences], common_prefix(sequences)
    unique = prefix + sum(length - prefix for length in lengths)
    worker = started(scorer, batch_tokens=unique)
    held = Held(scorer, monkeypatch)
    rows: list[int] = []
    run = scorer._run
    monkeypatch.setattr(scorer, "_run", lambda batch, *rest: (rows.append(batch["input_ids"].numel()), run(batch, *rest))[1])

    async def play() -> None:
        first = asyncio.create_task(worker.score(texts("something else")))
        await asyncio.to_thread(held.computing.wait)
        tasks = [asyncio.create_task(worker.score([Piece(exchange)])) for exchange in group]
        await until(lambda: len(worker._ready) == 8)
        held.open.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(play())
    assert [len(batch) for batch in held.batches] == [1, 8] and rows[-1] == unique < sum(lengths) / 3
    worker.close()


def test_batches_end_at_their_limits(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, sizes in (({"batch_items": 2}, [1, 2, 2, 1]), ({"batch_tokens": 9}, [1, 4, 1])):
        worker = started(scorer, **limit)
        with monkeypatch.context() as patched:
            held = Held(scorer, patched)

            async def play(worker: Worker = worker, held: Held = held) -> None:
                tasks = [asyncio.create_task(worker.score(texts("a")))]
                await asyncio.to_thread(held.computing.wait)
                tasks += [asyncio.create_task(worker.score(texts(text))) for text in "bcdef"]  # <s> letter </s>, of which <s> is shared: 3 tokens, then 2 each
                await until(lambda: len(worker._ready) == 5)
                held.open.set()
                await asyncio.gather(*tasks)

            asyncio.run(play())
        assert [len(batch) for batch in held.batches] == sizes, limit
        worker.close()


def test_a_full_queue_refuses_and_recovers(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(scorer, queue_items=3)
    held = Held(scorer, monkeypatch)

    async def play() -> None:
        tasks = [asyncio.create_task(worker.score(texts(text))) for text in "abc"]
        await until(lambda: worker.items == 3)
        with pytest.raises(Refusal, match="3 items are queued") as refused:
            await worker.score(texts("d"))
        assert refused.value.status == 503 and 1 <= int(refused.value.retry_after or 0) <= 30
        held.open.set()
        await asyncio.gather(*tasks)
        assert isinstance((await worker.score(texts("d")))[0], Scored)
        assert len(await worker.score(texts(*"abcdefgh"))) == 8  # more than the queue holds goes when nothing waits

    asyncio.run(play())
    worker.close()


def test_a_queue_full_of_tokens_refuses_whole_requests(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(scorer, queue_tokens=10)
    held = Held(scorer, monkeypatch)

    async def play() -> None:
        first = asyncio.create_task(worker.score(texts("a", "b", "c")))  # 9 tokens
        await asyncio.to_thread(held.computing.wait)
        with pytest.raises(Refusal, match="items are queued"):
            await worker.score(texts("d"))
        assert worker.items == 3 and worker.tokens == 9
        held.open.set()
        await first
        assert isinstance((await worker.score(texts("d")))[0], Scored)

    asyncio.run(play())
    worker.close()


def test_what_nobody_waits_for_any_more_is_not_computed(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(scorer)
    held = Held(scorer, monkeypatch)

    async def play() -> None:
        first = asyncio.create_task(worker.score(texts("first")))
        await asyncio.to_thread(held.computing.wait)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.score(texts("gone", "too")), 0.05)
        last = asyncio.create_task(worker.score(texts("last")))
        await until(lambda: len(worker._ready) == 3)
        held.open.set()
        await asyncio.gather(first, last)

    asyncio.run(play())
    assert [len(batch) for batch in held.batches] == [1, 1] and worker.items == worker.tokens == 0
    worker.close()


@pytest.mark.parametrize(("left", "computed"), [((0, 1), (1,)), ((1,), (3, 4)), ((0,), (5,))])
def test_a_batch_that_nobody_waits_for_any_more_is_left(
    scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch, left: Sequence[int], computed: Sequence[int]
) -> None:
    """Two requests of one batch: where both clients go, the row at work is its last; where one stays, the last of its own is, or the one after it."""
    worker = started(scorer)
    read, begun, allowed = scorer.read_ids, threading.Semaphore(0), threading.Semaphore(0)
    rows: list[int] = []

    def row_by_row(sequences: Sequence[list[int]], reads: Any = None) -> Any:
        for i, ids in enumerate(sequences):
            begun.release()
            assert allowed.acquire(timeout=60)
            rows.append(i)
            ((_, values),) = read([ids], reads)
            yield np.array([i]), values

    monkeypatch.setattr(scorer, "read_ids", row_by_row)

    async def play() -> None:
        first = asyncio.create_task(worker.score(texts("first")))
        await asyncio.to_thread(begun.acquire)
        tasks = [asyncio.create_task(worker.score(texts(*own))) for own in (("a", "b", "c"), ("d", "e"))]
        await until(lambda: len(worker._ready) == 5)
        allowed.release()
        await asyncio.to_thread(begun.acquire)
        for i in left:
            tasks[i].cancel()
        await asyncio.wait([tasks[i] for i in left])
        allowed.release(3)
        await first
        if 0 not in left:  # its answer is heard of by the event loop while the computing thread goes on
            await tasks[0]
        allowed.release(2)
        for i in {0, 1} - set(left):
            assert all(isinstance(one, Scored) for one in await tasks[i])
        await until(lambda: worker.items == 0)

    asyncio.run(play())
    assert len(rows) - 1 in computed and worker.tokens == 0
    worker.close()


def test_a_batch_that_fails_costs_only_whoever_broke_it(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory runs out on one long text: the batch is computed again one by one."""
    worker = started(scorer)
    read, poison = scorer.read_ids, scorer.encoder.encode([Exchange("", "poison")])[0]

    def failing(sequences: Sequence[list[int]], reads: Any = None) -> Any:
        if poison in sequences:
            raise RuntimeError("out of memory")
        return read(sequences, reads)

    monkeypatch.setattr(scorer, "read_ids", failing)
    good, bad, other = asyncio.run(worker.score(texts("good", "poison", "other")))
    assert isinstance(bad, Problem) and bad.kind == "failed" and "out of memory" in bad.message
    np.testing.assert_allclose([good.reward, other.reward], scorer.score(["good", "other"]), atol=2e-6)  # type: ignore[union-attr]
    assert isinstance(asyncio.run(worker.score(texts("again")))[0], Scored) and worker.items == worker.tokens == 0
    worker.close()


def test_closing_finishes_what_is_queued(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(scorer)
    held = Held(scorer, monkeypatch)

    async def play() -> None:
        tasks = [asyncio.create_task(worker.score(texts(text))) for text in "abcdef"]
        await asyncio.to_thread(held.computing.wait)
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        await until(lambda: worker._closing)
        with pytest.raises(Refusal, match="going down"):
            await worker.score(texts("late"))
        held.open.set()
        found = await asyncio.gather(*tasks)
        await closing
        assert all(isinstance(one, Scored) for (one,) in found)

    asyncio.run(play())
    assert not any(thread.is_alive() for thread in worker._threads)


def test_lingering_waits_for_company(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(scorer, linger=600.0, batch_items=3)
    held = Held(scorer, monkeypatch)
    held.open.set()

    async def play() -> None:
        await until(lambda: worker._encoded._waiters)  # idle: what finds the model awake does not linger
        await asyncio.gather(*(worker.score(texts(text)) for text in "abc"))  # the third ends the wait

    asyncio.run(asyncio.wait_for(play(), 60))
    assert [len(batch) for batch in held.batches] == [3]
    worker.close()


def test_engines_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded, packed and shared rows give one reward through the worker too, read at the end or everywhere."""
    pieces = [Piece(Exchange("", f"the quick brown fox {i}"), every_token=i % 2 == 0) for i in range(6)]
    found = []
    for packing in ("padded", "packed", "shared"):
        worker = started(tiny_scorer("llama", packing=packing))
        found.append(asyncio.run(worker.score(pieces)))
        worker.close()
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert isinstance(one, Scored) and isinstance(same, Scored)
            assert one.reward == pytest.approx(same.reward, abs=2e-6) and (one.tokens is None) == (same.tokens is None)
            np.testing.assert_allclose(one.tokens or [], same.tokens or [], atol=2e-6)
