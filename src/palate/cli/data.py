"""`palate data check FILE`: what was recognised, counts, lengths, and findings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="palate data", description="Look over preference data.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="layout, counts, lengths, findings")
    check.add_argument("data", help="file, folder or hub id")
    check.add_argument("--against", help="a second file (say, the test set) whose overlap is reported")
    check.add_argument("--split", default="train", help="split of a hub data set or folder")
    check.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(arguments)

    from palate.cli.console import console
    from palate.cli.eval import parse_columns
    from palate.data.loading import load_groups
    from palate.data.validation import check_groups
    from palate.reports.tables import data_table

    columns = parse_columns(options.columns)
    loaded = load_groups(options.data, split=options.split, columns=columns, on_bad_row="drop")
    against = load_groups(options.against, split=options.split, columns=columns, on_bad_row="drop").groups if options.against else None
    report, source = check_groups(loaded.groups, against=against).as_dict(), loaded.reports[0].as_dict()
    if options.json:
        print(json.dumps({"source": source, **report}, ensure_ascii=False))
        return 0
    console.print(data_table(report, source))
    for example in source["examples"]:
        console.print(f"cannot be used: {example}", markup=False)
    for finding in report["findings"]:
        console.print(f"{finding['count']} x {finding['kind']}: {finding['meaning']}\n    {'; '.join(finding['locations'])}", markup=False)
    if not report["findings"]:
        console.print("No findings.")
    return 0
