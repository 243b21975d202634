"""From a `loss:` section to what it asks of the head (outputs), of the data (supervision), and of training (objective); and what it refuses.

The heads follow the loss: one output `reward`; an output an attribute; quantiles; a mean and a variance; the classes of a step; quality and length;
a reward each of several members.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from palate.data.tokenization import EncodeReport
from palate.errors import ConfigError
from palate.losses import pairwise
from palate.losses.objective import Across, Objective
from palate.losses.terms import (
    ORDINAL_THRESHOLDS,
    TIE_THRESHOLD,
    CenteringTerm,
    DivergenceTerm,
    ListwiseTerm,
    MemberTerm,
    PairwiseTerm,
    PointwiseTerm,
    StepTerm,
    Term,
    TextTerm,
    TieTerm,
    TokenOutcomeTerm,
)
from palate.scoring.uncertainty import RAW_VARIANCE, member_names, quantile_name
from palate.training.loss_settings import (
    FocalTerm,
    GaussianTerm,
    LinkTerm,
    ListwiseSoftmaxTerm,
    LossSettings,
    MemberSettings,
    OrdinalTerm,
    OutcomeTerm,
    PlackettLuceTerm,
    QuantileTerm,
    RatedTerm,
    StepsTerm,
    TermSettings,
    TieTermSettings,
    TokenDivergenceTerm,
    TokenOutcomeTermSettings,
)
from palate.types import STEP_SEPARATOR, MarginRule, Readout, Reads, Supervision

STEP_CLASSES = {2: ("wrong", "right"), 3: ("wrong", "neutral", "right")}

STEP_IS_GOOD = {2: (0.0, 1.0), 3: (0.0, 1.0, 1.0)}
"""What each class counts as a good step: neutral steps do no harm (Lightman et al. 2023, arXiv 2305.20050, appendix F)."""

TIE_START = {"rao_kupper": 1.5, "davidson": 1.0}
"""Where learned thresholds start: a tie in a fifth and in a third of the comparisons of equal rewards."""


@dataclass(frozen=True)
class Plan:
    """A loss section, worked out."""

    settings: LossSettings
    objective: Objective
    supervision: Supervision
    readout: Readout

    @property
    def on_tokens(self) -> bool:
        """Whether tokens other than the last are read, which only decoders allow."""
        return self.supervision.reads != "last" or self.supervision.text


def plan(settings: LossSettings, *, off_topic: int = 0) -> Plan:
    """What a loss section asks for. `off_topic`: responses to other prompts that will be added to each group, which a term must compare."""
    names = ", ".join(term.type for term in settings.terms)
    if off_topic and (not any(term.compares for term in settings.terms) or any(term.type == "scaled_bradley_terry" for term in settings.terms)):
        raise ConfigError(f"off_topic_negatives are responses worse than a prompt's best by no stated margin, which {names} does not compare; leave them out")
    attributes = _attributes(settings)
    outputs, reward, readout = _outputs(settings)
    terms = [_term(term, settings, attributes, outputs) for term in settings.terms]
    coefficients = [term.weight * (1 - settings.text.weight if settings.text else 1) for term in settings.terms]
    if settings.centering:
        terms.append(CenteringTerm())
        coefficients.append(settings.centering)
    if settings.members:
        outputs, reward, readout = _members(settings, outputs)
        terms, coefficients = _of_each_member(settings.members, terms, coefficients)
    if settings.text:  # (1 - a) * loss + a * text
        terms.append(TextTerm(variant=settings.text.variant, beta=settings.text.beta))
        coefficients.append(settings.text.weight)
    objective = Objective(
        terms=tuple(terms),
        coefficients=tuple(coefficients),
        across=_across(settings),
        outputs=outputs,
        reward=reward,
        reading=readout.weights,
        parameters=_parameters(settings),
        orthogonal=settings.length_decorrelation.orthogonal if settings.length_decorrelation else 0.0,
        gather_steps=readout.aggregate,
    )
    return Plan(settings, objective, _supervision(settings, attributes), readout)


# --- heads ----------------------------------------------------------------------------------------------------------------------------------------


def _outputs(settings: LossSettings) -> tuple[tuple[str, ...], tuple[float, ...], Readout]:
    """(names of the head's outputs, what each weighs in training's comparisons, how the reward is read when scoring)."""
    for term in settings.terms:
        if isinstance(term, StepsTerm):
            classes = STEP_CLASSES[term.classes]
            return classes, (0.0,) * len(classes), Readout(classes, STEP_IS_GOOD[term.classes], term.aggregate, term.separator)
    if settings.length_decorrelation:
        heads = ("quality", "length")
        return heads, (1.0, 1.0), Readout(heads, (1.0, 0.0))
    rated = next((term for term in settings.terms if isinstance(term, RatedTerm)), None)
    if rated is None:
        return ("reward",), (1.0,), Readout()
    shares = _shares(rated.attributes, settings.reward_weights)
    names: tuple[str, ...]
    weights: tuple[float, ...]
    if isinstance(rated, QuantileTerm):
        names = tuple(quantile_name(a, q) for a in rated.attributes for q in rated.quantiles)
        weights = tuple(share / len(rated.quantiles) for share in shares for _ in rated.quantiles)
    elif isinstance(rated, GaussianTerm):
        names = (*rated.attributes, *(a + RAW_VARIANCE for a in rated.attributes))
        weights = (*shares, *(0.0 for _ in shares))
    else:
        names, weights = tuple(rated.attributes), shares
    alone = len(settings.terms) == 1 or len(names) == 1  # other terms share the one output, or get an output of their own
    if alone:
        names = ("reward",) if len(names) == 1 else names
        return names, weights, Readout(names, weights)
    names, weights = ("reward", *names), (1.0, *(0.0 for _ in weights))
    return names, weights, Readout(names, weights)


def _members(settings: LossSettings, outputs: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[float, ...], Readout]:
    """An output a member in place of the one reward, whose mean is what training's comparisons see and what is read when scoring."""
    assert settings.members is not None
    if outputs != ("reward",):
        raise ConfigError(f"loss.members are heads of one reward each, but this loss has the outputs {', '.join(outputs)}; leave one of them out")
    names, weights = member_names(settings.members.count), (1 / settings.members.count,) * settings.members.count
    return names, weights, Readout(names, weights)


def _of_each_member(members: MemberSettings, terms: list[Term], coefficients: list[float]) -> tuple[list[Term], list[float]]:
    """Every term on every member; coefficients are shared out, so that the backbone learns at the pace of a single head."""
    draws = members.seed if members.bootstrap else None
    each: list[Term] = [MemberTerm(term, member, draws) for member in range(members.count) for term in terms]
    return each, [coefficient / members.count for coefficient in coefficients] * members.count


def _beside_reward(settings: LossSettings, outputs: tuple[str, ...]) -> bool:
    """Whether attributes have outputs of their own behind the reward of other terms."""
    return len(settings.terms) > 1 and len(outputs) > 1


def _shares(attributes: list[str], given: dict[str, float] | None) -> tuple[float, ...]:
    if given is None:
        return tuple(1 / len(attributes) for _ in attributes)
    if unknown := sorted(set(given) - set(attributes)):
        raise ConfigError(f"loss.reward_weights names {unknown[0]}, which is not among the attributes {', '.join(attributes)}")
    return tuple(given.get(name, 0.0) for name in attributes)


def _parameters(settings: LossSettings) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for term in settings.terms:
        if isinstance(term, TieTermSettings) and term.threshold is None:
            found[TIE_THRESHOLD] = (pairwise.raw_tie_threshold(term.type, TIE_START[term.type]),)
        if isinstance(term, OrdinalTerm):  # thresholds one apart, around zero
            first = -(len(term.levels) - 2) / 2
            found[ORDINAL_THRESHOLDS] = (first, *(pairwise.inverse_softplus(1.0) for _ in term.levels[2:]))
    return found


# --- terms ----------------------------------------------------------------------------------------------------------------------------------------


def _term(term: TermSettings, settings: LossSettings, attributes: tuple[str, ...], outputs: tuple[str, ...]) -> Term:
    def columns(names: list[str]) -> tuple[int, ...]:
        return tuple(attributes.index(name) for name in names)

    kind: str = term.type  # type: ignore[attr-defined]
    if isinstance(term, LinkTerm):
        link = partial(pairwise.focal, gamma=term.gamma) if isinstance(term, FocalTerm) else pairwise.LINKS[kind]
        barrier = term.barrier if isinstance(term, FocalTerm) else 0.0
        return PairwiseTerm(kind, link, settings.margin_source != "none", kind == "scaled_bradley_terry", term.label_smoothing, term.unbiased, barrier)
    if isinstance(term, TieTermSettings):
        threshold: float | None = term.threshold  # type: ignore[attr-defined]
        return TieTerm(kind, None if threshold is None else pairwise.raw_tie_threshold(kind, threshold))
    if isinstance(term, PlackettLuceTerm):
        return ListwiseTerm(kind)
    if isinstance(term, ListwiseSoftmaxTerm):
        return ListwiseTerm(kind, term.temperature)
    if isinstance(term, RatedTerm):
        return PointwiseTerm(
            kind, columns(term.attributes), int(_beside_reward(settings, outputs)), tuple(term.quantiles) if isinstance(term, QuantileTerm) else ()
        )
    if isinstance(term, OrdinalTerm):
        return PointwiseTerm(kind, columns([term.rating]), levels=tuple(term.levels))
    if isinstance(term, OutcomeTerm):
        return PointwiseTerm(kind, columns([term.rating]))
    if isinstance(term, TokenOutcomeTermSettings):
        return TokenOutcomeTerm(attributes.index(term.rating))
    return DivergenceTerm() if isinstance(term, TokenDivergenceTerm) else StepTerm()


def _across(settings: LossSettings) -> Across:
    cross = settings.cross_prompt
    length = settings.length_decorrelation.weight if settings.length_decorrelation else 0.0
    if cross is None:
        return Across(settings.zero_sum, length)
    margins = settings.margin_source != "none" and any(isinstance(term, LinkTerm) and term.type != "scaled_bradley_terry" for term in settings.terms)
    return Across(settings.zero_sum, length, cross.weight, cross.form == "inside", cross.temperature, cross.own_floor, cross.beta, margins)


# --- data -----------------------------------------------------------------------------------------------------------------------------------------


def _attributes(settings: LossSettings) -> tuple[str, ...]:
    """Attributes that any term reads, in order, each once."""
    names: list[str] = []
    for term in settings.terms:
        if isinstance(term, RatedTerm):
            names += term.attributes
        elif isinstance(term, OrdinalTerm | OutcomeTerm | TokenOutcomeTermSettings):
            names.append(term.rating)
    return tuple(dict.fromkeys(names))


def _supervision(settings: LossSettings, attributes: tuple[str, ...]) -> Supervision:
    reads: Reads = "last"
    steps: StepsTerm | None = None
    for term in settings.terms:
        if isinstance(term, TokenOutcomeTermSettings):
            reads = "response"
        elif isinstance(term, TokenDivergenceTerm):
            reads = "divergence" if term.padding == "exclude" else "divergence_padded"
        elif isinstance(term, StepsTerm):
            reads, steps = "steps", term
    listwise = [term for term in settings.terms if isinstance(term, PlackettLuceTerm | ListwiseSoftmaxTerm)]
    margins = settings.margins
    ordinal = next((term for term in settings.terms if isinstance(term, OrdinalTerm)), None)
    return Supervision(
        comparisons=any(term.compares for term in settings.terms),
        ranks=bool(listwise),
        rank_by=next((term.rating for term in listwise if isinstance(term, ListwiseSoftmaxTerm)), None),
        attributes=attributes,
        outcomes=tuple(term.rating for term in settings.terms if isinstance(term, OutcomeTerm | TokenOutcomeTermSettings)),
        levels=tuple(ordinal.levels) if ordinal else (),
        leveled=ordinal.rating if ordinal else None,
        reads=reads,
        classes=steps.classes if steps else 0,
        last_step_only=bool(steps and steps.last_step_only),
        separator=steps.separator if steps else STEP_SEPARATOR,
        ignores_margins=settings.margins is None and not any(term.uses_margins for term in settings.terms),
        margins=MarginRule(margins.source, margins.scale, margins.clip) if margins else MarginRule(),
        scaled=any(term.type == "scaled_bradley_terry" for term in settings.terms),
        lengths=settings.length_decorrelation is not None,
        text=settings.text is not None,
        prompts=settings.cross_prompt is not None,
    )


def check_data(plan: Plan, report: EncodeReport, name: str, *, ties: str) -> None:
    """Refuse what the data show to be a mistake. Raises ConfigError."""
    facts, settings = report.facts, plan.settings
    names = ", ".join(term.type for term in settings.terms)
    uses_margins = any(term.uses_margins for term in settings.terms)
    if settings.margins and settings.margins.source not in ("none", "column") and uses_margins and facts["comparisons"] and not facts["margins"]:
        raise ConfigError(f"loss.margins is {settings.margins.source}, but no comparison of the {name} data has a margin by it; look at its columns")
    if any(isinstance(term, TieTermSettings) for term in settings.terms) and name == "train" and not facts["ties"]:
        hint = "set data.ties: soft to keep the tied ones" if ties == "drop" else "train bradley_terry instead"
        raise ConfigError(f"{names} gives ties a probability, but the {name} data have none among {facts['comparisons']} comparisons; {hint}")
    if name != "train":
        return
    for attribute in plan.supervision.attributes:
        if not facts[f"rating {attribute}"]:
            raise ConfigError(f"no row of the {name} data rates `{attribute}`")
    if plan.supervision.classes == 3 and not facts["steps labelled -1"]:
        raise ConfigError(f"the {name} data have no step labelled -1; with classes: 3 a 0 is neutral. Labels of 0 and 1 need classes: 2")
