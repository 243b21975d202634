"""`palate eval`: a reward model on preference data -> table, results.json, items, page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from palate.training.settings import EvalSettings
from palate.types import PACKINGS, PreferenceGroup


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="palate eval", description="Measure a reward model on preference data.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="file, folder or hub id in any known layout")
    parser.add_argument("--output", help="results.json to write (items and pictures go beside it)")
    parser.add_argument("--page", help="HTML page to write (needs --output)")
    parser.add_argument("--split", default="test", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), default="error")
    parser.add_argument(
        "--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="responses beyond max_length (nan: counted as not scored)"
    )
    parser.add_argument("--max-length", type=int, help="in place of the checkpoint's own")
    parser.add_argument("--limit", type=int, help="only the first so many groups")
    parser.add_argument("--bins", type=int, default=10, help="bins of the reliability curve")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    parser.add_argument("--token-budget", type=int, help="tokens computed at a time (default: by device)")
    parser.add_argument("--record", action="store_true", help="write reward mean, spread and temperature into the checkpoint's contract")
    options = parser.parse_args(arguments)
    if options.page and not options.output:
        parser.error("--page needs --output")

    from palate.cli.console import quiet_libraries
    from palate.data.loading import load_groups

    quiet_libraries()
    loaded = load_groups(options.data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False)
    evaluate_checkpoint(
        Path(options.model) if Path(options.model).exists() else options.model,
        loaded.groups,
        output=Path(options.output) if options.output else None,
        page=Path(options.page) if options.page else None,
        title=f"{options.model} on {options.data}",
        settings=EvalSettings(
            bins=options.bins, confidence=options.confidence, limit=options.limit, packing=options.packing, token_budget=options.token_budget
        ),
        record=options.record,
        max_length=options.max_length,
        on_long=options.on_long,
    )
    return 0


def parse_columns(pairs: Sequence[str]) -> dict[str, str] | None:
    from palate.errors import ConfigError

    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--columns: {pair!r} is not of the form ours=theirs")
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
    max_length: int | None = None,
    on_long: str = "nan",
    scorer: Any = None,
) -> dict[str, Any]:
    """Load (unless given), evaluate, print, write. Returns the result as a dictionary."""
    from palate.cli.console import console
    from palate.evaluation.evaluator import evaluate
    from palate.models.checkpoints import RewardStatistics, package_versions
    from palate.reports.page import write_page
    from palate.reports.tables import result_table, subset_table
    from palate.scoring.local import describe_model, load_scorer

    scorer = scorer or load_scorer(model, packing=settings.packing, token_budget=settings.token_budget, max_length=max_length)
    evaluation = evaluate(
        scorer,
        groups[: settings.limit],
        bins=settings.bins,
        confidence=settings.confidence,
        model=describe_model(scorer),
        versions=package_versions(),
        progress=True,
        on_long=on_long,
    )
    result = asdict(evaluation.result)
    console.print(result_table(result, title=title))
    if table := subset_table(result):
        console.print(table)
    if output:
        items = evaluation.save(output)
        console.print(f"Results: {output}  items: {items}")
    if page and output:
        write_page(output, page, title=title, log_history=log_history)
        console.print(f"Page: {page}")
    if record and scorer.contract:
        statistics = RewardStatistics(result["rewards"]["mean"], result["rewards"]["std"], result["calibration"]["temperature"], result["n"])
        replace(scorer.contract, rewards=statistics).save(model)
    return result
