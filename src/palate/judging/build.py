"""What a judge said to preference rows: strengths within each prompt, pairs, margins, soft labels; every pair that is not kept is counted with its reason.

A prompt's strengths are fitted to its judgments, or are its ratings (`strengths.py`). Ties inform the strengths and make no row, and neither does a pair that
the judge was asked about and did not decide, whatever the prompt's other judgments say of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from palate.errors import ConfigError, DataError, tally
from palate.judging.card_figures import CardInput, card_figures
from palate.judging.list_judge import ListJudge
from palate.judging.lists import judgments as list_judgments
from palate.judging.lists import list_figures
from palate.judging.orders import Policy
from palate.judging.rated import Rated, rating_figures, vote_deviation
from palate.judging.rated import judgments as rated_judgments
from palate.judging.rating_judge import RatingJudge
from palate.judging.schedule import Candidate, Judged, JudgePairs, judge_all, judge_within, prompt_seed
from palate.judging.selection import MARGIN_CLIP, MarginTransform, Selector, margins_of, select_pairs
from palate.judging.strengths import RATING_SPAN, fit_judgments, fit_ratings, reading_variance, source_prior
from palate.stats.bradley_terry import ManyStrengths, difference_within
from palate.types import Conversation, Exchange, text_of

RIDGE = 0.5
"""Prior precision of a strength. With two games a pair a consistent chain of four spans 3.2 logits at 0.5 and 2.3 at 1: Llama 2's range of margins."""

OVERRULED = "overruled by the prompt's other judgments"
EQUAL = "equal strengths"
NOT_SELECTED = "not selected"
SMALL = "margin too small"


@dataclass(frozen=True)
class BuildSettings:
    """How judgments become rows. What becomes of contradictions is the policy of `BothOrders`."""

    select: Selector = "all"
    ridge: float = RIDGE
    source_prior: bool = True
    rating_span: float = RATING_SPAN  # logits from the worst rating to the best
    margin: MarginTransform = "clip"
    margin_clip: float = MARGIN_CLIP
    min_margin: float = 0.0
    pairs_per_prompt: int | None = None  # judged at most; None: all pairs
    seed: int = 0


class Built(NamedTuple):
    rows: list[dict[str, Any]]
    card: dict[str, Any]
    judged: list[Judged]


class Asked(NamedTuple):
    """The prompts and their candidates, as they were given."""

    prompts: Sequence[Conversation]
    candidates: Sequence[Sequence[Candidate]]
    ids: Sequence[str] | None
    provenance: Mapping[str, Any]


class Evidence(NamedTuple):
    """What the judge said, and the strengths that follow."""

    judged: Sequence[Judged]
    fit: ManyStrengths
    figures: Mapping[str, Any]  # of the judging, for the card
    rated: Sequence[Sequence[Rated]] | None = None  # where responses were rated by themselves


class _Pick(NamedTuple):
    """A pair that may become a row."""

    prompt: int
    place: int  # of the prompt in the fit
    chosen: int
    rejected: int
    own: Judged | None  # what the judge said of this very pair; None: it was not asked, the strengths say it


def build(
    judge_pairs: JudgePairs,
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    *,
    settings: BuildSettings | None = None,
    ids: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Built:
    """Judge pairs of the candidates of every prompt and make rows. Raises DataError where there is nothing to compare or no judgment came of it."""
    settings = settings or BuildSettings()
    _check(prompts, candidates, settings)
    if settings.pairs_per_prompt is None:
        judged = judge_all(judge_pairs, prompts, candidates)
    else:
        judged = judge_within(judge_pairs, prompts, candidates, pairs_per_prompt=settings.pairs_per_prompt, ridge=settings.ridge, seed=settings.seed)
    return assemble(judged, prompts, candidates, settings=settings, ids=ids, provenance=provenance)


def build_listed(
    judge: ListJudge,
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    *,
    policy: Policy = "drop",
    settings: BuildSettings | None = None,
    ids: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Built:
    """As `build`, from rankings: the pairs of a list are games, those of an order and of its mirror image being the two orders of a pair."""
    settings = settings or BuildSettings()
    _check(prompts, candidates, settings, style="list")
    lists = judge.rank(prompts, [[candidate.text for candidate in group] for group in candidates])
    figures = {"style": "list", "lists": list_figures(lists)}
    return assemble(list_judgments(lists, policy), prompts, candidates, settings=settings, ids=ids, provenance=provenance, figures=figures)


def build_rated(
    judge: RatingJudge,
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    *,
    settings: BuildSettings | None = None,
    ids: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Built:
    """As `build`, from ratings: they are the strengths, `settings.rating_span` logits for the whole scale. A response without a rating is in no row."""
    settings = settings or BuildSettings()
    _check(prompts, candidates, settings, style="rating")
    flat = iter(judge.rate([Exchange(prompt, candidate.text) for prompt, group in zip(prompts, candidates, strict=True) for candidate in group]))
    rated = [[next(flat) for _ in group] for group in candidates]
    judged = rated_judgments(rated, scale=judge.scale)
    if all(one.judgment.winner is None for one in judged):
        raise _unusable(judged)
    fit = fit_ratings(rated, scale=judge.scale, deviation=vote_deviation(rated), span=settings.rating_span)
    evidence = Evidence(judged, fit, {"style": "rating", "ratings": rating_figures(rated)}, rated)
    return _built(evidence, Asked(prompts, candidates, ids, provenance or {}), settings)


def _check(prompts: Sequence[Conversation], candidates: Sequence[Sequence[Candidate]], settings: BuildSettings, style: str = "pairwise") -> None:
    if len(prompts) != len(candidates):
        raise DataError(f"{len(prompts)} prompts and {len(candidates)} lists of responses; give one list a prompt")
    if all(len(group) < 2 for group in candidates):
        raise DataError(f"none of the {len(prompts)} prompts has two responses to compare")
    if style != "pairwise" and settings.pairs_per_prompt is not None:
        raise ConfigError(f"pairs_per_prompt is for judging pair by pair; style {style} asks about all responses of a prompt. Leave it out")
    _check_marks(candidates, settings)


def _check_marks(candidates: Sequence[Sequence[Candidate]], settings: BuildSettings) -> None:
    if settings.select == "on_policy" and not any(candidate.on_policy for group in candidates for candidate in group):
        raise ConfigError("select: on_policy, but no response is marked so; give the rows `on_policy` (true or false, one a response), or select otherwise")


def assemble(
    judged: Sequence[Judged],
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    *,
    settings: BuildSettings | None = None,
    ids: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Built:
    """Rows and data card of judgments that are already there; no call is made. `figures` of the judging go into the card."""
    settings = settings or BuildSettings()
    _check_marks(candidates, settings)
    told = [one for one in judged if one.judgment.winner is not None]
    if not told:
        raise _unusable(judged)
    variance = reading_variance(judged)
    prior = source_prior(told, candidates, variance=variance, ridge=settings.ridge) if settings.source_prior else None
    fit = fit_judgments(told, candidates, variance=variance, ridge=settings.ridge, prior=prior.means if prior else None)
    stated = any(one.judgment.logit is not None for one in told)
    known = {"style": "pairwise", "reading_deviation": variance**0.5 if stated else None, "source_strengths": prior.sources if prior else {}}
    return _built(Evidence(judged, fit, {**known, **(figures or {})}), Asked(prompts, candidates, ids, provenance or {}), settings)


def _unusable(judged: Sequence[Judged]) -> DataError:
    reasons = Counter(one.judgment.reason for one in judged)
    said = Counter(verdict.reason for one in judged for verdict in (one.judgment.first, one.judgment.second) if verdict.reason)
    why = "".join(f"; {count} times: {reason[:200]}" for reason, count in said.most_common(3))
    return DataError(f"no pair can be used: of {len(judged)} judgments: {tally(reasons)}{why}; look at the judge (palate judge audit) before building with it")


def _built(evidence: Evidence, asked: Asked, settings: BuildSettings) -> Built:
    fates: Counter[str] = Counter()  # of every judged pair, where it made no row
    picks = _picks(evidence, asked, settings, fates)
    rows, inferred = _rows(picks, evidence, asked, settings, fates)
    if not rows:
        raise DataError(f"no pair becomes a row: of {len(evidence.judged)} judgments: {tally(fates)}; select more, lower min_margin, or look at the judge")
    left_out = {reason: count for reason, count in fates.items() if count}
    made = CardInput(evidence.judged, rows, left_out, inferred, asked.prompts, asked.candidates, evidence.figures)
    return Built(rows, card_figures(made, settings, asked.provenance), list(evidence.judged))


# --- pairs -------------------------------------------------------------------------------------------------------------------------------------


def _picks(evidence: Evidence, asked: Asked, settings: BuildSettings, fates: Counter[str]) -> list[_Pick]:
    """The selected pairs of all prompts; the fate of every judged pair that is not among them is counted."""
    fit = evidence.fit
    by_prompt: dict[int, dict[frozenset[int], Judged]] = defaultdict(dict)
    for one in evidence.judged:
        by_prompt[one.prompt][one.pair] = one
        if one.judgment.winner not in ("a", "b"):
            fates[one.judgment.reason] += 1
    picks: list[_Pick] = []
    for place, g in enumerate(fit.prompts.tolist()):
        strengths = fit.strengths[fit.offsets[place] : fit.offsets[place + 1]]
        marks = [candidate.on_policy for candidate in asked.candidates[g]]
        own = by_prompt[g]
        selected = select_pairs(strengths, settings.select, judged=set(own), on_policy=marks, seed=prompt_seed(settings.seed, asked.prompts[g]))
        chosen_by = {frozenset((pick.chosen, pick.rejected)): pick.chosen for pick in selected}
        for pair, one in own.items():
            if one.judgment.winner in ("a", "b"):
                fates[_fate(one, strengths, chosen_by.get(pair), settings)] += 1
        for pick in selected:
            one_own = own.get(frozenset((pick.chosen, pick.rejected)))
            if one_own is None or _winner(one_own) == pick.chosen:
                picks.append(_Pick(g, place, pick.chosen, pick.rejected, one_own))
    fates.pop("", None)
    return picks


def _fate(one: Judged, strengths: np.ndarray, chosen: int | None, settings: BuildSettings) -> str:
    """Why a decided pair makes no row; empty where it does."""
    if chosen is None:
        return EQUAL if settings.select == "all" or strengths[one.first] == strengths[one.second] else NOT_SELECTED
    return "" if _winner(one) == chosen else OVERRULED


def _winner(one: Judged) -> int | None:
    return {"a": one.first, "b": one.second}.get(one.judgment.winner or "")


# --- rows --------------------------------------------------------------------------------------------------------------------------------------


def _rows(picks: Sequence[_Pick], evidence: Evidence, asked: Asked, settings: BuildSettings, fates: Counter[str]) -> tuple[list[dict[str, Any]], int]:
    """(rows, how many of them are of pairs that were not asked)."""
    if not picks:
        return [], 0
    fit, ids = evidence.fit, list(asked.ids) if asked.ids is not None else [_id(prompt) for prompt in asked.prompts]
    places, chosen, rejected = (np.array([getattr(pick, name) for pick in picks]) for name in ("place", "chosen", "rejected"))
    gaps = difference_within(fit, places, chosen, rejected)
    margins = margins_of(gaps.value, settings.margin, clip=settings.margin_clip)
    kept = np.flatnonzero(margins >= settings.min_margin).tolist()
    fates[SMALL] += sum(pick.own is not None for pick in picks) - sum(picks[k].own is not None for k in kept)
    per_prompt = Counter(picks[k].prompt for k in kept)
    shared = {key: asked.provenance[key] for key in ("judge", "template_hash") if asked.provenance.get(key) is not None}
    p_hat = 1 / (1 + np.exp(-gaps.value))
    rows = []
    for k in kept:
        pick, group = picks[k], asked.candidates[picks[k].prompt]
        start = fit.offsets[pick.place]
        better, worse = start + pick.chosen, start + pick.rejected
        rows.append(
            {
                "prompt": asked.prompts[pick.prompt],
                "chosen": group[pick.chosen].text,
                "rejected": group[pick.rejected].text,
                "margin": float(margins[k]),
                "p_hat": float(p_hat[k]),
                "beta_chosen": float(fit.strengths[better]),
                "beta_rejected": float(fit.strengths[worse]),
                "beta_chosen_se": _known(fit.errors[better]),
                "beta_rejected_se": _known(fit.errors[worse]),
                "beta_se": _known(gaps.error[k]),
                "pair_weight": 1 / per_prompt[pick.prompt],  # every prompt counts once (InstructGPT, arXiv 2203.02155, eq. 1)
                "group_id": ids[pick.prompt],
                "chosen_model": group[pick.chosen].source,
                "rejected_model": group[pick.rejected].source,
                **(_verdict_columns(pick) if evidence.rated is None else _rating_columns(pick, evidence.rated)),
                **shared,
            }
        )
    return rows, sum(picks[k].own is None for k in kept)


def _verdict_columns(pick: _Pick) -> dict[str, Any]:
    """What the judge said of this very pair: `verdict_ab` with the chosen response shown first, `verdict_ba` with the rejected one first."""
    if pick.own is None:
        return {"verdict_ab": None, "verdict_ba": None, "consistent": None, "logit": None}
    one, judgment = pick.own, pick.own.judgment
    straight = one.first == pick.chosen
    shown_first, shown_second = (judgment.first, judgment.second) if straight else (judgment.second, judgment.first)
    return {
        "verdict_ab": {"a": "chosen", "b": "rejected"}.get(shown_first.winner, shown_first.winner),
        "verdict_ba": {"a": "rejected", "b": "chosen"}.get(shown_second.winner, shown_second.winner),
        "consistent": judgment.reason in ("agreed", "both tie"),
        "logit": None if judgment.logit is None else judgment.logit if straight else -judgment.logit,
    }


def _rating_columns(pick: _Pick, rated: Sequence[Sequence[Rated]]) -> dict[str, Any]:
    """The ratings of both responses on the judge's own scale, and those of each aspect."""
    found: dict[str, Any] = {}
    for side, k in (("chosen", pick.chosen), ("rejected", pick.rejected)):
        one = rated[pick.prompt][k]
        found |= {f"rating_{side}": one.value, f"votes_{side}": len(one.votes), **({f"aspects_{side}": dict(one.aspects)} if one.aspects else {})}
    return found


def _known(error: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(error) else float(error)


def _id(prompt: Conversation) -> str:
    return hashlib.sha256(text_of(prompt).encode()).hexdigest()[:16]
