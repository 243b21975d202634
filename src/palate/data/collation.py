"""Encoded groups to one index batch: N rows right-padded, P comparisons that point into them.

    groups [{token_ids: [[5, 6], [5, 7, 8]], chosen: [0], rejected: [1], ...}, ...]
      -> input_ids [N, L], attention_mask [N, L], chosen [P], rejected [P], margin [P], weight [P], probability [P], group [P]

Every response stands once, however many comparisons point to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from palate.data.tokenization import EncodedGroup

COMPARISON_KEYS = ("chosen", "rejected", "margin", "weight", "probability", "group")


def encoded_row(encoded: EncodedGroup, index: int) -> dict[str, Any]:
    """An encoded group as the flat columns of a `datasets.Dataset`; `group` numbers it, `length` is its longest sequence in tokens."""
    comparisons = encoded.group.comparisons
    return {
        "token_ids": encoded.token_ids,
        "chosen": [c.chosen for c in comparisons],
        "rejected": [c.rejected for c in comparisons],
        "margin": [float(c.margin) for c in comparisons],
        "weight": [float(c.weight) for c in comparisons],
        "probability": [float(c.probability) for c in comparisons],
        "group": index,
        "length": max(map(len, encoded.token_ids)),
    }


@dataclass
class PreferenceCollator:
    """Right padding with `pad_token_id`, to a multiple of `pad_to_multiple_of` where given (8 or 64 suits tensor cores)."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        sequences = [ids for row in rows for ids in row["token_ids"]]
        batch = self.pad(sequences)
        columns: dict[str, list[float]] = {key: [] for key in COMPARISON_KEYS}
        offset = 0
        for row in rows:
            for key in ("margin", "weight", "probability"):
                columns[key].extend(row[key])
            for key in ("chosen", "rejected"):
                columns[key].extend(index + offset for index in row[key])
            columns["group"].extend([row["group"]] * len(row["chosen"]))
            offset += len(row["token_ids"])
        for key, values in columns.items():
            batch[key] = torch.tensor(values, dtype=torch.float32 if key in ("margin", "weight", "probability") else torch.long)
        return batch

    def pad(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """N sequences -> input_ids [N, L], attention_mask [N, L]."""
        length = max(map(len, sequences))
        multiple = self.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        input_ids = torch.full((len(sequences), length), self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros((len(sequences), length), dtype=torch.long)
        for i, ids in enumerate(sequences):
            input_ids[i, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
            attention_mask[i, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}
