"""The vocabulary: conversations, preference groups, comparisons, scorers, results (no torch).

Letters used for shapes throughout: N rows (responses), P comparisons, K responses to one prompt, L tokens, H hidden, D objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `role`, `content`, and whatever else the chat template reads (`tool_calls`, `name`, ...)."""


class TokenIds(tuple[int, ...]):
    """A sequence that arrived already tokenized; it is used as it is."""

    __slots__ = ()


Conversation: TypeAlias = str | tuple[Message, ...] | TokenIds
"""Plain text, chat messages, or token ids."""


class Exchange(NamedTuple):
    """One prompt and one response to it: the thing that gets a reward.

    A conversation without a separate prompt is `Exchange("", text)`; token ids are `Exchange("", TokenIds(...))`.
    """

    prompt: Conversation
    response: Conversation
    template_args: Mapping[str, Any] = {}  # further variables of the chat template: tools, documents, flags


class Comparison(NamedTuple):
    """Response `chosen` beat response `rejected`; both index into one PreferenceGroup."""

    chosen: int
    rejected: int
    margin: float = 0.0  # strength of preference in reward units (Llama 2, eq. 2); 0 = none given
    weight: float = 1.0  # votes, confidence, or 1/C(K,2) to balance prompts (InstructGPT, eq. 1)
    probability: float = 1.0  # soft label: P(chosen beats rejected); 0.5 = tie
    strength: float = 0.0  # how much better on the annotators' scale: 1 slightly, 2 better, 3 significantly; 0 = not said

    @property
    def is_tie(self) -> bool:
        return self.probability == 0.5


class Step(NamedTuple):
    """One step of a response and what is said of it: 1 right, 0 wrong (or 1, 0, -1 with neutral between); None = nothing."""

    text: str
    label: int | None


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt, its K responses, and what is known about which are better."""

    prompt: Conversation
    responses: tuple[Conversation, ...]
    comparisons: tuple[Comparison, ...] = ()
    ratings: tuple[Mapping[str, float], ...] = ()  # absolute scores per attribute, one mapping a response, if any
    ranks: tuple[float, ...] = ()  # one a response, lower is better, equal = tied, NaN = not ranked; if any
    steps: tuple[Step, ...] = ()  # the steps of the one response, if it comes in steps
    off_topic: int = 0  # how many of the responses, the last ones, answer other prompts
    metadata: Mapping[str, Any] = field(default_factory=dict)  # id, subset, source, location: travels to every result row
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def exchanges(self) -> list[Exchange]:
        return [Exchange(self.prompt, response, self.template_args) for response in self.responses]


MARGIN_SOURCES = ("column", "ratings", "strength", "llama2_small", "llama2_large", "none")


class MarginRule(NamedTuple):
    """Where a comparison's margin comes from, and what is made of it. A comparison without one has margin 0.

    column: the row's own; ratings: the difference of both ratings; strength: the annotators' 1 to 3 as it stands; llama2_small and llama2_large: the
    strength on the scales of Llama 2 (arXiv 2307.09288, table 27). It is then multiplied by `scale` and cut at `clip`.
    """

    source: str = "column"
    scale: float = 1.0
    clip: float | None = None

    @property
    def reads_strength(self) -> bool:
        return self.source in ("strength", "llama2_small", "llama2_large")


COLUMN_MARGINS = MarginRule()

Reads: TypeAlias = Literal["last", "response", "divergence", "divergence_padded", "steps"]
"""Tokens whose outputs a loss reads: the one that speaks for a response, all of the response, those from where two responses differ, step ends."""


IGNORED = -100
"""A token without a label (PyTorch's `ignore_index`)."""

STEP_SEPARATOR = "\n"
"""Stands between the steps of a response (TRL's default)."""


@dataclass(frozen=True)
class Supervision:
    """What a loss reads from the data: rows without any of it are left out and counted, and columns that nobody reads are not built."""

    comparisons: bool = True
    ranks: bool = False
    rank_by: str | None = None  # rank by this attribute's ratings; None: by the data's own ranking
    attributes: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()  # those of the attributes that must lie between 0 and 1
    levels: tuple[float, ...] = ()  # the values that the attribute `leveled` may take
    leveled: str | None = None
    reads: Reads = "last"
    classes: int = 0  # classes of step labels, 2 or 3
    last_step_only: bool = False
    separator: str = STEP_SEPARATOR
    ignores_margins: bool = False  # a row with a margin is a mistake: nothing would read it
    margins: MarginRule = COLUMN_MARGINS
    scaled: bool = False  # the margin multiplies the loss: a comparison without one teaches nothing
    lengths: bool = False  # the length of each response, in tokens
    text: bool = False  # the tokens of each response, to be predicted
    prompts: bool = False  # the prompt as text, for embeddings


@dataclass(frozen=True)
class Readout:
    """How one reward is read from the D outputs of a head: `weights` times outputs.

    Step rewards (`aggregate` set) weigh the softmax over classes into P(step is good) instead, and gather the steps of a response by `aggregate`;
    a response is cut into steps at `separator`.
    """

    outputs: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    aggregate: str | None = None
    separator: str = STEP_SEPARATOR


AGGREGATES = ("min", "product", "mean", "last")

VARIANCE_FLOOR = 1e-4
"""Smallest variance of a Gaussian output: a standard deviation of 0.01 on scales of 1 to 5 or 0 to 1, finer than any rater."""

Packing: TypeAlias = Literal["auto", "shared", "packed", "padded"]
"""How sequences are computed: rows of trees that hold each shared prefix once, rows of whole sequences, padded batches; `auto`: the fastest exact way."""

PACKINGS: tuple[str, ...] = get_args(Packing)


class Scorer(Protocol):
    """Anything that gives rewards: a checkpoint, an endpoint, an ensemble, a test's fake."""

    def score(self, conversations: Sequence[Exchange | Conversation]) -> np.ndarray:
        """Rewards, float32 [N] (or [N, D]); NaN marks a conversation that could not be scored."""
        ...


class Matchup(NamedTuple):
    """Two responses to one prompt, in the order in which a judge is to see them."""

    prompt: Conversation
    a: Conversation
    b: Conversation


class Verdict(NamedTuple):
    """What a judge says of a matchup. Failing to say anything is `invalid`, which is no tie and never a label."""

    winner: Literal["a", "b", "tie", "invalid"]
    probability: float | None = None  # P(a is better), where the judge gives one
    reason: str = ""  # why it is invalid
    raw: str = ""  # what the judge said
    strength: float = 0.0  # 1 better, 2 much better; 0 a tie, or not said
    logit: float | None = None  # log-odds that a is better, where the judge reads them off its tokens


class Judge(Protocol):
    """Anything that compares two responses: a language model that is asked, a pairwise model, a person, a test's fake."""

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        """One verdict a matchup, in order; what goes wrong with one is its `invalid` verdict, not an exception."""
        ...


def text_of(conversation: Conversation) -> str:
    """A conversation as readable text, for lengths, keys and tables (never for the model)."""
    if isinstance(conversation, str):
        return conversation
    if isinstance(conversation, TokenIds):
        return " ".join(map(str, conversation))
    if len(conversation) == 1 and conversation[0].get("role") == "assistant":
        return content_text(conversation[0])
    return "\n\n".join(f"{message.get('role', '?')}: {content_text(message)}" for message in conversation)


def content_text(message: Message) -> str:
    """The text of a message; list contents (OpenAI parts) are joined, tool calls are shown as they stand."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") if isinstance(part, Mapping) else str(part) for part in content)
    calls = message.get("tool_calls")
    return "\n".join(part for part in (content or "", str(calls) if calls else "") if part)
