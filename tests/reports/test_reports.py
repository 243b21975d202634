"""Pages and pictures from result files: every picture is made, nothing is fetched, markup in the data stays text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from palate.data.loading import load_groups
from palate.evaluation.evaluator import evaluate
from palate.reports.page import write_page
from palate.reports.tables import result_table, subset_table


class Lengths:
    def score(self, conversations) -> np.ndarray:
        return np.array([len(c.response) for c in conversations], dtype=np.float32)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": f"<script>alert({i})</script>",
            "chosen": "long answer & more\u2028" * (1 + i % 3),
            "rejected": "<b>short</b>" * (1 + i % 2),
            "subset": "xy"[i % 2],
        }
        for i in range(12)
    ]
    evaluate(Lengths(), load_groups(rows).groups).save(tmp_path / "results.json")
    return tmp_path / "results.json"


HISTORY = [{"step": i, "loss": 1 / (i + 1), "accuracy": 0.5 + i / 20} for i in range(5)] + [{"step": 5, "eval_accuracy": 0.7}]


def test_page_and_pictures(results: Path) -> None:
    page = write_page(results, results.parent / "index.html", title="A <title>", log_history=HISTORY)
    html = page.read_text()
    for name in ("training", "rewards", "margins", "reliability", "subsets", "length"):
        assert (results.parent / "figures" / f"{name}.png").stat().st_size > 5000
    assert html.count("<svg") == 6
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html and "A &lt;title&gt;" in html
    result = json.loads(results.read_text())
    assert f"{100 * result['accuracy']:.1f} %" in html
    assert "src=" not in html and "<link" not in html, "the page needs nothing from outside"


def test_without_history_or_subsets_those_pictures_are_left_out(tmp_path: Path) -> None:
    evaluate(Lengths(), load_groups([{"prompt": "p", "chosen": "aa", "rejected": "b"}], name="one").groups).save(tmp_path / "r.json")
    assert write_page(tmp_path / "r.json", tmp_path / "p.html", title="t").read_text().count("<svg") == 4


def test_tables(results: Path) -> None:
    result = json.loads(results.read_text())
    assert result_table(result, title="t").row_count >= 9 and subset_table(result).row_count == 2


def test_reports_need_no_torch() -> None:
    code = "import sys, palate.reports.page, palate.reports.tables; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
