"""Judges made of judges: both orders, votes, juries, cascades. What comes out is a judgment of a pair, with how it came about.

A vote or a juror that says nothing takes no part; where nobody says anything there is no judgment. Nothing here makes a label of a failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from palate.errors import ConfigError, DataError
from palate.judging.judge import RESAMPLE_TEMPERATURE, ChatJudge
from palate.judging.orders import EVEN, Outcome, Policy, average_orders, combine_orders
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import PairVerdict, Winner, swapped
from palate.stats.agreement import cohen_kappa
from palate.types import Judge, Matchup, Verdict, text_of


class Judgment(NamedTuple):
    """What both orders say of a pair, in the coordinates of the first: `a` is the response shown first there."""

    winner: Winner | None  # None: no label may be made of this pair
    reason: Outcome
    probability: float | None  # P(a is better); None without a winner
    strength: float
    first: Verdict
    second: Verdict  # as its order showed it: its `a` is the pair's b
    logit: float | None = None  # mean log-odds of a over b over both orders
    position: float | None = None  # what standing first added to the log-odds

    @property
    def contradiction(self) -> bool:
        return self.reason == "contradiction"


VOTE_TEMPERATURE = RESAMPLE_TEMPERATURE

IDENTICAL = Verdict("tie", 0.5, "the two responses are the same text; nobody was asked")


@dataclass(frozen=True)
class BothOrders:
    """Asks a judge in both orders and combines: `drop` (no judgment where they contradict each other), `tie`, or `keep_mean`.

    A pair's orders follow each other, so that a run which a budget ends has whole pairs. Two equal responses are a tie without a call. Log-odds are averaged
    on the logit scale, which takes the position's share out exactly.
    """

    judge: Judge
    policy: Policy = "drop"

    def judge_pairs(self, matchups: Sequence[Matchup]) -> list[Judgment]:
        asked = [one for m in matchups if m.a != m.b for one in (m, Matchup(m.prompt, m.b, m.a))]
        verdicts = self.judge.compare(asked) if asked else []
        if len(verdicts) != len(asked):
            raise DataError(f"the judge gave {len(verdicts)} verdicts for {len(asked)} matchups ({len(asked) // 2} pairs in both orders); expected one each")
        orders = zip(verdicts[::2], verdicts[1::2], strict=True)
        return [self._combined(*(next(orders) if m.a != m.b else (IDENTICAL, IDENTICAL))) for m in matchups]

    def _combined(self, first: Verdict, second: Verdict) -> Judgment:
        if first.logit is not None and second.logit is not None:
            return self._averaged(first, second)
        combined = combine_orders(parsed_of(first), swapped(parsed_of(second)), self.policy)
        strength = (first.strength + second.strength) / 2 if combined.reason == "agreed" else 0.0  # of votes it is a mean, which `combine_orders` has not
        return Judgment(combined.winner, combined.reason, combined.probability, strength, first, second)

    def _averaged(self, first: Verdict, second: Verdict) -> Judgment:
        assert first.logit is not None and second.logit is not None
        delta, position = average_orders(first.logit, -second.logit)
        torn = first.logit * -second.logit < 0  # the label alone would have changed with the order
        reason: Outcome = "contradiction" if torn else "agreed" if abs(delta) > EVEN else "both tie"
        if torn and self.policy == "drop":
            return Judgment(None, reason, None, 0.0, first, second, delta, position)
        if torn and self.policy == "tie":
            return Judgment("tie", reason, 0.5, 0.0, first, second, delta, position)
        probability = 1 / (1 + math.exp(-max(-700.0, min(700.0, delta))))
        winner: Winner = "tie" if abs(delta) <= EVEN else "a" if delta > 0 else "b"
        return Judgment(winner, reason, probability, 0.0, first, second, delta, position)


def parsed_of(verdict: Verdict) -> PairVerdict | ParseFailure:
    """A Verdict of any Judge as the typed verdict that orders are combined from."""
    if verdict.winner == "invalid":
        return ParseFailure("no verdict", verdict.reason)
    confidence = None
    if verdict.probability is not None:
        confidence = {"a": verdict.probability, "b": 1 - verdict.probability, "tie": 0.5}[verdict.winner]
    return PairVerdict(verdict.winner, confidence=confidence)


class Votes:
    """One judge asked `k` times at a temperature above 0; the majority wins, an even split is a tie. `probability` is the share of the votes for a."""

    def __init__(self, judge: ChatJudge, k: int, *, temperature: float = VOTE_TEMPERATURE):
        if k < 2:
            raise ConfigError(f"votes={k}: a vote takes two at least; for one answer use the judge itself")
        if temperature <= 0:
            raise ConfigError(f"votes at temperature {temperature} would be one answer {k} times; give one above 0")
        if judge.reads_logits:
            raise ConfigError(f"{judge.name}: log-odds hold all votes already, and every vote would have the same; leave votes out, or ask in another form")
        if judge.questioner.capabilities is not None:
            judge.questioner.capabilities.require("sampling", judge.name)
        self.judges = [judge.with_sample(sample, temperature=temperature) for sample in range(k)]

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        return pooled([judge.compare(matchups) for judge in self.judges])


class Jury:
    """Several judges on the same pairs, by weight. `jury_figures` says how far they agree, and how many independent ones they amount to."""

    def __init__(self, judges: Sequence[Judge], *, weights: Sequence[float] | None = None, names: Sequence[str] | None = None):
        if len(judges) < 2:
            raise ConfigError(f"a jury has two judges at least, got {len(judges)}")
        if weights is not None and (len(weights) != len(judges) or min(weights) <= 0):
            raise ConfigError(f"{len(judges)} judges need as many weights above 0, got {list(weights)}")
        self.judges, self.weights = list(judges), list(weights or [1.0] * len(judges))
        self.names = list(names or (f"judge {k}" for k in range(1, len(judges) + 1)))
        self.last: list[list[Verdict]] = []  # each judge's verdicts of the last call
        self.said: list[list[str]] = [[] for _ in judges]  # each judge's winners, of all calls

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        self.last = [judge.compare(matchups) for judge in self.judges]
        for said, verdicts in zip(self.said, self.last, strict=True):
            said += [verdict.winner for verdict in verdicts]
        return pooled(self.last, self.weights)


def pooled(verdicts: Sequence[Sequence[Verdict]], weights: Sequence[float] | None = None) -> list[Verdict]:
    """[judges][pairs] to one verdict a pair: the weighted share for a (a tie is half), invalid ones left out."""
    weights = weights or [1.0] * len(verdicts)
    return [_pool(column, weights) for column in zip(*verdicts, strict=True)]


def _pool(column: Sequence[Verdict], weights: Sequence[float]) -> Verdict:
    said = [(verdict, weight) for verdict, weight in zip(column, weights, strict=True) if verdict.winner != "invalid"]
    if not said:
        return Verdict("invalid", None, "; ".join(dict.fromkeys(verdict.reason for verdict in column)))
    total = sum(weight for _, weight in said)
    share = sum(weight * {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict.winner] for verdict, weight in said) / total
    strength = sum(weight * verdict.strength for verdict, weight in said) / total
    winner = "tie" if abs(share - 0.5) < EVEN else "a" if share > 0.5 else "b"
    counts = Counter(verdict.winner for verdict in column)
    return Verdict(winner, share, raw=", ".join(f"{name} {count}" for name, count in sorted(counts.items())), strength=strength)  # type: ignore[arg-type]


def effective_votes(wrong: np.ndarray) -> float:
    """How many independent judges a jury amounts to, from who was wrong where [judges, pairs] (0/1): m / (1 + (m - 1) mean correlation of errors).

    Kish's design effect (Survey Sampling, 1965, section 5.4). Judges whose errors do not vary correlate with nobody.
    """
    wrong = np.asarray(wrong, dtype=float)
    m = len(wrong)
    if m < 2 or wrong.ndim != 2:
        raise ValueError(f"errors of two judges at least are needed as [judges, pairs], got an array of shape {wrong.shape}")
    varying = wrong[wrong.std(axis=1) > 0]
    # pairs with a judge that never (or always) errs have no correlation and count as none
    rho = (np.corrcoef(varying).sum() - len(varying)) / (m * (m - 1)) if len(varying) > 1 else 0.0
    return float(m / (1 + (m - 1) * max(rho, -1 / m)))


def jury_figures(jury: Jury, right: Sequence[Winner] | None = None) -> dict[str, Any]:
    """How the members of a jury stand to each other: `by_weight` (Kish's sum(w)^2 / sum(w^2)), agreement of each two on what both gave a verdict on.

    `right`: the right winner of each matchup of the last call, where it is known; then also each member's accuracy (a verdict that is missing is wrong) and
    `effective_votes`, by the correlation of their errors.
    """
    weights = np.array(jury.weights)
    members = [
        {"name": name, "weight": weight, "verdicts": len(said), "ties": said.count("tie"), "invalid": said.count("invalid")}
        for name, weight, said in zip(jury.names, jury.weights, jury.said, strict=True)
    ]
    figures = {"members": members, "by_weight": float(weights.sum() ** 2 / (weights**2).sum()), "agreement": _agreement(jury), "effective_votes": None}
    if right is not None:
        wrong = np.array([[verdict.winner != winner for verdict, winner in zip(verdicts, right, strict=True)] for verdicts in jury.last])
        for member, own in zip(members, wrong, strict=True):
            member["accuracy"] = float(1 - own.mean())
        figures["effective_votes"] = effective_votes(wrong)
    return figures


def _agreement(jury: Jury) -> list[dict[str, Any]]:
    found = []
    for i, j in combinations(range(len(jury.judges)), 2):
        both = [(one, two) for one, two in zip(jury.said[i], jury.said[j], strict=True) if "invalid" not in (one, two)]
        same = sum(one == two for one, two in both) / len(both) if both else None
        kappa = cohen_kappa(*zip(*both, strict=True)) if both else None
        found.append({"of": (jury.names[i], jury.names[j]), "n": len(both), "same": same, "kappa": None if kappa is None or math.isnan(kappa) else kappa})
    return found


class Cascade:
    """A cheap judge first, a strong one where it does not decide: on contradictions, ties and failures, or where its probability is near one half.

    The strong one may be a cascade itself.
    """

    def __init__(self, cheap: BothOrders, strong: BothOrders | Cascade, *, doubtful: float = 0.0):
        if not 0 <= doubtful < 0.5:
            raise ConfigError(f"doubtful={doubtful}: a distance from 1/2 within which the strong judge is asked, from 0 up to 0.5")
        self.cheap, self.strong, self.doubtful = cheap, strong, doubtful
        self.asked = self.passed_on = 0  # pairs

    def _doubts(self, judgment: Judgment) -> bool:
        undecided = judgment.winner in (None, "tie") and judgment.first is not IDENTICAL
        return undecided or self._near_half(judgment.probability)

    def _near_half(self, probability: float | None) -> bool:
        return probability is not None and abs(probability - 0.5) < self.doubtful

    def judge_pairs(self, matchups: Sequence[Matchup]) -> list[Judgment]:
        judgments = self.cheap.judge_pairs(matchups)
        passed = [i for i, judgment in enumerate(judgments) if self._doubts(judgment)]
        self.asked += len(matchups)
        self.passed_on += len(passed)
        for i, judgment in zip(passed, self.strong.judge_pairs([matchups[i] for i in passed]), strict=True):
            judgments[i] = judgment
        return judgments

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        """As a Judge: two matchups that are one pair in both orders go on together or not at all; one that stands alone, where its own verdict decides nothing.

        Both verdicts of a pair are of one judge.
        """
        found: dict[int, Verdict] = {}
        pairs, alone = _mirrored(matchups)
        for (i, j), judgment in zip(pairs, self.judge_pairs([matchups[i] for i, _ in pairs]), strict=True):
            found[i], found[j] = judgment.first, judgment.second
        found |= zip(alone, self._one_order([matchups[i] for i in alone]), strict=True)
        return [found[i] for i in range(len(matchups))]

    def _one_order(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        if not matchups:
            return []
        verdicts = list(self.cheap.judge.compare(matchups))
        passed = [i for i, verdict in enumerate(verdicts) if verdict.winner in ("tie", "invalid") or self._near_half(verdict.probability)]
        strong = self.strong.compare if isinstance(self.strong, Cascade) else self.strong.judge.compare
        for i, verdict in zip(passed, strong([matchups[i] for i in passed]) if passed else [], strict=True):
            verdicts[i] = verdict
        return verdicts

    def figures(self) -> dict[str, Any]:
        """Pairs that came to the cheap judge, those that went on, and what became of them there."""
        share = self.passed_on / self.asked if self.asked else None
        own = {"pairs": self.asked, "passed_on": self.passed_on, "share_passed_on": share}
        return own | ({"then": self.strong.figures()} if isinstance(self.strong, Cascade) else {})


def _mirrored(matchups: Sequence[Matchup]) -> tuple[list[tuple[int, int]], list[int]]:
    """(places of the two orders of a pair, places of matchups whose other order is not there); each place once. Of two equal texts there is one order."""
    waiting: dict[tuple[str, str, str], list[int]] = {}
    pairs = []
    for i, m in enumerate(matchups):
        prompt, a, b = text_of(m.prompt), text_of(m.a), text_of(m.b)
        if others := waiting.get((prompt, b, a)) if a != b else None:
            pairs.append((others.pop(0), i))
        else:
            waiting.setdefault((prompt, a, b), []).append(i)
    return pairs, sorted(i for places in waiting.values() for i in places)


def count_outcomes(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """How the pairs came out: by reason, and how many may become labels."""
    reasons = Counter(judgment.reason for judgment in judgments)
    kept = sum(judgment.winner in ("a", "b") for judgment in judgments)
    return {"pairs": len(judgments), "kept": kept, "ties": sum(j.winner == "tie" for j in judgments), "reasons": dict(reasons)}
