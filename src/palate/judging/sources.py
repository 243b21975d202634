"""The sources of responses, from YAML: models, endpoints, how each is sampled, and how many responses a prompt gets from whom."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from palate.errors import ConfigError

Sampler: TypeAlias = Literal["uniform", "by_strength", "one_on_policy"]
"""uniform: sources by their weights; by_strength: one of each strength in turn; one_on_policy: one response of an on-policy source, the others of others."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceSettings(_Section):
    model: str = Field(description="The model's name at its endpoint.")
    name: str = Field("", description="Name of the source in the rows. Unset: the model's.")
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint. Unset: that of the command line.")
    api_key_env: str | None = Field(None, description="Environment variable with that endpoint's key.")
    temperature: list[float] = Field([1.0], min_length=1, description="A temperature, or several of which each response takes one.")
    top_p: float | None = Field(None, gt=0, le=1, description="Unset: the endpoint's own.")
    sampling_seed: int | None = Field(None, description="Sent with its requests; further draws of one request send numbers made of it. Unset: none is sent.")
    system_prompts: list[str] = Field([], description="Each response takes one; they do not become part of the prompt (UltraFeedback's principles).")
    max_tokens: int = Field(2048, gt=0, description="Longest answer; one that is cut off is left out.")
    n: int | None = Field(None, gt=0, description="Most responses to one prompt. Unset: no limit, or, at temperature 0, one for each system prompt.")
    on_policy: bool = Field(False, description="This is the model that is to be trained.")
    strength: float = Field(0.0, description="How strong the model is, on any scale, for the sampler by_strength.")
    weight: float = Field(1.0, gt=0, description="How often it is taken, among the others.")
    price: tuple[float, float] | None = Field(None, description="Money per million tokens of prompts and of answers. Unset: that of the command line.")

    @field_validator("temperature", "system_prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("temperature")
    @classmethod
    def _not_negative(cls, value: list[float]) -> list[float]:
        if min(value) < 0:
            raise ValueError(f"temperature {min(value)}: expected 0 or more")
        return value

    @property
    def label(self) -> str:
        return self.name or self.model

    @property
    def most(self) -> int | None:
        """Responses to one prompt that can differ."""
        if self.n is not None or max(self.temperature) > 0:
            return self.n
        return max(1, len(self.system_prompts))


class FilterSettings(_Section):
    refusals: bool = Field(True, description="Leave refusals out. Set false where refusing may be right.")
    truncated: bool = Field(True, description="Leave out answers that ended at max_tokens.")
    near_duplicates: float = Field(0.9, gt=0, le=1, description="Leave out responses more similar than this to an earlier one (5-letter shingles, Jaccard).")


class GenerationSettings(_Section):
    sources: list[SourceSettings] = Field(min_length=1, description="Who writes.")
    per_prompt: int = Field(4, gt=0, description="Responses to each prompt (UltraFeedback: 4, arXiv 2310.01377).")
    sampler: Sampler = Field("uniform", description="Which sources a prompt gets.")
    filters: FilterSettings = FilterSettings()
    seed: int = Field(0, description="Seed of who writes what.")

    @model_validator(mode="after")
    def _can_be_met(self) -> GenerationSettings:
        twice = [name for name, count in Counter(source.label for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}; give each a `name` of its own")
        limits = [source.most for source in self.sources]
        total = sum(most for most in limits if most is not None)
        if None not in limits and total < self.per_prompt:
            raise ValueError(f"per_prompt is {self.per_prompt}, but the sources give {total} at most; raise `n`, or a temperature above 0")
        models = [(source.base_url, source.model) for source in self.sources]
        if len(set(models)) < len({(*model, source.price) for model, source in zip(models, self.sources, strict=True)}):
            raise ValueError("two sources with one model at one endpoint have different prices")
        if len({source.base_url for source in self.sources}) < len({(source.base_url, source.api_key_env) for source in self.sources}):
            raise ValueError("two sources at one endpoint have different `api_key_env`")
        if self.sampler == "by_strength" and len({source.strength for source in self.sources}) < 2:
            raise ValueError("sampler by_strength needs sources of different `strength`")
        if self.sampler == "one_on_policy" and len({source.on_policy for source in self.sources}) < 2:
            raise ValueError("sampler one_on_policy needs a source with on_policy: true, and one without")
        return self


def read_generation(path: str | Path) -> GenerationSettings:
    """The settings of a YAML file. Raises ConfigError that names the key, and the nearest one that is known."""
    return parse_generation(read_yaml(path, GenerationSettings, "--config"), str(path))


def parse_generation(values: Mapping[str, Any], where: str = "configuration") -> GenerationSettings:
    return validated(values, GenerationSettings, {"sources": SourceSettings, "filters": FilterSettings}, where)


S = TypeVar("S", bound=BaseModel)


def read_yaml(path: str | Path, settings: type[BaseModel], flag: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError where there is none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{flag} {path}: no such file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, expected a mapping of {', '.join(settings.model_fields)}")
    return values


def validated(values: Mapping[str, Any], settings: type[S], sections: Mapping[str, type[BaseModel]], where: str) -> S:
    """Settings of values. Raises ConfigError that names the key, in which of the `sections` it stands, and the nearest one that is known."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explained(problem, settings, sections)}" for problem in error.errors())) from error


def _explained(problem: Any, settings: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        section = sections.get(place[0], settings) if len(place) > 1 else settings
        near = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.5)
        return f"unknown key `{key}`; " + (f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(section.model_fields)}")
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    said = problem["msg"].removeprefix("Value error, ")
    return f"`{key}`: {said}" if key else said
