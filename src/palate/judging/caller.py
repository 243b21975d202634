"""Many calls: from the cache where they are known, else asked at the pace that the endpoint allows, again where it failed, within the budget.

Answers come out as they arrive, each with the place of its request. Requests are taken in the thread that reads the answers, and only as many ahead as can
soon be sent: a run of any length needs the memory of what is under way, and a reader who takes his time holds up new calls, not those that run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

from palate.errors import StorageError
from palate.judging.budget import Budget, Spent
from palate.judging.call_cache import CallCache
from palate.judging.calls import RETRIED, Answer, CallFailure, ChatClient, ChatReply, ChatRequest
from palate.judging.concurrency import LONGEST_HOLD, AdaptiveConcurrency, Outcome
from palate.judging.event_loop import event_loop, finish, in_event_loop

ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds before the second attempt, doubled each time, with up to as much again by chance so that callers do not march in step
LONGEST_PAUSE = 60.0
AHEAD = 3  # requests taken in and not yet read, in multiples of the most that run at once: one share runs, one waits, one is being read
FEW_SECONDS = (
    0.005  # in which requests are gathered before they are sent (those that take long to make are sent one by one), and answers before they are written
)

T = TypeVar("T")
Arrived: TypeAlias = "SimpleQueue[tuple[int, Answer] | BaseException]"


class Caller:
    """Runs requests on a client. One Caller may run many batches, also at the same time; `spent` adds up over all of them.

    With a cache, an answer is on disk before it is handed on, and equal requests are asked once.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        cache: CallCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 64,
        start_concurrency: int = 8,
        attempts: int = ATTEMPTS,
        on_progress: Callable[[Spent], None] | None = None,
    ):
        if attempts < 1:
            raise ValueError(f"attempts {attempts}, expected at least 1")
        self.client, self.cache, self.budget = client, cache, budget or Budget()
        self.attempts = attempts
        self.spent = Spent()
        self.gate = AdaptiveConcurrency(min(start_concurrency, concurrency), concurrency)
        self.stopped = False  # whether the budget ended a run before its requests did
        self._on_progress = on_progress
        self._asking: dict[bytes, asyncio.Event] = {}  # requests under way, by key
        self._unkept: list[tuple[bytes, ChatRequest, ChatReply, asyncio.Future[Answer]]] = []  # answers to be written, and who waits for them
        self._tasks = 0
        self._since = 0.0

    def run(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """One answer a request, in order."""
        answers = dict(self.stream(requests))
        return [answers[i] for i in range(len(requests))]

    def beside(self, asked: Iterable[tuple[T, ChatRequest]]) -> Iterator[tuple[T, Answer]]:
        """As `stream`, with what stands beside each request in place of its number; it is kept for as long as the call is under way."""
        under_way: dict[int, T] = {}

        def requests() -> Iterator[ChatRequest]:
            for i, (one, request) in enumerate(asked):
                under_way[i] = one
                yield request

        for i, answer in self.stream(requests()):
            yield under_way.pop(i), answer

    def stream(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """(place, answer) as answers arrive. A reader who stops (or an interrupt) ends the calls under way; answers that had come are in the cache."""
        if in_event_loop():
            raise RuntimeError("a call starts other calls in the thread that runs them all: give the FunctionClient `threads`")
        waiting = iter(enumerate(requests))
        arrived: Arrived = SimpleQueue()
        tasks: set[asyncio.Task[tuple[int, Answer]]] = set()
        loop = event_loop()
        most = AHEAD * self.gate.most
        few = max(1, self.gate.most // 4)  # to wake the other thread for each one would cost
        ahead, more = 0, True  # taken in and not yet read; whether there may be more to take
        try:
            while ahead or more:
                if more and ahead <= most - few:
                    batch = _next_few(waiting, most - ahead)
                    more = bool(batch)
                    ahead += len(batch)
                    loop.call_soon_threadsafe(self._begin, batch, arrived, tasks)
                    if arrived.empty():
                        continue
                item = arrived.get()
                if isinstance(item, BaseException):
                    raise item
                ahead -= 1
                if self._on_progress is not None:
                    self._on_progress(self.spent)
                yield item
        finally:
            if ahead and in_event_loop():  # the garbage collector may end a forgotten stream there
                loop.create_task(self._end(tasks))
            elif ahead:
                finish(self._end(tasks), loop)

    def _begin(self, batch: list[tuple[int, ChatRequest]], arrived: Arrived, tasks: set[asyncio.Task[tuple[int, Answer]]]) -> None:
        def done(task: asyncio.Task[tuple[int, Answer]]) -> None:
            tasks.discard(task)
            self._tasks -= 1
            if not self._tasks:
                self.spent.seconds += time.monotonic() - self._since
            if not task.cancelled():
                arrived.put(task.exception() or task.result())

        if not self._tasks:
            self._since = time.monotonic()
        self._tasks += len(batch)
        for i, request in batch:
            task = asyncio.get_running_loop().create_task(self._placed(i, request))
            tasks.add(task)
            task.add_done_callback(done)

    async def _placed(self, i: int, request: ChatRequest) -> tuple[int, Answer]:
        return i, await self.ask(request)

    async def ask(self, request: ChatRequest) -> Answer:
        """One request through cache, budget, gate and retries; in the event loop of all calls."""
        if self.cache is None:
            return await self._attempts(request)
        key = request.key(self.client.endpoint)
        while (same := self._asking.get(key)) is not None:
            await same.wait()
        if (known := self.cache.get(key)) is not None:
            self.spent.cached += 1
            return known
        answered = self._asking[key] = asyncio.Event()
        try:
            answer = await self._attempts(request)
            return await self._keep(key, request, answer) if isinstance(answer, ChatReply) else answer
        finally:
            del self._asking[key]
            answered.set()

    async def _keep(self, key: bytes, request: ChatRequest, answer: ChatReply) -> Answer:
        """The answer once it is on disk, with the others of the same milliseconds: calls that can begin do so first."""
        loop = asyncio.get_running_loop()
        if not self._unkept:
            loop.call_later(FEW_SECONDS, self._commit)
        kept: asyncio.Future[Answer] = loop.create_future()
        self._unkept.append((key, request, answer, kept))
        return await kept

    def _commit(self) -> None:
        """Write what has come; also what nobody waits for any more."""
        unkept, self._unkept = self._unkept, []
        if not unkept or self.cache is None:
            return
        waiting = [one[3] for one in unkept]
        try:
            for kept, answer in zip(waiting, self.cache.put_all([one[:3] for one in unkept]), strict=True):
                if not kept.done():
                    kept.set_result(answer)
        except StorageError as error:
            for kept in waiting:
                if not kept.done():
                    kept.set_exception(error)

    async def _attempts(self, request: ChatRequest) -> Answer:
        pause = FIRST_PAUSE
        for attempt in range(1, self.attempts + 1):
            answer = await self._attempt(request)
            if isinstance(answer, ChatReply) or answer.kind not in RETRIED or attempt == self.attempts:
                break
            self.spent.retries[answer.kind] += 1
            await asyncio.sleep(max(min(answer.retry_after or 0.0, LONGEST_HOLD), pause * (1 + random.random())))
            pause = min(LONGEST_PAUSE, 2 * pause)
        self.spent.settle(answer)
        return answer

    async def _attempt(self, request: ChatRequest) -> Answer:
        """One attempt, once the budget and the gate allow it."""
        most = self.budget.most(request)
        if why := await self.budget.reserve(most):
            return self._stop(why)
        outcome: Outcome = "neutral"
        answer: Answer | None = None
        try:
            began = await self.gate.acquire()
            try:
                if why := self.budget.begin():
                    return self._stop(why)
                self.spent.requests += 1
                answer = await self.client.complete(request)
                self.spent.add(answer, self.budget.pay(request, answer))
                outcome = _outcome(answer)
            finally:
                self.gate.release(began, outcome, answer.retry_after if isinstance(answer, CallFailure) else None)
        finally:
            self.budget.purse.release(most)
        return answer

    async def _end(self, tasks: set[asyncio.Task[tuple[int, Answer]]]) -> None:
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._commit()

    def _stop(self, why: str) -> CallFailure:
        self.stopped = True
        return CallFailure("budget", f"the budget does not allow another call: {why}; what was answered is kept: run again with a larger one to go on")


def _next_few(waiting: Iterator[tuple[int, ChatRequest]], most: int) -> list[tuple[int, ChatRequest]]:
    """As many as there are at once; none: there are no more."""
    batch = []
    until = time.monotonic() + FEW_SECONDS
    for item in islice(waiting, most):
        batch.append(item)
        if time.monotonic() > until:
            break
    return batch


def _outcome(answer: Answer) -> Outcome:
    if isinstance(answer, ChatReply):
        return "clean"
    return "pushed back" if answer.kind in ("rate limit", "timeout") else "neutral"
