"""Questions in words to one model: each is asked, its reply read, once more for the verdict alone, then drawn afresh; what stays unread says why."""

from __future__ import annotations

from collections.abc import Iterable
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
        """Raises ConfigError where the endpoint is known not to heed what is asked of it: a schema, a seed."""
        if self.capabilities is not None and prompt.schema is not None:
            self.capabilities.require("structured", self.model)
        if self.capabilities is not None and self.sampling.seed is not None:
            self.capabilities.require("seed", self.model)

    def request(self, question: Question) -> ChatRequest:
        """The call that asks it for the first time."""
        return ChatRequest(self.model, question.rendered.messages, self.sampling, question.sample, schema=question.prompt.schema)

    def ask(self, questions: Iterable[Question]) -> list[Said]:
        """What came of each, in order. A reply that cannot be read is asked about again; a call that failed was retried by the Caller, and is not.

        Questions are taken as calls can begin and replies read as they come, while others are waited for; kept are only those to be asked again.
        """
        said: dict[int, Said] = {}
        greedy = self.capabilities is not None and not self.capabilities.sampling
        asked: Iterable[tuple[tuple[int, Question], ChatRequest]] = (((i, question), self.request(question)) for i, question in enumerate(questions))
        for turn in range(1 + self.repairs + (0 if greedy else self.resamples)):
            unread = []
            for (i, question), answer in self.caller.beside(asked):
                said[i] = self.read(answer, question)
                if said[i].parsed is None and isinstance(answer, ChatReply):
                    unread.append((i, question))
            asked = [((i, question), self._again(turn, question, said[i].raw)) for i, question in sorted(unread)]
        return [said[i] for i in range(len(said))]

    @staticmethod
    def read(answer: Answer, question: Question) -> Said:
        """No call is made, so answers that are kept can be read again by another version."""
        if isinstance(answer, CallFailure):
            return Said(None, f"{answer.kind}: {answer.message}")
        parsed = question.prompt.parser.parse(answer.text, answer.finish_reason, question.rendered.fence)
        return Said(None, parsed.reason, answer.text) if isinstance(parsed, ParseFailure) else Said(parsed, "", answer.text)

    def _again(self, turn: int, question: Question, reply: str) -> ChatRequest:
        """The call after so many turns: for the verdict alone, then for a fresh answer."""
        request = self.request(question)
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
