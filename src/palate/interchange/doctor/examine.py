"""`examine(folder, consumers)`: every check of a saved reward model, its own first, then those of each consumer that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from palate.errors import ConfigError
from palate.interchange.doctor import python_consumers, servers, trainers
from palate.interchange.doctor.checks import Check, Folder
from palate.interchange.doctor.own import own_checks

CONSUMERS: dict[str, Callable[[Folder], Iterator[Check]]] = {
    "transformers": python_consumers.transformers_checks,
    "sentence-transformers": python_consumers.sentence_transformers_checks,
    "trl": python_consumers.trl_checks,
    "vllm": servers.vllm_checks,
    "sglang": servers.sglang_checks,
    "tei": servers.tei_checks,
    "verl": servers.verl_checks,
    "openrlhf": trainers.openrlhf_checks,
    "nemo-rl": trainers.nemo_rl_checks,
    "ms-swift": python_consumers.ms_swift_checks,
    "rewardbench": python_consumers.rewardbench_checks,
    "llamafactory": trainers.llamafactory_checks,
    "deepspeed-chat": trainers.deepspeed_chat_checks,
}
"""Consumer -> its checks. The last two read a layout of their own."""


def consumers_of(names: Sequence[str]) -> list[str]:
    """The consumers named, in the table's order. Raises ConfigError for one that is not there."""
    if unknown := [name for name in names if name not in CONSUMERS]:
        raise ConfigError(f"--for {', '.join(unknown)}: expected all, or some of {', '.join(CONSUMERS)}")
    return [name for name in CONSUMERS if name in names]


def examine(directory: str | Path, consumers: Sequence[str] = ()) -> Iterator[Check]:
    """All checks of a folder; a consumer's begin with its name. A folder in another stack's layout has no contract to keep: its consumer's checks alone."""
    folder = Folder(Path(directory))
    if folder.is_classifier or not consumers:
        yield from own_checks(folder)
    for name in consumers_of(consumers):
        for check in CONSUMERS[name](folder):
            yield check._replace(name=f"{name}: {check.name}")
