"""Many linear heads on one backbone: named vectors over its embeddings, saved as a plain classifier with as many outputs.

A head costs one product of H numbers, so a hundred of them score as fast as one. The checkpoint is what every other one is: a
`*ForSequenceClassification` under the contract, whose readout says which reward the outputs make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from palate.errors import ModelError, StorageError
from palate.models.checkpoints import RewardStatistics, whole_directory, write_text
from palate.models.heads import Float32Linear, head_name
from palate.models.reward_model import mark_config
from palate.multi_objective.decomposition import Decomposition
from palate.scoring.contract import build_contract, check_saved
from palate.scoring.embeddings import Embeddings
from palate.scoring.local import LocalScorer
from palate.types import Exchange, Readout

ORIGINAL = "original"
"""The name of the head that the model had."""


@dataclass(frozen=True)
class LinearHeads:
    """D heads over embeddings of width H: scores = embeddings @ weights.T + bias."""

    names: tuple[str, ...]
    weights: np.ndarray  # float32 [D, H]
    bias: np.ndarray  # float32 [D]

    def __len__(self) -> int:
        return len(self.names)

    def score(self, embeddings: Embeddings | np.ndarray) -> np.ndarray:
        """float32 [N, D], batch by batch."""
        given = embeddings if isinstance(embeddings, Embeddings) else Embeddings(embeddings)
        found = np.empty((len(given), len(self)), dtype=np.float32)
        start = 0
        for rows in given.batches():
            found[start : start + len(rows)] = rows @ self.weights.T + self.bias
            start += len(rows)
        return found

    def combined(self, coefficients: np.ndarray, offset: float = 0.0, *, name: str = "reward") -> LinearHeads:
        """The one head that gives sum_j coefficients_j head_j + offset."""
        weights = coefficients @ self.weights.astype(np.float64)
        bias = float(coefficients @ self.bias.astype(np.float64)) + offset
        return LinearHeads((name,), weights[None].astype(np.float32), np.array([bias], dtype=np.float32))

    def with_heads(self, others: LinearHeads) -> LinearHeads:
        """These and behind them the others."""
        return LinearHeads((*self.names, *others.names), np.concatenate([self.weights, others.weights]), np.concatenate([self.bias, others.bias]))


def heads_of(scorer: LocalScorer) -> LinearHeads:
    """The heads that a model has, under the names of its outputs."""
    if scorer.readout.aggregate is not None:
        raise ModelError("a model of step rewards reads its head at every step; heads over embeddings need one that rewards whole responses")
    head = _head(scorer)
    weights = head.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weights), dtype=np.float32) if head.bias is None else head.bias.detach().float().cpu().numpy()
    return LinearHeads(scorer.readout.outputs, weights, bias)


def original_head(scorer: LocalScorer) -> LinearHeads:
    """The reward of a model as one head, whatever outputs it is read from."""
    return heads_of(scorer).combined(np.array(scorer.readout.weights), name=ORIGINAL)


def signed_heads(decomposition: Decomposition) -> LinearHeads:
    """Each direction as two heads, `pc01+` along it and `pc01-` against it; the directions by decreasing variance."""
    names = tuple(name + sign for name in decomposition.names for sign in "+-")
    weights = np.repeat(decomposition.directions, 2, axis=0) * np.tile([1.0, -1.0], len(decomposition.directions))[:, None]
    return LinearHeads(names, weights.astype(np.float32), np.zeros(len(names), dtype=np.float32))


def projection_weights(heads: LinearHeads, original: LinearHeads, decomposition: Decomposition) -> tuple[float, ...]:
    """Readout weights that give the original head's part within the span of the directions: half of it by each sign."""
    along = decomposition.directions @ original.weights[0].astype(np.float64)
    found = dict(zip(signed_heads(decomposition).names, (float(half) for a in along for half in (a / 2, -a / 2)), strict=True))
    return tuple(found.get(name, 0.0) for name in heads.names)


def save_heads(
    scorer: LocalScorer,
    heads: LinearHeads,
    output: str | Path,
    *,
    golden: Sequence[Exchange],
    readout: Readout | None = None,
    rewards: RewardStatistics | None = None,
    data_fingerprint: str | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """The scorer's backbone with these heads in place of its own, as a checkpoint that loads everywhere and was checked by its golden examples.

    `readout`: how one reward is read (default: one head's output). `files`: further files of the folder, by name. A decoder's head has no bias in
    transformers: a constant is left away there, which changes no comparison. Raises StorageError where `output` holds something already.
    """
    if Path(output).exists() and any(Path(output).iterdir()):
        raise StorageError(f"{output}: is not empty; give a new folder")
    readout = readout or Readout(heads.names, (1.0,))
    with _other_head(scorer, heads):
        contract = build_contract(scorer.model, scorer.encoder, golden=golden, readout=readout, rewards=rewards, data_fingerprint=data_fingerprint)
        if scorer.cut_prompts:
            contract = replace(contract, length_policy="truncate_prompt")
        with whole_directory(output) as part:
            scorer.model.save_pretrained(part)
            scorer.tokenizer.save_pretrained(part)
            contract.save(part)
            for name, text in (files or {}).items():
                write_text(part / name, text)
            check_saved(part)


def _head(scorer: LocalScorer) -> nn.Linear:
    name = head_name(scorer.model)
    assert name is not None  # `as_reward_model` refuses a model without one
    head: Any = scorer.model.get_submodule(name)
    return head


@contextmanager
def _other_head(scorer: LocalScorer, heads: LinearHeads) -> Iterator[None]:
    """The model with other heads; its own is back afterwards."""
    model, old = scorer.model, _head(scorer)
    name = str(head_name(model))
    config = {key: getattr(model.config, key, None) for key in ("id2label", "label2id", "problem_type", "sentence_transformers")}
    new = Float32Linear(heads.weights.shape[1], len(heads), bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(torch.from_numpy(heads.weights))
        if new.bias is not None:
            new.bias.copy_(torch.from_numpy(heads.bias))
    try:
        _set(model, name, new.to(scorer.device))
        mark_config(model, heads.names)
        yield
    finally:
        _set(model, name, old)
        for key, value in config.items():
            setattr(model.config, key, value)


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
