"""palate: reward modelling, from raw preferences to a served reward.

    from palate import RewardConfig, RewardTrainer, load_scorer
    load_scorer("out").score([[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]])

Names are loaded when they are first used, so that importing palate costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palate.data.loading import load_groups as load_groups
    from palate.data.validation import check_groups as check_groups
    from palate.errors import PalateError as PalateError
    from palate.evaluation.evaluator import evaluate as evaluate
    from palate.sample import load_sample as load_sample
    from palate.scoring.local import load_scorer as load_scorer
    from palate.training.config import RewardConfig as RewardConfig
    from palate.training.trainer import RewardTrainer as RewardTrainer
    from palate.types import Comparison as Comparison
    from palate.types import Exchange as Exchange
    from palate.types import PreferenceGroup as PreferenceGroup

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "palate.types",
    "Exchange": "palate.types",
    "PalateError": "palate.errors",
    "PreferenceGroup": "palate.types",
    "RewardConfig": "palate.training.config",
    "RewardTrainer": "palate.training.trainer",
    "check_groups": "palate.data.validation",
    "evaluate": "palate.evaluation.evaluator",
    "load_groups": "palate.data.loading",
    "load_sample": "palate.sample",
    "load_scorer": "palate.scoring.local",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'palate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
