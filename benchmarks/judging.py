"""How near the calling layer comes to what an endpoint allows: 20 000 calls to one that answers in 50 ms and bears 64 at once.

    python benchmarks/judging.py [--requests 20000] [--rounds 3] [--output benchmarks/results/judging.json]
    python benchmarks/judging.py --build [--pairs 10000] [--kills 10]

`function`: no network, an awaited sleep. `endpoint`: HTTP over loopback to the stub judge of the tests, a process of its own. Both with the cache. `sdk`: the
same endpoint asked through `AsyncOpenAI().chat.completions.create` by 64 coroutines, nothing kept. `bare`: the same through aiohttp alone. The ideal is
64 / 50 ms = 1280 calls a second; `of_held` is the share of what the stub really allowed, which holds a request a little longer than it should where it is
short of processor time. What else ran on the machine is seen from the load. The best round counts: a busy machine only ever takes away.

`--build` runs `palate build` itself, as a process, on pairs in both orders (and its canaries), against a stub that judges: calls a second while calls ran,
seconds of the whole command, its memory over time; then the same killed by SIGKILL at random moments and begun again, which must ask for nothing that was kept
and write the same bytes. The result goes beside the other, under `build`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.judging.killed_builds import BuildRun, kill_and_finish, write_responses
from tests.judging.stub_server import Dials, spawned

from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import ChatClient, ChatReply, ChatRequest
from palate.judging.function_client import FunctionClient
from palate.judging.openai_client import AIOHTTP, OpenAIClient, body_of

LATENCY = 0.05
PLACES = 64
ANSWER = "Response A says more of what was asked, and what it says is right. " * 8 + "\n\n[[A>B]]"
INSTRUCTIONS = "You compare two responses, A and B, to the same conversation and say which one is better. " * 12
PAIR = "A question, and two responses to it that differ in a thing or two. " * 40


def pairs(count: int) -> Iterator[ChatRequest]:
    """Prompts of 4 kB, as of a pair of short responses."""
    for i in range(count):
        yield ChatRequest("stub", ({"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": f"{i}: {PAIR}"}))


def measure(client: ChatClient, count: int, start: int) -> dict[str, Any]:
    """One run from an empty cache, after a first call that opens the connection."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, CallCache(Path(folder) / "answers.sqlite") as cache:
        caller = Caller(client, cache=cache, concurrency=PLACES, start_concurrency=start)
        caller.run([ChatRequest("stub", ({"role": "user", "content": "first"},))])
        memory, busy, began = process.memory_info().rss, time.process_time(), time.perf_counter()
        answered = sum(isinstance(answer, ChatReply) for _, answer in caller.stream(pairs(count)))
        seconds = time.perf_counter() - began
        assert answered == count and caller.spent.requests == count + 1
        return {
            "calls_per_second": round(count / seconds, 1),
            "of_ideal": round(count / seconds / (PLACES / LATENCY), 4),
            "processor_us_per_call": round(1e6 * (time.process_time() - busy) / count),
            "memory_growth_mb": round((process.memory_info().rss - memory) / 2**20, 1),
            "load": [round(value, 1) for value in os.getloadavg()],
        }


def function(count: int, start: int) -> dict[str, Any]:
    async def answer(request: ChatRequest) -> str:
        await asyncio.sleep(LATENCY)
        return ANSWER

    return measure(FunctionClient(answer), count, start)


def endpoint(count: int, start: int) -> dict[str, Any]:
    with spawned(Dials(latency=LATENCY, max_concurrency=PLACES, fixed=ANSWER)) as stub:
        found = measure(OpenAIClient(stub.url), count, start)
        stats = stub.stats()
    held = stats["held"] / stats["served"]
    assert stats["statuses"] == {"200": count + 1} and stats["peak"] == PLACES
    return found | {
        "of_held": round(found["calls_per_second"] * held / PLACES, 4),
        "held_ms": round(1e3 * held, 2),
        "stub_processor_us_per_call": round(1e6 * stats["cpu"] / stats["served"]),
    }


def sdk(count: int, _: int) -> dict[str, Any]:
    """What the SDK alone comes to, as its documentation uses it."""
    import openai

    async def run(url: str) -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await alone(lambda body: client.chat.completions.create(**body), count // 4)

    return against_stub(run)


def bare(count: int, _: int) -> dict[str, Any]:
    """What the HTTP library alone comes to: the bound of what can be done over it."""
    import aiohttp

    async def run(url: str) -> dict[str, Any]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask(body: dict[str, Any]) -> None:
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    json.loads(await response.read())

            return await alone(ask, count)

    return against_stub(run)


def against_stub(run: Callable[[str], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    with spawned(Dials(latency=LATENCY, max_concurrency=PLACES, fixed=ANSWER)) as stub:
        return asyncio.run(run(stub.url))


async def alone(ask: Callable[[dict[str, Any]], Awaitable[Any]], count: int) -> dict[str, Any]:
    """64 coroutines that take the requests in turn."""
    await ask(body_of(next(pairs(1))))
    requests = pairs(count)

    async def work() -> None:
        for request in requests:
            await ask(body_of(request))

    busy, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(PLACES)))
    seconds = time.perf_counter() - began
    return {
        "calls_per_second": round(count / seconds, 1),
        "of_ideal": round(count / seconds / (PLACES / LATENCY), 4),
        "processor_us_per_call": round(1e6 * (time.process_time() - busy) / count),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def build(num_pairs: int, kills: int) -> dict[str, Any]:
    """The command, undisturbed and killed."""
    with tempfile.TemporaryDirectory() as folder, spawned(Dials(latency=LATENCY, max_concurrency=PLACES)) as stub:
        data = write_responses(Path(folder) / "responses.jsonl", num_pairs)
        run = BuildRun(data, stub.url, Path(folder) / "undisturbed")
        began, process = time.perf_counter(), run.start()
        memory = list(watched(process))
        assert process.returncode == 0
        seconds, calls, stats = time.perf_counter() - began, json.loads(run.output.with_suffix(".card.json").read_text())["calls"], stub.stats()
        rate = calls["requests"] / calls["seconds"]
        found: dict[str, Any] = {
            "pairs": num_pairs,
            "requests": calls["requests"],
            "calls_per_second": round(rate, 1),
            "of_ideal": round(rate / (PLACES / LATENCY), 4),
            "of_held": round(rate * stats["held"] / stats["served"] / PLACES, 4),
            "stub_processor_us_per_call": round(1e6 * stats["cpu"] / stats["served"]),
            "seconds_of_calls": round(calls["seconds"], 1),
            "seconds": round(seconds, 1),
            "memory_mb": memory,
            "rows": len(run.output.read_bytes().splitlines()),
            "load": [round(value, 1) for value in os.getloadavg()],
        }
    if kills:
        with tempfile.TemporaryDirectory() as folder, spawned(Dials(latency=LATENCY, max_concurrency=PLACES)) as stub:
            data = write_responses(Path(folder) / "responses.jsonl", num_pairs)
            rows, repeated = kill_and_finish(BuildRun(data, stub.url, Path(folder) / "killed"), stub, kills)
            same = BuildRun(data, stub.url, Path(folder) / "undisturbed").finish() == rows
        assert same, "the rows of the killed run differ"
        found |= {"kills": kills, "kept_and_asked_again": 0, "under_way_and_asked_again": repeated, "same_bytes": same}
    return found


def watched(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Resident megabytes, once a second, to the end."""
    while process.poll() is None:
        if resident := psutil.Process(process.pid).memory_info().rss >> 20:  # none of one that has just ended
            yield resident
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start-concurrency", type=int, default=8, help="calls at once to begin with, as the Caller's default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "judging.json")
    parser.add_argument("--build", action="store_true", help="`palate build` instead of the calling layer alone")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    hardware = {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version(), "transport": "aiohttp" if AIOHTTP else "httpx2"}
    if options.build:
        built = build(options.pairs, options.kills)
        print(built)
        write(options.output, {"build": built | {"hardware": hardware}})
        print(f"palate build: {built['calls_per_second']:.0f} calls a second, {built['of_ideal']:.1%} of the ideal")
        return
    works = {"function": function, "endpoint": endpoint, "sdk": sdk, "bare": bare}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            rounds[name].append(work(options.requests, options.start_concurrency))
            print(name, rounds[name][-1], flush=True)
    best = {name: max(found, key=lambda one: one["of_ideal"]) for name, found in rounds.items()}
    setting = {"requests": options.requests, "latency_ms": 1e3 * LATENCY, "at_once": PLACES, "ideal_per_second": PLACES / LATENCY}
    write(options.output, {"setting": setting, "hardware": hardware, "best": best, "rounds": rounds})
    for name, found in best.items():
        print(f"{name}: {found['calls_per_second']:.0f} calls a second, {found['of_ideal']:.1%} of the ideal")


def write(path: Path, found: dict[str, Any]) -> None:
    """Beside what the other mode has written."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | found, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
