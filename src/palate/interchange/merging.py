"""An adapter and its base as one full checkpoint with the same contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from palate.errors import ModelError, StorageError
from palate.models.checkpoints import CONTRACT_NAME, read_contract, whole_directory
from palate.models.reward_model import load_pretrained, load_tokenizer
from palate.scoring.contract import check_saved
from palate.scoring.laplace import LAPLACE_NAME


def merge_saved(adapter: str | Path, output: str | Path) -> None:
    """An adapter folder merged into its base and saved as a full checkpoint with the same contract, checked by its golden examples.

    Raises ModelError for a folder without an adapter, ContractError where the merged model scores differently, StorageError where `output` is occupied.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ModelError(f"{adapter}: has no adapter_config.json; give the folder of an adapter")
    if not (Path(adapter) / CONTRACT_NAME).is_file():
        raise ModelError(f"{adapter}: has no {CONTRACT_NAME} to check the merged model by; `palate import` makes a checkpoint of another trainer's adapter")
    refuse_occupied(output)
    contract = read_contract(adapter)
    model = load_pretrained(str(adapter), outputs=contract.readout.outputs, dtype=getattr(torch, contract.weights_dtype))
    with whole_directory(output) as part:
        model.save_pretrained(part)
        load_tokenizer(str(adapter)).save_pretrained(part)
        contract.save(part)
        check_saved(part)
        if (Path(adapter) / LAPLACE_NAME).is_file():  # the head is the same, and so is what is known of it
            shutil.copyfile(Path(adapter) / LAPLACE_NAME, part / LAPLACE_NAME)


def refuse_occupied(output: str | Path) -> None:
    if Path(output).is_file() or (Path(output).exists() and any(Path(output).iterdir())):
        raise StorageError(f"{output}: is not empty; give a new folder")
