"""The OpenAI-compatible client: what is sent, how answers and failures are read, whose key goes where, and connections that outlive a run."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from tests.judging.stub_server import Dials, hash_of, running, spawned

from palate.errors import ConfigError
from palate.judging import caller as caller_module
from palate.judging import openai_client
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Sampling
from palate.judging.openai_client import OpenAIClient, body_of, reply_of, status_failure
from palate.judging.transport import AiohttpTransport, HttpxTransport, proxied

ASKED = ChatRequest("judge", ({"role": "user", "content": "A or B?"},))
USAGE = {"prompt_tokens": 70, "completion_tokens": 12, "total_tokens": 82}


def completion(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **more}], "usage": USAGE}


def client_of(handler: Callable[[httpx2.Request], httpx2.Response], **settings: Any) -> OpenAIClient:
    return OpenAIClient("http://judge.test/v1", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handler)), **settings)


def ask(handler: Callable[[httpx2.Request], httpx2.Response], request: ChatRequest = ASKED, **settings: Any) -> Answer:
    (answer,) = Caller(client_of(handler, **settings), attempts=1).run([request])
    return answer


def ask_for(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return ask(lambda request: httpx2.Response(status, json=content, headers=headers or {}))


# -- what is sent


def test_the_body_of_a_full_request() -> None:
    schema = {"type": "object", "properties": {"verdict": {"type": "string"}}}
    request = ChatRequest(
        "judge",
        ASKED.messages,
        Sampling(0.5, 0.9, 100, 7, ("\n",)),
        schema=schema,
        top_logprobs=5,
        extra={"top_k": 20, "chat_template_kwargs": {"x": 1}},
    )
    assert body_of(request) == {
        "model": "judge",
        "messages": [{"role": "user", "content": "A or B?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 100,
        "seed": 7,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}},
        "top_k": 20,
        "chat_template_kwargs": {"x": 1},
    }


def test_each_draw_has_its_own_seed() -> None:
    """One seed, sent with every draw, would be one answer k times. The first draw has the seed itself."""
    draws = [ChatRequest("judge", ASKED.messages, Sampling(1.0, seed=7), sample=k) for k in range(50)]
    seeds = [body_of(draw)["seed"] for draw in draws]
    assert seeds[0] == 7 and len(set(seeds)) == 50 and all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[3] == int(hashlib.sha256(b"7 3").hexdigest()[:8], 16) // 2
    assert len({draw.key("e") for draw in draws}) == 50
    with running(Dials()) as stub:
        one, two = (Caller(OpenAIClient(stub.url)).run(draws) for _ in range(2))
    assert len({answer.text for answer in one}) == 50 and one[7].text == two[7].text  # type: ignore[union-attr]


def test_what_is_not_set_is_not_sent() -> None:
    """`transformers serve` answers 422 to fields it does not know; providers refuse a null."""
    assert body_of(ChatRequest("judge", ASKED.messages, Sampling(None, None, None))) == {"model": "judge", "messages": [{"role": "user", "content": "A or B?"}]}


def test_the_request_on_the_wire() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json=completion({"content": "A"}))

    ask(handler, api_key="secret", headers={"X-Team": "rewards"})
    assert str(seen[0].url) == "http://judge.test/v1/chat/completions" and seen[0].method == "POST"
    assert json.loads(seen[0].content) == body_of(ASKED)
    headers = {name: seen[0].headers.get(name) for name in ("authorization", "content-type", "x-team")}
    assert headers == {"authorization": "Bearer secret", "content-type": "application/json", "x-team": "rewards"}


# -- answers


def test_a_reply() -> None:
    logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.4}]}]}
    answer = ask_for(completion({"content": "A", "reasoning_content": "B is longer, so [[B]]"}, logprobs=logprobs))
    assert isinstance(answer, ChatReply) and answer._replace(seconds=0.0) == ChatReply("A", "stop", ({"A": -0.1, "B": -2.4},), 70, 12, 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("", ""), ([{"type": "text", "text": "[[A]]"}, {"type": "text", "text": " so"}], "[[A]] so")],
    ids=["none", "empty", "parts"],
)
def test_contents(content: Any, text: str) -> None:
    answer = ask_for(completion({"content": content, "reasoning_content": "hm"}))
    assert isinstance(answer, ChatReply) and answer.text == text


def test_several_choices_are_counted_and_the_first_is_read() -> None:
    two = completion({"content": "first"})
    two["choices"].append({"index": 1, "message": {"content": "second"}, "finish_reason": "stop"})
    answer = ask_for(two)
    assert isinstance(answer, ChatReply) and (answer.text, answer.choices) == ("first", 2)


def test_missing_odds_and_ends() -> None:
    answer = reply_of(b'{"choices": [{"message": {"content": "A"}}]}', 1.0)
    assert answer == ChatReply("A", "stop", seconds=1.0)


def test_logprobs_without_alternatives_and_alike() -> None:
    tokens = [
        {"token": "A", "logprob": -0.5, "top_logprobs": []},
        {
            "token": "\ufffd",
            "logprob": -1.0,
            "top_logprobs": [{"token": "\ufffd", "logprob": -1.0}, {"token": "x", "logprob": -2}, {"token": "\ufffd", "logprob": -3.0}],
        },
    ]
    answer = ask_for(completion({"content": "A"}, logprobs={"content": tokens}))
    assert isinstance(answer, ChatReply) and answer.top_logprobs == ({"A": -0.5}, {"\ufffd": -1.0, "x": -2.0})
    assert list(answer.top_logprobs[1]) == ["\ufffd", "x"]


def test_a_refusal_is_a_failure_that_was_paid_for() -> None:
    assert ask_for(completion({"content": None, "refusal": "I would rather not."})) == CallFailure("refused", "I would rather not.", None, 70, 12)


@pytest.mark.parametrize(
    "content",
    [
        {"choices": []},
        {"choices": None},
        {},
        [1, 2],
        None,
        {"choices": [None]},
        {"choices": ["A"]},
        {"choices": [{"message": "A"}]},
        {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [{"token": "A"}]}]}}]},
        {"choices": [{"message": {"content": "A"}}], "usage": "much"},
    ],
    ids=repr,
)
def test_what_is_no_completion_is_a_failure(content: Any) -> None:
    answer = ask_for(content)
    assert isinstance(answer, CallFailure) and answer.kind == "server"


def test_text_that_is_no_json_is_a_failure() -> None:
    answer = ask(lambda request: httpx2.Response(200, text="<html>a proxy says hello</html>"))
    assert isinstance(answer, CallFailure) and answer.kind == "server" and "a proxy says hello" in answer.message


def test_an_error_within_status_200() -> None:
    """OpenRouter hands on the errors of the servers behind it like this."""
    answer = ask_for({"error": {"code": 429, "message": "upstream is busy"}})
    assert isinstance(answer, CallFailure) and answer.kind == "rate limit" and "upstream is busy" in answer.message
    assert ask_for({"error": "broken"}).kind == "server"  # type: ignore[union-attr]


# -- failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "bad request"),
        (401, "denied"),
        (403, "denied"),
        (404, "bad request"),
        (408, "timeout"),
        (422, "bad request"),
        (429, "rate limit"),
        (500, "server"),
        (503, "server"),
        (529, "rate limit"),
        (302, "bad request"),
    ],
)
def test_statuses(status: int, kind: str) -> None:
    answer = ask_for({"error": {"message": "what is wrong"}}, status)
    assert isinstance(answer, CallFailure) and answer.kind == kind and f"status {status}" in answer.message and "what is wrong" in answer.message


def test_an_account_without_money_is_not_waited_for() -> None:
    answer = ask_for({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429)
    assert isinstance(answer, CallFailure) and answer.kind == "denied"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert status_failure(429, "", headers).retry_after == seconds


def test_retry_after_as_a_date() -> None:
    now = time.time()
    later = status_failure(429, "", {"retry-after": formatdate(now + 90, usegmt=True)}).retry_after  # a date has whole seconds
    assert later is not None and int(now) + 90 - time.time() <= later <= 90
    assert status_failure(429, "", {"retry-after": formatdate(time.time() - 90, usegmt=True)}).retry_after == 0.0
    answer = ask_for({"error": {}}, 429, {"Retry-After": "3"})
    assert isinstance(answer, CallFailure) and answer.retry_after == 3.0


def test_twice_429_and_then_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_module, "FIRST_PAUSE", 0.001)
    times: list[float] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        times.append(time.monotonic())
        return httpx2.Response(429, headers={"Retry-After": "0.2"}, json={}) if len(times) < 3 else httpx2.Response(200, json=completion({"content": "A"}))

    caller = Caller(client_of(handler))
    (answer,) = caller.run([ASKED])
    assert isinstance(answer, ChatReply) and answer.text == "A"
    assert len(times) == 3 and times[1] - times[0] >= 0.2 and times[2] - times[1] >= 0.2  # the SDK made no attempts of its own
    assert caller.spent.retries == {"rate limit": 2}


def test_a_transport_that_fails() -> None:
    def out_of_time(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("too slow", request=request)

    def unreachable(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route", request=request)

    assert ask(out_of_time) == CallFailure("timeout", "http://judge.test/v1/chat/completions: too slow (ReadTimeout)")
    assert ask(unreachable) == CallFailure("connection", "http://judge.test/v1/chat/completions: no route (ConnectError)")


@contextmanager
def misbehaving(behaviour: Callable[[socket.socket], None], seen: list[bytes] | None = None) -> Iterator[str]:
    """A server that treats each connection in its own way; `seen` takes what it was sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            received = connection.recv(65536)
            if seen is not None:
                seen.append(received)
            behaviour(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()


def trickle(connection: socket.socket) -> None:
    """A sign of life now and then: no read ever times out."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)
    except OSError:
        pass


BEHAVIOURS: dict[str, tuple[Callable[[socket.socket], Any], str]] = {
    "hangs up": (lambda connection: connection.close(), "connection"),
    "hangs up within the answer": (lambda c: (c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc"), c.close()), "connection"),
    "speaks no HTTP": (lambda c: (c.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), c.close()), "connection"),
    "says nothing": (lambda connection: time.sleep(1), "timeout"),
    "trickles": (trickle, "timeout"),
}


@pytest.mark.parametrize("over", ["aiohttp", "httpx2"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_real_connections_that_fail(behaviour: str, over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is no push-back: aiohttp's come through the SDK as timeouts, which would lower the concurrency."""
    monkeypatch.setattr(openai_client, "AIOHTTP", over == "aiohttp")
    behave, kind = BEHAVIOURS[behaviour]
    with misbehaving(behave) as url:
        (answer,) = Caller(OpenAIClient(url, timeout=0.4 if kind == "timeout" else 60), attempts=1).run([ASKED])
    assert isinstance(answer, CallFailure) and answer.kind == kind and url in answer.message, answer


@pytest.mark.parametrize("over", ["aiohttp", "httpx2"])
def test_nobody_listens(over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "AIOHTTP", over == "aiohttp")
    with socket.socket() as taken:  # bound and not listening: nobody else can take the port
        taken.bind(("127.0.0.1", 0))
        (answer,) = Caller(OpenAIClient(f"http://127.0.0.1:{taken.getsockname()[1]}/v1"), attempts=1).run([ASKED])
    assert isinstance(answer, CallFailure) and answer.kind == "connection"


# -- keys and addresses


@pytest.mark.parametrize(
    ("base_url", "api_key", "environment", "endpoint", "key"),
    [
        ("http://localhost:8000/v1/", None, {"OPENAI_API_KEY": "secret"}, "http://localhost:8000/v1", "none"),  # the key is OpenAI's, not everybody's
        ("http://localhost:8000/v1", "mine", {"OPENAI_API_KEY": "secret"}, "http://localhost:8000/v1", "mine"),
        ("https://api.openai.com/v1", None, {"OPENAI_API_KEY": "secret"}, "https://api.openai.com/v1", "secret"),
        (None, None, {"OPENAI_API_KEY": "secret"}, "https://api.openai.com/v1", "secret"),
        (None, "mine", {}, "https://api.openai.com/v1", "mine"),
        (None, None, {"OPENAI_API_KEY": "secret", "OPENAI_BASE_URL": "https://gateway.test/v1"}, "https://gateway.test/v1", "secret"),
    ],
)
def test_whose_key_goes_where(
    base_url: str | None, api_key: str | None, environment: dict[str, str], endpoint: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json=completion({"content": "A"}))

    client = OpenAIClient(base_url, api_key=api_key, http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handler)))
    Caller(client).run([ASKED])
    assert client.endpoint == endpoint
    assert (str(seen[0].url), seen[0].headers["authorization"]) == (f"{endpoint}/chat/completions", f"Bearer {key}")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no key for https://api.openai.com/v1: set OPENAI_API_KEY"):
        OpenAIClient()
    with pytest.raises(ConfigError, match="base_url 'localhost:8000', expected http://HOST:PORT/v1"):
        OpenAIClient("localhost:8000")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'palate\[judge\]'"):
        OpenAIClient("http://localhost:8000/v1")


# -- over real sockets


@pytest.mark.parametrize("over", ["aiohttp", "httpx2"])
def test_connections_are_used_again(over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and Callers one after the other keep one HTTP client, in one event loop."""
    monkeypatch.setattr(openai_client, "AIOHTTP", over == "aiohttp")
    with running(Dials(fixed="A")) as stub:
        client = OpenAIClient(stub.url)
        for _ in range(3):
            assert [answer.text for answer in Caller(client).run([ASKED] * 5)] == ["A"] * 5  # type: ignore[union-attr]
        (connection,) = client._connections.values()
        assert isinstance(connection.transport, AiohttpTransport) == (over == "aiohttp")
        assert client.models() == ["stub"]
        client.close()
        assert not client._connections
        assert len(Caller(client).run([ASKED])) == 1  # and opens anew where it must
    assert OpenAIClient("http://127.0.0.1:9/v1").models() == []


def test_a_proxy_is_asked_where_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request reaches the proxy, whole address and all; an address in NO_PROXY is asked directly."""
    seen: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 46\r\nConnection: close\r\n\r\n{"choices": [{"message": {"content": "[A]"}}]}')
        connection.close()

    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not proxied("http://judge.test/v1")
    with misbehaving(proxy, seen) as url:
        monkeypatch.setenv("HTTP_PROXY", url.removesuffix("/v1"))
        client = OpenAIClient("http://judge.test/v1")
        Caller(client, attempts=1).run([ASKED])
        (connection,) = client._connections.values()
        assert isinstance(connection.transport, HttpxTransport)
    assert seen[0].startswith(b"POST http://judge.test/v1/chat/completions HTTP/1.1")
    monkeypatch.setenv("NO_PROXY", "judge.test")
    assert not proxied("http://judge.test/v1") and proxied("http://other.test/v1")


def test_large_and_compressed_answers_and_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an HTTP client is expected to do: undo gzip, follow a redirect with the body, take a prompt of megabytes."""
    body = gzip.compress(json.dumps(completion({"content": "[[B]]"})).encode())
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        if b"/moved/" in seen[-1]:
            head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            connection.sendall(head + body)
        else:
            connection.sendall(b"HTTP/1.1 307 Moved\r\nLocation: /moved/chat/completions\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    with misbehaving(serve, seen) as url:
        (answer,) = Caller(OpenAIClient(url), attempts=1).run([ASKED])
    assert isinstance(answer, ChatReply) and answer.text == "[[B]]"
    assert len(seen) == 2 and json.loads(seen[1].partition(b"\r\n\r\n")[2]) == body_of(ASKED)
    with running(Dials(fixed="A")) as stub:
        long = ChatRequest("judge", ({"role": "user", "content": "x" * 3_000_000},))
        assert isinstance(Caller(OpenAIClient(stub.url)).run([long])[0], ChatReply)


def test_in_an_event_loop_of_ones_own() -> None:
    async def two(client: OpenAIClient) -> list[Answer]:
        answers = [await client.complete(ASKED), await client.complete(ASKED)]
        for connection in client._connections.values():
            await connection.close()
        return answers

    with running(Dials(fixed="A")) as stub:
        client = OpenAIClient(stub.url)
        for _ in range(2):
            assert [answer.text for answer in asyncio.run(two(client))] == ["A", "A"]  # type: ignore[union-attr]


def test_a_forgotten_client_closes_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with running(Dials(fixed="A")) as stub:
        Caller(OpenAIClient(stub.url)).run([ASKED])
        gc.collect()
    assert "Unclosed" not in capfd.readouterr().err


def test_an_exit_closes_without_a_word() -> None:
    code = """
import sys
from palate.judging.caller import Caller
from palate.judging.calls import ChatRequest
from palate.judging.openai_client import OpenAIClient
client = OpenAIClient(sys.argv[1])
print(Caller(client).run([ChatRequest("judge", ({"role": "user", "content": "?"},))])[0].text)
"""
    with spawned(Dials(fixed="A")) as stub:
        out = subprocess.run([sys.executable, "-c", code, stub.url], capture_output=True, text=True, timeout=60)
    assert (out.stdout, out.stderr, out.returncode) == ("A\n", "", 0)


def test_what_the_stub_counts_is_what_was_sent() -> None:
    with running(Dials(malformed_rate=0.2)) as stub:
        Caller(OpenAIClient(stub.url)).run([ASKED] * 3)
        assert stub.stats()["by_body"] == {hash_of(body_of(ASKED)): 3}
