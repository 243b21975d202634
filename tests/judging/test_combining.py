"""Both orders, votes, juries and cascades by hand; the ways in which judges' code is known to mislabel, each shut."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from tests.judging.stub_server import Dials
from tests.judging.stubs import Biased, Counted, Told
from tests.judging.test_judge import ALL, GREEDY

from palate.errors import ConfigError, DataError
from palate.judging.caller import Caller
from palate.judging.combining import IDENTICAL, BothOrders, Cascade, Judgment, Jury, Votes, count_outcomes, effective_votes
from palate.judging.function_client import FunctionClient
from palate.judging.judge import ChatJudge, Instructions
from palate.judging.orders import Policy
from palate.judging.prompts import PairPrompt
from palate.types import Matchup, Verdict

POLICIES: tuple[Policy, ...] = get_args(Policy)
WINNERS = ("a", "b", "tie", "invalid")


class Script:
    """Two verdicts, one for each order."""

    def __init__(self, first: Verdict, second: Verdict):
        self.verdicts = [first, second]

    def compare(self, matchups: list[Matchup]) -> list[Verdict]:
        return self.verdicts


def both(first: Verdict | str, second: Verdict | str, policy: Policy = "drop") -> Judgment:
    one, two = (Verdict(said) if isinstance(said, str) else said for said in (first, second))  # type: ignore[arg-type]
    return BothOrders(Script(one, two), policy).judge_pairs([Matchup("p", "x", "y")])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("first", WINNERS)
@pytest.mark.parametrize("second", WINNERS)
def test_every_verdict_in_every_order_under_every_policy(first: str, second: str, policy: Policy) -> None:
    """x is shown first, then second. A verdict for a response is a verdict for its text; what fails is no label."""
    judgment = both(first, second, policy)
    said = [{"a": "x", "b": "y"}.get(first, first), {"a": "y", "b": "x"}.get(second, second)]
    label = {"a": "x", "b": "y"}.get(judgment.winner or "", judgment.winner)
    if "invalid" in said:
        assert label is None and judgment.probability is None
        assert judgment.reason == ("both invalid" if said == ["invalid", "invalid"] else "one invalid")
    elif said[0] == said[1]:
        assert label == said[0] and judgment.probability == {"x": 1.0, "y": 0.0, "tie": 0.5}[said[0]]
    elif "tie" in said:
        mean = next(one for one in said if one != "tie")
        assert label == {"drop": None, "tie": "tie", "keep_mean": mean}[policy] and judgment.reason == "one tie"
    else:
        assert label == {"drop": None, "tie": "tie", "keep_mean": "tie"}[policy] and judgment.contradiction


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("x", "y"), [(1.0, -1.0), (-1.0, 1.0), (0.2, 0.1)])
@pytest.mark.parametrize("position", [-3.0, -0.5, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("logits", [False, True])
def test_whatever_the_bias_no_label_is_the_wrong_one(policy: Policy, x: float, y: float, position: float, logits: bool) -> None:
    judgment = BothOrders(Biased({"x": x, "y": y}, position=position, logits=logits), policy).judge_pairs([Matchup("p", "x", "y")])[0]
    assert judgment.winner in (None, "tie", "a" if x > y else "b")
    if abs(position) < abs(x - y):
        assert judgment.winner == ("a" if x > y else "b")


def test_one_order_mislabels_what_both_orders_recover() -> None:
    """200 pairs, position worth 1.5 logits: one order is wrong wherever the difference is within it, both orders never."""
    random = np.random.default_rng(0)
    strengths = {f"{k}": float(value) for k, value in enumerate(random.normal(0, 1, 400))}
    pairs = [Matchup("p", f"{2 * k}", f"{2 * k + 1}") for k in range(200)]
    truth = ["a" if strengths[str(m.a)] > strengths[str(m.b)] else "b" for m in pairs]
    judge = Biased(strengths, position=1.5)
    wrong = sum(verdict.winner != right for verdict, right in zip(judge.compare(pairs), truth, strict=True))
    found = BothOrders(judge).judge_pairs(pairs)
    kept = [(judgment.winner, right) for judgment, right in zip(found, truth, strict=True) if judgment.winner]
    assert wrong > 50 and len(kept) > 30 and all(said == right for said, right in kept)
    assert count_outcomes(found) == {"pairs": 200, "kept": len(kept), "ties": 0, "reasons": {"agreed": len(kept), "contradiction": 200 - len(kept)}}


@pytest.mark.parametrize(("delta", "gamma"), [(2.0, 0.0), (2.0, 1.0), (2.0, 2.5), (-0.7, 1.2)])
def test_log_odds_lose_the_position_and_nothing_else(delta: float, gamma: float) -> None:
    """logits delta + gamma and delta - gamma: their mean is delta. The mean of the probabilities at (2, 2.5) would be 0.68, logit 0.76."""
    judgment = BothOrders(Biased({"x": delta, "y": 0.0}, position=gamma, logits=True), "keep_mean").judge_pairs([Matchup("p", "x", "y")])[0]
    assert judgment.logit == pytest.approx(delta) and judgment.position == pytest.approx(gamma)
    assert judgment.probability == pytest.approx(1 / (1 + np.exp(-delta)))
    shrunk = (1 / (1 + np.exp(-delta - gamma)) + 1 / (1 + np.exp(-delta + gamma))) / 2
    assert gamma == 0 or abs(np.log(shrunk / (1 - shrunk))) < abs(delta)


def test_equal_texts_are_a_tie_without_a_call() -> None:
    judge = Told(lambda a, b: "a")
    found = BothOrders(judge).judge_pairs([Matchup("p", "x", "x"), Matchup("p", "x", "y")])
    assert [one.winner for one in found] == ["tie", None] and found[0].first is IDENTICAL and len(judge.asked) == 2
    assert BothOrders(judge).judge_pairs([]) == []


def test_a_judge_that_answers_too_little_is_named() -> None:
    with pytest.raises(DataError, match=r"gave 2 verdicts for 4 matchups \(2 pairs in both orders\)"):
        BothOrders(Script(Verdict("a"), Verdict("b"))).judge_pairs([Matchup("p", "x", "y"), Matchup("q", "x", "y")])  # type: ignore[arg-type]


def test_strength_is_the_mean_where_the_orders_agree() -> None:
    assert both(Verdict("a", strength=2.0), Verdict("b", strength=1.0)).strength == 1.5
    assert both(Verdict("a", strength=0.5), Verdict("b", strength=0.5)).strength == 0.5, "a mean over votes is kept as it is"
    assert both(Verdict("a", strength=2.0), Verdict("a", strength=2.0), "keep_mean").strength == 0.0


# --- votes and juries --------------------------------------------------------------------------------------------------------------------------


def test_votes_by_hand() -> None:
    """A, A, B, tie, nothing: shares 1, 1, 0, 1/2 of four that spoke: 2.5 / 4. Samples are numbered, and warm."""
    replies = ["[[A>B]]", "[[A>>B]]", "[[B>A]]", "[[A=B]]", *["Well."] * 4]
    asked = []

    def answer(request):  # type: ignore[no-untyped-def]
        asked.append(request)
        return replies[len(asked) - 1]

    votes = Votes(ChatJudge(Caller(FunctionClient(answer)), "m"), 5, temperature=0.9)
    (verdict,) = votes.compare([Matchup("p", "x", "y")])
    assert verdict.winner == "a" and verdict.probability == pytest.approx(2.5 / 4) and verdict.strength == pytest.approx((1 + 2 + 1 + 0) / 4)
    assert verdict.raw == "a 2, b 1, invalid 1, tie 1"
    assert [request.sample for request in asked[:5]] == [0, 1, 2, 3, 4] and {request.sampling.temperature for request in asked} == {0.9}
    assert len({request.key("e") for request in asked}) == len(asked) == 8


def test_votes_need_an_endpoint_that_samples() -> None:
    judge = ChatJudge(Caller(Counted().client), "stub", capabilities=GREEDY)
    with pytest.raises(ConfigError, match="working sampling"):
        Votes(judge, 3)
    with pytest.raises(ConfigError, match="one answer 3 times"):
        Votes(ChatJudge(Caller(Counted().client), "stub"), 3, temperature=0.0)
    with pytest.raises(ConfigError, match="two at least"):
        Votes(judge, 1)
    token = ChatJudge(Caller(Counted().client), "stub", instructions=Instructions(PairPrompt("token")), capabilities=ALL)
    with pytest.raises(ConfigError, match="log-odds hold all votes"):
        Votes(token, 3)


def test_votes_of_a_noisy_judge_beat_one_answer() -> None:
    """Dials with logistic noise of scale 1 and a difference of 1: one answer is right in 73 %, the majority of nine in more."""
    strengths = {"x": 1.0, "y": 0.0}
    pairs = [Matchup(f"Question {k}?", "x", "y") for k in range(100)]
    one = ChatJudge(Caller(Counted(Dials(strengths=strengths, noise=1.0)).client), "stub").with_sample(0, temperature=1.0)
    nine = Votes(ChatJudge(Caller(Counted(Dials(strengths=strengths, noise=1.0)).client), "stub"), 9, temperature=1.0)
    right_one, right_nine = (sum(verdict.winner == "a" for verdict in judge.compare(pairs)) for judge in (one, nine))
    assert right_one < 90 <= right_nine


def test_a_jury_by_hand() -> None:
    """Weights 3, 1, 1: a against b and b is 3/5; a tie counts half; who says nothing takes no part."""
    jury = Jury([Told(lambda a, b: "a"), Told(lambda a, b: "b"), Told(lambda a, b: "b")], weights=[3, 1, 1])
    (verdict,) = jury.compare([Matchup("p", "x", "y")])
    assert (verdict.winner, verdict.probability) == ("a", pytest.approx(0.6)) and [column[0].winner for column in jury.last] == ["a", "b", "b"]
    even = Jury([Told(lambda a, b: "a"), Told(lambda a, b: "b"), Told(lambda a, b: "invalid")]).compare([Matchup("p", "x", "y")])[0]
    assert (even.winner, even.probability) == ("tie", 0.5)
    dumb = Told(lambda a, b: Verdict("invalid", None, "no verdict"))
    none = Jury([dumb, dumb]).compare([Matchup("p", "x", "y")])[0]
    assert (none.winner, none.probability, none.reason) == ("invalid", None, "no verdict")
    for judges, weights in (([dumb], None), ([dumb, dumb], [1.0]), ([dumb, dumb], [1.0, 0.0])):
        with pytest.raises(ConfigError, match=r"judges at least|as many weights"):
            Jury(judges, weights=weights)


def test_effective_votes_by_hand() -> None:
    """Three equal judges are one. Of two uncorrelated ones, two. Errors (1,1,0,0), (1,1,0,0), (1,0,1,0): correlations 1, 0, 0, mean 1/3: 3 / (1 + 2/3)."""
    a, b = [1, 1, 0, 0], [1, 0, 1, 0]
    assert effective_votes(np.array([a, a, a])) == pytest.approx(1.0)
    assert effective_votes(np.array([a, b])) == pytest.approx(2.0)
    assert effective_votes(np.array([a, a, b])) == pytest.approx(3 / (1 + 2 / 3))
    assert effective_votes(np.zeros((3, 4))) == pytest.approx(3.0), "judges that never err correlate with nobody"
    with pytest.raises(ValueError, match="two judges"):
        effective_votes(np.array([a]))


# --- cascade -----------------------------------------------------------------------------------------------------------------------------------


def test_a_cascade_asks_the_strong_judge_where_the_cheap_one_does_not_decide() -> None:
    cheap = Told(lambda a, b: {"sure": "a" if a == "sure" else "b", "torn": "a", "even": "tie", "dumb": "invalid"}[a if a != "other" else b])
    strong = Told(lambda a, b: "b" if a == "other" else "a")
    cascade = Cascade(BothOrders(cheap), BothOrders(strong))
    found = cascade.judge_pairs([Matchup("p", "sure", "other"), *(Matchup("p", name, "other") for name in ("torn", "even", "dumb")), Matchup("p", "x", "x")])
    assert [one.winner for one in found] == ["a", "a", "a", "a", "tie"] and cascade.passed_on == 3 and len(strong.asked) == 6


def test_a_cascade_passes_on_what_is_near_one_half() -> None:
    cheap = Biased({"x": 0.3, "y": 0.0, "z": 3.0}, logits=True)
    cascade = Cascade(BothOrders(cheap), BothOrders(Told(lambda a, b: "b" if a == "x" else "a")), doubtful=0.1)
    found = cascade.judge_pairs([Matchup("p", "x", "y"), Matchup("p", "z", "y")])
    assert [one.winner for one in found] == ["b", "a"] and cascade.passed_on == 1
    with pytest.raises(ConfigError, match="from 0 up to"):
        Cascade(BothOrders(cheap), BothOrders(cheap), doubtful=0.5)
