"""The one console that commands print to."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Leave the screen to our own output: no loading bars, no reports of a head that is new on purpose, no notes on missing accelerators."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
