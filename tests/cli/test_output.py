"""Files that commands write: refused before anything is spent, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from palate.cli.output import check_writable, rows_path, write_rows, write_texts
from palate.errors import ConfigError, DataError, StorageError

ROWS = [{"a": 1, "b": ["x"]}, {"a": 2, "c": {"d": 0.5}}]


def test_rows_as_json_lines_and_as_parquet(tmp_path: Path) -> None:
    write_rows(tmp_path / "new" / "rows.jsonl", ROWS)
    assert [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()] == ROWS
    write_rows(tmp_path / "rows.parquet", ROWS, columns=("reward_error",))
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["a", "b", "c", "reward_error"]
    assert table.to_pylist() == [{"a": 1, "b": ["x"], "c": None, "reward_error": None}, {"a": 2, "b": None, "c": {"d": 0.5}, "reward_error": None}]
    with pytest.raises(DataError, match="do not fit one Parquet table"):
        write_rows(tmp_path / "mixed.parquet", [{"a": 1}, {"a": [1]}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "rows.parquet"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows() -> Iterator[str]:
        yield "one\n"
        raise ZeroDivisionError

    (tmp_path / "rows.jsonl").write_text("before\n")
    with pytest.raises(ZeroDivisionError):
        write_texts(tmp_path / "rows.jsonl", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"] and (tmp_path / "rows.jsonl").read_text() == "before\n"


def test_half_a_character_pair_stays_what_it_was(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "a\ud83d"}])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"text": "a\ud83d"}


def test_what_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("rows.txt", "rows", "folder.jsonl"):
        with pytest.raises(ConfigError, match="expected a .jsonl or .parquet file"):
            rows_path(str(tmp_path / name), overwrite=True)
    with pytest.raises(StorageError, match="exists already"):
        rows_path(str(tmp_path / "there.jsonl"), overwrite=False)
    with pytest.raises(StorageError, match="no folder"):
        rows_path(str(tmp_path / "there.jsonl" / "rows.jsonl"), overwrite=False)
    with pytest.raises(StorageError, match="is a folder"):
        check_writable(tmp_path)
    assert rows_path(str(tmp_path / "there.jsonl"), overwrite=True) == tmp_path / "there.jsonl"
    assert rows_path(str(tmp_path / "new" / "rows.parquet"), overwrite=False).parent.exists() is False
