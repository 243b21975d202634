"""vLLM's dialect (0.33): /classify, /pooling, /score, /rerank. Rewards are raw, as of a checkpoint with `problem_type: regression`.

Text (`input`) gets the special tokens of the tokenizer, and of those the first and last only once; messages go through the model's template. Sources:
vllm/entrypoints/pooling/{classify,pooling,score}/protocol.py; the Cohere and Jina shapes of reranking are those that vLLM serves.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictInt, model_validator

from palate.errors import DataError
from palate.serving.gateway import Gateway, Usage, num_tokens, reply, usage
from palate.serving.hosting import Hosted
from palate.serving.messages import Chat, check_template_args, conversation
from palate.serving.pieces import Piece, messages_exchange, turn_exchange
from palate.serving.routes import Body, Refusal, Reply, Route, sigmoid
from palate.serving.worker import Scored
from palate.types import Exchange, TokenIds

Texts = str | list[StrictInt] | list[str] | list[list[StrictInt]]


class Activated(Body):
    """`use_activation` asks for a sigmoid; `activation` is its old name, which verl still sends."""

    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None

    def activated(self, reward: float) -> float:
        asked = self.use_activation if self.use_activation is not None else self.activation
        return sigmoid(reward) if asked else reward


class Inputs(Activated):
    """One or several texts (or token ids) as `input`, or one chat as `messages`."""

    input: Texts | None = None
    add_special_tokens: bool | None = None  # on for input, off for messages (whose template writes them)
    truncate_prompt_tokens: int | None = Field(None, ge=-1)  # -1: what the model takes
    truncation_side: Literal["left", "right"] | None = None
    messages: Chat | None = Field(None, min_length=1)
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Inputs:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give input or messages")
        if self.chat_template is not None or self.continue_final_message or self.add_generation_prompt:
            raise ValueError("chat_template, continue_final_message and add_generation_prompt are refused: a reward is read where training read it")
        return self

    def pieces(self, hosted: Hosted) -> list[Piece]:
        if self.messages is not None:
            try:
                check_template_args(self.chat_template_kwargs or {})
            except DataError as error:
                raise Refusal(400, "malformed", str(error)) from error
            return [Piece(messages_exchange(conversation(self.messages), self.chat_template_kwargs))]
        limit = hosted.scorer.encoder.max_length if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        framing: Any = "bare" if self.add_special_tokens is False else "tokenizer"
        side: Any = self.truncation_side or "left"
        return [
            Piece(Exchange("", one if isinstance(one, str) else TokenIds(one)), framing if isinstance(one, str) else "contract", limit=limit, cut=side)
            for one in self._each()
        ]

    def _each(self) -> Sequence[str | list[int]]:
        given = self.input
        if isinstance(given, str):
            return [given]
        assert given is not None
        return [given] if given and isinstance(given[0], int) else given  # type: ignore[return-value]


class Classified(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class ListReply(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class ClassifyReply(ListReply):
    data: list[Classified]


async def classify(gateway: Gateway, body: Inputs) -> Reply:
    hosted = gateway.models.get(body.model)
    found = await gateway.rewards(hosted, body.pieces(hosted))
    data = [{"index": i, "label": "reward", "probs": [body.activated(one.reward)], "num_classes": 1} for i, one in enumerate(found)]
    return reply(listed("classify", hosted, data, found), found)


class PoolingRequest(Inputs):
    task: Literal["classify", "token_classify"] | None = None  # the last reward, or that of every token
    encoding_format: Literal["float", "base64"] = "float"


class Pooled(BaseModel):
    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PoolingReply(ListReply):
    data: list[Pooled]


async def pooling(gateway: Gateway, body: PoolingRequest) -> Reply:
    hosted = gateway.models.get(body.model)
    every = body.task == "token_classify"
    found = await gateway.rewards(hosted, [piece._replace(every_token=every) for piece in body.pieces(hosted)])
    data = []
    for i, one in enumerate(found):
        values = [[body.activated(reward)] for reward in one.tokens or []] if every else [body.activated(one.reward)]
        data.append({"index": i, "object": "pooling", "data": values if body.encoding_format == "float" else _base64(values)})
    return reply(listed("pool", hosted, data, found), found)


def _base64(values: Any) -> str:
    return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()


def listed(prefix: str, hosted: Hosted, data: list[Any], found: Sequence[Scored]) -> dict[str, Any]:
    """vLLM's envelope."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": hosted.name,
        "data": data,
        "usage": usage(found),
    }


# --- pairs of texts: a prompt and its responses -------------------------------------------------------------------------------------------------


class ScoreRequest(Activated):
    """`text_1` and `text_2` by any of vLLM's names: 1 to 1, 1 to N, or N to N. The first is the prompt, the second the response."""

    queries: str | list[str] | None = None
    text_1: str | list[str] | None = None
    data_1: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_2: str | list[str] | None = None

    def pairs(self) -> list[tuple[str, str]]:
        prompts = _one_of(self.queries, self.text_1, self.data_1, name="queries, text_1 or data_1")
        responses = _one_of(self.documents, self.items, self.text_2, self.data_2, name="documents, items, text_2 or data_2")
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        if len(prompts) != len(responses):
            raise Refusal(400, "malformed", f"{len(prompts)} first texts and {len(responses)} second ones: expected 1 to 1, 1 to N, or N to N")
        return list(zip(prompts, responses, strict=True))


def _one_of(*given: str | list[str] | None, name: str) -> list[str]:
    found = [one for one in given if one is not None]
    if len(found) != 1:
        raise Refusal(400, "malformed", f"give {name}, and only one of them")
    return [found[0]] if isinstance(found[0], str) else found[0]


class ScoreRow(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreReply(ListReply):
    data: list[ScoreRow]


async def score(gateway: Gateway, body: ScoreRequest) -> Reply:
    hosted = gateway.models.get(body.model)
    found = await gateway.rewards(hosted, [Piece(turn_exchange(hosted.scorer, *pair)) for pair in body.pairs()])
    data = [{"index": i, "object": "score", "score": body.activated(one.reward)} for i, one in enumerate(found)]
    return reply(listed("score", hosted, data, found), found)


class TextDocument(Body):
    text: str


class RerankRequest(Activated):
    query: str
    documents: list[str | TextDocument]
    top_n: int | None = Field(None, ge=0)  # 0 and none: all


class RerankRow(BaseModel):
    index: int
    document: TextDocument
    relevance_score: float


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RerankReply(BaseModel):
    id: str
    model: str
    usage: RerankUsage
    results: list[RerankRow]


async def rerank(gateway: Gateway, body: RerankRequest) -> Reply:
    hosted = gateway.models.get(body.model)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    found = await gateway.rewards(hosted, [Piece(turn_exchange(hosted.scorer, body.query, text)) for text in texts])
    order = sorted(range(len(texts)), key=lambda i: -found[i].reward)[: body.top_n or None]
    results = [{"index": i, "document": {"text": texts[i]}, "relevance_score": body.activated(found[i].reward)} for i in order]
    counted = {"prompt_tokens": num_tokens(found), "total_tokens": num_tokens(found)}
    return reply({"id": f"rerank-{uuid.uuid4().hex}", "model": hosted.name, "usage": counted, "results": results}, found)


SCORED = ("queries", "text_1", "data_1")

ROUTES = (
    Route("/classify", ("input", "messages"), Inputs, classify, ClassifyReply),
    Route("/pooling", ("input", "messages"), PoolingRequest, pooling, PoolingReply),
    *(Route(path, SCORED, ScoreRequest, score, ScoreReply) for path in ("/score", "/v1/score")),
    *(Route(path, ("documents",), RerankRequest, rerank, RerankReply) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
)
