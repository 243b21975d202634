"""Recorded judgments read again: raw replies of both orders parsed anew, compared with the decisions on record, combined under a policy."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palate.errors import ConfigError, DataError
from palate.judging.orders import Policy, combine_orders
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import THREE_WAY, TWO_WAY, ArenaParser, LabelParser, PairVerdict, Parser, RegexParser, swapped

Row = Mapping[str, Any]
Read = PairVerdict | ParseFailure

FORMS: Mapping[str, Callable[[], Parser]] = {
    "five_step": ArenaParser,
    "arena": lambda: ArenaParser("all_agree"),
    "three_way": lambda: LabelParser(THREE_WAY),
    "binary": lambda: LabelParser(TWO_WAY),
}
"""Parsers by name; `arena` is Arena-Hard's and JudgeBench's reading, in which all verdicts of a reply must agree."""

TEXTS = ("text", "raw", "raw_text", "completion", "response", "output", "judgment")
DECISIONS = ("winner", "decision", "verdict")
ORDERS = {**dict.fromkeys(("12", "AB", "A,B", "first", "original", "orig", "0"), 0), **dict.fromkeys(("21", "BA", "B,A", "second", "swapped", "swap", "1"), 1)}
RUNS = ("model", "judge", "judge_model", "base_llm", "strategy")
SUBSETS = ("subset", "dataset", "source", "category")
NOT_SAID = object()


class RecordedPair(NamedTuple):
    """One pair as recorded: both replies (None where only decisions are kept) and both decisions, all in the coordinates of the pair."""

    row: Row
    label: str  # "a" or "b": which response of the pair is better
    texts: tuple[str | None, str | None]
    decisions: tuple[Any, Any]  # "a", "b", "tie", None for no verdict; NOT_SAID where nothing is recorded
    stage: int  # of strategies that ask again: 0 the comparison, 1 the synthesis


_WINNERS: dict[str, str | None] = {
    **dict.fromkeys(("1", "a", "a>b", "a>>b", "[[a]]", "model_a"), "a"),
    **dict.fromkeys(("2", "b", "b>a", "b>>a", "a<b", "a<<b", "[[b]]", "model_b"), "b"),
    **dict.fromkeys(("tie", "a=b", "b=a", "[[c]]", "c", "0", "same"), "tie"),
    **dict.fromkeys(("none", "null", "", "invalid", "error"), None),
}
_OTHER = {"a": "b", "b": "a"}


def _winner(value: Any, place: str) -> str | None:
    key = "none" if value is None else str(value).strip().lower()
    if key not in _WINNERS:
        raise DataError(f"{place}: the verdict is {value!r:.40}, expected 1, 2, A>B, B>A, A, B, tie, or null for none")
    return _WINNERS[key]


def _flip(winner: Any) -> Any:
    return _OTHER.get(winner, winner) if isinstance(winner, str) else winner


def read_judged(rows: Iterable[tuple[str, Row]], *, decisions: str = "presented") -> list[RecordedPair]:
    """Pairs of recorded rows, in one of three shapes; every pair needs both orders and a `label`.

    `judgments` by order ({"12": {text, winner}, "21": ...}, winners in the coordinates of the pair, LLMBar; a `synthesis` of the same form is a second
    stage); `judgments` as a list of two, decisions as presented (JudgeBench); or one row an order with `order` (AB/BA, 12/21, ...), a text and a decision,
    joined by `id` or `pair_id`. `decisions`: whether those of single rows stand as "presented" or by "item". Raises DataError with the place.
    """
    if decisions not in ("presented", "item"):
        raise ConfigError(f'decisions={decisions!r}: expected "presented" (A is what was shown first) or "item" (A is the first response of the pair)')
    found: list[RecordedPair] = []
    waiting: dict[Any, dict[int, tuple[str, Row]]] = defaultdict(dict)
    for place, row in rows:
        if "judgments" in row:
            found += _of_judgments(row, place)
        elif "order" in row:
            _add_order(waiting, row, place)
        else:
            raise DataError(f"{place}: has neither `judgments` nor `order`; columns: {', '.join(map(str, row))}")
    for key, orders in waiting.items():
        if set(orders) != {0, 1}:
            place, _ = next(iter(orders.values()))
            raise DataError(f"{place}: pair {key[0]!r} was judged in one order only; both are needed to tell a verdict from a position")
        found.append(_of_orders(orders, decisions))
    if not found:
        raise DataError("there are no recorded judgments")
    return found


def _label(row: Row, place: str) -> str:
    if "label" not in row:
        raise DataError(f"{place}: has no `label`; columns: {', '.join(map(str, row))}")
    label = _winner(row["label"], f"{place}, label")
    if label not in ("a", "b"):
        raise DataError(f"{place}: the label is {row['label']!r}, expected 1 or 2 (A>B or B>A)")
    return label


def _one(judgment: Any, place: str) -> tuple[str | None, Any]:
    """(text, decision as written) of one judgment; JudgeBench keeps the reply one level deeper."""
    if judgment is None:
        return None, None
    if not isinstance(judgment, Mapping):
        raise DataError(f"{place}: a judgment is {type(judgment).__name__}, expected an object with a text and a decision")
    inner = judgment["judgment"] if isinstance(judgment.get("judgment"), Mapping) else judgment
    text = next((inner[name] for name in TEXTS if isinstance(inner.get(name), str)), None)
    return text, next((judgment[name] for name in DECISIONS if name in judgment), NOT_SAID)


def _of_judgments(row: Row, place: str) -> list[RecordedPair]:
    label, judged = _label(row, place), []
    stages = [row["judgments"], *([row["synthesis"]] if row.get("synthesis") else [])]
    for stage, judgments in enumerate(stages):
        if isinstance(judgments, Mapping) and {"12", "21"} <= judgments.keys():
            pairs = [_one(judgments[order], place) for order in ("12", "21")]
            said = [NOT_SAID if d is NOT_SAID else _winner(d, place) for _, d in pairs]
        elif isinstance(judgments, (list, tuple)) and len(judgments) == 2:
            pairs = [_one(judgment, place) for judgment in judgments]
            said = [NOT_SAID if d is NOT_SAID else _winner(d, place) for _, d in pairs]
            said[1] = _flip(said[1])
        else:
            raise DataError(f"{place}: `judgments` holds {judgments!r:.60}, expected both orders: a list of two, or an object with 12 and 21")
        judged.append(RecordedPair(row, label, (pairs[0][0], pairs[1][0]), (said[0], said[1]), stage))
    return judged


def _add_order(waiting: dict[Any, dict[int, tuple[str, Row]]], row: Row, place: str) -> None:
    name = str(row["order"]).strip()
    order = ORDERS.get(name, ORDERS.get(name.upper(), ORDERS.get(name.lower())))
    if order is None:
        raise DataError(f"{place}: the order is {row['order']!r}, expected AB or BA (12 or 21, original or swapped)")
    identity = next((row[key] for key in ("pair_id", "id", "question_id") if row.get(key) is not None), None)
    if identity is None:
        raise DataError(f"{place}: rows of one order each need `id` or `pair_id`, by which the two orders of a pair are joined")
    key = (identity, *(row.get(name) for name in (*RUNS, *SUBSETS)))
    if order in waiting[key]:
        raise DataError(f"{place}: pair {identity!r} has this order twice (first in {waiting[key][order][0]})")
    waiting[key][order] = (place, row)


def _of_orders(orders: Mapping[int, tuple[str, Row]], decisions: str) -> RecordedPair:
    read = [_one(orders[k][1], orders[k][0]) for k in (0, 1)]
    said = [NOT_SAID if d is NOT_SAID else _winner(d, orders[k][0]) for k, (_, d) in enumerate(read)]
    if decisions == "presented":
        said[1] = _flip(said[1])
    place, row = orders[0]
    return RecordedPair(row, _label(row, place), (read[0][0], read[1][0]), (said[0], said[1]), 0)


# --- parsing again -------------------------------------------------------------------------------------------------------------------------------


class Patterns:
    """Which parser reads which row: one for all, or LLMBar's configuration, by judge and strategy, with one for each stage."""

    def __init__(self, content: Mapping[str, Any]):
        self.by_run = content.get("configs")
        if self.by_run is None:
            self.parsers: dict[Any, Parser] = {None: RegexParser(_classes(content))}
        else:
            self.parsers = {}

    def parser(self, judged: RecordedPair) -> Parser:
        if self.by_run is None:
            return self.parsers[None]
        key = (f"{judged.row.get('base_llm')}/{judged.row.get('strategy')}", judged.stage)
        if key not in self.parsers:
            stages = [stage for stage in self.by_run.get(key[0], ()) if stage.get("parsing") is not None]
            if judged.stage >= len(stages):
                raise DataError(f"the patterns hold {len(stages)} stages for {key[0]}, a record has stage {judged.stage + 1}")
            self.parsers[key] = RegexParser.from_llmbar_config(stages[judged.stage])
        return self.parsers[key]


def _classes(content: Mapping[str, Any]) -> dict[Any, str]:
    found = {name: _WINNERS.get(str(name).lower(), "?") for name in content}
    if not content or "?" in found.values() or None in found.values():
        raise DataError(f"patterns name the classes {list(content)}, expected 1, 2 (and tie), each with a regular expression")
    return {found[name]: str(pattern) for name, pattern in content.items()}


def read_patterns(path: Path) -> Patterns:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds {type(content).__name__}, expected an object of patterns by class")
    return Patterns(content)


class Replayed(NamedTuple):
    parsed: int  # replies read
    different: int  # whose verdict is another than the one on record
    examples: list[dict[str, Any]]  # of these
    table: list[dict[str, Any]]  # by run and subset


EXAMPLES_SHOWN = 5


def replay(
    judged: Sequence[RecordedPair], parser: Callable[[RecordedPair], Parser] | None, *, policy: Policy = "drop", by: Sequence[str] | None = None
) -> Replayed:
    """Read every reply again (without `parser`: take the decisions on record), compare, and combine both orders under `policy`.

    `by`: columns of the groups in the table; unset: those among judge, strategy and subset that the rows have (LLMBar's subset is read off the id).
    Only the first stage is combined: a synthesis is an answer to a contradiction, not a verdict of its own order.
    """
    parsed = different = 0
    examples: list[dict[str, Any]] = []
    groups: dict[tuple[str, ...], list[tuple[Read, Read, str]]] = defaultdict(list)
    names = list(by) if by else _columns(judged)
    for one in judged:
        read = [_read(one, k, parser) for k in (0, 1)]
        for k, verdict in enumerate(read):
            if parser is None or one.texts[k] is None:
                continue
            parsed += 1
            named = None if isinstance(verdict, ParseFailure) else verdict.winner
            if one.decisions[k] is not NOT_SAID and named != one.decisions[k]:
                different += 1
                if len(examples) < EXAMPLES_SHOWN:
                    examples.append({"id": one.row.get("id", one.row.get("pair_id")), "order": k + 1, "read": named, "recorded": one.decisions[k]})
        if one.stage == 0:
            groups[tuple(_value(one.row, name) for name in names)].append((read[0], read[1], one.label))
    table = [dict(zip(names, key, strict=True)) | _figures(rows, policy) for key, rows in sorted(groups.items())]
    return Replayed(parsed, different, examples, table)


def _read(one: RecordedPair, k: int, parser: Callable[[RecordedPair], Parser] | None) -> Read:
    text = one.texts[k]
    if parser is None or text is None:
        decision = one.decisions[k]
        if decision is NOT_SAID:
            raise DataError(f"pair {one.row.get('id', one.row.get('pair_id'))!r} has neither a reply nor a decision in order {k + 1}; say how replies are read")
        return ParseFailure("no verdict", "") if decision is None else PairVerdict(decision)
    found = parser(one).parse(text)
    assert isinstance(found, (PairVerdict, ParseFailure))
    return swapped(found) if k == 1 else found


def _columns(judged: Sequence[RecordedPair]) -> list[str]:
    row = judged[0].row
    runs = [name for name in RUNS if name in row]
    subset = next((name for name in SUBSETS if name in row), None)
    return [*runs, subset or "subset"] if subset or "-" in str(row.get("id", "")) else runs


def _value(row: Row, name: str) -> str:
    if name not in row and name == "subset":
        return str(row.get("id", "")).rsplit("-", 1)[0]  # LLMBar: Adversarial-GPTInst-0
    return str(row.get(name, ""))


def _figures(rows: Sequence[tuple[Read, Read, str]], policy: Policy) -> dict[str, Any]:
    combined = [combine_orders(first, second, policy) for first, second, _ in rows]
    kept = [(found.winner, label) for found, (_, _, label) in zip(combined, rows, strict=True) if found.winner in ("a", "b")]
    single = sum(isinstance(verdict, PairVerdict) and verdict.winner == label for first, second, label in rows for verdict in (first, second))
    return {
        "n": len(rows),
        "kept": len(kept) / len(rows),
        "accuracy_of_kept": sum(winner == label for winner, label in kept) / len(kept) if kept else math.nan,
        "accuracy_of_both_orders": single / (2 * len(rows)),
        "outcomes": dict(Counter(found.reason for found in combined)),
    }
