"""What `palate data check` found, as tables and lines for the terminal: counts and lengths, and what stands in test sets too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Table

from palate.errors import tally
from palate.reports.wording import percent

T = TypeVar("T")


def data_table(report: Mapping[str, Any], source: Mapping[str, Any]) -> Table:
    """What was recognised, counts, lengths, and which responses win."""
    table = Table(title=escape(f"{source['source']}: {source['layout']}"), title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("rows", str(source["rows"]))
    table.add_row("rows that cannot be used", tally(source["bad_rows"], "none"))
    table.add_row("groups / different prompts", f"{report['groups']} / {report['prompts']}")
    table.add_row("responses per prompt", ", ".join(f"{k}: {n}" for k, n in report["responses_per_prompt"].items()))
    table.add_row("decided comparisons", str(report["comparisons"]))
    table.add_row("ties", str(report["ties"]))
    table.add_row("groups without a comparison", str(report["undecided"]))
    table.add_row("with a margin / as chat", f"{report['margins']} / {report['conversational']}")
    table.add_row("longer response wins", percent(report["longer_wins"]))
    table.add_row("first response wins", percent(report["first_wins"]))
    refusals = report["refusals"]
    table.add_row("begin like a refusal (chosen, rejected)", f"{percent(refusals['chosen'])}, {percent(refusals['rejected'])}")
    table.add_row("the only refusal of two wins", percent(report["refusal_wins"]))
    for kind, lengths in report["lengths"].items():
        table.add_row(f"characters of {kind} (median, 95 %, max)", f"{lengths['p50']:.0f}, {lengths['p95']:.0f}, {lengths['max']:.0f}")
    return table


def contamination_table(name: str, report: Mapping[str, Any]) -> Table:
    """One test set: its texts by part, and how many of them stand in the training set."""
    rule = f"{report['threshold']:.0%} of a text's words in {report['n']}-grams of one training text"
    title = (
        f"{name}: {report['test_touched']} of {report['test_groups']} test groups stand in {report['train_touched']} of {report['train_groups']} rows ({rule})"
    )
    table = Table(title=escape(title), title_justify="left")
    for heading in ("test text", "rows", "found", "different", "found in training", "too short", "too common"):
        table.add_column(heading, justify="left" if heading in ("test text", "found in training") else "right")
    for part, row in report["parts"].items():
        where = ", ".join(f"{found} {kind}" for kind, found in row["found_in"].items())
        table.add_row(part, str(row["texts"]), str(row["found"]), str(row["found_different"]), where, str(row["short"]), str(row["common"]))
    return table


EQUAL = {
    "equal_prompts": "equal prompts",
    "equal_responses": "equal prompts and responses",
    "equal_pairs": "equal comparisons",
    "contradictions": "comparisons that the training data decides the other way round",
}


def contamination_lines(report: Mapping[str, Any], examples: int) -> list[str]:
    """What is equal, what was not counted, and examples with the text in common."""
    lines = [
        f"{report[key]['test']} {what} ({report[key]['train']} rows), e.g. {report[key]['examples'][0]}" for key, what in EQUAL.items() if report[key]["test"]
    ]
    if report["common_ngrams"]:
        lines.append(f"not counted: {report['common_ngrams']} of {report['ngrams']} n-grams, which stand under many training prompts")
    if report["unlike"]:
        lines.append(f"not comparable: {report['unlike']} test groups, where one set is text and the other token ids")
    for part in report["parts"]:
        for match in spread([match for match in report["matches"] if match["part"] == part], examples):
            test, train = _rows(match["test"], match["test_rows"]), _rows(match["train"], match["train_rows"])
            lines.append(f"    {match['share']:.0%} of {part}, {test}, in {match['train_part']}, {train}: {match['shared']}")
    return lines


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many items from all of the list, the first and the last among them: of matches by falling share, the last ones show false alarms."""
    if count < 2 or len(items) <= count:
        return list(items[: max(count, 0)])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _rows(location: str, rows: int) -> str:
    return f"{location} (and {rows - 1} more)" if rows > 1 else location
