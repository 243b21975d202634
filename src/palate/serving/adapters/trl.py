"""TRL's GRPO, RLOO and Online DPO: a reward function over lists, plain or as a coroutine.

TRL calls `f(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)` (1.16, GRPOTrainer and RLOOTrainer); its Online DPO
leaves the two loggers out, and calls plain functions alone. None stands for a missing reward: GRPO leaves it out of the sum over reward functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from palate.serving.rewards import Reward, RewardSource, conversation, means
from palate.types import Scorer


def trl_reward(source: Scorer | str, *, name: str = "palate", asynchronous: bool = False) -> Callable[..., Any]:
    """A reward function for `reward_funcs`, called `name` in TRL's logs. `asynchronous`: a coroutine, which runs beside TRL's other asynchronous ones.

    Prompts and completions are scored as they come, text or messages: `scorer.score([(prompt, completion), ...])`. Parts of a shaped reward are logged
    as metrics `name/part`, and as columns of the completions table.
    """
    rewards = RewardSource(source)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, log_extra: Any = None, **_: Any) -> list[float | None]:
        return _told(rewards.many(_exchanges(prompts, completions)), name, log_metric, log_extra)

    async def reward_async(prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, log_extra: Any = None, **_: Any) -> list[float | None]:
        return _told(await rewards.many_async(_exchanges(prompts, completions)), name, log_metric, log_extra)

    function: Callable[..., Any] = reward_async if asynchronous else reward
    function.__name__ = function.__qualname__ = name
    return function


def _exchanges(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Any]:
    return [conversation(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _told(found: Sequence[Reward], name: str, log_metric: Any, log_extra: Any) -> list[float | None]:
    if log_metric is not None:
        for part, value in means(found).items():
            log_metric(f"{name}/{part}", value)
    if log_extra is not None:
        for part in dict.fromkeys(part for reward in found for part in reward.parts):
            log_extra(f"{name}/{part}", [reward.parts.get(part, math.nan) for reward in found])
    return [None if math.isnan(reward.value) else reward.value for reward in found]
