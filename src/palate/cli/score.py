"""`palate score`: rows in, the same rows out with `reward`, in input order."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from palate.cli.arguments import Parser, at_least_one
from palate.types import PACKINGS

CHUNK = 4096  # rows scored and written together


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate score", description="Add a reward to every row. Rows of several responses get a list of rewards.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="JSONL, JSON, CSV or Parquet: prompt + response, messages, or preference rows")
    parser.add_argument("--output", required=True, help="JSONL or Parquet file to write, or a folder for a part a shard")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. response=answer")
    parser.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="beyond max_length (nan: reward null and a reason)")
    parser.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    parser.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    parser.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    shards = parser.add_argument_group("millions of rows, into a folder")
    shards.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: Ray Data actors, one a device; under torchrun, local takes turns by rank"
    )
    shards.add_argument("--workers", type=at_least_one, help="actors of --engine ray (default: one a GPU, or one)")
    shards.add_argument("--shard-rows", type=int, default=CHUNK, help="rows scored and written together")
    shards.add_argument("--resume", action="store_true", help="go on with a job; no finished shard is scored again")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.cli.eval import loading_options, parse_columns
    from palate.cli.output import rows_path, write_rows
    from palate.errors import ConfigError
    from palate.scoring.rows import open_detailed

    output = Path(options.output)
    quiet_libraries()
    if not output.suffix:
        score_shards(options, parse_columns(options.columns))
        return 0
    if options.engine != "local" or options.resume:
        raise ConfigError(f"--output {output}: --engine and --resume work by shards; give a folder")
    rows_path(options.output, overwrite=options.overwrite)
    scorer = open_detailed(options.model, **loading_options(options))
    counts: Counter[str] = Counter()
    rows = scored_stream(scorer, options.data, options.split, parse_columns(options.columns), options.on_long)
    write_rows(output, counted(rows, counts), columns=("reward_error",))
    count, failed = counts["rows"], counts["failed"]
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


def counted(rows: Iterable[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows as they pass: `rows` of them, `failed` without a reward."""
    for row in rows:
        counts["rows"] += 1
        counts["failed"] += "reward_error" in row
        yield row


def score_shards(options: argparse.Namespace, columns: Mapping[str, str] | None) -> None:
    """Into a folder of parts, by the engine that was asked for."""
    from palate.cli.console import console
    from palate.cli.eval import loading_options
    from palate.errors import ConfigError
    from palate.models.checkpoints import find_contract, read_contract
    from palate.scoring.batch import ScoringJob, first_layout, input_files, open_output, plan_shards, score_here, score_on_ray, totals

    if options.on_long == "error":
        raise ConfigError("--on-long error would end the job at one long row; shards keep such rows with their reason (nan), or cut their prompts")
    paths = input_files(options.data)
    shards = plan_shards(paths, options.shard_rows)
    mapped = dict(columns) if columns else None
    job = ScoringJob(options.model, options.output, first_layout(shards, mapped), mapped, options.on_long, loading_options(options))
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
