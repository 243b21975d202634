"""The README.md of a checkpoint, in the Hub's form, from what was recorded and measured; a fact that is not on disk has no line.

Read are the contract, the configuration, the settings and the record of the run, and results files. The metadata follow the Hub's model card
specification (model-index), so that scores show beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from palate.errors import StorageError
from palate.reports.checkpoint_files import ADAPTER, RESULTS, CheckpointFiles, on_hub, read_checkpoint
from palate.reports.files import compares, read_result
from palate.reports.findings import findings
from palate.reports.index_sections import Entry, index_sections
from palate.reports.markdown import escaped, section_lines, table_lines
from palate.reports.result_sections import benchmark_section
from palate.reports.sections import facts, plain, table
from palate.reports.training_sections import best_evaluation, encoded_rows, final_row
from palate.reports.wording import count, duration, number, percent, short_number, shortened

CARD = "README.md"
NAME = 120  # characters of a name in the metadata, on one line
QUESTION, ANSWER = "How do I boil an egg?", "Ten minutes in boiling water, then cold water."


def model_card(directory: Path, *, results: Sequence[Path] = ()) -> str:
    """The card's text. `results`: results.json files; unset, the one in the folder, where there is one."""
    files = read_checkpoint(directory)
    entries = [Entry(path, read_result(path), None) for path in _results_of(files, results)]
    lines = [f"# {escaped(files.name)}", "", *_lead(files)]
    for part in (_measured(entries), _limits(entries), _reading(files), _loading(files), _contract(files), _training(files), _versions(files)):
        lines += part
    return f"---\n{yaml.safe_dump(metadata(files, entries), sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines).rstrip() + "\n"


def write_model_card(directory: Path, *, results: Sequence[Path] = ()) -> Path:
    """Write README.md into the checkpoint's folder, over an older one. Returns its path."""
    text, path = model_card(directory, results=results), Path(directory) / CARD
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error
    return path


def _results_of(files: CheckpointFiles, results: Sequence[Path]) -> list[Path]:
    own = files.directory / RESULTS
    return [Path(path) for path in results] or ([own] if own.is_file() else [])


# --- metadata -------------------------------------------------------------------------------------------------------------------------------------


def metadata(files: CheckpointFiles, entries: Sequence[Entry]) -> dict[str, Any]:
    """What the Hub reads. No licence: none is recorded."""
    adapter = bool(files.adapter)
    data: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-classification"}
    data["tags"] = ["reward-model", "palate", *([str(files.adapter.get("peft_type", "")).lower()] if files.adapter.get("peft_type") else [])]
    if on_hub(files.base_model):
        data["base_model"] = files.base_model
    datasets = list(dict.fromkeys(source["path"] for source in files.sources if on_hub(source.get("path"))))
    if datasets:
        data["datasets"] = datasets
    if entries:
        data["model-index"] = [{"name": files.name, "results": [_indexed(entry) for entry in entries]}]
    return data


def _indexed(entry: Entry) -> dict[str, Any]:
    benchmark = entry.result.get("benchmark")
    metrics = []
    if benchmark:
        row = benchmark["scores"][benchmark["primary"]]
        kind = "accuracy" if entry.score()[3] == "share" else benchmark["primary"]
        metrics.append(_metric(kind, benchmark["primary"], row["value"], row.get("interval"), row.get("n"), entry.result))
    if compares(entry.result):
        metrics.append(_metric("accuracy", "accuracy over comparisons", entry.result["accuracy"], entry.result["interval"], entry.result["n"], entry.result))
    return {
        "task": {"type": "text-classification", "name": "Ranking of responses"},
        "dataset": {"name": shortened(entry.name, NAME), "type": shortened(benchmark["name"] if benchmark else entry.name, NAME)},
        "metrics": metrics,
    }


def _metric(kind: str, name: str, value: float, interval: Any, n: int | None, result: Mapping[str, Any]) -> dict[str, Any]:
    known = {"interval": list(interval) if interval else None, "confidence": result.get("confidence"), "n": n}
    return {"type": kind, "name": shortened(name, NAME), "value": value, "args": {key: part for key, part in known.items() if part is not None}}


# --- what it is and how good ----------------------------------------------------------------------------------------------------------------------


def _lead(files: CheckpointFiles) -> list[str]:
    outputs = (files.contract.get("readout") or {}).get("outputs") or ["reward"]
    given = "one number, the reward" if len(outputs) == 1 else f"{len(outputs)} numbers ({', '.join(map(escaped, outputs))})"
    sentences = [f"A reward model: it reads a conversation and gives {given}; higher is better."]
    if files.base_model:
        shown = files.base_model if on_hub(files.base_model) else f"{'/'.join(Path(files.base_model).parts[-2:])} (a local folder)"
        sentences.append(f"Trained from {escaped(shown)}.")
    if files.parameters:
        what = "The adapter has" if files.adapter else "It has"
        sentences.append(f"{what} {count(files.parameters)} parameters.")
    return [" ".join(sentences), ""]


def _measured(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    lines = ["## Measured", "", *section_lines(index_sections(entries)[0], 3)[2:]]
    for entry in entries:
        if section := benchmark_section(entry.result):
            lines += section_lines(section, 3)
    return lines


def _limits(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        if compares(entry.result) and (sentences := findings(entry.result)):
            lines += [f"On {escaped(entry.name)}:", "", *(f"- {escaped(sentence)}" for sentence in sentences), ""]
    return ["## Limits that were measured", "", *lines] if lines else []


def _reading(files: CheckpointFiles) -> list[str]:
    rewards = files.contract.get("rewards")
    if not rewards:
        return []
    spread = f"mean {number(rewards['mean'])} and standard deviation {number(rewards['std'])}"
    text = (
        f"On {count(rewards['comparisons'])} held-out comparisons rewards had {spread}. As the probability that a response with reward a is preferred to one "
        f"with reward b, sigmoid((a - b) / {number(rewards['temperature'])}) fitted their labels best."
    )
    return ["## Reading the reward", "", text, ""]


# --- loading --------------------------------------------------------------------------------------------------------------------------------------


def _loading(files: CheckpointFiles) -> list[str]:
    if not files.contract:
        return []
    chat = has_template(files)
    lines = ["## Loading", "", "With palate, which first checks that the recorded examples get their recorded scores:", "", *_code(_with_palate(files, chat))]
    if plain_checkpoint(files):
        lines += ["With transformers alone:", "", *_code(_with_transformers(files, chat))]
    elif files.adapter:
        lines += [f"This is an adapter ({ADAPTER}); `palate merge` makes it a full checkpoint that transformers loads alone.", ""]
    return lines


def has_template(files: CheckpointFiles) -> bool:
    return files.contract.get("chat_template_sha256") is not None


def plain_checkpoint(files: CheckpointFiles) -> bool:
    """Whether transformers alone reads the reward: a full checkpoint whose reward is a weighted sum of its outputs."""
    readout = files.contract.get("readout") or {}
    return bool(files.config) and not files.adapter and not readout.get("aggregate") and files.contract.get("eos_id") is not None


def _code(lines: Iterable[str]) -> list[str]:
    return ["```python", *lines, "```", ""]


def _folder(files: CheckpointFiles) -> str:
    return f"folder = {json.dumps(files.name, ensure_ascii=False)}  # this folder, or its id on the Hub"


def _with_palate(files: CheckpointFiles, chat: bool) -> Iterator[str]:
    yield "from palate import load_scorer"
    yield ""
    yield _folder(files)
    if chat:
        yield f'messages = [{{"role": "user", "content": "{QUESTION}"}}, {{"role": "assistant", "content": "{ANSWER}"}}]'
        yield "print(load_scorer(folder).score([messages]))"
    else:
        yield f'print(load_scorer(folder).score([("{QUESTION}", "{ANSWER}")]))'


def _with_transformers(files: CheckpointFiles, chat: bool) -> Iterator[str]:
    contract = files.contract
    prefix, eos, weights = list(contract.get("prefix_ids") or []), contract["eos_id"], (contract.get("readout") or {}).get("weights") or [1.0]
    text_end = contract.get("text_end")
    yield "import torch"
    yield "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
    yield ""
    yield _folder(files)
    yield "tokenizer = AutoTokenizer.from_pretrained(folder)"
    yield "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()"
    if chat:
        yield f'messages = [{{"role": "user", "content": "{QUESTION}"}}, {{"role": "assistant", "content": "{ANSWER}"}}]'
        yield "text = tokenizer.apply_chat_template(messages, tokenize=False)"
    else:
        yield f'text = "{QUESTION}" + {json.dumps(contract.get("separator") or "")} + "{ANSWER}"' + (f" + {json.dumps(text_end)}" if text_end else "")
    yield 'ids = tokenizer(text, add_special_tokens=False)["input_ids"]'
    if prefix:
        yield f"if ids[:{len(prefix)}] != {prefix}:  # what starts a sequence stands there once"
        yield f"    ids = {prefix} + ids"
    if not chat and text_end is None:  # a template writes its end itself, and so did another trainer
        yield f"if ids[-1] != {eos}:  # and so does what ends it"
        yield f"    ids = ids + [{eos}]"
    yield "with torch.no_grad():"
    yield "    outputs = model(torch.tensor([ids])).logits[0].float()"
    yield "print(outputs.item())" if len(weights) == 1 and weights[0] == 1.0 else f"print((outputs @ torch.tensor({weights})).item())"


# --- records --------------------------------------------------------------------------------------------------------------------------------------

POOLED = {"last": "the last token", "first": "the first token", "mean": "the mean over tokens"}
BEYOND = {"drop": "left out, and counted", "truncate_prompt": "the start of the prompt is cut, never the response", "error": "refused"}


def _contract(files: CheckpointFiles) -> list[str]:
    contract = files.contract
    if not contract:
        return []
    policy, pooling = contract.get("length_policy"), contract.get("pooling")
    rows = [
        ("architecture", plain(contract.get("architecture"))),
        ("read at", POOLED.get(str(pooling), plain(pooling))),
        ("most tokens", plain(contract.get("max_length"))),
        ("longer sequences in training", BEYOND.get(str(policy), plain(policy))),
        ("chat template (SHA-256)", plain(contract.get("chat_template_sha256"))),
        ("ids that start every sequence", ", ".join(map(str, contract.get("prefix_ids") or [])) or None),
        ("id that ends every sequence", _id(contract.get("eos_id"))),
        ("padding id", _id(contract.get("pad_id"))),
        ("weights, head", plain([contract.get("weights_dtype"), contract.get("head_dtype")])),
        ("outputs and their weights in the reward", _outputs(contract)),
        ("learned thresholds", plain(contract.get("loss_parameters"))),
        ("recorded examples", plain(len(contract.get("golden") or []))),
    ]
    return ["## The contract", "", "`reward_contract.json` records what stands between a conversation and its number:", "", *table_lines(facts(rows))]


def _id(value: Any) -> str | None:
    return None if value is None else str(value)


def _outputs(contract: Mapping[str, Any]) -> str | None:
    readout = contract.get("readout") or {}
    pairs = list(zip(readout.get("outputs") or [], readout.get("weights") or [], strict=False))
    return None if len(pairs) < 2 else ", ".join(f"{name} {short_number(weight)}" for name, weight in pairs)


TRAINED = {
    "num_train_epochs": "epochs",
    "max_steps": "steps at most",
    "per_device_train_batch_size": "groups a device and step",
    "gradient_accumulation_steps": "steps accumulated",
    "lr_scheduler_type": "learning rate schedule",
    "warmup_steps": "warm-up steps",
    "weight_decay": "weight decay",
    "bf16": "bfloat16 autocast",
    "seed": "seed",
}
RECORDED = {
    "hardware": "hardware",
    "command": "command",
    "started": "started",
    "finished": "finished",
    "parameters": "parameters",
    "trained_parameters": "trained parameters",
    "world_size": "processes",
    "peak_memory_gib": "peak memory, GiB",
    "model_revision": "revision of the base model",
    "prompts_in_both_sets": "prompts in training and evaluation data alike",
}
"""Keys of run.json that a card shows where they are there."""


def _training(files: CheckpointFiles) -> list[str]:
    training, run = files.settings.get("training") or {}, files.run
    log = run.get("log_history") or []
    best, last = best_evaluation(log), final_row(log)
    rows = [
        ("loss", _loss(files.settings.get("loss"))),
        ("adapter", plain((files.settings.get("model") or {}).get("adapter"))),
        *((name, plain(training[key])) for key, name in TRAINED.items() if key in training),
        ("learning rate", plain(run.get("learning_rate"))),
        ("steps", plain(log[-1].get("step")) if log else None),
        ("tokens", plain(next((row["num_tokens"] for row in reversed(log) if "num_tokens" in row), None))),
        ("time", duration(last.get("train_runtime"))),
        ("best held-out accuracy", f"{percent(best[1])} at step {count(best[0])}" if best else None),
        ("computed", plain((run.get("packing") or {}).get("packing"))),
        *((name, plain(run[key])) for key, name in RECORDED.items() if key in run),
        ("data fingerprint", plain(run.get("data_fingerprint") or files.contract.get("data_fingerprint"))),
    ]
    shown, sources = facts(rows), encoded_rows(run.get("encoded"))
    if not shown.rows and not sources:
        return []
    lines = ["## Training", "", *table_lines(shown)]
    if sources:
        headings = ("set", "source", "groups", "kept", "with a cut prompt", "dropped")
        lines += table_lines(table(headings, sources, words=2, caption="Data: what became of every group"))
    bad = [(source["source"], count(source["rows"]), plain(source["bad_rows"])) for source in run.get("sources") or [] if source.get("bad_rows")]
    return lines + (table_lines(table(("source", "rows", "could not be used"), bad)) if bad else [])


def _loss(loss: Mapping[str, Any] | None) -> str | None:
    """Terms with the options that are set, and what is set beside them."""
    if not loss:
        return None
    terms = [_term(term) for term in loss.get("terms") or [] if term.get("type")]
    beside = [f"{key} {plain(value)}" for key, value in loss.items() if key != "terms" and value and plain(value)]
    return "; ".join([*terms, *beside]) or None


def _term(term: Mapping[str, Any]) -> str:
    options = [f"{key} {plain(value)}" for key, value in term.items() if key != "type" and value and plain(value) and (key, value) != ("weight", 1.0)]
    return str(term["type"]) + (f" ({', '.join(options)})" if options else "")


def _versions(files: CheckpointFiles) -> list[str]:
    versions = files.run.get("versions") or files.contract.get("versions")
    return ["## Versions", "", *table_lines(facts((name, plain(value)) for name, value in versions.items()))] if versions else []
