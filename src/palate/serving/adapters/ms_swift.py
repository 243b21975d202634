"""ms-swift: an outcome reward for `orms[...]` and a plugin for `rm_plugins[...]`, both classes, as ms-swift makes their objects itself.

ms-swift calls an ORM as `orm(completions, **columns)`; among the columns are `messages`, whole conversations that end with the completion. None stands
for a missing reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from palate.data.tokenization import as_exchange
from palate.errors import DataError
from palate.serving.rewards import RewardSource
from palate.types import Exchange, Scorer


def ms_swift_orm(source: Scorer | str, *, asynchronous: bool = False) -> type:
    """A class for `orms["palate"]`, whose objects share one scorer; `asynchronous`: as ms-swift's AsyncORM."""
    rewards = RewardSource(source)

    class PalateORM:
        def __init__(self, args: Any = None, **_: Any):
            self.args = args

        def __call__(self, completions: Sequence[str], *, messages: Any = None, **_: Any) -> list[float | None]:
            return [None if math.isnan(reward.value) else reward.value for reward in rewards.many(_exchanges(completions, messages))]

    class PalateAsyncORM:
        def __init__(self, args: Any = None, **_: Any):
            self.args = args

        async def __call__(self, completions: Sequence[str], *, messages: Any = None, **_: Any) -> list[float | None]:
            return [None if math.isnan(reward.value) else reward.value for reward in await rewards.many_async(_exchanges(completions, messages))]

    return PalateAsyncORM if asynchronous else PalateORM


def ms_swift_plugin(source: Scorer | str) -> type:
    """A class for `rm_plugins["palate"]`: rewards [N] of ms-swift's inputs, whatever model ms-swift loaded beside it. NaN is a missing reward."""
    rewards = RewardSource(source)

    class PalatePlugin:
        def __init__(self, model: Any = None, template: Any = None):
            self.model, self.template = model, template

        def __call__(self, inputs: Sequence[Mapping[str, Any]], **_: Any) -> torch.Tensor:
            found = rewards.many([as_exchange(list(request["messages"])) for request in inputs])
            return torch.tensor([reward.value for reward in found], dtype=torch.float32)

    return PalatePlugin


def _exchanges(completions: Sequence[str], messages: Any) -> list[Exchange]:
    if messages is None:
        raise DataError("ms-swift passed no `messages` beside the completions, so their prompts are not known; expected one conversation a completion")
    exchanges = [as_exchange(list(conversation)) for conversation in messages]
    if len(exchanges) != len(completions):
        raise DataError(f"{len(completions)} completions and {len(exchanges)} conversations; expected one each")
    return exchanges
