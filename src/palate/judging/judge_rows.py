"""Judgments of a judge itself as training data: sampled for pairs whose better response is known, kept where they are right in both orders.

Rows for SFT are right judgments; rows for DPO set a right one against a wrong one of the same pair in the same order. How often a pair was judged right
says how hard it is. Sources: Self-Taught Evaluators (Wang et al. 2024, arXiv 2408.02666) for keeping sampled judgments by their verdict; J1
(Whitehouse et al. 2025, arXiv 2505.10320) for asking that both orders be right, since a judge that favours a side is right in one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from palate.errors import ConfigError, DataError, tally
from palate.judging.judge import RESAMPLE_TEMPERATURE, ChatJudge
from palate.judging.prompts import Rendered
from palate.types import Comparison, Matchup, PreferenceGroup, Verdict, text_of

SAMPLES = 8
"""Judgments of a pair: as many as make a pass rate of steps of an eighth. Ours; each costs two calls."""

REFERENCE = "reference"
"""Key of a group's metadata: a right answer to judge by."""

RIGHT = ("a", "b")
"""The winner in each order where the better response is shown first, then second."""


class JudgeRows(NamedTuple):
    sft: list[dict[str, Any]]  # prompt, completion, label, pass_rate, pair, sample
    dpo: list[dict[str, Any]]  # prompt, chosen, rejected, label, pass_rate, pair
    pass_rates: list[float | None]  # of each pair: the share of its judgments that were right in both orders, of those that could be read; None: of none
    counts: dict[str, Any]


class _Pair(NamedTuple):
    group: PreferenceGroup
    comparison: Comparison
    rendered: tuple[Rendered, Rendered]  # the better response first, then second


class _Draw(NamedTuple):
    """One judgment of a pair in both orders."""

    verdicts: tuple[Verdict, Verdict]

    @property
    def outcome(self) -> str:
        if any(verdict.winner == "invalid" for verdict in self.verdicts):
            return "not read"
        right = sum(verdict.winner == winner for verdict, winner in zip(self.verdicts, RIGHT, strict=True))
        return ("wrong in both orders", "right in one order", "right in both orders")[right]


def judge_rows(judge: ChatJudge, groups: Sequence[PreferenceGroup], *, samples: int = SAMPLES, temperature: float = RESAMPLE_TEMPERATURE) -> JudgeRows:
    """Rows from `samples` judgments of every decided comparison, all asked at once, each in both orders.

    A row's prompt is what the judge was asked, its completion what it said, so TRL's SFTTrainer and DPOTrainer take them as they stand. Equal texts make
    one row. A judgment that could not be read in one of its orders makes no row and takes no part in the pass rate. `counts` holds how judgments came out,
    failed calls among those not read, and comparisons that were left out.

    Raises ConfigError for a judge that answers in one token or an endpoint that is known not to sample, DataError where there is nothing to judge.
    """
    if samples < 1 or temperature <= 0:
        raise ConfigError(f"samples={samples} and temperature={temperature}, expected at least 1 and above 0: at 0 all judgments are one")
    if judge.reads_logits:
        raise ConfigError(f"{judge.name}: a verdict in one token holds no judgment to learn from; ask in another form")
    if judge.questioner.capabilities is not None:
        judge.questioner.capabilities.require("sampling", judge.name)
    left_out: Counter[str] = Counter()
    pairs = [pair for group in groups for pair in _pairs(judge, group, left_out)]
    if not pairs:
        raise DataError(f"none of {len(groups)} groups has a decided comparison to judge; left out: {tally(left_out)}")
    draws = _draw(judge, pairs, samples, temperature)
    rates = [_pass_rate(own) for own in draws]
    sft = [row for n, (pair, own, rate) in enumerate(zip(pairs, draws, rates, strict=True)) for row in _sft_rows(n, pair, own, rate)]
    dpo = [row for n, (pair, own, rate) in enumerate(zip(pairs, draws, rates, strict=True)) for row in _dpo_rows(n, pair, own, rate)]
    counts = {
        "pairs": len(pairs),
        "left_out": dict(left_out),
        "judgments": dict(Counter(draw.outcome for own in draws for draw in own)),
        "pairs_never_right": sum(rate == 0 for rate in rates),
        "pairs_not_read": sum(rate is None for rate in rates),
        "sft_rows": len(sft),
        "dpo_rows": len(dpo),
    }
    return JudgeRows(sft, dpo, rates, counts)


def _pairs(judge: ChatJudge, group: PreferenceGroup, left_out: Counter[str]) -> list[_Pair]:
    found = []
    reference = group.metadata.get(REFERENCE, judge.references.get(text_of(group.prompt)))
    for comparison in group.comparisons:
        better, worse = group.responses[comparison.chosen], group.responses[comparison.rejected]
        if comparison.probability < 0.5:
            better, worse = worse, better
        if comparison.is_tie or comparison.weight <= 0 or better == worse:
            left_out["tie" if comparison.is_tie else "no weight" if comparison.weight <= 0 else "equal responses"] += 1
            continue
        orders = (Matchup(group.prompt, better, worse), Matchup(group.prompt, worse, better))
        found.append(_Pair(group, comparison, (judge.render(orders[0], reference), judge.render(orders[1], reference))))
    return found


def _draw(judge: ChatJudge, pairs: Sequence[_Pair], samples: int, temperature: float) -> list[list[_Draw]]:
    """[pairs][samples]"""
    judges = [judge.with_sample(judge.sample + sample, temperature=temperature) for sample in range(samples)]
    asked = [(rendered, one) for pair in pairs for one in judges for rendered in pair.rendered]
    answers = judge.questioner.caller.run([one.request(rendered) for rendered, one in asked])
    verdicts = [one.read(answer, rendered) for answer, (rendered, one) in zip(answers, asked, strict=True)]
    draws = [_Draw((first, second)) for first, second in zip(verdicts[::2], verdicts[1::2], strict=True)]
    return [draws[start : start + samples] for start in range(0, len(draws), samples)]


def _pass_rate(draws: Sequence[_Draw]) -> float | None:
    read = [draw.outcome for draw in draws if draw.outcome != "not read"]
    return sum(outcome == "right in both orders" for outcome in read) / len(read) if read else None


def _right(draws: Sequence[_Draw], order: int) -> dict[str, int]:
    """What was said in this order in judgments that were right in both, and in which sample first."""
    return {draw.verdicts[order].raw: n for n, draw in reversed(list(enumerate(draws))) if draw.outcome == "right in both orders"}


def _sft_rows(number: int, pair: _Pair, draws: Sequence[_Draw], rate: float | None) -> list[dict[str, Any]]:
    rows = []
    for order in (0, 1):
        for said, sample in sorted(_right(draws, order).items(), key=lambda item: item[1]):
            rows.append({**_common(number, pair, order, rate), "completion": _assistant(said), "sample": sample})
    return rows


def _dpo_rows(number: int, pair: _Pair, draws: Sequence[_Draw], rate: float | None) -> list[dict[str, Any]]:
    """Right and wrong judgments two by two, as many pairs as there are of the rarer kind."""
    rows = []
    for order in (0, 1):
        right = sorted(_right(draws, order).items(), key=lambda item: item[1])
        read = [draw.verdicts[order] for draw in draws if draw.outcome != "not read"]
        wrong = list(dict.fromkeys(verdict.raw for verdict in read if verdict.winner != RIGHT[order]))
        for (chosen, _), rejected in zip(right, wrong, strict=False):
            rows.append({**_common(number, pair, order, rate), "chosen": _assistant(chosen), "rejected": _assistant(rejected)})
    return rows


def _common(number: int, pair: _Pair, order: int, rate: float | None) -> dict[str, Any]:
    return {"prompt": [dict(message) for message in pair.rendered[order].messages], "label": RIGHT[order].upper(), "pass_rate": rate, "pair": number}


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
