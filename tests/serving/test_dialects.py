"""Literal bodies of clients, answered as the imitated servers would: rewards of token ids that are worked out here by the tokenizer alone."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import Serve, tiny_scorer

from palate.scoring import remote
from palate.scoring.local import LocalScorer
from palate.scoring.remote import RemoteScorer
from palate.types import Readout

CHAT = [{"role": "user", "content": "what is the capital of france?"}, {"role": "assistant", "content": "paris is the capital."}]
TEXT = "[user] what is the capital? </s>[assistant] paris </s>"


def reward(scorer: LocalScorer, ids: list[int]) -> float:
    return float(scorer.score_ids([ids])[0])


def plain(scorer: LocalScorer, text: str) -> list[int]:
    return list(scorer.tokenizer(text, add_special_tokens=False)["input_ids"])


def framed(scorer: LocalScorer, text: str) -> list[int]:
    """With what the tokenizer adds: <s> in front."""
    ids = list(scorer.tokenizer(text)["input_ids"])
    assert ids == [scorer.tokenizer.bos_token_id, *plain(scorer, text)]
    return ids


def near(value: float) -> Any:
    return pytest.approx(value, abs=2e-6)


# --- vLLM ---------------------------------------------------------------------------------------------------------------------------------------


def test_verl_asks_vllm(serve: Serve, llama: LocalScorer) -> None:
    """verl strips BOS, leaves it to the server, sends the stale `activation`, and reads data[-1].probs[-1]: the raw reward."""
    answer = serve(llama).post("/classify", {"model": "tiny", "input": TEXT, "activation": False})
    assert answer["data"][-1]["probs"][-1] == near(reward(llama, framed(llama, TEXT)))
    assert reward(llama, framed(llama, TEXT)) != near(reward(llama, plain(llama, TEXT)))  # BOS decides
    assert answer["object"] == "list" and answer["id"].startswith("classify-") and answer["model"] == "tiny" and isinstance(answer["created"], int)
    assert answer["data"][0] == {"index": 0, "label": "reward", "probs": answer["data"][0]["probs"], "num_classes": 1}
    assert answer["usage"] == {"prompt_tokens": len(framed(llama, TEXT)), "total_tokens": len(framed(llama, TEXT)), "completion_tokens": 0}


def test_bos_is_never_doubled(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    for path, body, read in (
        ("/classify", {"input": "<s>" + TEXT}, lambda a: a["data"][0]["probs"][0]),
        ("/v1/embeddings", {"input": "<s>" + TEXT}, lambda a: a["data"][0]["embedding"][0]),
        ("/predict", {"inputs": "<s>" + TEXT, "raw_scores": True}, lambda a: a[0]["score"]),
    ):
        assert read(served.post(path, body)) == near(reward(llama, framed(llama, TEXT))), path


def test_vllm_inputs_in_four_shapes(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    one, two = framed(llama, "the fox"), framed(llama, "the dog runs")
    expected = [near(reward(llama, one)), near(reward(llama, two))]
    for given in (["the fox", "the dog runs"], [one, two]):
        answer = served.post("/classify", {"input": given})
        assert [row["probs"][0] for row in answer["data"]] == expected and [row["index"] for row in answer["data"]] == [0, 1]
    assert [row["probs"][0] for row in served.post("/classify", {"input": two})["data"]] == expected[1:]
    bare = served.post("/classify", {"input": "the fox", "add_special_tokens": False})
    assert bare["data"][0]["probs"][0] == near(reward(llama, plain(llama, "the fox")))


def test_vllm_messages_are_rendered_once(serve: Serve, llama: LocalScorer) -> None:
    """The template writes BOS; the tokenizer adds none."""
    rendered = llama.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert rendered.startswith("<s>")
    answer = serve(llama).post("/classify", {"model": "tiny", "messages": CHAT, "use_activation": False})
    assert answer["data"][0]["probs"] == [near(reward(llama, plain(llama, rendered)))]
    assert answer["data"][0]["probs"] == [near(llama.score([CHAT])[0])]


def test_vllm_parts_of_text_are_joined(serve: Serve, llama: LocalScorer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, CHAT[1]]
    answer = serve(llama).post("/classify", {"messages": parts})
    assert answer["data"][0]["probs"] == [near(llama.score([[{"role": "user", "content": "a\nb"}, CHAT[1]]])[0])]


@pytest.mark.parametrize(("field", "on"), [({}, False), ({"use_activation": False}, False), ({"use_activation": True}, True), ({"activation": True}, True)])
def test_a_sigmoid_only_on_request(serve: Serve, llama: LocalScorer, field: dict[str, bool], on: bool) -> None:
    raw = reward(llama, framed(llama, TEXT))
    answer = serve(llama).post("/classify", {"input": TEXT, **field})
    assert answer["data"][0]["probs"] == [near(1 / (1 + math.exp(-raw)) if on else raw)]


def test_vllm_truncates_as_asked(serve: Serve, llama: LocalScorer) -> None:
    ids = framed(llama, TEXT)
    served = serve(llama)
    left = served.client.post("/classify", json={"input": TEXT, "truncate_prompt_tokens": 6})
    assert left.json()["data"][0]["probs"] == [near(reward(llama, [ids[0], *ids[-5:]]))] and left.headers["X-Truncated"] == "1"
    right = served.post("/classify", {"input": TEXT, "truncate_prompt_tokens": 6, "truncation_side": "right"})
    assert right["data"][0]["probs"] == [near(reward(llama, ids[:6]))]
    whole = served.client.post("/classify", json={"input": TEXT, "truncate_prompt_tokens": -1})
    assert whole.json()["data"][0]["probs"] == [near(reward(llama, ids))] and "X-Truncated" not in whole.headers


@pytest.mark.parametrize(
    "body",
    [
        {"input": "a", "messages": CHAT},
        {"messages": CHAT, "chat_template": "{{ 1 }}"},
        {"messages": CHAT, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"messages": CHAT, "chat_template_kwargs": {"tokenize": True}},
        {"messages": CHAT, "add_generation_prompt": True},
        {"messages": []},
        {"input": []},
        {"input": ["a", 3]},
        {"input": ""},
        {"input": [[1, 2], []]},
        {"input": [1, 10**9]},
        {"input": [-1]},
        {"input": "far too long " * 200},
        {"input": "a", "truncate_prompt_tokens": -2},
        {"input": "a", "truncate_prompt_tokens": 0},
    ],
)
def test_vllm_refuses_in_its_words(serve: Serve, body: dict[str, Any]) -> None:
    if body.get("input") == "":
        body = {"input": "", "add_special_tokens": False}  # with them it is BOS alone, which vLLM scores
    answer = serve(tiny_scorer("llama")).client.post("/classify", json=body)
    assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "code"}, answer.text


def test_vllm_knows_its_models(serve: Serve, llama: LocalScorer) -> None:
    answer = serve(llama).client.post("/classify", json={"model": "gpt-5", "input": "a"})
    assert answer.status_code == 404 and "no model is called 'gpt-5'; there are tiny" in answer.json()["error"]["message"]


def test_vllm_pooling(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    ids = framed(llama, TEXT)
    answer = served.post("/pooling", {"input": TEXT})
    assert answer["data"] == [{"index": 0, "object": "pooling", "data": [near(reward(llama, ids))]}]
    every = served.post("/pooling", {"input": TEXT, "task": "token_classify"})["data"][0]["data"]
    assert [row[0] for row in every] == [near(reward(llama, ids[: n + 1])) for n in range(len(ids))]  # a decoder's prefix is scored as if it ended there
    packed = served.post("/pooling", {"input": TEXT, "encoding_format": "base64"})["data"][0]["data"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == [near(reward(llama, ids))]
    assert served.client.post("/pooling", json={"input": TEXT, "task": "embed"}).status_code == 400


def question(scorer: LocalScorer, prompt: str, response: str) -> float:
    return float(scorer.score([[{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]])[0])


def test_vllm_scores_prompt_and_response_through_the_template(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    a, b, c = (near(question(llama, *pair)) for pair in (("q", "one"), ("q", "two"), ("r", "two")))
    for names in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        answer = served.post("/score", {"model": "tiny", names[0]: "q", names[1]: ["one", "two"]})
        assert [row["score"] for row in answer["data"]] == [a, b] and answer["data"][0]["object"] == "score"
    assert [row["score"] for row in served.post("/v1/score", {"text_1": ["q", "r"], "text_2": ["one", "two"]})["data"]] == [a, c]
    assert [row["score"] for row in served.post("/score", {"text_1": "q", "text_2": "one"})["data"]] == [a]
    assert served.client.post("/score", json={"text_1": ["q", "r"], "text_2": ["a", "b", "c"]}).status_code == 400


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_jina_and_cohere_rerank(serve: Serve, llama: LocalScorer, path: str) -> None:
    texts = ["one", "two is more", "three of them"]
    rewards = [question(llama, "count", text) for text in texts]
    order = sorted(range(3), key=lambda i: -rewards[i])
    answer = serve(llama).post(path, {"model": "tiny", "query": "count", "documents": [texts[0], {"text": texts[1]}, texts[2]], "top_n": 2})
    assert [row["index"] for row in answer["results"]] == order[:2]
    assert answer["results"][0] == {"index": order[0], "document": {"text": texts[order[0]]}, "relevance_score": near(rewards[order[0]])}
    assert set(answer) == {"id", "model", "usage", "results"}


# --- SGLang -------------------------------------------------------------------------------------------------------------------------------------


def test_verl_asks_sglang(serve: Serve, llama: LocalScorer) -> None:
    """verl reads data[-1].embedding[-1]; the name it sends is that of the checkpoint on its own disk."""
    answer = serve(llama).post("/v1/embeddings", {"input": TEXT, "model": "/models/my-rm", "activation": False})
    assert answer["data"][-1]["embedding"][-1] == near(reward(llama, framed(llama, TEXT)))
    assert answer["object"] == "list" and answer["data"][0]["object"] == "embedding" and answer["data"][0]["index"] == 0


def test_sglang_and_vllm_share_a_path(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    single = served.post("/classify", {"text": "the fox"})
    assert single["embedding"] == [near(reward(llama, framed(llama, "the fox")))] and single["meta_info"]["prompt_tokens"] == len(framed(llama, "the fox"))
    several = served.post("/classify", {"text": ["the fox", "the dog"]})
    assert [row["embedding"] for row in several] == [[near(reward(llama, framed(llama, text)))] for text in ("the fox", "the dog")]
    ids = plain(llama, "the fox")
    assert served.post("/classify", {"input_ids": ids})["embedding"] == [near(reward(llama, ids))]
    assert served.post("/classify", {"input_ids": [ids]})[0]["embedding"] == [near(reward(llama, ids))]
    assert "probs" in served.post("/classify", {"input": "the fox"})["data"][0]
    neither = served.client.post("/classify", json={"txt": "a"})
    assert neither.status_code == 400 and "input / messages; or text / input_ids; got 'txt'" in neither.json()["error"]["message"]


# --- OpenRLHF, LLaMA-Factory, slime, NIM --------------------------------------------------------------------------------------------------------


def test_openrlhf_client(serve: Serve, llama: LocalScorer) -> None:
    """One EOS at the end whatever came, no pad tokens, nothing in front; the client sends one sample a call."""
    pad = llama.tokenizer.pad_token
    served = serve(llama)
    expected = near(reward(llama, [*plain(llama, "<s> hello there"), llama.tokenizer.eos_token_id]))
    for query in ("<s> hello there", "<s> hello there</s>", f"{pad}{pad}<s> hello there</s></s>{pad}"):
        answer = served.post("/get_reward", {"query": [query], "prompts": ["hello"], "labels": [None]})
        assert answer == {"rewards": [expected], "scores": [expected], "extra_logs": {"truncated": [0.0]}}, query


def test_openrlhf_client_may_send_its_key_in_its_own_header(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama, api_key="secret")
    assert served.post("/get_reward", {"query": ["a"]}, headers={"X-Api-Key": "secret"})["rewards"]


def test_llama_factory_ppo(serve: Serve, llama: LocalScorer) -> None:
    texts = ["<s>[user] hi </s>[assistant] hello </s>", "no bos here"]
    answer = serve(llama).post("/v1/score/evaluation", {"model": "model", "messages": texts})
    assert answer["scores"] == [near(reward(llama, plain(llama, text))) for text in texts]
    assert answer["object"] == "score.evaluation" and answer["model"] == "model"
    short = serve(llama).client.post("/v1/score/evaluation", json={"model": "model", "messages": texts, "max_length": 4})
    assert short.json()["scores"] == [near(reward(llama, plain(llama, text)[:4])) for text in texts] and short.headers["X-Truncated"] == "2"


def test_slime_reads_a_bare_number(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    asked = served.post("/slime", {"prompt": "count", "response": "one two", "label": "3"})
    assert asked == near(question(llama, "count", "one two"))
    chat = served.post("/slime", {"prompt": CHAT[:1], "response": CHAT[1]["content"] + "</s>", "label": None})
    assert chat == near(llama.score([CHAT])[0])
    rendered = llama.tokenizer.apply_chat_template(CHAT[:1], tokenize=False)
    joined = served.post("/slime", {"prompt": rendered, "response": "[assistant] paris </s>", "label": None})
    assert joined == near(reward(llama, plain(llama, rendered + "[assistant] paris </s>")))


def test_nim_chat(serve: Serve, llama: LocalScorer) -> None:
    answer = serve(llama).post("/v1/chat/completions", {"model": "tiny", "messages": CHAT})
    said = answer["choices"][0]["message"]
    assert said["role"] == "assistant"
    assert {name: float(value) for name, value in (part.split(":") for part in said["content"].split(","))} == {"reward": near(llama.score([CHAT])[0])}
    assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == near(llama.score([CHAT])[0]) and answer["object"] == "chat.completion"
    assert serve(llama).client.post("/v1/chat/completions", json={"messages": CHAT, "stream": True}).status_code == 400


def test_nim_names_every_head(serve: Serve) -> None:
    scorer = tiny_scorer("llama", readout=Readout(("helpfulness", "verbosity"), (1.0, -0.5)))
    said = serve(scorer).post("/v1/chat/completions", {"messages": CHAT})["choices"][0]["message"]["content"]
    outputs = scorer.outputs([CHAT])[0]
    assert dict(part.split(":") for part in said.split(",")).keys() == {"helpfulness", "verbosity"}
    assert [float(part.split(":")[1]) for part in said.split(",")] == [near(value) for value in outputs]


# --- TEI ----------------------------------------------------------------------------------------------------------------------------------------


def test_tei_predict_in_three_shapes(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    raw, pair = reward(llama, framed(llama, "the fox")), question(llama, "count", "one")
    assert served.post("/predict", {"inputs": "the fox", "raw_scores": True}) == [{"score": near(raw), "label": "reward"}]
    assert served.post("/predict", {"inputs": "the fox"}) == [{"score": near(1 / (1 + math.exp(-raw))), "label": "reward"}]
    assert served.post("/predict", {"inputs": ["count", "one"], "raw_scores": True}) == [{"score": near(pair), "label": "reward"}]
    batch = served.post("/predict", {"inputs": [["the fox"], ["count", "one"]], "raw_scores": True})
    assert [row[0]["score"] for row in batch] == [near(raw), near(pair)]


def test_tei_rerank(serve: Serve, llama: LocalScorer) -> None:
    texts = ["one", "two is more", "three of them"]
    rewards = [question(llama, "count", text) for text in texts]
    order = sorted(range(3), key=lambda i: -rewards[i])
    answer = serve(llama).post("/rerank", {"query": "count", "texts": texts, "raw_scores": True, "return_text": True})
    assert answer == [{"index": i, "score": near(rewards[i]), "text": texts[i]} for i in order]
    assert "text" not in serve(llama).post("/rerank", {"query": "count", "texts": texts})[0]


def test_tei_refuses_in_its_words(serve: Serve, llama: LocalScorer) -> None:
    served = serve(llama)
    long = served.client.post("/predict", json={"inputs": "far too long " * 200})
    assert long.status_code == 413 and long.json()["error_type"] == "Validation" and "the model takes 256" in long.json()["error"]
    cut = served.client.post("/predict", json={"inputs": "far too long " * 200, "truncate": True, "raw_scores": True})
    assert cut.json()[0]["score"] == near(reward(llama, framed(llama, "far too long " * 200)[:256])) and cut.headers["X-Truncated"] == "1"
    for body in ({"inputs": ["a", "b", "c"]}, {"inputs": 3}, {"inputs": []}, {"inputs": [["a"], []]}):
        assert served.client.post("/predict", json=body).status_code == 422, body


# --- encoders -----------------------------------------------------------------------------------------------------------------------------------


def test_an_encoder_is_framed_at_both_ends(serve: Serve) -> None:
    """[CLS] text [SEP] by the tokenizer; written out by the client they are not doubled. Pairs are plain text: there is no template."""
    scorer = tiny_scorer("bert")
    served = serve(scorer)
    ids = list(scorer.tokenizer("the fox")["input_ids"])
    assert ids == [scorer.tokenizer.cls_token_id, *plain(scorer, "the fox"), scorer.tokenizer.sep_token_id]
    for text in ("the fox", "[CLS]the fox[SEP]"):
        assert served.post("/classify", {"input": text})["data"][0]["probs"] == [near(reward(scorer, ids))]
    assert served.post("/rerank", {"query": "q", "texts": ["a"], "raw_scores": True})[0]["score"] == near(scorer.score([("q", "a")])[0])
    tokens = served.client.post("/pooling", json={"input": "a", "task": "token_classify"})
    assert tokens.status_code == 400 and "this model is an encoder" in tokens.text
    chat = served.client.post("/classify", json={"messages": CHAT})
    assert chat.status_code == 400 and "input 0: this model has no chat template: send prompt and response as texts" in chat.text


# --- our own client -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(serve: Serve, llama: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RemoteScorer]:
    """A RemoteScorer of the app in this process."""
    served = serve(llama, max_items=40)

    def send(method: str, url: str, body: Any, timeout: float, key: str | None) -> remote.Answer:
        answer = served.client.request(method, url.removeprefix("http://app"), json=body)
        return remote.Answer(answer.status_code, answer.text, answer.headers.get("Retry-After", ""))

    monkeypatch.setattr(remote, "_send", send)
    return lambda **options: RemoteScorer("http://app", **options)


@pytest.mark.parametrize("protocol", ["auto", *remote.PROTOCOLS])
def test_whole_texts_get_one_reward_in_every_protocol(client: Callable[..., RemoteScorer], llama: LocalScorer, protocol: str) -> None:
    """Rendered by the model's template, BOS and EOS in it: no dialect doubles or drops one, so all give the reward of these very ids."""
    texts = [str(llama.tokenizer.apply_chat_template(chat, tokenize=False)) for chat in (CHAT, [CHAT[0], {"role": "assistant", "content": "two"}])]
    assert all(text.startswith("<s>") and text.endswith("</s>") for text in texts)
    scorer = client(protocol=protocol)
    assert scorer.protocol_name == (protocol if protocol != "auto" else "palate")
    assert scorer.score(texts).tolist() == [near(reward(llama, plain(llama, text))) for text in texts]
    assert np.isnan(scorer.score([texts[0], "far too long " * 200], on_long="nan")).tolist() == [False, True]


@pytest.mark.parametrize("protocol", ["palate", "vllm"])
def test_chats_are_rendered_by_the_server(client: Callable[..., RemoteScorer], llama: LocalScorer, protocol: str) -> None:
    """A hundred of them, which our own server is sent in batches: it takes 40 at most, so those of 64 are halved."""
    chats = [[CHAT[0], {"role": "assistant", "content": f"the {'very ' * (i % 40)}end"}] for i in range(100)]
    assert client(protocol=protocol, concurrency=4).score(chats).tolist() == [near(value) for value in llama.score(chats)]
