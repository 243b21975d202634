"""Which checkpoint a run goes on from: the last one that was written whole.

A run that dies while it saves leaves a folder with some of its files. Trainer would take it for the newest checkpoint; a mark that is written last, when
every rank has written its part, tells whole ones from others.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from palate.models.checkpoints import write_text

COMPLETE = "complete"
"""Name of the mark; it holds the step."""


def mark_complete(checkpoint: str | Path, step: int) -> None:
    write_text(Path(checkpoint) / COMPLETE, f"{step}\n")


def checkpoints(directory: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that looks like a checkpoint, oldest first."""
    named = re.compile(rf"^{PREFIX_CHECKPOINT_DIR}-(\d+)$")
    found = [(match, path) for path in Path(directory).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (match := named.match(path.name)) and path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in found)


def last_complete(directory: str | Path) -> Path | None:
    """The newest whole checkpoint; None where there is none."""
    whole = [path for _, path in checkpoints(directory) if (path / COMPLETE).is_file()]
    return whole[-1] if whole else None


def remove_incomplete(directory: str | Path) -> list[Path]:
    """Remove what dying runs left half-written; returns what was removed."""
    broken = [path for _, path in checkpoints(directory) if not (path / COMPLETE).is_file()]
    for path in broken:
        shutil.rmtree(path)
    return broken
