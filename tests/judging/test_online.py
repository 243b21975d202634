"""A judge as TRL's pairwise judge and as reward: by hand, by known strengths, and that nothing undecided becomes a label."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.judging.stubs import Biased, Counted, Told

from palate.errors import ConfigError, DataError
from palate.judging.caller import Caller
from palate.judging.combining import BothOrders, Cascade
from palate.judging.judge import ChatJudge
from palate.judging.online import OneOrder, Remembering, judge_reward, online_judge, rating_reward, swapped_judgment
from palate.judging.rated import Rated
from palate.stats.bradley_terry import fit_bradley_terry
from palate.types import Exchange, Matchup, Verdict


def rule(a: str, b: str) -> str | Verdict:
    """Longer is better; equal lengths tie; the first wins where one says "unsure"; "bad" cannot be judged."""
    if "bad" in (a, b):
        return Verdict("invalid", reason="no verdict")
    if "unsure" in (a, b):
        return "a"
    return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"


# --- the better of two ----------------------------------------------------------------------------------------------------------------------------


def test_places_of_the_better_and_minus_one_for_the_rest() -> None:
    """A contradiction, a tie and a failure are all -1: TRL's own judge would have made 2 of a failure whose order was turned (1 - -1)."""
    judge = online_judge(Told(rule))
    pairs = [["abc", "a"], ["a", "abc"], ["abc", "unsure"], ["ab", "cd"], ["abc", "bad"]]
    assert judge.judge(["p"] * 5, pairs, shuffle_order=True) == [0, 1, -1, -1, -1]
    assert dict(judge.outcomes) == {"agreed": 2, "contradiction": 1, "both tie": 1, "both invalid": 1}


def test_undecided_may_stop_the_run() -> None:
    with pytest.raises(DataError, match=r"1 of 2 pairs were not decided \(1 x agreed, 1 x contradiction\)"):
        online_judge(Told(rule), undecided="error").judge(["p", "p"], [["abc", "a"], ["abc", "unsure"]])
    with pytest.raises(ConfigError, match="undecided 'random'"):
        online_judge(Told(rule), undecided="random")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="two completions"):
        online_judge(Told(rule)).judge(["p"], [["a", "b", "c"]])


def test_messages_are_judged_as_texts_are() -> None:
    told = Told(lambda a, b: "a" if "good" in a else "b")
    prompt, pair = [{"role": "user", "content": "q"}], [[{"role": "assistant", "content": "bad"}], [{"role": "assistant", "content": "good"}]]
    assert online_judge(told).judge([prompt], [pair]) == [1]
    assert told.asked[0] == Matchup(
        ({"role": "user", "content": "q"},), ({"role": "assistant", "content": "bad"},), ({"role": "assistant", "content": "good"},)
    )


def test_a_pair_is_asked_about_once_in_either_order() -> None:
    told = Told(rule)
    judge = online_judge(told)
    assert judge.judge(["p", "p", "p"], [["abc", "a"], ["a", "abc"], ["abc", "a"]]) == [0, 1, 0]
    assert judge.judge(["p"], [["a", "abc"]]) == [1]
    assert len(told.asked) == 2  # both orders of one pair
    judge.judge(["other"], [["a", "abc"]])
    judge.judge(["p"], [["abc", "bad"]])
    judge.judge(["p"], [["abc", "bad"]])  # failed, so it is asked about again
    assert len(told.asked) == 8


def test_what_is_remembered_is_bounded() -> None:
    told = Told(rule)
    pairs = Remembering(BothOrders(told), size=2)
    for text in ("a", "ab", "abc", "a"):
        pairs.judge_pairs([Matchup("p", text, "longest")])
    assert len(told.asked) == 8  # the first had been forgotten


def test_a_swapped_judgment_is_that_of_the_swapped_pair() -> None:
    strengths = {"x": 1.0, "y": 0.2}
    for judge in (Biased(strengths, position=0.3, logits=True), Biased(strengths, position=0.3)):
        one, other = (BothOrders(judge).judge_pairs([pair])[0] for pair in (Matchup("p", "x", "y"), Matchup("p", "y", "x")))
        assert swapped_judgment(one)[:2] == other[:2] and swapped_judgment(one).first == other.first
        assert swapped_judgment(one).probability == pytest.approx(other.probability) and (one.logit is None or -one.logit == pytest.approx(other.logit))


def test_one_order_costs_half_and_falls_on_both_sides() -> None:
    """A judge that always says the first: in one order every verdict is a label, so the coin must not favour a side; two orders drop them all."""
    told = Told(lambda a, b: "a")
    single = OneOrder(told)
    pairs = [["x", f"y{i}"] for i in range(400)]
    found = online_judge(single).judge(["p"] * 400, pairs)
    assert len(told.asked) == 400 and 160 < sum(found) < 240  # within four standard deviations of half
    assert online_judge(Told(lambda a, b: "a")).judge(["p"] * 400, pairs) == [-1] * 400
    known = OneOrder(Biased({"x": 1.0, **{f"y{i}": 0.1 for i in range(20)}}, logits=True)).judge_pairs([Matchup("p", "x", f"y{i}") for i in range(20)])
    assert {one.winner for one in known} == {"a"} and all(one.logit == pytest.approx(0.9) and one.probability > 0.5 for one in known)
    silent = OneOrder(Told(lambda a, b: Verdict("invalid", reason="empty"))).judge_pairs([Matchup("p", "x", "y")])[0]
    assert silent.winner is None and silent.probability is None


def test_a_chat_judge_is_asked_in_one_batch_through_its_caller() -> None:
    stub = Counted()
    judge = online_judge(ChatJudge(Caller(stub.client), "judge"))
    found = judge.judge(["p"] * 3, [["short", "a longer answer"], ["x", "x"], ["one", "two and three"]])
    assert found[1] == -1 and {found[0], found[2]} <= {0, 1, -1} and len(stub.requests) >= 4


# --- rewards --------------------------------------------------------------------------------------------------------------------------------------


def told_by(reward: Any, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> tuple[list[float | None], dict[str, float]]:
    metrics: dict[str, float] = {}
    found = reward(prompts=prompts, completions=completions, completion_ids=None, log_metric=metrics.__setitem__, log_extra=None, trainer_state=None, **columns)
    return (asyncio.run(found) if inspect.iscoroutine(found) else found), metrics


def test_win_rates_within_a_prompt_by_hand() -> None:
    """p: lengths 3, 1, 2 win 2 of 2, 0 of 2, 1 of 2. q: two equal lengths tie, and each beats the empty one: 3/4, 3/4, 0. Prompts stand mixed."""
    told = Told(rule)
    reward = judge_reward(told, by="win_rate")
    found, metrics = told_by(reward, ["p", "q", "p", "q", "p", "q"], ["abc", "xx", "a", "yy", "ab", ""])
    assert found == [1, 0.75, 0, 0.75, 0.5, 0]
    assert len(told.asked) == 12 and metrics == {"judge/decided": 5 / 6, "judge/contradicted": 0, "judge/failed": 0, "judge/unscored": 0}


def test_what_is_not_decided_takes_no_part() -> None:
    """ "bad" has no decided pair and no reward. "unsure" contradicts itself against both; the others' one decided pair is all they have."""
    reward = judge_reward(Told(rule), by="win_rate", asynchronous=False)
    found, metrics = told_by(reward, ["p"] * 4, ["abc", "a", "unsure", "bad"])
    assert found == [1, 0, None, None]
    assert metrics == {"judge/decided": 1 / 6, "judge/contradicted": 2 / 6, "judge/failed": 3 / 6, "judge/unscored": 0.5}
    strengths, _ = told_by(judge_reward(Told(rule)), ["p"] * 4, ["abc", "a", "unsure", "bad"])
    assert strengths[2:] == [None, None] and strengths[0] > 0 > strengths[1]  # type: ignore[operator]


def test_strengths_are_those_of_a_bradley_terry_fit() -> None:
    """Two games a pair, ridge 0.5, prompt by prompt; and of a judge of log-odds they are ordered as its own strengths."""
    texts = ["abcd", "abc", "ab", "a"]
    found, _ = told_by(judge_reward(Told(rule)), ["p"] * 4 + ["q"] * 2, [*texts, "xx", "x"])
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    fit = fit_bradley_terry(4, *zip(*pairs, strict=True), np.ones(6), weight=np.full(6, 2.0), ridge=0.5)
    np.testing.assert_allclose(found[:4], fit.strengths, atol=1e-6)
    two = fit_bradley_terry(2, [0], [1], [1.0], weight=[2.0], ridge=0.5)
    np.testing.assert_allclose(found[4:], two.strengths, atol=1e-6)
    strengths = dict(zip(texts, (0.4, 2.0, -1.0, 0.1), strict=True))
    measured, _ = told_by(judge_reward(Biased(strengths, position=1.5, logits=True), policy="keep_mean"), ["p"] * 4, texts)
    centred = np.array([strengths[text] for text in texts]) - np.mean(list(strengths.values()))
    np.testing.assert_allclose(measured, centred, atol=0.05)  # the position is gone


def test_a_budget_of_pairs_is_kept() -> None:
    told = Told(rule)
    texts = ["a" * n for n in range(1, 9)]
    found, _ = told_by(judge_reward(told, pairs_per_prompt=10), ["p"] * 8, texts)
    assert len(told.asked) == 20 and None not in found
    assert np.corrcoef(found, range(8))[0, 1] > 0.9  # type: ignore[arg-type]


def test_against_a_reference_answer() -> None:
    reward = judge_reward(Told(rule), reference="answer", name="ref")
    found, metrics = told_by(reward, ["p", "p", "q", "q"], ["abc", "a", "bad", "x"], answer=["xx", "xx", "xx", None], level=[1, 2, 3, 4])
    assert found == [1, 0, None, None] and metrics["ref/failed"] == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match="no column 'answer'; columns: .*level"):
        told_by(reward, ["p"], ["a"], level=[1])
    with pytest.raises(DataError, match="2 values for 1 completions"):
        told_by(reward, ["p"], ["a"], answer=["x", "y"])


def test_single_completions_have_nothing_to_be_compared_with() -> None:
    """One process with one completion of each prompt would get no rewards for ever."""
    with pytest.raises(ConfigError, match="two completions in this call"):
        told_by(judge_reward(Told(rule)), ["p", "q"], ["a", "b"])
    found, _ = told_by(judge_reward(Told(rule), by="win_rate"), ["p", "p", "q"], ["a", "bb", "b"])
    assert found == [0, 1, None]
    with pytest.raises(ConfigError, match="by 'elo'"):
        judge_reward(Told(rule), by="elo")  # type: ignore[arg-type]


def test_ratings_as_rewards() -> None:
    class Rater:
        def rate(self, exchanges: Sequence[Exchange], *, references: Any = None) -> list[Rated]:
            self.references = references
            return [Rated(None) if exchange.response == "bad" else Rated(float(len(exchange.response))) for exchange in exchanges]

    rater = Rater()
    found, metrics = told_by(rating_reward(rater), ["p", "p"], ["abc", "bad"])
    assert found == [3, None] and metrics == {"rating/unscored": 0.5} and rater.references is None
    told_by(rating_reward(rater, reference="gold", asynchronous=False), ["p"], ["abc"], gold=["right"])
    assert rater.references == ["right"]


def test_names_and_coroutines_are_what_trl_looks_for() -> None:
    assert judge_reward(Told(rule), name="pairwise").__name__ == "pairwise"
    assert inspect.iscoroutinefunction(judge_reward(Told(rule))) and not inspect.iscoroutinefunction(judge_reward(Told(rule), asynchronous=False))


def test_a_cascade_is_a_judge_of_pairs_too() -> None:
    cascade = Cascade(BothOrders(Told(lambda a, b: "a")), BothOrders(Told(rule)))
    assert online_judge(cascade).judge(["p"], [["a", "abc"]]) == [1] and cascade.passed_on == 1
    assert not math.isnan(told_by(judge_reward(cascade, by="win_rate"), ["p", "p"], ["a", "abc"])[0][0])  # type: ignore[arg-type]
