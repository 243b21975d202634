"""Batches whose loss is read at one token, the label's: padded on the left, so that every row's label is what comes after the last token.

Logits are then made at one token a row, whatever the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LabelCollator:
    """Features `input_ids`, `label_ids` [C], `targets` [C] (a probability each) and `weight` to a batch for `losses.label_tokens.label_token_loss`."""

    pad_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        longest = max(len(feature["input_ids"]) for feature in features)
        input_ids = torch.full((len(features), longest), self.pad_id)
        mask = torch.zeros_like(input_ids)
        for i, feature in enumerate(features):
            input_ids[i, -len(feature["input_ids"]) :] = torch.tensor(feature["input_ids"])
            mask[i, -len(feature["input_ids"]) :] = 1
        # float32 holds ids up to 2^24 exactly; vocabularies have up to 2^18
        tokens = torch.tensor([feature["label_ids"] for feature in features], dtype=torch.float32)
        weighted = torch.tensor([[feature["weight"] * target for target in feature["targets"]] for feature in features], dtype=torch.float32)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": torch.stack([tokens, weighted], dim=1),
            "logits_to_keep": 1,
        }
