"""A language model that rates each response by itself: votes and aspects averaged, what could not be read missing; two ratings are a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from palate.errors import ConfigError, DataError
from palate.judging.caller import Caller
from palate.judging.calls import ChatRequest, Sampling
from palate.judging.capabilities import Capabilities
from palate.judging.combining import VOTE_TEMPERATURE
from palate.judging.prompts import RatingPrompt
from palate.judging.questions import REPAIRS, RESAMPLES, Question, Questioner, Said
from palate.judging.rated import Rated, verdict_of
from palate.judging.verdicts import Rating
from palate.types import Conversation, Exchange, Matchup, Verdict, text_of


class RatingJudge:
    """Rates each response by itself, on the scale of `prompt`.

    `aspects`, by name, are criteria that are asked about one by one (UltraFeedback's manner, arXiv 2310.01377); the rating is their mean. With `votes`
    each question is asked so many times at a temperature above 0. `references` are right answers to judge by, by the text of the prompt (`text_of`).
    As a Judge it compares the ratings of both responses; the order in which they stand is never shown.
    Raises ConfigError where the endpoint is known to lack what is needed, or where criteria are given twice.
    """

    def __init__(
        self,
        caller: Caller,
        model: str,
        *,
        prompt: RatingPrompt | None = None,
        criteria: str = "",
        aspects: Mapping[str, str] | None = None,
        rubric: str = "",
        sampling: Sampling | None = None,
        capabilities: Capabilities | None = None,
        repairs: int = REPAIRS,
        resamples: int = RESAMPLES,
        votes: int = 1,
        references: Mapping[str, Conversation] | None = None,
    ):
        if votes < 1:
            raise ConfigError(f"votes={votes}: a response is rated once at least")
        if criteria and aspects:
            raise ConfigError("criteria and aspects both say what to rate by; give one of them")
        sampling = sampling or Sampling()
        if votes > 1:
            if capabilities is not None:
                capabilities.require("sampling", model)
            sampling = replace(sampling, temperature=max(VOTE_TEMPERATURE, sampling.temperature or 0.0))
        self.prompt, self.rubric, self.votes = prompt or RatingPrompt(), rubric, votes
        self.aspects = dict(aspects) if aspects else {"": criteria}
        self.references = dict(references or {})
        self.questioner = Questioner(caller, model, sampling, capabilities, repairs, resamples)
        self.questioner.require(self.prompt)

    @property
    def name(self) -> str:
        return self.questioner.model

    @property
    def scale(self) -> float:
        """Highest less lowest rating."""
        return self.prompt.high - self.prompt.low

    def provenance(self) -> dict[str, Any]:
        """What must be known to ask the same again."""
        return {
            **self.questioner.provenance(),
            "style": "rating",
            "variant": self.prompt.variant,
            "scale": [self.prompt.low, self.prompt.high],
            "template_hash": self.prompt.template_hash,
            "criteria": self.aspects.get("", dict(self.aspects)),
            "rubric": self.rubric,
            "references": len(self.references),
            "votes": self.votes,
        }

    def rate(self, exchanges: Sequence[Exchange], *, references: Sequence[Conversation | None] | None = None) -> list[Rated]:
        """One rating an exchange; equal exchanges are asked about once."""
        starts: list[int] = []
        said = self.questioner.ask(self._each_once(exchanges, self._known(exchanges, references), starts))
        each = self.votes * len(self.aspects)
        return [self._rated(said[start : start + each]) for start in starts]

    def _each_once(self, exchanges: Sequence[Exchange], references: Sequence[Conversation | None], starts: list[int]) -> Iterator[Question]:
        """The questions about all exchanges, equal ones once; `starts` is filled with the place of the first question about each."""
        seen: dict[tuple[str, ...], int] = {}  # what is shown -> where its questions begin
        count = 0
        for exchange, reference in zip(exchanges, references, strict=True):
            own = self._questions(exchange, reference)
            shown = tuple(str(message["content"]) for question in own[: len(self.aspects)] for message in question.rendered.messages)
            starts.append(seen.setdefault(shown, count))
            if starts[-1] == count:
                count += len(own)
                yield from own

    def requests(self, exchanges: Sequence[Exchange]) -> Iterator[ChatRequest]:
        """The calls of the first turn, to be counted."""
        for exchange, reference in zip(exchanges, self._known(exchanges, None), strict=True):
            yield from (self.questioner.request(question) for question in self._questions(exchange, reference))

    def requests_to_compare(self, matchups: Sequence[Matchup]) -> Iterator[ChatRequest]:
        """As `requests`, of both responses of each pair."""
        return self.requests([Exchange(m.prompt, response) for m in matchups for response in (m.a, m.b)])

    def compare(self, matchups: Sequence[Matchup], *, references: Sequence[Conversation | None] | None = None) -> list[Verdict]:
        """The better rated response wins, equal ratings are a tie; without one of the two there is no verdict."""
        twice = None if references is None else [reference for reference in references for _ in range(2)]
        rated = self.rate([Exchange(m.prompt, response) for m in matchups for response in (m.a, m.b)], references=twice)
        return [verdict_of(a, b, scale=self.scale) for a, b in zip(rated[::2], rated[1::2], strict=True)]

    def _known(self, exchanges: Sequence[Exchange], references: Sequence[Conversation | None] | None) -> Sequence[Conversation | None]:
        if references is None:
            return [self.references.get(text_of(exchange.prompt)) for exchange in exchanges]
        if len(references) != len(exchanges):
            raise DataError(f"{len(exchanges)} responses and {len(references)} references; give one each, or None where there is none")
        return references

    def _questions(self, exchange: Exchange, reference: Conversation | None) -> list[Question]:
        """By vote, then by aspect."""
        rendered = [
            self.prompt.render(exchange.prompt, [exchange.response], criteria=criteria, rubric=self.rubric, reference=reference)
            for criteria in self.aspects.values()
        ]
        return [Question(self.prompt, one, vote) for vote in range(self.votes) for one in rendered]

    def _rated(self, said: Sequence[Said]) -> Rated:
        width = len(self.aspects)
        read: list[list[float]] = []  # [votes that were read, aspects]
        for vote in range(self.votes):
            values = [one.parsed.value for one in said[vote * width : (vote + 1) * width] if isinstance(one.parsed, Rating)]
            if len(values) == width:
                read.append(values)
        votes = tuple(math.fsum(values) / width for values in read)
        return Rated(
            value=math.fsum(votes) / len(votes) if votes else None,
            votes=votes,
            failed=self.votes - len(votes),
            reasons=tuple(one.reason for one in said if one.parsed is None),
            aspects={name: math.fsum(values[k] for values in read) / len(read) for k, name in enumerate(self.aspects) if name and read},
        )
