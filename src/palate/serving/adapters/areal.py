"""AReaL: the reward function of its workflows, `f(prompt, completions, prompt_ids, completion_ids, **data)`, called in processes of their own.

Functions are pickled on their way there, so this one is an object that holds the name of its source alone and opens it in each process. Every process
would load a checkpoint again: serve the model and give its address, where samples of all processes are gathered into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from palate.errors import DataError
from palate.serving.rewards import RewardSource, conversation
from palate.types import Exchange


class ArealReward(NamedTuple):
    """Prompt and completion are decoded with their special tokens, as the policy's template wrote them, and are read as one text.

    Where `chat` is set, what is scored is `data["messages"]` and the completion as a chat: for a reward model with another template than the policy's,
    when completions are decoded without special tokens.
    """

    source: str
    unscored: float | None = None
    chat: bool = False

    def __call__(
        self, prompt: str, completions: str, prompt_ids: Sequence[int] | None = None, completion_ids: Sequence[int] | None = None, **data: Any
    ) -> float:
        """Raises DataError for data without `messages` where they are asked for, and for a sample without a reward, unless `unscored` gives it a number."""
        if self.chat and "messages" not in data:
            raise DataError(f"chat=True scores the column `messages`, and the data has only {', '.join(data) or 'none'}")
        exchange = conversation(data["messages"], [{"role": "assistant", "content": completions}]) if self.chat else Exchange(prompt, completions)
        return _opened(self.source).one(exchange).number(self.unscored)


def areal_reward(source: str, *, unscored: float | None = None, chat: bool = False) -> ArealReward:
    return ArealReward(source, unscored, chat)


@lru_cache(maxsize=8)  # sources of one process
def _opened(source: str) -> RewardSource:
    return RewardSource(source, formatted=True, max_wait=0.0)  # a process asks for one sample at a time
