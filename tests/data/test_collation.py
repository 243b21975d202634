"""An index batch by hand: rows stand once, comparisons point to them across groups."""

from __future__ import annotations

import torch

from palate.data.collation import PreferenceCollator

ROWS = [
    {"token_ids": [[5, 6], [5, 7, 8]], "chosen": [0], "rejected": [1], "margin": [0.5], "weight": [1.0], "probability": [1.0], "group": 0},
    {"token_ids": [[1], [2], [3]], "chosen": [2, 2], "rejected": [0, 1], "margin": [0, 0], "weight": [0.5, 0.5], "probability": [1.0, 0.75], "group": 1},
]


def test_two_groups() -> None:
    batch = PreferenceCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [5, 7, 8], [1, 0, 0], [2, 0, 0], [3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert batch["chosen"].tolist() == [0, 4, 4] and batch["rejected"].tolist() == [1, 2, 3]
    assert batch["margin"].tolist() == [0.5, 0.0, 0.0] and batch["weight"].tolist() == [1.0, 0.5, 0.5]
    assert batch["probability"].tolist() == [1.0, 1.0, 0.75] and batch["group"].tolist() == [0, 1, 1]
    assert batch["weight"].dtype == torch.float32 and batch["chosen"].dtype == torch.long


def test_padding_to_a_multiple() -> None:
    assert PreferenceCollator(0, pad_to_multiple_of=8)(ROWS)["input_ids"].shape == (5, 8)
