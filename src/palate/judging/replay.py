"""Recorded judgments read again without a call: replies parsed anew, compared with the decisions on record, both orders combined under a policy."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palate.errors import DataError
from palate.judging.orders import Policy, combine_orders
from palate.judging.recorded import NOT_SAID, RUNS, SUBSETS, WINNERS, RecordedPair, flip, winner_key
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import THREE_WAY, TWO_WAY, ArenaParser, LabelParser, PairVerdict, Parser, RegexParser, swapped

Read = PairVerdict | ParseFailure
ReadBy = Callable[[RecordedPair], Parser]

FORMS: Mapping[str, Callable[[], Parser]] = {
    "five_step": ArenaParser,
    "arena": lambda: ArenaParser("all_agree"),
    "three_way": lambda: LabelParser(THREE_WAY),
    "binary": lambda: LabelParser(TWO_WAY),
}
"""Parsers by name; `arena` is Arena-Hard's and JudgeBench's reading, in which all verdicts of a reply must agree."""

LLMBAR_ID = re.compile(r"^((?:[A-Za-z]\w*-)*[A-Za-z]\w*)-\d+$")
"""Adversarial-GPTInst-0: a subset and a number."""


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
    found = {name: WINNERS.get(winner_key(name), "?") for name in content}
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
    unread: int  # judgments without a reply, where replies are read: their decisions on record are taken
    unlabelled: int  # pairs without a label that names the better response: in no accuracy
    doubt: str  # what speaks for the second order's decisions standing in other coordinates than they were taken in; "": nothing
    examples: list[dict[str, Any]]  # the different ones
    table: list[dict[str, Any]]  # by run and subset


def replay(judged: Sequence[RecordedPair], parser: ReadBy | None, *, policy: Policy = "drop", by: Sequence[str] | None = None) -> Replayed:
    """Read every reply again (without `parser`: take the decisions on record), compare, and combine both orders under `policy`.

    `by`: columns of the groups in the table; unset: those among judge, strategy and subset that the rows have (LLMBar's subset is read off the id).
    Only the first stage is combined: a synthesis is an answer to a contradiction, not a verdict of its own order.
    """
    parsed = unread = mirrored = 0
    different: list[dict[str, Any]] = []
    groups: dict[tuple[str, ...], list[tuple[Read, Read, str | None]]] = defaultdict(list)
    names = list(by) if by else _columns(judged)
    for one in judged:
        read = [_read(one, k, parser) for k in (0, 1)]
        for k, verdict in enumerate(read if parser else ()):
            if one.texts[k] is None:
                unread += 1
                continue
            parsed += 1
            named, recorded = None if isinstance(verdict, ParseFailure) else verdict.winner, one.decisions[k]
            if recorded is NOT_SAID:
                continue
            mirrored += named != (flip(recorded) if k == 1 else recorded)
            if named != recorded:
                different.append({"id": one.name, "order": k + 1, "read": named, "recorded": recorded})
        if one.stage == 0:
            groups[tuple(_value(one, name) for name in names)].append((read[0], read[1], one.label))
    table = [dict(zip(names, key, strict=True)) | _figures(rows, policy) for key, rows in sorted(groups.items())]
    unlabelled = sum(label is None for rows in groups.values() for _, _, label in rows)
    if parser is None:
        doubt = _both_ways([pair for rows in groups.values() for pair in rows])
    else:
        doubt = f"with the second order's decisions turned round {mirrored} would be different" if mirrored < len(different) else ""
    return Replayed(parsed, len(different), unread, unlabelled, doubt, different, table)


def _both_ways(rows: Sequence[tuple[Read, Read, Any]]) -> str:
    """A judge that leans to a position contradicts itself in favour of that one; one with more contradictions each way than agreements is hard to find."""
    said = Counter((a.winner, b.winner) for a, b, _ in rows if isinstance(a, PairVerdict) and isinstance(b, PairVerdict))
    agreed, first, second = said["a", "a"] + said["b", "b"], said["a", "b"], said["b", "a"]
    return f"{agreed} pairs agree, {first} contradict for what was shown first, {second} for what was shown second" if min(first, second) > agreed else ""


def _read(one: RecordedPair, k: int, parser: ReadBy | None) -> Read:
    text = one.texts[k]
    if parser is None or text is None:
        decision = one.decisions[k]
        if decision is NOT_SAID:
            held = "no reply and no decision" if text is None else "a reply but no decision; say how replies are read (--form or --patterns)"
            raise DataError(f"pair {one.name!r} has, in order {k + 1}, {held}; columns: {', '.join(map(str, one.row))}")
        return ParseFailure("no verdict", "") if decision is None else PairVerdict(decision)
    found = parser(one).parse(text)
    assert isinstance(found, (PairVerdict, ParseFailure))
    return swapped(found) if k == 1 else found


def _columns(judged: Sequence[RecordedPair]) -> list[str]:
    row = judged[0].row
    runs = [name for name in RUNS if name in row]
    subset = next((name for name in SUBSETS if name in row), None)
    of_llmbar = subset is None and all(LLMBAR_ID.match(str(one.name)) for one in judged)
    return [*runs, subset] if subset else [*runs, "subset"] if of_llmbar else runs


def _value(one: RecordedPair, name: str) -> str:
    if name not in one.row and name == "subset" and (found := LLMBAR_ID.match(str(one.name))):
        return found[1]
    return str(one.row.get(name, ""))


def _figures(rows: Sequence[tuple[Read, Read, str | None]], policy: Policy) -> dict[str, Any]:
    combined = [combine_orders(first, second, policy) for first, second, _ in rows]
    kept = [(found.winner, label) for found, (_, _, label) in zip(combined, rows, strict=True) if found.winner in ("a", "b")]
    right = [winner == label for winner, label in kept if label is not None]
    single = [isinstance(verdict, PairVerdict) and verdict.winner == label for *both, label in rows if label is not None for verdict in both]
    return {
        "n": len(rows),
        "kept": len(kept) / len(rows),
        "accuracy_of_kept": sum(right) / len(right) if right else math.nan,
        "accuracy_of_both_orders": sum(single) / len(single) if single else math.nan,
        "outcomes": dict(Counter(found.reason for found in combined)),
    }
