"""Several processes from one command: `palate train --launch.nproc N` starts itself under torchrun, with the same arguments.

Everything that torchrun knows stays possible by starting it by hand: `torchrun ... -m palate train ...` is the same command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from palate.errors import Interrupted, ModelError
from palate.training.resume import last_complete
from palate.training.settings import LaunchSettings

LAUNCHED = "LOCAL_RANK"
"""Set by torchrun, accelerate and every other launcher in the processes that they start."""

PARENT = "PALATE_PARENT"
"""Set for processes that `start` waits for: it speaks for them when they were interrupted."""


def wanted(launch: LaunchSettings) -> bool:
    """Whether processes are to be started, and this is not one of them."""
    return launch.nproc is not None and LAUNCHED not in os.environ


POLL = 0.2  # seconds between two looks at the processes

FINISHED = "run.json"
"""What a run writes last."""


def _interrupt_workers(launcher: int) -> bool:
    """Ctrl-C for the workers, not for torchrun itself, which would end them within seconds; False while there are none yet."""
    try:
        workers = psutil.Process(launcher).children()
        for worker in workers:
            worker.send_signal(signal.SIGINT)
    except psutil.Error:  # it ended meanwhile
        return True
    return bool(workers)


def newest_checkpoint(directory: Path) -> Path | None:
    """The last whole checkpoint of a run, or of the member of it (`model.members`) that wrote last."""
    whole = [found for run in (directory, *directory.glob("member-*")) if (found := last_complete(run))]
    return max(whole, key=lambda found: found.stat().st_mtime, default=None)


def start(launch: LaunchSettings, arguments: Sequence[str], directory: str | Path) -> None:
    """Run `palate train` with these arguments in `nproc` processes on this machine, and wait for them.

    Ctrl-C is passed on to the processes, which finish their step, save a checkpoint and end. Raises Interrupted after that, and ModelError when one
    of them failed (torchrun ends the others; what went wrong stands above).
    """
    where = ["--standalone"]
    if launch.nnodes > 1:
        where = [f"--nnodes={launch.nnodes}", f"--node_rank={launch.node_rank}", f"--rdzv_endpoint={launch.rendezvous}", "--rdzv_backend=c10d"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc_per_node={launch.nproc}", "-m", "palate", "train", *arguments]
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, PARENT: str(os.getpid())})
    received: list[int] = []

    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in (signal.SIGINT, signal.SIGTERM)}
    passed_on = 0
    try:
        while (code := process.poll()) is None:
            if len(received) > passed_on and _interrupt_workers(process.pid):
                passed_on = len(received)
            time.sleep(POLL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found = newest_checkpoint(Path(directory))
    left = f"the last checkpoint is {found}; go on with --resume" if found else "there is no checkpoint yet"
    if received and not (Path(directory) / FINISHED).is_file():
        raise Interrupted(f"stopped; {left}")
    if code:
        raise ModelError(f"one of {launch.nproc} processes failed (see above); {left}")
