"""`palate judge`: `audit` measures a judge on pairs with known labels, a gate for a build; `replay` reads recorded judgments again without a call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one, number, share, whole
from palate.cli.judging import add_judge_flags, open_judge, show_spent
from palate.cli.output import check_writable, write_json, write_rows

if TYPE_CHECKING:
    from palate.evaluation.benchmarks import Benchmark
    from palate.judging.recorded import Recorded
    from palate.judging.replay import Replayed
    from palate.types import PreferenceGroup

EXAMPLES_SHOWN = 5
MOST_CANARIES = 50  # pairs, as `palate build` takes at most


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate judge", description="Look at a judge before spending on it.")
    commands = parser.add_subparsers(dest="command", required=True)
    audit = commands.add_parser("audit", help="measure a judge on preference data with known labels")
    audit.add_argument("--data", help="preference data in any known layout; `sample`: the gold set of the package; with --benchmark: its items")
    audit.add_argument("--benchmark", help="score the judge as this benchmark does (palate eval --list); those without two orders need --style rating")
    audit.add_argument("--partial", action="store_true", help="accept a benchmark without all of its subsets")
    audit.add_argument("--split", default="test", help="split of a hub data set or folder")
    audit.add_argument("--limit", type=at_least_one, help="only the first so many groups (of a benchmark: implies --partial)")
    audit.add_argument("--output", help="audit.json to write; what the judge said goes beside it (.judgments.jsonl), for `palate judge replay`")
    audit.add_argument("--min-kappa", type=number(least=-1, most=1), help="exit code 1 where kappa lies below")
    audit.add_argument("--writer", help="a model named in the data's chosen_model and rejected_model, to look for self-preference")
    audit.add_argument("--confidence", type=share, default=0.95, help="of intervals")
    audit.add_argument(
        "--canaries",
        type=whole(0),
        nargs="?",
        const=MOST_CANARIES,
        default=0,
        metavar="N",
        help="ask about canaries of N pairs too, whose verdict is known (50)",
    )
    add_judge_flags(audit)
    again = commands.add_parser("replay", help="read recorded judgments of both orders again, compare them with the decisions on record, combine them")
    again.add_argument("records", help="rows with both orders of a pair, or with one order each (docs/judging.md)")
    again.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names: pair_id, order, swapped, text, decision, label")
    again.add_argument("--patterns", help="JSON of regular expressions by class ({'1': ..., '2': ...}), or LLMBar's configuration")
    again.add_argument("--form", choices=("five_step", "arena", "three_way", "binary"), help="labels in the replies, in place of --patterns")
    again.add_argument("--policy", choices=("drop", "tie", "keep_mean"), default="drop", help="where the two orders contradict each other")
    again.add_argument(
        "--decisions",
        choices=("presented", "item"),
        help="what A means in the second order: the response shown first, or the pair's first one (default: by item where orders are named 12 and 21)",
    )
    again.add_argument("--by", nargs="+", help="columns of the table's groups (default: judge, strategy, subset); they tell runs with equal ids apart")
    again.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    return run_audit(options) if options.command == "audit" else run_replay(options, again)


def run_replay(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Exit code 1 where a reply read anew gives another verdict than the one on record."""
    from palate.cli.console import console
    from palate.cli.eval import parse_columns
    from palate.data.loading import read_rows, rename_columns
    from palate.judging.recorded import read_judged
    from palate.judging.replay import FORMS, read_patterns, replay
    from palate.reports.judge_tables import replay_table

    if options.patterns and options.form:
        parser.error("give --patterns or --form, not both")
    columns = parse_columns(options.columns) or {}
    rows = ((place, rename_columns(row, columns, place)) for place, row in read_rows(options.records))
    recorded = read_judged(rows, decisions=options.decisions, by=options.by or ())
    form = FORMS[options.form]() if options.form else None
    patterns = read_patterns(Path(options.patterns)) if options.patterns else None
    read_by = patterns.parser if patterns else (lambda _: form) if form else None
    found = replay(recorded.pairs, read_by, policy=options.policy, by=options.by)
    console.print(replay_table(found.table, title=options.records))
    show_replayed(recorded, found, options)
    if options.output:
        write_json(Path(options.output), found._asdict() | {"one_order": recorded.one_order, "columns": recorded.columns})
    return 1 if found.different else 0


def show_replayed(recorded: Recorded, found: Replayed, options: argparse.Namespace) -> None:
    """What the table does not say: what was left out, what has no label, and which verdicts differ."""
    from palate.cli.console import console

    lines = []
    if recorded.columns:
        lines.append("Read: " + ", ".join(ours if ours == theirs else f"{ours} from `{theirs}`" for ours, theirs in recorded.columns.items()))
    if recorded.one_order:
        lines.append(f"Pairs judged in one order only, left out: {recorded.one_order}")
    if found.unlabelled:
        named = "" if "label" in recorded.columns else " (--columns label=COLUMN names its column)"
        lines.append(f"Pairs without a label that names the better response{named}, in no accuracy: {found.unlabelled}")
    if options.form or options.patterns:
        lines.append(f"{found.parsed} replies read; {found.different} give another verdict than the one on record")
        lines += [f"  {example}" for example in found.examples[:EXAMPLES_SHOWN]]
        if found.different > EXAMPLES_SHOWN:
            lines.append(f"  and {found.different - EXAMPLES_SHOWN} more (all of them in the --output)")
        if found.unread:
            lines.append(f"Judgments without a reply, whose decisions on record were taken: {found.unread}")
    if found.doubt:
        lines.append(f"In doubt, {found.doubt}: do the second order's decisions stand in other coordinates (--decisions presented, or item)?")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def run_audit(options: argparse.Namespace) -> int:
    from palate.cli.console import console, quiet_libraries
    from palate.cli.panels import panel_figures
    from palate.evaluation.judges import audit, judge_items, judgment_records
    from palate.reports.judge_tables import audit_table
    from palate.reports.tables import benchmark_table

    quiet_libraries()
    if options.output:
        check_writable(Path(options.output))
    benchmark = benchmark_of(options)
    groups = gold_groups(options, benchmark)
    opened = open_judge(options)
    watched = canary_figures(options, groups, opened.judge)
    judged = judge_items(opened.judge, groups)
    records = judgment_records(judged, opened.provenance["judge"])
    figures = audit(judged, confidence=options.confidence, writer=options.writer)
    figures |= {"canaries": watched, "panel": panel_figures(opened, judged.right)}
    title = f"{opened.provenance['judge']} on {benchmark.title if benchmark else options.data}"
    if benchmark:
        figures["benchmark"] = scored_by(benchmark, options, opened.judge, groups, records)
        console.print(benchmark_table(figures["benchmark"], title=title, confidence=options.confidence))
    console.print(audit_table(figures, title="All comparisons" if benchmark else title, confidence=options.confidence))
    spent = show_spent(opened.callers)
    figures |= {"provenance": opened.provenance, "calls": spent, "cost_per_kept_pair": _per_kept(figures, spent)}
    if options.output:
        write_rows(Path(options.output).with_suffix(".judgments.jsonl"), records)
        write_json(Path(options.output), figures)
    kappa = figures["kappa"]["value"]
    if options.min_kappa is not None and not kappa >= options.min_kappa:
        console.print(f"[red]kappa is {kappa:.3f}, under {options.min_kappa:g}[/red]")
        return 1
    return 0


def benchmark_of(options: argparse.Namespace) -> Benchmark | None:
    """The benchmark that is asked for, if any. Raises ConfigError where there is nothing to measure on, or a judge of pairs cannot be scored by it."""
    from palate.errors import ConfigError
    from palate.evaluation.benchmarks import BENCHMARKS, find_benchmark

    if options.benchmark is None:
        if options.data is None:
            raise ConfigError("nothing to measure the judge on; give --data (`sample`: the gold set of the package), or --benchmark")
        if options.partial:
            raise ConfigError("--partial does nothing without --benchmark")
        return None
    benchmark = find_benchmark(options.benchmark)
    if not benchmark.pairs and options.style != "rating":
        pairs = ", ".join(known.name for known in BENCHMARKS.values() if known.pairs)
        raise ConfigError(f"{benchmark.title} scores responses one by one; rate them (--style rating). Judges of pairs have {pairs}")
    return benchmark


def gold_groups(options: argparse.Namespace, benchmark: Benchmark | None) -> list[PreferenceGroup]:
    import numpy as np

    from palate.data.loading import load_groups
    from palate.evaluation.benchmarks import load_items, make_records, report
    from palate.evaluation.items import with_rewards
    from palate.sample import gold_path

    if benchmark is not None:
        groups = load_items(benchmark, options.data, limit=options.limit)
        drawn = with_rewards(groups, np.random.default_rng(0).random(sum(len(group.responses) for group in groups)))
        report(benchmark, make_records(benchmark, drawn), partial=is_partial(options))  # what it refuses is to be said before anything is asked
        return groups
    return load_groups(gold_path() if options.data == "sample" else options.data, split=options.split, margins=False).groups[: options.limit]


def scored_by(benchmark: Benchmark, options: argparse.Namespace, judge: Any, groups: Sequence[PreferenceGroup], records: list[Any]) -> dict[str, Any]:
    """The benchmark's own figures: of verdicts in both orders, or of ratings in place of rewards, which are not asked for again."""
    import numpy as np

    from palate.evaluation.benchmarks import make_records, report
    from palate.evaluation.items import with_rewards

    if not benchmark.pairs:
        rated = judge.rate([exchange for group in groups for exchange in group.exchanges()])
        records = make_records(benchmark, with_rewards(groups, np.array([one.value for one in rated], dtype=float)))
    return report(benchmark, records, partial=is_partial(options), confidence=options.confidence)


def is_partial(options: argparse.Namespace) -> bool:
    return options.partial or options.limit is not None


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


def _per_kept(figures: dict[str, Any], spent: dict[str, Any]) -> float | None:
    kept = round(figures["kept"]["value"] * figures["kept"]["n"])
    return spent["cost"] / kept if spent.get("cost") is not None and kept else None
