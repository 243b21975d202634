"""Single calls become few batches; every caller gets its own result or its own error, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from palate.errors import DataError, ModelError
from palate.serving.batching import Batcher

LONG = 600.0
"""Seconds that no test lasts: a batch that waits for them ends by its size alone."""


class Doubler:
    """Twice the number; remembers its batches, and begins each only when `going` is set."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.begun, self.going = threading.Event(), threading.Event()
        self.going.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.seen.append(list(items))
        self.begun.set()
        assert self.going.wait(60)
        if -1 in items:
            raise DataError(f"-1 at place {list(items).index(-1)}")
        return [2 * item for item in items]


def held() -> Doubler:
    work = Doubler()
    work.going.clear()
    return work


def test_sixty_four_coroutines_make_one_batch() -> None:
    async def run(batcher: Batcher[int, int]) -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*(batcher.one(i) for i in range(64))), 60)

    work = Doubler()
    with Batcher(work, max_wait=LONG) as batcher:
        assert asyncio.run(run(batcher)) == [2 * i for i in range(64)]
    assert [len(batch) for batch in work.seen] == [64]


def test_threads_are_batched_too_and_max_batch_holds() -> None:
    work = Doubler()
    with Batcher(work, max_batch=16, max_wait=LONG) as batcher, ThreadPoolExecutor(64) as pool:
        assert list(pool.map(batcher, range(64), timeout=60)) == [2 * i for i in range(64)]
    assert [len(batch) for batch in work.seen] == [16] * 4


def test_an_item_without_company_goes_when_its_wait_is_over() -> None:
    with Batcher(Doubler(), max_wait=0.01) as batcher:
        assert batcher.submit(4).result(60) == 8


def test_what_gathers_while_it_works_is_the_next_batch() -> None:
    """Without a wait the first item goes alone; those that came meanwhile go together, not one by one."""
    work = held()
    with Batcher(work, max_wait=0.0) as batcher:
        first = batcher.submit(0)
        assert work.begun.wait(60)
        rest = [batcher.submit(i) for i in range(1, 33)]
        work.going.set()
        assert [future.result(60) for future in (first, *rest)] == [2 * i for i in range(33)]
    assert [len(batch) for batch in work.seen] == [1, 32]


def test_an_item_that_fails_does_not_take_the_others_with_it() -> None:
    work = Doubler()
    with Batcher(work, max_batch=3, max_wait=LONG) as batcher:
        futures = [batcher.submit(i) for i in (1, -1, 3)]
        assert futures[0].result(60) == 2 and futures[2].result(60) == 6
        with pytest.raises(DataError, match="place 0"):  # as if it had been asked for alone
            futures[1].result(60)
    assert batcher.batches == 1


def test_an_endpoint_that_is_down_is_asked_once_for_all() -> None:
    calls = []

    def down(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise ModelError("no answer")

    with Batcher(down, max_batch=8, max_wait=LONG) as batcher:
        futures = [batcher.submit(i) for i in range(8)]
        for future in futures:
            with pytest.raises(ModelError, match="no answer"):
                future.result(60)
    assert calls == [8]


def test_results_of_another_number_are_an_error_for_all() -> None:
    with Batcher(lambda items: [1], max_batch=3, max_wait=LONG) as batcher:
        futures = [batcher.submit(i) for i in range(3)]
        for future in futures:
            with pytest.raises(ModelError, match="1 results came back for 3 items"):
                future.result(60)


def test_closing_finishes_what_was_handed_in_and_refuses_the_rest() -> None:
    before = set(threading.enumerate())  # adapters of other tests keep theirs while the process lives
    work = held()
    batcher = Batcher(work, max_batch=2)
    futures = [batcher.submit(i) for i in range(7)]
    assert work.begun.wait(60)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    work.going.set()
    closing.join(60)
    assert [future.result(0) for future in futures] == [2 * i for i in range(7)]
    assert not any(thread.name == "palate-batches" for thread in set(threading.enumerate()) - before)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)
    batcher.close()
    Batcher(work).close()  # never used: there is no thread to end


def test_a_caller_who_gives_up_is_left_out() -> None:
    work = held()

    async def run(batcher: Batcher[int, int]) -> int:
        waiting = asyncio.ensure_future(batcher.one(1))
        assert await asyncio.to_thread(work.begun.wait, 60)
        given_up = asyncio.ensure_future(batcher.one(5))
        await asyncio.sleep(0)  # hands it in
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        work.going.set()
        assert await waiting == 2
        return await batcher.one(3)

    with Batcher(work, max_wait=0.0) as batcher:
        assert asyncio.run(run(batcher)) == 6
    assert [item for batch in work.seen for item in batch] == [1, 3]


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch=0"):
        Batcher(Doubler(), max_batch=0)
