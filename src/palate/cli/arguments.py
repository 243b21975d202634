"""What all commands parse alike: a parser whose help names every default, and numbers within their bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """With the default behind it, where there is one and the text does not say it in its own words."""
        default = action.default
        silent = default is None or isinstance(default, bool) or default in ("", [], (), argparse.SUPPRESS)
        return action.help if silent or not action.help or "(default" in action.help else f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Of a command; parsers of its subcommands are of this class too."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"formatter_class": _Help, **kwargs})


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """For argparse's `type`: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        value = _read(text, int, "a whole number")
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number {f'of at least {least}' if most is None else f'from {least} to {most}'}")
        return value

    return read


def number(*, least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None) -> Callable[[str], float]:
    """For argparse's `type`: a finite number within these bounds."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)

    def read(text: str) -> float:
        value = _read(text, float, "a number")
        within = abs(value) < float("inf") and (least is None or value >= least) and (above is None or value > above)
        if not (within and (most is None or value <= most) and (below is None or value < below)):
            raise argparse.ArgumentTypeError(f"{text}: expected a number {expected}".rstrip())
        return value

    return read


def _read(text: str, kind: Callable[[str], Any], name: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from error


at_least_one = whole(1)
not_negative = number(least=0)
share = number(above=0, below=1)
