"""Does a folder keep its own contract, and does its config say what raw rewards need? The checks that hold whoever the consumer is."""

from __future__ import annotations

from collections.abc import Iterator

from palate.errors import PalateError
from palate.interchange.doctor.checks import OWN_PAD, Check, Folder
from palate.interchange.layouts import ADAPTER_WEIGHTS, head_tensors
from palate.interchange.weights import find_weights, read_json
from palate.models.checkpoints import CONTRACT_NAME, package_versions, read_contract
from palate.scoring.gated import GATE_NAME
from palate.scoring.local import contract_problems, load_scorer


def own_checks(folder: Folder) -> Iterator[Check]:
    """Those on files come first and need no weights."""
    if folder.is_adapter:
        yield from _adapter_checks(folder)
    elif not (folder.path / "config.json").is_file():
        yield Check("config.json", False, f"{folder.path} has no config.json; give the folder of a checkpoint or of an adapter")
        return
    else:
        yield from _config_checks(folder)
        yield from _tokenizer_checks(folder)
    yield from _contract_checks(folder)


def _config_checks(folder: Folder) -> Iterator[Check]:
    config, outputs, labels = folder.config, folder.outputs, folder.labels
    named = folder.architecture.endswith("ForSequenceClassification")
    advice = "consumers look for *ForSequenceClassification" + ("" if named else "; `palate import` makes one of another stack's model")
    yield Check("architecture", named, f"{folder.architecture}; {advice}")
    if len(outputs) == 1:
        more = "" if len(labels) == 1 else " (two where config.json names none): AutoModel builds a head of as many, vLLM a softmax. `palate import` writes one"
        yield Check("one label", len(labels) == 1, f"labels: {', '.join(labels)}{more}")
    else:
        yield Check(
            "labels",
            labels == list(outputs),
            f"id2label names {', '.join(labels)}, the contract {', '.join(outputs)}; other tools give all of them, `palate score` one reward from them",
        )
    yield Check(
        "raw scores",
        config.get("problem_type") == "regression",
        f"problem_type is {config.get('problem_type')!r}; 'regression' keeps pipelines and vLLM from a sigmoid, and `palate import` writes it",
    )
    activation = (config.get("sentence_transformers") or {}).get("activation_fn")
    yield Check(
        "sentence-transformers activation",
        activation == "torch.nn.modules.linear.Identity",
        f"activation_fn is {activation}; Identity keeps CrossEncoder raw, and `palate import` writes it",
    )


def _adapter_checks(folder: Folder) -> Iterator[Check]:
    """An adapter: its head must be among what it saved, or every load starts from a random one."""
    config = read_json(folder.path / "adapter_config.json")
    yield Check("adapter", True, f"{config.get('peft_type')} on {config.get('base_model_name_or_path')}; {folder.merging}")
    weights = find_weights(folder.path, ADAPTER_WEIGHTS)
    names = weights.names() if weights else []
    heads = head_tensors(names)
    lost = "; the reward would be read by random weights. Train it with task_type SEQ_CLS, or with the head among modules_to_save"
    yield Check("head", bool(heads), f"{len(names)} tensors, head: {', '.join(heads)}" if heads else f"none among {len(names)} tensors{lost}")
    yield _fast_tokenizer(folder)


def _tokenizer_checks(folder: Folder) -> Iterator[Check]:
    yield _fast_tokenizer(folder)
    if folder.tokenizer is None:
        yield Check(
            "tokenizer", False, f"{folder.path}: no tokenizer could be loaded; put that of the trained model there, or `palate import --tokenizer` does"
        )
        return
    pad, eos = folder.tokenizer.pad_token_id, folder.tokenizer.eos_token_id
    yield Check("pad token", pad is not None, f"pad id {pad}" if pad is not None else f"none, so batches of several rows fail. {OWN_PAD}")
    same = pad is not None and pad == eos
    yield Check("pad is not EOS", not same, f"pad id {pad}, EOS id {eos}" + (f": transformers pools the token before EOS. {OWN_PAD}" if same else ""))
    text = folder.config.get("text_config") or {}
    recorded, rows = folder.config.get("pad_token_id", text.get("pad_token_id")), folder.config.get("vocab_size", text.get("vocab_size"))
    within = recorded is None or rows is None or recorded < rows
    yield Check(
        "pad id agrees",
        recorded == pad and within,
        f"config says {recorded}, tokenizer {pad}"
        + ("" if within else f", but the embedding has {rows} rows: transformers does not load it")
        + ("" if recorded == pad and within else ". `palate import` makes them agree"),
    )


def _fast_tokenizer(folder: Folder) -> Check:
    there = (folder.path / "tokenizer.json").is_file()
    return Check(
        "fast tokenizer", there, "tokenizer.json" + ("" if there else " is not there, which TEI reads alone; `palate import` writes it, where there can be one")
    )


def _contract_checks(folder: Folder) -> Iterator[Check]:
    try:
        contract = read_contract(folder.path)
    except PalateError as error:
        absent = not (folder.path / CONTRACT_NAME).is_file()
        yield Check(CONTRACT_NAME, False, str(error) + ("; `palate import` writes one" if absent else ""))
        return
    yield Check(CONTRACT_NAME, True, f"pooling {contract.pooling}, max_length {contract.max_length}, {contract.length_policy}")
    mine = package_versions()
    others = [f"{name} {theirs} (here {mine.get(name)})" for name, theirs in contract.versions.items() if mine.get(name) != theirs]
    yield Check("versions", True, "same as at saving" if not others else "differ: " + ", ".join(others) + "; golden scores decide")
    yield Check("reward statistics", True, "measured" if contract.rewards else "not measured; `palate eval --record` writes mean, spread and temperature")
    if (folder.path / GATE_NAME).is_file():
        names = ", ".join(contract.readout.outputs)
        yield Check("gate", True, f"weighs {names} by the prompt where palate opens the folder; load_scorer and other tools give the attributes alone")
    try:
        scorer = load_scorer(folder.path, verify=False)
    except PalateError as error:
        yield Check("loads", False, str(error))
        return
    problems = contract_problems(scorer)
    found = f"{len(contract.golden)} golden examples reproduced" if contract.golden else "no golden examples were recorded"
    yield Check("golden examples", not problems, found if not problems else "; ".join(problems))
