"""Encoded groups to one index batch: N rows right-padded, and what is known about them, by index.

    groups [{token_ids: [[5, 6], [5, 7, 8]], chosen: [0], rejected: [1], ...}, ...]
      -> input_ids [N, L], attention_mask [N, L], chosen [P], rejected [P], margin [P], weight [P], probability [P], group [P]

Every response stands once, however many comparisons point to it. Where the loss asks for more, the batch also holds

    response_group [N], rank [N], rating [N, A] (NaN = missing), response_length [N], prompt_embedding [P, E], prompt_number [P], reference [N]
    read_row [R], read_position [R], last_read [N]     tokens to read, response after response; which of them speaks for each response
    read_label [R], read_step [R]                      class of the step that ends at a token read, or -100; whether one ends there
    next_token [R]                                     the token that follows a token read, or -100
    divergence_start [P], divergence_stop [P]          positions that a comparison compares token by token
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from palate.data.divergence import compared_span
from palate.data.supervision import PAIRWISE
from palate.data.tokenization import EncodedGroup, shared_prefix
from palate.types import IGNORED, Supervision, text_of

FLOAT_KEYS = ("margin", "weight", "probability")
COMPARISON_KEYS = ("chosen", "rejected", "margin", "weight", "probability", "group")
MODEL_KEYS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "trees", "read_row", "read_position", "next_token")
"""What a part holds for the model's forward; everything else is for the loss."""


def encoded_row(encoded: EncodedGroup, index: int, supervision: Supervision = PAIRWISE) -> dict[str, Any]:
    """An encoded group as the flat columns of a `datasets.Dataset`; those beyond the comparisons only where the loss reads them.

    `group` numbers it, `length` is its longest sequence in tokens, `tokens` what it takes to compute it with its shared prefix once.
    """
    group = encoded.group
    lengths = [len(ids) for ids in encoded.token_ids]
    row = {
        "token_ids": encoded.token_ids,
        "chosen": [c.chosen for c in group.comparisons],
        "rejected": [c.rejected for c in group.comparisons],
        "margin": [float(c.margin) for c in group.comparisons],
        "weight": [float(c.weight) for c in group.comparisons],
        "probability": [float(c.probability) for c in group.comparisons],
        "group": index,
        "length": max(lengths),
        "tokens": sum(lengths) - shared_prefix(encoded.token_ids) * (len(lengths) - 1),
    }
    for name in extra_columns(supervision):
        row[name] = _extra(name, encoded, supervision)
    return row


def extra_columns(supervision: Supervision) -> tuple[str, ...]:
    """Columns of an encoded row beyond those that every loss gets."""
    found = {
        "rank" + (f" {supervision.rank_by}" if supervision.rank_by else ""): supervision.ranks,
        "start": supervision.reads == "response" or supervision.lengths or supervision.text,
        "step_end": bool(supervision.classes),
        "step_label": bool(supervision.classes),
        "prompt": supervision.prompts,
    }
    return (*(name for name, wanted in found.items() if wanted), *(f"rating {name}" for name in supervision.attributes))


def _extra(name: str, encoded: EncodedGroup, supervision: Supervision) -> Any:
    group, k = encoded.group, len(encoded.token_ids)
    kind, _, attribute = name.partition(" ")
    if kind == "rank":
        return list(group.ranks or [math.nan] * k)
    if kind == "rating":
        return [rating.get(attribute, math.nan) for rating in group.ratings or [{}] * k]
    if name == "start":
        return list(encoded.starts)
    if name == "step_end":
        return list(encoded.step_ends)
    if name == "prompt":
        return text_of(group.prompt)
    labels = [step_class(step.label, supervision.classes) for step in group.steps]
    return [IGNORED] * (len(labels) - 1) + labels[-1:] if supervision.last_step_only else labels


def step_class(label: int | None, classes: int) -> int:
    """The class of a step: wrong 0, right 1; of three wrong 0, neutral 1, right 2 (labels -1, 0, 1). IGNORED where it has no label."""
    if label is None:
        return IGNORED
    return label if classes == 2 else label + 1


@dataclass
class PreferenceCollator:
    """Right padding with `pad_token_id`, to a multiple of `pad_to_multiple_of` where given (8 or 64 suits tensor cores)."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    supervision: Supervision = PAIRWISE

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return self.pad([ids for row in rows for ids in row["token_ids"]]) | supervision_columns(rows, self.supervision)

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


def supervision_columns(rows: Sequence[Mapping[str, Any]], supervision: Supervision = PAIRWISE) -> dict[str, torch.Tensor]:
    """What is known about several groups, pointing into their responses one group after the other."""
    columns = comparison_columns(rows)
    if supervision == PAIRWISE:
        return columns
    sizes = [len(row["token_ids"]) for row in rows]
    columns["response_group"] = torch.tensor([row["group"] for row in rows]).repeat_interleave(torch.tensor(sizes))
    if supervision.ranks:
        columns["rank"] = _responses(rows, next(name for name in extra_columns(supervision) if name.startswith("rank")))
    if supervision.attributes:
        columns["rating"] = torch.stack([_responses(rows, f"rating {name}") for name in supervision.attributes], dim=1)
    if "reference" in rows[0]:
        columns["reference"] = _responses(rows, "reference")
    if supervision.lengths:
        own = [len(ids) - start for row in rows for ids, start in zip(row["token_ids"], row["start"], strict=True)]
        columns["response_length"] = torch.tensor(own, dtype=torch.float32)
    if "prompt_embedding" in rows[0]:
        comparisons = torch.tensor([len(row["chosen"]) for row in rows])
        columns["prompt_embedding"] = torch.tensor([row["prompt_embedding"] for row in rows], dtype=torch.float32).repeat_interleave(comparisons, dim=0)
        columns["prompt_number"] = torch.tensor([row["prompt_number"] for row in rows]).repeat_interleave(comparisons)
    if supervision.reads != "last" or supervision.text:
        columns |= read_columns(rows, supervision)
    return columns


def _responses(rows: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor:
    """A column with one number a response. [N]"""
    return torch.tensor([value for row in rows for value in row[name]], dtype=torch.float32)


def comparison_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The comparisons of several groups. Each [P]."""
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


def read_columns(rows: Sequence[Mapping[str, Any]], supervision: Supervision) -> dict[str, torch.Tensor]:
    """Which tokens are read: for each response in order its positions, rising."""
    read_row: list[int] = []
    positions: list[int] = []
    columns: dict[str, list[int]] = {"last_read": []}
    response = 0
    for row in rows:
        longest = max(map(len, row["token_ids"]))
        parting = min(shared_prefix(row["token_ids"]), *(len(ids) - 1 for ids in row["token_ids"]))
        for k, ids in enumerate(row["token_ids"]):
            read = _positions(row, k, supervision, parting, longest)
            columns["last_read"].append(len(positions) + read.index(len(ids) - 1))
            if supervision.classes:
                labels = dict(zip(row["step_end"], row["step_label"], strict=True))
                columns.setdefault("read_label", []).extend(labels.get(t, IGNORED) for t in read)
                columns.setdefault("read_step", []).extend(t in labels for t in read)
            if supervision.text:
                columns.setdefault("next_token", []).extend(ids[t + 1] if row["start"][k] - 1 <= t < len(ids) - 1 else IGNORED for t in read)
            positions.extend(read)
            read_row.extend([response] * len(read))
            response += 1
        if supervision.reads.startswith("divergence"):
            for a, b in zip(row["chosen"], row["rejected"], strict=True):
                span = compared_span(row["token_ids"][a], row["token_ids"][b], padding=supervision.reads == "divergence_padded")
                columns.setdefault("divergence_start", []).append(span.start)
                columns.setdefault("divergence_stop", []).append(span.stop)
    return {
        name: torch.tensor(values, dtype=torch.bool if name == "read_step" else torch.long)
        for name, values in {"read_row": read_row, "read_position": positions, **columns}.items()
    }


def _positions(row: Mapping[str, Any], k: int, supervision: Supervision, parting: int, longest: int) -> list[int]:
    """Positions read of one response, its last token always among them. `parting`: from where on the group's responses may differ."""
    length = len(row["token_ids"][k])
    if supervision.reads == "steps":
        return sorted({*row["step_end"], length - 1})
    if supervision.text:  # the token before each of the response's own predicts it
        return list(range(max(row["start"][k] - 1, 0), length))
    if supervision.reads == "response":
        return list(range(row["start"][k], length))
    if supervision.reads == "divergence_padded":  # the padding of the shorter responses of a group takes part
        return list(range(parting, longest))
    return list(range(parting, length))
