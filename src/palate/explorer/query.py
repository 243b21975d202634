"""What is asked of the pairs: filters and an order, read from the address of a page and written back into it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from urllib.parse import urlencode

from palate.errors import DataError

SORTS = {
    "file": "as in the data",
    "disagreement": "most against the label",
    "confidence": "most with the label",
    "uncertain": "least decided",
    "longer": "chosen longer by most",
    "shorter": "chosen shorter by most",
    "subset": "by subset",
    "models": "models differ most",
    "random": "in random order",
}
OUTCOMES = {
    "suspect": "likely mislabelled",
    "wrong": "model against the label",
    "right": "model with the label",
    "equal": "equal rewards",
    "tie": "labelled as ties",
    "unscored": "without a reward",
}
FLIPS = {"either": "models part", "only_a": "only {0} right", "only_b": "only {1} right"}  # with the names of both models
LABELLED = {"any": "labelled", "none": "not labelled yet", "against": "labelled against the data"}
LONGEST_TEXT = 200  # characters of a search


@dataclass(frozen=True)
class Query:
    """Filters (empty: all rows) and an order. `low` and `high` bound the margin, both included."""

    text: str = ""
    subset: str = ""
    source: str = ""
    finding: str = ""
    outcome: str = ""
    flip: str = ""
    labelled: str = ""
    low: float | None = None
    high: float | None = None
    sort: str = "file"

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Query:
        """From the parameters of an address; others than ours are left alone. Raises DataError for a value that none of ours can be."""
        known: dict[str, str | float | None] = {}
        for field in fields(cls):
            value = given.get(field.name, "").strip()
            if value and field.name in ("low", "high"):
                known[field.name] = _number(field.name, value)
            elif value:
                known[field.name] = value
        for name, choices in (("sort", SORTS), ("outcome", OUTCOMES), ("flip", FLIPS), ("labelled", LABELLED)):
            if name in known and known[name] not in choices:
                raise DataError(f"{name}={known[name]}: expected one of {', '.join(choices)}")
        if len(str(known.get("text", ""))) > LONGEST_TEXT:
            raise DataError(f"the search has {len(str(known['text']))} characters; at most {LONGEST_TEXT} are looked for")
        return cls(**known)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, str]:
        """What differs from the whole set in its own order."""
        return {name: f"{value:.15g}" if isinstance(value, float) else value for name, value in asdict(self).items() if value not in ("", None, "file")}

    def address(self, path: str, **more: object) -> str:
        """The path with this query, and with whatever else is given."""
        every = self.parameters() | {name: str(value) for name, value in more.items() if value is not None}
        return f"{path}?{urlencode(every)}" if every else path

    @property
    def depends_on_rewards(self) -> bool:
        """Whether rows were picked by their rewards, so that accuracy on them says nothing."""
        return bool(self.outcome or self.flip) or self.low is not None or self.high is not None

    @property
    def is_filtered(self) -> bool:
        return replace(self, sort="file") != Query()


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise DataError(f"{name}={value!r:.40}: expected a number, the margin from which (low) or to which (high) rows are shown") from None
    if not math.isfinite(number):
        raise DataError(f"{name}={value!r:.40}: expected a finite number")
    return number
