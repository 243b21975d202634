"""The one console that commands print to."""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console

FILE_WIDTH = 140  # columns of tables in a pipe or a log, which have no width of their own; rich's 80 would cut names

console = Console(
    highlight=False,
    soft_wrap=True,
    quiet=os.environ.get("RANK", "0") != "0",
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH,
)
"""Of several ranks the first one speaks."""


class _ToConsole(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False)


def speak() -> None:
    """Show what palate itself has to say: what each filter kept, and what it left out."""
    logger = logging.getLogger("palate")
    if not logger.handlers:
        logger.addHandler(_ToConsole())
    logger.setLevel(logging.INFO)


def quiet_libraries() -> None:
    """Leave the screen to our own output: no loading bars, no reports of a head that is new on purpose, no notes on missing accelerators."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*")  # PEFT's use of transformers, nothing that a user could mend
    speak()
