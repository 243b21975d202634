"""One run in six sections: model, data, loss, training, eval, launch. YAML file and dotted flags share these names (pydantic, no torch).

Unknown keys are refused with file, line and the nearest key. The `training` section takes every field of RewardConfig (and so of
transformers.TrainingArguments) except those that another section owns.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from palate.errors import ConfigError
from palate.training.loss_settings import SENTENCES, LossSettings, Section, hint, message, readable
from palate.types import Packing


class ModelSettings(Section):
    name_or_path: str = Field(description="Hub id or folder of a base model, an instruct model or a reward model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(False, description="Allow a model's own code from the hub to run.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of the backbone's weights; head and loss stay float32.")
    attn_implementation: str | None = Field(None, description="Attention of transformers: sdpa, eager, flash_attention_2, ... Unset: its own choice.")
    chat_template: str | None = Field(None, description="A .jinja file, a template, or `plain`. Unset: the tokenizer's own.")
    eos_token: str | None = Field(None, description="Token that ends every response. Unset: the tokenizer's.")
    pad_token: str | None = Field(None, description="Padding token, never EOS. Unset: the tokenizer's, or a new one.")
    disable_dropout: bool = Field(True, description="Turn dropout off.")
    adapter: dict[str, Any] | None = Field(None, description="A PEFT adapter: {type: lora, r: 16, use_dora: true, ...}, any type and field of peft.")
    members: int | None = Field(None, ge=2, description="Adapters trained one after another, an ensemble: output_dir/member-1, ..., each with its own seed.")
    merge_adapter: bool = Field(False, description="Save the merged model, a full checkpoint, in place of the adapter.")
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="Base weights in 8 or 4 bits (bitsandbytes, CUDA), for training an adapter.")

    @model_validator(mode="after")
    def _adapts(self) -> ModelSettings:
        for name in ("members", "merge_adapter", "quantization"):
            if getattr(self, name) and self.adapter is None:
                raise ValueError(f"{name} is for training an adapter; set adapter: {{type: lora}}, or leave it out")
        if self.merge_adapter and self.quantization:
            raise ValueError("merge_adapter would add the adapter to rounded weights; save the adapter and merge it with `palate merge`")
        return self


class SourceSettings(Section):
    path: str = Field(description="File, folder or hub id.")
    weight: float = Field(1.0, gt=0, description="Passes over this source per epoch: 0.5 takes a random half, 2 takes every row twice.")
    cap: int | None = Field(None, gt=0, description="At most so many rows of this source.")
    split: str = Field("train", description="Split of a hub data set or of a folder (default in data.eval: test).")
    name: str | None = Field(None, description="Name of the source in reports. Unset: the file's name.")
    columns: dict[str, str] | None = Field(None, description="Our column names -> the source's, e.g. {chosen: better, rejected: worse}.")


class HeldOut(Section):
    split: float = Field(gt=0, lt=1, description="Share of the training groups held out, by prompt.")


class DataSettings(Section):
    train: list[SourceSettings] = Field(description="Training data: a path, or a list of {path, weight, cap, split, name, columns}.")
    eval: list[SourceSettings] | HeldOut | None = Field(None, description="Evaluation data: a path, a list as for train, or {split: 0.05}.")
    max_length: int = Field(1024, gt=0, description="Most tokens of prompt plus response.")
    length_policy: Literal["drop", "truncate_prompt", "error"] = Field("drop", description="What happens to longer pairs (always counted).")
    separator: str = Field("\n\n", description="Put between a plain-text prompt and response where neither has a blank at the joint.")
    ties: Literal["drop", "soft"] = Field("drop", description="Tied comparisons: leave out, or train towards probability 0.5.")
    on_bad_row: Literal["error", "drop"] = Field("error", description="Rows that cannot be used: name them all and stop, or count and leave them.")
    columns: dict[str, str] | None = Field(None, description="Our column names -> the data's, for every source without its own.")
    packing: Packing = Field("auto", description="How batches are computed; auto: the fastest exact way.")
    token_budget: int | None = Field(None, gt=0, description="Tokens computed at a time; larger batches are cut into parts. Unset: by device.")
    off_topic_negatives: int = Field(0, ge=0, description="Responses to other prompts added to each training prompt as worse than its best.")
    mapped: bool = Field(False, description="Encode training rows into Arrow files on disk, kept and found again, in place of memory (see num_proc).")
    streaming: bool = Field(False, description="Read training rows while training, sources by their weights (needs training.max_steps).")
    num_proc: int | None = Field(None, description="Processes that tokenize mapped data.")
    seed: int = Field(42, description="Seed of mixing and of the held-out split.")

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _sources(value)

    @field_validator("eval", mode="before")
    @classmethod
    def _evaluation(cls, value: Any) -> Any:
        if value is None or (isinstance(value, Mapping) and "split" in value and "path" not in value):
            return value
        return [{"split": "test", **item} if isinstance(item, Mapping) else item for item in _sources(value)]

    @model_validator(mode="after")
    def _apart(self) -> DataSettings:
        if isinstance(self.eval, list):
            both = {(s.path, s.split) for s in self.train} & {(s.path, s.split) for s in self.eval}
            both |= {(s.path, s.split) for s in self.eval if Path(s.path).is_file() and s.path in {t.path for t in self.train}}
            if both:
                raise ValueError(f"{sorted(both)[0][0]} is named in data.train and in data.eval; hold a part out with data.eval: {{split: 0.05}}")
        if self.streaming and self.off_topic_negatives:
            raise ValueError("off_topic_negatives draws from the whole data; it needs data in memory, not a stream")
        if self.streaming and any(source.cap for source in self.train):
            raise ValueError("cap counts the rows of a source, which a stream does not know; leave it out while streaming")
        if self.streaming and self.mapped:
            raise ValueError("streaming and mapped are two ways to read; choose one")
        return self


def _sources(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


class EvalSettings(Section):
    bins: int = Field(10, gt=0, description="Bins of the reliability curve and of ECE.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Confidence of the intervals.")
    limit: int | None = Field(None, gt=0, description="Evaluate only the first so many groups.")
    packing: Packing = Field("auto", description="How responses are scored, as data.packing.")
    token_budget: int | None = Field(None, gt=0, description="Tokens scored at a time. Unset: by device.")


class LaunchSettings(Section):
    nproc: int | None = Field(None, gt=0, description="Processes to start on this machine, one a device. Unset: this one, or whatever a launcher has started.")
    nnodes: int = Field(1, gt=0, description="Machines; the same command runs on each.")
    node_rank: int = Field(0, ge=0, description="Number of this machine.")
    rendezvous: str | None = Field(None, description="host:port of the first machine.")

    @model_validator(mode="after")
    def _meeting(self) -> LaunchSettings:
        if self.nnodes > 1 and not (self.nproc and self.rendezvous):
            raise ValueError("several machines need nproc (processes on each) and rendezvous (host:port of the first)")
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank is {self.node_rank}, but there are {self.nnodes} machines, counted from 0")
        return self


class RunSettings(Section):
    model: ModelSettings
    data: DataSettings
    loss: LossSettings = LossSettings()
    training: dict[str, Any] = Field(description="Any field of RewardConfig / transformers.TrainingArguments; output_dir is required.")
    eval: EvalSettings = EvalSettings()
    launch: LaunchSettings = LaunchSettings()

    def trainer_arguments(self) -> dict[str, Any]:
        """The sections as keyword arguments of RewardConfig."""
        model, data, loss = self.model, self.data, self.loss
        return {
            "disable_tqdm": False,
            **self.training,
            "trust_remote_code": model.trust_remote_code,
            "disable_dropout": model.disable_dropout,
            "chat_template_path": model.chat_template,
            "eos_token": model.eos_token,
            "pad_token": model.pad_token,
            "max_length": data.max_length,
            "length_policy": data.length_policy,
            "prompt_separator": data.separator,
            "ties": data.ties,
            "on_bad_row": data.on_bad_row,
            "dataset_num_proc": data.num_proc,
            "packing": data.packing,
            "token_budget": data.token_budget,
            "off_topic_negatives": data.off_topic_negatives,
            "loss": loss.model_dump(mode="json"),
        }


OWNED_ELSEWHERE = {
    "trust_remote_code": "model.trust_remote_code",
    "disable_dropout": "model.disable_dropout",
    "chat_template_path": "model.chat_template",
    "eos_token": "model.eos_token",
    "pad_token": "model.pad_token",
    "model_init_kwargs": "the model section",
    "max_length": "data.max_length",
    "length_policy": "data.length_policy",
    "prompt_separator": "data.separator",
    "ties": "data.ties",
    "on_bad_row": "data.on_bad_row",
    "dataset_num_proc": "data.num_proc",
    "packing": "data.packing",
    "token_budget": "data.token_budget",
    "off_topic_negatives": "data.off_topic_negatives",
    "loss": "the loss section",
    "loss_type": "loss.type",
    "use_margins": "loss.margins",
    "label_smoothing": "loss.label_smoothing",
    "center_rewards_coefficient": "loss.centering",
}
"""RewardConfig fields that a run sets in another section: one name for one thing."""


# --- reading ------------------------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML with two rules of YAML 1.2: 1e-5 is a number, and `no` is a word (save_strategy: no), not false."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {key: [rule for rule in rules if rule[0] != _BOOL] for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


class Where(dict[str, str]):
    """Dotted key -> where it was set: `run.yaml:12` or `flag --training.seed`."""

    def find(self, key: str) -> str:
        while key and key not in self:
            key = key.rpartition(".")[0]
        return self.get(key, "configuration")


def read_settings(config: str | Path | None, flags: Sequence[str]) -> RunSettings:
    """A YAML file overlaid with dotted flags. Raises ConfigError that names file, line and nearest key."""
    values, where = merged_values(config, flags)
    try:
        settings = RunSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, values, where) for problem in error.errors())) from error
    check_training_keys(settings.training, where)
    return settings


def merged_values(config: str | Path | None, flags: Sequence[str]) -> tuple[dict[str, Any], Where]:
    values, where = _read_yaml(Path(config)) if config else ({}, Where())
    for key, text in parse_flags(flags):
        where[key] = f"flag --{key}"
        _put(values, key, text)
    return values, where


def _read_yaml(path: Path) -> tuple[dict[str, Any], Where]:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, expected the sections {', '.join(RunSettings.model_fields)}")
    where = Where()
    _mark(node, "", path, where)
    return values, where


def _mark(node: yaml.Node | None, prefix: str, path: Path, where: Where) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            where[name] = f"{path}:{key.start_mark.line + 1}"
            _mark(value, f"{name}.", path, where)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            where[f"{prefix}{i}"] = f"{path}:{value.start_mark.line + 1}"
            _mark(value, f"{prefix}{i}.", path, where)


def parse_flags(flags: Sequence[str]) -> list[tuple[str, Any]]:
    """`--a.b value`, `--a.b=value` and bare `--a.b` (true) as (dotted key, value); values are read as YAML."""
    pairs: list[tuple[str, Any]] = []
    i = 0
    while i < len(flags):
        flag = flags[i]
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}; options are written --section.key value")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            has_value = i + 1 < len(flags) and not flags[i + 1].startswith("--")
            text = flags[i + 1] if has_value else "true"
            i += has_value
        key = key.replace("-", "_")
        if "." not in key:
            raise ConfigError(f"unknown option --{key}; options are written --section.key, with section one of {', '.join(RunSettings.model_fields)}")
        pairs.append((key, yaml.load(text, Loader=_Loader) if text else ""))
        i += 1
    return pairs


SECTION_STARTS = {"model": "model.name_or_path", "data": "data.train", "training": "training.output_dir"}
"""The option that begins a section which is not there."""

SHORT_FOR = {"margins": "source", "text": "variant"}
"""What a word alone stands for in a section (elsewhere: a path)."""

NUMBER_FOR = {"members": "count"}
"""What a number alone stands for in a section (elsewhere: its weight)."""


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict | list):  # `train: a.jsonl` is short for `train: {path: a.jsonl}`, `zero: 0.5` for `{weight: 0.5}`
            short = SHORT_FOR.get(parent, "path") if isinstance(inner, str) else NUMBER_FOR.get(parent, "weight")
            inner = values[parent] = {} if inner is None else {short: inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"flag --{key}: `{parent}` is a list; set it in the file")
        values = inner
    values[last] = value


def _fields_at(location: Sequence[Any]) -> list[str]:
    model: Any = RunSettings
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = {"train": SourceSettings, "eval": SourceSettings}.get(str(part)) if model is DataSettings else (field.annotation if field else model)
    return list(getattr(model, "model_fields", {}))


def _explain(problem: Any, values: Mapping[str, Any], where: Where) -> str:
    # pydantic puts the names of union branches into the path; they are no keys
    location = [str(part) for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or part in ("HeldOut",)))]
    short = False
    if location[:1] == ["loss"]:
        given = values.get("loss")
        short = not (isinstance(given, Mapping) and "terms" in given)
        location = ["loss", *readable(problem["loc"][1:], short=short)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        if location[0] == "loss":
            return f"{where.find(key)}: unknown key `{key}`; {hint(problem['loc'][1:], short=short)}"
        names = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        meant = f"did you mean `{'.'.join([*location[:-1], near[0]])}`?" if near else f"known keys: {', '.join(names)}"
        return f"{where.find(key)}: unknown key `{key}`; {meant}"
    if problem["type"] == "missing":
        return f"{where.find('.'.join(location[:-1]))}: `{key}` is missing; set it in the file or with --{SECTION_STARTS.get(key, key)}"
    if problem["type"] in SENTENCES:
        place = f"{key}.type" if problem["type"] == "union_tag_invalid" else key
        return f"{where.find(place)}: `{key}`: {message(problem)}"
    return f"{where.find(key)}: `{key}` {message(problem)}"


def check_training_keys(training: Mapping[str, Any], where: Where) -> None:
    """Refuse keys that RewardConfig does not have or that another section owns; needs transformers, so it runs after the cheap checks."""
    import dataclasses

    from palate.training.config import RewardConfig

    names = [field.name for field in dataclasses.fields(RewardConfig) if field.init and field.name not in OWNED_ELSEWHERE]
    problems = []
    for key in training:
        place = where.find(f"training.{key}")
        if key in OWNED_ELSEWHERE:
            problems.append(f"{place}: `training.{key}` is set with {OWNED_ELSEWHERE[key]}")
        elif key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            problems.append(f"{place}: unknown key `training.{key}`" + (f"; did you mean `training.{near[0]}`?" if near else ""))
    if not training.get("output_dir"):
        problems.append(f"{where.find('training')}: `training.output_dir` is missing; set it in the file or with --training.output_dir")
    if problems:
        raise ConfigError("\n".join(problems))
