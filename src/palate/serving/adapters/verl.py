"""verl: `compute_score` of the file that `custom_reward_function.path` names.

verl calls `compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)` for one sample at a time: its reward loop awaits
coroutine functions side by side and runs plain ones in threads, so samples are gathered into batches here. The response is decoded without special
tokens. The prompt is not passed: it must stand in `extra_info`, as the `question` that verl's own data preparation writes there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from palate.errors import DataError
from palate.serving.batching import MAX_WAIT
from palate.serving.rewards import Reward, RewardSource, conversation
from palate.types import Exchange, Scorer


def verl_score(
    source: Scorer | str,
    *,
    exchange: Callable[[str, str, Any, Mapping[str, Any]], Exchange] | None = None,
    unscored: float | None = None,
    asynchronous: bool = True,
    max_wait: float = MAX_WAIT,
) -> Callable[..., Any]:
    """`compute_score`: {"score": reward, and each part of a shaped one}, which verl logs.

    `exchange(data_source, solution_str, ground_truth, extra_info)` says what to score; by default a chat of `extra_info["question"]` (text, or messages)
    and the solution. A sample without a reward raises DataError unless `unscored` gives it a number.
    """
    rewards = RewardSource(source, max_wait=max_wait)
    read = exchange or _asked

    async def compute_score_async(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> dict[str, float]:
        return _scored(await rewards.one_async(read(data_source, solution_str, ground_truth, extra_info or {})), unscored)

    def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> dict[str, float]:
        return _scored(rewards.one(read(data_source, solution_str, ground_truth, extra_info or {})), unscored)

    return compute_score_async if asynchronous else compute_score


def _asked(data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Exchange:
    question = extra_info.get("question")
    if question is None:
        known = ", ".join(extra_info) or "nothing"
        raise DataError(f"extra_info has no `question` (it has {known}), so the prompt of a sample of {data_source!r} is not known; give exchange=")
    if not isinstance(question, str):
        question = list(question)  # verl keeps lists in numpy arrays
    return conversation(question, [{"role": "assistant", "content": solution_str}])


def _scored(reward: Reward, unscored: float | None) -> dict[str, float]:
    return {**reward.parts, "score": reward.number(unscored)}  # a part may be called score too
