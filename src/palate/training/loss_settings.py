"""The `loss:` section: which terms, with which options, mixed by which weights (pydantic, no torch).

    loss: {type: bradley_terry, label_smoothing: 0.1, centering: 0.01}                 one term, its options beside it
    loss: {terms: [{type: bradley_terry}, {type: regression, attributes: [score], weight: 0.5}], zero_sum: 0.001}     several

Every type has its own options and refuses those of others. docs/losses.md says from which data which of them fit.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from palate.types import AGGREGATES, MARGIN_SOURCES, STEP_SEPARATOR


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# --- terms ----------------------------------------------------------------------------------------------------------------------------------------


class TermSettings(Section):
    weight: float = Field(1.0, gt=0, description="Weight of this term among several.")

    uses_margins: ClassVar[bool] = False
    compares: ClassVar[bool] = False  # reads comparisons


class LinkTerm(TermSettings):
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Chance that a label is flipped.")
    unbiased: bool = Field(False, description="With label_smoothing: the unbiased form (rDPO) in place of the smoothed one (cDPO).")

    uses_margins: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    @model_validator(mode="after")
    def _smoothed(self) -> LinkTerm:
        if self.unbiased and not self.label_smoothing:
            raise ValueError("unbiased needs label_smoothing, the chance that a label is flipped")
        return self


class BradleyTerryTerm(LinkTerm):
    """-log sigmoid(r_chosen - r_rejected - margin)."""

    type: Literal["bradley_terry"]


class ScaledBradleyTerryTerm(LinkTerm):
    """margin * -log sigmoid(r_chosen - r_rejected): the strength of a preference weighs its loss."""

    type: Literal["scaled_bradley_terry"]


class HingeTerm(LinkTerm):
    """max(0, 1 + margin - (r_chosen - r_rejected))."""

    type: Literal["hinge"]


class SquaredTerm(LinkTerm):
    """(r_chosen - r_rejected - margin - 1)^2."""

    type: Literal["squared"]


class FocalTerm(LinkTerm):
    """Bradley-Terry that counts pairs less which are already right."""

    type: Literal["focal"]
    gamma: float = Field(2.0, ge=0, description="How much less; 0 is Bradley-Terry.")
    barrier: float = Field(0.0, ge=0, description="Weight of the barrier that keeps rewards within (-5, 5); InternLM2 has 0.02.")


class TieTermSettings(TermSettings):
    compares: ClassVar[bool] = True


class RaoKupperTerm(TieTermSettings):
    """Ties where the difference stays within a threshold."""

    type: Literal["rao_kupper"]
    threshold: float | None = Field(None, gt=1, description="theta; unset: learned.")


class DavidsonTerm(TieTermSettings):
    """Ties with a weight of their own."""

    type: Literal["davidson"]
    threshold: float | None = Field(None, gt=0, description="nu; unset: learned.")


class PlackettLuceTerm(TermSettings):
    """The probability of a whole ranking, ties within it left open."""

    type: Literal["plackett_luce"]


class ListwiseSoftmaxTerm(TermSettings):
    """Cross-entropy of softmax(ratings) and softmax(rewards)."""

    type: Literal["listwise_softmax"]
    temperature: float = Field(1.0, gt=0, description="Divides the ratings.")
    rating: str | None = Field(None, description="Attribute to read; unset: the data's own score or rank.")


class RatedTerm(TermSettings):
    attributes: list[str] = Field(default=["score"], min_length=1, description="Attributes to predict, one or more.")

    @field_validator("attributes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("attributes")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("an attribute stands twice")
        if "reward" in value and len(value) > 1:
            raise ValueError("an attribute named reward would be taken for the reward; rename the column (data.columns)")
        return value


class RegressionTerm(RatedTerm):
    """Squared error of each attribute."""

    type: Literal["regression"]


class GaussianTerm(RatedTerm):
    """A mean and a variance for each attribute."""

    type: Literal["gaussian"]


class QuantileTerm(RatedTerm):
    """Quantiles of each attribute's ratings."""

    type: Literal["quantile"]
    quantiles: list[float] = Field(default=[round(0.05 * i, 2) for i in range(1, 20)], min_length=1, description="Between 0 and 1, rising.")

    @field_validator("quantiles")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if any(not 0 < q < 1 for q in value) or sorted(set(value)) != value:
            raise ValueError("expected numbers between 0 and 1, each larger than the last")
        return value


class OrdinalTerm(TermSettings):
    """Levels in order, with learned thresholds between them."""

    type: Literal["ordinal"]
    rating: str = Field("score", description="Attribute to read.")
    levels: list[float] = Field(min_length=2, description="The values that ratings take, lowest first, e.g. [1, 2, 3, 4, 5].")

    @field_validator("levels")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or not all(math.isfinite(level) for level in value):
            raise ValueError("expected rising numbers")
        return value


class OutcomeTerm(TermSettings):
    """Right or wrong, desirable or not: binary cross-entropy on the reward."""

    type: Literal["outcome"]
    rating: str = Field("label", description="Attribute with 1 and 0 (or a probability between).")


class TokenOutcomeTermSettings(TermSettings):
    """The outcome at every token of the response."""

    type: Literal["token_outcome"]
    rating: str = Field("label", description="Attribute with 1 and 0 (or a probability between).")


class TokenDivergenceTerm(TermSettings):
    """DeepSpeed-Chat's loss: both sides compared token by token from where they part."""

    type: Literal["token_divergence"]
    padding: Literal["exclude", "include"] = Field("exclude", description="include: the shorter side's padding takes part, exactly as in DeepSpeed-Chat.")

    compares: ClassVar[bool] = True


class StepsTerm(TermSettings):
    """Process rewards: the class of each step at its last token."""

    type: Literal["steps"]
    classes: Literal[2, 3] = Field(2, description="2: wrong, right (labels 0, 1); 3: wrong, neutral, right (labels -1, 0, 1).")
    last_step_only: bool = Field(False, description="Train on the last step of a response alone.")
    aggregate: str = Field("min", description=f"One reward from the steps of a response: {', '.join(AGGREGATES)}.")
    separator: str = Field(STEP_SEPARATOR, description="Stands between steps; a response is cut there when it is scored.")

    @field_validator("aggregate")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in AGGREGATES:
            raise ValueError(f"expected one of {', '.join(AGGREGATES)}")
        return value


AnyTerm = Annotated[
    BradleyTerryTerm
    | ScaledBradleyTerryTerm
    | HingeTerm
    | SquaredTerm
    | FocalTerm
    | RaoKupperTerm
    | DavidsonTerm
    | PlackettLuceTerm
    | ListwiseSoftmaxTerm
    | RegressionTerm
    | GaussianTerm
    | QuantileTerm
    | OrdinalTerm
    | OutcomeTerm
    | TokenOutcomeTermSettings
    | TokenDivergenceTerm
    | StepsTerm,
    Field(discriminator="type"),
]


# --- the rest of the section ----------------------------------------------------------------------------------------------------------------------


class MarginSettings(Section):
    source: str = Field("column", description=f"{', '.join(MARGIN_SOURCES)}.")
    scale: float = Field(1.0, gt=0, description="Multiplies margins.")
    clip: float | None = Field(None, gt=0, description="Largest margin.")

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in MARGIN_SOURCES:
            raise ValueError(f"expected one of {', '.join(MARGIN_SOURCES)}")
        return value


class LengthSettings(Section):
    """ODIN: a second head takes up what length explains; the first one alone is the reward."""

    weight: float = Field(1.0, gt=0, description="Weight of |rho(quality, length)| - rho(length head, length).")
    orthogonal: float = Field(1.0, ge=0, description="Weight of |cosine| of the two heads.")


class MemberSettings(Section):
    """An ensemble in one run: reward heads with starts of their own on one backbone, each trained by every term."""

    count: int = Field(ge=2, description="Heads.")
    bootstrap: bool = Field(False, description="Each head on its own resample of the groups (drawn with replacement), the same in every epoch.")
    seed: int = Field(0, ge=0, description="Of the resamples.")


class TextSettings(Section):
    """GRM: the hidden states must still be able to write the responses."""

    variant: Literal["sft", "dpo", "dpo_free"] = Field("sft", description="sft: the chosen one; dpo: chosen over rejected, against the model before training.")
    weight: float = Field(0.01, gt=0, lt=1, description="a in (1 - a) * loss + a * text; 0.01 is GRM's.")
    beta: float = Field(0.1, gt=0, description="Multiplies log-probabilities.")


class CrossPromptSettings(Section):
    """Every chosen response of the step against every rejected one, weighted by how alike their prompts are."""

    weight: float = Field(1.0, gt=0, description="Weight of the term.")
    form: Literal["outside", "inside"] = Field("outside", description="Where the pair's weight stands: outside the sigmoid, or inside (the paper's form).")
    temperature: float = Field(0.5, gt=0, description="Of the softmax over prompt similarities; small: like prompts only.")
    own_floor: float = Field(0.5, ge=0, le=1, description="Least weight of a comparison's own pair.")
    beta: float = Field(1.0, gt=0, description="Multiplies differences of the inside form (the paper has 0.1 on DPO's log-ratios).")
    encoder: str | None = Field(None, description="sentence-transformers model for prompts. Unset: all-MiniLM-L6-v2.")


def _section_or_number(name: str) -> Any:
    def validate(value: Any) -> Any:
        return {name: value} if isinstance(value, int | float) and not isinstance(value, bool) else {} if value is True else None if value is False else value

    return validate


class LossSettings(Section):
    terms: list[AnyTerm] = Field(
        default=[BradleyTerryTerm(type="bradley_terry")], min_length=1, description="Terms; one alone may stand in the section itself."
    )
    margins: MarginSettings | None = Field(
        None, description="Where margins come from (a word is short for its source). Unset: the column, if the loss has margins."
    )
    centering: float = Field(0.0, ge=0, description="Weight of (r_chosen + r_rejected)^2; 0.01 is recommended.")
    zero_sum: float = Field(0.0, ge=0, description="Weight of (mean reward of the step)^2; 0.001 is the published middle.")
    length_decorrelation: LengthSettings | None = Field(None, description="Two heads, quality and length (ODIN); a number is short for its weight.")
    text: TextSettings | None = Field(None, description="Text regularisation (GRM).")
    members: MemberSettings | None = Field(None, description="Several reward heads, an ensemble on one backbone; a number is short for their count.")
    cross_prompt: CrossPromptSettings | None = Field(None, description="Comparisons across prompts; a number is short for its weight.")
    reward_weights: dict[str, float] | None = Field(None, description="What each attribute weighs in the reward. Unset: alike.")

    @model_validator(mode="before")
    @classmethod
    def _one_term(cls, value: Any) -> Any:
        """Options that are not the section's own belong to the one term that stands in it."""
        if not isinstance(value, Mapping):
            return value
        own = {key: item for key, item in value.items() if key in cls.model_fields}
        term = {key: item for key, item in value.items() if key not in cls.model_fields}
        if not term:
            return own
        if "terms" in own:
            raise ValueError(f"{', '.join(term)} stands beside terms; put it into one of them")
        return {**own, "terms": [{"type": "bradley_terry", **term}]}

    @field_validator("margins", mode="before")
    @classmethod
    def _margins(cls, value: Any) -> Any:
        if isinstance(value, bool):
            value = "column" if value else "none"
        return {"source": value} if isinstance(value, str) else value

    @field_validator("length_decorrelation", mode="before")
    @classmethod
    def _length(cls, value: Any) -> Any:
        return _section_or_number("weight")(value)

    @field_validator("text", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"variant": value} if isinstance(value, str) else _section_or_number("weight")(value)

    @field_validator("members", mode="before")
    @classmethod
    def _members(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("cross_prompt", mode="before")
    @classmethod
    def _cross(cls, value: Any) -> Any:
        return _section_or_number("weight")(value)

    @model_validator(mode="after")
    def _fit_together(self) -> LossSettings:
        names: list[str] = [term.type for term in self.terms]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{sorted(doubled)[0]} stands twice among the terms; give it once, with all its attributes")
        tokenwise = [name for name in names if name in ("token_outcome", "token_divergence", "steps")]
        if len(tokenwise) > 1:
            raise ValueError(f"{' and '.join(tokenwise)} read different tokens; train one of them")
        if "steps" in names and (len(names) > 1 or self.centering or self.zero_sum or self.length_decorrelation or self.text or self.cross_prompt):
            raise ValueError("steps gives classes, not a reward that other terms could share; let it stand alone")
        rated = [name for name in names if name in ("regression", "gaussian", "quantile")]
        if len(rated) > 1:
            raise ValueError(f"{' and '.join(rated)} would give the same attributes two heads; train one of them")
        if self.members and ("steps" in names or self.length_decorrelation):
            raise ValueError(f"members are heads of one reward each; {'steps' if 'steps' in names else 'length_decorrelation'} has several outputs of its own")
        self._fit_margins(names)
        self._fit_comparisons(names, tokenwise)
        return self

    def _fit_margins(self, names: list[str]) -> None:
        using = any(term.uses_margins for term in self.terms)
        if self.margins is not None and self.margins.source != "none" and not using:
            raise ValueError(f"margins are read by no term ({', '.join(names)}); leave them out, or set margins: none")
        if "scaled_bradley_terry" in names and self.margins is not None and self.margins.source == "none":
            raise ValueError("scaled_bradley_terry multiplies by the margin; margins: none leaves nothing to train on")
        if "scaled_bradley_terry" in names and sum(term.uses_margins for term in self.terms) > 1:
            raise ValueError("scaled_bradley_terry multiplies by the margin that the other term subtracts; train one of them")

    def _fit_comparisons(self, names: list[str], tokenwise: list[str]) -> None:
        compared = any(term.compares for term in self.terms)
        for name in ("centering", "text", "cross_prompt"):
            if getattr(self, name) and not compared:
                raise ValueError(f"{name} looks at chosen and rejected sides, which {', '.join(names)} does not read; add a pairwise term")
        if self.text and tokenwise:
            raise ValueError(f"text reads other tokens than {tokenwise[0]}; train one of them")
        pointwise = [term for term in self.terms if isinstance(term, RatedTerm | OrdinalTerm | OutcomeTerm)]
        if self.reward_weights and not (len(self.terms) == 1 and isinstance(self.terms[0], RatedTerm) and len(self.terms[0].attributes) > 1):
            raise ValueError("reward_weights weigh the attributes of one regression, gaussian or quantile term; here the reward is an output of its own")
        if "plackett_luce" in names and "listwise_softmax" in names:
            raise ValueError("plackett_luce and listwise_softmax would read one ranking in two ways; train one of them")
        if self.length_decorrelation and (tokenwise or pointwise):
            raise ValueError("length_decorrelation adds a length head to one reward; it goes with pairwise and listwise terms")

    @property
    def margin_source(self) -> str:
        """Where margins come from; "column" where nothing is said (a loss without margins then refuses rows that have them)."""
        return self.margins.source if self.margins else "column"


# --- errors ---------------------------------------------------------------------------------------------------------------------------------------

TERM_KINDS: dict[str, type[TermSettings]] = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(AnyTerm)[0])}


def fields_at(location: Sequence[Any]) -> list[str]:
    """Names of the fields where an error of this section was found; `location` as pydantic gives it, without the section's own name."""
    kinds: dict[Any, type[BaseModel]] = {
        **TERM_KINDS,
        "margins": MarginSettings,
        "length_decorrelation": LengthSettings,
        "members": MemberSettings,
        "text": TextSettings,
        "cross_prompt": CrossPromptSettings,
    }
    kind = next((kinds[part] for part in reversed(location) if part in kinds), LossSettings)
    return [name for name in kind.model_fields if name not in ("type", "terms")]


def readable(location: Sequence[Any], *, short: bool) -> tuple[str, ...]:
    """A location without the names that pydantic puts in for union members; of a term that stands in the section itself (`short`), its own keys alone."""
    parts = tuple(str(part) for i, part in enumerate(location) if not (i >= 2 and part in TERM_KINDS and location[i - 2] == "terms"))
    return parts[2:] if short and parts[:1] == ("terms",) else parts


def hint(location: Sequence[Any], *, short: bool) -> str:
    """What an unknown key may have meant: a field of the place where it stands, or a key of the section itself."""
    *parents, key = location
    names = fields_at(parents)
    places: dict[str, tuple[str, ...]] = {name: ("loss", *readable(parents, short=short)) for name in names}
    if parents[:1] == ["terms"]:
        places |= {name: ("loss",) for name in LossSettings.model_fields if name != "terms"}
    near = difflib.get_close_matches(str(key), places, n=1, cutoff=0.5)
    return f"did you mean `{'.'.join((*places[near[0]], near[0]))}`?" if near else f"known keys: {', '.join(places if short else names)}"


def message(problem: Any) -> str:
    """What is wrong, in words."""
    if problem["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(str(problem["input"].get("type")), TERM_KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"type is {problem['input'].get('type')!r}; {hint}known types: {', '.join(TERM_KINDS)}"
    if problem["type"] == "union_tag_not_found":
        return f"has no type; known types: {', '.join(TERM_KINDS)}"
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"is {problem['input']!r:.80}: {problem['msg'].lower()}"


def explain(problem: Any, *, short: bool) -> str:
    """One error of a loss section that was given as a dictionary; `short`: its one term stands in the section itself."""
    key = ".".join(("loss", *readable(problem["loc"], short=short)))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; {hint(problem['loc'], short=short)}"
    return f"{key}{':' if problem['type'] in SENTENCES else ''} {message(problem)}"


SENTENCES = ("value_error", "union_tag_invalid")
"""Errors whose message is a sentence of its own; others go on after the key."""
