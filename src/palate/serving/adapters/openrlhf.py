"""OpenRLHF: `reward_func` of the .py file that is given as `--reward.remote_url`.

OpenRLHF calls `reward_func(queries, prompts, labels)` in a thread for each sample, so samples are gathered into batches here. A query is prompt and
response decoded with their special tokens, as the policy's chat template wrote them: it goes to the reward model as it stands, its special tokens are
read as such, and BOS and EOS are added only where they are missing. The reward model must therefore know the policy's template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from palate.errors import DataError
from palate.serving.batching import MAX_WAIT
from palate.serving.rewards import RewardSource
from palate.serving.shaping import Shaped
from palate.types import Exchange, Scorer


def openrlhf_reward(
    source: Scorer | str,
    *,
    exchange: Callable[[str, str, Any], Exchange] | None = None,
    unscored: float | None = None,
    max_wait: float = MAX_WAIT,
) -> Callable[..., dict[str, Any]]:
    """`reward_func(queries, prompts, labels)` -> rewards and scores [N] (the same), and `extra_logs` with the parts of a shaped reward.

    `exchange(query, prompt, label)` says what to score instead, for a reward model with another template than the policy's. A sample without a reward
    raises DataError, which OpenRLHF logs and leaves the sample without one, unless `unscored` gives it a number.
    """
    rewards = RewardSource(source, formatted=True, max_wait=max_wait)
    cut = exchange or (_cut if isinstance(rewards.scorer, Shaped) else _whole)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
        waiting = [rewards.batcher.submit(cut(*sample)) for sample in zip(queries, prompts, labels, strict=True)]
        found = [future.result() for future in waiting]
        values = torch.tensor([reward.number(unscored) for reward in found])
        names = dict.fromkeys(name for reward in found for name in reward.parts)
        logs = {name: torch.tensor([reward.parts.get(name, float("nan")) for reward in found]) for name in names}
        return {"rewards": values, "scores": values, "extra_logs": logs}

    return reward_func


def _whole(query: str, prompt: str, _: Any) -> Exchange:
    return Exchange("", query)


def _cut(query: str, prompt: str, _: Any) -> Exchange:
    """Prompt and response apart, since rules read the response alone."""
    if not query.startswith(prompt):
        raise DataError(f"the query does not begin with its prompt (was the prompt cut?): {query[:60]!r}; rules need the response alone, give exchange=")
    return Exchange(prompt, query.removeprefix(prompt))
