"""Conversations to try a model on that brings none of its own: what becomes the golden examples of an imported model."""

from __future__ import annotations

from palate.types import Exchange

EXAMPLES = (
    ("What is the capital of France?", "Paris is the capital of France."),
    ("What is the capital of France?", "I do not know."),
    ("Write a short poem about the sea.", "The sea is wide,\nthe sea is deep,\nand sings the fishermen to sleep."),
)
"""What the golden examples of an imported model hold, unless others are given."""


def default_examples(chat: bool) -> list[Exchange]:
    if not chat:
        return [Exchange(*example) for example in EXAMPLES]
    return [Exchange(({"role": "user", "content": prompt},), ({"role": "assistant", "content": response},)) for prompt, response in EXAMPLES]
