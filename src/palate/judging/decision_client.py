"""Decisions of `transformers serve` as a chat client: POST /v1/systemone gives the probability of A and of B, where its chat completions give no logprobs.

The server shows the request as one user's message with the options behind it, and reads the logits of their letters in one forward pass.
"""

from __future__ import annotations

import json
import math
from typing import Any

from palate.errors import ConfigError
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest
from palate.judging.openai_client import OpenAIClient
from palate.judging.prompts import TOKEN_LABELS
from palate.types import content_text

QUESTION = "verdict"


class DecisionClient(OpenAIClient):
    """Answers requests for log-odds alone: judges of the form `token`. What else is asked raises ConfigError."""

    path = "systemone"

    def __init__(self, base_url: str | None = None, **settings: Any):
        super().__init__(base_url, **settings)
        self.endpoint = f"{self.endpoint}/{self.path}"  # another answer than that of a chat completion, under another key

    def body(self, request: ChatRequest) -> dict[str, Any]:
        if request.top_logprobs is None:
            raise ConfigError(f"{self.endpoint}: decides between {' and '.join(TOKEN_LABELS)} and writes nothing; ask in the form `token`")
        state = "\n\n".join(content_text(message) for message in request.messages)
        options = {label: f"Response {label} is better." for label in TOKEN_LABELS}
        return {"model": request.model, "state": state, "questions": {QUESTION: {"type": "choice", "criteria": options}}}

    def reply(self, content: bytes, seconds: float) -> Answer:
        try:
            found = json.loads(content)
            decided = found["answers"][QUESTION]
            listed = {label: math.log(p) for label, p in decided["probabilities"].items() if p > 0}  # what has underflowed is not listed
            return ChatReply(decided["choice"], top_logprobs=(listed,), prompt_tokens=int(found["usage"]["input_tokens"]), seconds=seconds)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            return CallFailure("server", f"expected a decision, got {content[:300].decode(errors='replace')!r} ({type(error).__name__}: {error})")
