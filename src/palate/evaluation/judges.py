"""Judges measured: every pair asked in both orders, verdicts swapped back, and what position, ties and failures do to the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from palate.errors import DataError
from palate.evaluation.items import Items, compare, with_rewards
from palate.evaluation.protocols.orders import TwoOrders, Winner, swapped, two_orders, winner
from palate.stats.agreement import kappa_interval
from palate.stats.calibration import brier, expected_calibration_error, log_loss
from palate.stats.composite import proportion
from palate.types import Exchange, Judge, Matchup, PreferenceGroup, Scorer, Verdict


def ask_both_orders(judge: Judge, items: Items, chosen_first: np.ndarray) -> tuple[list[Verdict], list[Verdict]]:
    """(verdicts of (1, 2), verdicts of (2, 1)) for each comparison; 1 is the response labelled better where `chosen_first`. One call to the judge."""
    matchups = []
    for i in range(len(items)):
        g = items.group[i]
        group, start = items.scored.groups[g], items.scored.offsets[g]
        chosen, rejected = (group.responses[int(side[i] - start)] for side in (items.chosen, items.rejected))
        matchups.append(Matchup(group.prompt, chosen, rejected) if chosen_first[i] else Matchup(group.prompt, rejected, chosen))
    # a pair's orders follow each other, so that a judge whose budget ends has whole pairs
    verdicts = list(judge.compare([one for m in matchups for one in (m, Matchup(m.prompt, m.b, m.a))]))
    if len(verdicts) != 2 * len(matchups):
        raise DataError(f"the judge gave {len(verdicts)} verdicts for {2 * len(matchups)} matchups; expected one each")
    return verdicts[::2], verdicts[1::2]


def winner_of(verdict: Verdict) -> Winner:
    """The verdict in the coordinates of the order that was asked."""
    found: dict[str, Winner] = {"a": "1", "b": "2", "tie": "tie", "invalid": None}
    return found[verdict.winner]


def decided(groups: Sequence[PreferenceGroup]) -> tuple[Items, np.ndarray]:
    """(the comparisons with a winner, whether each one's better response is shown first in the first order). Raises DataError where there are none."""
    if not any(group.comparisons for group in groups):
        raise DataError(f"nothing to judge: none of the {len(groups)} groups has a comparison")
    scored = with_rewards(groups, np.zeros(sum(len(group.responses) for group in groups)))
    items = compare(scored)
    items = items[~items.is_tie]
    if not len(items):
        raise DataError("nothing to judge: every comparison is labelled a tie")
    # a coin decides which response is the first, else data that write the better one first would have one label only, and no kappa
    return items, np.random.default_rng(0).random(len(items)) < 0.5


class JudgedItems(NamedTuple):
    """Decided comparisons, and what a judge said of each in both orders, as each order showed it."""

    items: Items
    chosen_first: np.ndarray  # bool [P]: whether the better response stood first in the first order
    first: list[Verdict]
    second: list[Verdict]

    @property
    def right(self) -> list[Literal["a", "b"]]:
        """The right winner of each matchup, as they were asked about: the first order of a pair, then its second."""
        return ["a" if shown_first else "b" for first in self.chosen_first for shown_first in (first, not first)]


def judge_items(judge: Judge, groups: Sequence[PreferenceGroup]) -> JudgedItems:
    """Every decided comparison asked about in both orders, in one call to the judge."""
    items, chosen_first = decided(groups)
    return JudgedItems(items, chosen_first, *ask_both_orders(judge, items, chosen_first))


def evaluate_judge(judge: Judge, groups: Sequence[PreferenceGroup], *, confidence: float = 0.95, writer: str | None = None) -> dict[str, Any]:
    """`audit` of a judge on preference data, asked here."""
    return audit(judge_items(judge, groups), confidence=confidence, writer=writer)


def audit(judged: JudgedItems, *, confidence: float = 0.95, writer: str | None = None) -> dict[str, Any]:
    """Figures of a judge: both orders, consistency, position, length, failures, kappa, with intervals.

    `accuracy` is the mean over both orders, a tie or an invalid verdict being wrong; `kept` is what agrees in both orders and decides.
    `first_position`: of the pairs on which the orders contradict each other, the share decided for the response shown first; 0.5 is no position bias.
    `length`: the share of decided verdicts for the longer response, beside the labels' own share. `calibration`: of the probabilities, where the judge
    gives them, averaged over the orders on the logit. `writer`: a model among the metadata's `chosen_model` and `rejected_model`; how often the judge
    prefers it, beside how often the labels do (self-preference, where the judge is that model).
    """
    items, chosen_first, one, two = judged
    labels = np.where(chosen_first, "1", "2")
    first = [winner_of(verdict) for verdict in one]
    second = [swapped(winner_of(verdict)) for verdict in two]
    figures = judge_figures(labels.tolist(), first, second, items.prompts, confidence)
    figures["length"] = _length(items, labels, first, second, confidence)
    figures["calibration"] = _calibration(labels, one, two)
    figures["self_preference"] = _preference_for(writer, items, labels, first, second, confidence) if writer else None
    return figures | {"reasons": _reasons([*one, *two])}


def judgment_records(judged: JudgedItems, judge: str = "") -> list[dict[str, Any]]:
    """One record a comparison, as recorded judgments are read (`palate judge replay`) and benchmarks with two orders score them.

    `label` and `judgments` by order: "12" shows the group's earlier response first, "21" the later one; winners stand in the coordinates of the group, None
    where there was no verdict, with its `reason`. `text` is what the judge wrote, where it wrote anything.
    """
    records = []
    for i, (one, two) in enumerate(zip(judged.first, judged.second, strict=True)):
        g = judged.items.group[i]
        meta, label = judged.items.scored.groups[g].metadata, "1" if judged.items.chosen[i] < judged.items.rejected[i] else "2"
        straight, mirrored = (one, two) if judged.chosen_first[i] == (label == "1") else (two, one)
        subset = meta.get("subset")
        known = {"id": meta.get("id"), "subset": subset, "source": subset, "judge": judge or None}
        judgments = {"12": _judgment(straight, winner_of(straight)), "21": _judgment(mirrored, swapped(winner_of(mirrored)))}
        named = {name: value for name, value in known.items() if value is not None}
        records.append({**named, "prompt_key": judged.items.scored.keys[g], "label": label, "judgments": judgments})
    return records


def _judgment(verdict: Verdict, winner: Winner) -> dict[str, Any]:
    return {
        "winner": winner,
        **({"text": verdict.raw} if verdict.raw else {}),
        **({"reason": verdict.reason} if verdict.reason else {}),
        **({"logit": verdict.logit} if verdict.logit is not None else {}),
    }


def _chosen_first(labels: np.ndarray, verdicts: Sequence[Winner]) -> np.ndarray:
    """1 where a verdict is for the response labelled better, 0 for the other, NaN for a tie or none."""
    return np.array([np.nan if verdict not in ("1", "2") else float(verdict == label) for label, verdict in zip(labels, verdicts, strict=True)])


def _length(items: Items, labels: np.ndarray, first: Sequence[Winner], second: Sequence[Winner], confidence: float) -> dict[str, Any] | None:
    """Does the judge go by length? Decided verdicts on pairs of different length, in both orders."""
    longer = items.length_difference  # of chosen over rejected
    right = np.concatenate([_chosen_first(labels, first), _chosen_first(labels, second)])
    chosen_longer, prompts = np.tile(longer > 0, 2), np.tile(items.prompts, 2)
    used = np.isfinite(right) & np.tile(longer != 0, 2)
    if not used.any():
        return None
    prefers = np.where(chosen_longer, right, 1 - right)[used]
    return {
        "prefers_longer": _as_dict(proportion(prefers, prompts[used], confidence=confidence)),
        "labels_prefer_longer": float((longer > 0)[longer != 0].mean()),
        "accuracy_longer": float(right[used & chosen_longer].mean()) if (used & chosen_longer).any() else None,
        "accuracy_shorter": float(right[used & ~chosen_longer].mean()) if (used & ~chosen_longer).any() else None,
    }


def _calibration(labels: np.ndarray, one: Sequence[Verdict], two: Sequence[Verdict]) -> dict[str, Any] | None:
    """Is the judge's probability one? On pairs with a probability strictly between 0 and 1 in both orders."""
    logits = []
    for label, a, b in zip(labels, one, two, strict=True):
        p, q = a.probability, b.probability
        if p is None or q is None or not 0 < p < 1 or not 0 < q < 1:
            continue
        mean = (np.log(p / (1 - p)) - np.log(q / (1 - q))) / 2  # of response 1, position taken out
        logits.append(float(mean if label == "1" else -mean))
    if not logits:
        return None
    d = np.array(logits)
    return {"n": len(d), "accuracy": float((d > 0).mean()), "brier": brier(d), "log_loss": log_loss(d), "ece": expected_calibration_error(d)}


def _preference_for(
    writer: str, items: Items, labels: np.ndarray, first: Sequence[Winner], second: Sequence[Winner], confidence: float
) -> dict[str, Any] | None:
    """How often responses of `writer` win by the judge and by the labels, on pairs that it wrote one side of."""
    mine = np.array([meta.get("chosen_model") == writer for meta in (items.scored.groups[g].metadata for g in items.group)])
    theirs = np.array([meta.get("rejected_model") == writer for meta in (items.scored.groups[g].metadata for g in items.group)])
    either = mine != theirs
    right = np.concatenate([_chosen_first(labels, first), _chosen_first(labels, second)])
    used = np.isfinite(right) & np.tile(either, 2)
    if not used.any():
        return None
    wins = np.where(np.tile(mine, 2), right, 1 - right)[used]
    judged = proportion(wins, np.tile(items.prompts, 2)[used], confidence=confidence)
    return {"writer": writer, "by_judge": _as_dict(judged), "by_labels": float(mine[either].mean()), "excess": judged.value - float(mine[either].mean())}


def judge_figures(labels: Sequence[Any], first: Sequence[Any], second: Sequence[Any], prompts: np.ndarray, confidence: float = 0.95) -> dict[str, Any]:
    """The same from recorded verdicts in item coordinates."""
    table: TwoOrders = two_orders(labels, first, second)
    gold, a, b = (np.array([str(winner(value, f"item {i}")) for i, value in enumerate(column, 1)]) for column in (labels, first, second))
    doubled = np.concatenate([prompts, prompts])
    accuracy = proportion(np.concatenate([a == gold, b == gold]).astype(float), doubled, confidence=confidence)
    kept = (a == b) & np.isin(a, ("1", "2"))
    kept_share = proportion(kept.astype(float), prompts, confidence=confidence)
    torn = (a != b) & np.isin(a, ("1", "2")) & np.isin(b, ("1", "2"))  # each order chose another one: "1" first means the first position twice
    kappa = kappa_interval(gold, a) if len(gold) > 1 else None
    figures: dict[str, Any] = {
        "accuracy": _as_dict(accuracy) | {"n": table.n},
        "kappa": {"value": table.kappa_first, "interval": (kappa.low, kappa.high) if kappa else None, "n": table.n},
        "kept": _as_dict(kept_share),
        "kept_accuracy": _as_dict(proportion((a == gold)[kept].astype(float), prompts[kept], confidence=confidence)) if kept.any() else None,
        "contradictions": int(torn.sum()),
        "first_position": _as_dict(proportion((a[torn] == "1").astype(float), prompts[torn], confidence=confidence)) if torn.any() else None,
        "ties": int((a == "tie").sum() + (b == "tie").sum()),
        "invalid": table.invalid,
    }
    return figures | {"two_orders": table._asdict()}


def _as_dict(estimate: Any) -> dict[str, Any]:
    return {"value": estimate.value, "interval": (estimate.low, estimate.high), "n": estimate.n}


def _reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.winner == "invalid":
            reasons[verdict.reason or "not said"] = reasons.get(verdict.reason or "not said", 0) + 1
    return reasons


class ScorerJudge:
    """A Scorer as a Judge: the response with the higher reward wins, equal rewards are a tie, a response without a reward (NaN) is invalid.

    `score_options` go to the scorer, say `on_long="nan"` for one that would raise at a long response.
    """

    def __init__(self, scorer: Scorer, **score_options: Any):
        self.scorer = scorer
        self.score_options = score_options

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        texts = [Exchange(m.prompt, response) for m in matchups for response in (m.a, m.b)]
        rewards = np.asarray(self.scorer.score(texts, **self.score_options), dtype=float)
        if rewards.size != len(texts) or rewards.shape[0] != len(texts):
            raise DataError(f"the scorer gave rewards of shape {rewards.shape} for {len(texts)} responses; expected one reward a response")
        rewards = rewards.reshape(-1, 2)
        return [self._verdict(float(a), float(b)) for a, b in rewards]

    def _verdict(self, a: float, b: float) -> Verdict:
        if not np.isfinite(a) or not np.isfinite(b):
            return Verdict("invalid", None, "a response could not be scored")
        return Verdict("tie" if a == b else "a" if a > b else "b", float(1 / (1 + np.exp(-np.clip(a - b, -700, 700)))))
