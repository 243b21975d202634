"""What serving costs: requests of one sample each from 64 clients, against scoring the same texts in one call, and against a server without batching.

    python benchmarks/serving.py [--clients 64] [--threads 1] [--workloads texts rollouts rollouts_base] [--output benchmarks/results/serving.json]

`texts`: conversations of the sample data, no two alike, on all-MiniLM-L6-v2 under a fresh head (an encoder). `rollouts`: 16 responses to each of many
prompts, as a GRPO step sends them, on a small random decoder, whose rewards are worthless and whose cost is real; `rollouts_base` the same on one of
twelve layers of width 768. Server, client and offline scoring are processes of their own, and the model computes with `--threads` threads in each.

Each round measures offline, the server and the server without batching, the first two in turns first; the ratios are medians over the rounds. Others may
work on the same machine, the client among them: `by_cpu_time` are the same ratios of processor time, which they disturb less. What batching can gain at
most is `times_alone_offline`: one call for all texts against a call for each, without any server.

Then: 10,000 requests of which 5 % are broken, a queue that is too small for its clients, and SIGTERM under load.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
GROUP = 16  # responses to a prompt in `rollouts`
WARM_UP = 64  # requests before the clock starts


class Workload(NamedTuple):
    requests: int
    alone: int  # of them, to the server without batching and to the scorer one by one
    rounds: int
    decoder: dict[str, int] | None = None  # a Qwen3 of these sizes; None: all-MiniLM-L6-v2


SMALL = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 768}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 3072}
WORKLOADS = {"texts": Workload(512, 64, 5), "rollouts": Workload(512, 32, 5, SMALL), "rollouts_base": Workload(144, 2, 4, BASE)}


class Run(NamedTuple):
    seconds: float
    latencies: list[float]
    statuses: Counter[int]
    rewards: dict[int, float]
    server_cpu: float  # seconds of processor time
    client_cpu: float


# --- workloads ----------------------------------------------------------------------------------------------------------------------------------


def items_of(shared: bool, count: int) -> list[dict[str, Any]]:
    """Native items, where `shared` in groups of one prompt; no two alike, since equal ones are computed once."""
    from palate.sample import load_sample
    from palate.types import text_of

    groups = [*load_sample("train"), *load_sample("test")]
    answers = [(text_of(group.prompt), text_of(response)) for group in groups for response in group.responses]
    if not shared:
        return [{"prompt": answers[i % len(answers)][0], "response": f"{answers[i % len(answers)][1]} ({i})"} for i in range(count)]
    rng = random.Random(0)
    items: list[dict[str, Any]] = []
    while len(items) < count:
        turns = [text for pair in rng.sample(answers, 8) for text in pair]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        messages.append({"role": "user", "content": f"In short ({len(items)}): {rng.choice(answers)[0]}"})
        items += [{"messages": [*messages, {"role": "assistant", "content": f"{rng.choice(answers)[1][:160]} ({i})"}]} for i in range(GROUP)]
    return items[:count]


def checkpoint(decoder: dict[str, int] | None, folder: Path) -> int:
    """A reward model with a fresh head; its number of parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    from palate.bench.workload import byte_pairs
    from palate.data.templates import closed_template, prepare_tokenizer
    from palate.data.tokenization import Encoder
    from palate.models.reward_model import as_reward_model, fit_tokenizer, load_pretrained, load_tokenizer
    from palate.sample import base_model_path, load_sample
    from palate.scoring.contract import build_contract
    from palate.types import Exchange

    if decoder is None:
        tokenizer = prepare_tokenizer(load_tokenizer(str(base_model_path())))
        model = load_pretrained(str(base_model_path()))
    else:
        tokenizer = prepare_tokenizer(byte_pairs(load_sample("train")))
        tokenizer.chat_template = closed_template(tokenizer.chat_template)
        torch.manual_seed(0)
        sizes = {**decoder, "max_position_embeddings": 4096, "num_labels": 1, "vocab_size": len(tokenizer)}
        model = as_reward_model(Qwen3ForSequenceClassification(Qwen3Config(**sizes, pad_token_id=tokenizer.pad_token_id)))
    fit_tokenizer(model, tokenizer)
    encoder = Encoder(tokenizer, max_length=4096 if decoder else 512)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_contract(model, encoder, golden=[Exchange("what is two?", "two is a number")]).save(folder)
    return int(model.num_parameters())


# --- offline ------------------------------------------------------------------------------------------------------------------------------------


OFFLINE = """
import json, sys, time, torch
from palate.data.tokenization import as_exchange
from palate.scoring.local import load_scorer
model, items, threads, alone = sys.argv[1:]
torch.set_num_threads(int(threads))
scorer = load_scorer(model)
texts = [item["messages"] if "messages" in item else (item["prompt"], item["response"]) for item in json.load(open(items))]
scorer.score(texts[:64])
tokens = sum(map(len, scorer.encoder.encode([as_exchange(text) for text in texts])))
for _ in sys.stdin:
    started, cpu = time.perf_counter(), time.process_time()
    rewards = scorer.score(texts).tolist()
    between, own = time.perf_counter(), time.process_time() - cpu
    for text in texts[:int(alone)]:
        scorer.score([text])
    done = {"seconds": between - started, "cpu": own, "seconds_alone": time.perf_counter() - between, "rewards": rewards, "tokens": tokens}
    print(json.dumps(done), flush=True)
"""


class Offline:
    """A process of its own: LocalScorer.score of all texts in one call, then of the first ones, a call each."""

    def __init__(self, model: Path, items: Path, threads: int, alone: int):
        command = [sys.executable, "-c", OFFLINE, str(model), str(items), str(threads), str(alone)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)  # whatever ends this run

    def round(self) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def stop(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(60)


# --- the server ---------------------------------------------------------------------------------------------------------------------------------


class Server:
    """`palate serve` on a port of its own."""

    def __init__(self, model: Path, threads: int, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "palate", "serve", "--model", f"rm={model}", "--port", str(self.port), "--threads", str(threads), *flags]
        command += ["--timeout", "600"]  # on a busy machine the larger model is slow beyond the default
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=self.log, stderr=subprocess.STDOUT)
        atexit.register(self.process.kill)
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    raise SystemExit(f"the server did not start:\n{self.log.read()}") from error
                time.sleep(0.1)

    def cpu(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def metric(self, name: str) -> float:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.M))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.log.close()
        return code


async def client(port: int, requests: list[tuple[int, bytes]], found: Run) -> None:
    """One connection that sends one request after the other, with as little processor time as Python can."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while requests:
        index, request = requests.pop()
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.I)[1]))  # type: ignore[index]
        found.latencies.append(time.perf_counter() - started)
        found.statuses[status] += 1
        if status == 200:
            found.rewards[index] = json.loads(body)["data"][0]["reward"]
        if b"connection: close" in head.lower():
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def load(server: Server, bodies: list[bytes], clients: int) -> Run:
    requests = [(i, http_post(body)) for i, body in enumerate(bodies)][::-1]  # popped from the end
    found = Run(0.0, [], Counter(), {}, 0.0, 0.0)
    cpu, own = server.cpu(), time.process_time()

    async def all_of_them() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(client(server.port, requests, found) for _ in range(clients)))
        return time.perf_counter() - started

    seconds = asyncio.run(all_of_them())
    return found._replace(seconds=seconds, server_cpu=server.cpu() - cpu, client_cpu=time.process_time() - own)


def http_post(body: bytes) -> bytes:
    return b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def body_of(item: dict[str, Any]) -> bytes:
    return json.dumps({"items": [item]}).encode()


# --- what is measured ---------------------------------------------------------------------------------------------------------------------------


class Round(NamedTuple):
    """Samples a second, and processor time in milliseconds a sample; `alone`: one sample at a time."""

    offline: float
    offline_alone: float
    served: float
    served_alone: float
    cpu_offline: float
    cpu_served: float
    cpu_served_alone: float
    cpu_client: float


def throughput(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    workload = WORKLOADS[name]
    model, data, count = folder / name, folder / f"{name}.json", workload.requests
    parameters = checkpoint(workload.decoder, model)
    items = items_of(workload.decoder is not None, count + WARM_UP)
    warm, bodies = ([body_of(item) for item in part] for part in (items[count:], items[:count]))
    data.write_text(json.dumps(items[:count]))
    scorer = Offline(model, data, options.threads, workload.alone)
    together, alone = Server(model, options.threads), Server(model, options.threads, "--batch-items", "1")
    load(together, warm, options.clients)
    load(alone, warm[:8], options.clients)
    rounds, latencies = [], []
    for number in range(workload.rounds):
        if number % 2 == 0:
            whole, served = scorer.round(), load(together, bodies, options.clients)
        else:
            served, whole = load(together, bodies, options.clients), scorer.round()
        single = load(alone, bodies[: workload.alone], options.clients)
        if served.statuses != {200: count} or single.statuses != {200: workload.alone}:
            raise SystemExit(f"answers {dict(served.statuses)} and {dict(single.statuses)}; expected {count} and {workload.alone} of 200")
        rates = (count / whole["seconds"], workload.alone / whole["seconds_alone"], count / served.seconds, workload.alone / single.seconds)
        cpu = (whole["cpu"] / count, served.server_cpu / count, single.server_cpu / workload.alone, served.client_cpu / count)
        rounds.append(Round(*rates, *(1000 * seconds for seconds in cpu)))
        latencies += served.latencies
        print(rounds[-1], flush=True)
    if codes := [code for code in (scorer.stop(), together.stop(), alone.stop()) if code]:
        raise SystemExit(f"a process ended with {codes[0]}")
    result = {
        "workload": name,
        "parameters": parameters,
        "tokens_a_sample": round(whole["tokens"] / count, 1),
        "requests": count,
        "rounds": [{key: round(value, 3) for key, value in one._asdict().items()} for one in rounds],
        "share_of_offline": median(one.served / one.offline for one in rounds),
        "times_one_at_a_time": median(one.served / one.served_alone for one in rounds),
        "by_cpu_time": {
            "share_of_offline": median(one.cpu_offline / one.cpu_served for one in rounds),
            "times_one_at_a_time": median(one.cpu_served_alone / one.cpu_served for one in rounds),
        },
        "times_alone_offline": median(one.offline / one.offline_alone for one in rounds),
        "milliseconds": {f"p{q}": round(1000 * float(np.percentile(latencies, q)), 1) for q in (50, 90, 99)},
        "largest_difference_of_rewards": max(abs(whole["rewards"][i] - reward) for i, reward in served.rewards.items()),
    }
    print(json.dumps(result, indent=1), flush=True)
    return result


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def broken_bodies(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """10,000 requests, 5 % of them broken: every good one is answered, with the reward that it has alone."""
    rng = random.Random(1)
    rubbish = [b"{", b"", b"[1,2", b"\xff\xfe", b'{"items": 3}', b'{"itemz": []}', b"[" * 5000, b'{"items": [{"text": "a"}], "return": ["x"]}', b"null"]
    bodies, good = [], set()
    for i in range(options.many):
        if rng.random() < 0.05:
            bodies.append(rng.choice(rubbish))
        else:
            bodies.append(body_of({"text": f"text number {i % 50}"}))
            good.add(i)
    server = Server(model, options.threads)
    run = load(server, bodies, options.clients)
    again = load(server, bodies[:200], 1)
    result = {"requests": len(bodies), "good": len(good), "answered": len(run.rewards), "lost": len(good - set(run.rewards)), "exit": server.stop()}
    wrong = [i for i in good & set(again.rewards) if abs(run.rewards[i] - again.rewards[i]) > 1e-4]
    result |= {"statuses": dict(run.statuses), "other_rewards": len(wrong)}
    print(json.dumps(result), flush=True)
    assert not result["lost"] and set(run.rewards) == good and not wrong and set(run.statuses) <= {200, 400}
    return result


def overload(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """More than the queue holds: 503 for those beyond it, nothing but 200 when there is room again."""
    server = Server(model, options.threads, "--queue-items", "16")
    bodies = [body_of({"text": f"{'a longer text ' * 30}{i}"}) for i in range(600)]
    over = load(server, bodies, options.clients)
    after = load(server, bodies[:100], 8)
    result = {
        "over": dict(over.statuses),
        "after": dict(after.statuses),
        "counted": server.metric('palate_errors_total{kind="overloaded"}'),
        "exit": server.stop(),
    }
    print(json.dumps(result), flush=True)
    assert over.statuses[503] and over.statuses[200] and after.statuses == {200: 100}
    return result


def drained(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM while requests are on their way: those that were taken in are answered, and the exit code is 0."""
    server = Server(model, options.threads)
    bodies = [body_of({"text": f"{'a longer text ' * 30}{i}"}) for i in range(options.clients)]

    async def one(body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(http_post(body))
        answer = await reader.read()
        writer.close()
        return answer

    async def all_of_them() -> list[bytes]:
        tasks = [asyncio.create_task(one(body)) for body in bodies]
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(all_of_them())
    result = {"sent": len(bodies), "answered": sum(answer.startswith(b"HTTP/1.1 200") for answer in answers), "exit": server.process.wait(60)}
    print(json.dumps(result), flush=True)
    assert result["answered"] == len(bodies) and result["exit"] == 0
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--many", type=int, default=10_000, help="requests of which 5 %% are broken")
    parser.add_argument("--threads", type=int, default=1, help="that compute, in the server and offline")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    options = parser.parse_args()
    from palate.models.checkpoints import package_versions

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        record: dict[str, Any] = {"hardware": f"{os.cpu_count()} CPU cores ({platform.machine()})", "clients": options.clients, "threads": options.threads}
        record |= {"versions": package_versions(), "speed": [throughput(workload, folder, options) for workload in options.workloads]}
        if not options.only_speed:
            if not (folder / "texts").exists():
                checkpoint(None, folder / "texts")
            record["broken_bodies"] = broken_bodies(folder / "texts", options)
            record["overload"] = overload(folder / "texts", options)
            record["sigterm"] = drained(folder / "texts", options)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
