"""Encoded groups to packed rows: trees that hold each shared prefix once, filled to a token budget.

    group  [[5 6 7 8], [5 6 9]]   ->   row  5 6 | 7 8 | 9     trees [[2, 2, 1]]      (prefix, branch, branch)

An optimizer step sees the same groups however they are laid out; the budget only cuts a batch into parts that are computed one after the other.
Every part is an index batch of its own (see collation): the responses of its groups in order, and the comparisons between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler

from palate.data.collation import PreferenceCollator, supervision_columns
from palate.data.tokenization import common_prefix, shared_prefix

TOKEN_BUDGET = 16_384
"""Tokens computed at a time: enough to fill any device, little enough for 8B models on 24 GB."""

CPU_TOKEN_BUDGET = 2_048
"""On a CPU: activations of so many tokens stay in its caches (about 5 % faster than rows of 4 000, see docs/log.md)."""

Tree = list[int]


def default_budget(device_type: str) -> int:
    return CPU_TOKEN_BUDGET if device_type == "cpu" else TOKEN_BUDGET


# --- trees --------------------------------------------------------------------------------------------------------------------------------------


def packed_row(groups: Sequence[Sequence[list[int]]], prefixes: Sequence[int]) -> dict[str, Any]:
    """Groups of sequences, each with the length of the prefix that is to be shared -> {input_ids [1, T], trees}."""
    tokens: list[int] = []
    trees: list[Tree] = []
    for sequences, prefix in zip(groups, prefixes, strict=True):
        tokens.extend(sequences[0][:prefix])
        for ids in sequences:
            tokens.extend(ids[prefix:])
        trees.append([prefix, *(len(ids) - prefix for ids in sequences)])
    return {"input_ids": torch.tensor([tokens], dtype=torch.long), "trees": trees}


def batches_by_length(lengths: Sequence[int], budget: int, counts: Sequence[int] | None = None) -> list[list[int]]:
    """Indices in order of length, longest first, cut where a padded batch (sequences times the longest) would exceed the budget.

    `counts`: sequences behind each index, where it stands for a group; `lengths` are then the longest of each.
    """
    batches: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        count = counts[index] if counts else 1
        if not batches or (rows + count) * lengths[batches[-1][0]] > budget:
            batches.append([])
            rows = 0
        batches[-1].append(index)
        rows += count
    return batches


class Planted(NamedTuple):
    """A tree: which sequences, how long a prefix they share, and so how many tokens it saves."""

    indices: list[int]
    prefix: int

    @property
    def saved(self) -> int:
        return self.prefix * (len(self.indices) - 1)


def plant(sequences: Sequence[list[int]], budget: int) -> list[Planted]:
    """Sequences gathered into trees that save tokens; a tree that outgrows `budget` is cut.

    In lexicographic order every shared prefix spans a run of neighbours, and runs nest. From the innermost run outwards, each gathers its single
    sequences into a tree, and with them those trees that save less by a longer prefix of few than by this one of many. (Trees have one level:
    what only some branches share is computed for each of them.)
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    shared = [common_prefix([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    open_runs: list[tuple[int, list[Planted]]] = []  # (prefix, trees in it), outermost first, prefixes growing
    for index, prefix in zip(order, [*shared, -1] if order else [], strict=True):
        trees = [Planted([index], len(sequences[index]))]
        while open_runs and open_runs[-1][0] > prefix:
            inner, others = open_runs.pop()
            trees = _gathered(inner, others + trees)
        if open_runs and open_runs[-1][0] == prefix:
            open_runs[-1][1].extend(trees)
        else:
            open_runs.append((prefix, trees))
    trees = open_runs[0][1] if open_runs else []
    return [part for tree in trees for part in _within_budget(tree, sequences, budget)]


def _gathered(prefix: int, trees: list[Planted]) -> list[Planted]:
    """The trees of a run, with one more of all that gain by joining (a single sequence saves nothing alone)."""
    joining = [tree for tree in trees if prefix * len(tree.indices) > tree.saved]
    joined = Planted([index for tree in joining for index in tree.indices], prefix)
    if joined.saved <= sum(tree.saved for tree in joining):
        return trees
    return [joined, *(tree for tree in trees if prefix * len(tree.indices) <= tree.saved)]


def _within_budget(tree: Planted, sequences: Sequence[list[int]], budget: int) -> Iterator[Planted]:
    """A tree cut where it outgrows the budget; each part repeats the prefix."""
    part: list[int] = []
    tokens = tree.prefix
    for index in tree.indices:
        own = len(sequences[index]) - tree.prefix
        if part and tokens + own > budget:
            yield Planted(part, tree.prefix)
            part, tokens = [], tree.prefix
        part.append(index)
        tokens += own
    yield Planted(part, tree.prefix)


def fill(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `sizes` put into rows of at most `budget` tokens, first-fit decreasing; what alone is larger gets a row of its own.

    Deterministic: equal sizes keep their order, and rows list their members, and stand themselves, in the order of the input.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = next((row for row, left in enumerate(room) if left >= sizes[index]), None)
        if at is None:
            rows.append([])
            room.append(budget)
            at = len(rows) - 1
        rows[at].append(index)
        room[at] -= sizes[index]
    return sorted(sorted(row) for row in rows)


# --- batches ------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class PackingCollator:
    """Encoded groups -> {"parts": [index batch, ...]}, each within the token budget.

    packing `shared`: one row of trees, a group a tree; `packed`: one row of whole sequences; `padded`: N rows right-padded, as `PreferenceCollator` makes them.
    A packed part has `input_ids` [1, T] and `trees`; its N responses are the branches of the trees in order.
    """

    packing: str
    pad: PreferenceCollator
    token_budget: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.packing == "padded":
            longest, counts = [max(map(len, row["token_ids"])) for row in rows], [len(row["token_ids"]) for row in rows]
            parts = sorted(sorted(part) for part in batches_by_length(longest, self.token_budget, counts))
            return {"parts": [self.pad([rows[i] for i in part]) for part in parts]}
        share = self.packing == "shared"
        prefixes = [shared_prefix(row["token_ids"]) if share else 0 for row in rows]
        sizes = [prefix + sum(len(ids) - prefix for ids in row["token_ids"]) for row, prefix in zip(rows, prefixes, strict=True)]
        return {"parts": [self._part([rows[i] for i in part], [prefixes[i] for i in part], share) for part in fill(sizes, self.token_budget)]}

    def _part(self, rows: Sequence[Mapping[str, Any]], prefixes: Sequence[int], share: bool) -> dict[str, Any]:
        groups = [row["token_ids"] for row in rows] if share else [[ids] for row in rows for ids in row["token_ids"]]
        return packed_row(groups, prefixes if share else [0] * len(groups)) | supervision_columns(rows, self.pad.supervision)


def num_tokens(part: Mapping[str, Any]) -> int | torch.Tensor:
    """Tokens of all responses of a part, shared ones counted for every response that has them (a padded part: real tokens)."""
    if "trees" in part:
        return sum(prefix * len(branches) + sum(branches) for prefix, *branches in part["trees"])
    return part["attention_mask"].sum()


def whole_sequences(part: Mapping[str, Any]) -> list[list[int]]:
    """The N sequences of a packed part, prefix and branch."""
    tokens = part["input_ids"][0].tolist()
    sequences, at = [], 0
    for prefix, *branches in part["trees"]:
        shared = tokens[at : at + prefix]
        at += prefix
        for length in branches:
            sequences.append(shared + tokens[at : at + length])
            at += length
    return sequences


def first_trees(part: Mapping[str, Any], sequences: int) -> dict[str, Any]:
    """The row of a packed part up to the tree that brings it to so many sequences (without comparisons)."""
    trees: list[Tree] = []
    for tree in part["trees"]:
        trees.append(tree)
        if sum(len(one) - 1 for one in trees) >= sequences:
            break
    return {"input_ids": part["input_ids"][:, : sum(map(sum, trees))], "trees": trees}


class BalancedSampler(Sampler[int]):
    """The order of another sampler, dealt anew within each optimizer step so that all ranks get as many tokens.

    A step takes `batches` batches of `batch_size` groups (ranks times accumulation steps), and rank r the r-th of every so many. Its groups stay
    the same; only who computes which changes. Dealing goes back and forth down the sizes, so batches differ by little more than one group.
    """

    def __init__(self, base: Sampler[int], sizes: Sequence[int], batch_size: int, batches: int):
        self.base, self.sizes, self.batch_size, self.batches = base, sizes, batch_size, batches

    def __len__(self) -> int:
        return len(self.base)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self.base, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for index in self.base:
            step.append(index)
            if len(step) == self.batch_size * self.batches:
                yield from self._dealt(step)
                step = []
        yield from step

    def _dealt(self, step: list[int]) -> Iterator[int]:
        dealt: list[list[int]] = [[] for _ in range(self.batches)]
        for turn, index in enumerate(sorted(step, key=lambda i: -self.sizes[i])):
            lap, place = divmod(turn, self.batches)
            dealt[place if lap % 2 == 0 else self.batches - 1 - place].append(index)
        for batch in dealt:
            yield from batch
