"""What `palate build` writes, as rows: the weight of a pair, and which of margin and soft label is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from palate.data.formats import parse_row
from palate.data.loading import load_groups
from palate.errors import RowError
from palate.types import Comparison

ROW: dict[str, Any] = {"prompt": "Sky?", "chosen": "blue", "rejected": "green", "margin": 1.5, "p_hat": 0.8, "pair_weight": 0.25, "judge": "m"}


def read(row: dict[str, Any], **how: bool) -> Comparison:
    (comparison,) = parse_row(row, **how).comparisons
    return comparison


def test_the_margin_where_margins_are_read_else_the_soft_label() -> None:
    assert read(ROW) == Comparison(0, 1, margin=1.5, weight=0.25)
    assert read(ROW, margins=False) == Comparison(0, 1, weight=0.25, probability=pytest.approx(0.8))
    assert read({**ROW, "margin": 0.0}).probability == 1.0, "a margin of 0 was given: negligibly better"
    assert read({**ROW, "margin": None}) == Comparison(0, 1, weight=0.25, probability=pytest.approx(0.8)), "no margin: nothing would be read twice"
    assert read({**ROW, "p_hat": 0.5}).probability == 0.5, "a tie stays one"


def test_the_weight_of_a_pair() -> None:
    assert read({**ROW, "weight": 3.0}).weight == 3.0, "the row's own weight stands above it"
    assert read({**ROW, "pair_weight": None}).weight == 1.0
    plain = {key: ROW[key] for key in ("prompt", "chosen", "rejected", "pair_weight")}
    assert read(plain) == Comparison(0, 1, weight=0.25) and set(parse_row(ROW).metadata) == {"judge"}
    with pytest.raises(RowError, match="column `pair_weight` is -1.0, expected 0 or more"):
        read({**ROW, "pair_weight": -1.0})


def test_margin_and_soft_label_for_different_sides() -> None:
    with pytest.raises(RowError, match="`p_hat` is 0.3, so `rejected` is likelier to be better, beside a `margin` for `chosen`"):
        read({**ROW, "p_hat": 0.3})
    assert read({**ROW, "p_hat": 0.3}, margins=False) == Comparison(1, 0, weight=0.25, probability=pytest.approx(0.7))
    sides = {"prompt": "Sky?", "response_a": "blue", "response_b": "green", "p_hat": 0.3, "margin": 1.0}
    assert read(sides) == Comparison(1, 0, margin=1.0), "of two responses the margin is the better one's, whichever that is"


def test_empty_cells_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "prefs.csv"
    path.write_text("prompt,chosen,rejected,p_hat,margin,pair_weight\nSky?,blue,green,0.8,,\nSea?,wet,dry,0.9,2,0.5\n")
    first, second = (group.comparisons[0] for group in load_groups(path).groups)
    assert first == Comparison(0, 1, probability=pytest.approx(0.8)) and second == Comparison(0, 1, margin=2.0, weight=0.5)
