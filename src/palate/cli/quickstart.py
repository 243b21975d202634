"""`palate quickstart`: the main job on embedded defaults, offline: train, evaluate on held-out prompts, score a fresh example, report."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.cli.arguments import Parser

FRESH_PROMPT = "My houseplant's leaves are turning yellow. What should I check first?"
FRESH_RESPONSES = (
    (
        "Check the soil first: push a finger in two centimetres deep. If it is wet, you are overwatering, the most common cause; let it dry "
        "before the next drink. If it is bone dry, water it well. Then look at light and drainage."
    ),
    "The history of houseplants begins in Victorian parlours, where ferns were a craze. Many families kept them in glass cases called Wardian cases.",
    "Honestly, if you can't keep a plant alive you should not own one.",
)


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate quickstart", description="Train, evaluate and try a reward model on the sample data.")
    parser.add_argument("--output", default="palate-quickstart", help="folder to write (a number is added when it exists)")
    parser.add_argument("--seed", type=int, default=42, help="of training: order of the data and new weights")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()

    from palate.cli.console import console, quiet_libraries

    with console.status("loading torch and transformers"):
        from palate.sample import base_model_path
        from palate.training.run import train

        quiet_libraries()

    settings = quickstart_settings(free_directory(Path(options.output)), str(base_model_path()), options.seed)
    console.print("1/4  Training all-MiniLM-L6-v2 on 240 prompts, 4 rated responses each")
    run = train(settings, say=lambda text: console.print(f"     {text}"))
    console.print("2/4  Evaluating on 80 held-out prompts")
    from palate.cli.eval import evaluate_checkpoint
    from palate.scoring.local import load_scorer

    assert run.data.evaluation is not None
    scorer = load_scorer(run.directory)
    history = run.trainer.state.log_history
    page = run.directory / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    result = evaluate_checkpoint(
        run.directory, run.data.evaluation, output=run.directory / "results.json", page=page, title="Quickstart: held-out prompts of the sample set",
        settings=settings.eval, record=True, log_history=history, scorer=scorer,
    )  # fmt: skip
    console.print("3/4  Scoring a fresh example")
    rewards = scorer.score([({"role": "user", "content": FRESH_PROMPT}, {"role": "assistant", "content": text}) for text in FRESH_RESPONSES])
    console.print("4/4  Done\n")
    show_summary(result, rewards.tolist(), run.directory, page, time.monotonic() - started)
    return 0


def free_directory(wanted: Path) -> Path:
    number = 1
    directory = wanted
    while directory.exists():
        number += 1
        directory = wanted.with_name(f"{wanted.name}-{number}")
    return directory


def quickstart_settings(output: Path, model: str, seed: int) -> Any:
    """Two prompts a step. Rate and batch were compared on held-out *training* prompts at 1 and 1.5 epochs; 1.25 keeps the time (docs/log.md)."""
    from palate.sample import sample_path
    from palate.training.settings import RunSettings

    return RunSettings.model_validate(
        {
            "model": {"name_or_path": model, "chat_template": "plain"},
            "data": {
                "train": {"path": str(sample_path()), "split": "train", "name": "sample"},
                "eval": {"path": str(sample_path()), "split": "test", "name": "sample"},
                "max_length": 512,
            },
            "loss": {"type": "bradley_terry", "centering": 0.01},
            "training": {
                "output_dir": str(output),
                "num_train_epochs": 1.25,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-4,
                "warmup_steps": 0.1,
                "logging_steps": 10,
                "save_strategy": "no",
                "report_to": "none",
                "train_sampling_strategy": "group_by_length",
                "seed": seed,
            },
        }
    )


def show_summary(result: dict[str, Any], rewards: list[float], directory: Path, page: Path, seconds: float) -> None:
    from rich.table import Table

    from palate.cli.console import console
    from palate.reports.tables import percent, span

    fresh = Table(title=f"A fresh example: {FRESH_PROMPT}", title_justify="left", show_header=True, width=110)
    fresh.add_column("reward", justify="right")
    fresh.add_column("response")
    for reward, text in sorted(zip(rewards, FRESH_RESPONSES, strict=True), reverse=True):
        fresh.add_row(f"{reward:+.2f}", text)
    console.print(fresh)
    baseline = result["baselines"]["longer_wins"]
    table = Table(title=f"Quickstart, {seconds:.0f} s", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value")
    table.add_row("held-out accuracy", f"[bold]{percent(result['accuracy'])}[/bold]  (95 % interval {span(result['interval'])}, {result['n']} comparisons)")
    table.add_row("length alone", f"{percent(baseline['accuracy'])}  (95 % interval {span(baseline['interval'])})")
    table.add_row("checkpoint", str(directory))
    table.add_row("results", str(directory / "results.json"))
    table.add_row("report page", str(page))
    console.print(table)
    example = json.dumps({"prompt": [{"role": "user", "content": "Hi!"}], "response": "Hello, how can I help?"})
    palate = "palate" if shutil.which("palate") else os.path.relpath(Path(sys.executable).parent / "palate")
    console.print(
        "What next:\n"
        f"  echo '{example}' > rows.jsonl\n"
        f"  {palate} score --model {directory} --data rows.jsonl --output scored.jsonl\n"
        f"  {palate} data check YOUR_PREFERENCES.jsonl\n"
        f"  {palate} train --config {directory}/run.yaml --data.train YOURS.jsonl --data.eval '{{split: 0.1}}' --training.output_dir out",
        markup=False,
    )
