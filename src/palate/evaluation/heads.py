"""Each output of a model with several, as if it were the reward: how often it alone tells the comparisons right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.evaluation.evaluator import summarize
from palate.evaluation.items import compare, with_rewards
from palate.types import PreferenceGroup


def evaluate_heads(groups: Sequence[PreferenceGroup], outputs: np.ndarray, names: Sequence[str], *, confidence: float = 0.95) -> dict[str, dict[str, Any]]:
    """Accuracy with its interval by name, over decided comparisons that were scored; `outputs` [N, D] in the order of the groups' responses.

    An output of which less is better (verbosity, a raw variance) shows as an accuracy below one half.
    """
    found = {}
    for name, column in zip(names, np.asarray(outputs, dtype=float).T, strict=True):
        items = compare(with_rewards(groups, column))
        items = items[~items.is_tie & items.is_scored]
        if len(items):
            found[name] = summarize(items, confidence)
    return found
