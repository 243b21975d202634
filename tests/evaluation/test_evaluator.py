"""Results by hand from a scorer whose rewards are known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from palate.data.loading import load_groups
from palate.errors import DataError
from palate.evaluation.evaluator import evaluate


class Table:
    """A scorer that knows the reward of every response text."""

    def __init__(self, rewards: dict[str, float]):
        self.rewards, self.calls = rewards, 0

    def score(self, conversations) -> np.ndarray:
        self.calls += len(conversations)
        return np.array([self.rewards[c.response] for c in conversations], dtype=np.float32)


def groups(rows):
    return load_groups(rows, name="rows").groups


def test_accuracy_ties_and_unscored_by_hand() -> None:
    rows = [{"prompt": f"p{i}", "chosen": c, "rejected": r} for i, (c, r) in enumerate([("a", "b"), ("b", "a"), ("c", "a"), ("x", "a"), ("a", "d")])]
    result = evaluate(Table({"a": 1.0, "b": 0.0, "c": 1.0, "x": float("nan"), "d": -1.0}), groups(rows)).result
    # right, wrong, tie, not scored, right
    assert (result.n, result.accuracy, result.accuracy_ties_half, result.reward_ties, result.unscored) == (4, 0.5, 0.625, 1, 1)
    assert result.mean_margin == pytest.approx((1 - 1 + 0 + 2) / 4)
    assert result.log_loss == pytest.approx(np.mean([math.log1p(math.exp(-d)) for d in (1, -1, 0, 2)]))
    assert result.swap_check == {"accuracy_swapped": 0.25, "expected": 0.25, "passed": True}
    assert result.interval_method == "wilson"


def test_each_response_is_scored_once_and_ties_are_left_out() -> None:
    scorer = Table({"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0})
    evaluation = evaluate(scorer, groups([{"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [4, 3, 2, 2]}]))
    assert scorer.calls == 4
    assert evaluation.result.n == 5 and evaluation.result.label_ties == 1 and evaluation.result.accuracy == 1.0
    assert len(evaluation.items) == 6


def test_the_length_baseline_beside_it() -> None:
    rows = [
        {"prompt": "p", "chosen": "longer", "rejected": "short"},
        {"prompt": "q", "chosen": "tiny", "rejected": "long one"},
        {"prompt": "r", "chosen": "same", "rejected": "size"},
    ]
    texts = {row[side]: 0.0 for row in rows for side in ("chosen", "rejected")}
    assert evaluate(Table(texts), groups(rows)).result.baselines["longer_wins"]["accuracy"] == 0.5


def test_subsets_and_clusters() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "subset": "x"}] * 2 + [{"prompt": "q", "chosen": "b", "rejected": "a", "subset": "y"}]
    result = evaluate(Table({"a": 1.0, "b": 0.0}), groups(rows)).result
    assert {name: row["accuracy"] for name, row in result.subsets.items()} == {"x": 1.0, "y": 0.0}
    assert result.prompts == 2 and result.interval_method == "prompt-clustered wilson"


def test_saving_and_the_top_level(tmp_path: Path) -> None:
    evaluation = evaluate(Table({"a": 1.0, "b": 0.0}), groups([{"prompt": "p", "chosen": "a", "rejected": "b", "id": 7}]))
    items = evaluation.save(tmp_path / "deep" / "results.json")
    data = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert {"accuracy", "accuracy_ties_half", "n", "interval"} <= set(data) and data["accuracy"] == 1.0
    line = json.loads(items.read_text().splitlines()[0])
    assert line["id"] == 7 and line["outcome"] == "right" and line["margin"] == 1.0
    assert data == json.loads(json.dumps(asdict(evaluation.result)))


def test_nothing_to_compare_is_said_so() -> None:
    with pytest.raises(DataError, match="none of the 1 groups has a comparison"):
        evaluate(Table({}), groups([{"prompt": "p", "response": "r"}]))
    with pytest.raises(DataError, match="1 could not be scored"):
        evaluate(Table({"a": float("nan"), "b": 0.0}), groups([{"prompt": "p", "chosen": "a", "rejected": "b"}]))
