"""Is adaptation worth it? Draws of n comparisons of a user (or topic, or attribute), tested on that user's other ones, beside heads that do not adapt.

What was adapted on is never tested on: not its comparisons, not its texts, and, unless the data have too few prompts, not its prompts. (The paper's released
evaluation leaves the adaptation pairs in the test set.) All methods get the same draws and the same test comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from palate.errors import DataError
from palate.multi_objective.adaptation import adapt
from palate.multi_objective.pairs import Pairs
from palate.stats.intervals import Interval, mean_interval
from palate.stats.paired import paired_bootstrap, sign_flip

Exclude: TypeAlias = Literal["prompt", "response"]
"""What a test comparison may not share with those adapted on: prompt: neither prompt nor the text of a response; response: no text of a response."""

EXCLUDE: tuple[str, ...] = get_args(Exclude)
LEAST_TESTED = 10  # test comparisons of a draw; fewer would tell one user's accuracy to 16 points at best
SINGLE = "single head"


@dataclass(frozen=True)
class TrialSettings:
    pairs: int = 15  # adapted on; the paper takes 5 and 15
    draws: int = 20  # the paper's
    temperature: float = 1.0
    exclude: Exclude = "prompt"
    seed: int = 0


class Trial(NamedTuple):
    """One method on one user, or the mean of it over users."""

    accuracy: float  # mean over draws
    interval: Interval  # of that mean, over draws (of the mean of users: over users)
    difference: float  # minus the single head, on the same test comparisons
    difference_interval: Interval  # over prompts (of the mean of users: over users)
    p_value: float  # of no difference (paired bootstrap over prompts; of the mean of users: sign flips of users)


@dataclass(frozen=True)
class UserTrials:
    user: str
    pairs: int
    tested: float  # comparisons of a draw's test, mean
    methods: dict[str, Trial]
    draws: dict[str, list[float]] = field(default_factory=dict)  # accuracy of each draw


@dataclass(frozen=True)
class Trials:
    settings: TrialSettings
    users: list[UserTrials]
    overall: dict[str, Trial]  # mean over users
    too_few: dict[str, int]  # users left out, with their number of comparisons

    def as_dict(self) -> dict[str, Any]:
        def plain(trial: Trial) -> dict[str, Any]:
            found = trial._asdict()
            return found | {key: [found[key].low, found[key].high] for key in ("interval", "difference_interval")}

        users = [asdict(user) | {"methods": {name: plain(trial) for name, trial in user.methods.items()}} for user in self.users]
        overall = {name: plain(trial) for name, trial in self.overall.items()}
        return {"settings": asdict(self.settings), "overall": overall, "users": users, "too_few": self.too_few}


def run_trials(
    pairs: Pairs,
    heads: Mapping[str, np.ndarray],
    single: np.ndarray,
    users: Sequence[object],
    settings: TrialSettings,
    *,
    adapt_on: np.ndarray | None = None,
    test_on: np.ndarray | None = None,
) -> Trials:
    """Every user's trials, and their mean.

    `heads`: scores [N, D] of each set of heads that is adapted, by name, or [S, N, D] of S sets that take turns over the draws (random heads: one set's
    luck is no method's); `single` [N]: the reward that does not adapt; `users` [P]: whose comparison it is.
    `adapt_on`, `test_on`: bool [P], where comparisons for either may come from (default: anywhere). Raises DataError where no user has enough of them.
    """
    everything = np.ones(len(pairs), dtype=bool)
    pool, test = everything if adapt_on is None else adapt_on, everything if test_on is None else test_on
    names = np.array([str(user) for user in users])
    found, too_few = [], {}
    for number, user in enumerate(sorted(set(names))):
        rows = np.flatnonzero(names == user)
        one = _user_trials(pairs, heads, single, user, rows[pool[rows]], rows[test[rows]], settings, np.random.default_rng([settings.seed, number]))
        if one is None:
            too_few[user] = len(rows)
        else:
            found.append(one)
    if not found:
        advice = "pass --exclude response where the data have few prompts" if settings.exclude == "prompt" else "adapt on fewer pairs, or give more data"
        raise DataError(
            f"none of {len(too_few)} users or attributes has {settings.pairs} comparisons to adapt on and {LEAST_TESTED} others to test on "
            f"(sharing no {settings.exclude} with them); {advice}"
        )
    return Trials(settings, found, {name: _mean_of([user.methods[name] for user in found]) for name in found[0].methods}, too_few)


def held_out(pairs: Pairs, adapted_on: np.ndarray, candidates: np.ndarray, exclude: Exclude) -> np.ndarray:
    """Those candidate rows that may be tested after adapting on the other rows. [n], [m] -> rows"""
    texts = pairs.contents[np.concatenate([pairs.chosen[adapted_on], pairs.rejected[adapted_on]])]
    seen = np.isin(pairs.contents[pairs.chosen[candidates]], texts) | np.isin(pairs.contents[pairs.rejected[candidates]], texts)
    seen |= np.isin(candidates, adapted_on)
    if exclude == "prompt":
        seen |= np.isin(pairs.prompts[candidates], pairs.prompts[adapted_on])
    return candidates[~seen]


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the chosen response is ahead, 1/2 where both are level."""
    return (margins > 0) + 0.5 * (margins == 0)


def _user_trials(
    pairs: Pairs,
    heads: Mapping[str, np.ndarray],
    single: np.ndarray,
    user: str,
    pool: np.ndarray,
    test: np.ndarray,
    settings: TrialSettings,
    rng: np.random.Generator,
) -> UserTrials | None:
    """None where a draw leaves too little to adapt on or to test on."""
    if len(pool) < settings.pairs:
        return None
    values = {SINGLE: right(single[pairs.chosen[test]] - single[pairs.rejected[test]])}
    sums = {name: np.zeros(len(test)) for name in (SINGLE, *heads)}
    counts = np.zeros(len(test))
    accuracies: dict[str, list[float]] = {name: [] for name in sums}
    for draw in range(settings.draws):
        adapted_on = rng.choice(pool, settings.pairs, replace=False)
        tested = np.isin(test, held_out(pairs, adapted_on, test, settings.exclude))
        if tested.sum() < LEAST_TESTED:
            return None
        counts += tested
        in_turn = {name: scores if scores.ndim == 2 else scores[draw % len(scores)] for name, scores in heads.items()}
        values |= {name: right(_adapted_margins(pairs, scores, adapted_on, test, settings.temperature)) for name, scores in in_turn.items()}
        for name, each in values.items():
            sums[name] += each * tested
            accuracies[name].append(float(each[tested].mean()))
    seen = counts > 0
    means = {name: total[seen] / counts[seen] for name, total in sums.items()}
    methods = {name: _trial(accuracies[name], accuracies[SINGLE], means[name], means[SINGLE], pairs.prompts[test[seen]]) for name in sums}
    return UserTrials(user, len(np.union1d(pool, test)), float(counts.sum() / settings.draws), methods, accuracies)


def _adapted_margins(pairs: Pairs, scores: np.ndarray, adapted_on: np.ndarray, test: np.ndarray, temperature: float) -> np.ndarray:
    """Adapted reward of chosen minus rejected of the test rows."""
    found = adapt(
        scores[pairs.chosen[adapted_on]],
        scores[pairs.rejected[adapted_on]],
        fallback=np.zeros(scores.shape[1]),
        weights=pairs.weight[adapted_on],
        probability=pairs.probability[adapted_on],
        temperature=temperature,
    )
    return (scores[pairs.chosen[test]].astype(np.float64) - scores[pairs.rejected[test]]) @ found.coefficients


def _trial(accuracies: Sequence[float], single: Sequence[float], values: np.ndarray, alone: np.ndarray, prompts: np.ndarray) -> Trial:
    """`values`, `alone`: how often each test comparison was decided right over the draws that tested it."""
    against = paired_bootstrap(alone, values, prompts)
    interval = mean_interval(accuracies, range(len(accuracies)))
    difference = float(np.mean(np.subtract(accuracies, single)))
    return Trial(float(np.mean(accuracies)), interval, difference, Interval(against.low, against.high, "prompt bootstrap"), against.p_value)


def _mean_of(trials: Sequence[Trial]) -> Trial:
    each = [trial.accuracy for trial in trials], [trial.difference for trial in trials]
    accuracy, difference = (mean_interval(values, range(len(values))) for values in each)
    return Trial(float(np.mean(each[0])), accuracy, float(np.mean(each[1])), difference, sign_flip(np.zeros(len(trials)), each[1], range(len(trials))).p_value)
