"""Recorded judgments of pairs in both orders, as groups keep them, brought to one shape: in the coordinates of the pair, under our names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from palate.errors import ConfigError, DataError

Row = Mapping[str, Any]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pair_id": ("pair_id", "id", "item_id", "example_id", "sample_id", "instance_id", "question_id", "prompt_id", "uid", "idx", "index"),
    "order": ("order", "presentation_order", "presented_order"),
    "swapped": ("swapped", "is_swapped", "swap", "flipped", "is_flipped", "reversed"),
    "text": (
        *("raw", "raw_text", "raw_output", "raw_response", "raw_completion", "raw_reply", "judge_output", "judge_response", "text", "reply", "completion"),
        *("response", "output", "judgment", "judgement"),
    ),
    "decision": ("decision", "winner", "verdict", "choice", "preference", "prediction", "parsed"),
    "label": ("label", "gold", "gold_label", "human_label", "human_preference", "ground_truth", "target"),
}
"""What is read -> names of its column, the likeliest first; capitals and blanks do not matter. Other names are mapped to these before."""

RUNS = ("model", "judge", "judge_model", "judge_name", "base_llm", "strategy")
SUBSETS = ("subset", "dataset", "source", "category")
NOT_SAID = object()

_FIRST = ("12", "ab", "01", "first", "afirst", "original", "orig", "normal", "forward")
_SECOND = ("21", "ba", "10", "second", "bfirst", "swapped", "swap", "reversed", "reverse", "backward", "flipped")
_SUFFIXES = (("12", "21"), ("ab", "ba"), ("original", "swapped"), ("orig", "swap"), ("forward", "reverse"), ("first", "second"), ("1", "2"), ("0", "1"))
_OF_CANDIDATES = {"response", "output", "completion"}  # with a number behind it such a column holds a response of the pair, no reply of a judge
WINNERS: dict[str, str | None] = {
    **dict.fromkeys(("1", "a", "a>b", "a>>b", "b<a", "b<<a", "first"), "a"),
    **dict.fromkeys(("2", "b", "b>a", "b>>a", "a<b", "a<<b", "second"), "b"),
    **dict.fromkeys(("tie", "tied", "draw", "a=b", "b=a", "a~b", "c", "0", "1.5", "same", "equal", "both", "neither", "tiebothbad"), "tie"),
    **dict.fromkeys(("none", "null", "nan", "n/a", "na", "", "invalid", "error", "failed", "unknown", "unparsed", "noverdict"), None),
}
_NAMED = re.compile(r"^(?:model|response|output|assistant|answer|option|candidate|system)(?=[ab12]$)")
_OTHER = {"a": "b", "b": "a"}


class RecordedPair(NamedTuple):
    """One pair as recorded: both replies (None where only decisions are kept) and both decisions, all in the coordinates of the pair."""

    row: Row
    label: str | None  # "a" or "b": which response of the pair is better; None: not known, or neither
    texts: tuple[str | None, str | None]
    decisions: tuple[Any, Any]  # "a", "b", "tie", None for no verdict; NOT_SAID where nothing is recorded
    stage: int  # of strategies that ask again: 0 the comparison, 1 the synthesis

    @property
    def name(self) -> Any:
        return _identity(_plain(self.row))


class Recorded(NamedTuple):
    pairs: list[RecordedPair]
    one_order: int  # pairs left out: judged in one order only, so that a verdict cannot be told from a position
    columns: dict[str, str]  # what was read -> the column of the first row that it was read from


class _Said(NamedTuple):
    """What is recorded of one order."""

    text: str | None
    decision: Any  # as written
    row: Row
    place: str


class _Both(NamedTuple):
    row: Row
    orders: Mapping[int, _Said]
    by_item: bool  # whether the second order's decision stands in the coordinates of the pair
    stage: int = 0


# --- rows to pairs ---------------------------------------------------------------------------------------------------------------------------------


def read_judged(rows: Iterable[tuple[str, Row]], *, decisions: str | None = None, by: Sequence[str] = ()) -> Recorded:
    """Pairs of recorded rows: a row holds both orders of a pair, or one order, joined by `pair_id` (and judge, strategy, subset and `by`).

    Both orders: `judgments` by order ({"12": {text, winner}, "21": ...}, LLMBar, with a `synthesis` of the same form as a second stage), `judgments` as a
    list of two (JudgeBench), or a column for each order (`raw_ab`, `raw_ba`, `decision_ab`, ...). One order: `order` or `swapped`, a text, a decision.
    `decisions`: whether those of the second order are "presented" (A is what was shown first) or by "item" (A is the first response of the pair); unsaid
    they are by item where the orders are named 12 and 21 within a row, as LLMBar has it, and as presented elsewhere. Raises DataError with the place.
    """
    if decisions not in (None, "presented", "item"):
        raise ConfigError(f'decisions={decisions!r}: expected "presented" (A is what was shown first) or "item" (A is the first response of the pair)')
    listed = [(place, row, _plain(row)) for place, row in rows]
    if not listed:
        raise DataError("there are no recorded judgments")
    if unknown := [name for name in by if name != "subset" and name not in listed[0][1]]:
        raise DataError(f"{listed[0][0]}: has no column {', '.join(unknown)} to group by{_columns_of(listed[0][1])}")
    from_one = "2" in {_plain_order(view[name]) for _, _, view in listed if (name := _column(view, "order"))}
    both: list[_Both] = []
    waiting: dict[Any, dict[int, _Said]] = defaultdict(dict)
    one_order = 0
    for place, row, view in listed:
        if (name := _column(view, "order") or _column(view, "swapped")) and "judgments" not in view:
            _join(waiting, _order_of(view, name, place, from_one), _Said(*_one(view, place), row, place), view, by)
        else:
            stages = _both_orders(row, view, place)
            one_order += len(stages[0].orders) < 2
            both += [stage for stage in stages if len(stage.orders) == 2]
    one_order += sum(len(orders) < 2 for orders in waiting.values())
    both += [_Both(orders[0].row, orders, by_item=False) for orders in waiting.values() if len(orders) == 2]
    place, _, view = listed[0]
    if not both:
        keys = [name for name in (_column(view, "pair_id"), *RUNS, *SUBSETS, *by) if name in view]
        joined = f" (joined by {', '.join(map(str, keys))}; --columns pair_id=COLUMN names another column)" if waiting else ""
        raise DataError(f"{place}: all {one_order} pairs were judged in one order only{joined}; both are needed to tell a verdict from a position")
    _check_base([said.decision for pair in both for said in pair.orders.values()], "decisions")
    return Recorded(_pairs(both, decisions), one_order, {what: name for what in COLUMNS if (name := _column(view, what))})


def _join(waiting: dict[Any, dict[int, _Said]], order: int, said: _Said, view: Row, by: Sequence[str]) -> None:
    identity = _identity(view)
    if identity is None:
        raise DataError(
            f"{said.place}: rows of one order each need `id` or `pair_id`, by which the two orders of a pair are joined{_columns_of(said.row)}; "
            "--columns pair_id=COLUMN names it"
        )
    key = (str(identity), *(str(said.row.get(name)) for name in (*RUNS, *SUBSETS, *by)))
    if order in waiting[key]:
        raise DataError(
            f"{said.place}: pair {identity!r} has this order twice (first in {waiting[key][order].place}); expected one judgment an order. "
            f"Leave one out, or name the column that tells such runs apart: --by COLUMN{_columns_of(said.row)}"
        )
    waiting[key][order] = said


def _pairs(both: Sequence[_Both], decisions: str | None) -> list[RecordedPair]:
    labels = [[_label(said) for _, said in sorted(pair.orders.items())] for pair in both]
    _check_base([value for label in labels for value, _ in label], "labels")
    torn = [k for k, ((_, one), (_, two)) in enumerate(labels) if {one, two} == {"a", "b"}]
    if torn and any(one == two != "tie" and one is not None for (_, one), (_, two) in labels):  # all of them torn: labels are written as presented
        first, second = (both[torn[0]].orders[k].place for k in (0, 1))
        raise DataError(f"{second}: the label is {labels[torn[0]][1][0]!r}, in {first} it is {labels[torn[0]][0][0]!r}; a pair has one label")
    pairs = []
    for pair, label in zip(both, labels, strict=True):
        one, two = pair.orders[0], pair.orders[1]
        said = [NOT_SAID if one_said.decision is NOT_SAID else _winner(one_said.decision, one_said.place) for one_said in (one, two)]
        if not (pair.by_item if decisions is None else decisions == "item"):
            said[1] = flip(said[1])
        better = label[0][1] or (None if torn else label[1][1])
        pairs.append(RecordedPair(pair.row, better if better in ("a", "b") else None, (one.text, two.text), (said[0], said[1]), pair.stage))
    return pairs


def _label(said: _Said) -> tuple[Any, str | None]:
    """(as written, as "a", "b", "tie" or None)."""
    view = _plain(said.row)
    value = view[name] if (name := _column(view, "label")) else None
    return value, _winner(value, f"{said.place}, label")


def _both_orders(row: Row, view: Row, place: str) -> list[_Both]:
    """The stages of a row that holds both orders."""
    if "judgments" not in view:
        return [_Both(row, *_by_column(row, view, place))]
    stages = []
    for number, judgments in enumerate([view["judgments"], *([view["synthesis"]] if view.get("synthesis") else [])]):
        if isinstance(judgments, Mapping):
            said = [({"order": name}, one) for name, one in judgments.items()]
        elif isinstance(judgments, (list, tuple)):
            said = [(_plain(one) if isinstance(one, Mapping) else {}, one) for one in judgments]
        else:
            said = []
        from_one = "2" in {_plain_order(held.get("order")) for held, _ in said}
        orders: dict[int, _Said] = {}
        for k, (held, one) in enumerate(said):
            name = _column(held, "order") or _column(held, "swapped")
            orders[_order_of(held, name, place, from_one) if name else k] = _Said(*_one(one, place), row, place)
        if not orders or len(orders) != len(said) or len(orders) > 2:
            raise DataError(f"{place}: `judgments` holds {judgments!r:.60}, expected both orders: a list of two, or an object with 12 and 21 (AB and BA)")
        by_item = isinstance(judgments, Mapping) and {"12", "21"} <= judgments.keys()
        stages.append(_Both(row, orders, by_item, number))
    return stages


def _by_column(row: Row, view: Row, place: str) -> tuple[dict[int, _Said], bool]:
    """(both orders, whether decisions are by item) of a row with a column for each order."""
    names = _columns_by_order(tuple(view))
    if not names:
        raise DataError(
            f"{place}: has neither `judgments`, nor `order`, nor a text or decision for each order (raw_ab, raw_ba){_columns_of(row)}. "
            "Name them: --columns pair_id=... order=... text=... decision=... label=..."
        )
    texts = [_text(view[name]) for name in names["text"]] if "text" in names else [None, None]
    said = [view[name] for name in names["decision"]] if "decision" in names else [NOT_SAID, NOT_SAID]
    by_item = "decision" in names and re.search(r"21", names["decision"][1]) is not None
    return {k: _Said(texts[k], said[k], row, place) for k in (0, 1)}, by_item


@lru_cache(maxsize=64)
def _columns_by_order(columns: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """What is read -> its columns of the first and the second order."""
    found: dict[str, tuple[str, str]] = {}
    for what in ("text", "decision"):
        for name, suffixes, form in product(COLUMNS[what], _SUFFIXES, ("{0}_{1}", "{0}_order{1}", "{0}_order_{1}", "{1}_{0}")):
            pair = form.format(name, suffixes[0]), form.format(name, suffixes[1])
            if what not in found and set(pair) <= set(columns) and not (name in _OF_CANDIDATES and suffixes[0] in ("0", "1", "first")):
                found[what] = pair
    return found


# --- single values ---------------------------------------------------------------------------------------------------------------------------------


def flip(winner: Any) -> Any:
    return _OTHER.get(winner, winner) if isinstance(winner, str) else winner


def winner_key(value: Any) -> str:
    """A decision as written in the spelling of WINNERS: `[[A>B]]`, `Output (a)`, `model_1` and 1.0 without what surrounds them."""
    key = re.sub(r"[_\s\[\]()\"'*`]|(?<=[a-z])-", "", str(value).lower())
    return _NAMED.sub("", re.sub(r"^([012])\.0$", r"\1", key))


def _winner(value: Any, place: str) -> str | None:
    key = winner_key(value)
    if key not in WINNERS:
        raise DataError(f"{place}: the verdict is {value!r:.40}, expected 1, 2, A>B, B>A, A, B, model_a, model_b, tie, or null for none")
    return WINNERS[key]


def _check_base(values: Sequence[Any], what: str) -> None:
    """Refuse 0 and 1 without a 2: where 0 is a tie the second response would never win, where it is the first response every label would be wrong."""
    seen = Counter(re.sub(r"\.0$", "", str(value).strip()) for value in values)
    if seen["0"] and seen["1"] and not any(seen[other] for other in ("2", "A", "B", "a", "b")):
        raise DataError(
            f"{what} are {seen['0']} times 0, {seen['1']} times 1 and never 2: does 0 mean the first response, or a tie? Write 1 and 2 (or A and B), and tie"
        )


def _plain_order(value: Any) -> str:
    """AB, "A, B", ["A", "B"], 12 and [1, 2] in one spelling."""
    said = "".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"\W|_", "", said.strip().lower().removesuffix(".0"))


def _order_of(view: Row, column: str, place: str, from_one: bool) -> int:
    """0 for the pair as it stands, 1 for the swapped one. `from_one`: whether orders are counted 1 and 2, not 0 and 1."""
    value, said = view[column], _plain_order(view[column])
    if column in COLUMNS["swapped"] and said in ("true", "false", "yes", "no", "0", "1"):
        return int(said in ("true", "yes", "1"))
    numbers = {"1": 0, "2": 1} if from_one else {"0": 0, "1": 1}
    if (known := {**dict.fromkeys(_FIRST, 0), **dict.fromkeys(_SECOND, 1), **numbers}.get(said)) is not None:
        return known
    truth = "; if true means that the responses were swapped: --columns swapped=order" if said in ("true", "false") else ""
    raise DataError(f"{place}: the order is {value!r:.40}, expected AB or BA (12 or 21, 0 or 1, 1 or 2, original or swapped){truth}")


def _one(judgment: Any, place: str) -> tuple[str | None, Any]:
    """(text, decision as written) of one judgment; JudgeBench keeps the reply one level deeper. A string is a decision, or else a reply."""
    if judgment is None:
        return None, None
    if isinstance(judgment, str):
        return (None, judgment) if judgment.strip() and winner_key(judgment) in WINNERS else (judgment, NOT_SAID)
    if not isinstance(judgment, Mapping):
        raise DataError(f"{place}: a judgment is {type(judgment).__name__}, expected an object with a text and a decision")
    view = _plain(judgment)
    inner = _plain(view["judgment"]) if isinstance(view.get("judgment"), Mapping) else view
    read_from = next((name for name in COLUMNS["text"] if isinstance(inner.get(name), str)), None)
    decision = _column(view, "decision") or ("judgment" if isinstance(view.get("judgment"), str) and read_from != "judgment" else None)
    return _text(inner[read_from]) if read_from else None, view[decision] if decision else NOT_SAID


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _plain(row: Row) -> dict[str, Any]:
    """The row with its names in one spelling: `Pair ID` and `pairId` are pair_id."""
    return {_plain_name(str(name)): value for name, value in row.items()}


@lru_cache(maxsize=4096)
def _plain_name(name: str) -> str:
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower())


def _column(view: Row, what: str) -> str | None:
    return next((name for name in COLUMNS[what] if name in view), None)


def _identity(view: Row) -> Any:
    return next((view[name] for name in COLUMNS["pair_id"] if view.get(name) is not None), None)


def _columns_of(row: Row) -> str:
    return f"; columns: {', '.join(map(str, row))}"
