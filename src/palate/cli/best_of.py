"""`palate best-of`: the best of each prompt's responses as SFT rows, or best and worst as pairs; and what a choice of n is worth."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one

if TYPE_CHECKING:
    from palate.scoring.best_of import Samples
    from palate.stats.best_of_n import Curve

CHUNK = 4096  # responses scored together

EPILOG = """\
examples:
  palate best-of --model out --data responses.jsonl --output best.jsonl
  palate best-of --model out --data responses.jsonl --output good.jsonl --keep all --threshold 1.5
  palate best-of --model out --data responses.jsonl --output pairs.jsonl --pairs -n 8
  palate best-of --rewards reward --data scored.jsonl --output best.jsonl --gold human
"""


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.cli.eval import parse_columns
    from palate.cli.output import rows_path, write_json, write_rows
    from palate.data.loading import read_rows
    from palate.errors import tally
    from palate.scoring.best_of import best_rows, pair_rows, read_samples

    quiet_libraries()
    output = rows_path(options.output, overwrite=options.overwrite)
    _usable(options)
    named = [name for name in (options.rewards, options.gold) if name]
    samples = read_samples(read_rows(options.data, split=options.split), columns=parse_columns(options.columns), values=named)
    samples = [one.first(options.n) if options.n else one for one in samples]
    samples = _scored(options, samples)
    if options.pairs:
        kept = pair_rows(samples, threshold=options.threshold)
    else:
        kept = best_rows(samples, keep=None if options.keep == "all" else int(options.keep), threshold=options.threshold)
    write_rows(output, kept.rows)
    curve = _curve(samples, options.gold)
    report = {"prompts": len(samples), "responses": sum(len(one.responses) for one in samples), "rows": len(kept.rows), "left_out": dict(kept.left_out)}
    write_json(output.with_suffix(".report.json"), report | {"curve": _as_dict(curve, options.gold) if curve else None})
    console.print(f"{report['prompts']} prompts, {report['responses']} responses; {report['rows']} rows written to {output}", markup=False)
    console.print(f"left out: {tally(kept.left_out)}", markup=False)
    if curve:
        _show(curve, options.gold)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="palate best-of",
        description="Choose among the responses to each prompt by reward.",
        epilog=EPILOG,
    )
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--model", help="checkpoint folder, hub id, or another source of rewards (http://..., ensemble:A,B)")
    scored.add_argument("--rewards", metavar="COLUMN", help="rewards that the rows have already, as `palate score` writes them to `reward`")
    parser.add_argument("--data", required=True, help="rows of a prompt and its responses, or of one response each")
    parser.add_argument("--output", required=True, help="JSONL or Parquet file to write; counts and curve go beside it (.report.json)")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. responses=samples")
    parser.add_argument("-n", type=int, metavar="N", help="only the first N responses of each prompt")
    parser.add_argument("--keep", default="1", metavar="K", help="responses kept of each prompt: a number, or all")
    parser.add_argument("--threshold", type=float, metavar="REWARD", help="keep no response (with --pairs: no chosen one) with a lower reward")
    parser.add_argument("--pairs", action="store_true", help="best and worst of each prompt as chosen and rejected")
    parser.add_argument("--gold", metavar="COLUMN", help="judge the choice by these rewards in place of the model's own")
    parser.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    return parser.parse_args(arguments)


def _usable(options: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    from palate.errors import ConfigError

    if options.keep != "all" and not (options.keep.isdecimal() and int(options.keep) > 0):
        raise ConfigError(f"--keep {options.keep}: expected a number of at least 1, or all")
    if options.pairs and options.keep != "1":
        raise ConfigError("--keep says how many responses become rows; --pairs makes one row of the best and the worst")
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise ConfigError(f"--threshold {options.threshold}: expected a finite reward")
    if options.rewards and (options.max_length is not None or options.trust_remote_code):
        raise ConfigError("--max-length and --trust-remote-code are for a model; with --rewards nothing is scored")
    if options.n is not None and options.n < 1:
        raise ConfigError(f"-n {options.n}: expected at least 1")


def _scored(options: argparse.Namespace, samples: Sequence[Samples]) -> list[Samples]:
    """The samples with their rewards: from the column that was named, or from the model."""
    from dataclasses import replace

    import numpy as np
    from tqdm.auto import tqdm

    from palate.cli.eval import loading_options
    from palate.scoring.sources import open_scorer
    from palate.serving.rewards import RewardSource

    if options.rewards:
        return [replace(one, rewards=np.array(one.values[options.rewards])) for one in samples]
    scorer = open_scorer(options.model, **loading_options(options)).scorer
    source = RewardSource(scorer, on_long="nan")
    exchanges = [exchange for one in samples for exchange in one.exchanges()]
    values: list[float] = []
    with tqdm(total=len(exchanges), desc="scoring", unit="response") as bar:
        for start in range(0, len(exchanges), CHUNK):
            found = source.many(exchanges[start : start + CHUNK])
            values += [reward.value for reward in found]
            bar.update(len(found))
    ends = np.cumsum([len(one.responses) for one in samples])
    return [replace(one, rewards=rewards) for one, rewards in zip(samples, np.split(np.array(values), ends[:-1]), strict=True)]


def _curve(samples: Sequence[Samples], gold: str | None) -> Curve | None:
    """Expected reward of the best of n, for n up to as many responses as half of the prompts have; None where those are no two that were scored."""
    import numpy as np

    from palate.stats.best_of_n import best_of_n_curve

    judged = [(np.array(one.values[gold]) if gold else one.rewards, one.rewards) for one in samples]
    finite = [(true[known], proxy[known]) for true, proxy in judged if (known := np.isfinite(true) & np.isfinite(proxy)).any()]
    sizes = sorted(len(proxy) for _, proxy in finite)
    usual = sizes[(len(sizes) - 1) // 2] if sizes else 0
    if usual < 2:
        return None
    ns = [*(2**k for k in range(usual.bit_length()) if 2**k < usual), usual]
    return best_of_n_curve([true for true, _ in finite], [proxy for _, proxy in finite], ns)


def _as_dict(curve: Curve, gold: str | None) -> dict[str, Any]:
    from palate.stats.best_of_n import kl_upper_bound

    found: dict[str, Any] = {"judged_by": gold or "the reward itself", "prompts": curve.prompts, "left_out": curve.left_out}
    found |= {name: getattr(curve, name).tolist() for name in ("n", "expected", "low", "high", "oracle", "random")}
    return found | {"kl": [kl_upper_bound(int(n)) for n in curve.n]}


def _show(curve: Curve, gold: str | None) -> None:
    from rich.table import Table

    from palate.cli.console import console

    shown = _as_dict(curve, gold)
    table = Table(title=f"expected {gold or 'reward'} of the best of n, {curve.prompts} prompts ({curve.left_out} with fewer responses left out)")
    for heading in ("n", "expected", "95 % interval", *(["perfect choice"] if gold else []), "KL at most (nats)"):
        table.add_column(heading, justify="right")
    for i, n in enumerate(shown["n"]):
        best = [f"{shown['oracle'][i]:.3f}"] if gold else []
        interval = f"{shown['low'][i]:.3f} to {shown['high'][i]:.3f}" if curve.prompts > 1 else "none of one prompt"
        table.add_row(str(n), f"{shown['expected'][i]:.3f}", interval, *best, f"{shown['kl'][i]:.3f}")
    console.print(table)
