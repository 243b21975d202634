"""Rewards over HTTP, from a server of this process that speaks as vLLM, SGLang, OpenRLHF, TEI and our own do, and misbehaves as servers do."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from palate.errors import ConfigError, DataError, ModelError
from palate.scoring import remote
from palate.scoring.remote import RemoteScorer
from palate.types import Exchange, TokenIds


class Reply(NamedTuple):
    status: int = 200
    body: Any = None  # a str is sent as it is, anything else as JSON
    headers: Mapping[str, str] = MappingProxyType({})


def reward_of(body: dict[str, Any]) -> float:
    """A text's reward: its number of words, less a tenth of its letters."""
    text = (
        body.get("text")
        or body.get("input")
        or body.get("inputs")
        or (body.get("query") or [""])[0]
        or "|".join(m["content"] for m in body.get("messages", []))
    )
    return len(text.split()) - len(text) / 10


def classified(body: dict[str, Any]) -> Reply:
    """vLLM 0.33's answer in full; SGLang's to its own body."""
    if "text" in body:
        return Reply(200, {"embedding": [reward_of(body)], "meta_info": {"prompt_tokens": 3}})
    data = [{"index": 0, "label": "reward", "probs": [reward_of(body)], "num_classes": 1}]
    return Reply(200, {"id": "classify-1", "object": "list", "created": 1, "model": body["model"], "data": data, "usage": {"prompt_tokens": 3}})


ANSWERS: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "/v1/models": lambda _: Reply(200, {"object": "list", "data": [{"id": "tiny-reward", "object": "model", "owned_by": "vllm"}, {"id": "other"}]}),
    "/classify": classified,
    "/get_reward": lambda body: Reply(200, {"rewards": [reward_of(body)], "scores": [0.5], "extra_logs": {}}),
    "/predict": lambda body: Reply(200, [{"score": reward_of(body), "label": "LABEL_0"}]),
}


class Server:
    """`answer(path, body)` may be replaced; `seen` holds every request, `busiest` how many were open at a time."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []
        self.at_once = self.busiest = 0
        self.answer: Callable[[str, Any], Reply] = lambda path, body: ANSWERS[path](body)
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                with lock:
                    server.seen.append((self.command, self.path, body))
                    server.at_once += 1
                    server.busiest = max(server.busiest, server.at_once)
                reply = server.answer(self.path, body)
                with lock:
                    server.at_once -= 1
                if reply.status == 0:  # hangs up
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(data)), **reply.headers}).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):  # a client that no longer waits
                    self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def bodies(self, path: str) -> list[Any]:
        return [body for _, seen, body in self.seen if seen == path]

    def failing_first(self, times: int, reply: Reply) -> None:
        """Every body gets `reply` so often, then the right answer."""
        asked: Counter[str] = Counter()

        def answer(path: str, body: Any) -> Reply:
            asked[json.dumps([path, body])] += 1
            return reply if path != "/v1/models" and asked[json.dumps([path, body])] <= times else ANSWERS[path](body)

        self.answer = answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were asked to be waited; nobody waits."""
    asked: list[float] = []
    monkeypatch.setattr("palate.scoring.remote.time.sleep", asked.append)
    return asked


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# --- protocols ------------------------------------------------------------------------------------------------------------------------------------


def test_vllm_is_sent_chats_and_whole_texts(server: Server) -> None:
    """Raw scores are asked for; a prompt makes it a chat that the server's template renders, whole text is sent as it is."""
    scorer = RemoteScorer(server.url + "/")
    assert scorer.model == "tiny-reward" and server.seen == [("GET", "/v1/models", None)]
    tools = {"tools": [{"name": "f"}]}
    items: list[Any] = [
        [{"role": "system", "content": "be kind"}, user("hi"), assistant("hello there")],
        ("what is two?", "four, of course"),
        "a whole text é \u2028",
        Exchange((user("hi"),), "yes", tools),
        Exchange("hi", (assistant("oh"), user("what?"), assistant("nothing"))),
    ]
    scorer.concurrency = 1
    rewards = scorer.score(items)
    common = {"model": "tiny-reward", "use_activation": False}
    expected = [
        common | {"messages": [{"role": "system", "content": "be kind"}, user("hi"), assistant("hello there")]},
        common | {"messages": [user("what is two?"), assistant("four, of course")]},
        common | {"input": "a whole text é \u2028"},
        common | {"messages": [user("hi"), assistant("yes")], "chat_template_kwargs": tools},
        common | {"messages": [user("hi"), assistant("oh"), user("what?"), assistant("nothing")]},
    ]
    assert server.bodies("/classify") == expected
    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, [reward_of(body) for body in expected], atol=1e-6)
    assert len(set(rewards.tolist())) == 5


def test_a_named_model_is_not_asked_for(server: Server) -> None:
    RemoteScorer(server.url, protocol="vllm", model="mine").score(["a b"])
    assert server.seen == [("POST", "/classify", {"model": "mine", "use_activation": False, "input": "a b"})]


@pytest.mark.parametrize(
    ("protocol", "path", "body"),
    [
        ("openrlhf", "/get_reward", {"query": ["<s> hi there </s>"], "prompts": [""]}),
        ("sglang", "/classify", {"text": "<s> hi there </s>"}),
        ("tei", "/predict", {"inputs": "<s> hi there </s>", "raw_scores": True, "truncate": False}),
    ],
)
def test_servers_of_whole_texts(server: Server, protocol: str, path: str, body: dict[str, Any]) -> None:
    scorer = RemoteScorer(server.url, protocol=protocol)
    assert scorer.score(["<s> hi there </s>"]).tolist() == [pytest.approx(4 - 1.7)]
    assert server.seen == [("POST", path, body)]
    server.seen.clear()
    with pytest.raises(DataError, match=rf"conversation 1: {protocol} takes whole text that went through the model's template already"):
        scorer.score(["whole", ("prompt", "response")])
    with pytest.raises(DataError, match="conversation 0: .* use protocol palate or vllm, which render chats"):
        scorer.score([[user("hi"), assistant("hello")]])
    assert server.seen == []  # said before anything is sent


# --- our own server -------------------------------------------------------------------------------------------------------------------------------


def native(path: str, body: Any) -> Reply:
    """As `palate serve` answers: an item of more than 150 letters is too long."""
    if path == "/v1/models":
        return Reply(200, {"object": "list", "data": [{"id": "mine", "object": "model", "owned_by": "palate"}]})
    rows: list[dict[str, Any]] = []
    for index, item in enumerate(body["items"]):
        text = json.dumps(item)
        long = {"raw": None, "reward": None, "error": "it has 99 tokens, the model takes 30", "error_kind": "too_long"}
        broken = {"raw": None, "reward": None, "error": "no such role", "error_kind": "refused"}
        rows.append({"index": index, **(long if len(text) > 150 else broken if "refuse" in text else {"raw": float(len(text)), "reward": 0.0})})
    return Reply(200, {"data": rows, "model": "mine"})


def test_our_own_server_is_sent_batches(server: Server) -> None:
    """Detected by its name; 64 items a request, in native forms, raw rewards back in order."""
    server.answer = native
    scorer = RemoteScorer(server.url)
    assert scorer.protocol_name == "palate" and scorer.model == "mine"
    special: list[Any] = ["text", ("a", "b"), [user("hi"), assistant("yo")], TokenIds([1, 2]), Exchange((user("hi"),), "yes", {"mood": "glad"})]
    forms: list[dict[str, Any]] = [
        {"text": "text"},
        {"prompt": "a", "response": "b"},
        {"prompt": [user("hi")], "response": [assistant("yo")]},
        {"input_ids": [1, 2]},
        {"prompt": [user("hi")], "response": "yes", "template_args": {"mood": "glad"}},
    ]
    many = [f"text {i}" for i in range(130)]
    rewards = scorer.score([*special, *many])
    expected = [*forms, *({"text": text} for text in many)]
    sent = sorted(server.bodies("/v1/rewards"), key=lambda body: -len(body["items"]))
    assert [len(body["items"]) for body in sent] == [64, 64, 7] and all(body["model"] == "mine" for body in sent)
    assert rewards.tolist() == [len(json.dumps(item)) for item in expected]
    assert scorer.score([]).shape == (0,)


def test_one_bad_item_of_a_batch_is_named(server: Server) -> None:
    server.answer = native
    scorer = RemoteScorer(server.url)
    items = [f"text {i}" for i in range(70)]
    items[66] = "x" * 200
    rewards = scorer.score(items, on_long="nan")
    assert np.isnan(rewards).tolist() == [i == 66 for i in range(70)]
    with pytest.raises(ModelError, match="conversation 66: .*/v1/rewards: it has 99 tokens, the model takes 30"):
        scorer.score(items)
    items[66] = "refuse"
    with pytest.raises(ModelError, match="conversation 66: .*: no such role"):
        scorer.score(items, on_long="nan")
    with pytest.raises(DataError, match="conversation 1: a prompt of token ids goes with a response of token ids"):
        scorer.score(["a", Exchange(TokenIds([1]), "b")])


def test_an_answer_with_fewer_rewards_than_asked_for_is_refused(server: Server) -> None:
    server.answer = lambda path, body: Reply(200, {"data": [{"index": 0, "raw": 1.0}]})
    with pytest.raises(ModelError, match="conversations 0 to 1: .* answered something else than a reward"):
        RemoteScorer(server.url, protocol="palate").score(["a", "b"])


# --- what a server is -----------------------------------------------------------------------------------------------------------------------------

SAID: dict[str, tuple[dict[str, Any], str]] = {
    "vllm": ({"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}, "vllm"),
    "sglang": ({"/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]}}, "sglang"),
    "tei": ({"/info": {"model_id": "m", "model_type": {"reranker": {}}}}, "tei"),
    "openrlhf": ({"/openapi.json": {"paths": {"/get_reward": {}}}}, "openrlhf"),
}


@pytest.mark.parametrize("name", SAID)
def test_servers_are_told_by_what_they_say(server: Server, name: str) -> None:
    said, expected = SAID[name]
    server.answer = lambda path, _: Reply(200, said[path]) if path in said else Reply(404, "Not Found")
    assert RemoteScorer(server.url).protocol_name == expected


@pytest.mark.parametrize(
    "models", [{"data": []}, {"data": [{"id": "m", "owned_by": "somebody"}]}, {"data": [7]}, {"data": None}, [], "<html>", {"data": [{"owned_by": "vllm"}]}]
)
def test_a_server_that_does_not_say_is_an_error(server: Server, models: Any) -> None:
    server.answer = lambda path, _: Reply(200, models) if path == "/v1/models" else Reply(404, "")
    with pytest.raises(ConfigError, match="does not say what it speaks .* give protocol: palate, vllm, sglang, openrlhf, tei"):
        RemoteScorer(server.url)


def test_the_key_goes_along_and_its_lack_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = lambda path, body: Reply(401, "no")
    with pytest.raises(ModelError, match=r"/v1/models answered 401: it asks for another API key than was given"):
        RemoteScorer(server.url)
    sent: list[str | None] = []
    send = remote._send
    monkeypatch.setattr(remote, "_send", lambda *given: (sent.append(given[-1]), send(*given))[1])
    server.answer = native
    RemoteScorer(server.url, api_key="secret").score(["a"])
    assert sent == ["secret", "secret"]


def test_of_several_classes_the_last_is_read_as_verl_does(server: Server) -> None:
    server.answer = lambda path, body: Reply(200, {"data": [{"probs": [0.25, 0.75], "num_classes": 2}]})
    assert RemoteScorer(server.url, protocol="vllm", model="m").score(["x"]).tolist() == [0.75]


def test_tei_may_answer_with_one_prediction(server: Server) -> None:
    server.answer = lambda path, body: Reply(200, {"score": -2.5, "label": "LABEL_0"})
    assert RemoteScorer(server.url, protocol="tei").score(["x"]).tolist() == [-2.5]


def test_token_ids_are_refused_by_number(server: Server) -> None:
    with pytest.raises(DataError, match="conversation 1: an endpoint is sent text; this conversation holds token ids"):
        RemoteScorer(server.url, protocol="vllm", model="m").score(["x", TokenIds([1, 2])])
    assert server.seen == []


def test_nothing_to_score(server: Server) -> None:
    rewards = RemoteScorer(server.url, protocol="vllm", model="m").score([])
    assert rewards.shape == (0,) and rewards.dtype == np.float32


def test_order_is_kept_while_requests_run_side_by_side(server: Server) -> None:
    rng, first = random.Random(0), threading.Barrier(8)

    def late(path: str, body: Any) -> Reply:
        if int(body["input"]) < 8:
            first.wait(60)
        time.sleep(rng.random() / 50)
        return Reply(200, {"data": [{"probs": [float(body["input"])]}]})

    server.answer = late
    scorer = RemoteScorer(server.url, protocol="vllm", model="m", concurrency=8)
    assert scorer.score([str(i) for i in range(150)]).tolist() == list(range(150))
    assert server.busiest == 8


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(server: Server, pauses: list[float], status: int) -> None:
    server.failing_first(2, Reply(status, "busy"))
    texts = ["a", "b b", "c c c"]
    rewards = RemoteScorer(server.url, protocol="vllm", model="m", concurrency=1).score(texts)
    np.testing.assert_allclose(rewards, [reward_of({"input": text}) for text in texts], atol=1e-6)
    assert [body["input"] for body in server.bodies("/classify")] == [text for text in texts for _ in range(3)]
    assert pauses == [0.001, 0.002] * 3


def test_a_server_that_says_how_long_is_believed_once(server: Server, pauses: list[float]) -> None:
    """Retry-After is the wait of this time; it is not doubled, and never less than our own pause. A date, or rubbish, is not read."""
    replies = [Reply(429, "", {"Retry-After": after}) for after in ("7", "7", "0", "Wed, 21 Oct 2026 07:28:00 GMT", "²")]
    left = iter([*replies, Reply(200, {"data": [{"probs": [1.5]}]})])
    server.answer = lambda path, body: next(left)
    assert RemoteScorer(server.url, protocol="vllm", model="m").score(["a"]).tolist() == [1.5]
    assert pauses == [7.0, 7.0, 0.004, 0.008, 0.016]


def test_a_connection_that_breaks_is_made_again(server: Server, pauses: list[float]) -> None:
    server.failing_first(3, Reply(0))
    assert RemoteScorer(server.url, protocol="vllm", model="m").score(["a"]).tolist() == [pytest.approx(0.9)]
    assert len(server.seen) == 4 and len(pauses) == 3
    cut = {"Content-Length": "900"}  # promises more than comes
    server.failing_first(1, Reply(200, "{", cut))
    assert RemoteScorer(server.url, protocol="vllm", model="m").score(["a b"]).tolist() == [pytest.approx(1.7)]


def test_a_server_that_stays_busy_is_an_error_that_says_so(server: Server, pauses: list[float]) -> None:
    server.answer = lambda path, body: Reply(503, "loading the model")
    with pytest.raises(ModelError, match=r"conversation 0: http://127.0.0.1:\d+/classify answered 503: loading the model"):
        RemoteScorer(server.url, protocol="vllm", model="m").score(["a"])
    assert len(server.seen) == 6 and pauses == [0.001 * 2**i for i in range(5)]


def test_a_dead_server_is_an_error_that_says_so(server: Server, pauses: list[float]) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ModelError, match=rf"{url}/v1/models: no answer after 6 attempts: .*refused"):
            RemoteScorer(url, protocol="vllm")
        with pytest.raises(ModelError, match=rf"{url}/classify: no answer after 6 attempts: .*refused"):
            RemoteScorer(url, protocol="vllm", model="m").score(["a"] * 50)
    assert len(pauses) >= 10


def test_a_silent_server_times_out(server: Server, pauses: list[float]) -> None:
    done = threading.Event()

    def silent(path: str, body: Any) -> Reply:
        done.wait(60)
        return Reply(200, {})

    server.answer = silent
    with pytest.raises(ModelError, match="no answer after 6 attempts: .*timed out"):
        RemoteScorer(server.url, protocol="vllm", model="m", timeout=0.05).score(["a"])
    done.set()


def test_an_error_stops_the_requests_that_wait(server: Server) -> None:
    server.answer = lambda path, body: Reply(404, "no route") if body["input"] == "0" else (time.sleep(0.01), ANSWERS[path](body))[1]
    with pytest.raises(ModelError, match="conversation 0: .* answered 404: no route"):
        RemoteScorer(server.url, protocol="vllm", model="m", concurrency=2).score([str(i) for i in range(2000)])
    assert len(server.seen) < 1000  # of 2000; a few, where nobody else is busy


@pytest.mark.parametrize("status", [400, 413])
def test_too_long_for_the_server_is_an_error_or_nan(server: Server, pauses: list[float], status: int) -> None:
    """vLLM answers 400, TEI 413 (its ErrorType::Validation); neither is asked again."""
    server.answer = lambda path, body: Reply(status, "maximum context length is 8 tokens") if len(body["input"]) > 8 else ANSWERS[path](body)
    scorer = RemoteScorer(server.url, protocol="vllm", model="m")
    items = ["short", "far too long a text", "brief"]
    rewards = scorer.score(items, on_long="nan")
    assert np.isnan(rewards).tolist() == [False, True, False]
    np.testing.assert_allclose(rewards[[0, 2]], [0.5, 0.5], atol=1e-6)
    for on_long in ("error", "truncate_prompt", None):
        with pytest.raises(ModelError, match=rf"conversation 1: .*/classify answered {status}: maximum context length is 8 tokens"):
            scorer.score(items, on_long=on_long)
    assert pauses == []


@pytest.mark.parametrize("status", [401, 404, 422])
def test_other_refusals_are_errors_under_any_policy(server: Server, pauses: list[float], status: int) -> None:
    server.answer = lambda path, body: Reply(status, "no")
    with pytest.raises(ModelError, match=f"conversation 0: .* answered {status}: no"):
        RemoteScorer(server.url, protocol="vllm", model="m").score(["a"], on_long="nan")
    assert pauses == [] and len(server.seen) == 1


GARBAGE: dict[str, Any] = {
    "no JSON": "<html>welcome</html>",
    "nothing": "",
    "another object": {"object": "error", "message": "no"},
    "no data": {"data": []},
    "no scores": {"data": [{"probs": []}]},
    "null": {"data": [{"probs": [None]}]},
    "words": {"data": [{"probs": ["good"]}]},
    "a list": [1, 2],
    "a number": 3,
    "null answer": "null",
}


@pytest.mark.parametrize("protocol", ["palate", "vllm", "sglang", "openrlhf", "tei"])
@pytest.mark.parametrize("name", GARBAGE)
def test_an_answer_that_is_no_reward_is_shown(server: Server, name: str, protocol: str) -> None:
    server.answer = lambda path, body: Reply(200, GARBAGE[name])
    with pytest.raises(ModelError, match=r"conversation 0: http://127.0.0.1:\d+/[\w/]+ answered something else than a reward: "):
        RemoteScorer(server.url, model="m", protocol=protocol).score(["a"], on_long="nan")


@pytest.mark.parametrize("body", ["<html>welcome</html>", {"data": []}, {"data": [{}]}, [], {"object": "list"}, "null"])
def test_a_server_that_names_no_model_is_an_error(server: Server, body: Any) -> None:
    server.answer = lambda path, _: Reply(200, body)
    with pytest.raises(ModelError, match=r"/v1/models answered 200: .*say which model with model="):
        RemoteScorer(server.url, protocol="vllm")
    server.answer = lambda path, _: Reply(404, "Not Found")
    with pytest.raises(ModelError, match=r"/v1/models answered 404: Not Found; say which model with model="):
        RemoteScorer(server.url, protocol="vllm")


def test_what_is_no_endpoint_is_said_before_a_request(pauses: list[float]) -> None:
    with pytest.raises(ConfigError, match="protocol is 'grpc', expected auto or one of palate, vllm, sglang, openrlhf, tei"):
        RemoteScorer("http://localhost:8000", protocol="grpc")
    for url in ("http://", "http:///x", "localhost:8000", "ftp://host", "http://host:port", "http://host:99999"):
        with pytest.raises(ConfigError, match=r"is no address of an endpoint; expected one like http://localhost:8000"):
            RemoteScorer(url, protocol="vllm", model="m")
    assert pauses == []
