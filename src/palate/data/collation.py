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

from palate.data.tokenization import EncodedGroup, shared_prefix

FLOAT_KEYS = ("margin", "weight", "probability")
COMPARISON_KEYS = ("chosen", "rejected", "margin", "weight", "probability", "group")


def encoded_row(encoded: EncodedGroup, index: int) -> dict[str, Any]:
    """An encoded group as the flat columns of a `datasets.Dataset`.

    `group` numbers it, `length` is its longest sequence in tokens, `tokens` what it takes to compute it with its shared prefix once.
    """
    comparisons = encoded.group.comparisons
    lengths = [len(ids) for ids in encoded.token_ids]
    return {
        "token_ids": encoded.token_ids,
        "chosen": [c.chosen for c in comparisons],
        "rejected": [c.rejected for c in comparisons],
        "margin": [float(c.margin) for c in comparisons],
        "weight": [float(c.weight) for c in comparisons],
        "probability": [float(c.probability) for c in comparisons],
        "group": index,
        "length": max(lengths),
        "tokens": sum(lengths) - shared_prefix(encoded.token_ids) * (len(lengths) - 1),
    }


@dataclass
class PreferenceCollator:
    """Right padding with `pad_token_id`, to a multiple of `pad_to_multiple_of` where given (8 or 64 suits tensor cores)."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return self.pad([ids for row in rows for ids in row["token_ids"]]) | comparison_columns(rows)

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


def comparison_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The comparisons of several groups, pointing into their responses one group after the other. Each [P]."""
    columns: dict[str, list[float]] = {key: [] for key in COMPARISON_KEYS}
    offset = 0
    for row in rows:
        for key in FLOAT_KEYS:
            columns[key].extend(row[key])
        for key in ("chosen", "rejected"):
            columns[key].extend(index + offset for index in row[key])
        columns["group"].extend([row["group"]] * len(row["chosen"]))
        offset += len(row["token_ids"])
    return {key: torch.tensor(values, dtype=torch.float32 if key in FLOAT_KEYS else torch.long) for key, values in columns.items()}
