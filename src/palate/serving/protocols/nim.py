"""NVIDIA NIM's reward models: /v1/chat/completions, whose answer reads "reward:-1.25" (or a number for each head), as text and as logprobs.

Source: the documented answers of nemotron-4-340b-reward and llama-3.1-nemotron-70b-reward; clients split at "," and ":".
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from palate.serving.gateway import Gateway, Usage, reply, usage
from palate.serving.messages import Chat, conversation
from palate.serving.pieces import Piece, messages_exchange
from palate.serving.routes import Body, Refusal, Reply, Route


class ChatRequest(Body):
    model: str | None = None
    messages: Chat = Field(min_length=1)
    stream: bool = False


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Any] = []


class Logprobs(BaseModel):
    content: list[TokenLogprob]


class Said(BaseModel):
    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    index: int
    message: Said
    logprobs: Logprobs
    finish_reason: Literal["stop"]


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


async def chat(gateway: Gateway, body: ChatRequest) -> Reply:
    if body.stream:
        raise Refusal(400, "malformed", "a reward is one number: set stream to false")
    hosted = gateway.models.get(body.model)
    found = await gateway.rewards(hosted, [Piece(messages_exchange(conversation(body.messages)))])
    names = hosted.scorer.readout.outputs
    several = len(names) > 1 and found[0].outputs
    values = dict(zip(names, found[0].outputs, strict=True)) if several else {"reward": found[0].reward}
    logprobs = [{"token": name, "logprob": value, "bytes": list(name.encode()), "top_logprobs": []} for name, value in values.items()]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ",".join(f"{name}:{value}" for name, value in values.items())},
        "logprobs": {"content": logprobs},
        "finish_reason": "stop",
    }
    answer = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": hosted.name, "choices": [choice]}
    return reply(answer | {"usage": usage(found)}, found)


ROUTES = (Route("/v1/chat/completions", ("messages",), ChatRequest, chat, ChatReply),)
