"""One packed row: trees of token segments, where each token stands in them, and which tokens may see which.

A row holds trees one after the other, and a tree is written as its lengths `[prefix, branch, branch, ...]`: the tokens that all its sequences
share, then what each of them has alone. Sequence i of a tree is prefix + branch i. Encoders share nothing: their trees are `[0, length]`.

    tokens     [ a b c | d e | f ]  trees [[3, 2, 1]]      two sequences: a b c d e  and  a b c f
    positions    0 1 2   3 4   3
    branch       0 0 0   1 1   2    0 marks the prefix
    reads                  4   5    the token that speaks for each sequence

Shapes: T tokens of the row, N sequences (branches of all trees in order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

Trees = Sequence[Sequence[int]]


def untraced(forward: Any) -> Any:
    """Leave this function itself out of torch.compile, not what it calls."""
    return torch.compiler.disable(forward, recursive=False)


class Piece(NamedTuple):
    """Queries [start, stop) against the keys of one or two spans; the unit of attention by segment.

    `causal`: query i sees the keys up to its own (one span, as long as the queries). `mask` [queries, keys]: what is added to the scores
    (0 or -inf) where neither "all" nor "causal" describes it.
    """

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]
    causal: bool
    mask: Tensor | None


@dataclass
class Layout:
    """Where every token of one packed row stands. `pieces`, `mask` and `block_mask` are made once a batch and kept for all layers."""

    trees: Trees
    causal: bool
    positions: Tensor  # [1, T] position of each token in its own sequence
    tree: Tensor  # [T] number of its tree
    branch: Tensor  # [T] 0 in a prefix, else the number of the branch in the row, from 1
    reads: Tensor  # [R] index of each token read; R = N, the token that speaks for a sequence, its last (causal) or its first, unless others are named
    asks: Tensor | None  # [at most N] the tokens that speak for sequences, each once (two may end with the same prefix); None: others are read too
    backend: str
    only_reads: bool = False  # the last layer: only the tokens in `reads` ask
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    @torch.compiler.disable
    def of(
        cls, trees: Trees, *, causal: bool, device: torch.device, backend: str | None = None, offset: int = 0, read: tuple[Tensor, Tensor] | None = None
    ) -> Layout:
        """The layout of a row. `offset`: where learned positions start to count (RoBERTa's begin behind its padding index).

        `read`: tokens to read, as the number of a sequence and the position in it; each [R].
        """
        positions, tree, branch, reads, spans = [], [], [], [], []
        at = count = 0
        for number, (prefix, *branches) in enumerate(trees):
            lengths = np.array([prefix, *branches])
            positions += [np.arange(prefix), *(np.arange(prefix, prefix + n) for n in branches)]
            tree.append(np.full(lengths.sum(), number))
            branch.append(np.repeat(np.concatenate([[0], np.arange(count + 1, count + 1 + len(branches))]), lengths))
            ends = at + np.cumsum(lengths)[1:] - 1
            first = at + np.cumsum(lengths)[:-1]
            # a sequence without tokens of its own ends with the prefix
            last = np.where(lengths[1:] > 0, ends, at + prefix - 1)
            reads.append(last if causal else first)
            spans += [(at, prefix, start) for start in first]
            at += int(lengths.sum())
            count += len(branches)
        table = torch.from_numpy(np.stack([np.concatenate(column) for column in (positions, tree, branch)])).to(device)
        speaking = torch.from_numpy(np.concatenate(reads)).to(device)
        return cls(
            trees=trees,
            causal=causal,
            positions=table[0:1] + offset,
            tree=table[1],
            branch=table[2],
            reads=speaking if read is None else _index_of(spans, *read),
            asks=torch.from_numpy(np.unique(np.concatenate(reads))).to(device) if read is None else None,
            backend=backend or ("flex" if device.type == "cuda" else "segments"),
        )

    def at_reads(self) -> Layout:
        """The same row where only the tokens in `reads` ask (the others' outputs are not read by anyone)."""
        return self._once("at_reads", lambda: replace(self, only_reads=True, made={}))

    # --- who sees whom ---

    def mask_mod(self, window: int | None) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """Whether token `query` of the row sees token `key` (index tensors that broadcast), in the form that FlexAttention takes.

        Window: distance < window, as transformers counts it. Only tensors are captured, so that one compiled kernel serves every batch.
        """
        tree, branch, position, causal = self.tree, self.branch, self.positions[0], self.causal

        def seen(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
            same = (tree[query] == tree[key]) & ((branch[key] == 0) | (branch[key] == branch[query]))
            distance = position[query] - position[key]
            if causal:
                same = same & (distance >= 0)
            return same if window is None else same & (distance.abs() < window)

        return seen

    def mask(self, window: int | None, span: tuple[int, int] | None = None) -> Tensor:
        """[T, T] of booleans, or the square of one span of tokens; the definition that every backend must meet."""
        start, stop = span or (0, len(self.tree))
        tokens = torch.arange(start, stop, device=self.tree.device)
        return self._once(("mask", window, span), lambda: self.mask_mod(window)(None, None, tokens[:, None], tokens[None, :]))

    def block_mask(self, window: int | None) -> Any:
        """The mask as FlexAttention's BlockMask. Compiled on accelerators, where it need not hold all pairs of tokens at once."""
        tokens, device = len(self.tree), self.tree.device
        return self._once(
            ("block", window), lambda: create_block_mask(self.mask_mod(window), None, None, tokens, tokens, device=str(device), _compile=device.type != "cpu")
        )

    def tree_spans(self) -> list[tuple[int, int]]:
        """(start, stop) of each tree in the row."""
        stops = np.cumsum([sum(lengths) for lengths in self.trees]).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    # --- segments ---

    def pieces(self, window: int | None) -> list[Piece]:
        """The row as pieces of attention that skip what the mask forbids."""
        return self._once(("pieces", window), lambda: [*(self._reading_pieces(window) if self.only_reads else self._all_pieces(window))])

    def _all_pieces(self, window: int | None) -> Iterator[Piece]:
        """The prefix and the first branch stand side by side and are one causal sequence; every further branch sees the prefix and itself."""
        for (start, _), (prefix, first, *others) in zip(self.tree_spans(), self.trees, strict=True):
            yield self._square(start, start + prefix + first, window)
            at = start + prefix + first
            for length in others:
                if length and prefix:
                    mask = self._joint_mask(length, prefix, window)
                    yield Piece(at, at + length, ((start, start + prefix), (at, at + length)), False, mask)
                elif length:
                    yield self._square(at, at + length, window)
                at += length

    def _square(self, start: int, stop: int, window: int | None) -> Piece:
        narrow = window is not None and window < stop - start
        return Piece(start, stop, ((start, stop),), self.causal and not narrow, self._square_mask(stop - start, window) if narrow else None)

    def _reading_pieces(self, window: int | None) -> Iterator[Piece]:
        """One query a sequence. Sequences that end with the prefix read the same token: it asks once."""
        reads = iter(self.reads.tolist())
        for (start, _), (prefix, *branches) in zip(self.tree_spans(), self.trees, strict=True):
            at, asked = start + prefix, -1
            for length in branches:
                read = next(reads)
                spans = tuple(span for span in ((start, start + prefix), (at, at + length)) if span[0] < span[1])
                at += length
                if read == asked:
                    continue
                asked = read if not length else asked
                yield Piece(read, read + 1, self._within_window(spans, window), False, None)

    def _within_window(self, spans: tuple[tuple[int, int], ...], window: int | None) -> tuple[tuple[int, int], ...]:
        """The keys that the reading token sees: the last `window` of its sequence, or the first where it is the first token."""
        if window is None:
            return spans
        if not self.causal:
            ((start, stop),) = spans
            return ((start, min(stop, start + window)),)
        left, kept = window, []
        for start, stop in reversed(spans):
            start = max(start, stop - left)
            left -= stop - start
            if start < stop:
                kept.append((start, stop))
        return tuple(reversed(kept))

    def _square_mask(self, length: int, window: int | None) -> Tensor:
        return self._once(("square", length, window), lambda: self._added(range(length), range(length), window))

    def _joint_mask(self, length: int, prefix: int, window: int | None) -> Tensor:
        return self._once(("joint", length, prefix, window), lambda: self._added(range(prefix, prefix + length), range(prefix + length), window))

    def _added(self, queries: range, keys: range, window: int | None) -> Tensor:
        """What is added to the scores of positions of one sequence: 0 where seen, -inf elsewhere. Float32: attention by segment computes in it."""
        distance = torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.stop)[None, :]
        hidden = (distance < 0) & self.causal
        if window is not None:
            hidden |= distance.abs() >= window
        return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def _index_of(spans: Sequence[tuple[int, int, int]], rows: Tensor, positions: Tensor) -> Tensor:
    """Index in the row of positions in sequences, each (start of its prefix, length of its prefix, start of its own tokens). [R], [R] -> [R]"""
    start, prefix, own = torch.tensor(spans, device=rows.device).T[:, rows]
    return torch.where(positions < prefix, start + positions, own + positions - prefix)
