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
    parser.add_argument("--output", required=True, help="JSONL or Parquet file to write, or a folder for a part a shard")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. response=answer")
    parser.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="beyond max_length (nan: reward null and a reason)")
    parser.add_argument("--max-length", type=int, help="in place of the checkpoint's own")
    parser.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    parser.add_argument("--token-budget", type=int, help="tokens computed at a time (default: by device)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    shards = parser.add_argument_group("millions of rows, into a folder")
    shards.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: Ray Data actors, one a device; under torchrun, local takes turns by rank"
    )
    shards.add_argument("--workers", type=int, help="actors of --engine ray (default: one a GPU, or one)")
    shards.add_argument("--shard-rows", type=int, default=CHUNK, help="rows scored and written together")
    shards.add_argument("--resume", action="store_true", help="go on with a job; no finished shard is scored again")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.cli.eval import parse_columns
    from palate.errors import ConfigError, StorageError
    from palate.scoring.rows import open_detailed

    output = Path(options.output)
    quiet_libraries()
    if not output.suffix:
        score_shards(options, parse_columns(options.columns))
        return 0
    if options.engine != "local" or options.resume:
        raise ConfigError(f"--output {output}: --engine and --resume work by shards; give a folder")
    if output.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {output}: expected a .jsonl or .parquet file")
    if output.exists() and not options.overwrite:
        raise StorageError(f"{output}: exists already; choose another name or pass --overwrite")
    scorer = open_detailed(options.model, packing=options.packing, token_budget=options.token_budget, max_length=options.max_length)
    rows = scored_stream(scorer, options.data, options.split, parse_columns(options.columns), options.on_long)
    count, failed = write_rows(output, rows)
    console.print(f"{count} rows written to {output}" + (f"; {failed} without a reward (see `reward_error`)" if failed else ""))
    return 0


def scored_stream(scorer: Any, data: str, split: str, columns: Mapping[str, str] | None, on_long: str) -> Iterator[dict[str, Any]]:
    """Every row of any source, scored chunk by chunk."""
    from palate.data.formats import detect_layout
    from palate.data.loading import read_rows
    from palate.scoring.rows import scored_rows
    from palate.scoring.unranked import as_read

    layout = None
    stream = read_rows(data, split=split)
    while chunk := list(islice(stream, CHUNK)):
        location, row = chunk[0]
        layout = layout or detect_layout(as_read(row, columns, location))
        yield from scored_rows(scorer, chunk, layout, columns=columns, on_long=on_long, progress=True)


def score_shards(options: argparse.Namespace, columns: Mapping[str, str] | None) -> None:
    """Into a folder of parts, by the engine that was asked for."""
    from palate.cli.console import console
    from palate.errors import ConfigError
    from palate.models.checkpoints import find_contract, read_contract
    from palate.scoring.batch import ScoringJob, first_layout, input_files, open_output, plan_shards, score_here, score_on_ray, totals

    if options.on_long == "error":
        raise ConfigError("--on-long error would end the job at one long row; shards keep such rows with their reason (nan), or cut their prompts")
    paths = input_files(options.data)
    shards = plan_shards(paths, options.shard_rows)
    given = {"packing": options.packing, "token_budget": options.token_budget, "max_length": options.max_length}
    mapped = dict(columns) if columns else None
    job = ScoringJob(options.model, options.output, first_layout(shards, mapped), mapped, options.on_long, {k: v for k, v in given.items() if v is not None})
    contract = read_contract(options.model) if find_contract(options.model) else None
    identity = (contract.sha256(), contract.chat_template_sha256) if contract else (None, None)
    left = open_output(job, paths, shards, *identity, resume=options.resume)
    if len(left) < len(shards):
        console.print(f"{len(shards) - len(left)} of {len(shards)} shards are done already")
    if left and options.engine == "ray":
        score_on_ray(job, left, options.workers)
    else:
        score_here(job, left)
    done = totals(options.output, shards)
    console.print(
        f"{done['rows']} rows in {done['shards']} of {len(shards)} parts under {options.output}; {done['failed']} without a reward (see `reward_error`)"
    )


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
