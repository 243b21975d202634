"""One call to a chat model: what is asked, what came back or why nothing did, and the key under which an answer is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from palate.errors import DataError
from palate.types import Message

CALL_VERSION = 1
"""Part of every key: raised when the same request would be sent in another form."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. None leaves a setting to the endpoint's own default."""

    temperature: float | None = 0.0
    top_p: float | None = None
    max_tokens: int | None = 2048
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """A call. `schema` asks for JSON that fits; `top_logprobs` for so many alternatives a token; `extra` are further fields of the body, by their names there.

    `sample` tells several draws of one request apart, in the cache and, where a seed is given, at the endpoint: each draw has a seed of its own.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    sample: int = 0
    schema: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """What is sent as seed: that of the sampling for the first draw, for every other one a number made of it and the draw's."""
        seed = self.sampling.seed
        if seed is None or not self.sample:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed} {self.sample}".encode()).digest()[:4]) >> 1  # servers take 31 bits at least

    def key(self, endpoint: str) -> bytes:
        """SHA-256 of everything that can change the answer: endpoint, model, messages, sampling, schema, extra fields, sample index."""
        schema = None if self.schema is None else dict(self.schema)
        messages = [dict(message) for message in self.messages]
        settings = {**vars(self.sampling), "seed": self.seed}
        sampling = {name: float(value) if type(value) is int else value for name, value in settings.items()}  # 0 and 0.0 are one temperature
        asked = [CALL_VERSION, endpoint, self.model, messages, sampling, self.sample, schema, self.top_logprobs, dict(self.extra)]
        try:  # in the order given: fields of a schema are written in that order
            return hashlib.sha256(json.dumps(asked, allow_nan=False).encode()).digest()
        except (TypeError, ValueError) as error:  # of a type that JSON has not, or not a number
            raise DataError(f"a request to {endpoint} holds what cannot be sent: {error}; messages, schema and extra fields must be JSON") from error


class ChatReply(NamedTuple):
    """An answer as it came; nothing in it was parsed."""

    text: str
    finish_reason: str = "stop"
    top_logprobs: tuple[Mapping[str, float], ...] = ()  # of each token of the answer, as far as the endpoint gives them
    prompt_tokens: int = 0
    completion_tokens: int = 0
    choices: int = 1  # answers that the endpoint gave to this one request; the first is the text
    seconds: float = 0.0
    cached: bool = False


FailureKind: TypeAlias = Literal["rate limit", "timeout", "server", "connection", "refused", "bad request", "denied", "budget"]
"""denied: the key or the account, not the request, is the matter."""

RETRIED: tuple[FailureKind, ...] = ("rate limit", "timeout", "server", "connection")
"""Failures that another attempt may mend. A refused or malformed request stays what it is."""


class CallFailure(NamedTuple):
    """Why there is no answer. Never kept, never a verdict."""

    kind: FailureKind
    message: str
    retry_after: float | None = None  # seconds, where the endpoint says
    prompt_tokens: int = 0  # a refusal is paid for too
    completion_tokens: int = 0


Answer: TypeAlias = ChatReply | CallFailure


class ChatClient(Protocol):
    """Whatever answers chat requests. `endpoint` is its identity in keys and provenance."""

    endpoint: str

    async def complete(self, request: ChatRequest) -> Answer:
        """One attempt: an answer, or the failure; what is wrong with the program itself raises."""
        ...


class Price(NamedTuple):
    """What tokens cost, in money per million; where it is not known no cost is stated either."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
