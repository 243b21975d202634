"""A judge that is no model: an OpenAI chat-completions server whose verdicts follow known strengths and known faults.

    with running(Dials(strengths={"good": 1.0, "bad": -1.0}, position_bias=0.5)) as stub:      # in a thread of this process
        OpenAIClient(stub.url)
    with spawned(Dials(latency=0.05, max_concurrency=64)) as stub:                             # in a process of its own
        stub.stats()["served"]

Alone: `python tests/judging/stub_server.py '{"latency": 0.05}'` prints its address. What a body is answered with depends on the body alone (its hash), so a
run that was killed and resumed can be compared with one that was not; only errors and, with `sampling`, answers at a temperature depend on chance.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
import selectors
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from functools import lru_cache
from typing import Any

TAG = re.compile(r"\(strength (-?[0-9.]+)\)")
"""A response may say its own strength, where there are too many for a table."""

BLOCK = re.compile(r"<<<(response(?: [A-Z])?) ([0-9a-f]{16})>>>\n(.*?)\n<<<end of \1 \2>>>", re.DOTALL)
WORDS = "amber basalt cedar delta ember fjord garnet harbour island juniper kelp lagoon meadow nectar orchid pebble quartz reef tundra"
REASONS = "Response A is direct; response B says more than was asked. [[A=B]] would be wrong here, one of them decides it."
NO_VERDICT = "Both responses have their merits and it is hard to choose between them."


@dataclass
class Dials:
    """What the judge believes, what is wrong with it, what its server can do, how it is loaded."""

    strengths: dict[str, float] = field(default_factory=dict)  # by response text; otherwise the response's own tag, otherwise 0
    position_bias: float = 0.0  # added to the log-odds of whatever is shown first; in lists, to each response against the one after it
    length_bias: float = 0.0  # log-odds per 100 characters more
    noise: float = 0.0  # scale of the logistic noise of a verdict; 0: always the one it prefers
    rating_noise: float = 0.0  # the same in points of a rating from 1 to 10
    tie_width: float = 0.0  # |log-odds| below which it says tie
    strong: float = 2.0  # |log-odds| above which it says "much better"

    error_rate: float = 0.0  # status 500, by chance at every attempt
    bad_request_rate: float = 0.0  # status 400, by the body
    malformed_rate: float = 0.0  # an answer without a verdict, by the body
    empty_rate: float = 0.0
    refusal_rate: float = 0.0
    filtered_rate: float = 0.0
    cut_off_rate: float = 0.0

    latency: float = 0.0
    jitter: float = 0.0  # up to so much more, by chance
    max_concurrency: int | None = None  # status 429 beyond
    burst_every: int = 0  # after so many requests ...
    burst_size: int = 0  # ... so many are answered with status 429
    retry_after: float | None = None  # seconds, sent with every 429
    retry_after_date: bool = False  # as an HTTP date

    logprobs: bool = True
    structured: bool = True
    several: bool = True  # the field `n`
    sampling: bool = True
    seed: bool = True
    other_mass: float = 0.02  # of the first token, on tokens that are no label
    fixed: str | None = None  # this answer to everything, built once: for throughput


class StubJudge:
    """Requests to responses, and what was counted on the way. Knows nothing of sockets."""

    def __init__(self, dials: Dials, chance: int = 0):
        self.dials = dials
        self.by_body: Counter[str] = Counter()  # chat requests that arrived, by the hash of their body
        self.answered: Counter[str] = Counter()  # those that were answered with status 200
        self.statuses: Counter[int] = Counter()
        self.in_flight = self.peak = self.served = 0
        self.held = 0.0  # seconds that requests were held, the latency that was really given
        self._chance = random.Random(chance)
        self._fixed: tuple[str | None, bytes] = (None, b"")

    def stats(self) -> dict[str, Any]:
        return {
            "served": self.served,
            "peak": self.peak,
            "statuses": dict(self.statuses),
            "by_body": dict(self.by_body),
            "answered": dict(self.answered),
            "cpu": time.process_time(),
            "held": self.held,
        }

    def delay(self) -> float:
        return self.dials.latency + (self._chance.random() * self.dials.jitter if self.dials.jitter else 0.0)

    def turned_away(self) -> bool:
        """Whether the request that has just come is one too many."""
        dials = self.dials
        if dials.max_concurrency is not None and self.in_flight > dials.max_concurrency:
            return True
        return bool(dials.burst_every) and self.served % (dials.burst_every + dials.burst_size) >= dials.burst_every

    def arrive(self, raw: bytes) -> bytes | None:
        """Counts a chat request in; the response, where it is turned away at once."""
        self.served += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self.dials.fixed is None:
            self.by_body[self._read(raw)[1]] += 1
        if self.turned_away():
            return self._response(429, {"error": {"message": "too many requests", "code": "rate_limit_exceeded"}}, self._retry_after())
        if self.dials.error_rate and self._chance.random() < self.dials.error_rate:
            return self._response(500, {"error": {"message": "the stub has one of its moments"}})
        return None

    def leave(self, raw: bytes) -> bytes:
        """The response of a request that was let in."""
        if self.dials.fixed is not None:
            self.statuses[200] += 1
            if self._fixed[0] != self.dials.fixed:
                content = _completion([_choice(0, self.dials.fixed)], 700, 120)
                self._fixed = (self.dials.fixed, http(200, json.dumps(content).encode()))
            return self._fixed[1]
        body, digest = self._read(raw)
        if _meets(body, "bad request", self.dials.bad_request_rate):
            return self._response(400, {"error": {"message": "the stub cannot read this"}})
        self.answered[digest] += 1
        return self._response(200, self.completion(body))

    @staticmethod
    @lru_cache(maxsize=1024)
    def _read(raw: bytes) -> tuple[dict[str, Any], str]:
        """(the body, its hash), read once though asked for on arrival and on leaving."""
        body = json.loads(raw)
        return body, hash_of(body)

    def _retry_after(self) -> dict[str, str]:
        if self.dials.retry_after is None:
            return {}
        if self.dials.retry_after_date:
            return {"Retry-After": formatdate(time.time() + self.dials.retry_after, usegmt=True)}
        return {"Retry-After": f"{self.dials.retry_after:g}"}

    def _response(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
        self.statuses[status] += 1
        return http(status, json.dumps(content).encode(), headers or {})

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a body, as the API gives it."""
        count = int(body.get("n") or 1) if self.dials.several else 1
        choices = [self._choice_of(body, i) for i in range(count)]
        said = sum(len(choice["message"]["content"] or "") for choice in choices)
        return _completion(choices, sum(len(str(message["content"])) for message in body["messages"]) // 4 + 1, said // 4 + 1)

    def _choice_of(self, body: Mapping[str, Any], index: int) -> dict[str, Any]:
        dials = self.dials
        judged = _responses(body["messages"])
        if judged and _meets(body, "refusal", dials.refusal_rate):
            return _choice(index, None, refusal="I would rather not judge this.")
        if judged and _meets(body, "filtered", dials.filtered_rate):
            return _choice(index, "Response A", "content_filter")
        if judged and _meets(body, "empty", dials.empty_rate):
            return _choice(index, "")
        if judged and _meets(body, "cut off", dials.cut_off_rate):
            return _choice(index, REASONS[:40], "length")
        draw = self._draw(body, index)
        logit = self._logit(judged, draw)
        text = self._text(body, judged, logit, draw)
        wanted = body.get("top_logprobs") if body.get("logprobs") and dials.logprobs else None
        return _choice(index, text, logprobs=self._logprobs(text, logit, wanted) if wanted else None)

    def _draw(self, body: Mapping[str, Any], index: int) -> str:
        """What an answer depends on besides the question: with `sampling` and a temperature, chance or the seed."""
        if not self.dials.sampling or not body.get("temperature", 1.0):
            return ""
        if self.dials.seed and body.get("seed") is not None:
            return f"{body['seed']} {index}"
        return str(self._chance.random())

    def strength(self, text: str) -> float:
        if text in self.dials.strengths:
            return self.dials.strengths[text]
        tag = TAG.search(text)
        return float(tag[1]) if tag else 0.0

    def _logit(self, judged: Sequence[str], draw: str) -> float:
        """Log-odds that the first of two is the better one, biases and noise included."""
        if len(judged) != 2:
            return 0.0
        first, second = judged
        plain = self.strength(first) - self.strength(second) + self.dials.length_bias * (len(first) - len(second)) / 100
        return plain + self.dials.position_bias + self._noise([first, second, draw], "noise", self.dials.noise)

    @staticmethod
    def _noise(what: Any, purpose: str, scale: float) -> float:
        """A logistic number of that scale."""
        share = _share(what, purpose) if scale else 0.5
        return scale * math.log(share / (1 - share))

    def _text(self, body: Mapping[str, Any], judged: Sequence[str], logit: float, draw: str) -> str:
        asked = str(body["messages"][-1]["content"])
        repair = "No verdict could be read" in asked
        if schema := (body.get("response_format") or {}).get("json_schema", {}).get("schema") if self.dials.structured else None:
            return json.dumps(self._shaped(schema, judged, logit, draw))
        if not judged:
            return " ".join(random.Random(f"{body['messages']} {draw}").choices(WORDS.split(), k=12))
        if not repair and _meets(body, "malformed", self.dials.malformed_rate):
            return NO_VERDICT
        verdict = self._verdict(asked.rpartition("<<<end of")[2], judged, logit, draw)
        return verdict if repair or len(verdict) == 1 or verdict.startswith("{") else f"{REASONS}\n\n{verdict}"

    def _side(self, logit: float) -> str:
        return "tie" if abs(logit) < self.dials.tie_width or logit == 0 else "A" if logit > 0 else "B"

    def _ranking(self, judged: Sequence[str]) -> list[str]:
        order = sorted(range(len(judged)), key=lambda i: self.dials.position_bias * i - self.strength(judged[i]))
        return [chr(ord("A") + i) for i in order]

    def _rating(self, judged: Sequence[str], draw: str) -> int:
        wanted = 5.5 + 2 * self.strength(judged[0]) + self._noise([judged[0], draw], "rating", self.dials.rating_noise)
        return round(min(10.0, max(1.0, wanted)))

    def _verdict(self, asked: str, judged: Sequence[str], logit: float, draw: str) -> str:
        """In the form that the question names."""
        side = self._side(logit)
        ranking, rating = self._ranking(judged), self._rating(judged, draw)
        if '"ranking"' in asked:
            return json.dumps({"reasoning": "so", "ranking": ranking})
        if '"rating"' in asked:
            return json.dumps({"reasoning": "so", "rating": rating})
        if '"verdict"' in asked:
            return json.dumps({"reasoning": "so", "verdict": side})
        if "A>>B" in asked:
            much = ">>" if abs(logit) > self.dials.strong else ">"
            return {"tie": "[[A=B]]", "A": f"[[A{much}B]]", "B": f"[[B{much}A]]"}[side]
        if "one letter" in asked or "A or B." in asked:
            return "A" if logit >= 0 else "B"
        if len(judged) > 2 or "rank all" in asked:
            return f"[[{' > '.join(ranking)}]]"
        if len(judged) == 1:
            return f"[[{rating}]]"
        return "[[C]]" if side == "tie" and "[[C]]" in asked else f"[[{'A' if logit >= 0 else 'B'}]]"

    def _shaped(self, schema: Mapping[str, Any], judged: Sequence[str], logit: float, draw: str) -> dict[str, Any]:
        """An object that fits a schema of plain fields."""
        side = self._side(logit)
        values: dict[str, Any] = {"reasoning": "so", "verdict": side, "winner": side}
        if judged:
            values |= {"rating": self._rating(judged, draw), "ranking": self._ranking(judged)}
        found: dict[str, Any] = {}
        for name, kind in schema["properties"].items():
            options = kind.get("enum") or [None]
            found[name] = values[name] if name in values and (options == [None] or values[name] in options) else options[0]
        return found

    def _logprobs(self, text: str, logit: float, wanted: int) -> dict[str, Any]:
        """Alternatives of each word; those of a letter that is the whole answer are its log-odds."""
        tokens = []
        for word in re.findall(r"\s*\S+", text)[:16]:
            if text in ("A", "B"):
                alternatives = [("A", _log_sigmoid(logit)), ("B", _log_sigmoid(-logit))]
                alternatives = [(token, value + math.log(1 - self.dials.other_mass)) for token, value in alternatives]
                alternatives += [("The", math.log(self.dials.other_mass))] if self.dials.other_mass else []
            else:
                alternatives = [(word, -0.1), *((other, -3.0 - i) for i, other in enumerate(WORDS.split()))]
            listed = [{"token": token, "logprob": value} for token, value in sorted(alternatives, key=lambda one: -one[1])[:wanted]]
            tokens.append({"token": word, "logprob": listed[0]["logprob"], "top_logprobs": listed})
        return {"content": tokens}


def hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


def _share(what: Any, purpose: str) -> float:
    """A number in (0, 1) that depends on nothing else: the chance of a body to meet a fault."""
    digest = hashlib.sha256(json.dumps([purpose, what], sort_keys=True).encode()).digest()
    return (int.from_bytes(digest[:7], "big") + 1) / (2**56 + 2)


def _meets(what: Any, purpose: str, rate: float) -> bool:
    """Whether a body meets a fault of that rate; without faults nothing is computed, which would take longer than the answer."""
    return rate > 0 and _share(what, purpose) < rate


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def _responses(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The responses that are to be judged, in the order shown."""
    return [match[3] for message in messages if message["role"] == "user" for match in BLOCK.finditer(str(message["content"]))]


def _choice(index: int, text: str | None, finish: str = "stop", *, refusal: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _completion(choices: Sequence[Mapping[str, Any]], prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}
    return {"id": "stub", "object": "chat.completion", "created": 0, "model": "stub", "choices": list(choices), "usage": usage}


# -- the server ------------------------------------------------------------------------------------------------------------------------------------------


def http(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {len(content)}\r\n\r\n".encode() + content


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as clients of this API use it: one request after the other, bodies of a stated length."""

    def __init__(self, judge: StubJudge):
        self._judge = judge
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = re.search(rb"(?i)content-length: *([0-9]+)", head)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            raw, self._received = self._received[end + 4 : total], self._received[total:]
            self._asked(head.split(b" ", 2)[1].decode(), raw)

    def _asked(self, path: str, raw: bytes) -> None:
        judge = self._judge
        if path.endswith("/chat/completions"):
            refused = judge.arrive(raw)
            if refused is not None:
                judge.in_flight -= 1
                self._send(refused)
            else:
                asyncio.get_running_loop().call_later(judge.delay(), self._answered, raw, time.monotonic())
        elif path.endswith("/models"):
            self._send(http(200, json.dumps({"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "nobody"}]}).encode()))
        elif path == "/stub/stats":
            self._send(http(200, json.dumps(judge.stats()).encode()))
        elif path == "/stub/dials":
            judge.dials = Dials(**json.loads(raw))
            self._send(http(200, b"{}"))
        else:
            self._send(http(404, b'{"error": {"message": "no such path"}}'))

    def _answered(self, raw: bytes, arrived: float) -> None:
        self._judge.in_flight -= 1
        self._send(self._judge.leave(raw))
        self._judge.held += time.monotonic() - arrived

    def _send(self, response: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)


@dataclass
class Stub:
    """A running stub judge."""

    url: str
    pid: int | None = None

    def stats(self) -> dict[str, Any]:
        """`served`, `peak` (most at once), `statuses`, `by_body` and `answered` (counts by the hash of the body), `cpu` and `held` (seconds)."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stub/stats", timeout=30) as response:
            return json.loads(response.read())

    def turn(self, dials: Dials) -> None:
        """Other dials from now on."""
        request = urllib.request.Request(self.url.removesuffix("/v1") + "/stub/dials", json.dumps(asdict(dials)).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30):
            pass


async def _serve(judge: StubJudge, ready: Callable[[int], None], port: int = 0) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(judge), "127.0.0.1", port, backlog=1024)
    ready(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _exact_loop() -> asyncio.AbstractEventLoop:
    """With timers to the microsecond: the usual loop rounds them up to milliseconds, and 50 ms of latency would be 51."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@contextmanager
def running(dials: Dials | None = None) -> Iterator[Stub]:
    """In a thread of this process."""
    loop = _exact_loop()
    ports: list[int] = []
    started = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        started.set()

    task = loop.create_task(_serve(StubJudge(dials or Dials()), ready))
    thread = threading.Thread(target=loop.run_forever, name="stub-judge", daemon=True)
    thread.start()
    started.wait(30)
    try:
        yield Stub(f"http://127.0.0.1:{ports[0]}/v1")
    finally:
        task.add_done_callback(lambda _: loop.stop())
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


@contextmanager
def spawned(dials: Dials | None = None) -> Iterator[Stub]:
    """In a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, json.dumps(asdict(dials or Dials()))], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Stub(process.stdout.readline().strip(), process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    dials = Dials(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Dials()
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    _exact_loop().run_until_complete(_serve(StubJudge(dials), lambda bound: print(f"http://127.0.0.1:{bound}/v1", flush=True), port))


if __name__ == "__main__":
    main()
