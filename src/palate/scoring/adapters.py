"""LoRA adapters of one base model as Scorers on one backbone: an ensemble of many in the memory of a single model.

Each is switched on for its own calls and stays unmerged, so its rewards are those of the merged model up to rounding, at the price of its extra products.
`model.members` trains such adapters. Source: Zhai et al. 2024 (arXiv 2401.00243), ensembles of LoRA adapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.errors import ModelError
from palate.models.checkpoints import CONTRACT_NAME, read_contract
from palate.models.reward_model import fit_tokenizer, load_pretrained, load_tokenizer
from palate.scoring.local import LocalScorer, load_scorer
from palate.types import Conversation, Exchange

ADAPTER_CONFIG = "adapter_config.json"

OF_SCORERS = ("verify", "device", "token_budget", "packing", "max_length", "revision")
"""Options of `load_scorer` that say nothing of how the base is loaded."""


def member_folder(directory: str | Path, member: int) -> Path:
    """Where member 1, 2, ... of a run with `model.members` lies."""
    return Path(directory) / f"member-{member}"


def member_folders(directory: str | Path) -> list[str]:
    """The finished members of such a run, in order."""
    found: list[str] = []
    while (member := member_folder(directory, len(found) + 1)).joinpath(CONTRACT_NAME).is_file():
        found.append(str(member))
    return found


class AdapterScorer:
    """A checkpoint whose adapter is switched on in the shared backbone before each call."""

    def __init__(self, local: LocalScorer, backbone: Any, adapter: str):
        self.local, self.backbone, self.adapter = local, backbone, adapter

    def score(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> np.ndarray:
        self.backbone.set_adapter(self.adapter)
        return self.local.score(conversations, **options)


def share_a_backbone(folders: Sequence[str]) -> bool:
    """Whether all are LoRA adapters of one base with one reward each, in one precision, so that `load_adapters` can put them on one backbone."""
    if not all((Path(folder) / name).is_file() for folder in folders for name in (ADAPTER_CONFIG, CONTRACT_NAME)):
        return False
    configs = [json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8")) for folder in folders]
    if any(config["peft_type"] != "LORA" or config["bias"] != "none" for config in configs):  # other biases change the base itself
        return False
    contracts = [read_contract(folder) for folder in folders]
    kinds = {(config["base_model_name_or_path"], contract.weights_dtype, contract.readout) for config, contract in zip(configs, contracts, strict=True)}
    return len(kinds) == 1 and len(contracts[0].readout.outputs) == 1


def load_adapters(folders: Sequence[str], *, dtype: Any = None, **options: Any) -> Iterator[AdapterScorer]:
    """Adapters that share a backbone, each verified by its own contract as it is loaded. Options as `load_scorer` takes them."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelError(f"{folders[0]} holds an adapter, which needs the peft package: pip install 'palate[peft]'") from error
    contract, name = read_contract(folders[0]), str(PeftConfig.from_pretrained(folders[0]).base_model_name_or_path)
    loading = {key: value for key, value in options.items() if key not in OF_SCORERS}
    base = load_pretrained(name, outputs=contract.readout.outputs, dtype=dtype or contract.weights_dtype, **loading)
    fit_tokenizer(base, load_tokenizer(folders[0]))
    backbone: Any = None
    for number, folder in enumerate(folders, 1):
        adapter = f"member-{number}"
        try:
            if backbone is None:
                backbone = PeftModel.from_pretrained(base, folder, adapter_name=adapter)
            else:
                backbone.load_adapter(folder, adapter_name=adapter)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: the adapter does not fit the base of {folders[0]} ({error})") from error
        backbone.set_adapter(adapter)
        yield AdapterScorer(load_scorer(folder, model=backbone, **options), backbone, adapter)
