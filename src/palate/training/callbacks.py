"""Callbacks: a progress bar with loss and accuracy, a table of samples, and a clean stop on Ctrl-C."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(ProgressCallback):
    """Transformers' bar with the last loss and accuracy beside it, in place of a printed dictionary at every log."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            shown = {name: f"{logs[name]:.3f}" for name in ("accuracy", "outcome_accuracy", "step_accuracy") if name in logs}
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}", **shown)


SAME_SIGNAL = 2.0  # seconds within which a second signal is taken for the first


class StopOnInterrupt(TrainerCallback):
    """On the first Ctrl-C (or SIGTERM) finish the step, save a checkpoint and stop; on a later second one stop at once.

    Among several ranks the signal may come between different steps: they agree at the end of each, so that all stop after the same one.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._since = 0.0
        self._handlers: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # one Ctrl-C may come twice: from the terminal or scheduler, and passed on by a parent
        if self.interrupted and time.monotonic() - self._since > SAME_SIGNAL:
            raise KeyboardInterrupt
        if not self.interrupted:
            self.interrupted, self._since = True, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            anyone = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(anyone, op=torch.distributed.ReduceOp.MAX)
            self.interrupted = bool(anyone)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


def print_samples(rows: list[tuple[str, str, float, float]], title: str) -> None:
    """A table of (chosen text, rejected text, chosen reward, rejected reward)."""
    table = Table(title=title, show_lines=True)
    for heading, justify in (("chosen", "left"), ("rejected", "left"), ("rewards", "right"), ("right", "center")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for chosen, rejected, r_chosen, r_rejected in rows:
        table.add_row(Text(chosen), Text(rejected), f"{r_chosen:.3f}\n{r_rejected:.3f}", "yes" if r_chosen > r_rejected else "no")
    Console().print(table)
