"""`palate judge`: `audit` measures a judge on pairs with known labels, a gate for a build; `replay` reads recorded judgments again without a call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.cli.judging import add_judge_flags, open_judge, show_spent

if TYPE_CHECKING:
    from palate.judging.verdicts import Winner
    from palate.types import PreferenceGroup

MOST_CANARIES = 50  # pairs, as `palate build` takes at most


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="palate judge", description="Look at a judge before spending on it.")
    commands = parser.add_subparsers(dest="command", required=True)
    audit = commands.add_parser("audit", help="measure a judge on preference data with known labels")
    audit.add_argument("--data", required=True, help="preference data in any known layout; `sample`: the gold set of the package")
    audit.add_argument("--split", default="test")
    audit.add_argument("--limit", type=int, help="only the first so many groups")
    audit.add_argument("--output", help="audit.json to write")
    audit.add_argument("--min-kappa", type=float, help="exit code 1 where kappa lies below")
    audit.add_argument("--writer", help="a model named in the data's chosen_model and rejected_model, to look for self-preference")
    audit.add_argument("--confidence", type=float, default=0.95)
    audit.add_argument(
        "--canaries", type=int, nargs="?", const=MOST_CANARIES, default=0, metavar="N", help="ask about canaries of N pairs too, whose verdict is known (50)"
    )
    add_judge_flags(audit)
    again = commands.add_parser("replay", help="read recorded judgments of both orders again, compare them with the decisions on record, combine them")
    again.add_argument("records", help="rows with both orders of a pair (docs/judging.md)")
    again.add_argument("--patterns", help="JSON of regular expressions by class ({'1': ..., '2': ...}), or LLMBar's configuration")
    again.add_argument("--form", choices=("five_step", "arena", "three_way", "binary"), help="labels in the replies, in place of --patterns")
    again.add_argument("--policy", choices=("drop", "tie", "keep_mean"), default="drop", help="where the two orders contradict each other")
    again.add_argument("--decisions", choices=("presented", "item"), default="presented", help="how decisions of rows with one order each stand")
    again.add_argument("--by", nargs="+", help="columns of the table's groups (default: judge, strategy, subset)")
    again.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    return run_audit(options) if options.command == "audit" else run_replay(options, again)


def run_replay(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Exit code 1 where a reply read anew gives another verdict than the one on record."""
    from palate.cli.console import console
    from palate.data.loading import read_rows
    from palate.judging.recorded import FORMS, read_judged, read_patterns, replay
    from palate.reports.judge_tables import replay_table

    if options.patterns and options.form:
        parser.error("give --patterns or --form, not both")
    judged = read_judged(read_rows(options.records), decisions=options.decisions)
    form = FORMS[options.form]() if options.form else None
    patterns = read_patterns(Path(options.patterns)) if options.patterns else None
    read_by = patterns.parser if patterns else (lambda _: form) if form else None
    found = replay(judged, read_by, policy=options.policy, by=options.by)
    console.print(replay_table(found.table, title=options.records))
    if read_by is not None:
        console.print(f"{found.parsed} replies read; {found.different} give another verdict than the one on record")
        for example in found.examples:
            console.print(f"  {example}", markup=False)
    if options.output:
        write_json(Path(options.output), found._asdict())
    return 1 if found.different else 0


def run_audit(options: argparse.Namespace) -> int:
    from palate.cli.console import console, quiet_libraries
    from palate.cli.panels import panel_figures
    from palate.evaluation.judges import decided, evaluate_judge
    from palate.reports.judge_tables import audit_table

    quiet_libraries()
    groups = gold_groups(options)
    opened = open_judge(options)
    watched = canary_figures(options, groups, opened.judge)
    figures = evaluate_judge(opened.judge, groups, confidence=options.confidence, writer=options.writer)
    _, chosen_first = decided(groups)
    right: list[Winner] = ["a" if first else "b" for first in [*chosen_first, *~chosen_first]]  # of the matchups of both orders
    figures |= {"canaries": watched, "panel": panel_figures(opened, right)}
    console.print(audit_table(figures, title=f"{opened.provenance['judge']} on {options.data}", confidence=options.confidence))
    spent = show_spent(opened.callers)
    figures |= {"provenance": opened.provenance, "calls": spent, "cost_per_kept_pair": _per_kept(figures, spent)}
    if options.output:
        write_json(Path(options.output), figures)
    kappa = figures["kappa"]["value"]
    if options.min_kappa is not None and not kappa >= options.min_kappa:
        console.print(f"[red]kappa is {kappa:.3f}, under {options.min_kappa:g}[/red]")
        return 1
    return 0


def gold_groups(options: argparse.Namespace) -> list[PreferenceGroup]:
    from palate.data.loading import load_groups
    from palate.sample import gold_path

    return load_groups(gold_path() if options.data == "sample" else options.data, split=options.split, margins=False).groups[: options.limit]


def canary_figures(options: argparse.Namespace, groups: Sequence[PreferenceGroup], judge: Any) -> dict[str, Any] | None:
    """The canaries of some pairs, asked about by themselves."""
    from palate.cli.build import knows_ties
    from palate.judging.schedule import Candidate
    from palate.judging.watched import Watched, draw_canaries

    responses = [[Candidate(response) for response in group.responses] for group in groups]
    asked = draw_canaries([group.prompt for group in groups], responses, options.canaries)
    watched = Watched(judge, asked, has_tie=knows_ties(options))
    watched.compare([])
    return watched.figures()


def write_json(path: Path, found: Any) -> None:
    from palate.errors import StorageError
    from palate.evaluation.evaluator import to_json

    try:
        path.write_text(to_json(found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


def _per_kept(figures: dict[str, Any], spent: dict[str, Any]) -> float | None:
    kept = round(figures["kept"]["value"] * figures["kept"]["n"])
    return spent["cost"] / kept if spent.get("cost") is not None and kept else None
