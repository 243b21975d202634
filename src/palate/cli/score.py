"""`palate score`: rows in, the same rows out with `reward`, in input order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from palate.types import PACKINGS

CHUNK = 4096  # rows scored and written together


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="palate score", description="Add a reward to every row. Rows of several responses get a list of rewards.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="JSONL, JSON, CSV or Parquet: prompt + response, messages, or preference rows")
    parser.add_argument("--output", required=True, help="JSONL or Parquet file to write")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. response=answer")
    parser.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="beyond max_length (nan: reward null and a reason)")
    parser.add_argument("--max-length", type=int, help="in place of the checkpoint's own")
    parser.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    parser.add_argument("--token-budget", type=int, help="tokens computed at a time (default: by device)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.cli.eval import parse_columns
    from palate.errors import ConfigError, StorageError
    from palate.scoring.local import load_scorer

    output = Path(options.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {output}: expected a .jsonl or .parquet file")
    if output.exists() and not options.overwrite:
        raise StorageError(f"{output}: exists already; choose another name or pass --overwrite")
    quiet_libraries()
    scorer = load_scorer(options.model, packing=options.packing, token_budget=options.token_budget, max_length=options.max_length)
    rows = scored_rows(scorer, options.data, options.split, parse_columns(options.columns), options.on_long)
    count, failed = write_rows(output, rows)
    console.print(f"{count} rows written to {output}" + (f"; {failed} without a reward (see `reward_error`)" if failed else ""))
    return 0


def scored_rows(scorer: Any, data: str, split: str, columns: Mapping[str, str] | None, on_long: str) -> Iterator[dict[str, Any]]:
    """Every input row with `reward` (a number, or one a response) and, where it has none, `reward_error`.

    A model with several outputs adds `reward_outputs`, by name; one of step rewards `reward_outputs.steps`.
    """
    from palate.data.formats import detect_layout, parse_row
    from palate.data.loading import read_rows, rename_columns
    from palate.errors import RowError
    from palate.types import text_of

    layout = None
    stream = read_rows(data, split=split)
    while chunk := list(islice(stream, CHUNK)):
        groups: list[Any] = []
        for location, row in chunk:
            read = rename_columns(row, columns, location) if columns else row
            layout = layout or detect_layout(read)
            try:
                groups.append(parse_row(read, layout, margins=False, compared=False))
            except RowError as error:
                groups.append(f"{location}: {error}")
        exchanges = [exchange for group in groups if not isinstance(group, str) for exchange in group.exchanges()]
        scored, found = scorer.score_detailed(exchanges, progress=True, on_long=on_long)
        rewards, details = iter(scored.tolist()), iter(found)
        for (_, row), group in zip(chunk, groups, strict=True):
            if isinstance(group, str):
                yield {**row, "reward": None, "reward_error": group}
                continue
            values, outputs = [next(rewards) for _ in group.responses], [next(details) for _ in group.responses]
            known = [None if value != value else value for value in values]
            blank = not text_of(group.prompt) and "" in map(text_of, group.responses)
            why = "empty: no token to read a reward from" if blank else f"longer than {scorer.encoder.max_length} tokens"
            reason = {"reward_error": why} if None in known else {}
            named = {"reward_outputs": outputs[0] if len(outputs) == 1 else outputs} if any(outputs) else {}
            yield {**row, "reward": known[0] if len(known) == 1 else known, **named, **reason}


def write_rows(output: Path, rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """(rows, rows without a reward). The file appears whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    from palate.errors import DataError, StorageError

    part = output.with_name(f".{output.name}.part")
    count = failed = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".parquet":
            table = list(rows)
            count, failed = len(table), sum("reward_error" in row for row in table)
            names = dict.fromkeys(name for row in table for name in row) | {"reward_error": None}  # every column of any row
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in table]), part)
        else:
            with open(part, "w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                    count += 1
                    failed += "reward_error" in row
        part.replace(output)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(f"{output}: these rows do not fit one Parquet table ({error}); write .jsonl instead") from error
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error}; nothing half-written was left") from error
    finally:
        part.unlink(missing_ok=True)
    return count, failed
