"""Our own dialect: an error for each bad item, rewards of tokens, steps and heads, calibrated rewards, comparisons, best of n."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.serving.conftest import STATISTICS, Serve, tiny_scorer

from palate.scoring.gated import Gate, GatedScorer, GateSettings
from palate.scoring.laplace import LaplaceScorer, Posterior
from palate.scoring.local import LocalScorer
from palate.scoring.uncertainty import HeadScorer, member_names
from palate.serving.worker import Served
from palate.types import Exchange, Readout, TokenIds

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]


def near(value: float) -> Any:
    return pytest.approx(value, abs=2e-6)


def rewards(answer: dict[str, Any]) -> list[float | None]:
    return [row["reward"] for row in answer["data"]]


def test_items_of_every_form_are_scored_as_the_scorer_does(serve: Serve, llama: LocalScorer) -> None:
    items = [
        {"messages": CHAT},
        {"prompt": "hi", "response": "hello there"},
        {"prompt": CHAT[:1], "response": CHAT[1:]},
        {"prompt": CHAT[:1], "response": "hello there"},
        {"text": "hello there"},
        {"input_ids": [5, 6, 7]},
    ]
    same = [CHAT, ("hi", "hello there"), (CHAT[:1], CHAT[1:]), (CHAT[:1], "hello there"), "hello there", TokenIds([5, 6, 7])]
    expected = llama.score(same)
    answer = serve(llama).post("/v1/rewards", {"items": items})
    assert rewards(answer) == [near(value) for value in expected] and len(set(expected.round(6).tolist())) >= 4
    assert answer["data"][0] == {"index": 0, "reward": near(expected[0]), "raw": near(expected[0]), "truncated": False}
    assert answer["model"] == "tiny" and answer["template_sha"] == llama.encoder.template_hash()
    assert answer["usage"]["prompt_tokens"] == sum(map(len, llama.encoder.encode([Exchange(*_split(item)) for item in same])))


def _split(item: Any) -> tuple[Any, Any]:
    if isinstance(item, (str, TokenIds)):
        return "", item
    prompt, response = item if isinstance(item, tuple) else (item[:-1], item[-1:])
    return tuple(part if isinstance(part, str) else tuple(part) for part in (prompt, response))  # type: ignore[return-value]


BAD = {
    "no form": ({"bad": 1}, "expected messages, prompt and response, text, or input_ids"),
    "null": (None, "expected messages"),
    "a number": (3, "expected messages"),
    "no response": ({"prompt": "a"}, "response: Field required"),
    "an unknown key": ({"text": "a", "mode": 1}, "mode: Extra inputs are not permitted"),
    "no messages": ({"messages": []}, "at least 1 item"),
    "a message without a role": ({"messages": [{"content": "a"}]}, "messages.0.role: Field required"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "type: Input should be 'text'"),
    "a lone surrogate": ({"text": "a\ud800"}, "the template or tokenizer refuses it"),
    "a huge id": ({"input_ids": [1, 10**30]}, "a token id is 1000000000000000000000000000000; the model knows 0 to "),
    "an id below 0": ({"input_ids": [-1]}, "a token id is -1"),
    "no ids": ({"input_ids": []}, "it is empty"),
    "ids of fractions": ({"input_ids": [1.5]}, "input_ids.0"),
    "too long": ({"text": "far too long " * 200}, "tokens, the model takes 256; shorten it, or start the server with --on-long truncate_prompt"),
    "a template of its own": ({"messages": CHAT, "template_args": {"chat_template": "{{ 1 }}"}}, "chat_template is not a client's to set"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_item_is_its_own_error(serve: Serve, llama: LocalScorer, name: str) -> None:
    item, said = BAD[name]
    served = serve(llama)
    body = json.dumps({"items": [{"text": "good"}, item, {"messages": CHAT}]})
    answer = served.client.post("/v1/rewards", content=body)
    assert answer.status_code == 200, answer.text
    first, bad, last = answer.json()["data"]
    assert first["reward"] == near(llama.score(["good"])[0]) and last["reward"] == near(llama.score([CHAT])[0])
    assert bad["reward"] is None and bad["raw"] is None and said in bad["error"] and bad["error_kind"]
    assert served.metrics.errors.labels(bad["error_kind"])._value.get() == 1


def test_a_template_that_refuses_or_breaks_is_the_error_of_one_item(serve: Serve) -> None:
    """Templates raise what they like on messages that they do not expect; nobody else's reward is lost."""
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ m.content + m.role }}{% endfor %}"
    scorer = tiny_scorer("llama", chat_template=template)
    items = [
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user"}]},
        {"messages": CHAT},
    ]
    answer = serve(scorer).post("/v1/rewards", {"items": items})
    refused, null, absent, good = answer["data"]
    assert "no system role" in refused["error"] and null["error"] and absent["error"] and good["reward"] == near(scorer.score([CHAT])[0])


def test_rewards_of_every_token(serve: Serve, llama: LocalScorer) -> None:
    """A decoder's reward at a token is that of the text that ends there; mixed with items that are read at their ends."""
    answer = serve(llama).post("/v1/rewards", {"items": [{"text": "hello there"}, {"input_ids": [5]}], "return": ["reward", "tokens"]})
    ids = llama.encoder.encode([Exchange("", "hello there")])[0]
    row = answer["data"][0]
    assert row["token_ids"] == ids and row["tokens"] == [near(float(llama.score_ids([ids[: n + 1]])[0])) for n in range(len(ids))]
    assert row["reward"] == row["tokens"][-1] and len(answer["data"][1]["tokens"]) == 1


def test_heads_by_name(serve: Serve) -> None:
    scorer = tiny_scorer("llama", readout=Readout(("helpfulness", "verbosity"), (1.0, -0.5)))
    row = serve(scorer).post("/v1/rewards", {"items": [{"messages": CHAT}], "return": ["heads"]})["data"][0]
    reward, (heads,) = scorer.score_detailed([CHAT])
    assert row["heads"] == {name: near(value) for name, value in heads.items()}
    assert row["reward"] == near(reward[0]) == near(row["heads"]["helpfulness"] - 0.5 * row["heads"]["verbosity"])


def test_step_rewards(serve: Serve) -> None:
    scorer = tiny_scorer("llama", readout=Readout(("wrong", "right"), (0.0, 1.0), "min"))
    chat = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "two plus two\nis four\nthree"}]
    served = serve(scorer)
    answer = served.post("/v1/rewards", {"items": [{"messages": chat}, {"input_ids": [5, 6]}], "return": ["steps", "tokens"]})
    (steps,) = scorer.score_steps([chat])
    row, ids = answer["data"]
    assert len(steps) == 3 and row["steps"] == [near(value) for value in steps] and row["reward"] == near(min(steps))
    assert len(row["tokens"]) == len(row["token_ids"]) and set(row["steps"]) < set(row["tokens"])
    assert ids["error_kind"] == "no_steps" and ids["reward"] is None
    plain = served.post("/v1/rewards", {"items": [{"messages": chat}]})["data"][0]
    assert plain["reward"] == near(min(steps)) and "steps" not in plain


def test_uncertainty_of_member_heads(serve: Serve) -> None:
    scorer = tiny_scorer("llama", readout=Readout(member_names(3), (1 / 3, 1 / 3, 1 / 3)), statistics=STATISTICS)
    head = HeadScorer(scorer)
    rewards, uncertainty = head.estimate([CHAT, "hello"])
    served = serve(Served(scorer, head))
    body = {"items": [{"messages": CHAT}, {"bad": 1}, {"text": "hello"}], "return": ["uncertainty", "heads"]}
    chat, bad, text = served.post("/v1/rewards", body)["data"]
    assert [chat["reward"], text["reward"]] == [near(value) for value in rewards] and bad["error"]
    assert [chat["uncertainty"], text["uncertainty"]] == [near(value) for value in uncertainty] and min(uncertainty) > 0
    assert chat["uncertainty"] == near(np.std(list(chat["heads"].values())))
    assert served.post("/v1/rewards", {**body, "calibrate": True})["data"][0]["uncertainty"] == near(uncertainty[0] / 0.5)
    assert "uncertainty" not in served.post("/v1/rewards", {"items": [{"text": "a"}]})["data"][0]


def test_uncertainty_of_a_posterior(serve: Serve, llama: LocalScorer) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(llama.width, llama.width))
    laplace = LaplaceScorer(llama, Posterior(root @ root.T + np.eye(llama.width), rng.normal(size=llama.width), {}))
    rewards, uncertainty = laplace.estimate([CHAT, "hello"])
    answer = serve(Served(llama, laplace)).post("/v1/rewards", {"items": [{"messages": CHAT}, {"text": "hello"}], "return": ["uncertainty", "tokens"]})
    assert [row["reward"] for row in answer["data"]] == [pytest.approx(value, abs=1e-5) for value in rewards]
    assert [row["uncertainty"] for row in answer["data"]] == [pytest.approx(value, rel=1e-4) for value in uncertainty]


def test_a_gate_makes_the_reward(serve: Serve) -> None:
    scorer = tiny_scorer("llama", readout=Readout(("helpfulness", "verbosity"), (0.5, 0.5)))
    torch.manual_seed(0)
    settings = GateSettings(scorer.readout.outputs, (0.1, 0.2), (0.5, 2.0), "verbosity", lambdas=(0.3, 0.0), hidden=(8,), temperature=1.0)
    gated = GatedScorer(scorer, Gate(scorer.width, 2, hidden=(8,), temperature=1.0), settings)
    other = [{"role": "user", "content": "what is the sea?"}, {"role": "assistant", "content": "water"}]
    expected, details = gated.score_detailed([CHAT, other])
    served = serve(Served(scorer, gated))
    body = {"items": [{"messages": CHAT}, {"text": "no prompt"}, {"messages": other}, {"input_ids": [5]}], "return": ["heads"]}
    first, whole, second, ids = served.post("/v1/rewards", body)["data"]
    assert [first["reward"], second["reward"]] == [near(value) for value in expected] and expected[0] != near(scorer.score([CHAT])[0])
    assert first["gate"] == {name: near(value) for name, value in details[0]["gate"].items()} and first["heads"]["helpfulness"] == near(
        details[0]["helpfulness"]
    )
    assert all("gate reads the prompt" in one["error"] for one in (whole, ids))
    assert served.post("/classify", {"messages": CHAT})["data"][0]["probs"] == [near(expected[0])]
    assert served.client.post("/classify", json={"input": "whole text"}).status_code == 400


def test_what_a_model_does_not_give_is_said(serve: Serve, llama: LocalScorer) -> None:
    client = serve(llama).client
    for part, said in (("steps", "rewards whole responses"), ("uncertainty", "states no uncertainty"), ("colour", "Input should be")):
        answer = client.post("/v1/rewards", json={"items": [{"text": "a"}], "return": [part]})
        assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_calibrated_rewards_are_those_of_the_contract(serve: Serve, llama: LocalScorer) -> None:
    scorer = tiny_scorer("llama", statistics=STATISTICS)
    raw = float(scorer.score(["hello"])[0])
    answer = serve(scorer).post("/v1/rewards", {"items": [{"text": "hello"}], "calibrate": True, "return": ["tokens"]})
    assert answer["data"][0]["raw"] == near(raw) and answer["data"][0]["reward"] == near((raw - 0.25) / 0.5) == near(answer["data"][0]["tokens"][-1])
    without = serve(llama).client.post("/v1/rewards", json={"items": [{"text": "hello"}], "calibrate": True})
    assert without.status_code == 400 and "palate eval --record" in without.json()["error"]["message"]


def test_what_was_cut_is_said(serve: Serve) -> None:
    """Policy truncate_prompt: the prompt's start goes, never the response."""
    scorer = tiny_scorer("llama", max_length=40)
    long = [{"role": "user", "content": "word " * 100}, CHAT[1]]
    served = serve(scorer, on_long="truncate_prompt")
    answer = served.client.post("/v1/rewards", json={"items": [{"messages": long}, {"messages": CHAT}, {"prompt": "a", "response": "word " * 100}]})
    cut, whole, response = answer.json()["data"]
    assert cut["truncated"] is True and cut["reward"] == near(float(scorer.score([long], on_long="truncate_prompt")[0]))
    assert whole["truncated"] is False and response["error_kind"] == "too_long" and "its response alone does not fit" in response["error"]
    assert answer.headers["X-Truncated"] == "1"
    assert served.metrics.truncated.labels("tiny")._value.get() == 1


def test_variables_of_the_template(serve: Serve) -> None:
    scorer = tiny_scorer("llama", chat_template="{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}")
    answer = serve(scorer).post("/v1/rewards", {"items": [{"messages": CHAT, "template_args": {"mood": "glad"}}, {"messages": CHAT}]})
    expected = scorer.score([Exchange(tuple(CHAT[:1]), tuple(CHAT[1:]), {"mood": "glad"}), CHAT])
    assert rewards(answer) == [near(value) for value in expected] and expected[0] != expected[1]


def test_no_items_and_wrong_envelopes(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    assert served.post("/v1/rewards", {"items": []})["data"] == []
    for body in ({"items": "text"}, {"items": {"a": 1}}, {"items": None}, {"items": [], "modell": "x"}, {"items": [], "calibrate": "perhaps"}):
        answer = served.client.post("/v1/rewards", json=body)
        assert answer.status_code == 400, body


def test_compare(serve: Serve, llama: LocalScorer) -> None:
    scorer = tiny_scorer("llama", statistics=STATISTICS)
    a, b, c = (float(x) for x in scorer.score([("q", "one"), ("q", "two"), (CHAT[:1], "hello")]))
    served = serve(scorer)
    answer = served.post("/v1/compare", {"prompt": "q", "responses": ["one", "two"]})
    assert answer["data"] == [{"index": 0, "probability": near(1 / (1 + math.exp(-(a - b) / 2.0))), "margin": near(a - b), "rewards": [near(a), near(b)]}]
    assert answer["temperature"] == 2.0 and answer["calibrated"] is True
    pairs = [{"prompt": "q", "responses": ["two", "one"]}, {"prompt": CHAT[:1], "responses": ["hello", "x" * 2000]}, {"prompt": "q", "responses": ["a"]}, 7]
    back, long, single, number = served.post("/v1/compare", {"pairs": pairs})["data"]
    assert back["probability"] == near(1 - answer["data"][0]["probability"])
    assert long["probability"] is None and long["rewards"] == [near(c), None] and "response 1: it has" in long["error"]
    assert "a comparison has two responses, got 1" in single["error"] and number["error"]
    uncalibrated = serve(llama).post("/v1/compare", {"prompt": "q", "responses": ["one", "two"]})
    assert uncalibrated["temperature"] == 1.0 and uncalibrated["calibrated"] is False
    for body in ({"prompt": "q", "responses": ["a"]}, {"prompt": "q", "responses": ["a", "b"], "pairs": []}, {"pairs": 3}):
        assert served.client.post("/v1/compare", json=body).status_code == 400, body


def test_best_of_n(serve: Serve, llama: LocalScorer) -> None:
    texts = ["one", "x" * 2000, "two is more", "three of them"]
    known = llama.score([("count", text) for text in (texts[0], *texts[2:])])
    answer = serve(llama).post("/v1/best_of_n", {"prompt": "count", "responses": texts})
    order = [(0, 2, 3)[i] for i in np.argsort(-known)]
    assert answer["order"] == order and answer["best"] == order[0]
    assert answer["rewards"] == [near(known[0]), None, near(known[1]), near(known[2])] and list(answer["errors"]) == ["1"]
    lost = serve(llama).post("/v1/best_of_n", {"prompt": "q", "responses": ["x" * 2000]})
    assert lost["best"] is None and lost["order"] == []
    assert serve(llama).client.post("/v1/best_of_n", json={"prompt": "q", "responses": []}).status_code == 400


def test_equal_items_tie_exactly(serve: Serve, llama: LocalScorer) -> None:
    answer = serve(llama).post("/v1/rewards", {"items": [{"text": "the same"}, {"text": "another"}] * 20})
    assert len({row["reward"] for row in answer["data"][::2]}) == 1


def test_a_model_that_gives_no_number_is_an_error_of_the_item(serve: Serve) -> None:
    scorer = tiny_scorer("llama")
    served = serve(scorer)
    embeddings: Any = scorer.model.get_input_embeddings()
    embeddings.weight.data[7] = float("nan")
    good, bad = served.post("/v1/rewards", {"items": [{"input_ids": [5, 6]}, {"input_ids": [7]}]})["data"]
    assert good["reward"] is not None and bad["error_kind"] == "not_finite" and bad["reward"] is None
    assert served.client.post("/classify", json={"input": [7]}).status_code == 500
