"""`palate data generative`: the converters of generative judges as a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palate.cli.main import main
from palate.data.generative_rows import generative_rows
from palate.data.loading import load_groups


def test_the_rows_are_those_of_the_function(write_jsonl: Any, tmp_path: Path, pairs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_jsonl([{**pair, "reference": "right"} for pair in pairs]), tmp_path / "rows.jsonl"
    flags = ["data", "generative", "--data", str(data), "--form", "pair_label", "--orders", "both", "--references", "--output", str(output)]
    assert main(flags) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == generative_rows(load_groups(data).groups, "pair_label", orders="both", references=True).rows and len(rows) == 24
    assert "<reference>" in rows[0]["prompt"][0]["content"]
    assert "12 groups, 24 rows written" in capsys.readouterr().out
    assert main(flags) == 5  # there is a file already
    assert main([*flags, "--overwrite"]) == 0


def test_what_is_left_out_is_said_and_nothing_is_an_error(write_jsonl: Any, tmp_path: Path, pairs: list[dict[str, Any]], capsys: Any) -> None:
    rows = [*pairs, {"prompt": "a", "chosen": "same", "rejected": "same"}]
    flags = ["data", "generative", "--data", str(write_jsonl(rows)), "--output", str(tmp_path / "rows.jsonl")]
    assert main([*flags, "--form", "yes_no", "--on-bad-row", "drop"]) == 0
    assert "rows that could not be used: 1 x" in capsys.readouterr().out.replace("\n", " ")
    assert main([*flags, "--form", "yes_no", "--overwrite"]) == 3  # a row that cannot be used is an error unless it may be dropped
    assert main([*flags, "--form", "critique", "--on-bad-row", "drop", "--overwrite"]) == 3
    assert "24 x no critique" in capsys.readouterr().err
    assert main([*flags, "--form", "yes_no", "--output", str(tmp_path / "rows.csv")]) == 2
