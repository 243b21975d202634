"""Recorded judgments in every shape that they come in: the same pairs, whoever wrote them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from palate.errors import ConfigError, DataError
from palate.judging.recorded import NOT_SAID, RecordedPair, read_judged

# id, label, replies and decisions of both orders as presented: right twice; torn; right, then nothing; a tie, then wrong
SAID = [
    ("q1", "A", ("first", "[[A]]", "A"), ("2nd", "[[B]]", "B")),
    ("q2", "B", ("", "[[A]]", "A"), ("ünï ✅", "[[A]]", "A")),
    ("q3", "B", ("x", "[[B]]", "B"), ("y", "?", None)),
    ("q4", "A", ("x", "[[C]]", "tie"), ("y", "[[A]]", "A")),
]
FOUND = [("a", "a", "a"), ("b", "a", "b"), ("b", "b", None), ("a", "tie", "b")]  # label, both decisions, in the coordinates of the pair


def texts(k: int) -> tuple[str, str]:
    return SAID[k][2][0] + SAID[k][2][1], SAID[k][3][0] + SAID[k][3][1]


def by_order(
    orders: Sequence[Any] = ("AB", "BA"), names: str = "id order raw decision label", decided: Mapping[str | None, Any] | None = None
) -> list[dict[str, Any]]:
    """A row an order."""
    key, order, text, decision, label = names.split()
    said = decided or {"A": "A", "B": "B", "tie": "tie", None: None}
    return [
        {key: SAID[k][0], order: orders[o], text: texts(k)[o], decision: said[SAID[k][2 + o][2]], label: said[SAID[k][1]]}
        for k in range(len(SAID))
        for o in (0, 1)
    ]


def by_pair(names: str) -> list[dict[str, Any]]:
    """A row a pair, with columns of both orders."""
    one, two, first, second = names.split()
    return [
        {"id": key, "label": label, one: texts(k)[0], two: texts(k)[1], first: said[2], second: again[2]} for k, (key, label, said, again) in enumerate(SAID)
    ]


def nested(keys: Sequence[str] | None, order: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """`judgments` by the names of the orders, or as a list, which may name its orders and have the second one first."""
    rows = []
    for k, (key, label, *said) in enumerate(SAID):
        judgments = [{"text": texts(k)[o], "decision": said[o][2], **({"order": order[o]} if order else {})} for o in (0, 1)]
        rows.append({"id": key, "label": label, "judgments": dict(zip(keys, judgments, strict=True)) if keys else judgments[:: -1 if order else 1]})
    return rows


SHAPES: dict[str, list[dict[str, Any]]] = {
    "AB": by_order(),
    "lower": by_order(("ab", "ba")),
    "12": by_order((12, 21)),
    "from 0": by_order((0, 1)),
    "from 1": by_order((1, 2)),
    "floats of a table": by_order(("1.0", "2.0"), decided={"A": "1.0", "B": "2.0", "tie": "tie", None: ""}),
    "words": by_order(("original", "swapped")),
    "lists": by_order((["A", "B"], ["B", "A"])),
    "swapped": by_order((False, True), "id swapped raw decision label"),
    "swapped in a table": by_order(("False", "True"), "id is_swapped raw decision label"),
    "other names": by_order(names="item_id presentation_order raw_output choice gold"),
    "headings": by_order(names="PairID Order rawText Verdict Label"),
    "arrows": by_order(decided={"A": "A>B", "B": "[[B>>A]]", "tie": "A=B", None: "None"}),
    "numbers": by_order(decided={"A": 1, "B": 2, "tie": 0, None: float("nan")}),
    "model_1": by_order(decided={"A": "model_1", "B": "model_2", "tie": "Tie (both bad)", None: "error"}),
    "Output (a)": by_order(decided={"A": "Output (a)", "B": "Output (b)", "tie": "draw", None: "N/A"}),
    "columns AB": by_pair("raw_ab raw_ba decision_ab decision_ba"),
    "columns 1": by_pair("judgment_1 judgment_2 verdict_1 verdict_2"),
    "columns first": by_pair("original_text swapped_text original_verdict swapped_verdict"),
    "nested AB": nested(("AB", "BA")),
    "nested from 0": nested(("0", "1")),
    "nested list": nested(None),
    "nested list, second first": nested(None, ("AB", "BA")),
}


def read(rows: Sequence[dict[str, Any]], **options: Any) -> list[RecordedPair]:
    return read_judged([(f"row {k}", row) for k, row in enumerate(rows, 1)], **options).pairs


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_holds_the_same_pairs(shape: str) -> None:
    pairs = read(SHAPES[shape])
    assert [(pair.name, pair.label, *pair.decisions) for pair in pairs] == [(said[0], *found) for said, found in zip(SAID, FOUND, strict=True)]
    assert [pair.texts for pair in pairs] == [texts(k) for k in range(len(SAID))]


def test_decisions_of_llmbar_stand_in_the_coordinates_of_the_pair_and_others_as_presented() -> None:
    """The same row with its orders named otherwise; `decisions` overrules both."""
    for names, unsaid in ((("12", "21"), "a"), (("AB", "BA"), "b")):
        row = {"id": 1, "label": 1, "judgments": {name: {"winner": "1"} for name in names}}
        wide = {"id": 1, "label": 1, **{f"winner_{name}": "1" for name in names}}
        for one in (row, wide):
            assert [read([one], decisions=said)[0].decisions for said in (None, "presented", "item")] == [("a", unsaid), ("a", "b"), ("a", "a")]
    assert read([{"id": 1, "label": 1, "winner_order12": "1", "winner_order21": "2"}])[0].decisions == ("a", "b")
    with pytest.raises(ConfigError, match="as_shown"):
        read([row], decisions="as_shown")


def test_what_is_not_recorded_stays_apart_from_no_verdict() -> None:
    bare, empty = read([{"id": 1, "judgments": ["I take [[A]]", "I take [[B]]"]}, {"id": 2, "judgments": ["A", None]}])
    assert (bare.label, bare.texts, bare.decisions) == (None, ("I take [[A]]", "I take [[B]]"), (NOT_SAID, NOT_SAID))
    assert (empty.texts, empty.decisions) == ((None, None), ("a", None))


def test_a_response_of_the_pair_is_no_reply_of_the_judge() -> None:
    (pair,) = read([{"id": 1, "label": 1, "response_1": "Paris", "response_2": "Rome", "decision_1": "A", "decision_2": "B"}])
    assert (pair.texts, pair.decisions) == ((None, None), ("a", "a"))


def test_a_pair_judged_in_one_order_is_counted() -> None:
    rows = [*by_order()[:-1], {"id": "q5", "label": "A", "judgments": [{"decision": "A"}]}]
    found = read_judged([("r", row) for row in rows])
    assert ([pair.name for pair in found.pairs], found.one_order) == (["q1", "q2", "q3"], 2)
    with pytest.raises(DataError, match=r"all 8 pairs were judged in one order only \(joined by id, source; --columns pair_id=COLUMN"):
        read([{**row, "source": f"{row['order']}.jsonl"} for row in by_order()])


def test_runs_are_told_apart_by_their_columns() -> None:
    runs = [{**row, "temperature": t} for t in (0.0, 1.0) for row in by_order()]
    assert len(read(runs, by=["temperature"])) == 8
    with pytest.raises(DataError, match=r"row 9: pair 'q1' has this order twice \(first in row 1\).*--by COLUMN; columns: id, .*temperature"):
        read(runs)
    with pytest.raises(DataError, match="has no column warmth to group by"):
        read(runs, by=["warmth"])
    judges = [{**row, "judge": judge} for judge in "xy" for row in by_order()]
    assert len(read(judges)) == 8


def test_labels_as_presented_are_those_of_the_first_order() -> None:
    other = {"A": "B", "B": "A"}
    rows = by_order()
    turned = [{**row, "label": other[row["label"]] if row["order"] == "BA" else row["label"]} for row in rows]
    assert [pair.label for pair in read(turned)] == ["a", "b", "b", "a"]
    assert [pair.label for pair in read([{**row, "label": row["label"] if row["order"] == "BA" else None} for row in rows])] == ["a", "b", "b", "a"]
    with pytest.raises(DataError, match="row 8: the label is 'B', in row 7 it is 'A'; a pair has one label"):
        read([*rows[:7], turned[7]])


def test_a_label_may_be_missing_or_a_tie() -> None:
    rows = [{"id": k, "judgments": [{"decision": "A"}, {"decision": "B"}], **label} for k, label in enumerate(({}, {"label": None}, {"label": "tie"}))]
    assert [pair.label for pair in read(rows)] == [None, None, None]


def test_columns_that_were_read_are_named() -> None:
    found = read_judged([("r", row) for row in SHAPES["other names"]])
    assert found.columns == {"pair_id": "item_id", "order": "presentation_order", "text": "raw_output", "decision": "choice", "label": "gold"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no recorded judgments"),
        ([{"id": 1, "label": 1}], r"neither `judgments`, nor `order`.*columns: id, label.*--columns pair_id="),
        ([{"id": 1, "label": 1, "judgments": [{"decision": "A"}]}], "all 1 pairs were judged in one order only"),
        ([{"id": 1, "label": 1, "judgments": [None, None, None]}], "expected both orders"),
        ([{"id": 1, "label": 1, "judgments": {"AB": {"decision": "A"}, "12": {"decision": "B"}}}], "expected both orders"),
        ([{"id": 1, "label": 1, "judgments": '["A", "B"]'}], "expected both orders"),
        ([{"id": 1, "label": 1, "judgments": [{"decision": "left"}, None]}], "row 1: the verdict is 'left', expected 1, 2"),
        ([{"id": 1, "label": 1, "judgments": [{"decision": -1}, None]}], "the verdict is -1"),
        ([{"id": 1, "label": "good", "judgments": [None, None]}], "row 1, label: the verdict is 'good'"),
        ([{"id": 1, "label": 1, "judgments": [3, None]}], "a judgment is int"),
        ([{"label": 1, "order": "AB", "decision": "A"}], "need `id` or `pair_id`.*columns: label, order, decision"),
        ([{"id": 1, "label": 1, "order": "up", "decision": "A"}], "the order is 'up', expected AB or BA"),
        (by_order((True, False)), "the order is True.*--columns swapped=order"),
        ([*by_order((0, 1)), *by_order((2, 2))], "the order is 0"),
        (by_order(decided={"A": 0, "B": 1, "tie": "tie", None: None}), "decisions are 4 times 0, 2 times 1 and never 2"),
        ([{**row, "label": k // 2 % 2} for k, row in enumerate(by_order())], "labels are 4 times 0, 4 times 1 and never 2"),
    ],
)
def test_what_cannot_be_read_is_said(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(rows)
