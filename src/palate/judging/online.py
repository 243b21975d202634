"""A judge inside RL: as the pairwise judge that TRL's trainers took, and as a reward function over the completions of each prompt.

Every pair is judged in both orders, all pairs of a call together, and no pair twice. What a judge does not decide is no label: it is -1 to a trainer that
asks for the better one, and takes no part in a reward.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from palate.errors import ConfigError, DataError, tally
from palate.judging.build import RIDGE
from palate.judging.combining import BothOrders, Cascade, Judgment, count_outcomes
from palate.judging.orders import Policy
from palate.judging.rated import Rated
from palate.judging.schedule import Candidate, Judged, judge_all, judge_within
from palate.judging.strengths import fit_judgments, reading_variance
from palate.types import Conversation, Exchange, Judge, Matchup, Verdict

Undecided: TypeAlias = Literal["missing", "error"]
By: TypeAlias = Literal["strength", "win_rate"]

MISSING = -1
"""What TRL's judges say of a pair whose judgment failed."""

FAILED = ("one invalid", "both invalid")
"""Outcomes of pairs on which the judge said nothing that could be read."""

REMEMBERED = 100_000  # pairs kept in memory, some hundred bytes each

Reward: TypeAlias = Callable[..., Any]


class PairJudge(Protocol):
    """BothOrders, Cascade, OneOrder: a judgment for each pair."""

    def judge_pairs(self, matchups: Sequence[Matchup]) -> list[Judgment]: ...


class OneOrder:
    """One call a pair in place of two: a coin of the pair's own, the same in every run, says which response is shown first.

    The position's share of a verdict is not taken out, it only falls on either side alike.
    """

    def __init__(self, judge: Judge, *, seed: int = 0):
        self.judge, self.seed = judge, seed

    def judge_pairs(self, matchups: Sequence[Matchup]) -> list[Judgment]:
        turned = [hashlib.sha256(f"{self.seed}\0{_key(m)}".encode()).digest()[0] % 2 == 1 for m in matchups]
        shown = [Matchup(m.prompt, m.b, m.a) if turn else m for m, turn in zip(matchups, turned, strict=True)]
        return [_from_one(verdict, turn) for verdict, turn in zip(self.judge.compare(shown), turned, strict=True)]


def _from_one(verdict: Verdict, turned: bool) -> Judgment:
    """A single verdict as judgment; the order that was not asked says nothing."""
    silent = Verdict("invalid", reason="this order was not asked")
    first, second = (silent, verdict) if turned else (verdict, silent)
    if verdict.winner == "invalid":
        return Judgment(None, "both invalid", None, 0.0, first, second)
    stated = {"a": 1.0, "b": 0.0, "tie": 0.5}[verdict.winner] if verdict.probability is None else verdict.probability
    winner = {"a": "b", "b": "a"}.get(verdict.winner, "tie") if turned else verdict.winner
    logit = None if verdict.logit is None else -verdict.logit if turned else verdict.logit
    return Judgment(winner, "both tie" if winner == "tie" else "agreed", 1 - stated if turned else stated, verdict.strength, first, second, logit)  # type: ignore[arg-type]


class Remembering:
    """Asks about each pair once, in whatever order it comes again; a pair that failed is asked about again. Safe to use from several threads."""

    def __init__(self, judge: PairJudge, *, size: int = REMEMBERED):
        self.judge, self.size = judge, size
        self._known: OrderedDict[tuple[str, str, str], Judgment] = OrderedDict()
        self._lock = threading.Lock()

    def judge_pairs(self, matchups: Sequence[Matchup]) -> list[Judgment]:
        keys = [_key(m) for m in matchups]
        with self._lock:
            asked: dict[tuple[str, str, str], Matchup] = {}
            for key, matchup in zip(keys, matchups, strict=True):
                if key not in self._known and _turned(key) not in self._known and _turned(key) not in asked:
                    asked.setdefault(key, matchup)
            found = dict(zip(asked, self.judge.judge_pairs(list(asked.values())), strict=True)) if asked else {}
            told = [self._of(key, found) for key in keys]
            self._known |= {key: judgment for key, judgment in found.items() if judgment.reason not in FAILED}
            while len(self._known) > self.size:
                self._known.popitem(last=False)
            return told

    def _of(self, key: tuple[str, str, str], found: Mapping[tuple[str, str, str], Judgment]) -> Judgment:
        for place in (found, self._known):
            if key in place:
                return place[key]
            if _turned(key) in place:
                return swapped_judgment(place[_turned(key)])
        raise AssertionError("every key is known or was asked about")


def _key(matchup: Matchup) -> tuple[str, str, str]:
    prompt, a, b = (json.dumps(part, ensure_ascii=False, default=str) for part in matchup)
    return prompt, a, b


def _turned(key: tuple[str, str, str]) -> tuple[str, str, str]:
    return key[0], key[2], key[1]


def swapped_judgment(judgment: Judgment) -> Judgment:
    """The judgment of (a, b) as that of (b, a)."""
    winner = {"a": "b", "b": "a", "tie": "tie", None: None}[judgment.winner]
    return judgment._replace(
        winner=winner,  # type: ignore[arg-type]
        probability=None if judgment.probability is None else 1 - judgment.probability,
        first=judgment.second,
        second=judgment.first,
        logit=None if judgment.logit is None else -judgment.logit,
    )


def _pair_judge(judge: Judge | PairJudge, policy: Policy) -> Remembering:
    if isinstance(judge, Remembering):
        return judge
    return Remembering(judge if isinstance(judge, (BothOrders, Cascade, OneOrder)) else BothOrders(judge, policy))  # type: ignore[arg-type]


# --- the better of two ----------------------------------------------------------------------------------------------------------------------------


class OnlineJudge:
    """`judge(prompts, completions, shuffle_order)` -> 0 or 1, the place of the better completion, or -1: the interface of TRL's pairwise judges.

    -1 is what the judge does not decide: contradictions, ties, failures. TRL's Online DPO took a -1 for "the second is better"; `undecided="error"`
    stops there instead. A single Judge is asked in both orders, so `shuffle_order` changes nothing. `outcomes` counts how pairs came out.
    """

    def __init__(self, judge: Judge | PairJudge, *, policy: Policy = "drop", undecided: Undecided = "missing"):
        if undecided not in get_args(Undecided):
            raise ConfigError(f"undecided {undecided!r}, expected one of {', '.join(get_args(Undecided))}")
        self.pairs, self.undecided = _pair_judge(judge, policy), undecided
        self.outcomes: Counter[str] = Counter()

    def judge(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], shuffle_order: bool = True) -> list[int]:
        if any(len(pair) != 2 for pair in completions):
            raise DataError(f"a pairwise judge takes two completions a prompt, got {[len(pair) for pair in completions][:5]}")
        matchups = [Matchup(_plain(p), _plain(a), _plain(b)) for p, (a, b) in zip(prompts, completions, strict=True)]
        judgments = self.pairs.judge_pairs(matchups)
        self.outcomes.update(judgment.reason for judgment in judgments)
        open_pairs = sum(judgment.winner not in ("a", "b") for judgment in judgments)
        if open_pairs and self.undecided == "error":
            raise DataError(f"{open_pairs} of {len(judgments)} pairs were not decided ({tally(Counter(judgment.reason for judgment in judgments))})")
        return [{"a": 0, "b": 1}.get(judgment.winner or "", MISSING) for judgment in judgments]


def online_judge(judge: Judge | PairJudge, *, policy: Policy = "drop", undecided: Undecided = "missing") -> OnlineJudge:
    """A judge for trainers that take one as `judge=`."""
    return OnlineJudge(judge, policy=policy, undecided=undecided)


# --- rewards --------------------------------------------------------------------------------------------------------------------------------------


def judge_reward(
    judge: Judge | PairJudge,
    *,
    by: By = "strength",
    reference: str | None = None,
    pairs_per_prompt: int | None = None,
    policy: Policy = "drop",
    ridge: float = RIDGE,
    name: str = "judge",
    asynchronous: bool = True,
) -> Reward:
    """A reward function for TRL from judgments of pairs: `f(prompts, completions, completion_ids, **columns)` -> one number, or None, a completion.

    `by` "strength": Bradley-Terry strengths in logits, among the completions of one prompt in the call; "win_rate": the mean probability of beating one
    of the others. `reference` names a column with an answer to each prompt: the reward is the probability of beating that, and completions are not
    compared with each other. `pairs_per_prompt`: judge no more pairs than that, the most telling ones (`schedule.judge_within`).

    A completion of which no pair was decided has no reward. `asynchronous=False` gives a plain function, which Online DPO needs. Logged, where TRL takes
    metrics: shares of pairs that were decided, contradicted each other or failed, and of completions without a reward. Raises ConfigError where no
    prompt has two completions in the call.
    """
    if by not in get_args(By):
        raise ConfigError(f"by {by!r}, expected one of {', '.join(get_args(By))}")
    pairs = _pair_judge(judge, policy)

    def rewards(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> tuple[list[float | None], dict[str, float]]:
        asked, answered = [_plain(prompt) for prompt in prompts], [_plain(completion) for completion in completions]
        if reference is not None:
            found, judgments = _against_reference(pairs, asked, answered, _column(columns, reference, len(asked)))
        else:
            found, judgments = _within_groups(pairs, asked, answered, by, ridge, pairs_per_prompt)
        return found, _shares(judgments) | {"unscored": sum(value is None for value in found) / max(1, len(found))}

    return _reward_function(rewards, name, asynchronous)


class Rater(Protocol):
    """A RatingJudge: one rating an exchange, its value None where it failed."""

    def rate(self, exchanges: Sequence[Exchange], *, references: Sequence[Conversation | None] | None = None) -> list[Rated]: ...


def rating_reward(rater: Rater, *, reference: str | None = None, name: str = "rating", asynchronous: bool = True) -> Reward:
    """The same from ratings of single completions, on the rater's scale; `reference` names a column with right answers to judge by."""

    def rewards(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> tuple[list[float | None], dict[str, float]]:
        exchanges = [Exchange(_plain(prompt), _plain(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
        answers = None if reference is None else _column(columns, reference, len(exchanges))
        found = [rated.value for rated in rater.rate(exchanges, references=answers)]
        return found, {"unscored": sum(value is None for value in found) / max(1, len(found))}

    return _reward_function(rewards, name, asynchronous)


def _reward_function(
    rewards: Callable[[Sequence[Any], Sequence[Any], Mapping[str, Any]], tuple[list[float | None], dict[str, float]]], name: str, asynchronous: bool
) -> Reward:
    """Under TRL's signature; the judge waits for its calls in a thread, so that other reward functions go on beside it."""

    def told(found: tuple[list[float | None], dict[str, float]], log_metric: Any) -> list[float | None]:
        if log_metric is not None:
            for metric, value in found[1].items():
                log_metric(f"{name}/{metric}", value)
        return found[0]

    def reward(prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, **columns: Any) -> list[float | None]:
        return told(rewards(prompts, completions, columns), log_metric)

    async def reward_async(prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, **columns: Any) -> list[float | None]:
        return told(await asyncio.to_thread(rewards, prompts, completions, columns), log_metric)

    function: Reward = reward_async if asynchronous else reward
    function.__name__ = function.__qualname__ = name
    return function


def _against_reference(
    pairs: PairJudge, prompts: Sequence[Conversation], completions: Sequence[Conversation], references: Sequence[Conversation | None]
) -> tuple[list[float | None], list[Judgment]]:
    known = [i for i, reference in enumerate(references) if reference is not None]
    judgments = pairs.judge_pairs([Matchup(prompts[i], completions[i], references[i]) for i in known])  # type: ignore[arg-type]
    found: list[float | None] = [None] * len(prompts)
    for i, judgment in zip(known, judgments, strict=True):
        found[i] = judgment.probability
    return found, judgments


def _within_groups(
    pairs: PairJudge, prompts: Sequence[Conversation], completions: Sequence[Conversation], by: By, ridge: float, most: int | None
) -> tuple[list[float | None], list[Judgment]]:
    groups: dict[str, list[int]] = {}  # of one prompt, wherever they stand in the call
    for i, prompt in enumerate(prompts):
        groups.setdefault(json.dumps(prompt, default=str), []).append(i)
    rows = [members for members in groups.values() if len(members) > 1]
    if prompts and not rows:
        raise ConfigError(
            f"none of {len(prompts)} prompts has two completions in this call, so there is nothing to compare; raise the number of completions of a prompt "
            "on a device, or compare with a reference answer (reference=COLUMN)"
        )
    asked = [prompts[members[0]] for members in rows]
    candidates = [[Candidate(completions[i]) for i in members] for members in rows]
    if most is None:
        judged = judge_all(pairs.judge_pairs, asked, candidates)
    else:
        judged = judge_within(pairs.judge_pairs, asked, candidates, pairs_per_prompt=most, ridge=ridge)
    told = [one for one in judged if one.judgment.probability is not None]
    values = _strengths(told, candidates, ridge) if by == "strength" else _win_rates(told, candidates)
    found: list[float | None] = [None] * len(prompts)
    for members, group in zip(rows, values, strict=True):
        for i, value in zip(members, group, strict=True):
            found[i] = None if np.isnan(value) else float(value)
    return found, [one.judgment for one in judged]


def _win_rates(told: Sequence[Judged], candidates: Sequence[Sequence[Candidate]]) -> list[np.ndarray]:
    """Mean probability of beating another, of each response of each prompt; NaN without a decided pair."""
    wins, games = ([np.zeros(len(group)) for group in candidates] for _ in range(2))
    for one in told:
        p = float(one.judgment.probability or 0.0)
        for response, share in ((one.first, p), (one.second, 1 - p)):
            wins[one.prompt][response] += share
            games[one.prompt][response] += 1
    return [np.where(count > 0, won / np.maximum(count, 1), np.nan) for won, count in zip(wins, games, strict=True)]


def _strengths(told: Sequence[Judged], candidates: Sequence[Sequence[Candidate]], ridge: float) -> list[np.ndarray]:
    """Bradley-Terry strengths (logits, mean 0 within a prompt); NaN without a decided pair, where the prior alone would speak."""
    found = [np.full(len(group), np.nan) for group in candidates]
    if not told:
        return found
    fit = fit_judgments(told, candidates, variance=reading_variance(told), ridge=ridge)
    strengths = {int(g): fit.block(place)[0] for place, g in enumerate(fit.prompts)}
    for one in told:
        for response in (one.first, one.second):
            found[one.prompt][response] = strengths[one.prompt][response]
    return found


def _shares(judgments: Sequence[Judgment]) -> dict[str, float]:
    counts, total = count_outcomes(judgments), max(1, len(judgments))
    reasons: Mapping[str, int] = counts["reasons"]
    failed = sum(reasons.get(reason, 0) for reason in FAILED)
    return {"decided": counts["kept"] / total, "contradicted": reasons.get("contradiction", 0) / total, "failed": failed / total}


def _column(columns: Mapping[str, Any], name: str, size: int) -> list[Conversation | None]:
    if name not in columns:
        raise ConfigError(f"the data has no column {name!r}; columns: {', '.join(columns) or 'none'}")
    if len(columns[name]) != size:
        raise DataError(f"column {name!r} has {len(columns[name])} values for {size} completions; expected one each")
    return [None if value is None else _plain(value) for value in columns[name]]


def _plain(value: Any) -> Conversation:
    """Text, or messages as a tuple, which compare and serialize alike wherever they come from."""
    return value if isinstance(value, str) else tuple(dict(message) for message in value)
