"""Strengths of responses from what a judge said: a fit of verdicts and log-odds within each prompt, with the source of a response as prior; or its ratings.

A verdict is a game (Bradley-Terry). Log-odds are a measurement: the mean of both orders is the difference of two strengths with an error, whose variance can
be read off the judgments themselves. The two orders say delta + position + e1 and delta - position + e2, so half their sum errs by (e1 + e2) / 2 and half
their difference varies by (e1 - e2) / 2: independent errors have the same variance in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from palate.stats.bradley_terry import ManyStrengths, Readings, fit_many

if TYPE_CHECKING:
    from palate.judging.rated import Rated
    from palate.judging.schedule import Candidate, Judged

GAMES = 2
"""A judgment is two verdicts, one in each order."""

LEAST_VARIANCE = (1 / 16) ** 2 / 12
"""Of a mean of log-odds: what rounding alone makes of it where logits between 8 and 16 come in bfloat16, 1/16 apart. Two logits, two orders, halved."""

RATING_SPAN = 6.0
"""Logits from the worst rating to the best: half of the scale is worth 3, Llama 2's largest margin (arXiv 2307.09288, table 27). A choice of ours."""


class Columns(NamedTuple):
    """Judgments of pairs as columns: verdicts, and log-odds where the judge stated them."""

    prompt: np.ndarray
    first: np.ndarray
    second: np.ndarray
    p_first: np.ndarray  # of verdicts; NaN where there are log-odds
    logit: np.ndarray  # NaN where there are none

    def fit(self, variance: float, *, ridge: float, sizes: Sequence[int] | None = None, prior: np.ndarray | None = None) -> ManyStrengths:
        """`sizes` and `prior` as `fit_many` has them."""
        read = np.isfinite(self.logit)
        won = ~read
        readings = Readings(self.prompt[read], self.first[read], self.second[read], self.logit[read], np.full(int(read.sum()), 1 / variance))
        games = (column[won] for column in self[:4])
        return fit_many(*games, weight=np.full(int(won.sum()), float(GAMES)), ridge=ridge, sizes=sizes, prior=prior, readings=readings)


def columns_of(told: Sequence[Judged]) -> Columns:
    """Of judgments with a winner. A tie that the policy made of a contradiction is a tie, whatever the log-odds were."""
    prompt, first, second = (np.array([getattr(one, name) for one in told], dtype=np.int64) for name in ("prompt", "first", "second"))
    stated = [one.judgment.logit is not None and not (one.judgment.contradiction and one.judgment.winner == "tie") for one in told]
    p = np.array([np.nan if logit else one.judgment.probability for one, logit in zip(told, stated, strict=True)], dtype=float)
    logits = np.array([one.judgment.logit if logit else np.nan for one, logit in zip(told, stated, strict=True)], dtype=float)
    return Columns(prompt, first, second, p, logits)


def reading_variance(judged: Sequence[Judged]) -> float:
    """Of a judge's mean log-odds: that of its `position` from pair to pair. A bias that differs between pairs counts as error too."""
    positions = [one.judgment.position for one in judged if one.judgment.position is not None]
    return max(float(np.var(positions, ddof=1)) if len(positions) > 1 else 0.0, LEAST_VARIANCE)


class Prior(NamedTuple):
    means: np.ndarray | None  # [responses of all prompts]; None: 0 each
    sources: dict[str, float]  # strength of each source


def source_prior(told: Sequence[Judged], candidates: Sequence[Sequence[Candidate]], *, variance: float, ridge: float) -> Prior:
    """Each response's prior mean is the strength of the source that wrote it over all prompts; none where there are not two sources that met."""
    names = sorted({candidate.source for group in candidates for candidate in group})
    place = {name: k for k, name in enumerate(names)}
    met = [one for one in told if candidates[one.prompt][one.first].source != candidates[one.prompt][one.second].source]
    if not met:
        return Prior(None, {})
    first, second = (np.array([place[candidates[one.prompt][getattr(one, side)].source] for one in met]) for side in ("first", "second"))
    everyone = columns_of(met)._replace(prompt=np.zeros(len(met), dtype=np.int64), first=first, second=second)
    strengths = everyone.fit(variance, ridge=ridge, sizes=[len(names)]).strengths
    means = np.array([strengths[place[candidate.source]] for group in candidates for candidate in group])
    return Prior(means, {name: float(strength) for name, strength in zip(names, strengths, strict=True)})


def fit_judgments(
    told: Sequence[Judged], candidates: Sequence[Sequence[Candidate]], *, variance: float, ridge: float, prior: np.ndarray | None = None
) -> ManyStrengths:
    """Strengths within each prompt that has a judgment. `prior`: of all responses of all prompts."""
    columns = columns_of(told)
    present = np.unique(columns.prompt)
    own = None
    if prior is not None:
        starts = np.concatenate([[0], np.cumsum([len(group) for group in candidates])])
        own = np.concatenate([prior[starts[g] : starts[g + 1]] for g in present])
    return columns.fit(variance, ridge=ridge, sizes=[len(candidates[g]) for g in present], prior=own)


def fit_ratings(rated: Sequence[Sequence[Rated]], *, scale: float, deviation: float, span: float = RATING_SPAN) -> ManyStrengths:
    """Ratings [prompts][responses] as strengths: `span` logits for the whole `scale` (highest less lowest rating). NaN where there is no rating.

    Errors are those of a mean of votes, each with the standard deviation `deviation` (`vote_deviation`; NaN: not known). They leave out what the judge says
    of an answer every time and wrongly.
    """
    per_point = span / scale
    values = [np.array([np.nan if one.value is None else one.value for one in group]) for group in rated]
    strengths = np.concatenate([per_point * (own - (np.nanmean(own) if np.isfinite(own).any() else 0.0)) for own in values])
    errors = np.array([per_point * deviation / np.sqrt(len(one.votes)) if one.votes else np.nan for group in rated for one in group])
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in rated])])
    blocks = [np.diag(errors[start:end] ** 2).ravel() for start, end in pairwise(offsets)]
    return ManyStrengths(
        prompts=np.arange(len(rated)),
        offsets=offsets,
        strengths=strengths,
        errors=errors,
        covariance=np.concatenate(blocks),
        covariance_offsets=np.concatenate([[0], np.cumsum([len(block) for block in blocks])]),
        position=None,
        position_error=None,
        log_likelihood=float("nan"),
        iterations=0,
    )
