"""Decisions as answers: what is sent, log-odds by hand, what is no decision, and a judge of both orders over them."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from palate.cli.main import main
from palate.errors import ConfigError
from palate.judging.caller import Caller
from palate.judging.calls import CallFailure, ChatRequest
from palate.judging.combining import BothOrders
from palate.judging.decision_client import DecisionClient
from palate.judging.judge import ChatJudge, Instructions
from palate.judging.prompts import PairPrompt
from palate.types import Matchup

seen: list[httpx2.Request] = []


def client(*probabilities: float, content: Any = None) -> DecisionClient:
    """A server that gives A these probabilities one after the other, or this content."""
    seen.clear()

    def answer(request: httpx2.Request) -> httpx2.Response:
        p = probabilities[len(seen)] if probabilities else 0.5
        seen.append(request)
        decided = {"type": "choice", "choice": "A" if p >= 0.5 else "B", "confidence": 0.0, "probabilities": {"A": p, "B": 1 - p}}
        return httpx2.Response(200, json=content or {"model": "m", "answers": {"verdict": decided}, "usage": {"input_tokens": 7, "output_tokens": 0}})

    return DecisionClient("http://judge.test/v1", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)))


def judge_of(decisions: DecisionClient) -> ChatJudge:
    return ChatJudge(Caller(decisions, concurrency=1, start_concurrency=1, attempts=1), "m", instructions=Instructions(PairPrompt("token")))


def test_both_orders_lose_the_position() -> None:
    """Log-odds of A 2 + 1 where the better one is first, -2 + 1 where it is second: 2 for it, 1 for the first place."""
    first, second = (1 / (1 + math.exp(-logit)) for logit in (3.0, -1.0))
    (judgment,) = BothOrders(judge_of(client(first, second)), "keep_mean").judge_pairs([Matchup("Why?", "good", "bad")])
    assert (judgment.logit, judgment.position, judgment.winner) == (pytest.approx(2.0), pytest.approx(1.0), "a")
    sent = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://judge.test/v1/systemone" and sent["model"] == "m" and sent.keys() == {"model", "state", "questions"}
    assert sent["questions"] == {"verdict": {"type": "choice", "criteria": {"A": "Response A is better.", "B": "Response B is better."}}}
    assert "good" in sent["state"] and "You compare two responses" in sent["state"]


def test_a_probability_of_one_is_a_verdict() -> None:
    (verdict,) = judge_of(client(1.0)).compare([Matchup("Why?", "good", "bad")])
    assert verdict.winner == "a" and verdict.logit == pytest.approx(math.log(1e4), abs=1e-3)


def test_what_is_no_decision_is_a_failure() -> None:
    for content in ({"answers": {}}, {"answers": {"verdict": {"type": "noul", "noul": 0.5}}}, {"error": "no"}, [1]):
        (verdict,) = judge_of(client(content=content)).compare([Matchup("Why?", "good", "bad")])
        assert verdict.winner == "invalid" and "expected a decision" in verdict.reason


def test_words_are_not_asked_for() -> None:
    decisions = client()
    with pytest.raises(ConfigError, match="writes nothing; ask in the form `token`"):
        Caller(decisions, attempts=1).run([ChatRequest("m", ({"role": "user", "content": "?"},))])
    assert decisions.endpoint == "http://judge.test/v1/systemone" and not seen


def test_an_endpoint_without_decisions_says_so() -> None:
    (answer,) = Caller(DecisionClient("http://127.0.0.1:9/v1"), attempts=1).run([judge_of(client()).request(judge_of(client()).render(Matchup("p", "a", "b")))])
    assert isinstance(answer, CallFailure) and answer.kind == "connection"


class Server(BaseHTTPRequestHandler):
    """Decides for the response that says it is good, at nine to one."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/systemone" and sent["model"] == "m"
        first = sent["state"].index("good") < sent["state"].index("bad")
        probabilities = {"A": 0.9, "B": 0.1} if first else {"A": 0.1, "B": 0.9}
        decided = {"type": "choice", "choice": max(probabilities, key=probabilities.__getitem__), "probabilities": probabilities}
        content = json.dumps({"model": "m", "answers": {"verdict": decided}, "usage": {"input_tokens": 9}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_commands(tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Log-odds of log 9 make margins of as much; contradictions are kept by their mean where nothing is said."""
    monkeypatch.chdir(tmp_path)
    data = str(write_jsonl([{"prompt": f"p{k}", "responses": [f"a good {k}", f"a bad {k}"]} for k in range(8)], "responses.jsonl"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge = ["--judge", "decision:m", "--base-url", f"http://127.0.0.1:{server.server_port}/v1", "--canaries", "0"]
        assert main(["build", "--data", data, "--output", "prefs.jsonl", *judge, "--dry-run"]) == 0 and "16 calls" in capsys.readouterr().out
        assert main(["build", "--data", data, "--output", "prefs.jsonl", *judge]) == 0
        server.shutdown()
    rows = [json.loads(line) for line in Path("prefs.jsonl").read_text().splitlines()]
    provenance = json.loads(Path("prefs.card.json").read_text())["provenance"]
    assert [row["chosen"] for row in rows] == [f"a good {k}" for k in range(8)] and [row["logit"] for row in rows] == pytest.approx([math.log(9)] * 8)
    assert (provenance["judge"], provenance["policy"], provenance["variant"]) == ("m", "keep_mean", "token") and "systemone" in provenance["endpoint"]


def test_flags_that_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["judge", "audit", "--data", "sample", "--judge", "decision:m", "--base-url", "http://127.0.0.1:9/v1", "--cache", str(tmp_path / "a.sqlite")]
    for given in (["--form", "json"], ["--style", "rating"]):
        assert main([*common, *given]) == 2 and "says A or B by log-odds" in " ".join(capsys.readouterr().err.split())
