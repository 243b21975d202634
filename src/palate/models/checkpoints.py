"""The saved contract: a plain `*ForSequenceClassification` directory plus `reward_contract.json`, which says how to get the same reward again.

The contract records everything between a conversation and its number: template, framing, length policy, pooling, dtypes, how the rewards are
distributed, and golden examples (text, ids, score) that `load_scorer` replays before it trusts the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import cached_file

from palate.errors import ContractError, StorageError
from palate.types import Readout

CONTRACT_NAME = "reward_contract.json"
CONTRACT_VERSION = 1
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a replayed golden score in float32: other CPUs and batch shapes reorder sums, which moves rewards by about 1e-6."""

ROUNDED_TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}
"""The same for 16-bit backbones: a few steps of their 8 or 11 significant bits."""

RECORDED_PACKAGES = ("palate", "torch", "transformers", "tokenizers", "peft")


@dataclass(frozen=True)
class Golden:
    """One replayable example: `exchange` as JSON (prompt, response), the rendered text, its ids and the float32 score."""

    exchange: dict[str, Any]
    text: str
    ids: list[int]
    score: float


@dataclass(frozen=True)
class RewardStatistics:
    """Rewards measured on held-out comparisons: mean and standard deviation over responses, temperature T of sigmoid((r_c - r_r) / T)."""

    mean: float
    std: float
    temperature: float
    comparisons: int


@dataclass(frozen=True)
class RewardContract:
    architecture: str
    pooling: str  # last | first | mean
    max_length: int | None
    length_policy: str
    separator: str
    chat_template_sha256: str | None
    prefix_ids: list[int]  # put in front of every sequence, once
    eos_id: int  # ends every sequence, once
    pad_id: int
    text_end: str | None = None  # of a model of another trainer: what it put behind plain text in place of EOS
    head_dtype: str = "float32"
    weights_dtype: str = "float32"
    readout: Readout = field(default_factory=Readout)  # how a reward is read from the head's outputs
    loss_parameters: dict[str, list[float]] = field(default_factory=dict)  # what the loss learned beside the model (thresholds)
    rewards: RewardStatistics | None = None  # None: no held-out comparisons were given
    golden: list[Golden] = field(default_factory=list)
    data_fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    contract_version: int = CONTRACT_VERSION

    def sha256(self) -> str:
        """Identity of what decides a reward: everything but the statistics, which are measured afterwards."""
        decides = {key: value for key, value in asdict(self).items() if key != "rewards"}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        path = Path(directory) / CONTRACT_NAME
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def score_tolerance(dtype: Any) -> float:
    """Relative tolerance of a replayed golden score for a backbone of this dtype (a torch dtype or its name)."""
    return ROUNDED_TOLERANCE.get(str(dtype).removeprefix("torch."), GOLDEN_TOLERANCE)


def find_contract(name_or_path: str | Path, revision: str | None = None) -> Path | None:
    """Where the contract of a folder or hub id lies; None when it has none."""
    return find_beside(name_or_path, CONTRACT_NAME, revision)


def find_beside(name_or_path: str | Path, name: str, revision: str | None = None) -> Path | None:
    """Where a file of this name lies in a folder or hub id; None when there is none."""
    found = cached_file(str(name_or_path), name, revision=revision, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    return Path(found) if found else None


def _readout(data: dict[str, Any] | None) -> Readout:
    """Contracts of before there were several outputs have none: one reward."""
    if data is None:
        return Readout()
    return Readout(tuple(data["outputs"]), tuple(data["weights"]), data["aggregate"], data["separator"])


def read_contract(name_or_path: str | Path, revision: str | None = None) -> RewardContract:
    """The contract of a checkpoint. Raises ContractError when it is absent, broken, or newer than this version reads."""
    path = find_contract(name_or_path, revision)
    if path is None:
        raise ContractError(f"{name_or_path}: no {CONTRACT_NAME}, so nothing says how this checkpoint was trained; models saved by palate have one")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("contract_version") != CONTRACT_VERSION:
            raise ContractError(f"{path}: contract_version is {data.get('contract_version')}, this palate reads {CONTRACT_VERSION}; upgrade palate")
        data["golden"] = [Golden(**golden) for golden in data["golden"]]
        data["readout"] = _readout(data.get("readout"))
        data["rewards"] = RewardStatistics(**data["rewards"]) if data["rewards"] else None
        return RewardContract(**data)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ContractError(f"{path}: not a readable contract: {error}") from error


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- writing --------------------------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a neighbour first, then renamed over the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}") from error


@contextmanager
def whole_directory(target: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes (part of) `target` only when everything was written; on a full disk nothing of it remains."""
    target = Path(target)
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(part.iterdir()):
            os.replace(path, target / path.name)
        part.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StorageError(f"{target}: the checkpoint could not be written ({error}); nothing half-written was left. Free some space and run again") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
