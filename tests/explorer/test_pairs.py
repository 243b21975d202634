"""Columns, filters, orders and pages: index arrays against plain loops over the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.explorer.sites import MARGINS, ROWS, pairs_of, unlabelled

from palate.errors import DataError
from palate.explorer.pairs import Labelled, Pairs, page
from palate.explorer.query import SORTS, Query
from palate.explorer.rewards import unscored
from palate.explorer.search import TextIndex
from palate.types import PreferenceGroup


def order(pairs: Pairs, **asked: object) -> list[int]:
    return pairs.order(Query(**asked), unlabelled(pairs)).tolist()  # type: ignore[arg-type]


def test_margins_lengths_and_identities() -> None:
    pairs = pairs_of()
    assert pairs.margin.tolist() == list(MARGINS)
    assert pairs.gap.tolist() == [len(row["chosen"]) - len(row["rejected"]) for row in ROWS]
    assert pairs.identity(4) == pairs.identity(5), "a pair that stands twice is one pair: it is labelled once"
    assert len({pairs.identity(row) for row in range(5)}) == 5, "a pair and its reverse are two"
    assert pairs.rows[pairs.identity(5)] == 4
    assert pairs.probability(1) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_findings_stand_at_their_rows() -> None:
    pairs = pairs_of()
    found = {name: np.flatnonzero(rows).tolist() for name, rows in pairs.flags.items()}
    assert found == {"duplicates": [4, 5], "contradictions": [0, 3], "rejected refuses": [1]}


def test_more_findings() -> None:
    long = "one two three four five six seven eight nine"
    rows = [
        {"prompt": f"Repeat after me: {long}", "chosen": "I will not.", "rejected": long.upper()},
        {"prompt": "blanks", "chosen": "the same  text", "rejected": "The same text"},
        *({"prompt": f"prompt {i}", "chosen": f"answer {i}", "rejected": "Stock phrase."} for i in range(11)),
        {"prompt": "which is better?", "response_1": "x", "response_2": "y", "label": 0},
    ]
    found = {name: np.flatnonzero(flag).tolist() for name, flag in pairs_of(rows[:-1], [1.0] * 13).flags.items()}
    assert found == {"responses in their prompts": [0], "sides alike": [1], "constant responses": list(range(2, 13))}
    ties = pairs_of([rows[-1], {**rows[-1], "response_1": "y", "response_2": "x"}], [0.0, 0.0])
    assert not ties.flags and not ties.decided.any(), "a tie contradicts nothing"


def test_every_order_is_the_sorted_one() -> None:
    margins = [0.5, math.nan, -1.0, 0.5, 0.0, -2.0]
    pairs = pairs_of(ROWS, margins, other=[0.4, 1.0, 3.0, 0.5, 0.0, math.nan])
    known = [row for row in range(6) if row != 1]
    assert order(pairs) == list(range(6))
    assert order(pairs, sort="disagreement") == [*sorted(known, key=lambda row: margins[row]), 1]
    assert order(pairs, sort="confidence") == [*sorted(known, key=lambda row: -margins[row]), 1]
    assert order(pairs, sort="uncertain") == [*sorted(known, key=lambda row: abs(margins[row])), 1], "what has no reward comes last"
    assert order(pairs, sort="longer") == sorted(range(6), key=lambda row: -int(pairs.gap[row]))
    assert order(pairs, sort="shorter") == sorted(range(6), key=lambda row: int(pairs.gap[row]))
    assert order(pairs, sort="subset") == sorted(range(6), key=lambda row: ROWS[row]["domain"])
    assert order(pairs, sort="models")[0] == 2, "the models differ most on the row where one says -1 and the other 3"
    assert sorted(order(pairs, sort="random")) == list(range(6)) and order(pairs, sort="random") == order(pairs, sort="random")
    assert all(sorted(order(pairs, sort=sort)) == list(range(6)) for sort in SORTS)


def test_filters_are_masks_that_meet() -> None:
    pairs = pairs_of()
    assert order(pairs, subset="places") == [2, 4, 5]
    assert order(pairs, outcome="wrong") == [2, 3] and order(pairs, outcome="right") == [0, 1, 4, 5]
    assert order(pairs, low=0.5, high=1.0) == [1, 4, 5], "both ends belong to it"
    assert order(pairs, finding="contradictions", outcome="right") == [0]
    assert order(pairs, text="STONE") == [0, 3], "letter case does not matter"
    assert order(pairs, text="river", subset="food") == []
    assert order(pairs, text="a colour", sort="disagreement") == [1]
    with pytest.raises(DataError, match="subset 'zoo'|domain 'zoo'"):
        order(pairs, subset="zoo")


def test_models_that_part() -> None:
    pairs = pairs_of(other=[-1.0, 0.5, 3.0, -2.0, 0.0, 1.0])
    assert order(pairs, flip="only_a") == [0, 4] and order(pairs, flip="only_b") == [2] and order(pairs, flip="either") == [0, 2, 4]
    with pytest.raises(DataError, match="--compare"):
        order(pairs_of(), flip="either")
    with pytest.raises(DataError, match="--compare"):
        order(pairs_of(), sort="models")


def test_labelled_rows() -> None:
    pairs = pairs_of()
    labelled = Labelled(3, np.arange(6) < 2, np.arange(6) < 1)
    for name, expected in (("any", [0, 1]), ("none", [2, 3, 4, 5]), ("against", [0])):
        assert pairs.order(Query(labelled=name), labelled).tolist() == expected
    later = Labelled(4, np.arange(6) < 3, np.arange(6) < 1)
    assert pairs.order(Query(labelled="any"), later).tolist() == [0, 1, 2], "an answer from before the last label is not kept"


def test_suspects_are_the_noise_of_an_evaluation() -> None:
    """Hundred sure rows and one against the label: the same rule, at the same temperature, as the `noise` of results.json."""
    from palate.evaluation.evaluator import evaluate_scored

    rows = [{"prompt": f"p {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(101)]
    margins = np.random.default_rng(0).normal(2.0, 1.5, 101)
    pairs = pairs_of(rows, margins.tolist())
    noise = evaluate_scored(pairs.items.scored).result.noise
    assert noise is not None and pairs.disagreements is not None
    assert pairs.suspect.sum() == noise["confident_disagreements"] == pairs.disagreements.observed > 0
    assert pairs.disagreements.expected == pytest.approx(noise["expected"])
    assert order(pairs, outcome="suspect", sort="disagreement") == pairs.disagreements.indices.tolist()


def test_pages_go_forth_and_back() -> None:
    rows = np.array([7, 3, 9, 1, 5])
    first = page(rows, 2)
    assert (first.rows.tolist(), first.start, first.total, first.has_before, first.has_after) == ([7, 3], 0, 5, False, True)
    second = page(rows, 2, after=3)
    assert second.rows.tolist() == [9, 1] and second.has_before and second.has_after
    assert page(rows, 2, after=1).rows.tolist() == [5] and not page(rows, 2, after=1).has_after
    assert page(rows, 2, before=9).rows.tolist() == [7, 3] and page(rows, 4, before=3).rows.tolist() == [7, 3, 9, 1]
    assert page(rows, 2, after=1000).rows.tolist() == [7, 3], "a key that is not there gives the first page"
    assert page(rows[:0], 2).total == 0


def test_search_is_substring_search() -> None:
    texts = ["An Apple\x00 a day", "", "straße ÄÖÜ", "apple apple", "half a pair \ud800"]
    index = TextIndex(texts)
    for wanted in ("apple", "äöü", "STRASSE", "straße", "a", "", "\x00", "\ud800", "day"):
        expected = [wanted.lower().replace("\x00", " ") in text.lower().replace("\x00", " ") for text in texts]
        assert index.find(wanted).tolist() == expected, wanted
    assert not TextIndex(["ab", "cd"]).find("b c").any() and not TextIndex(["ab", "cd"]).find("bc").any(), "nothing is found across two texts"
    assert len(TextIndex([])) == 0 and TextIndex([]).find("x").tolist() == []


def test_without_rewards_the_data_can_be_read() -> None:
    groups = pairs_of().groups
    pairs = Pairs(groups, unscored(groups))
    assert not pairs.is_scored and pairs.temperature is None and not pairs.suspect.any()
    assert order(pairs, sort="disagreement") == list(range(6)) and order(pairs, outcome="unscored") == list(range(6))


def test_rows_that_do_not_compare_are_refused() -> None:
    groups = [PreferenceGroup("p", ("one",))]
    with pytest.raises(DataError, match="none of the 1 groups has a comparison"):
        Pairs(groups, unscored(groups))


@pytest.mark.parametrize(
    "given", [{"sort": "best"}, {"outcome": "x"}, {"flip": "x"}, {"labelled": "x"}, {"low": "abc"}, {"high": "nan"}, {"low": "inf"}, {"text": "x" * 201}]
)
def test_a_query_that_nothing_can_be_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(DataError):
        Query.read(given)


def test_a_query_reads_back_what_it_writes() -> None:
    asked = Query(text='a "b" & c=d', subset="places", low=-0.12345678, sort="longer", outcome="wrong")
    address = asked.address("/pairs", after=7)
    from urllib.parse import parse_qsl, urlsplit

    assert Query.read(dict(parse_qsl(urlsplit(address).query))) == asked and "after=7" in address
    assert Query().address("/pairs") == "/pairs" and not Query(sort="longer").is_filtered and asked.is_filtered
    assert Query.read({"after": "3", "blind": "0", "text": "  "}) == Query(), "others' parameters and blanks are no filter"
