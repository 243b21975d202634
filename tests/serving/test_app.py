"""The server around the dialects: limits, keys, hostile bodies, several models, swaps under load, metrics, and a fuzz of its OpenAPI description."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from tests.serving.conftest import Serve, tiny_scorer

from palate.errors import ConfigError, ModelError
from palate.models.checkpoints import RewardStatistics
from palate.scoring.local import LocalScorer
from palate.serving import app as app_module
from palate.serving.app import make_app
from palate.serving.hosting import Loading, Models
from palate.serving.metrics import Metrics
from palate.serving.settings import ServerSettings
from palate.serving.worker import Served

ONE = {"items": [{"text": "hello"}]}

HOSTILE = {
    "nothing": b"",
    "half": b'{"items": [',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "deep inside": b'{"items": [{"messages": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    "deeper objects": b'{"a":' * 150 + b"1" + b"}" * 150,
    "huge integer": b'{"items": [{"input_ids": [1' + b"0" * 4000 + b"]}]}",
    "too huge an integer": b'{"items": [{"input_ids": [1' + b"0" * 9000 + b"]}]}",
    "NaN": b'{"items": [{"input_ids": [NaN]}], "calibrate": NaN}',
    "infinity": b'{"items": Infinity}',
    "a list": b"[1, 2]",
    "null": b"null",
    "a string": b'"items"',
    "many keys": json.dumps({str(i): i for i in range(10_000)}).encode(),
    "a key twice": b'{"items": [{"text": "a"}], "items": 3}',
    "a null byte": b'{"items": [{"text": "a\\u0000b"}]}',
    "a lone surrogate in a key": b'{"\\ud800": 1}',
    "a lone surrogate as model": b'{"items": [], "model": "\\ud800"}',
}
PATHS = ["/v1/rewards", "/v1/compare", "/classify", "/v1/embeddings", "/get_reward", "/predict", "/rerank", "/v1/score/evaluation", "/slime"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_and_nothing_breaks(serve: Serve, llama: LocalScorer, name: str) -> None:
    served = serve(llama)
    for path in PATHS:
        answer = served.client.post(path, content=HOSTILE[name])
        assert answer.status_code in (200, 400, 404, 422), (path, answer.status_code, answer.text[:300])
        assert len(answer.content) < 2000, path  # bodies are not sent back
    assert served.client.post("/v1/rewards", json=ONE).status_code == 200


DEEP = [{"role": "user", "content": "a", "tool_calls": json.loads("[" * 400 + "]" * 400)}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("messages", [DEEP, [{"role": 3, "content": "a"}], [{"role": "user", "content": {"a": 1}}], [[]], "text", [None]])
def test_messages_of_any_shape_are_no_failure(serve: Serve, llama: LocalScorer, messages: Any) -> None:
    served = serve(llama)
    assert served.client.post("/v1/rewards", json={"items": [{"messages": messages}]}).status_code == 200
    assert served.client.post("/classify", json={"messages": messages}).status_code in (200, 400)


def test_sizes_are_bounded(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama, max_body=2000, max_items=3)
    large = json.dumps({"items": [{"text": "x" * 3000}]}).encode()
    for content in (large, iter([large[:1500], large[1500:]])):  # with a length, and in chunks without one
        answer = served.client.post("/v1/rewards", content=content)
        assert answer.status_code == 413 and answer.json()["error"]["type"] == "body_too_large"
    many = served.client.post("/v1/rewards", json={"items": [{"text": "a"}] * 4})
    assert many.status_code == 413 and "4 items in one request; at most 3" in many.json()["error"]["message"]
    assert served.client.post("/v1/rewards", json={"items": [{"text": "a"}] * 3}).status_code == 200


def test_the_key_is_asked_for_everywhere_but_at_health(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama, api_key="secret")
    paths = [("POST", "/v1/rewards"), ("POST", "/classify"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nowhere")]
    for method, path in paths:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic secret"},
            {"Authorization": "Bearer sécret".encode()},
            {"X-Api-Key": ""},
        ):
            answer = served.client.request(method, path, headers=headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", (path, headers)
    assert served.client.get("/health").status_code == 200
    assert served.client.post("/v1/rewards", json=ONE, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_several_models_by_name(serve: Serve) -> None:
    one, two = tiny_scorer("llama", seed=0), tiny_scorer("qwen3", seed=1)
    served = serve({"one": one, "two": two})
    rewards = [served.post("/v1/rewards", {**ONE, **extra})["data"][0]["reward"] for extra in ({}, {"model": "one"}, {"model": "two"})]
    expected = [float(scorer.score(["hello"])[0]) for scorer in (one, one, two)]
    assert rewards == [pytest.approx(value, abs=2e-6) for value in expected] and expected[0] != expected[2]
    listed = served.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["owned_by"], model["max_model_len"]) for model in listed] == [("one", "palate", 256), ("two", "palate", 256)]


def test_a_slow_model_is_a_504_and_recovers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = tiny_scorer("llama")
    served = serve(scorer, timeout=0.5)
    read, going = scorer.read_ids, threading.Event()
    monkeypatch.setattr(scorer, "read_ids", lambda *args: (going.wait(60), read(*args))[1])
    slow = served.client.post("/v1/rewards", json=ONE)
    assert slow.status_code == 504 and slow.headers["Retry-After"] == "1"
    going.set()
    assert 200 in (served.client.post("/v1/rewards", json=ONE).status_code for _ in range(60))  # a busy machine may be late again


def asgi(app: Any, path: str, message: dict[str, Any], until: Callable[[], Awaitable[Any]]) -> Coroutine[Any, Any, int]:
    """The status of a request whose client sends `message` and leaves when `until` comes."""
    messages = iter([message])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        following = next(messages, None)
        if following is None:
            await until()
        return following or {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> int:
        await app({"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}, receive, send)
        return int(sent[0]["status"])

    return ask()


def test_a_client_that_leaves_takes_its_work_along(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its body, and while it waits: nothing of it is computed any more, and nothing stays in the queue."""
    scorer = tiny_scorer("llama")
    served = serve(scorer)
    worker = served.models.get(None).worker
    read, computing, going = scorer.read_ids, threading.Event(), threading.Event()
    batches: list[int] = []

    def held(sequences: Sequence[list[int]], reads: Any = None) -> Any:
        batches.append(len(sequences))
        computing.set()
        assert going.wait(60)
        return read(sequences, reads)

    async def queued(items: int) -> None:
        while worker.items != items:
            await asyncio.sleep(0.005)

    async def play() -> None:
        app = served.client.app
        whole = {"type": "http.request", "body": json.dumps({"items": [{"text": "a"}, {"text": "b"}]}).encode()}
        half = {"type": "http.request", "body": b'{"items', "more_body": True}
        assert [await asgi(app, path, half, lambda: queued(0)) for path in ("/v1/rewards", "/classify")] == [499, 499]
        stays = asyncio.create_task(asgi(app, "/v1/rewards", whole, asyncio.Event().wait))
        await asyncio.to_thread(computing.wait)
        assert await asgi(app, "/v1/rewards", whole, lambda: queued(4)) == 499
        going.set()
        assert await stays == 200
        await queued(0)

    monkeypatch.setattr(scorer, "read_ids", held)
    monkeypatch.setattr(app_module, "WATCHED_AFTER", 0.0)
    asyncio.run(asyncio.wait_for(play(), 60))
    assert batches == [2]
    page = served.client.get("/metrics").text
    assert 'palate_errors_total{kind="client_gone"} 3.0' in page and 'palate_requests_total{path="/v1/rewards",status="499"} 2.0' in page


def test_overload_is_a_503_and_recovers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = tiny_scorer("llama")
    served = serve(scorer, queue_items=2)
    read, gate = scorer.read_ids, threading.Event()
    monkeypatch.setattr(scorer, "read_ids", lambda *args: (gate.wait(60), read(*args))[1])
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(served.client.post("/v1/rewards", json=ONE).status_code)) for _ in range(2)]
    for thread in threads:
        thread.start()
    worker = served.models.get(None).worker
    while worker.items < 2:
        time.sleep(0.005)
    for path, body in (("/v1/rewards", ONE), ("/classify", {"input": "a"}), ("/predict", {"inputs": "a"})):
        refused = served.client.post(path, json=body)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1, path
    assert refused.json()["error_type"] == "Overloaded"
    gate.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200] and served.client.post("/v1/rewards", json=ONE).status_code == 200


def test_a_broken_model_is_a_500_of_those_who_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = tiny_scorer("llama")
    served = serve(scorer)

    def broken(*_: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(scorer, "read_ids", broken)
    assert served.client.post("/classify", json={"input": "a"}).status_code == 500
    item = served.post("/v1/rewards", ONE)["data"][0]
    assert item["error_kind"] == "failed" and "device lost" in item["error"]
    monkeypatch.undo()
    assert served.client.post("/classify", json={"input": "a"}).status_code == 200


def test_metrics_count(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    served.post("/v1/rewards", {"items": [{"text": "hello"}, {"bad": 1}]})
    served.client.post("/v1/rewards", content=b"{")
    served.client.get("/nowhere/at/all")
    page = served.client.get("/metrics").text
    tokens = len(llama.encoder.encode([_exchange("hello")])[0])
    for line in (
        'palate_requests_total{path="/v1/rewards",status="200"} 1.0',
        'palate_requests_total{path="/v1/rewards",status="400"} 1.0',
        'palate_requests_total{path="other",status="404"} 1.0',
        'palate_errors_total{kind="malformed"} 2.0',
        'palate_items_total{model="tiny"} 1.0',
        f'palate_tokens_total{{model="tiny"}} {float(tokens)}',
        'palate_queue_items{model="tiny"} 0.0',
        'palate_batch_sequences_count{model="tiny"} 1.0',
        'palate_request_seconds_count{path="/v1/rewards"} 2.0',
    ):
        assert line in page, line


def _exchange(text: str) -> Any:
    from palate.types import Exchange

    return Exchange("", text)


def test_unknown_paths_and_methods_speak_json(serve: Serve, llama: LocalScorer) -> None:
    client = serve(llama).client
    assert client.get("/nowhere").json()["error"]["code"] == 404
    wrong = client.get("/v1/rewards")
    assert wrong.status_code == 405 and wrong.json()["error"]["code"] == 405
    for path in ("/docs", "/redoc", "/v1/models/load", "/v1/models/reload"):
        assert client.post(path, json={}).status_code in (404, 405)


def test_settings_that_cannot_be() -> None:
    for wrong in ({"timeout": 0}, {"max_items": -1}, {"on_long": "cut"}, {"linger": -1}, {"api_key": ""}, {"api_key": "schlüssel"}, {"may_load": True}):
        with pytest.raises(ConfigError):
            ServerSettings(**wrong)


# --- models that come while it runs -------------------------------------------------------------------------------------------------------------


def saved(folder: Path, seed: int) -> LocalScorer:
    scorer = tiny_scorer("llama", seed=seed)
    scorer.model.save_pretrained(folder)
    scorer.tokenizer.save_pretrained(folder)
    assert scorer.contract is not None
    scorer.contract.save(folder)
    return scorer


def test_models_are_loaded_only_from_their_roots(serve: Serve, llama: LocalScorer, tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    new = saved(root / "new", 3)
    saved(elsewhere / "secret", 4)
    (root / "link").symlink_to(elsewhere / "secret")
    (root / "broken").mkdir()
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(elsewhere / "secret")}))
    served = serve(llama, may_load=True, model_roots=(root,))
    for path in (elsewhere / "secret", root / "link", root / ".." / "elsewhere" / "secret", root / "absent", root / "adapter", "/etc", "a/b", "x\0y", ""):
        answer = served.client.post("/v1/models/load", json={"name": "x", "path": str(path)})
        assert answer.status_code == 403 and str(elsewhere) not in answer.text, path
    broken = served.client.post("/v1/models/load", json={"name": "x", "path": str(root / "broken")})
    assert broken.status_code == 400 and "no config.json" in broken.json()["error"]["message"]
    for body in ({}, {"name": "", "path": "x"}, {"name": 3, "path": "x"}, []):
        assert served.client.post("/v1/models/load", json=body).status_code == 400, body
    loaded = served.client.post("/v1/models/load", json={"name": "new", "path": str(root / "new")})
    assert loaded.status_code == 200 and loaded.json()["id"] == "new"
    assert served.post("/v1/rewards", {**ONE, "model": "new"})["data"][0]["reward"] == pytest.approx(float(new.score(["hello"])[0]), abs=2e-6)
    assert served.client.post("/v1/models/reload", json={"name": "new"}).status_code == 200
    assert served.client.post("/v1/models/reload", json={"name": "nobody"}).status_code == 404


def test_a_swap_under_load_loses_nobody(serve: Serve, tmp_path: Path) -> None:
    """Every answer before, during and after is of the old model or of the new one, and none is missing."""
    old, new = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    served = serve({"rm": old}, may_load=True, model_roots=(tmp_path,))
    allowed = [float(scorer.score(["hello"])[0]) for scorer in (old, new)]
    found: list[float] = []
    problems: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = served.client.post("/v1/rewards", json=ONE)
            if answer.status_code != 200:
                problems.append(answer.text)
            else:
                found.append(answer.json()["data"][0]["reward"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for path in ("b", "a", "b"):
        assert served.client.post("/v1/models/load", json={"name": "rm", "path": str(tmp_path / path)}).status_code == 200
        before = len(found)
        while len(found) < before + 8 and not problems:
            time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert all(min(abs(reward - one) for one in allowed) < 2e-6 for reward in found)
    assert served.post("/v1/rewards", ONE)["data"][0]["reward"] == pytest.approx(allowed[1], abs=2e-6)


def test_no_answer_is_of_two_models(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapped between its choice and its queue, a request is answered by the new model in its own scale."""
    scorers = [tiny_scorer("llama", seed=seed, statistics=RewardStatistics(mean, 0.5, 1.0, 10)) for seed, mean in ((1, 0.25), (2, 4.0))]
    served = serve({"rm": scorers[0]})
    get = served.models.get

    def swapped_after(name: str | None) -> Any:
        hosted = get(name)
        if hosted.scorer is scorers[0]:
            served.models.add("rm", "new", Served(scorers[1]))
        return hosted

    monkeypatch.setattr(served.models, "get", swapped_after)
    row = served.post("/v1/rewards", {**ONE, "calibrate": True})["data"][0]
    expected = float(scorers[1].score(["hello"])[0])
    assert (row["raw"], row["reward"]) == (pytest.approx(expected, abs=2e-6), pytest.approx((expected - 4.0) / 0.5, abs=1e-5))


def test_only_safetensors_are_loaded_unless_asked(tmp_path: Path) -> None:
    scorer = saved(tmp_path / "rm", 1)
    import torch

    torch.save(scorer.model.state_dict(), tmp_path / "rm" / "pytorch_model.bin")
    (tmp_path / "rm" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Loading().open(str(tmp_path / "rm"))
    assert Loading(allow_pickle=True).open(str(tmp_path / "rm")).scorer.score(["hello"]) == pytest.approx(scorer.score(["hello"]), abs=2e-6)
    for source in ("ensemble:a,b", "http://localhost:1", "dpo:a", "OpenAssistant/reward-model-deberta-v3-base"):
        with pytest.raises((ConfigError, ModelError)):  # the last: not in the cache, and of an input format of its own
            Loading().open(source)


@pytest.mark.parametrize("kind", ["llama", "a kind of its own"])
def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that transformers knows is loaded by transformers' own class; any other is refused. The checkpoint's code runs in neither case."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    scorer = saved(tmp_path / "rm", 1)
    ran = tmp_path / "ran"
    (tmp_path / "rm" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "rm" / name
        mapped = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": mapped} | ({"model_type": kind} if name == "config.json" else {})))
    if kind == "llama":
        assert Loading().open(str(tmp_path / "rm")).scorer.score(["hello"]) == pytest.approx(scorer.score(["hello"]), abs=2e-6)
    else:
        with pytest.raises(ModelError):
            Loading().open(str(tmp_path / "rm"))
    assert not ran.exists()
    with pytest.raises(Exception):  # noqa: B017 (what the stranger's code is missing decides)
        Loading(trust_remote_code=True).open(str(tmp_path / "rm"))
    assert ran.exists()


# --- OpenAPI ------------------------------------------------------------------------------------------------------------------------------------


def test_openapi_names_every_dialect(serve: Serve, llama: LocalScorer) -> None:
    described = serve(llama).client.get("/openapi.json").json()
    assert {"/v1/rewards", "/v1/compare", "/v1/best_of_n", "/classify", "/pooling", "/get_reward", "/predict", "/rerank", "/slime"} < set(described["paths"])
    both = described["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert len(both) == 2 and described["info"]["title"] == "palate"
    text = json.dumps(described)
    assert all(reference in described["components"]["schemas"] for reference in _references(text))


def _references(text: str) -> Sequence[str]:
    import re

    return re.findall(r"#/components/schemas/([^\"]+)", text)


def fuzz(examples: int) -> None:
    """No 500, no hang, and every answer as it is described."""
    metrics = Metrics()
    given = ServerSettings(timeout=20.0)
    models = Models(given, metrics)
    models.add("tiny", "tiny", Served(tiny_scorer("llama", max_length=64)))
    app = make_app(models, given, metrics)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = [schemathesis.checks.not_a_server_error, schemathesis.checks.response_schema_conformance, schemathesis.checks.status_code_conformance]

    for operation in schema.get_all_operations():

        @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @schemathesis_given(operation.ok())
        def check(case: Any) -> None:
            case.call_and_validate(checks=checks)

        check()
    models.close()


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())


def test_fuzz() -> None:
    fuzz(3)


@pytest.mark.slow
def test_fuzz_long() -> None:
    fuzz(60)


def test_concurrent_requests_in_one_loop(serve: Serve, llama: LocalScorer) -> None:
    """Two hundred at once, each with its own reward."""
    served = serve(llama)
    transport = httpx2.ASGITransport(app=served.client.app)

    async def ask(i: int, client: Any) -> float:
        answer = await client.post("/v1/rewards", json={"items": [{"text": f"text {i % 40}"}]})
        return float(answer.json()["data"][0]["reward"])

    async def all_of_them() -> list[float]:
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return await asyncio.gather(*(ask(i, client) for i in range(200)))

    assert asyncio.run(all_of_them()) == [pytest.approx(value, abs=2e-6) for value in llama.score([f"text {i % 40}" for i in range(200)])]
