"""Does a saved reward model keep its contract, and will its consumers read the raw reward? One check a line, each with what to do.

Consumers and their rules: transformers' pipeline and AutoModel, sentence-transformers' CrossEncoder, TRL's GRPO, vLLM and TEI (which read
`id2label`, `problem_type`, the architecture's name and the tokenizer's pad token off the directory).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from palate.errors import PalateError
from palate.models.checkpoints import CONTRACT_NAME, package_versions, read_contract
from palate.scoring.local import contract_problems, load_scorer


class Check(NamedTuple):
    name: str
    passed: bool
    advice: str  # what was found, and what to do when it failed


def examine(directory: str | Path) -> Iterator[Check]:
    """All checks of a checkpoint directory; those on files come first and need no weights."""
    directory = Path(directory)
    config_path = directory / "config.json"
    if (directory / "adapter_config.json").is_file():
        yield from _adapter_checks(directory)
        yield from _contract_checks(directory)
        return
    if not config_path.is_file():
        yield Check("config.json", False, f"{directory} has no config.json; give the folder of a full checkpoint")
        return
    config = json.loads(config_path.read_text(encoding="utf-8"))
    yield from _config_checks(config, _outputs(directory))
    yield from _tokenizer_checks(directory, config)
    yield from _contract_checks(directory)


def _outputs(directory: Path) -> tuple[str, ...]:
    """The outputs that the contract names; one reward where there is no contract (which has a check of its own)."""
    try:
        return read_contract(directory).readout.outputs
    except PalateError:
        return ("reward",)


def _config_checks(config: dict, outputs: tuple[str, ...]) -> Iterator[Check]:
    architecture = (config.get("architectures") or ["none"])[0]
    yield Check("architecture", architecture.endswith("ForSequenceClassification"), f"{architecture}; consumers look for *ForSequenceClassification")
    labels = config.get("id2label") or {}
    names = [str(labels[i]) for i in sorted(labels, key=int)]
    if len(outputs) == 1:
        yield Check("one label", len(names) == 1, f"id2label has {len(names)} entries; without exactly one, AutoModel builds a head of 2 and vLLM a softmax")
    else:
        yield Check(
            "labels",
            names == list(outputs),
            f"id2label names {', '.join(names)}, the contract {', '.join(outputs)}; other tools give all of them, `palate score` one reward from them",
        )
    yield Check(
        "raw scores",
        config.get("problem_type") == "regression",
        f"problem_type is {config.get('problem_type')!r}; `regression` keeps pipelines and vLLM from a sigmoid",
    )
    activation = (config.get("sentence_transformers") or {}).get("activation_fn")
    yield Check(
        "sentence-transformers activation", activation == "torch.nn.modules.linear.Identity", f"activation_fn is {activation}; Identity keeps CrossEncoder raw"
    )


def _adapter_checks(directory: Path) -> Iterator[Check]:
    """An adapter: its head must be among what it saved, or every load starts from a random one."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    yield Check("adapter", True, f"{config.get('peft_type')} on {config.get('base_model_name_or_path')}; `palate merge` makes it a full checkpoint")
    weights = directory / "adapter_model.safetensors"
    names = list(safe_open(str(weights), "pt").keys()) if weights.is_file() else []
    heads = [name for name in names if name.rsplit(".", 2)[-2] in ("score", "classifier", "out_proj")]
    yield Check("head", bool(heads), f"{len(names)} tensors, head: {', '.join(heads) or 'none'}; without it the reward is read by random weights")
    yield Check("tokenizer", (directory / "tokenizer.json").is_file(), "tokenizer.json of the trained model, with its chat template")


def _tokenizer_checks(directory: Path, config: dict) -> Iterator[Check]:
    yield Check("fast tokenizer", (directory / "tokenizer.json").is_file(), "tokenizer.json is read by TEI and by fast tokenizers")
    try:
        from palate.models.reward_model import load_tokenizer

        tokenizer = load_tokenizer(str(directory))
    except PalateError as error:
        yield Check("tokenizer", False, str(error))
        return
    pad = tokenizer.pad_token_id
    yield Check("pad token", pad is not None, "without a pad token batches of several rows fail")
    yield Check(
        "pad is not EOS",
        pad is None or pad != tokenizer.eos_token_id,
        f"pad id {pad}, EOS id {tokenizer.eos_token_id}; if equal, transformers pools the token before EOS",
    )
    recorded = config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id"))
    yield Check("pad id agrees", recorded == pad, f"config says {recorded}, tokenizer {pad}")


def _contract_checks(directory: Path) -> Iterator[Check]:
    try:
        contract = read_contract(directory)
    except PalateError as error:
        yield Check(CONTRACT_NAME, False, str(error))
        return
    yield Check(CONTRACT_NAME, True, f"pooling {contract.pooling}, max_length {contract.max_length}, {contract.length_policy}")
    mine = package_versions()
    others = [f"{name} {theirs} (here {mine.get(name)})" for name, theirs in contract.versions.items() if mine.get(name) != theirs]
    yield Check("versions", True, "same as at saving" if not others else "differ: " + ", ".join(others) + "; golden scores decide")
    yield Check("reward statistics", True, "measured" if contract.rewards else "not measured; `palate eval --record` writes mean, spread and temperature")
    try:
        scorer = load_scorer(directory, verify=False)
    except PalateError as error:
        yield Check("loads", False, str(error))
        return
    problems = contract_problems(scorer)
    found = f"{len(contract.golden)} golden examples reproduced" if contract.golden else "no golden examples were recorded"
    yield Check("golden examples", not problems, found if not problems else "; ".join(problems))
