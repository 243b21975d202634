"""What a judge is asked: a pair, one response, or a list, each fenced off from the instructions, with the parser that reads the reply.

A prompt object says in which form a verdict is wanted; `render` makes the messages of one request, `repair_messages` those of one more turn that asks for the
verdict alone. The text of the templates stands in `templates/`, every placeholder is filled in one pass, so nothing in a question or an answer is ever read as
a placeholder. The same contents give the same messages, to the letter: answers can be kept by their request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from palate.errors import ConfigError, DataError
from palate.judging.fences import fence_of, fenced, neutral
from palate.judging.json_verdicts import JsonParser, PairReply, RankingReply, rating_reply
from palate.judging.rankings import RankingParser
from palate.judging.ratings import RatingParser
from palate.judging.verdicts import FIVE_STEP, THREE_WAY, TWO_WAY, ArenaParser, ExactParser, LabelParser, Parser, Winner, letters
from palate.types import Conversation, Message, TokenIds, content_text

PairVariant: TypeAlias = Literal["five_step", "three_way", "binary", "token", "json"]
RatingVariant: TypeAlias = Literal["number", "json"]
ListVariant: TypeAlias = Literal["ranking", "json"]

TOKEN_LABELS: Mapping[str, Winner] = {"A": "a", "B": "b"}
"""The labels of the variant `token`, for `logit_of_labels`."""

PROMPT_VERSION = 1
"""Part of every template hash: raised when the code lays the same templates out in another way."""

_PAIR_LABEL = re.compile(r"[abc](?:[<>=]+[abc])?|tie")
_RATING_LABEL = re.compile(r"[+\-−]?\d+(?:[.,]\d+)?(?:(?:/|outof)\d+)?|n/?a")
_LIST_LABEL = re.compile(r"[a-z](?:[>=]+[a-z])*")


class Rendered(NamedTuple):
    """The messages of one request, the fence in them (the parser wants it), and how many places of the material were taken apart to be harmless."""

    messages: tuple[Message, ...]
    fence: str
    neutralized: int


class _Form(NamedTuple):
    """What tells one kind of prompt from another."""

    task: str
    verdict: str  # filled in
    options: str  # for a repair turn
    offered: re.Pattern[str]
    json_keys: tuple[str, ...]
    system_role: bool

    @property
    def digest(self) -> str:
        parts = [
            PROMPT_VERSION,
            self.task,
            self.verdict,
            self.options,
            self.system_role,
            *(template(name) for name in ("system", "criteria", "user", "repair")),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class JudgePrompt:
    """What all kinds of questions have in common. `system_role` False puts all instructions into the user's message, for models without a system role."""

    @cached_property
    def parser(self) -> Parser:
        """Reads the form that is asked for."""
        raise NotImplementedError

    @cached_property
    def _form(self) -> _Form:
        raise NotImplementedError

    def _named(self, responses: Sequence[Conversation]) -> dict[str, Conversation]:
        """Responses by the names under which they are shown. Raises DataError where there are not as many as the prompt asks about."""
        raise NotImplementedError

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """What to hold an endpoint's reply to; None where it answers in words."""
        return self.parser.json_schema() if isinstance(self.parser, JsonParser) else None

    @property
    def template_hash(self) -> str:
        return self._form.digest

    def render(
        self,
        prompt: Conversation,
        responses: Sequence[Conversation],
        *,
        criteria: str = "",
        rubric: str = "",
        reference: Conversation | None = None,
        seed: int = 0,
    ) -> Rendered:
        return _render(self._form, prompt, self._named(responses), criteria, rubric, reference, seed)

    def repair_messages(self, previous: Sequence[Message], reply: str) -> tuple[Message, ...]:
        """One turn more: what was asked, what was answered, and the question for the verdict alone."""
        said = reply if reply.strip() else "(no answer)"  # endpoints refuse an empty message
        question = fill(template("repair"), {"options": self._form.options})
        return (*previous, {"role": "assistant", "content": said}, {"role": "user", "content": question})


@dataclass(frozen=True)
class PairPrompt(JudgePrompt):
    """Two responses, which is better."""

    variant: PairVariant = "five_step"
    system_role: bool = True

    def __post_init__(self) -> None:
        _check_variant(self.variant, PairVariant)

    @cached_property
    def parser(self) -> Parser:
        parsers: dict[PairVariant, Parser] = {
            "five_step": ArenaParser(),
            "three_way": LabelParser(THREE_WAY),
            "binary": LabelParser(TWO_WAY),
            "token": ExactParser(TOKEN_LABELS),
            "json": JsonParser(PairReply),
        }
        return parsers[self.variant]

    def _named(self, responses: Sequence[Conversation]) -> dict[str, Conversation]:
        if len(responses) != 2:
            raise DataError(f"a pair has two responses, got {len(responses)}; ListPrompt takes more")
        return _by_letter(responses)

    @cached_property
    def _form(self) -> _Form:
        options = {
            "five_step": f"one of {', '.join(FIVE_STEP)}.",
            "three_way": f"one of {', '.join(THREE_WAY)}.",
            "binary": f"one of {', '.join(TWO_WAY)}.",
            "token": "A or B.",
            "json": 'a JSON object such as {"verdict": "A"}, with "A", "B" or "tie".',
        }
        task = "You compare two responses, A and B, to the same conversation and say which one is better."
        json_keys = ("verdict", "winner") if self.variant == "json" else ()
        return _Form(task, template(f"verdict_{self.variant}"), options[self.variant], _PAIR_LABEL, json_keys, self.system_role)


@dataclass(frozen=True)
class RatingPrompt(JudgePrompt):
    """One response, how good it is on a scale. What the steps of the scale mean is said in the rubric."""

    low: float = 1  # MT-Bench's scale (arXiv 2306.05685)
    high: float = 10
    variant: RatingVariant = "number"
    system_role: bool = True

    def __post_init__(self) -> None:
        _check_variant(self.variant, RatingVariant)
        RatingParser(self.low, self.high)

    @cached_property
    def parser(self) -> Parser:
        return RatingParser(self.low, self.high) if self.variant == "number" else JsonParser(rating_reply(self.low, self.high))

    def _named(self, responses: Sequence[Conversation]) -> dict[str, Conversation]:
        if isinstance(responses, str) or len(responses) != 1:
            raise DataError(f"one response is rated at a time, got {'a text' if isinstance(responses, str) else len(responses)}; pass a list of one")
        return {"response": responses[0]}

    @cached_property
    def _form(self) -> _Form:
        bounds = {"low": f"{self.low:g}", "high": f"{self.high:g}", "example": f"{round((self.low + self.high) / 2):g}"}
        if not self.low <= float(bounds["example"]) <= self.high:  # a scale without a whole number near its middle
            bounds["example"] = f"{(self.low + self.high) / 2:g}"
        task = "You rate one response to a conversation."
        if self.variant == "json":
            options = f'a JSON object such as {{"rating": {bounds["example"]}}}, from {bounds["low"]} to {bounds["high"]}.'
            return _Form(task, fill(template("verdict_rating_json"), bounds), options, _RATING_LABEL, ("rating",), self.system_role)
        options = f"a number from {bounds['low']} to {bounds['high']} in double square brackets, such as [[{bounds['example']}]]."
        return _Form(task, fill(template("verdict_rating"), bounds), options, _RATING_LABEL, (), self.system_role)


@dataclass(frozen=True)
class ListPrompt(JudgePrompt):
    """Several responses, best first. They are named A, B, C, ... in the order shown; indices in the Ranking follow that order."""

    num_responses: int = 4  # UltraFeedback's number of completions (arXiv 2310.01377)
    variant: ListVariant = "ranking"
    system_role: bool = True

    def __post_init__(self) -> None:
        _check_variant(self.variant, ListVariant)
        if not 2 <= self.num_responses <= 26:
            raise ConfigError(f"num_responses {self.num_responses}, expected 2 to 26: responses are named by letters")

    @cached_property
    def parser(self) -> Parser:
        return RankingParser(self.num_responses) if self.variant == "ranking" else JsonParser(RankingReply, num_responses=self.num_responses)

    def _named(self, responses: Sequence[Conversation]) -> dict[str, Conversation]:
        if len(responses) != self.num_responses:
            raise DataError(f"this prompt ranks {self.num_responses} responses, got {len(responses)}; make a ListPrompt({len(responses)})")
        return _by_letter(responses)

    @cached_property
    def _form(self) -> _Form:
        names = letters(self.num_responses)[::-1]  # an example that is not the order shown
        task = f"You compare {self.num_responses} responses, {names[-1]} to {names[0]}, to the same conversation and rank them."
        if self.variant == "json":
            values = {"count": str(self.num_responses), "example": json.dumps(names)}
            options = f'a JSON object such as {{"ranking": {json.dumps(names)}}}, with all {self.num_responses} responses.'
            return _Form(task, fill(template("verdict_ranking_json"), values), options, _LIST_LABEL, ("ranking",), self.system_role)
        values = {"count": str(self.num_responses), "example": " > ".join(names)}
        options = f"all {self.num_responses} responses, best first, in double square brackets, such as [[{values['example']}]]."
        return _Form(task, fill(template("verdict_ranking"), values), options, _LIST_LABEL, (), self.system_role)


@lru_cache(maxsize=32)  # there are a dozen files
def template(name: str) -> str:
    return (files("palate.judging") / "templates" / f"{name}.txt").read_text(encoding="utf-8").strip()


def fill(text: str, values: Mapping[str, str]) -> str:
    """Every {placeholder} replaced in one pass: what is put in is not read again."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"the template has the placeholder {match[0]}, expected one of {', '.join(f'{{{name}}}' for name in values)}")
        return values[match[1]]

    return re.sub(r"\{([a-z_]+)\}", value, text)


def _by_letter(responses: Sequence[Conversation]) -> dict[str, Conversation]:
    return {f"response {letter}": response for letter, response in zip(letters(len(responses)), responses, strict=True)}


def _render(
    form: _Form, prompt: Conversation, responses: Mapping[str, Conversation], criteria: str, rubric: str, reference: Conversation | None, seed: int
) -> Rendered:
    shown = {"conversation": prompt} | ({} if reference is None else {"reference answer": reference}) | dict(responses)
    turns = {name: _turns(name, conversation) for name, conversation in shown.items()}
    fence = fence_of(seed, [text for name, found in turns.items() for text in (name, *(part for turn in found for part in turn))])
    harmless = {name: [(role, neutral(text, form.offered, form.json_keys)) for role, text in found] for name, found in turns.items()}
    blocks = {name: fenced(name, _transcript([(role, part.text) for role, part in found], fence), fence) for name, found in harmless.items()}
    values = {
        "task": form.task,
        "fence": fence,
        "criteria": criteria.strip() or template("criteria"),
        "rubric": f"\n\nRubric:\n{rubric.strip()}" if rubric.strip() else "",
        "reference_note": "" if reference is None else "\n\nA reference answer is shown. It is right; a response need not be worded as it is.",
        "conversation": blocks["conversation"],
        "reference": "" if reference is None else blocks["reference answer"] + "\n\n",
        "responses": "\n\n".join(blocks[name] for name in responses),
        "verdict": form.verdict,
    }
    system, user = fill(template("system"), values), fill(template("user"), values)
    messages: tuple[dict[str, Any], ...] = ({"role": "system", "content": system}, {"role": "user", "content": user})
    if not form.system_role:
        messages = ({"role": "user", "content": f"{system}\n\n{user}"},)
    return Rendered(messages, fence, sum(part.changes for found in harmless.values() for _, part in found))


def _turns(name: str, conversation: Conversation) -> list[tuple[str, str]]:
    """(role, text) of every message; the role is empty where there is one text only."""
    if isinstance(conversation, TokenIds):
        raise DataError(f"the {name} is token ids, which a judge cannot read; give text or messages")
    if isinstance(conversation, str):
        return [("", conversation)]
    turns = [(re.sub(r"\W+", " ", str(message.get("role", "unknown"))), content_text(message)) for message in conversation]
    return [("", turns[0][1])] if len(turns) == 1 and turns[0][0] in ("user", "assistant") else turns


def _transcript(turns: Sequence[tuple[str, str]], fence: str) -> str:
    """Turns under headings that carry the fence, so that no text can make a turn up."""
    return "\n\n".join(f"<<{role} {fence}>>\n{text}" if role else text for role, text in turns) or "(empty)"


def _check_variant(variant: str, variants: Any) -> None:
    if variant not in get_args(variants):
        raise ConfigError(f"variant {variant!r}, expected one of {', '.join(get_args(variants))}")
