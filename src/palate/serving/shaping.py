"""Rewards for RL put together from parts: a weighted sum of scorers and rules, each brought to scale, cut, and told separately.

    reward = sum over parts of  weight * clip((raw - mean) / std)

A response that one part cannot score has no reward. `Shaped` is itself a Scorer, so that parts may be sums again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, DataError
from palate.scoring.local import LocalScorer
from palate.types import Conversation, Exchange, Scorer, text_of


class Scale(NamedTuple):
    """What makes a reward 0 on average with a deviation of 1: the statistics of rewards that it was measured on."""

    mean: float
    std: float


def scale_of(scorer: LocalScorer) -> Scale:
    """The scale that a checkpoint's contract recorded, over held-out comparisons. Raises ConfigError for one without."""
    statistics = scorer.contract.rewards if scorer.contract else None
    if statistics is None:
        raise ConfigError("this model's contract has no statistics of rewards: it was saved without held-out comparisons; give Scale(mean, std)")
    return Scale(statistics.mean, statistics.std)


class Part(NamedTuple):
    """One part of a reward: `scale` first, then `clip` (lowest, highest), then `weight`."""

    scorer: Scorer
    weight: float = 1.0
    scale: Scale | None = None
    clip: tuple[float, float] | None = None

    def value(self, raw: np.ndarray) -> np.ndarray:
        """What enters the sum. [N] -> [N]"""
        scaled = raw if self.scale is None else (raw - self.scale.mean) / self.scale.std
        return self.weight * (scaled if self.clip is None else np.clip(scaled, *self.clip))

    @property
    def as_it_is(self) -> bool:
        return self.weight == 1 and self.scale is None and self.clip is None


class Shaped:
    """The sum of named parts. Raises ConfigError where a part could not be summed: no parts, a deviation of 0, an empty range."""

    def __init__(self, parts: Mapping[str, Part | Scorer]):
        if not parts:
            raise ConfigError("a reward needs one part at least")
        self.parts = {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}
        for name, part in self.parts.items():
            if isinstance(part.scorer, str):
                raise ConfigError(f"part {name!r}: {part.scorer!r} is a name; open it first: palate.scoring.sources.open_scorer({part.scorer!r}).scorer")
            if part.scale is not None and not (part.scale.std > 0 and np.isfinite(part.scale).all()):
                raise ConfigError(f"part {name!r}: {part.scale}, expected two finite numbers, the deviation above 0")
            if part.clip is not None and not part.clip[0] < part.clip[1]:
                raise ConfigError(f"part {name!r}: clip {part.clip}, expected the lower bound first")
            if not np.isfinite(part.weight):
                raise ConfigError(f"part {name!r}: weight {part.weight}, expected a finite number")

    def score(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> np.ndarray:
        """Rewards float32 [N]; `options` (on_long, progress) go to every part."""
        return self.score_parts(conversations, **options)[0]

    def score_parts(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(rewards float32 [N], each part's share of them [N] under its name, and under NAME_raw what the part said, where that is something else)"""
        found: dict[str, np.ndarray] = {}
        total = np.zeros(len(conversations))
        for name, part in self.parts.items():
            raw = one_reward(part.scorer, conversations, **options)
            share = part.value(raw)
            total += share
            found |= {name: share} if part.as_it_is else {name: share, f"{name}_raw": raw}
        return total.astype(np.float32), found


def one_reward(scorer: Scorer, conversations: Sequence[Exchange | Conversation], **options: Any) -> np.ndarray:
    """One reward a conversation, float64 [N], from a scorer whose rewards may be [N, 1]. Raises DataError for another shape."""
    rewards = np.asarray(scorer.score(conversations, **options), dtype=float)
    rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    if rewards.shape != (len(conversations),):
        raise DataError(f"the scorer gave the shape {rewards.shape} for {len(conversations)} responses; RL needs one reward a response")
    return rewards


# --- rules ----------------------------------------------------------------------------------------------------------------------------------------


class Rule:
    """A Python function of one exchange as a Scorer; None is no reward."""

    def __init__(self, function: Callable[[Exchange], float | None]):
        self.function = function

    def score(self, conversations: Sequence[Exchange | Conversation], **_: Any) -> np.ndarray:
        values = [self.function(as_exchange(item)) for item in conversations]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def length_penalty(start: int, end: int, count: Callable[[str], int] = len) -> Rule:
    """0 for responses up to `start`, falling evenly to -1 at `end` and beyond; lengths by `count`, characters by default.

    Give the policy's tokenizer to count tokens: `count=lambda text: len(tokenizer(text).input_ids)`. Source: the soft overlong punishment of DAPO
    (Yu et al. 2025, arXiv 2503.14476, eq. 13), `end` its L_max and `end - start` its L_cache.
    """
    if not 0 <= start < end:
        raise ConfigError(f"a length penalty from {start} to {end}: expected two lengths, the lower one first")
    return Rule(lambda exchange: -min(1.0, max(0.0, (count(text_of(exchange.response)) - start) / (end - start))))


def format_reward(pattern: str) -> Rule:
    """1 for a response that the regular expression matches from its first character to its last (`.` takes line ends too), else 0."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
    return Rule(lambda exchange: float(compiled.fullmatch(text_of(exchange.response)) is not None))


# --- formatted strings ----------------------------------------------------------------------------------------------------------------------------


class _WholeText:
    """A scorer of text that went through a chat template already: prompt and response are one text, with nothing put between them."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer

    def score(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> np.ndarray:
        return self.scorer.score([_joined(as_exchange(item)) for item in conversations], **options)


def _joined(exchange: Exchange) -> Exchange:
    if isinstance(exchange.prompt, str) and isinstance(exchange.response, str):
        return Exchange("", exchange.prompt + exchange.response)
    return exchange


def whole_text(scorer: Scorer) -> Scorer:
    """The scorer as it reads (prompt, response) of formatted text: models read both as one, rules the response alone."""
    if isinstance(scorer, Shaped):
        return Shaped({name: part._replace(scorer=whole_text(part.scorer)) for name, part in scorer.parts.items()})
    return scorer if isinstance(scorer, Rule) else _WholeText(scorer)
