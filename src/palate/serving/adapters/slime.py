"""slime: the function that `--custom-rm-path` names, of one Sample or, under `--group-rm`, of a list of them.

A prompt that is a string went through the policy's chat template already (or has none): it and the response are read as one text, special tokens as such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from palate.serving.batching import MAX_WAIT
from palate.serving.rewards import RewardSource, conversation
from palate.types import Exchange, Scorer


def slime_reward(
    source: Scorer | str, *, exchange: Callable[[Any], Exchange] | None = None, unscored: float | None = None, max_wait: float = MAX_WAIT
) -> Callable[..., Any]:
    """`async rm(args, sample)`. `exchange(sample)` says what to score instead of `sample.prompt` and `sample.response`.

    A sample without a reward raises DataError unless `unscored` gives it a number.
    """
    rewards = RewardSource(source, formatted=True, max_wait=max_wait)
    read = exchange or (lambda sample: conversation(sample.prompt, sample.response))

    async def rm(args: Any, sample: Any, **_: Any) -> float | list[float]:
        if isinstance(sample, list):
            return [reward.number(unscored) for reward in await rewards.many_async([read(one) for one in sample])]
        return (await rewards.one_async(read(sample))).number(unscored)

    return rm
