"""Chat messages of a request: checked, their parts of text joined; and what a client may hand to a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # typing's own is not introspectable before Python 3.12

from palate.errors import DataError
from palate.types import Message


@with_config(ConfigDict(extra="ignore"))
class TextPart(TypedDict):
    type: Literal["text"]
    text: str


@with_config(ConfigDict(extra="allow"))
class ChatMessage(TypedDict, total=False):
    """`role`, `content`, and whatever else the chat template reads (`tool_calls`, `name`)."""

    role: Required[str]
    content: str | list[TextPart] | None


Chat = list[ChatMessage]

RESERVED = frozenset(
    ("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation", "max_length")
    + ("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self")
)
"""Names that are no variables of a template but decide how it is applied; a template of a client's own would be run here."""


def conversation(messages: Sequence[Any]) -> tuple[Message, ...]:
    """Messages as templates read them. Parts of text are joined by line breaks, as vLLM does for templates of text."""
    return tuple(
        {**message, "content": "\n".join(part["text"] for part in message["content"])} if isinstance(message.get("content"), list) else message
        for message in messages
    )


def check_template_args(args: Mapping[str, Any]) -> None:
    """Raises DataError for a variable that a client may not set."""
    if taken := sorted(RESERVED & set(args)):
        raise DataError(f"{taken[0]} is not a client's to set; the model's own template is applied as in training")
