"""Comparisons over embedded responses: what decompositions, adaptation and their tables read. Columns [P], one row a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from palate.data.loading import prompt_key
from palate.data.pairing import training_comparisons
from palate.errors import DataError
from palate.scoring.embeddings import BATCH, Embeddings
from palate.stats.intervals import codes_of
from palate.types import Conversation, Exchange, PreferenceGroup, text_of

PairWeights: TypeAlias = Literal["balanced", "given", "margin"]
"""given: each pair by the weight of its row, 1 where it has none; balanced: divided by the pairs of its row, so that a ranking of K responses counts as
much as one pair (1/C(K,2) a pair); margin: balanced, times the margin."""

PAIR_WEIGHTS: tuple[str, ...] = get_args(PairWeights)


class EmbedsAll(Protocol):
    """What `CachedEmbedder` does."""

    def embed(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> Embeddings: ...


@dataclass(frozen=True)
class Pairs:
    """P comparisons of N embedded responses, in input order; all of them, or those of a mask (`pairs[mask]`)."""

    groups: Sequence[PreferenceGroup]
    embeddings: Embeddings  # [N]
    group: np.ndarray  # int [P], which of the groups
    chosen: np.ndarray  # int [P], which of the N
    rejected: np.ndarray
    weight: np.ndarray  # float [P]
    probability: np.ndarray  # P(chosen is better) by the label
    prompts: np.ndarray  # int [P], equal for equal prompts: the cluster
    contents: np.ndarray  # int [N], equal for equal texts of responses, whatever their prompt
    lengths: np.ndarray  # int [N], characters
    starts: np.ndarray  # int [groups], the first of the N of each group
    left_out: int = 0  # comparisons of responses that have no embedding (too long, or empty)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, which: np.ndarray) -> Pairs:
        rows = {name: getattr(self, name)[which] for name in ("group", "chosen", "rejected", "weight", "probability", "prompts")}
        return replace(self, **rows, left_out=0)

    @property
    def length_difference(self) -> np.ndarray:
        """Characters of chosen minus rejected, int [P]."""
        return self.lengths[self.chosen] - self.lengths[self.rejected]

    def differences(self, size: int = BATCH) -> Iterator[tuple[np.ndarray, slice]]:
        """(embeddings of chosen minus rejected float64 [b, H], rows), batch by batch."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield self.embeddings.take(self.chosen[rows]).astype(np.float64) - self.embeddings.take(self.rejected[rows]), rows

    def metadata(self, key: str) -> list[Any]:
        return [self.groups[g].metadata.get(key) for g in self.group]

    def rating_difference(self, attribute: str) -> np.ndarray:
        """Rating of chosen minus rejected, float [P]; NaN where either has none."""
        found = np.full(len(self), np.nan)
        for i, g in enumerate(self.group):
            ratings = self.groups[g].ratings
            if ratings:
                sides = [ratings[n - self.starts[g]].get(attribute, np.nan) for n in (self.chosen[i], self.rejected[i])]
                found[i] = sides[0] - sides[1]
        return found

    def attributes(self) -> list[str]:
        """Names of what responses are rated for, in order of first appearance."""
        return list(dict.fromkeys(name for group in self.groups for rating in group.ratings for name in rating))

    def texts(self, i: int) -> tuple[str, str, str]:
        """(prompt, chosen, rejected) of row i."""
        group, start = self.groups[self.group[i]], self.starts[self.group[i]]
        return text_of(group.prompt), *(text_of(group.responses[n - start]) for n in (self.chosen[i], self.rejected[i]))  # type: ignore[return-value]


def embedded_pairs(
    embedder: EmbedsAll,
    groups: Sequence[PreferenceGroup],
    *,
    weights: PairWeights = "balanced",
    ties: str = "drop",
    on_long: str = "nan",
    progress: bool = False,
) -> Pairs:
    """Embed every response once and lay out the comparisons. `ties`: "drop", or "soft" (P = 0.5).

    Comparisons of a response without an embedding are left out and counted. Raises DataError where none is left, or where `weights="margin"` finds no
    margin.
    """
    exchanges = [exchange for group in groups for exchange in group.exchanges()]
    embeddings = embedder.embed(exchanges, progress=progress, on_long=on_long)
    starts = np.cumsum([0, *(len(group.responses) for group in groups)])
    rows = [(g, c) for g, group in enumerate(groups) for c in training_comparisons(group.comparisons, ties=ties)]
    if not rows:
        raise DataError(f"{len(groups)} groups hold no decided comparison; give preference rows (pairs, rankings, ratings or votes)")
    group = np.array([g for g, _ in rows])
    chosen, rejected = (starts[group] + np.array([getattr(c, side) for _, c in rows]) for side in ("chosen", "rejected"))
    texts = [text_of(response) for one in groups for response in one.responses]
    keys = [prompt_key(one.prompt if text_of(one.prompt).strip() else one.responses[0]) for one in groups]
    pairs = Pairs(
        groups,
        embeddings,
        group,
        chosen,
        rejected,
        _weights(rows, weights),
        np.array([c.probability for _, c in rows], dtype=float),
        codes_of(keys)[group],
        codes_of([hashlib.sha256(text.encode()).digest() for text in texts]),
        np.array([len(text) for text in texts]),
        starts[:-1],
    )
    whole = ~(embeddings.missing[chosen] | embeddings.missing[rejected])
    if not whole.any():
        raise DataError(f"none of {len(pairs)} comparisons has two responses that the model can embed; they are longer than its max_length, or empty")
    return pairs if whole.all() else replace(pairs[whole], left_out=int((~whole).sum()))


def _weights(rows: Sequence[tuple[int, Any]], how: PairWeights) -> np.ndarray:
    weights = np.array([c.weight for _, c in rows], dtype=float)
    if how == "given":
        return weights * np.bincount([g for g, _ in rows])[[g for g, _ in rows]]
    if how == "balanced":
        return weights
    margins = np.array([c.margin for _, c in rows])
    if not margins.any():
        raise DataError("weights by margin need margins, and no comparison has one; give rows with a `margin` column, or weigh them `balanced`")
    return weights * margins
