"""A language model as a Judge: renders each pair, asks, reads the reply, asks once more for a verdict alone, draws again; what stays unread is invalid.

`compare` is one order, as it is shown. Both orders, votes, juries and cascades are made of judges in `combining.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from palate.errors import ConfigError
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Sampling
from palate.judging.capabilities import Capabilities
from palate.judging.label_logits import logit_of_labels
from palate.judging.prompts import TOKEN_LABELS, PairPrompt, Rendered
from palate.judging.questions import REPAIRS, RESAMPLE_TEMPERATURE, RESAMPLES, Question, Questioner, Said
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import PairVerdict, as_verdict
from palate.types import Conversation, Matchup, Verdict, text_of

__all__ = ["REPAIRS", "RESAMPLES", "RESAMPLE_TEMPERATURE", "TOP_LOGPROBS", "ChatJudge", "Instructions"]

TOP_LOGPROBS = 20  # as many as OpenAI's API and vLLM give


@dataclass(frozen=True)
class Instructions:
    """What a judge is told beyond the pair: which form of verdict, by what criteria, under which rubric."""

    prompt: PairPrompt = field(default_factory=PairPrompt)
    criteria: str = ""
    rubric: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"variant": self.prompt.variant, "template_hash": self.prompt.template_hash, "criteria": self.criteria, "rubric": self.rubric}


class ChatJudge:
    """A judge behind a Caller. With the prompt variant `token` its verdict is read from the log-odds of the label token, else from its words.

    `sample` is the number of the first draw (votes take one each); `references` are right answers to judge by, by the text of the prompt (`text_of`).
    Where the endpoint is known not to sample, no fresh answers are drawn: they would be the same one. Raises ConfigError where the endpoint's
    capabilities lack what the variant needs.
    """

    def __init__(
        self,
        caller: Caller,
        model: str,
        *,
        instructions: Instructions | None = None,
        sampling: Sampling | None = None,
        capabilities: Capabilities | None = None,
        repairs: int = REPAIRS,
        resamples: int = RESAMPLES,
        sample: int = 0,
        references: Mapping[str, Conversation] | None = None,
    ):
        self.instructions = instructions or Instructions()
        self.sample = sample
        self.references = dict(references or {})
        self.reads_logits = self.instructions.prompt.variant == "token"
        self.questioner = Questioner(caller, model, sampling or Sampling(), capabilities, repairs, resamples)
        self.questioner.require(self.instructions.prompt)
        if self.reads_logits and capabilities is not None:
            capabilities.require("logprobs", model)

    @property
    def name(self) -> str:
        return self.questioner.model

    def provenance(self) -> dict[str, Any]:
        """What must be known to ask the same again."""
        return {**self.questioner.provenance(), **self.instructions.as_dict(), "references": len(self.references)}

    def with_sample(self, sample: int, *, temperature: float) -> ChatJudge:
        """The same judge at another draw."""
        other = copy(self)
        other.sample, other.questioner = sample, replace(self.questioner, sampling=replace(self.questioner.sampling, temperature=temperature))
        return other

    def compare(self, matchups: Sequence[Matchup], *, references: Sequence[Conversation | None] | None = None) -> list[Verdict]:
        """One verdict a matchup, in the order shown. `references`: a right answer to judge by, of each matchup that has one, in place of the judge's own."""
        if references is not None and len(references) != len(matchups):
            raise ConfigError(f"{len(matchups)} matchups and {len(references)} references; give one each, or None where there is none")
        known = references if references is not None else [self.references.get(text_of(m.prompt)) for m in matchups]
        rendered = (self.render(m, reference) for m, reference in zip(matchups, known, strict=True))
        if not self.reads_logits:
            return [_verdict(said) for said in self.questioner.ask(self._question(one) for one in rendered)]
        asked = (((i, one), self.request(one)) for i, one in enumerate(rendered))
        found = {i: self.read(answer, one) for (i, one), answer in self.questioner.caller.beside(asked)}
        return [found[i] for i in range(len(matchups))]

    def _question(self, rendered: Rendered) -> Question:
        return Question(self.instructions.prompt, rendered, self.sample)

    def request(self, rendered: Rendered) -> ChatRequest:
        """The call that asks for one verdict."""
        if self.reads_logits:
            one_token = replace(self.questioner.sampling, max_tokens=1)
            return ChatRequest(self.questioner.model, rendered.messages, one_token, self.sample, top_logprobs=TOP_LOGPROBS)
        return self.questioner.request(self._question(rendered))

    def render(self, matchup: Matchup, reference: Conversation | None = None) -> Rendered:
        told = self.instructions
        return told.prompt.render(matchup.prompt, (matchup.a, matchup.b), criteria=told.criteria, rubric=told.rubric, reference=reference)

    def read(self, answer: Answer, rendered: Rendered) -> Verdict:
        """A raw answer to a verdict; no call is made, so answers that are kept can be read again by another version."""
        if self.reads_logits and not isinstance(answer, CallFailure):
            return _from_logits(answer)
        return _verdict(self.questioner.read(answer, self._question(rendered)))


def _verdict(said: Said) -> Verdict:
    if said.parsed is None:
        return Verdict("invalid", None, said.reason, said.raw)
    assert isinstance(said.parsed, PairVerdict)  # the parser of a pair gives pair verdicts
    return as_verdict(said.parsed, said.raw)


def _from_logits(answer: ChatReply) -> Verdict:
    if not answer.top_logprobs:
        return Verdict("invalid", None, "the endpoint gave no log-probabilities", answer.text)
    found = logit_of_labels(answer.top_logprobs[0], TOKEN_LABELS)
    if isinstance(found, ParseFailure):
        return Verdict("invalid", None, found.reason, answer.text)
    winner = "a" if found.logit > 0 else "b" if found.logit < 0 else "tie"
    return Verdict(winner, found.probability, raw=answer.text, logit=found.logit)  # type: ignore[arg-type]
