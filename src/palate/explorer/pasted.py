"""What somebody pastes to have it scored: plain texts, or a conversation as a JSON list of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping

from palate.errors import DataError
from palate.types import Exchange, Message


def pasted(prompt: str, responses: Mapping[str, str]) -> dict[str, Exchange]:
    """The responses that are not blank, by name, after the prompt; without any, the conversation that the prompt holds. Raises DataError for neither."""
    asked = messages(prompt)
    given = {name: text for name, text in responses.items() if text.strip()}
    if given:
        return {name: Exchange(asked, ({"role": "assistant", "content": text},)) if asked else Exchange(prompt, text) for name, text in given.items()}
    if asked and asked[-1]["role"] == "assistant":
        return {"the conversation": Exchange(asked[:-1], asked[-1:])}
    raise DataError("there is no response: paste one, or a whole conversation as a list of messages that ends with the assistant's")


def messages(text: str) -> tuple[Message, ...]:
    """The messages of a JSON list; empty where the text is none."""
    if not text.lstrip().startswith("["):
        return ()
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):  # the latter for brackets in brackets in brackets
        return ()
    valid = [isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in found]
    return tuple(found) if all(valid) else ()
