"""`palate attributes`: heads for rated attributes on a frozen backbone, a gate that weighs them by the prompt, and the reward's lower bound."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one, share

if TYPE_CHECKING:
    from palate.multi_objective.attributes import AttributeFit
    from palate.multi_objective.gating import GateFit
    from palate.scoring.embeddings import CachedEmbedder
    from palate.types import Exchange, PreferenceGroup


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import quiet_libraries

    quiet_libraries()
    folder = Path(options.model)
    if options.data:
        folder = Path(options.output)
        fit_heads(options, folder)
    if options.gate:
        add_gate(options, folder)
    if options.bound:
        add_bound(options, folder)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="palate attributes",
        description="A linear head for each rated attribute (ridge regression on embeddings); a gate that weighs attributes by the prompt; and how unsure a "
        "linear reward is of a response. Without --data, --gate and --bound are added to the folder of --model.",
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    heads = parser.add_argument_group("heads")
    heads.add_argument("--data", help="rated rows: `score` (a number, or {attribute: number}), `scores`, or HelpSteer's columns")
    heads.add_argument("--output", help="folder to write the checkpoint with the heads to (with --data)")
    heads.add_argument("--attributes", help="which ones, with commas between (default: all that the data rate)")
    heads.add_argument("--weights", help="what each attribute weighs in the reward, e.g. helpfulness=0.65,correctness=0.8 (default: alike on standard scales)")
    gate = parser.add_argument_group("gate")
    gate.add_argument("--gate", metavar="PREFS", help="preference rows to fit a gate to")
    gate.add_argument("--debias", metavar="length|ATTRIBUTE", help="take verbosity out of every attribute: the response's length, or an attribute")
    gate.add_argument("--gate-steps", type=at_least_one, default=2000, help="training steps of the gate")
    gate.add_argument("--gate-hidden", default="1024,1024,1024", help="widths of the gate's layers, with commas between")
    bound = parser.add_argument_group("lower bound")
    bound.add_argument("--bound", metavar="PREFS", help="preference rows to fit the reward's uncertainty to (laplace.safetensors); read it with lower:FOLDER")
    bound.add_argument("--form", choices=("curvature", "uniform"), default="curvature", help="curvature: Laplace, in reward units; uniform: Zhu et al.")
    how = parser.add_argument_group("how")
    how.add_argument("--split", default="train", help="split of a hub data set or folder")
    how.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. response=answer")
    how.add_argument("--on-bad-row", choices=("error", "drop"), default="error", help="a row that cannot be read: end here, or leave it out, counted")
    how.add_argument("--held-out", type=share, default=0.2, help="share of the prompts that choices are made on (alpha, ridge, step of the gate)")
    how.add_argument("--seed", type=int, default=0, help="of the held-out split and the gate")
    how.add_argument("--embeddings", help="folder of embeddings computed before (default: among the user's caches)")
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.output):
        parser.error("--data and --output go together: rated rows in, a checkpoint out")
    if not (options.data or options.gate or options.bound):
        parser.error("give --data with rated rows, --gate or --bound with preference rows")
    for flag, needs in (("attributes", "data"), ("weights", "data"), ("debias", "gate")):
        if getattr(options, flag) and not getattr(options, needs):
            parser.error(f"--{flag} does nothing without --{needs}")
    if options.gate and options.bound:
        parser.error("--bound is of a linear reward, which a gated one is not; give one of --gate and --bound")
    if not 0 < options.held_out < 1:
        parser.error(f"--held-out is {options.held_out}, expected a share between 0 and 1")
    if not options.data and not Path(options.model).is_dir():
        parser.error(f"--model {options.model}: is no folder that a gate or bound could be added to")
    return options


# --- heads --------------------------------------------------------------------------------------------------------------------------------------------


def fit_heads(options: argparse.Namespace, output: Path) -> None:
    """Embed, fit, save, print."""
    import numpy as np

    from palate.cli.console import console
    from palate.data.loading import fingerprint, prompt_key
    from palate.errors import StorageError
    from palate.models.heads import head_name
    from palate.multi_objective.attributes import attribute_readout, fit_attributes, ratings_of
    from palate.multi_objective.heads import save_heads
    from palate.stats.intervals import codes_of

    if output.exists() and any(output.iterdir()):
        raise StorageError(f"{output}: is not empty; give a new folder")
    weights = parse_weights(options.weights) if options.weights else None
    groups = load(options, options.data)
    ratings = ratings_of(groups, options.attributes.split(",") if options.attributes else None)
    embedder, scorer = embedder_of(options, options.model)
    exchanges = [exchange for group in groups for exchange in group.exchanges()]
    rows = embedder.embed(exchanges, progress=True, on_long="nan")
    if rows.missing.any():
        console.print(f"{int(rows.missing.sum())} of {len(rows)} responses are longer than max_length, or empty, and were left out")
    prompts = codes_of([prompt_key(group.prompt) for group in groups for _ in group.responses])
    head = scorer.model.get_submodule(str(head_name(scorer.model)))
    heads, fits = fit_attributes(np.asarray(rows), ratings, prompts, intercept=head.bias is not None, held_out=options.held_out, seed=options.seed)
    readout = attribute_readout(fits, weights)
    golden = [exchange for exchange, missing in zip(exchanges, rows.missing, strict=True) if not missing]
    save_heads(scorer, heads, output, golden=golden[:3], readout=readout, data_fingerprint=fingerprint(groups))
    console.print(attribute_table(fits, readout.weights))
    console.print(f"Checkpoint: {output}")


def attribute_table(fits: Sequence[AttributeFit], weights: Sequence[float]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="attributes: measured on held-out prompts, then fitted to all", title_justify="left")
    for name in ("name", "rated", "held out", "alpha", "R2", "Spearman (95 %)", "weight"):
        table.add_column(name, justify="left" if name == "name" else "right", no_wrap=name == "Spearman (95 %)", overflow="fold")
    for fit, weight in zip(fits, weights, strict=True):
        low, high, _ = fit.spearman_interval
        rho = f"{fit.spearman:.2f} ({low:.2f} to {high:.2f})" if fit.spearman == fit.spearman else "undefined"
        numbers = (str(fit.rated), str(fit.held_out), f"{fit.alpha:g}", f"{fit.r2:.3f}", rho, f"{weight:.3g}")
        table.add_row(escape(fit.name), *numbers)
    return table


def parse_weights(text: str) -> dict[str, float]:
    from palate.errors import ConfigError

    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(f"--weights {part!r}: expected ATTRIBUTE=NUMBER with commas between, e.g. helpfulness=0.65,correctness=0.8") from error
    return found


# --- gate and bound -----------------------------------------------------------------------------------------------------------------------------------


def add_gate(options: argparse.Namespace, folder: Path) -> None:
    """Fit a gate to preferences and put it beside the checkpoint."""
    from dataclasses import replace

    import numpy as np

    from palate.cli.console import console
    from palate.data.pairing import training_comparisons
    from palate.errors import DataError, ModelError
    from palate.multi_objective.gating import GateTraining, fit_gate
    from palate.scoring.gated import GatedScorer, gate_inputs, save_gate
    from palate.scoring.local import load_scorer

    hidden = parse_widths(options.gate_hidden)
    groups = load(options, options.gate)
    scorer = load_scorer(folder)
    if len(scorer.readout.outputs) < 2 or scorer.readout.aggregate is not None:
        raise ModelError(
            f"{folder}: gives {', '.join(scorer.readout.outputs)}; a gate weighs several attributes (palate attributes --data, loss.type: regression)"
        )
    exchanges = [exchange for group in groups for exchange in group.exchanges()]
    starts = np.cumsum([0, *(len(group.responses) for group in groups)])
    compared = [(start, c) for start, group in zip(starts, groups, strict=False) for c in training_comparisons(group.comparisons, ties="drop")]
    if not compared:
        raise DataError(f"{options.gate}: holds no decided comparison among {len(groups)} groups")
    fit = fit_gate(
        gate_inputs(scorer, exchanges, progress=True, on_long="nan"),
        np.array([start + c.chosen for start, c in compared]),
        np.array([start + c.rejected for start, c in compared]),
        scorer.readout.outputs,
        probability=np.array([c.probability for _, c in compared]),
        against=options.debias,
        training=GateTraining(hidden=hidden, steps=options.gate_steps, held_out=options.held_out, seed=options.seed),
    )
    about = {"comparisons": len(compared) - fit.left_out, "held_out": fit.held_out, "log_loss": fit.log_loss, "accuracy": fit.accuracy, "step": fit.step}
    gated = GatedScorer(scorer, fit.gate, fit.settings)
    save_gate(folder, fit.gate, replace(fit.settings, golden=examples(gated, exchanges), about=about))
    show_gate(fit)
    console.print(f"Gate: {folder} (other tools give its {len(scorer.readout.outputs)} attributes; palate weighs them)")


def examples(gated: Any, exchanges: Sequence[Exchange]) -> tuple[Mapping[str, Any], ...]:
    """A few exchanges with their gated rewards, to be replayed whenever the gate is loaded."""
    from palate.data.tokenization import as_exchange
    from palate.scoring.contract import NUM_GOLDEN

    few = [as_exchange(exchange) for exchange in exchanges[: 4 * NUM_GOLDEN]]
    scored = [(exchange, score) for exchange, score in zip(few, gated.score(few, on_long="nan").tolist(), strict=True) if score == score][:NUM_GOLDEN]
    return tuple({"exchange": {"prompt": e.prompt, "response": e.response, "template_args": dict(e.template_args)}, "score": score} for e, score in scored)


def show_gate(fit: GateFit) -> None:
    from rich.markup import escape
    from rich.table import Table

    from palate.cli.console import console
    from palate.reports.wording import percent

    low, high = (100 * bound for bound in fit.accuracy_interval[:2])
    console.print(
        f"{fit.held_out} comparisons of held-out prompts: accuracy {percent(fit.accuracy)} ({low:.1f} to {high:.1f}), "
        f"log loss {fit.log_loss:.3f}, step {fit.step}; attributes weighed alike {percent(fit.alike)}"
        + (f"; {fit.left_out} comparisons left out (too long)" if fit.left_out else "")
    )
    if fit.correlations:
        table = Table(title=f"Spearman with {fit.settings.against}", title_justify="left")
        for name in ("attribute", "before", "lambda", "after"):
            table.add_column(name, justify="left" if name == "attribute" else "right")
        for name, (before, after), part in zip(fit.settings.attributes, fit.correlations, fit.settings.lambdas, strict=True):
            table.add_row(escape(name), f"{before:.3f}", f"{part:.3f}", f"{after:.3f}" if after == after else "nothing is left")
        console.print(table)


def parse_widths(text: str) -> tuple[int, ...]:
    from palate.errors import ConfigError

    try:
        widths = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise ConfigError(f"--gate-hidden {text!r}: expected widths with commas between, e.g. 1024,1024,1024")
    return widths


def add_bound(options: argparse.Namespace, folder: Path) -> None:
    """Fit the posterior of the reward's weights to preferences and put it beside the checkpoint."""
    from palate.cli.console import console
    from palate.errors import ModelError
    from palate.multi_objective.pairs import embedded_pairs
    from palate.multi_objective.pessimism import fit_posterior
    from palate.scoring.gated import GATE_NAME
    from palate.scoring.laplace import LAPLACE_NAME, linear_reward

    if (folder / GATE_NAME).is_file():
        raise ModelError(f"{folder}: has a gate, so its reward is not linear in its embeddings, and has no such bound")
    groups = load(options, options.bound)
    embedder, scorer = embedder_of(options, str(folder))
    if scorer.readout.aggregate is not None:
        raise ModelError(f"{folder}: rewards steps; a bound is of a reward that is linear in the embedding of a whole response")
    pairs = embedded_pairs(embedder, groups, progress=True)
    fit = fit_posterior(pairs, linear_reward(scorer)[0], form=options.form, held_out=options.held_out, seed=options.seed)
    fit.posterior.save(folder, scorer)
    console.print(
        f"{len(pairs)} comparisons" + (f" ({pairs.left_out} left out: too long)" if pairs.left_out else "") + f"; ridge {fit.ridge:g}, log loss on held-out "
        f"prompts {fit.held_out[fit.ridge]:.4f} with uncertainty, {fit.plain:.4f} without (temperature {fit.temperature:.3g})"
    )
    console.print(f"Posterior: {folder / LAPLACE_NAME}; lower:{folder} is the reward less its uncertainty")


# --- input --------------------------------------------------------------------------------------------------------------------------------------------


def load(options: argparse.Namespace, data: str) -> list[PreferenceGroup]:
    from palate.cli.eval import parse_columns
    from palate.data.loading import load_groups

    return load_groups(data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False).groups


def embedder_of(options: argparse.Namespace, source: str) -> tuple[CachedEmbedder, Any]:
    from palate.scoring.embeddings import open_embedder

    opened = open_embedder(source, options.embeddings)
    return opened.embedder, opened.scorer
