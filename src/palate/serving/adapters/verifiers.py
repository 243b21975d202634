"""verifiers: reward functions for a Rubric, which passes arguments by the names of the parameters.

A function of `prompt` and `completion` is called for each rollout, side by side, so rollouts are gathered into batches; one of `prompts` and
`completions` is called for a group. A Rubric logs errors and counts them as 0, and knows no missing reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from palate.serving.batching import MAX_WAIT
from palate.serving.rewards import RewardSource, conversation
from palate.types import Scorer


def verifiers_reward(source: Scorer | str, *, name: str = "palate", unscored: float | None = None, max_wait: float = MAX_WAIT) -> Callable[..., Any]:
    """A coroutine function for `Rubric(funcs=[...])`. A rollout without a reward raises DataError unless `unscored` gives it a number."""
    rewards = RewardSource(source, max_wait=max_wait)

    async def reward(prompt: Any, completion: Any) -> float:
        return (await rewards.one_async(conversation(prompt, completion))).number(unscored)

    reward.__name__ = reward.__qualname__ = name
    return reward


def verifiers_group_reward(source: Scorer | str, *, name: str = "palate", unscored: float | None = None) -> Callable[..., Any]:
    """The same for all rollouts of a group at once."""
    rewards = RewardSource(source)

    async def reward(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        exchanges = [conversation(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return [found.number(unscored) for found in await rewards.many_async(exchanges)]

    reward.__name__ = reward.__qualname__ = name
    return reward
