"""What an endpoint can do, found out: on the stub with features on and off, and on a real `transformers serve`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.judging.stub_server import Dials, running

from palate.errors import ConfigError, ModelError
from palate.judging import caller as caller_module
from palate.judging import capabilities as capabilities_module
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest
from palate.judging.capabilities import FREE, Capabilities, probe, probe_sampling
from palate.judging.combining import BothOrders
from palate.judging.decision_client import DecisionClient
from palate.judging.function_client import FunctionClient
from palate.judging.judge import ChatJudge, Instructions
from palate.judging.openai_client import OpenAIClient
from palate.judging.prompts import PairPrompt
from palate.types import Matchup

FEATURES = ("logprobs", "n", "structured", "sampling", "seed")
DIALS = {"logprobs": "logprobs", "n": "several", "structured": "structured", "sampling": "sampling", "seed": "seed"}


def found(dials: Dials) -> Capabilities:
    with running(dials) as stub:
        return probe(Caller(OpenAIClient(stub.url)), "stub")


def test_an_endpoint_that_can_do_everything() -> None:
    capabilities = found(Dials())
    assert all(getattr(capabilities, feature) for feature in FEATURES), capabilities.notes
    assert {note.partition(":")[0] for note in capabilities.notes} == set(FEATURES)
    for feature in FEATURES:
        capabilities.require(feature, "the judge")


@pytest.mark.parametrize("feature", FEATURES)
def test_one_feature_that_is_ignored(feature: str) -> None:
    """Accepted without a word and not done. Without sampling no seed changes anything either."""
    capabilities = found(replace(Dials(), **{DIALS[feature]: False}))
    missing = {feature} | ({"seed"} if feature == "sampling" else set())
    assert {name for name in FEATURES if not getattr(capabilities, name)} == missing
    with pytest.raises(ConfigError, match=f"the judge: .* need an endpoint with working {feature}, which this one has not"):
        capabilities.require(feature, "the judge")


def test_the_reason_is_what_was_seen() -> None:
    with pytest.raises(
        ConfigError, match=r"votes: 5: votes.* need an endpoint with working sampling, which this one has not \(1 different answers of 4 at temperature 1\)"
    ):
        found(Dials(sampling=False)).require("sampling", "votes: 5")


def refusing(refused: Answer, *, what: str) -> Caller:
    """An endpoint that answers a request with a setting of that name in another way."""

    def answer(request: ChatRequest) -> Answer:
        is_asked = {"logprobs": request.top_logprobs is not None, "everything": True, "sampling": request.messages[0]["content"] == FREE}[what]
        return refused if is_asked else ChatReply("J")

    return Caller(FunctionClient(answer), attempts=1)


@pytest.mark.parametrize("kind", ["bad request", "server", "refused"])
def test_an_endpoint_that_refuses_a_setting_has_not_the_feature(kind: str) -> None:
    capabilities = probe(refusing(CallFailure(kind, "unknown field logprobs"), what="logprobs"), "m")  # type: ignore[arg-type]
    assert not capabilities.logprobs
    assert f"logprobs: the request was answered with {kind}: unknown field logprobs" in capabilities.notes


@pytest.mark.parametrize("kind", ["rate limit", "timeout", "connection", "budget", "denied"])
def test_an_endpoint_that_was_not_reached_says_nothing(kind: str) -> None:
    """A busy moment must not stand in the provenance as a feature that is missing."""
    with pytest.raises(ModelError, match=f"model m: a question of the probe failed .{kind}.: later; try again"):
        probe(refusing(CallFailure(kind, "later"), what="sampling"), "m")  # type: ignore[arg-type]


def test_a_plain_question_must_be_answered() -> None:
    with pytest.raises(ModelError, match=r"function:function, model m: a plain question failed \(bad request\): no such model"):
        probe(refusing(CallFailure("bad request", "no such model"), what="everything"), "m")


def test_a_probe_is_asked_once(tmp_path: Path) -> None:
    with running() as stub, CallCache(tmp_path / "answers.sqlite") as cache:
        first = probe(Caller(OpenAIClient(stub.url), cache=cache), "stub")
        asked = stub.stats()["served"]
        assert probe(Caller(OpenAIClient(stub.url), cache=cache), "stub") == first and stub.stats()["served"] == asked == 12


def test_answers_of_a_probe_count_for_a_day_and_while_the_endpoint_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was changed under its name is noticed: at the next day at the latest, at once where /v1/models says so."""
    now = 1_800_000_000.0
    monkeypatch.setattr(capabilities_module.time, "time", lambda: now)
    with running() as stub, CallCache(tmp_path / "answers.sqlite") as cache:
        client = OpenAIClient(stub.url)
        caller = Caller(client, cache=cache)
        state = client.state("stub")
        assert json.loads(state) == [{"id": "stub", "object": "model", "owned_by": "nobody"}] and client.state("other") == "[]"
        assert probe(caller, "stub", state=state).sampling and stub.stats()["served"] == 12
        assert probe_sampling(caller, "stub", state=state) == (True, "4 different answers of 4 at temperature 1") and stub.stats()["served"] == 12
        stub.turn(Dials(sampling=False, logprobs=False))
        assert probe(caller, "stub", state=state).sampling, "not asked again so soon"
        other = probe(caller, "stub", state=state + " with another root")
        assert not other.sampling and not other.logprobs and stub.stats()["served"] == 24
        now += 86_400
        assert not probe_sampling(caller, "stub", state=state)[0] and stub.stats()["served"] == 24 + 5


# -- a real server


@contextmanager
def transformers_serve(folder: Path, tmp_path: Path) -> Iterator[str]:
    """`transformers serve` on a free port of this machine, as a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (tmp_path / "hub").mkdir()  # /v1/models needs the folder
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "server.log", "wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            for _ in range(1200):
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def tiny_chat_model(folder: Path) -> None:
    """A random Llama that speaks a chat template."""
    import torch
    from tests.conftest import DECODER, chatml_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chatml_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(**DECODER, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def decided_here(folder: Path, client: Any, request: ChatRequest) -> float:
    """P(A) by transformers' own pipeline in this process, of what the client sends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.pipelines import DecisionPipeline

    pipe = DecisionPipeline(model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
    sent = client.body(request)
    answers = pipe.postprocess(pipe.forward(pipe.preprocess({"state": sent["state"], "questions": sent["questions"], "assets": {}})))
    return float(answers["verdict"]["probabilities"]["A"])


@pytest.mark.slow
def test_transformers_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes logprobs, n, response_format, temperature and seed without a word, and answers greedily: the probe must see through it."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    monkeypatch.setattr(caller_module, "FIRST_PAUSE", 0.05)
    tiny_chat_model(tmp_path / "model")
    with transformers_serve(tmp_path / "model", tmp_path) as url:
        caller = Caller(OpenAIClient(url), concurrency=2, start_concurrency=1)
        capabilities = probe(caller, str(tmp_path / "model"))
        assert [getattr(capabilities, feature) for feature in FEATURES] == [False] * 5, capabilities.notes
        with pytest.raises(ConfigError, match=r"votes: 5: votes.* working sampling, which this one has not \(1 different answers of 4 at temperature 1\)"):
            capabilities.require("sampling", "votes: 5")
        with pytest.raises(ConfigError, match="label log-odds need an endpoint with working logprobs"):
            capabilities.require("logprobs", "the token judge")
        unknown = ChatRequest(str(tmp_path / "model"), ({"role": "user", "content": "?"},), extra={"structured_outputs": {"choice": ["A", "B"]}})
        (answer,) = caller.run([unknown])
        assert isinstance(answer, CallFailure) and answer.kind == "bad request" and "422" in answer.message
        decisions = Caller(DecisionClient(url), concurrency=2, start_concurrency=1)
        judge = ChatJudge(decisions, str(tmp_path / "model"), instructions=Instructions(PairPrompt("token")))
        (judgment,) = BothOrders(judge, "keep_mean").judge_pairs([Matchup("What is two and two?", "Four.", "Five.")])
        expected = decided_here(tmp_path / "model", decisions.client, judge.request(judge.render(Matchup("What is two and two?", "Four.", "Five."))))
        assert judgment.first.probability == pytest.approx(expected, abs=1e-5) and judgment.logit is not None and judgment.winner in ("a", "b")
    assert json.loads(json.dumps(capabilities.as_dict())) == capabilities.as_dict() | {"notes": list(capabilities.notes)}
