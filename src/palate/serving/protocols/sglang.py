"""SGLang's dialect (0.5.23): /classify with `text`, and /v1/embeddings, which verl asks. Raw rewards as an embedding of one number.

Texts get the special tokens of the tokenizer; model names are not looked at where only one model is served. Sources:
sglang/srt/managers/io_struct.py (EmbeddingReqInput), sglang/srt/entrypoints/openai/serving_embedding.py.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, StrictInt, model_validator

from palate.serving.gateway import Gateway, reply
from palate.serving.pieces import Piece
from palate.serving.routes import Body, Reply, Route
from palate.serving.worker import Scored
from palate.types import Exchange, TokenIds


class ClassifyRequest(Body):
    text: str | list[str] | None = None
    input_ids: list[StrictInt] | list[list[StrictInt]] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ClassifyRequest:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give text or input_ids")
        return self


class MetaInfo(BaseModel):
    id: str
    finish_reason: dict[str, Any]
    prompt_tokens: int
    e2e_latency: float | None = None


class Embedded(BaseModel):
    embedding: list[float]
    meta_info: MetaInfo


async def classify(gateway: Gateway, body: ClassifyRequest) -> Reply:
    hosted = gateway.models.get(None)
    pieces, single = _pieces(body.text if body.text is not None else body.input_ids)
    found = await gateway.rewards(hosted, pieces)
    rows = [_embedded(one) for one in found]
    return reply(rows[0] if single else rows, found)


def _embedded(one: Scored) -> dict[str, Any]:
    info = {"id": uuid.uuid4().hex, "finish_reason": {"type": "length", "length": 0}, "prompt_tokens": len(one.ids)}
    return {"embedding": [one.reward], "meta_info": info}


def _pieces(given: Any) -> tuple[list[Piece], bool]:
    """(pieces, whether it was one and not a list of one)."""
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    texts = [given] if single else given
    pieces = [Piece(Exchange("", one), "tokenizer") if isinstance(one, str) else Piece(Exchange("", TokenIds(one))) for one in texts]
    return pieces, single


class EmbeddingRequest(Body):
    model: str | None = None
    input: str | list[StrictInt] | list[str] | list[list[StrictInt]]


class EmbeddingRow(BaseModel):
    embedding: list[float]
    index: int
    object: Literal["embedding"]


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(BaseModel):
    data: list[EmbeddingRow]
    model: str
    object: Literal["list"]
    usage: EmbeddingUsage


async def embeddings(gateway: Gateway, body: EmbeddingRequest) -> Reply:
    hosted = gateway.models.first_unless(body.model)
    found = await gateway.rewards(hosted, _pieces(body.input)[0])
    tokens = sum(len(one.ids) for one in found)
    data = [{"embedding": [one.reward], "index": i, "object": "embedding"} for i, one in enumerate(found)]
    return reply({"data": data, "model": hosted.name, "object": "list", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}, found)


ROUTES = (
    Route("/classify", ("text", "input_ids"), ClassifyRequest, classify, Embedded | list[Embedded]),
    Route("/v1/embeddings", ("input",), EmbeddingRequest, embeddings, EmbeddingReply),
)
