"""What can go wrong, one class per boundary, each with the exit code of the command line.

    PalateError (ValueError)
    |- ConfigError       exit 2   a key, flag or value of the configuration
    |- DataError         exit 3   a file or a row of preference data
    |  `- RowError                one row; the loader adds where it stands
    |- ModelError        exit 4   a model, tokenizer or checkpoint that cannot be used as a reward model
    |  `- ContractError           a checkpoint that does not reproduce its own recorded scores
    |- StorageError      exit 5   the disk: full, unwritable, or holding another run
    `- Interrupted       exit 130 stopped by Ctrl-C or SIGTERM after a resumable checkpoint was written

Every message says what was got, what was expected, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PalateError(ValueError):
    """Base of all errors that are the user's to mend."""

    exit_code = 1


class ConfigError(PalateError):
    exit_code = 2


class DataError(PalateError):
    exit_code = 3


class RowError(DataError):
    """One row that cannot be used. `kind` is the short name under which such rows are counted."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class ModelError(PalateError):
    exit_code = 4


class ContractError(ModelError):
    pass


class StorageError(PalateError):
    exit_code = 5


class Interrupted(PalateError):
    exit_code = 130


def tally(counts: Mapping[Any, int], none: str = "nothing") -> str:
    """How messages name counts: "3 x both tie, 1 x empty response"; what was counted 0 times is left out."""
    return ", ".join(f"{count} x {what}" for what, count in counts.items() if count) or none
