"""Every output judged by itself, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from palate.data.loading import load_groups
from palate.evaluation.heads import evaluate_heads
from palate.stats.intervals import wilson


def test_each_output_by_hand() -> None:
    """Of four pairs `help` is right on three and cannot be scored on one side of none; `verbose` is right on one of the three that it has, a tie is wrong."""
    groups = load_groups([{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(4)]).groups
    outputs = np.array([[1, 0], [0, 0], [2, 1], [1, 3], [0, 5], [1, 1], [3, np.nan], [0, 2]], dtype=float)
    found = evaluate_heads(groups, outputs, ("help", "verbose"))
    assert (found["help"]["accuracy"], found["help"]["n"]) == (0.75, 4)
    assert (found["verbose"]["accuracy"], found["verbose"]["n"], found["verbose"]["reward_ties"]) == (pytest.approx(1 / 3), 3, 1)
    assert found["help"]["interval"] == pytest.approx(tuple(wilson(3, 4)[:2]))


def test_an_output_without_scores_is_left_out() -> None:
    groups = load_groups([{"prompt": "p", "chosen": "a", "rejected": "b"}]).groups
    assert list(evaluate_heads(groups, np.array([[1, np.nan], [0, np.nan]]), ("help", "none"))) == ["help"]
