"""Another stack's reward model as a checkpoint of ours: its layout read off the files, what it lacks repaired, every decision said.

The weights become a plain `*ForSequenceClassification`; the chat template ends as the trainer's texts ended (see conventions.py); pad and EOS are told
apart; the contract gets golden examples, scored by the model as it was built and again after it was saved and loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from palate.data.tokenization import Encoder
from palate.errors import ConfigError, ModelError
from palate.interchange.conventions import CONVENTIONS, Convention, text_end, trainer_ids, trainer_of
from palate.interchange.examples import default_examples
from palate.interchange.foreign_model import build_model, runs_code
from palate.interchange.foreign_tokenizer import build_tokenizer, check_ids, give_template
from palate.interchange.import_options import Found, ImportOptions, Say
from palate.interchange.layouts import CLASSIFIERS, detect_layout, trained_by
from palate.interchange.merging import refuse_occupied
from palate.interchange.weights import find_weights, read_json, read_tensors, refuse_code, refuse_pickle
from palate.models.checkpoints import RewardStatistics, whole_directory
from palate.models.reward_model import check_local, fit_tokenizer, load_tokenizer, position_limit
from palate.scoring.contract import build_contract, check_saved
from palate.types import Exchange

IMPORTS = tuple(CONVENTIONS)


def import_model(source: str | Path, output: str | Path, options: ImportOptions | None = None, *, golden: Sequence[Exchange] = (), say: Say = print) -> None:
    """A reward model of another stack, from a folder or hub id, as a checkpoint with a contract in the new folder `output`.

    `say` hears every decision. Raises ConfigError where only the user can decide, and names the flag; ModelError for what is no reward model, or would
    have to be trusted first.
    """
    options = options or ImportOptions()
    if options.format not in ("auto", *IMPORTS):
        raise ConfigError(f"--format {options.format}: expected auto or one of {', '.join(IMPORTS)}")
    refuse_occupied(output)
    folder = local_folder(str(source), options)
    refuse_code(folder, options.trust_remote_code)
    theirs = load_tokenizer(options.tokenizer or str(folder), trust_remote_code=options.trust_remote_code)
    give_template(theirs, options, say)
    found = recognise(folder, options, theirs, say)
    trainer = trainer_of(found.convention, theirs, read_json(folder / "config.json"), options.end_text)
    say(f"conventions: {trainer.name} ({trainer.convention.source}); chats end {_words(trainer.convention)}")
    model, readout = build_model(found, options, say)
    tokenizer = build_tokenizer(trainer, options, say)
    embedding: Any = model.get_input_embeddings()
    if len(tokenizer) > (rows := embedding.num_embeddings):
        say(f"embedding: {rows} rows made {len(tokenizer)}; the new ones belong to padding, which no reward reads")
    fit_tokenizer(model, tokenizer)
    longest = options.max_length or position_limit(model)
    encoder = Encoder(tokenizer, max_length=longest, separator=trainer.convention.separator, text_end=text_end(trainer))
    examples = list(golden) or default_examples(bool(tokenizer.chat_template))
    check_ids(encoder, trainer, examples, say)
    contract = build_contract(model, encoder, golden=examples, readout=readout, rewards=statistics_of(found, say))
    with whole_directory(output) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        contract.save(part)
        unchecked = "it needs its own code, --trust-remote-code" if runs_code(model) else check_saved(part)
    scores = ", ".join(f"{one.score:.4f}" for one in contract.golden)
    say(
        f"saved: {output}, {contract.architecture}; golden examples score {scores}"
        + (f" (not loaded again: {unchecked})" if unchecked else ", loaded again too")
    )


def local_folder(source: str, options: ImportOptions) -> Path:
    """The folder itself, or a hub id's files downloaded (weights as pickles, and code, only where they are allowed)."""
    check_local(source)
    if Path(source).is_dir():
        return Path(source)
    patterns = ["*.json", "*.jinja", "*.txt", "*.model", "README.md", "*.safetensors"]
    patterns += ["*.bin"] * options.allow_pickle + ["*.py"] * options.trust_remote_code
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelError(f"{source}: no such folder, and the hub does not give it: {error}") from error


def recognise(folder: Path, options: ImportOptions, tokenizer: Any, say: Say) -> Found:
    """Layout and conventions: those named with --format, or the only ones that the files allow."""
    weights = find_weights(folder)
    tensors = None
    if weights is not None and weights.pickled:
        refuse_pickle(weights.files[0], options.allow_pickle)
        tensors = read_tensors(weights, allow_pickle=True)
    names = list(tensors) if tensors is not None else weights.names() if weights else []
    if options.format != "auto":
        layout = options.format
        if layout in CLASSIFIERS:
            layout = "adapter" if (folder / "adapter_config.json").is_file() else "classifier"
        say(f"layout: {layout}, as --format {options.format} says")
        return Found(folder, layout, options.format, weights, tensors)
    layout, seen = detect_layout(folder, weights, names)
    say(f"layout: {layout}, since {seen}" if seen[0].islower() or "_" in seen else f"layout: {layout}; {seen}")
    convention = layout
    if layout in ("classifier", "adapter"):
        convention = trained_by(folder) or (choose_convention(folder, tokenizer) if layout == "classifier" else layout)
    return Found(folder, layout, convention, weights, tensors)


def choose_convention(folder: Path, tokenizer: Any) -> str:
    """`classifier` where every trainer that saves classifiers would have made the same ids of a chat; else the user must say which it was."""
    if not tokenizer.chat_template:
        return "classifier"
    example, config = default_examples(chat=True)[0], read_json(folder / "config.json")
    made = {name: trainer_ids(trainer_of(name, tokenizer, config), example) for name in CLASSIFIERS}
    if all(ids == made["classifier"] for ids in made.values()):
        return "classifier"
    tokens = tokenizer.convert_ids_to_tokens
    ends = "; ".join(f"{name}: {tokens((ids or [])[:2])} ... {tokens((ids or [])[-2:])}" for name, ids in made.items())
    raise ConfigError(
        f"{folder}: a plain classifier, and nothing says which trainer made it, which decides where a chat begins and ends ({ends}). "
        "Pass --format trl, open-instruct or nemo-rl; --format classifier takes what the chat template and the tokenizer make of it"
    )


def _words(convention: Convention) -> str:
    return {"as it stands": "as the template writes them", "EOS": "with EOS", "a space and EOS": "with ' ' and EOS", "the end text": "with the end text"}[
        convention.chat
    ]


def statistics_of(found: Found, say: Say) -> RewardStatistics | None:
    """OpenRLHF writes mean and standard deviation of its evaluation's rewards into the config."""
    config = read_json(found.folder / "config.json")
    if found.layout != "openrlhf" or "mean" not in config or "std" not in config:
        return None
    say(f"statistics: mean {config['mean']:.4f} and std {config['std']:.4f} of its evaluation are recorded; rewards stay raw")
    return RewardStatistics(float(config["mean"]), float(config["std"]), temperature=1.0, comparisons=0)
