"""A Scorer as RL stacks call it: whole batches, or single samples that are gathered into batches; what has no reward says why, and nothing invents one."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from palate.errors import DataError
from palate.scoring.sources import open_scorer
from palate.serving.batching import MAX_BATCH, MAX_WAIT, Batcher
from palate.serving.shaping import Shaped, one_reward, whole_text
from palate.types import Exchange, Scorer

logger = logging.getLogger(__name__)


class Reward(NamedTuple):
    value: float  # NaN: none
    parts: Mapping[str, float] = {}  # of a shaped reward, by name
    problem: str = ""  # why there is none

    def number(self, unscored: float | None) -> float:
        """The value for a stack that knows no missing reward. Raises DataError where there is none and `unscored` does not stand in for it."""
        if not math.isnan(self.value):
            return self.value
        if unscored is None:
            raise DataError(f"a sample has no reward: {self.problem}; say with unscored= what number is to stand for that")
        return unscored


NO_REWARD = "the scorer gave none (is it too long?)"


class RewardSource:
    """Rewards of exchanges from a Scorer or from what `open_scorer` takes: a checkpoint, an endpoint's address, `ensemble:A,B`.

    What is opened here gives NaN for a conversation beyond its limit; a scorer that is handed in does as it was made to, and as `options`, which go to
    every `score`, say. `formatted`: prompts and responses are strings that went through a chat template, which a model is to read as one text.
    Safe to use from several threads.
    """

    def __init__(self, source: Scorer | str, *, formatted: bool = False, max_batch: int = MAX_BATCH, max_wait: float = MAX_WAIT, **options: Any):
        scorer = open_scorer(source).scorer if isinstance(source, str) else source
        self.scorer = whole_text(scorer) if formatted else scorer
        self.options: dict[str, Any] = ({"on_long": "nan"} if isinstance(source, str) else {}) | options
        self.batcher: Batcher[Exchange, Reward] = Batcher(self.many, max_batch=max_batch, max_wait=max_wait)
        self._lock = threading.Lock()

    def many(self, exchanges: Sequence[Exchange]) -> list[Reward]:
        """One reward an exchange, in order. An exchange that the scorer refuses (DataError) has none; other errors are raised."""
        with self._lock:
            try:
                return self._score(exchanges)
            except DataError as error:
                if len(exchanges) < 2:
                    return [Reward(math.nan, problem=str(error)) for _ in exchanges]
            return [self._alone(exchange) for exchange in exchanges]

    async def many_async(self, exchanges: Sequence[Exchange]) -> list[Reward]:
        return await asyncio.to_thread(self.many, exchanges)

    def one(self, exchange: Exchange) -> Reward:
        """One reward, computed with those that other threads ask for at the same time."""
        return self.batcher(exchange)

    async def one_async(self, exchange: Exchange) -> Reward:
        return await self.batcher.one(exchange)

    def close(self) -> None:
        self.batcher.close()

    def _alone(self, exchange: Exchange) -> Reward:
        try:
            return self._score([exchange])[0]
        except DataError as error:
            logger.warning("a sample has no reward: %s", error)
            return Reward(math.nan, problem=str(error))

    def _score(self, exchanges: Sequence[Exchange]) -> list[Reward]:
        if isinstance(self.scorer, Shaped):
            values, parts = self.scorer.score_parts(exchanges, **self.options)
        else:
            values, parts = one_reward(self.scorer, exchanges, **self.options), {}
        return [
            Reward(float(value), {name: float(part[i]) for name, part in parts.items()}, "" if np.isfinite(value) else NO_REWARD)
            for i, value in enumerate(values)
        ]


def means(rewards: Sequence[Reward]) -> dict[str, float]:
    """What to log of a batch: the mean of each part where it is known, and the share of samples without a reward."""
    names = dict.fromkeys(name for reward in rewards for name in reward.parts)
    found: dict[str, float] = {}
    for name in names:
        values = [reward.parts[name] for reward in rewards if name in reward.parts and not math.isnan(reward.parts[name])]
        if values:
            found[name] = float(np.mean(values))
    return found | {"unscored": sum(math.isnan(reward.value) for reward in rewards) / max(1, len(rewards))}


def conversation(prompt: Any, response: Any) -> Exchange:
    """Prompt and response as stacks hand them on: texts stay texts; where one of them is messages, the other's text becomes a message."""
    if isinstance(prompt, str) and isinstance(response, str):
        return Exchange(prompt, response)
    asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else _messages(prompt)
    answered = ({"role": "assistant", "content": response},) if isinstance(response, str) else _messages(response)
    return Exchange(asked, answered)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise DataError(f"got {type(value).__name__} {value!r:.80}, expected text or messages with `role` and `content`")
    return tuple(dict(message) for message in value)
