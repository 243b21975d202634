"""Questions in words to one model: each is asked, its reply read, once more for the verdict alone, then drawn afresh; what stays unread says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Sampling
from palate.judging.capabilities import Capabilities
from palate.judging.prompts import JudgePrompt, Rendered
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import Parsed

REPAIRS = 1  # turns that ask for the verdict alone
RESAMPLES = 2  # fresh answers after that, each with another sample index
RESAMPLE_TEMPERATURE = 0.7
"""A fresh answer at temperature 0 would be the same one. It is what most providers sample at."""


class Question(NamedTuple):
    """A prompt, as it was rendered; `sample` tells several draws of one question apart."""

    prompt: JudgePrompt
    rendered: Rendered
    sample: int = 0


class Said(NamedTuple):
    """What came of a question. `parsed` None: nothing that may be used, for this `reason`."""

    parsed: Parsed | None
    reason: str = ""
    raw: str = ""


@dataclass(frozen=True)
class Questioner:
    """One model behind a Caller. Where the endpoint is known not to sample, no fresh answers are drawn: they would be the same one."""

    caller: Caller
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    capabilities: Capabilities | None = None
    repairs: int = REPAIRS
    resamples: int = RESAMPLES

    def require(self, prompt: JudgePrompt) -> None:
        """Raises ConfigError where the prompt asks for JSON and the endpoint is known not to heed a schema."""
        if prompt.schema is not None and self.capabilities is not None:
            self.capabilities.require("structured", self.model)

    def request(self, question: Question) -> ChatRequest:
        """The call that asks it for the first time."""
        return ChatRequest(self.model, question.rendered.messages, self.sampling, question.sample, schema=question.prompt.schema)

    def ask(self, questions: Sequence[Question]) -> list[Said]:
        """What came of each, in order. A reply that cannot be read is asked about again; a call that failed was retried by the Caller, and is not."""
        requests = [self.request(question) for question in questions]
        last = self.caller.run(requests)
        said = [self.read(answer, question) for answer, question in zip(last, questions, strict=True)]
        greedy = self.capabilities is not None and not self.capabilities.sampling
        for turn in range(self.repairs + (0 if greedy else self.resamples)):
            unread = [i for i, one in enumerate(said) if one.parsed is None and isinstance(last[i], ChatReply)]
            if not unread:
                break
            again = [self._again(turn, questions[i], requests[i], said[i].raw) for i in unread]
            for i, answer in zip(unread, self.caller.run(again), strict=True):
                last[i] = answer
                said[i] = self.read(answer, questions[i])
        return said

    @staticmethod
    def read(answer: Answer, question: Question) -> Said:
        """No call is made, so answers that are kept can be read again by another version."""
        if isinstance(answer, CallFailure):
            return Said(None, f"{answer.kind}: {answer.message}")
        parsed = question.prompt.parser.parse(answer.text, answer.finish_reason, question.rendered.fence)
        return Said(None, parsed.reason, answer.text) if isinstance(parsed, ParseFailure) else Said(parsed, "", answer.text)

    def _again(self, turn: int, question: Question, request: ChatRequest, reply: str) -> ChatRequest:
        if turn < self.repairs:
            return replace(request, messages=question.prompt.repair_messages(question.rendered.messages, reply))
        warm = max(RESAMPLE_TEMPERATURE, request.sampling.temperature or 0.0)
        draw = 1000 * (turn - self.repairs + 1) + request.sample  # beyond any vote's own number
        return replace(request, sampling=replace(request.sampling, temperature=warm), sample=draw)

    def provenance(self) -> dict[str, Any]:
        """What must be known to ask the same again, but for the questions."""
        return {
            "judge": self.model,
            "endpoint": self.caller.client.endpoint,
            "sampling": asdict(self.sampling),
            "repairs": self.repairs,
            "resamples": self.resamples,
            "capabilities": self.capabilities.as_dict() if self.capabilities else None,
        }
