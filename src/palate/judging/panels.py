"""Several judges at once, from YAML: a jury that votes, or a cascade from the cheapest to the strongest; each with its model, endpoint, form and price."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from palate.judging.sources import read_yaml, validated

Mode: TypeAlias = Literal["jury", "cascade"]
Form: TypeAlias = Literal["five_step", "three_way", "binary", "token", "json"]


class MemberSettings(BaseModel):
    """What is not set is as on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="As --judge has it: a model at an endpoint, rm:CHECKPOINT, local:MODEL or logits:MODEL.")
    name: str = Field("", description="Name in the report. Unset: the model's.")
    weight: float = Field(1.0, gt=0, description="Of its verdict, in a jury.")
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint.")
    api_key_env: str | None = Field(None, description="Environment variable with the endpoint's key.")
    price: tuple[float, float] | None = Field(None, description="Money per million tokens of prompts and of answers.")
    form: Form | None = Field(None, description="How a verdict is asked for.")
    criteria: str | None = Field(None, description="What makes a response better, in words.")
    rubric: str | None = Field(None, description="A file with a rubric.")
    temperature: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, gt=0)
    votes: int | None = Field(None, gt=0)

    @property
    def label(self) -> str:
        return self.name or self.model


class PanelSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = Field("jury", description="jury: all are asked, the weighted majority wins; cascade: the next one is asked where the one before is in doubt.")
    judges: list[MemberSettings] = Field(min_length=2, description="Who judges; of a cascade the cheapest first.")
    doubtful: float = Field(
        0.0, ge=0, lt=0.5, description="Distance from 1/2 within which a probability is a doubt, besides contradictions, ties and failures."
    )

    @model_validator(mode="after")
    def _is_meant(self) -> PanelSettings:
        labels = [judge.label for judge in self.judges]
        if twice := [name for name in labels if labels.count(name) > 1]:
            raise ValueError(f"two judges are named {twice[0]!r}; give each a `name` of its own")
        if self.mode == "jury" and self.doubtful:
            raise ValueError("`doubtful` is for a cascade; in a jury everybody is asked")
        if self.mode == "cascade" and any(judge.weight != 1 for judge in self.judges):
            raise ValueError("`weight` is for a jury; in a cascade one judge decides")
        return self


def read_panel(path: str | Path) -> PanelSettings:
    """The settings of a YAML file. Raises ConfigError that names the key, and the nearest one that is known."""
    return validated(read_yaml(path, PanelSettings, "--judge panel:"), PanelSettings, {"judges": MemberSettings}, str(path))
