"""The gate that finds how many calls an endpoint bears: doubling, one fall a burst, small steps up, Retry-After, and no place ever lost."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from palate.judging import concurrency
from palate.judging.concurrency import AdaptiveConcurrency


class Clock:
    """Stands for the module `time`: it passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(concurrency, "time", clock)
    monkeypatch.setattr(concurrency.asyncio, "sleep", sleep)
    return clock


async def clean_rounds(gate: AdaptiveConcurrency, rounds: int) -> list[int]:
    limits = []
    for _ in range(rounds):
        starts = [await gate.acquire() for _ in range(int(gate.limit))]
        for began in starts:
            gate.release(began, "clean")
        limits.append(int(gate.limit))
    return limits


def test_doubles_until_the_most(clock: Clock) -> None:
    assert asyncio.run(clean_rounds(AdaptiveConcurrency(8, 64), 5)) == [16, 32, 64, 64, 64]


def test_a_burst_lowers_once_and_small_steps_lead_back(clock: Clock) -> None:
    async def scene() -> None:
        gate = AdaptiveConcurrency(40, 64)
        starts = [await gate.acquire() for _ in range(40)]
        for began in starts[:20]:
            gate.release(began, "pushed back")
        assert (gate.limit, gate.lowered) == (32.0, 1)
        clock.now += 100  # calls that began before the fall say nothing of the new limit, however late they end
        for began in starts[20:]:
            gate.release(began, "pushed back")
        assert (gate.limit, gate.lowered, gate.running) == (32.0, 1, 0)
        assert await clean_rounds(gate, 3) == [33, 35, 37]  # 32 + 1.6 + 1.68 + 1.76: 5 % a round, no doubling any more
        for _ in range(2):
            gate.release(await gate.acquire(), "pushed back")
        assert gate.lowered == 2  # the second is within the cool-down
        clock.now += concurrency.COOL_DOWN
        gate.release(await gate.acquire(), "pushed back")
        assert gate.lowered == 3

    asyncio.run(scene())


def test_never_below_one(clock: Clock) -> None:
    async def scene() -> None:
        gate = AdaptiveConcurrency(2, 64)
        for _ in range(20):
            gate.release(await gate.acquire(), "pushed back")
            clock.now += 10
        assert gate.limit == 1.0
        assert await clean_rounds(gate, 3) == [2, 3, 4]

    asyncio.run(scene())


def test_errors_that_are_no_push_back_change_nothing(clock: Clock) -> None:
    async def scene() -> None:
        gate = AdaptiveConcurrency(8, 64)
        for _ in range(100):
            gate.release(await gate.acquire(), "neutral")
        assert (gate.limit, gate.lowered, gate.running) == (8.0, 0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (1e6, concurrency.LONGEST_HOLD)])
def test_retry_after_holds_every_call(clock: Clock, asked: float, waited: float) -> None:
    async def scene() -> None:
        gate = AdaptiveConcurrency(8, 64)
        gate.release(await gate.acquire(), "pushed back", asked)
        started = clock.now
        began = await gate.acquire()
        assert clock.now - started == waited == began - started

    asyncio.run(scene())


def test_bad_bounds() -> None:
    for start, most in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="expected 1 <= start <= most"):
            AdaptiveConcurrency(start, most)


def test_first_come_first_served() -> None:
    async def scene() -> list[int]:
        gate, order = AdaptiveConcurrency(1, 1), []

        async def call(i: int) -> None:
            began = await gate.acquire()
            order.append(i)
            await asyncio.sleep(0)
            gate.release(began, "clean")

        await asyncio.gather(*(call(i) for i in range(20)))
        return order

    assert asyncio.run(scene()) == list(range(20))


@pytest.mark.parametrize("seed", range(10))
def test_no_place_is_lost(seed: int) -> None:
    """Calls that are cancelled while they wait, when they have just been let in, or while they run; and pauses."""
    chance = random.Random(seed)

    async def scene() -> None:
        gate = AdaptiveConcurrency(3, 6)
        most = 0

        async def call() -> None:
            nonlocal most
            began = await gate.acquire()
            most = max(most, gate.running)
            try:
                await asyncio.sleep(chance.choice((0, 0.001)))
            finally:
                gate.release(began, chance.choice(("clean", "neutral", "pushed back")), chance.choice((None, 0.002)))

        calls = [asyncio.create_task(call()) for _ in range(60)]
        for one in chance.sample(calls, 30):
            await asyncio.sleep(0)
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert gate.running == 0 and most <= 6
        await asyncio.wait_for(in_turn(gate.acquire, 1), 5)

    asyncio.run(scene())


async def in_turn(what: Callable[[], Coroutine[Any, Any, Any]], times: int) -> None:
    for _ in range(times):
        await what()


class Jumping(selectors.SelectSelector):
    """An event loop's wait for its next timer that takes no time: the clock jumps there, so a busy machine changes nothing."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)

    def monotonic(self) -> float:
        return self.now


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Jumping):
        super().__init__(clock)
        self.time = clock.monotonic  # type: ignore[method-assign]


@pytest.mark.parametrize("capacity", [5, 20, 50])
def test_finds_what_an_endpoint_bears(capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that turns away whatever is beyond its capacity: the limit comes to lie close to it, from above as from below."""
    clock = Jumping()
    monkeypatch.setattr(concurrency, "time", clock)
    monkeypatch.setattr(concurrency, "COOL_DOWN", 0.005)

    async def scene() -> tuple[float, int]:
        gate, turned_away, limits = AdaptiveConcurrency(8, 64), 0, []

        async def caller() -> None:
            nonlocal turned_away
            until = clock.now + 1.0
            while clock.now < until:
                began = await gate.acquire()
                beyond = gate.running > capacity
                await asyncio.sleep(0 if beyond else 0.002)
                turned_away += beyond
                gate.release(began, "pushed back" if beyond else "clean")
                limits.append(gate.limit)
                if beyond:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(caller() for _ in range(64)))
        late = limits[len(limits) // 2 :]
        return sum(late) / len(late), gate.lowered

    with asyncio.Runner(loop_factory=lambda: JumpingLoop(clock)) as runner:
        mean, lowered = runner.run(scene())
    assert 0.6 * capacity <= mean <= 1.25 * capacity + 4  # the smallest step is one
    assert lowered > 3
