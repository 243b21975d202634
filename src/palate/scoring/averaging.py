"""Several checkpoints averaged weight by weight into one: an ensemble at the price of a single model, where all were trained from the same start.

Source: Ramé et al. 2024 (WARM, arXiv 2401.12187). Weights are added in float64 and rounded once. Where only linear heads differ, the average's rewards
are the average of rewards; elsewhere that holds as far as the members lie in one basin, which their common start is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palate.errors import ConfigError, ModelError, StorageError
from palate.models.checkpoints import RewardContract, read_contract, whole_directory
from palate.scoring.contract import build_contract, check_saved
from palate.scoring.local import LocalScorer, exchange_from_json, load_scorer

MUST_AGREE = ("architecture", "pooling", "separator", "chat_template_sha256", "prefix_ids", "eos_id", "pad_id", "text_end", "readout", "length_policy")
"""What of their contracts must be equal for weights of two checkpoints to mean the same."""


def load_average(folders: Sequence[str | Path], **options: Any) -> LocalScorer:
    """The average of several checkpoints (adapters are merged first) as one Scorer; each is verified by its own contract as it is loaded.

    `options` as `load_scorer` takes them. Raises ConfigError for fewer than two, ModelError where they are not of one kind.
    """
    if len(folders) < 2:
        raise ConfigError(f"an average is over two checkpoints at least, got {len(folders)}")
    first = load_scorer(folders[0], **options)
    total = {name: value.double() if value.is_floating_point() else value.clone() for name, value in first.model.state_dict().items()}
    contracts = [first.contract]
    for folder in folders[1:]:
        other = load_scorer(folder, **options)
        _check_alike(first, other, str(folders[0]), str(folder))
        _add(total, other.model.state_dict(), str(folders[0]), str(folder))
        contracts.append(other.contract)
        del other
    first.model.load_state_dict({name: value / len(folders) if value.is_floating_point() else value for name, value in total.items()})
    if first.contract:
        first.contract = _averaged(first.contract, [contract for contract in contracts if contract])
    return first


def average_saved(folders: Sequence[str | Path], output: str | Path, **options: Any) -> None:
    """The average saved as a full checkpoint with a contract of its own, whose golden examples are scored anew and checked.

    Its reward statistics are unknown until `palate eval --record`. Raises StorageError where `output` is occupied, ModelError as `load_average` does.
    """
    if Path(output).exists() and any(Path(output).iterdir()):
        raise StorageError(f"{output}: is not empty; give a new folder")
    scorer = load_average(folders, **options)
    golden = [exchange_from_json(one.exchange) for one in read_contract(folders[0]).golden] if scorer.contract else []
    if scorer.contract:  # the encoder of a loaded scorer drops nothing by itself; what was trained with stays on record
        scorer.encoder.length_policy = scorer.contract.length_policy
    with whole_directory(output) as part:
        scorer.model.save_pretrained(part)
        scorer.tokenizer.save_pretrained(part)
        contract = build_contract(
            scorer.model,
            scorer.encoder,
            golden=golden,
            readout=scorer.readout,
            loss_parameters=scorer.contract.loss_parameters if scorer.contract else None,
            data_fingerprint=scorer.contract.data_fingerprint if scorer.contract else None,
        )
        contract.save(part)
        check_saved(part)


def _averaged(contract: RewardContract, all_of_them: Sequence[RewardContract]) -> RewardContract:
    """The first one's, without what was measured of its own weights."""
    names = contract.loss_parameters
    parameters = {name: np.mean([one.loss_parameters[name] for one in all_of_them], axis=0).tolist() for name in names}
    fingerprints = {one.data_fingerprint for one in all_of_them}
    return replace(contract, golden=[], loss_parameters=parameters, rewards=None, data_fingerprint=fingerprints.pop() if len(fingerprints) == 1 else None)


def _check_alike(first: LocalScorer, other: LocalScorer, name: str, other_name: str) -> None:
    if (first.contract is None) != (other.contract is None):
        raise ModelError(f"{other_name} and {name}: one has a contract, the other none, so nothing says that their weights mean the same")
    if first.contract and other.contract:
        a, b = asdict(first.contract), asdict(other.contract)
        if differ := [key for key in MUST_AGREE if a[key] != b[key]]:
            raise ModelError(f"{other_name} and {name} differ in {', '.join(differ)}; an average is of fine-tunes of one model, under one template")
        if first.contract.loss_parameters.keys() != other.contract.loss_parameters.keys():
            raise ModelError(f"{other_name} and {name} were trained with losses of other parameters; an average is of runs of one kind")
    elif first.encoder.template_hash() != other.encoder.template_hash() or first.encoder.rules != other.encoder.rules:
        raise ModelError(f"{other_name} and {name} have other chat templates or special tokens; an average is of fine-tunes of one model")
    if first.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ModelError(f"{other_name} and {name} have other vocabularies; an average is of fine-tunes of one model")


def _add(total: dict[str, Tensor], state: dict[str, Tensor], name: str, other_name: str) -> None:
    """Add a state to the running sum, in place."""
    if total.keys() != state.keys() or any(total[key].shape != state[key].shape for key in state):
        odd = sorted(total.keys() ^ state.keys()) or [key for key in state if total[key].shape != state[key].shape]
        raise ModelError(f"{other_name} and {name} have other weights ({odd[0]}, {len(odd)} in all); an average is of fine-tunes of one model")
    for key, value in state.items():
        if value.is_floating_point():
            total[key] += value.double()
        elif not torch.equal(total[key], value):
            raise ModelError(f"{other_name} and {name} differ in {key}, which is a whole number and has no average")
