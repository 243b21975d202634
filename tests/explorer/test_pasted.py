"""What is pasted: texts, conversations, and what only looks like one."""

from __future__ import annotations

import json

import pytest

from palate.errors import DataError
from palate.explorer.pasted import pasted
from palate.types import Exchange


def test_pasted_texts_and_conversations() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    said = {"role": "assistant", "content": "answer"}
    assert pasted("ask", {"A": "answer", "B": "  "}) == {"A": Exchange("ask", "answer")}
    assert pasted("ask", {"A": "", "B": "answer"}) == {"B": Exchange("ask", "answer")}, "the second box alone keeps its name"
    assert pasted(json.dumps(chat), {"A": "", "B": ""}) == {"the conversation": Exchange((chat[0],), (chat[1],))}
    assert pasted(json.dumps(chat[:1]), {"A": "answer", "B": ""}) == {"A": Exchange((chat[0],), (said,))}
    for text in ("ask", json.dumps(chat[:1])):
        with pytest.raises(DataError, match="there is no response"):
            pasted(text, {"A": "", "B": " "})
    for text in ("[not json", "[1, 2]", "[]", '[{"role": 1}]', "[" * 100_000):
        assert pasted(text, {"A": "answer"}) == {"A": Exchange(text, "answer")}, "what is no list of messages is a text"
