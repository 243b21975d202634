"""`palate eval`: a reward model on preference data or benchmarks -> table, results.json, items, page."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from palate.cli.arguments import Parser, at_least_one
from palate.training.settings import EvalSettings
from palate.types import PACKINGS, PreferenceGroup


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import quiet_libraries

    quiet_libraries()
    if options.list:
        return show_benchmarks()
    thresholds = [parse_threshold(text) for text in options.fail_under]
    results = evaluate_records(options) if options.scores else evaluate_model(options)
    return check_thresholds(results, thresholds)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate eval", description="Measure a reward model on preference data or on benchmarks.")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", help="checkpoint, adapter or hub id; dpo:POLICY,REFERENCE; ensemble:A,B; http://HOST:PORT")
    what.add_argument("--format", help="input format of a model that has one of its own (pair, hh-pair, open-assistant, hash-turns; known ids: by themselves)")
    what.add_argument("--protocol", help="what an endpoint speaks: palate, vllm, sglang, openrlhf, tei (default: it is asked)")
    what.add_argument("--api-key-env", help="environment variable with the endpoint's key")
    what.add_argument("--scores", help="recorded scores or verdicts of a benchmark's items, in place of a model")
    what.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="which rows of --scores, where they are of several models; may be repeated"
    )
    what.add_argument("--order", choices=("presented", "item"), help="how the second scores of a recorded item stand (see docs/evaluation.md)")
    on = parser.add_argument_group("on what")
    on.add_argument("--data", help="file, folder or hub id in any known layout; with --benchmark: its items")
    on.add_argument("--benchmark", help="one or several of --list, with commas between")
    on.add_argument("--list", action="store_true", help="print the benchmarks and what their rows look like")
    on.add_argument("--partial", action="store_true", help="accept a benchmark without all of its subsets")
    on.add_argument("--split", default="test", help="split of a hub data set or folder")
    on.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    on.add_argument("--on-bad-row", choices=("error", "drop"), default="error", help="a row that cannot be read: end here, or leave it out, counted")
    on.add_argument("--limit", type=at_least_one, help="only the first so many groups (of a benchmark: implies --partial)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--output", help="results.json to write (items and pictures go beside it); with several benchmarks a folder")
    out.add_argument("--page", help="HTML page to write (needs --output)")
    out.add_argument("--markdown", help="Markdown file to write (needs --output)")
    out.add_argument("--probe", default="", help="probes to run as well, with commas between (docs/probes.md), or all")
    out.add_argument("--heads", action="store_true", help="each output of a checkpoint with several as well, as if it were the reward")
    out.add_argument("--fail-under", action="append", default=[], metavar="SCORE=VALUE", help="exit code 1 below it, e.g. accuracy=0.8; may be repeated")
    out.add_argument("--record", action="store_true", help="write reward mean, spread and temperature into the checkpoint's contract")
    how = parser.add_argument_group("how")
    how.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="responses beyond max_length (nan: counted as not scored)")
    how.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    how.add_argument("--bins", type=at_least_one, default=10, help="bins of the reliability curve")
    how.add_argument("--confidence", type=float, default=0.95, help="of intervals")
    how.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    how.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    how.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    how.add_argument("--cache", help="file of rewards computed before (default: $PALATE_CACHE, else among the user's caches)")
    how.add_argument("--no-cache", action="store_true", help="compute every reward anew, keep none")
    options = parser.parse_args(arguments)
    if options.list:
        return options
    if bool(options.model) == bool(options.scores):
        parser.error("give --model, or --scores with recorded ones")
    if options.scores and (not options.benchmark or "," in options.benchmark):
        parser.error("--scores needs the one --benchmark whose items were scored")
    if not options.benchmark and not options.data:
        parser.error("give --data, or --benchmark (--list shows them)")
    for flag in ("page", "markdown"):
        if getattr(options, flag) and not options.output:
            parser.error(f"--{flag} needs --output")
    if not 0 < options.confidence < 1:
        parser.error(f"--confidence is {options.confidence}, expected a number between 0 and 1, e.g. 0.95")
    several = bool(options.benchmark and "," in options.benchmark)
    if several and options.data:
        parser.error("--data holds the items of one benchmark; with several of them each comes from the hub")
    if several and options.markdown:
        parser.error("--markdown is one file; with several benchmarks write it by palate report RESULTS --markdown FILE")
    unread = ["data", "probe", "record", "heads", "model"] if options.scores else ["columns"] if options.benchmark else ["where", "order", "partial"]
    for name in unread:
        if getattr(options, name):
            parser.error(f"--{name} does nothing {'with --scores' if options.scores else 'with --benchmark' if options.benchmark else 'without --benchmark'}")
    return options


def show_benchmarks() -> int:
    from palate.cli.console import console
    from palate.evaluation.benchmarks import BENCHMARKS

    for name, entry in BENCHMARKS.items():
        console.print(f"[bold]{name}[/bold]  {entry.title}: {', '.join(entry.hub) or 'from a file (--data)'}")
        console.print(f"    columns: {entry.columns}\n    source: {entry.source}", markup=False, highlight=False)
    return 0


# --- recorded scores -----------------------------------------------------------------------------------------------------------------------------


def evaluate_records(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of a benchmark from scores that another tool recorded."""
    from palate.cli.console import console
    from palate.data.loading import rename_columns
    from palate.errors import StorageError
    from palate.evaluation.benchmarks import find_benchmark, read_records, report
    from palate.evaluation.evaluator import to_json
    from palate.reports.tables import benchmark_table

    benchmark = find_benchmark(options.benchmark)
    where, columns = parse_columns(options.where) or {}, parse_columns(options.columns)
    records = read_records(options.scores, where=where)[: options.limit]
    if columns:
        records = [rename_columns(record, columns, f"{options.scores}, record {i + 1}") for i, record in enumerate(records)]
    found = report(
        benchmark,
        records,
        partial=options.partial or bool(options.limit),
        confidence=options.confidence,
        order=options.order,
    )
    console.print(benchmark_table(found, title=f"{options.scores}: {benchmark.title}", confidence=options.confidence))
    if options.output:
        try:
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            Path(options.output).write_text(to_json({"benchmark": found, "confidence": options.confidence, "scores": str(options.scores)}), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{options.output}: results cannot be written: {error}") from error
        title = f"{options.scores}: {benchmark.title}"
        page, markdown = (Path(name) if name else None for name in (options.page, options.markdown))
        write_reports(Path(options.output), page, markdown, title, ())
    return [{"benchmark": found}]


# --- a model -------------------------------------------------------------------------------------------------------------------------------------


def evaluate_model(options: argparse.Namespace) -> list[dict[str, Any]]:
    from palate.errors import ConfigError

    settings = EvalSettings(bins=options.bins, confidence=options.confidence, limit=options.limit, packing=options.packing, token_budget=options.token_budget)
    opened = open_cached(options)
    if options.record and opened.local is None:
        raise ConfigError(f"--record writes into a checkpoint's contract; {options.model} has none")
    if options.heads and (opened.local is None or len(opened.local.readout.outputs) < 2 or opened.local.readout.aggregate is not None):
        raise ConfigError(f"--heads is for a checkpoint with several outputs; {options.model} has one reward")
    names = options.benchmark.split(",") if options.benchmark else [None]
    results = []
    for name in names:
        groups, benchmark = items_of(options, name)
        output = Path(options.output) if options.output else None
        if output and len(names) > 1:
            output = output / f"{name}.json"
        several = len(names) > 1
        page = (output.with_suffix(".html") if several and output else Path(options.page)) if options.page else None
        results.append(
            evaluate_opened(
                opened,
                groups,
                title=f"{options.model} on {benchmark.title if benchmark else options.data}",
                settings=settings,
                output=output,
                page=page,
                markdown=Path(options.markdown) if options.markdown and not several else None,
                record=Path(options.model) if options.record else None,
                on_long=options.on_long,
                benchmark=benchmark,
                partial=options.partial or options.limit is not None,
                probes=options.probe.split(",") if options.probe else [],
                heads=options.heads,
                name=None if benchmark else Path(options.data).name,
            )
        )
    if len(names) > 1 and options.page:
        from palate.reports.page import write_index_page

        write_index_page([Path(options.output) / f"{name}.json" for name in names], Path(options.page), title=str(options.model))
    return results


def key_in(variable: str | None) -> str | None:
    """The key that a named environment variable holds. Raises ConfigError where it holds none."""
    from palate.errors import ConfigError

    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"--api-key-env {variable}: that variable is not set")
    return os.environ[variable] if variable else None


def open_cached(options: argparse.Namespace) -> Any:
    """The scorer that --model names, behind the cache where its rewards are a property of the text."""
    from palate.scoring.cache import CachedScorer, default_cache
    from palate.scoring.sources import open_scorer

    key = key_in(options.api_key_env)
    opened = open_scorer(options.model, input_format=options.format, protocol=options.protocol, api_key=key, **loading_options(options))
    if options.no_cache or opened.identity is None:
        return opened
    return opened._replace(scorer=CachedScorer(opened.scorer, options.cache or default_cache(), opened.identity))


def items_of(options: argparse.Namespace, name: str | None) -> tuple[list[PreferenceGroup], Any]:
    """(groups, the benchmark or None)."""
    from palate.data.loading import load_groups
    from palate.evaluation.benchmarks import find_benchmark, load_items

    if name is not None:
        benchmark = find_benchmark(name)
        return load_items(benchmark, options.data, limit=options.limit), benchmark
    loaded = load_groups(options.data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False)
    return loaded.groups, None


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `open_scorer` is told of loading: the options that were given, of those that a command has."""
    given = vars(options)
    return {name: given[name] for name in ("packing", "token_budget", "max_length", "trust_remote_code") if given.get(name)}


def parse_columns(pairs: Sequence[str]) -> dict[str, str] | None:
    from palate.errors import ConfigError

    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"{pair!r} is not of the form NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs) or None


def evaluate_checkpoint(
    model: Path | str,
    groups: Sequence[PreferenceGroup],
    *,
    output: Path | None,
    title: str,
    settings: EvalSettings,
    record: bool = False,
    page: Path | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    scorer: Any = None,
) -> dict[str, Any]:
    """Load (unless given), evaluate, print, write. Returns the result as a dictionary."""
    from palate.scoring.local import describe_model, load_scorer
    from palate.scoring.sources import Opened

    scorer = scorer or load_scorer(model, packing=settings.packing, token_budget=settings.token_budget)
    opened = Opened(scorer, describe_model(scorer), None, scorer)
    return evaluate_opened(
        opened, groups, title=title, settings=settings, output=output, page=page, record=Path(model) if record else None, log_history=log_history, name=title
    )


def evaluate_opened(
    opened: Any,
    groups: Sequence[PreferenceGroup],
    *,
    title: str,
    settings: EvalSettings,
    output: Path | None,
    page: Path | None = None,
    markdown: Path | None = None,
    record: Path | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    on_long: str = "nan",
    benchmark: Any = None,
    partial: bool = False,
    probes: Sequence[str] = (),
    heads: bool = False,
    name: str | None = None,
) -> dict[str, Any]:
    """Score, compare, print, write: one result."""
    from palate.cli.console import console
    from palate.evaluation.evaluator import evaluate
    from palate.models.checkpoints import package_versions
    from palate.reports.tables import benchmark_table, heads_table, probe_table, result_table, subset_table

    before = {count: getattr(opened.scorer, count, 0) for count in ("cached", "computed")}
    evaluation = evaluate(
        opened.scorer,
        groups[: settings.limit],
        bins=settings.bins,
        confidence=settings.confidence,
        model=opened.description,
        versions=package_versions(),
        benchmark=benchmark,
        partial=partial,
        probes=probes,
        name=name,
        progress=True,
        on_long=on_long,
    )
    for count in ("cached", "computed"):
        if isinstance(number := getattr(opened.scorer, count, None), int):
            evaluation.result.cost[count] = number - before[count]
    if heads:
        each = of_each_head(opened.local, groups[: settings.limit], settings.confidence, on_long=on_long)
        evaluation = replace(evaluation, result=replace(evaluation.result, heads=each))
    result = asdict(evaluation.result)
    if found := result["benchmark"]:
        console.print(benchmark_table(found, title=title, confidence=settings.confidence))
    console.print(result_table(result, title="All comparisons" if found else title))
    if table := subset_table(result):
        console.print(table)
    if result["heads"]:
        console.print(heads_table(result["heads"]))
    for probe in (result["probes"] or {}).values():
        console.print(probe_table(probe))
    if output:
        items = evaluation.save(output)
        console.print(f"Results: {output}  items: {items}")
        write_reports(output, page, markdown, title, log_history)
    if record and opened.local.contract:
        record_statistics(opened.local.contract, record, result)
        write_card(record)
    return result


def of_each_head(scorer: Any, groups: Sequence[PreferenceGroup], confidence: float, *, on_long: str) -> dict[str, Any]:
    """The accuracy of every output by itself."""
    from palate.evaluation.heads import evaluate_heads

    used = [group for group in groups if group.comparisons]
    outputs = scorer.outputs([exchange for group in used for exchange in group.exchanges()], progress=True, on_long=on_long)
    return evaluate_heads(used, outputs, scorer.readout.outputs, confidence=confidence)


def write_reports(output: Path, page: Path | None, markdown: Path | None, title: str, log_history: Sequence[Mapping[str, Any]]) -> None:
    from palate.cli.console import console

    if page:
        from palate.reports.page import write_page

        write_page(output, page, title=title, log_history=log_history)
        console.print(f"Page: {page}")
    if markdown:
        from palate.reports.markdown import result_markdown

        markdown.write_text(result_markdown(output, title=title), encoding="utf-8")
        console.print(f"Markdown: {markdown}")


def write_card(directory: Path) -> None:
    """The checkpoint's model card, with the results that lie beside it."""
    from palate.reports.model_card import write_model_card

    write_model_card(directory)


def record_statistics(contract: Any, directory: Path, result: Mapping[str, Any]) -> None:
    from palate.models.checkpoints import RewardStatistics

    statistics = RewardStatistics(result["rewards"]["mean"], result["rewards"]["std"], result["calibration"]["temperature"], result["n"])
    replace(contract, rewards=statistics).save(directory)


# --- thresholds ------------------------------------------------------------------------------------------------------------------------------------


def parse_threshold(text: str) -> tuple[str, float]:
    from palate.errors import ConfigError

    name, _, value = text.partition("=")
    try:
        least = float(value)
    except ValueError:
        least = math.nan
    if math.isfinite(least):
        return name.strip(), least
    raise ConfigError(f"--fail-under {text}: expected SCORE=VALUE, e.g. accuracy=0.8")


def check_thresholds(results: Sequence[Mapping[str, Any]], thresholds: Sequence[tuple[str, float]]) -> int:
    """1 where any score lies under its threshold, else 0. Raises ConfigError for a score that no result has."""
    from palate.cli.console import console
    from palate.errors import ConfigError

    failed = 0
    for name, least in thresholds:
        found = [values[name] for values in map(score_values, results) if name in values]
        if not found:
            raise ConfigError(f"--fail-under {name}: no result has this score; there are {', '.join(sorted({k for r in results for k in score_values(r)}))}")
        for value in found:
            if not value >= least:
                console.print(f"[red]{name} is {value:.4f}, under {least:g}[/red]")
                failed = 1
    return failed


def score_values(result: Mapping[str, Any]) -> dict[str, float]:
    """What --fail-under can name: the plain measures of a result, and the scores of its benchmark."""
    values = {name: float(result[name]) for name in ("accuracy", "accuracy_ties_half") if name in result}
    if result.get("listwise"):
        values |= {name: row["value"] for name, row in result["listwise"]["metrics"].items()}
    if result.get("benchmark"):
        values |= {name: row["value"] for name, row in result["benchmark"]["scores"].items()}
    return values
