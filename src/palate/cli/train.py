"""`palate train`: settings from a file and flags, one run, its evaluation beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from palate.errors import Interrupted, tally
from palate.training.launch import PARENT, start, wanted
from palate.training.loss_settings import TERM_KINDS
from palate.training.settings import OWNED_ELSEWHERE, HeldOut, RunSettings, SourceSettings, read_settings

HELP = """usage: palate train [--config run.yaml] [--section.key value ...] [--dry-run] [--resume]

Train a reward model. Settings come from the file and then from flags of the same dotted names:

    palate train --config run.yaml --training.learning_rate 2e-5

  --config FILE   YAML file with the sections below
  --dry-run       show the resolved settings, what each filter keeps, and the first encoded pair; train nothing
  --resume        go on with the interrupted run in training.output_dir
"""


def main(arguments: Sequence[str]) -> int:
    given = list(arguments)
    if {"-h", "--help"} & set(given):
        print(HELP + help_sections())
        return 0
    arguments = list(given)
    dry, resume = (_take_switch(arguments, name) for name in ("--dry-run", "--resume"))
    config = _take_value(arguments, "--config")
    settings = read_settings(config, arguments)
    if wanted(settings.launch) and not dry:
        start(settings.launch, given, settings.training["output_dir"])
        return 0

    from palate.cli.console import console, quiet_libraries

    quiet_libraries()
    if dry:
        from palate.training.run import dry_run

        show_dry_run(dry_run(settings))
        return 0
    from palate.training.run import member_runs

    for run, goes_on in member_runs(settings, resume=resume):
        if settings.model.members:
            console.print(f"\nMember [bold]{run.training['output_dir']}[/bold]")
        if not train_one(run, resume=goes_on):
            return 0
    where = settings.training["output_dir"]
    after = f"eval --model ensemble:{where} --data test.jsonl" if settings.model.members else f"score --model {where} --data rows.jsonl --output scored.jsonl"
    console.print(f"Next: palate {after}")
    return 0


def train_one(settings: RunSettings, *, resume: bool) -> bool:
    """Train, save and evaluate; False on a rank whose parent tells of the interruption."""
    from palate.cli.console import console
    from palate.training.run import train

    try:
        run = train(settings, resume=resume, say=console.print)
    except Interrupted:
        if PARENT in os.environ:  # it says so, once for all ranks
            return False
        raise
    console.print(f"\nSaved to [bold]{run.directory}[/bold]")
    if run.data.evaluation and not any(group.comparisons for group in run.data.evaluation):
        show_metrics(run.trainer.evaluate())  # ratings, outcomes, steps: no two responses to compare
    elif run.data.evaluation and run.trainer.is_world_process_zero():
        from palate.cli.eval import evaluate_checkpoint

        evaluate_checkpoint(
            run.directory,
            run.data.evaluation,
            output=run.directory / "results.json",
            title="Held-out comparisons" if isinstance(settings.data.eval, HeldOut) else "Evaluation data",
            settings=settings.eval,
            record=True,
            log_history=run.trainer.state.log_history,
        )
    return True


def show_metrics(metrics: Mapping[str, float]) -> None:
    """The trainer's own figures on the evaluation data, where there is nothing for `palate eval` to compare."""
    from palate.cli.console import console

    console.print("\nEvaluation data: no comparisons, so the figures are those of the loss")
    for name, value in metrics.items():
        if name.startswith("eval_") and not name.endswith(("runtime", "per_second")) and "rm/" not in name:
            console.print(f"  {name.removeprefix('eval_')}: {value:.4g}")


def _take_switch(arguments: list[str], name: str) -> bool:
    present = name in arguments
    if present:
        arguments.remove(name)
    return present


def _take_value(arguments: list[str], name: str) -> str | None:
    from palate.errors import ConfigError

    for i, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments.pop(i).partition("=")[2]
        if argument == name:
            if i + 1 == len(arguments):
                raise ConfigError(f"{name} needs a value")
            arguments.pop(i)
            return arguments.pop(i)
    return None


def help_sections() -> str:
    """Every key of every section with its default and meaning, read off the models."""
    lines = []
    for name, field in RunSettings.model_fields.items():
        lines.append(f"\n{name}:")
        section: Any = field.annotation
        if name == "training":
            lines.append("  output_dir, num_train_epochs, per_device_train_batch_size, learning_rate, gradient_accumulation_steps, eval_strategy, bf16,")
            lines.append("  report_to, ...: every field of RewardConfig and transformers.TrainingArguments, except " + ", ".join(OWNED_ELSEWHERE))
            continue
        lines += _describe(section)
        if name == "data":
            lines.append("  each source of train and eval:")
            lines += [f"  {line}" for line in _describe(SourceSettings)]
        if name == "loss":
            lines.append("  type, and the options of each (docs/losses.md):")
            lines += [f"    {kind:<20} {_term_help(term)}" for kind, term in TERM_KINDS.items()]
    return "\n".join(lines)


def _describe(section: Any) -> list[str]:
    lines = []
    for key, field in section.model_fields.items():
        if key == "terms":
            continue
        default = "required" if field.is_required() else f"default {field.default!r}"
        lines.append(f"  {key:<20} {field.description} [{default}]")
    return lines


def _term_help(term: Any) -> str:
    options = ", ".join(name for name in term.model_fields if name not in ("type", "weight"))
    return f"{term.__doc__.strip()}" + (f" [{options}]" if options else "")


def show_dry_run(plan: dict[str, Any]) -> None:
    import yaml

    out = sys.stdout
    out.write("Resolved settings\n" + yaml.safe_dump(plan["settings"], sort_keys=False, allow_unicode=True))
    out.write("\nSources\n")
    for source in plan["sources"]:
        out.write(
            f"  {source['source']}: {source['layout']}; {source['rows']} rows, {source['groups']} groups; cannot be used: {source['bad_rows'] or 'none'}\n"
        )
    out.write("\nAfter encoding\n")
    for name, report in plan["encoded"].items():
        for source, counts in report.items():
            if isinstance(counts, dict):
                out.write(f"  {name}, {source}: {counts['kept']} of {counts['groups']} groups kept, {counts['cut']} cut; dropped: {tally(counts['dropped'])}\n")
        out.write(f"  {name}: {report['tokens']} tokens ({report['unique_tokens']} with shared prefixes once), longest sequence {report['longest']}\n")
    reason = f" ({plan['packing']['reason']})" if plan["packing"]["reason"] else ""
    out.write(f"\nPacking: {plan['packing']['packing']}{reason}\nPrompts in both sets: {plan['prompts_in_both_sets']}\n")
    out.write(f"Parameters: {plan['parameters']:,}; learning rate {plan['learning_rate']:g}\n\nFirst encoded pair\n")
    for side, encoded in plan["first_pair"].items():
        out.write(f"  {side} ({len(encoded['ids'])} ids): {encoded['ids'][:12]} ... {encoded['ids'][-6:]}\n    {encoded['text']!r}\n")
