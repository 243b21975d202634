"""LLaMA-Factory's /v1/score/evaluation: whole texts with their special tokens. Source: src/llamafactory/api/{protocol,chat}.py, train/ppo/ppo_utils.py."""

from __future__ import annotations

import uuid
from typing import Literal

from pydantic import BaseModel, Field

from palate.serving.gateway import Gateway, reply
from palate.serving.pieces import Piece
from palate.serving.routes import Body, Reply, Route
from palate.types import Exchange


class ScoreRequest(Body):
    model: str | None = None  # clients send any name ("model")
    messages: list[str]
    max_length: int | None = Field(None, gt=0)  # the end is cut, as its server does


class ScoreReply(BaseModel):
    id: str
    object: Literal["score.evaluation"]
    model: str
    scores: list[float]


async def evaluate(gateway: Gateway, body: ScoreRequest) -> Reply:
    hosted = gateway.models.first_unless(body.model)
    pieces = [Piece(Exchange("", text), "bare", limit=body.max_length, cut="right") for text in body.messages]
    found = await gateway.rewards(hosted, pieces)
    answer = {"id": f"scoreeval-{uuid.uuid4().hex}", "object": "score.evaluation", "model": body.model or hosted.name, "scores": [one.reward for one in found]}
    return reply(answer, found)


ROUTES = (Route("/v1/score/evaluation", ("messages",), ScoreRequest, evaluate, ScoreReply),)
