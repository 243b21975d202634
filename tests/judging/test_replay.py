"""Recorded judgments read again: what replies say beside what is on record, and what both orders keep."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from palate.cli.main import main
from palate.errors import DataError
from palate.judging.recorded import read_judged
from palate.judging.replay import FORMS, Patterns, Replayed, replay

# what a judge said of three pairs, as presented, in both orders: right twice, torn, nothing in the second order
SAID = [("q1", "A>B", "I say [[A>B]]", "So [[B>A]]"), ("q2", "B>A", "[[A>>B]]", "[[A>B]]"), ("q3", "B>A", "[[B>A]]", "no idea")]
DECIDED = {"I say [[A>B]]": "A>B", "So [[B>A]]": "B>A", "[[A>>B]]": "A>B", "[[A>B]]": "A>B", "[[B>A]]": "B>A", "no idea": None}


def by_order() -> list[dict[str, Any]]:
    return [
        {"pair_id": key, "label": label, "order": order, "raw": text, "decision": DECIDED[text]}
        for key, label, *texts in SAID
        for order, text in zip(("AB", "BA"), texts, strict=True)
    ]


def read_again(rows: list[dict[str, Any]], form: str | None = None, **options: Any) -> Replayed:
    parser = FORMS[form]() if form else None
    return replay(read_judged([("r", row) for row in rows]).pairs, (lambda _: parser) if parser else None, **options)


@pytest.mark.parametrize("form", ["arena", None])
def test_replies_and_decisions_give_the_same_figures(form: str | None) -> None:
    found = read_again(by_order(), form)
    assert (found.parsed, found.different, found.unread, found.unlabelled, found.doubt) == (6 if form else 0, 0, 0, 0, "")
    assert found.table == [
        {
            "n": 3,
            "kept": pytest.approx(1 / 3),
            "accuracy_of_kept": 1.0,
            "accuracy_of_both_orders": pytest.approx(4 / 6),
            "outcomes": {"agreed": 1, "contradiction": 1, "one invalid": 1},
        }
    ]


def test_accuracies_are_of_the_labelled_pairs() -> None:
    """Without q1's label no pair is kept that has one; of the other four verdicts two are right (q2's second, q3's first)."""
    rows = [{**row, "label": None} if row["pair_id"] == "q1" else row for row in by_order()]
    (row,), unlabelled = (found := read_again(rows)).table, found.unlabelled
    assert (unlabelled, row["n"], row["kept"], row["accuracy_of_both_orders"]) == (1, 3, pytest.approx(1 / 3), 0.5)
    assert math.isnan(row["accuracy_of_kept"])


def test_decisions_that_do_not_follow_from_the_replies_are_named() -> None:
    rows = [{"id": "x", "label": 1, "judgments": {"12": {"text": "[[B>A]]", "winner": "1"}, "21": {"text": "[[B>A]]", "winner": "1"}}}]
    found = read_again(rows, "arena")
    assert found.different == 1 and found.examples == [{"id": "x", "order": 1, "read": "b", "recorded": "a"}]


def test_a_reply_that_is_missing_leaves_its_decision_and_is_counted() -> None:
    rows = [{**row, "raw": None} if row["pair_id"] == "q2" else row for row in by_order()]
    found = read_again(rows, "arena")
    assert (found.parsed, found.different, found.unread) == (4, 0, 2) and found.table == read_again(by_order()).table
    empty = read_again([{**row, "raw": "", "decision": None} for row in by_order()], "arena")
    assert (empty.parsed, empty.different, empty.table[0]["outcomes"]) == (6, 0, {"both invalid": 3})


def test_decisions_in_the_coordinates_of_the_pair_are_doubted() -> None:
    """A judge that is right of four balanced pairs in both orders: taken as presented, it seems to contradict itself both ways."""
    rows = [
        {"id": k, "label": label, "order": order, "raw": f"[[{label if order == 'AB' else 'AB'.strip(label)}]]", "decision": label}
        for k, label in enumerate("ABAB")
        for order in ("AB", "BA")
    ]
    assert read_again(rows).doubt == "0 pairs agree, 2 contradict for what was shown first, 2 for what was shown second"
    found = read_again(rows, "binary")
    assert (found.different, found.doubt) == (4, "with the second order's decisions turned round 0 would be different")
    told = replay(read_judged([("r", row) for row in rows], decisions="item").pairs, None)
    assert (told.doubt, told.table[0]["kept"], told.table[0]["accuracy_of_kept"]) == ("", 1.0, 1.0)
    first = read_again([{**row, "decision": "A"} for row in rows])  # all for what was shown first: a judge that leans, not other coordinates
    assert (first.doubt, first.table[0]["outcomes"]) == ("", {"contradiction": 4})


def test_groups_of_the_table() -> None:
    """LLMBar's ids name their subset; an id that only holds hyphens names none."""

    def groups(*ids: str, **more: Any) -> list[str]:
        rows = [{"id": name, "label": 1, "judgments": [{"decision": "A"}, {"decision": "B"}], **more} for name in ids]
        return [str(row.get("subset", row.get("judge", "-"))) for row in read_again(rows).table]

    assert groups("Natural-0", "Adversarial-GPTInst-1", "Natural-2") == ["Adversarial-GPTInst", "Natural"]
    assert groups("550e8400-0001-a716-1", "550e8400-0002-a716-2") == ["-"]
    assert groups("x1", "x2", judge="j") == ["j"]


def test_patterns_of_one_file() -> None:
    patterns = Patterns({"1": r"^\(a\)", "2": r"^\(b\)"})
    judged = read_judged([("r", {"id": 1, "label": 2, "judgments": [{"text": "(b) wins"}, {"text": "(a) wins"}]})]).pairs
    assert replay(judged, patterns.parser).table[0]["accuracy_of_kept"] == 1.0
    with pytest.raises(DataError, match="expected 1, 2"):
        Patterns({"left": "x"})


def test_without_a_way_to_read_replies_decisions_are_needed() -> None:
    with pytest.raises(DataError, match="pair 1 has, in order 1, a reply but no decision; say how replies are read"):
        read_again([{"id": 1, "judgments": ["I say [[A]]", "I say [[B]]"]}])
    with pytest.raises(DataError, match="no reply and no decision; columns: id, judgments"):
        read_again([{"id": 1, "judgments": [{}, {}]}])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, output = tmp_path / "records.jsonl", tmp_path / "out.json"
    records.write_text("".join(json.dumps(row) + "\n" for row in by_order()))
    assert main(["judge", "replay", str(records), "--form", "arena", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["table"][0]["kept"] == pytest.approx(1 / 3)
    assert "6 replies read; 0 give another verdict" in capsys.readouterr().out
    assert main(["judge", "replay", str(records), "--form", "three_way"]) == 1
    with pytest.raises(SystemExit):
        main(["judge", "replay", str(records), "--form", "arena", "--patterns", "x.json"])


def test_the_command_on_a_table_under_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fifteen decisions on record are not what was said, one order is missing, no label is known."""
    rows = [{"who": f"{row['pair_id']}.{k}", "order": row["order"], "said": row["raw"], "took": "B"} for k in range(4) for row in by_order()][:-1]
    records, output = tmp_path / "records.csv", tmp_path / "out.json"
    with records.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    arguments = ["judge", "replay", str(records), "--form", "arena", "--output", str(output), "--columns", "pair_id=who", "text=said", "decision=took"]
    assert main(arguments) == 1
    said = " ".join(capsys.readouterr().out.split())
    different = 4 * 3 + 3  # q1's first, both of q2, and q3's second, of which one is missing with its pair
    for words in (
        "Read: pair_id, order, text, decision",
        "Pairs judged in one order only, left out: 1",
        "(--columns label=COLUMN names its column), in no accuracy: 11",
        f"22 replies read; {different} give another verdict than the one on record",
        f"and {different - 5} more",
    ):
        assert words in said
    found = json.loads(output.read_text())
    assert (len(found["examples"]), found["one_order"]) == (different, 1)
    assert main(["judge", "replay", str(records)]) == 3
    assert "--columns pair_id=COLUMN names it" in capsys.readouterr().err
