"""NeMo-RL: an environment whose one step is the reward; to be wrapped in `ray.remote` and named in NeMo-RL's registry.

`step(message_log_batch, metadata)` gives the six fields of NeMo-RL's EnvironmentReturn in their order. NeMo-RL's data processors put the prompt through
the policy's chat template before they put it into the log, so by default a log is read as one formatted text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from palate.errors import DataError
from palate.serving.rewards import Reward, RewardSource, means
from palate.types import Exchange, Scorer


class EnvironmentReturn(NamedTuple):
    """Batched over B samples, as `nemo_rl.environments.interfaces.EnvironmentReturn`."""

    observations: list[dict[str, str]]
    metadata: list[Any]
    next_stop_strings: list[None]
    rewards: torch.Tensor  # [B] float32
    terminateds: torch.Tensor  # [B] bool
    answers: list[str | None]


class NemoRLEnvironment:
    """Rewards of whole episodes; every episode ends with its reward.

    `formatted`: the contents of a log are text that went through a chat template, read as one; otherwise they are the messages of a chat. A sample
    without a reward raises DataError unless `unscored` gives it a number.
    """

    def __init__(self, source: Scorer | str, *, formatted: bool = True, unscored: float | None = None):
        self.rewards = RewardSource(source, formatted=formatted)
        self.formatted, self.unscored = formatted, unscored
        self._since: list[Reward] = []  # since metrics were asked for

    def step(self, message_log_batch: Sequence[Sequence[Mapping[str, Any]]], metadata: Sequence[Any]) -> EnvironmentReturn:
        found = self.rewards.many([self._exchange(log) for log in message_log_batch])
        self._since += found
        values = [reward.number(self.unscored) for reward in found]
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": f"Environment: {value}"} for value in values],
            metadata=list(metadata),
            next_stop_strings=[None] * len(values),
            rewards=torch.tensor(values, dtype=torch.float32),
            terminateds=torch.ones(len(values), dtype=torch.bool),
            answers=[str(log[-1]["content"]) for log in message_log_batch],
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch as it is, and the means of the parts of the rewards since the last call."""
        found, self._since = self._since, []
        return batch, {f"palate/{name}": value for name, value in means(found).items()} if found else {}

    def shutdown(self) -> None:
        self.rewards.close()

    def _exchange(self, log: Sequence[Mapping[str, Any]]) -> Exchange:
        if not log:
            raise DataError("a message log is empty; expected a prompt and a response")
        if self.formatted:
            return Exchange("".join(str(message["content"]) for message in log[:-1]), str(log[-1]["content"]))
        messages = tuple({"role": message["role"], "content": message["content"]} for message in log)  # without the log's token ids
        return Exchange(messages[:-1], messages[-1:])
