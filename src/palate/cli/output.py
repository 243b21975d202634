"""The files that commands write: looked at before anything is computed or spent, and there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROWS = (".jsonl", ".parquet")


def rows_path(name: str, *, overwrite: bool) -> Path:
    """Where rows shall go. Raises ConfigError for what is no file of rows, StorageError where it is there already or its folder takes no file."""
    from palate.errors import ConfigError, StorageError

    output = Path(name)
    if output.suffix not in ROWS or output.is_dir():
        raise ConfigError(f"--output {output}: expected a .jsonl or .parquet file")
    if output.exists() and not overwrite:
        raise StorageError(f"{output}: exists already; choose another name or pass --overwrite")
    check_writable(output)
    return output


def check_writable(output: Path) -> None:
    """Raises StorageError where no file of this name can be made, as far as can be seen before."""
    from palate.errors import StorageError

    if output.is_dir():
        raise StorageError(f"{output}: is a folder; expected the name of a file")
    folder = next(one for one in output.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{output}: cannot be written: {folder} is {'not writable' if folder.is_dir() else 'no folder'}")


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """A name beside the file to write to, which takes its place at the end. Its folder is made. Raises StorageError where that fails."""
    from palate.errors import StorageError

    part = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(output)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error}; nothing half-written was left") from error
    finally:
        part.unlink(missing_ok=True)


def write_texts(output: Path, texts: Iterable[str]) -> None:
    """A file of these texts, one after the other. Half a character pair, which JSON may hold and UTF-8 may not, is written as JSON's own escape."""
    with whole_file(output) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.writelines(texts)


def write_json(output: Path, found: Mapping[str, Any]) -> None:
    from palate.evaluation.evaluator import to_json

    write_texts(output, [to_json(found)])


def write_rows(output: Path, rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str] = ()) -> None:
    """As JSON lines, or as Parquet by the name's suffix, there with every column of any row and with `columns`. Raises DataError for rows of no one shape."""
    if output.suffix != ".parquet":
        write_texts(output, (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
        return
    import pyarrow
    import pyarrow.parquet

    from palate.errors import DataError

    listed = list(rows)
    names = dict.fromkeys((*(name for row in listed for name in row), *columns))
    try:
        table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in listed])
        with whole_file(output) as part:
            pyarrow.parquet.write_table(table, part)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError) as error:
        raise DataError(f"{output}: these rows do not fit one Parquet table ({error}); write .jsonl instead") from error
