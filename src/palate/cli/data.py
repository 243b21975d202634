"""`palate data check FILE`: what was recognised, counts, lengths, findings, and what of test sets stands in it. `palate data generative`: rows for judges."""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from palate.cli.arguments import Parser, whole

if TYPE_CHECKING:
    from palate.data.loading import LoadReport
    from palate.types import PreferenceGroup

GENERATIVE_EPILOG = """\
examples:
  palate data generative --data prefs.jsonl --form yes_no --output rows.jsonl
  palate data generative --data prefs.jsonl --form pair_label --orders both --ties label --output rows.jsonl
"""

EPILOG = """\
examples:
  palate data check train.jsonl
  palate data check train.jsonl --against test.jsonl bench.jsonl --json report.json
  palate data check train.jsonl --against bench.jsonl --clean train_clean.jsonl
  palate data check train.jsonl --against bench.jsonl --fail-on contamination,contradictions
"""


def main(arguments: Sequence[str]) -> int:
    from palate.data.contamination import COMMON_SHARE, THRESHOLD
    from palate.data.ngrams import NGRAM_WORDS

    parser = Parser(prog="palate data", description="Look over preference data, or make rows for judges of it.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="layout, counts, lengths, findings, contamination", epilog=EPILOG)
    check.add_argument("data", help="file, folder or hub id")
    check.add_argument("--split", default="train", help="split of a hub data set or folder")
    check.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    check.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write one JSON object; without a name, to the screen instead of tables")
    check.add_argument("--fail-on", default="", metavar="NAMES", help="exit with 3 if any of these was found, e.g. contamination,contradictions,duplicates")
    tests = check.add_argument_group("test sets that must not stand in the data")
    tests.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="SET",
        help="files, folders, hub ids, benchmarks (rewardbench) or benchmarks from a file (llmbar=llmbar.jsonl)",
    )
    tests.add_argument("--against-split", default="test", help="their split, of a hub data set or folder (default: test)")
    tests.add_argument("--against-columns", nargs="*", default=[], metavar="OURS=THEIRS", help="their column names")
    tests.add_argument("--n", type=int, default=NGRAM_WORDS, help="words of an n-gram")
    tests.add_argument("--threshold", type=float, default=THRESHOLD, help="share of a test text in one training text to call it found")
    tests.add_argument(
        "--common",
        type=float,
        default=COMMON_SHARE,
        help="n-grams of more than this share of the training prompts do not count; 0: all do",
    )
    tests.add_argument("--examples", type=whole(0), default=3, help="examples shown of each kind of text")
    tests.add_argument("--clean", metavar="OUT.jsonl", help="write the rows that no test set touches, as they are")
    tests.add_argument("--overwrite", action="store_true", help="replace the file of --clean")
    _add_generative(commands)
    options = parser.parse_args(arguments)
    if options.command == "generative":
        return _generative(options)

    from palate.cli.eval import parse_columns
    from palate.data.loading import load_groups
    from palate.data.validation import check_groups

    _usable(options)
    columns = parse_columns(options.columns)
    loaded = load_groups(options.data, split=options.split, columns=columns, on_bad_row="drop")
    sets = {name: _compared_rows(name, options.against_split, parse_columns(options.against_columns)) for name in dict.fromkeys(options.against)}
    groups = [group for test in sets.values() for group in test.groups]
    report = {"source": loaded.reports[0].as_dict(), **check_groups(loaded.groups, against=groups if sets else None).as_dict()}
    if sets:
        report |= _against(options, columns, sets)
    if options.json != "-":
        _show(report, options.examples)
    if options.json:
        _write_json(report, options.json)
    _fail(_names(options.fail_on), report)
    return 0


# --- rows for generative judges --------------------------------------------------------------------------------------------------------------


def _add_generative(commands: Any) -> None:
    from typing import get_args

    from palate.data.generative_rows import Form, Orders, Ties

    parser = commands.add_parser(
        "generative",
        help="rows that teach a language model to judge (TRL's SFTTrainer takes them as they stand)",
        epilog=GENERATIVE_EPILOG,
    )
    parser.add_argument("--data", required=True, help="preferences: file, folder or hub id")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    parser.add_argument("--form", required=True, choices=get_args(Form), help="yes or no, the letter of the better response, reasons or a critique before it")
    parser.add_argument("--orders", choices=get_args(Orders), default="balanced", help="of pairs: each side better in half of the rows, or both orders")
    parser.add_argument("--ties", choices=get_args(Ties), default="drop", help="left out and counted, or a label of their own")
    parser.add_argument("--references", action="store_true", help="show pairs with the row's `reference`")
    parser.add_argument("--off-topic", type=whole(0), default=0, metavar="K", help="K responses to other prompts as worse than the best one of each (RRM)")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), default="error", help="rows that cannot be used")
    parser.add_argument("--seed", type=int, default=0, help="of the sides of pairs")
    parser.add_argument("--output", required=True, help="JSONL or Parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")


def _generative(options: argparse.Namespace) -> int:
    from palate.cli.console import console
    from palate.cli.eval import parse_columns
    from palate.cli.output import rows_path, write_rows
    from palate.data.generative_rows import generative_rows
    from palate.data.loading import load_groups
    from palate.errors import DataError, tally

    output = rows_path(options.output, overwrite=options.overwrite)
    loaded = load_groups(options.data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False)
    made = generative_rows(
        loaded.groups,
        options.form,
        orders=options.orders,
        ties=options.ties,
        references=options.references,
        off_topic=options.off_topic,
        seed=options.seed,
    )
    counts = made.counts.as_dict()
    left_out = tally(counts["left_out"])
    if not made.rows:
        raise DataError(f"{options.data}: no row came of its {counts['groups']} groups; left out: {left_out}")
    write_rows(output, made.rows)
    if bad := loaded.reports[0].bad:
        console.print("rows that could not be used: " + tally(bad), markup=False)
    labels = tally(counts["labels"])
    console.print(f"{counts['groups']} groups, {counts['rows']} rows written to {output}: {labels}; left out: {left_out}", markup=False)
    return 0


# --- looking over ----------------------------------------------------------------------------------------------------------------------------


def _usable(options: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    from palate.data.validation import KINDS
    from palate.errors import ConfigError, StorageError

    known = [kind.replace(" ", "-") for kind in ("contamination", *KINDS)]
    if unknown := [name for name in _names(options.fail_on) if name not in known]:
        raise ConfigError(f"--fail-on {', '.join(unknown)}: no such finding; expected some of {', '.join(known)}")
    if not options.against and (options.clean or "contamination" in _names(options.fail_on)):
        raise ConfigError(f"{'--clean' if options.clean else '--fail-on contamination'} needs test sets: name them with --against")
    for flag, target in (("--clean", options.clean), ("--json", options.json)):
        if target and any(_same_file(target, source) for source in (options.data, *options.against)):
            raise ConfigError(f"{flag} {target}: is one of the data sets; choose another name")
    if options.clean:
        output = Path(options.clean)
        if output.suffix != ".jsonl":
            raise ConfigError(f"--clean {output}: expected a .jsonl file")
        if output.exists() and not options.overwrite:
            raise StorageError(f"{output}: exists already; choose another name or pass --overwrite")


def _same_file(a: str, b: str) -> bool:
    return Path(a).exists() and Path(b).exists() and Path(a).samefile(b)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# --- test sets -------------------------------------------------------------------------------------------------------------------------------


class _Compared(NamedTuple):
    """Rows as they are compared with other sets."""

    groups: list[PreferenceGroup]
    numbers: list[int]  # of each group's row among those read, from 0
    report: LoadReport


def _benchmark_items(name: str, file: str | None) -> _Compared:
    """The items of a benchmark, from the hub or from a file."""
    from palate.data.loading import LoadReport
    from palate.evaluation.benchmarks import BENCHMARKS, load_items

    groups = load_items(BENCHMARKS[name], file)
    report = LoadReport(name, layout=BENCHMARKS[name].title, rows=len(groups), groups=len(groups))
    return _Compared(groups, list(range(len(groups))), report)


def _compared_rows(source: str, split: str, columns: Mapping[str, str] | None) -> _Compared:
    """Every row whose texts can be read: an empty side, two equal ones or a margin out of range make a row useless for training, not for comparing."""
    from palate.data.formats import detect_layout, parse_row
    from palate.data.loading import LoadReport, located, read_rows, rename_columns, source_name
    from palate.errors import DataError, RowError, tally
    from palate.evaluation.benchmarks import BENCHMARKS

    name, _, file = source.partition("=")
    if name in BENCHMARKS:
        return _benchmark_items(name, file or None)
    report = LoadReport(source_name(source))
    groups, numbers, layout = [], [], None
    for number, (location, row) in enumerate(read_rows(source, split=split, report=report)):
        report.rows += 1
        if columns:
            row = rename_columns(row, columns, location)
        try:
            layout = layout or detect_layout(row)
            report.layout = layout.name
            group = parse_row(row, layout, margins=False, compared=False)
        except RowError as error:
            report.record(location, error)
            continue
        except DataError as error:
            raise DataError(f"{location}: {error}\n--against-columns maps the columns of test sets.") from error
        groups.append(located(group, report.source, location))
        numbers.append(number)
    report.groups = len(groups)
    if not groups:
        raise DataError(f"{report.source}: none of its {report.rows} rows can be compared: {tally(report.bad)}\n" + "\n".join(report.examples))
    return _Compared(groups, numbers, report)


def _against(options: argparse.Namespace, columns: Mapping[str, str] | None, sets: Mapping[str, _Compared]) -> dict[str, Any]:
    """The report's `contamination` by test set, rows that were `not_compared`, and what `clean` wrote."""
    from palate.data.contamination import decontaminate

    train = _compared_rows(options.data, options.split, columns)
    tests = {name: test.groups for name, test in sets.items()}
    result = decontaminate(train.groups, tests, n=options.n, threshold=options.threshold, common_share=options.common or None)
    read = {options.data: train, **sets}
    found: dict[str, Any] = {
        "contamination": {name: report.as_dict() for name, report in result.by_test.items()},
        "not_compared": {name: dict(rows.report.bad) for name, rows in read.items() if rows.report.bad},
    }
    if options.clean:
        touched = {g for report in result.by_test.values() for g in report.train_touched}
        kept = {number for g, number in enumerate(train.numbers) if g not in touched}
        written = _write_rows(Path(options.clean), _rows_as_they_are(options.data, options.split), kept)
        found["clean"] = {
            "file": options.clean,
            "rows": train.report.rows,
            "written": written,
            "touched": len(touched),
            "unread": train.report.rows - len(train.groups),
        }
    return found


def _rows_as_they_are(source: str, split: str) -> Iterator[str]:
    """Every row that `read_rows` gives, as a line of JSON; a line of a JSON Lines file is left as it stands."""
    from palate.data.loading import LoadReport, read_rows

    path = Path(source)
    if not (path.is_file() and path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))):
        for _, row in read_rows(source, split=split, report=LoadReport(source)):
            yield json.dumps(row, ensure_ascii=False, default=str)
        return
    zipped = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if zipped else open(path, encoding="utf-8-sig", newline="") as file:
        for line in file:
            if _is_row(line):
                yield line.strip()


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _write_rows(output: Path, rows: Iterator[str], kept: set[int]) -> int:
    """Write the rows with these numbers. The file appears whole or not at all."""
    from palate.errors import DataError, StorageError

    part = output.with_name(f".{output.name}.part")
    written = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # half a character pair, which JSON may hold and UTF-8 may not, is written as JSON's own escape
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            for number, row in enumerate(rows):
                if number in kept:
                    file.write(row + "\n")
                    written += 1
        if written != len(kept):
            raise DataError(f"{output}: not written, since the data changed while it was read: {written} of {len(kept)} rows were found again")
        part.replace(output)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error}; nothing half-written was left") from error
    finally:
        part.unlink(missing_ok=True)
    return written


# --- what is said ----------------------------------------------------------------------------------------------------------------------------


def _show(report: Mapping[str, Any], examples: int) -> None:
    from palate.cli.console import console
    from palate.errors import tally
    from palate.reports.data_tables import contamination_lines, contamination_table, data_table

    source = report["source"]
    console.print(data_table(report, source))
    for example in source["examples"]:
        console.print(f"cannot be used: {example}", markup=False)
    for finding in report["findings"]:
        console.print(f"{finding['count']} x {finding['kind']}: {finding['meaning']}\n    {'; '.join(finding['locations'])}", markup=False)
    if not report["findings"]:
        console.print("No findings.")
    for name, found in report.get("contamination", {}).items():
        console.print(contamination_table(name, found))
        for line in contamination_lines(found, examples):
            console.print(line, markup=False)
    for name, bad in report.get("not_compared", {}).items():
        console.print(f"not compared, {name}: " + tally(bad), markup=False)
    if clean := report.get("clean"):
        unread = f", and {clean['unread']} that cannot be read" if clean["unread"] else ""
        console.print(f"{clean['written']} of {clean['rows']} rows written to {clean['file']}; left out: {clean['touched']} touched{unread}", markup=False)


def _write_json(report: Mapping[str, Any], target: str) -> None:
    from palate.errors import StorageError

    text = json.dumps(report, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error}") from error


def _fail(names: Sequence[str], report: Mapping[str, Any]) -> None:
    """Raise DataError if any of these was found."""
    from palate.errors import DataError

    found = defaultdict(list)
    for finding in report["findings"]:
        found[finding["kind"].replace(" ", "-")].append(f"{finding['count']} in the data")
    for name, test in report.get("contamination", {}).items():
        if test["test_touched"]:
            found["contamination"].append(f"{test['test_touched']} of {test['test_groups']} groups of {name}")
        if test["contradictions"]["test"]:
            found["contradictions"].append(f"{test['contradictions']['test']} with {name}")
    if failed := [f"{name} ({'; '.join(found[name])})" for name in names if name in found]:
        raise DataError(f"--fail-on: found {', '.join(failed)}")
