"""The vocabulary: conversations, preference groups, comparisons, scorers, results (no torch).

Letters used for shapes throughout: N rows (responses), P comparisons, K responses to one prompt, L tokens, H hidden, D objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `role`, `content`, and whatever else the chat template reads (`tool_calls`, `name`, ...)."""


class TokenIds(tuple[int, ...]):
    """A sequence that arrived already tokenized; it is used as it is."""

    __slots__ = ()


Conversation: TypeAlias = str | tuple[Message, ...] | TokenIds
"""Plain text, chat messages, or token ids."""


class Exchange(NamedTuple):
    """One prompt and one response to it: the thing that gets a reward.

    A conversation without a separate prompt is `Exchange("", text)`; token ids are `Exchange("", TokenIds(...))`.
    """

    prompt: Conversation
    response: Conversation
    template_args: Mapping[str, Any] = {}  # further variables of the chat template: tools, documents, flags


class Comparison(NamedTuple):
    """Response `chosen` beat response `rejected`; both index into one PreferenceGroup."""

    chosen: int
    rejected: int
    margin: float = 0.0  # strength of preference in reward units (Llama 2, eq. 2); 0 = none given
    weight: float = 1.0  # votes, confidence, or 1/C(K,2) to balance prompts (InstructGPT, eq. 1)
    probability: float = 1.0  # soft label: P(chosen beats rejected); 0.5 = tie

    @property
    def is_tie(self) -> bool:
        return self.probability == 0.5


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt, its K responses, and what is known about which are better."""

    prompt: Conversation
    responses: tuple[Conversation, ...]
    comparisons: tuple[Comparison, ...] = ()
    ratings: tuple[Mapping[str, float], ...] = ()  # absolute scores per attribute, one mapping a response, if any
    metadata: Mapping[str, Any] = field(default_factory=dict)  # id, subset, source, location: travels to every result row
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def exchanges(self) -> list[Exchange]:
        return [Exchange(self.prompt, response, self.template_args) for response in self.responses]


Packing: TypeAlias = Literal["auto", "shared", "packed", "padded"]
"""How sequences are computed: rows of trees that hold each shared prefix once, rows of whole sequences, padded batches; `auto`: the fastest exact way."""

PACKINGS: tuple[str, ...] = get_args(Packing)


class Scorer(Protocol):
    """Anything that gives rewards: a checkpoint, an endpoint, an ensemble, a test's fake."""

    def score(self, conversations: Sequence[Exchange | Conversation]) -> np.ndarray:
        """Rewards, float32 [N] (or [N, D]); NaN marks a conversation that could not be scored."""
        ...


def text_of(conversation: Conversation) -> str:
    """A conversation as readable text, for lengths, keys and tables (never for the model)."""
    if isinstance(conversation, str):
        return conversation
    if isinstance(conversation, TokenIds):
        return " ".join(map(str, conversation))
    if len(conversation) == 1 and conversation[0].get("role") == "assistant":
        return content_text(conversation[0])
    return "\n\n".join(f"{message.get('role', '?')}: {content_text(message)}" for message in conversation)


def content_text(message: Message) -> str:
    """The text of a message; list contents (OpenAI parts) are joined, tool calls are shown as they stand."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") if isinstance(part, Mapping) else str(part) for part in content)
    calls = message.get("tool_calls")
    return "\n".join(part for part in (content or "", str(calls) if calls else "") if part)
