"""Verdicts in two orders: JudgeBench, LLMBar and EvalBiasBench, whose judges see (A, B) and then (B, A).

Both verdicts are read in the coordinates of the item ("1" and "2", whatever stood first), so a judge that keeps its mind says the same twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from palate.errors import DataError
from palate.evaluation.protocols.records import Record, Report, beats, by_subset, field_of, missing_subsets, pair_of, place_of, prompts_of, scores_of
from palate.stats.agreement import cohen_kappa
from palate.stats.composite import Estimate, proportion, weighted

Winner = Literal["1", "2", "tie"] | None
"""Which response of the item won; None: no verdict could be read."""

_WINNERS: dict[Any, Winner] = {
    **dict.fromkeys(("1", 1, "A", "a", "A>B", "A>>B", "response_1", "output_1", "model_a"), "1"),
    **dict.fromkeys(("2", 2, "B", "b", "B>A", "B>>A", "A<B", "A<<B", "response_2", "output_2", "model_b"), "2"),
    **dict.fromkeys(("tie", "Tie", "tie (bothbad)", "A=B", "B=A", 0, "0", "same"), "tie"),
    **dict.fromkeys((None, "null", "None", "invalid", ""), None),
}

NEARLY_ALL = 0.9
"""Share of records that decides whether the second scores stand in the order of the item although the order of presentation was declared."""


def winner(value: Any, place: str) -> Winner:
    """Any spelling of a verdict in item coordinates. Raises DataError for one that is not known."""
    if isinstance(value, (bool, list, dict)) or value not in _WINNERS:
        raise DataError(f"{place}: the verdict is {value!r:.40}, expected 1, 2, A>B, B>A, A=B, tie, or null for none")
    return _WINNERS[value]


def swapped(verdict: Winner) -> Winner:
    return "2" if verdict == "1" else "1" if verdict == "2" else verdict


def by_score(first: float | None, second: float | None) -> Winner:
    """The verdict of a scalar reward model; equal scores are a tie, a missing one is no verdict."""
    if first is None or second is None:
        return None
    return "tie" if first == second else "1" if first > second else "2"


class TwoOrders(NamedTuple):
    """What verdicts in both orders say, as shares of the n items."""

    first: float  # right in the first order
    second: float
    average: float  # mean of both: LLMBar's accuracy
    both: float  # right in both orders: Auto-J's agreement, EvalBiasBench's pair accuracy
    equal: float  # the same verdict twice (none twice is the same): LLMBar's agreement
    net: float  # more right than wrong verdicts, a tie or none counting neither way: JudgeBench's accuracy
    kept: float  # decided, and the same way in both orders: what "drop contradictions" keeps
    kept_accuracy: float  # share of those that are right; NaN where none is kept
    invalid: int  # verdicts that could not be read, of 2n
    kappa_first: float  # Cohen's kappa of the first order with the labels; invalid verdicts are a class of their own
    kappa_second: float
    kappa_orders: float  # of one order with the other
    n: int


def two_orders(labels: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> TwoOrders:
    """Statistics of verdicts in both orders, all in item coordinates (the second order already swapped back).

    Raises DataError where lengths differ, nothing is given, or a label is not 1 or 2.
    """
    if not len(labels) or not len(labels) == len(first) == len(second):
        raise DataError(f"both orders need a verdict for every label, got {len(labels)} labels, {len(first)} and {len(second)} verdicts")
    gold = [winner(label, f"item {i + 1}") for i, label in enumerate(labels)]
    if any(label not in ("1", "2") for label in gold):
        i = next(i for i, label in enumerate(gold) if label not in ("1", "2"))
        raise DataError(f"item {i + 1}: the label is {labels[i]!r}, expected 1 or 2 (A>B or B>A)")
    one = [winner(value, f"item {i + 1}, first order") for i, value in enumerate(first)]
    two = [winner(value, f"item {i + 1}, second order") for i, value in enumerate(second)]
    g, a, b = (np.array([str(value) for value in column]) for column in (gold, one, two))
    other = np.array([str(swapped(value)) for value in gold])
    right_a, right_b = a == g, b == g
    net = right_a.astype(int) + right_b - (a == other) - (b == other)
    kept = (a == b) & np.isin(a, ("1", "2"))
    return TwoOrders(
        first=float(right_a.mean()),
        second=float(right_b.mean()),
        average=float((right_a.mean() + right_b.mean()) / 2),
        both=float((right_a & right_b).mean()),
        equal=float((a == b).mean()),
        net=float((net > 0).mean()),
        kept=float(kept.mean()),
        kept_accuracy=float(right_a[kept].mean()) if kept.any() else math.nan,
        invalid=int((a == "None").sum() + (b == "None").sum()),
        kappa_first=cohen_kappa(g, a),
        kappa_second=cohen_kappa(g, b),
        kappa_orders=cohen_kappa(a, b),
        n=len(g),
    )


class Ordered(NamedTuple):
    label: Winner
    first: Winner
    second: Winner
    prompt: str = ""  # the cluster
    asked_twice: bool = True  # False: both verdicts come from the same scores, so that they agree by construction


def read_orders(records: Sequence[Record], *, order: str | None = None) -> list[Ordered]:
    """(label, verdict in the first order, verdict in the second, swapped back) of each record.

    A record holds `label` and one of: `winner_order12`, `winner_order21` (swapped back already: LLMBar); `decisions` or `judgments` (as each order was
    presented: JudgeBench); `scores_AB` and `scores_BA`, two scores each; or `score_chosen`, `score_rejected`, which no order can change.
    `order`: whether `scores_BA` holds its two scores as presented (B's first: "presented") or as the item has them (A's first: "item"). Unsaid it is
    "presented", unless the scores themselves speak against it: then DataError asks.
    """
    if order not in (None, "presented", "item"):
        raise DataError(f'order={order!r}: expected "presented" (scores_BA holds the score of B first) or "item" (the score of A first)')
    if order is None and records and all("scores_AB" in record and "scores_BA" in record for record in records):
        _check_order(records)
    return [_read_order(record, i, order) for i, record in enumerate(records)]


def _placed(records: Sequence[Record], order: str | None) -> list[Ordered]:
    """The same with each record's prompt, and whether both orders were really asked."""
    prompts = prompts_of(records)
    return [one._replace(prompt=str(prompts[i]), asked_twice=_asked_twice(records[i])) for i, one in enumerate(read_orders(records, order=order))]


def _asked_twice(record: Record) -> bool:
    """Whether a judge saw the pair in both orders; a scorer sees one response at a time."""
    return "score_chosen" not in record and "scores_chosen" not in record and not record.get("pointwise")


def _read_order(record: Record, i: int, order: str | None) -> Ordered:
    place = place_of(record, i)
    if "score_chosen" in record or "scores_chosen" in record:
        verdict = by_score(*pair_of(record, i))
        return Ordered("1", verdict, verdict)
    label = winner(field_of(record, i, "label"), place)
    if label not in ("1", "2"):
        raise DataError(f"{place}: the label is {record['label']!r}, expected 1 or 2 (A>B or B>A)")
    if "winner_order12" in record:
        return Ordered(label, winner(record["winner_order12"], place), winner(field_of(record, i, "winner_order21"), place))
    if "scores_AB" in record:
        one, two = scores_of(record, i, "scores_AB"), scores_of(record, i, "scores_BA")
        if len(one) != 2 or len(two) != 2:
            raise DataError(f"{place}: scores_AB and scores_BA hold {len(one)} and {len(two)} scores, expected two each")
        return Ordered(label, by_score(*one), by_score(*(two if order == "item" else two[::-1])))
    decisions = (
        record["decisions"]
        if "decisions" in record
        else _decisions(record.get("synthesis") or field_of(record, i, "judgments", "decisions", "scores_AB", "winner_order12"), place)
    )
    if len(decisions) != 2:
        raise DataError(f"{place}: {len(decisions)} decisions, expected one in each order; a judge asked once can favour a position and nobody would know")
    return Ordered(label, winner(decisions[0], place), swapped(winner(decisions[1], place)))


def _decisions(judgments: Any, place: str) -> list[Any]:
    if isinstance(judgments, Mapping) and {"12", "21"} <= judgments.keys():  # LLMBar's raw records: winners swapped back already
        return [judgments["12"]["winner"], swapped(winner(judgments["21"]["winner"], place))]
    if not isinstance(judgments, (list, tuple)):
        raise DataError(f"{place}: `judgments` is {type(judgments).__name__}, expected a list with one judgment an order")
    if not all(judgment is None or isinstance(judgment, Mapping) for judgment in judgments):
        raise DataError(f"{place}: `judgments` holds {judgments!r:.60}, expected judgments with a `decision` each; bare decisions belong in `decisions`")
    return [None if judgment is None else judgment.get("decision") for judgment in judgments]


def _check_order(records: Sequence[Record]) -> None:
    """A scalar reward gives a text one score wherever it stands, so the scores themselves tell in which order they were written."""
    pairs = [(scores_of(record, i, "scores_AB"), scores_of(record, i, "scores_BA")) for i, record in enumerate(records)]
    telling = [(one, two) for one, two in pairs if one != one[::-1]]
    same = sum(one == two for one, two in telling)
    if telling and same >= NEARLY_ALL * len(telling):
        raise DataError(
            f"in {same} of {len(telling)} records scores_BA equals scores_AB: either its scores stand as the item has them (A's first), or this model gives "
            'its scores to positions. Say which: order="item" for the first (--order item), order="presented" for the second'
        )


def judgebench_category(source: str) -> str:
    """JudgeBench's four categories from an item's source."""
    if source.startswith("mmlu-pro"):
        return "knowledge"
    known = {"livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"}
    if source in known:
        return known[source]
    raise DataError(f"JudgeBench has no source {source!r}; its sources are mmlu-pro-*, {', '.join(known)}")


def judgebench(records: Sequence[Record], *, partial: bool = False, confidence: float = 0.95, order: str | None = None) -> Report:
    """Records {label, source, and verdicts or scores of both orders}. Right: more verdicts for the label than against it (arXiv 2410.12784).

    A right verdict and a tie is right; contradiction, two ties and no verdict at all are wrong. Overall over all pairs, not over categories.
    """
    read = _placed(records, order)
    right = np.array([_net(row) > 0 for row in read], dtype=float)
    categories = np.array([judgebench_category(str(field_of(record, i, "source", "subset"))) for i, record in enumerate(records)])
    prompts = np.array([row.prompt for row in read])
    scores = {"overall": proportion(right, prompts, confidence=confidence)}
    for name in ("knowledge", "reasoning", "math", "coding"):
        if (categories == name).any():
            scores[name] = proportion(right[categories == name], prompts[categories == name], confidence=confidence)
    scores |= _order_scores(read, confidence)
    notes = missing_subsets(categories.tolist(), dict.fromkeys(("knowledge", "reasoning", "math", "coding")), "JudgeBench", partial)
    return Report("overall", scores, _unread(read), notes)


def _net(row: Ordered) -> int:
    return sum((verdict == row.label) - (verdict == swapped(row.label)) for verdict in (row.first, row.second))


def _unread(read: Sequence[Ordered]) -> int:
    return sum(row.first is None or row.second is None for row in read)


def _order_scores(read: Sequence[Ordered], confidence: float) -> dict[str, Estimate]:
    """How the two orders agree: the share with the same verdict, and the accuracy of what agrees and decides."""
    if not any(row.asked_twice for row in read):
        return {}
    same = np.array([row.first == row.second for row in read], dtype=float)
    kept = [row for row in read if row.first == row.second and row.first in ("1", "2")]
    scores = {"same verdict in both orders": proportion(same, [row.prompt for row in read], confidence=confidence)}
    if kept:
        scores["accuracy of what is kept"] = proportion([row.first == row.label for row in kept], [row.prompt for row in kept], confidence=confidence)
    return scores


LLMBAR_ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
LLMBAR_SUBSETS = ("Natural", *LLMBAR_ADVERSARIAL)
EVALBIASBENCH_SUBSETS = ("length", "concreteness", "empty reference", "content continuation", "nested instruction", "familiar knowledge")


def bench_subset(name: str) -> str:
    """A subset of LLMBar or EvalBiasBench from a path, split or id such as `LLMBar/Adversarial/GPTInst`, `Adversarial_Neighbor`, `empty_reference`."""
    last = name.replace("\\", "/").split("/")[-1].replace("-", "_").split("dversarial_")[-1]
    spelled = {known.lower(): known for known in (*LLMBAR_SUBSETS, *EVALBIASBENCH_SUBSETS)}
    return spelled.get(last.replace("_", " ").strip().lower(), last)


def llmbar(records: Sequence[Record], *, partial: bool = False, confidence: float = 0.95, order: str | None = None) -> Report:
    """Records {label, subset, verdicts of both orders or scores}: accuracy is the mean over both orders (arXiv 2310.07641).

    `Adversarial` is the mean of the four adversarial sets; `average` the mean of all five. A tie is right once and wrong once.
    """
    return _order_accuracy(records, LLMBAR_SUBSETS, "LLMBar", partial, confidence, order, bench_subset, {"Adversarial": LLMBAR_ADVERSARIAL})


def evalbiasbench(records: Sequence[Record], *, partial: bool = False, confidence: float = 0.95, order: str | None = None) -> Report:
    """Records {label, subset, verdicts of both orders or scores}: mean over both orders by kind of bias (arXiv 2407.06551)."""
    return _order_accuracy(records, EVALBIASBENCH_SUBSETS, "EvalBiasBench", partial, confidence, order, bench_subset, {})


def _order_accuracy(
    records: Sequence[Record],
    subsets: Sequence[str],
    name: str,
    partial: bool,
    confidence: float,
    order: str | None,
    spelled: Any,
    means: Mapping[str, Sequence[str]],
) -> Report:
    read = _placed(records, order)
    members: dict[str, list[Ordered]] = {}
    for subset, rows in by_subset(records, "subset", "dataset").items():
        members.setdefault(spelled(subset), []).extend(read[i] for i, _ in rows)
    notes = missing_subsets(members, dict.fromkeys(subsets), name, partial)
    parts = {subset: _mean_of_orders(members[subset], confidence) for subset in subsets if subset in members}
    scores = {"average": weighted(list(parts.values()), confidence=confidence), "all items": _mean_of_orders(read, confidence), **parts}
    for title, some in means.items():
        if present := [parts[subset] for subset in some if subset in parts]:
            scores[title] = weighted(present, confidence=confidence)
    return Report("average", {**scores, **_order_scores(read, confidence)}, _unread(read), notes)


def _mean_of_orders(rows: Sequence[Ordered], confidence: float) -> Estimate:
    """Share of right verdicts over both orders, an item's two verdicts being one cluster; a tie by equal scores is half."""
    values = [_worth(verdict, row.label) for row in rows for verdict in (row.first, row.second)]
    return proportion(values, np.repeat([row.prompt for row in rows], 2), confidence=confidence)._replace(n=len(rows))


class Credit(NamedTuple):
    value: float
    missing: bool  # a score or a verdict


def has_verdicts(record: Record) -> bool:
    return not {"judgments", "decisions", "winner_order12"}.isdisjoint(record)


def credit_of(record: Record, i: int) -> Credit:
    """What one item is worth: 1 where score_chosen exceeds score_rejected, else 0; of verdicts in both orders their mean.

    A missing score is wrong. A tie and a missing verdict are half, as reward-bench counts both (scripts/run_generative.py).
    """
    if not has_verdicts(record):
        pair = pair_of(record, i)
        return Credit(beats(*pair), None in pair)
    row = _read_order(record, i, None)
    verdicts = (row.first, row.second)
    return Credit(sum(_worth(verdict or "tie", row.label) for verdict in verdicts) / 2, None in verdicts)


def missing_as(records: Sequence[Record]) -> str:
    """What becomes of items without a score or a verdict."""
    return "count as half right in each order without a verdict" if any(map(has_verdicts, records)) else "count as wrong"


def _worth(verdict: Winner, label: Winner) -> float:
    return 0.5 if verdict == "tie" else float(verdict == label)
