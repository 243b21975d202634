"""The pairs of a data set as columns: rewards, lengths, subset, source, findings, identity; and which rows fit what is asked, in which order.

A row is one comparison; a group of K ranked responses has many. Everything that can be filtered or sorted by is a numpy column, so that an answer over
100,000 rows is a mask and an index array. Texts stay in their groups and are only looked up for the rows shown.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from palate.data.loading import LoadReport
from palate.errors import DataError
from palate.evaluation.evaluator import CONFIDENT
from palate.evaluation.items import Items, subset_names
from palate.explorer.flags import flags_of
from palate.explorer.query import Query
from palate.explorer.rewards import Rewards, compared
from palate.explorer.search import TextIndex
from palate.stats.calibration import fit_temperature
from palate.stats.noise import Disagreements, confident_disagreements
from palate.types import PreferenceGroup, text_of

ORDERS_KEPT = 16  # answers to recent questions, an index array each: 0.8 MB for 100,000 rows


class Column(NamedTuple):
    """A column of few different texts. `key` is the name it has in the data."""

    key: str
    names: tuple[str, ...]
    codes: np.ndarray  # int32 [P]

    def of(self, row: int) -> str:
        return self.names[self.codes[row]]

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(name, name with the number of its rows)."""
        return [(name, f"{name} ({number:,})") for name, number in zip(self.names, np.bincount(self.codes, minlength=len(self.names)).tolist(), strict=True)]

    def is_(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise DataError(f"{self.key} {name!r}: not in the data; expected one of {', '.join(self.names[:20])}")
        return self.codes == self.names.index(name)


def column(key: str, values: Sequence[str]) -> Column:
    names = sorted(set(values))
    place = {name: i for i, name in enumerate(names)}
    return Column(key, tuple(names), np.array([place[value] for value in values], dtype=np.int32))


class Page(NamedTuple):
    """Rows of one page of an order, and how to go on: the first and last of them are the keys."""

    rows: np.ndarray
    start: int  # place of the first row in the order, from 0
    total: int

    @property
    def has_before(self) -> bool:
        return self.start > 0

    @property
    def has_after(self) -> bool:
        return self.start + len(self.rows) < self.total


@dataclass(frozen=True)
class Labelled:
    """What the label file says of each row; `version` changes with every label."""

    version: int
    any: np.ndarray  # bool [P]: somebody decided it (skipping is not deciding)
    against: np.ndarray  # bool [P]: somebody preferred the side that the data rejects, or neither


class Pairs:
    """The comparisons of the groups with one model's rewards, and maybe another's."""

    def __init__(self, groups: Sequence[PreferenceGroup], rewards: Rewards, *, other: Rewards | None = None, report: LoadReport | None = None):
        self.items: Items = compared(groups, rewards)
        self.groups = groups
        self.model = rewards.source
        self.other = compared(groups, other) if other else None
        self.other_model = other.source if other else ""
        self.report = report
        if not len(self.items):
            raise DataError(f"nothing to show: none of the {len(groups)} groups has a comparison; the explorer needs chosen and rejected, ratings or ranks")
        self.margin = self.items.margin
        self.widest = float(np.nanquantile(np.abs(self.margin), 0.98)) or 1.0 if np.isfinite(self.margin).any() else 1.0  # a margin that fills its bar
        self.gap = self.items.length_difference
        self.decided = ~self.items.is_tie
        self.subset = self._subset()
        self.source = self._source()
        self.flags = flags_of(self.items)
        self.ids = self._identities()
        self.temperature, self.disagreements, self.suspect = self._suspects()
        self._texts = TextIndex("\n".join(map(text_of, (group.prompt, *group.responses))) for group in groups)
        self._orders: OrderedDict[tuple[Query, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()  # requests come in threads

    def __len__(self) -> int:
        return len(self.items)

    # --- columns ---

    def _subset(self) -> Column | None:
        found = subset_names(self.items)
        return column(*found) if found else None

    def _source(self) -> Column | None:
        values = [str(value) for value in self.items.metadata("source")]
        known = self.subset is not None and self.subset.key == "source"
        return None if known or len(set(values)) < 2 else column("source", values)

    def _identities(self) -> np.ndarray:
        """64 bits of prompt, chosen and rejected: a label finds its pair again wherever that stands. uint64 [P]"""
        found = np.empty(len(self), dtype=np.uint64)
        for row in range(len(self)):
            prompt, chosen, rejected = (text_of(part) for part in self.conversations(row))
            text = json.dumps([prompt, chosen, rejected]).encode()
            found[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        return found

    def _suspects(self) -> tuple[float | None, Disagreements | None, np.ndarray]:
        """(best temperature, labels that the model holds for wrong with confidence at it, those as bool [P]); the rule of the `noise` of a result."""
        rows = np.flatnonzero(self.decided & np.isfinite(self.margin))
        suspect = np.zeros(len(self), dtype=bool)
        if not len(rows):
            return None, None, suspect
        temperature = fit_temperature(self.margin[rows]).value
        found = confident_disagreements(expit(self.margin[rows] / temperature), CONFIDENT)
        suspect[rows[found.indices]] = True
        return temperature, found._replace(indices=rows[found.indices]), suspect

    @property
    def is_scored(self) -> bool:
        return bool(np.isfinite(self.margin).any())

    def identity(self, row: int) -> str:
        return f"{int(self.ids[row]):016x}"

    def probability(self, row: int) -> float | None:
        """P(chosen is better) by the model as it stands; None where it is not scored."""
        margin = float(self.margin[row])
        return float(expit(margin)) if np.isfinite(margin) else None

    def conversations(self, row: int) -> tuple:
        """(prompt, chosen, rejected) of a row, whole."""
        group, start = self.groups[self.items.group[row]], self.items.scored.offsets[self.items.group[row]]
        return group.prompt, group.responses[self.items.chosen[row] - start], group.responses[self.items.rejected[row] - start]

    def findings(self, row: int) -> tuple[str, ...]:
        return tuple(name for name, column in self.flags.items() if column[row])

    @cached_property
    def rows(self) -> dict[str, int]:
        """Identity -> the first row that has it."""
        return {f"{int(identity):016x}": row for row, identity in reversed(list(enumerate(self.ids.tolist())))}

    # --- questions ---

    def order(self, query: Query, labelled: Labelled) -> np.ndarray:
        """Rows that fit the query, in its order, int [rows]."""
        key = (query, labelled.version if query.labelled else 0)
        with self._lock:
            if key not in self._orders:
                self._orders[key] = self._ordered(query, labelled)
            self._orders.move_to_end(key)
            if len(self._orders) > ORDERS_KEPT:
                self._orders.popitem(last=False)
            return self._orders[key]

    def _ordered(self, query: Query, labelled: Labelled) -> np.ndarray:
        rows = np.flatnonzero(self._mask(query, labelled))
        return rows[np.argsort(self._key(query.sort)[rows], kind="stable")] if query.sort != "file" else rows

    def _mask(self, query: Query, labelled: Labelled) -> np.ndarray:
        mask = np.ones(len(self), dtype=bool)
        if query.subset:
            mask &= _known(self.subset, "subset").is_(query.subset)
        if query.source:
            mask &= _known(self.source, "source").is_(query.source)
        if query.finding:
            mask &= self.flags.get(query.finding, np.zeros(len(self), dtype=bool))
        if query.outcome:
            mask &= self._outcome(query.outcome)
        if query.flip:
            mask &= self._flip(query.flip)
        if query.labelled:
            mask &= {"any": labelled.any, "none": ~labelled.any, "against": labelled.against}[query.labelled]
        with np.errstate(invalid="ignore"):
            if query.low is not None:
                mask &= self.margin >= query.low
            if query.high is not None:
                mask &= self.margin <= query.high
        if query.text:
            mask &= self._texts.find(query.text)[self.items.group]
        return mask

    def _outcome(self, outcome: str) -> np.ndarray:
        scored = np.isfinite(self.margin)
        with np.errstate(invalid="ignore"):
            masks = {
                "right": self.decided & (self.margin > 0),
                "wrong": self.decided & (self.margin < 0),
                "equal": self.decided & (self.margin == 0),
                "suspect": self.suspect,
                "tie": ~self.decided,
                "unscored": ~scored,
            }
        return masks[outcome]

    def _flip(self, flip: str) -> np.ndarray:
        """Rows that only one of the two models ranks as labelled."""
        if self.other is None:
            raise DataError("there is one model only, so no rows on which two of them part; start with --compare OTHER")
        both = self.decided & np.isfinite(self.margin) & np.isfinite(self.other.margin)
        first, second = self.margin > 0, self.other.margin > 0
        return both & {"only_a": first & ~second, "only_b": second & ~first, "either": first != second}[flip]

    def _key(self, sort: str) -> np.ndarray:
        """What to sort by, ascending; NaN comes last."""
        if sort == "models":
            if self.other is None:
                raise DataError("there is one model only, so no difference to sort by; start with --compare OTHER")
            # in units of each model's own spread, as the flips of `palate compare` are
            return -np.abs(_standardised(self.margin) - _standardised(self.other.margin))
        keys: Mapping[str, np.ndarray] = {
            "disagreement": self.margin,
            "confidence": -self.margin,
            "uncertain": np.abs(self.margin),
            "longer": -self.gap,
            "shorter": self.gap,
            "random": self.ids,
        }
        return self.subset.codes if sort == "subset" and self.subset else keys.get(sort, np.arange(len(self)))


def _standardised(margin: np.ndarray) -> np.ndarray:
    spread = float(np.nanstd(margin)) if np.isfinite(margin).any() else 0.0
    return margin / (spread or 1.0)


def _known(column: Column | None, name: str) -> Column:
    if column is None:
        raise DataError(f"the data have no {name} that differs from row to row, so nothing to filter by")
    return column


def page(order: np.ndarray, size: int, *, after: int | None = None, before: int | None = None) -> Page:
    """The page behind row `after`, before row `before`, or the first one; a row that the order does not hold gives the first page."""
    start = 0
    if after is not None and len(found := np.flatnonzero(order == after)):
        start = int(found[0]) + 1
    elif before is not None and len(found := np.flatnonzero(order == before)):
        start = max(0, int(found[0]) - size)
    return Page(order[start : start + size], start, len(order))
