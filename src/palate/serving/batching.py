"""Single calls answered together: whoever calls waits for one item's result, and what several wait for at the same time is worked on as one batch.

RL stacks score one sample a call, from coroutines or from threads; a reward model wants many at a time. One thread of its own takes what has been
handed in: it waits for others for a few milliseconds when it was idle, and takes whatever has gathered while it worked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from palate.errors import ModelError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH = 64
MAX_WAIT = 0.01
"""Seconds that the first item of a batch waits for company: little beside the seconds that a sample took to be written, much beside a coroutine's turn."""


class _Waiting(NamedTuple):
    item: Any
    future: Future[Any]


class Batcher(Generic[T, R]):
    """`work` on batches of up to `max_batch` items, one result an item, in a thread that begins at the first call.

    An error of a batch is each item's own: they are tried again one by one, so that one bad item does not take the others with it. A ModelError
    (an endpoint that does not answer) is nobody's own and goes to all. `close` finishes what was handed in; what comes later raises RuntimeError.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], *, max_batch: int = MAX_BATCH, max_wait: float = MAX_WAIT):
        if max_batch < 1 or max_wait < 0:
            raise ValueError(f"max_batch={max_batch} and max_wait={max_wait}, expected at least 1 item and 0 seconds")
        self.work, self.max_batch, self.max_wait = work, max_batch, max_wait
        self.batches = 0  # handed to `work`, retries one by one left aside
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, item: T) -> Future[R]:
        """The item's result, to come."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the batcher is closed; nothing more can be handed in")
            if self._thread is None or not self._thread.is_alive():  # the first call, also of a forked process, which has no threads
                self._queue = SimpleQueue()
                self._thread = threading.Thread(target=self._turn, args=(self._queue,), name="palate-batches", daemon=True)
                self._thread.start()
            self._queue.put(_Waiting(item, future))
        return future

    def __call__(self, item: T) -> R:
        """The item's result, waited for in this thread."""
        return self.submit(item).result()

    async def one(self, item: T) -> R:
        """The item's result, waited for in this coroutine."""
        return await asyncio.wrap_future(self.submit(item))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            thread, queue = self._thread, self._queue
        if thread is not None and thread.is_alive():
            queue.put(None)
            thread.join()

    def __enter__(self) -> Batcher[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self, queue: SimpleQueue[_Waiting | None]) -> None:
        while (first := queue.get()) is not None:
            batch, more = self._gather(queue, first)
            waiting = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if waiting:
                self.batches += 1
                self._answer(waiting)
            if not more:
                return

    def _gather(self, queue: SimpleQueue[_Waiting | None], first: _Waiting) -> tuple[list[_Waiting], bool]:
        """(a batch that begins with `first`, whether there may be another)"""
        batch = [first]
        until = time.monotonic() + self.max_wait
        while len(batch) < self.max_batch:
            try:
                found = queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if found is None:
                return batch, False
            batch.append(found)
        return batch, True

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Every future of the batch gets its result or its error: who waits is never left waiting."""
        try:
            results = list(self.work([one.item for one in batch]))
            if len(results) != len(batch):
                raise ModelError(f"{len(results)} results came back for {len(batch)} items; expected one each")
        except BaseException as error:  # handed on to whoever waits for it
            if len(batch) > 1 and not isinstance(error, ModelError):
                logger.warning("a batch of %d failed (%s); its items are tried one by one", len(batch), error)
                for one in batch:
                    self._answer([one])
                return
            for one in batch:
                one.future.set_exception(error)
            return
        for one, result in zip(batch, results, strict=True):
            one.future.set_result(result)
