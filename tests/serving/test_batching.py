"""Single calls become few batches; every caller gets its own result or its own error, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from palate.errors import DataError, ModelError
from palate.serving.batching import Batcher


class Doubler:
    """Twice the number; remembers its batches, and takes its time."""

    def __init__(self, seconds: float = 0.0):
        self.seen: list[list[int]] = []
        self.seconds = seconds

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.seen.append(list(items))
        time.sleep(self.seconds)
        if -1 in items:
            raise DataError(f"-1 at place {list(items).index(-1)}")
        return [2 * item for item in items]


def test_sixty_four_coroutines_make_few_batches() -> None:
    async def run(batcher: Batcher[int, int]) -> list[int]:
        return await asyncio.gather(*(batcher.one(i) for i in range(64)))

    work = Doubler(0.01)
    with Batcher(work, max_wait=0.05) as batcher:
        assert asyncio.run(run(batcher)) == [2 * i for i in range(64)]
    assert len(work.seen) <= 4 and sum(map(len, work.seen)) == 64


def test_threads_are_batched_too_and_max_batch_holds() -> None:
    work = Doubler(0.01)
    with Batcher(work, max_batch=16, max_wait=0.05) as batcher, ThreadPoolExecutor(64) as pool:
        assert list(pool.map(batcher, range(64))) == [2 * i for i in range(64)]
    assert max(map(len, work.seen)) <= 16 and len(work.seen) <= 16


def test_what_gathers_while_it_works_is_the_next_batch() -> None:
    """Without a wait the first item goes alone; those that came meanwhile go together, not one by one."""
    work = Doubler(0.1)
    with Batcher(work, max_wait=0.0) as batcher:
        first = batcher.submit(0)
        time.sleep(0.03)
        rest = [batcher.submit(i) for i in range(1, 33)]
        assert [future.result() for future in (first, *rest)] == [2 * i for i in range(33)]
    assert [len(batch) for batch in work.seen] == [1, 32]


def test_an_item_that_fails_does_not_take_the_others_with_it() -> None:
    work = Doubler()
    with Batcher(work, max_wait=0.05) as batcher:
        futures = [batcher.submit(i) for i in (1, -1, 3)]
        assert futures[0].result(5) == 2 and futures[2].result(5) == 6
        with pytest.raises(DataError, match="place 0"):  # as if it had been asked for alone
            futures[1].result(5)
    assert batcher.batches == 1


def test_an_endpoint_that_is_down_is_asked_once_for_all() -> None:
    calls = []

    def down(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise ModelError("no answer")

    with Batcher(down, max_wait=0.05) as batcher:
        futures = [batcher.submit(i) for i in range(8)]
        for future in futures:
            with pytest.raises(ModelError, match="no answer"):
                future.result(5)
    assert calls == [8]


def test_results_of_another_number_are_an_error_for_all() -> None:
    with Batcher(lambda items: [1], max_wait=0.05) as batcher:
        futures = [batcher.submit(i) for i in range(3)]
        for future in futures:
            with pytest.raises(ModelError, match="1 results came back for 3 items"):
                future.result(5)


def test_closing_finishes_what_was_handed_in_and_refuses_the_rest() -> None:
    before = set(threading.enumerate())  # adapters of other tests keep theirs while the process lives
    work = Doubler(0.05)
    batcher = Batcher(work, max_batch=2)
    futures = [batcher.submit(i) for i in range(7)]
    batcher.close()
    assert [future.result(0) for future in futures] == [2 * i for i in range(7)]
    assert not any(thread.name == "palate-batches" for thread in set(threading.enumerate()) - before)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)
    batcher.close()
    Batcher(work).close()  # never used: there is no thread to end


def test_a_caller_who_gives_up_is_left_out() -> None:
    async def run(batcher: Batcher[int, int]) -> int:
        waiting = asyncio.ensure_future(batcher.one(1))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.01)
        given_up = asyncio.ensure_future(batcher.one(5))
        await asyncio.sleep(0.01)
        given_up.cancel()
        assert await waiting == 2
        return await batcher.one(3)

    work = Doubler(0.1)
    with Batcher(work, max_wait=0.0) as batcher:
        assert asyncio.run(run(batcher)) == 6
    assert [item for batch in work.seen for item in batch] == [1, 3]


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch=0"):
        Batcher(Doubler(), max_batch=0)
