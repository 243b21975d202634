"""Judges measured by hand: a scorer as a judge, one that favours a position, ties, verdicts that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from palate.data.loading import load_groups
from palate.errors import DataError
from palate.evaluation.benchmarks import BENCHMARKS, report
from palate.evaluation.items import compare, with_rewards
from palate.evaluation.judges import ScorerJudge, ask_both_orders, evaluate_judge, judge_figures, judge_items, judgment_records, winner_of
from palate.stats.intervals import wilson
from palate.types import Matchup, PreferenceGroup, Verdict


class Fake:
    """A judge by a rule on (prompt, a, b); remembers what it was asked."""

    def __init__(self, rule: Callable[[str, str, str], Any]):
        self.rule, self.calls = rule, []

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        self.calls.append(list(matchups))
        verdicts = [self.rule(str(m.prompt), str(m.a), str(m.b)) for m in matchups]
        return [verdict if isinstance(verdict, Verdict) else Verdict(verdict) for verdict in verdicts]


def loaded(rows: list[dict[str, Any]]) -> list[PreferenceGroup]:
    return load_groups(rows, name="rows").groups


def pairs(*sides: tuple[str, str]) -> list[PreferenceGroup]:
    return loaded([{"prompt": f"p{k}", "chosen": chosen, "rejected": rejected} for k, (chosen, rejected) in enumerate(sides)])


def longer(_: str, a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"


FOUR = [("long one", "short"), ("tiny", "longer"), ("same", "size"), ("longest", "x")]


def test_every_pair_is_asked_in_both_orders_in_one_call() -> None:
    judge = Fake(longer)
    groups = loaded([{"prompt": "p", "response_1": "one", "response_2": "second", "label": 2}]) + pairs(("c", "d"))
    items = compare(with_rewards(groups, np.zeros(4)))
    one, two = ask_both_orders(judge, items, np.array([False, True]))
    assert judge.calls == [[Matchup("p", "one", "second"), Matchup("p", "second", "one"), Matchup("p0", "c", "d"), Matchup("p0", "d", "c")]]
    assert [v.winner for v in one] == ["b", "tie"] and [v.winner for v in two] == ["a", "tie"]


def test_a_judge_without_position_bias() -> None:
    """Right, wrong, tie, right in both orders: 4 of 8 verdicts, 3 of 4 kept, 2 of 3 of those right, no contradiction."""
    found = evaluate_judge(Fake(longer), pairs(*FOUR))
    assert found["accuracy"]["value"] == 0.5 and found["accuracy"]["n"] == 4
    assert found["kept"]["value"] == 0.75 and found["kept_accuracy"]["value"] == pytest.approx(2 / 3) and found["kept_accuracy"]["n"] == 3
    assert (found["contradictions"], found["first_position"], found["ties"], found["invalid"], found["reasons"]) == (0, None, 2, 0, {})
    table = found["two_orders"]
    assert (table["first"], table["second"], table["both"], table["equal"], table["net"]) == (0.5, 0.5, 0.5, 1.0, 0.5)
    assert found["kept"]["interval"] == pytest.approx(wilson(3, 4)[:2])


def test_a_judge_of_position_alone() -> None:
    """Always the first: right once and wrong once on each pair, nothing kept, every contradiction for the first position."""
    found = evaluate_judge(Fake(lambda *_: "a"), pairs(*FOUR))
    assert found["accuracy"]["value"] == 0.5 and found["kept"]["value"] == 0.0 and found["kept_accuracy"] is None
    assert found["contradictions"] == 4 and found["first_position"]["value"] == 1.0 and found["first_position"]["n"] == 4
    assert found["two_orders"]["net"] == 0.0 and math.isnan(found["two_orders"]["kept_accuracy"])
    last = evaluate_judge(Fake(lambda *_: "b"), pairs(*FOUR))
    assert last["first_position"]["value"] == 0.0 and last["contradictions"] == 4


def test_a_judge_that_favours_a_position_where_it_is_unsure() -> None:
    """Decides by length, on equal lengths for what stands second: one contradiction, decided for the second position."""
    found = evaluate_judge(Fake(lambda p, a, b: "b" if len(a) == len(b) else longer(p, a, b)), pairs(*FOUR))
    assert found["contradictions"] == 1 and found["first_position"]["value"] == 0.0 and found["ties"] == 0
    assert found["accuracy"]["value"] == pytest.approx(5 / 8) and found["kept"]["value"] == 0.75


def test_verdicts_are_read_against_the_label_wherever_it_points() -> None:
    """The same responses with the second labelled better: a judge of length is then wrong where it was right."""
    rows = [{"prompt": "p", "response_1": "longer", "response_2": "short", "label": label} for label in (1, 2)]
    found = evaluate_judge(Fake(longer), loaded(rows))
    assert found["accuracy"]["value"] == 0.5 and found["kept"]["value"] == 1.0
    assert evaluate_judge(Fake(longer), loaded(rows[:1]))["accuracy"]["value"] == 1.0
    assert evaluate_judge(Fake(longer), loaded(rows[1:]))["accuracy"]["value"] == 0.0


def test_verdicts_that_cannot_be_read_are_wrong_counted_and_explained() -> None:
    def rule(prompt: str, a: str, b: str) -> Verdict:
        if prompt == "p0":
            return Verdict("invalid", None, "no verdict in the reply")
        if prompt == "p1" and a == "tiny":
            return Verdict("invalid")
        return Verdict(longer(prompt, a, b))

    found = evaluate_judge(Fake(rule), pairs(*FOUR))
    # p0: none twice; p1: none, then wrong; p2: two ties; p3: right twice
    assert found["invalid"] == 3 and found["ties"] == 2 and found["accuracy"]["value"] == 0.25
    assert found["kept"]["value"] == 0.25 and found["kept_accuracy"]["value"] == 1.0
    assert found["two_orders"]["equal"] == 0.75 and found["contradictions"] == 0
    assert found["reasons"] == {"no verdict in the reply": 2, "not said": 1}


def test_labelled_ties_are_not_judged() -> None:
    judge = Fake(longer)
    rows = [{"prompt": "p", "response_1": "one", "response_2": "other", "label": label} for label in (0, 2)]
    assert evaluate_judge(judge, loaded(rows))["accuracy"]["n"] == 1 and len(judge.calls[0]) == 2
    with pytest.raises(DataError, match="every comparison is labelled a tie"):
        evaluate_judge(judge, loaded(rows[:1]))
    with pytest.raises(DataError, match="none of the 1 groups has a comparison"):
        evaluate_judge(judge, loaded([{"prompt": "p", "response": "r"}]))


def test_lists_are_judged_pair_by_pair_as_one_prompt() -> None:
    """Three responses of one prompt: three pairs, one cluster, so the interval says nothing."""
    groups = loaded([{"prompt": "p", "responses": ["a", "bbb", "cc"], "scores": [1, 3, 2]}])
    found = evaluate_judge(Fake(longer), groups)
    assert found["accuracy"]["value"] == 1.0 and found["accuracy"]["n"] == 3 and found["accuracy"]["interval"] == (0.0, 1.0)


@pytest.mark.parametrize("verdicts", [0, 1, 3])
def test_a_judge_that_answers_another_number_of_times(verdicts: int) -> None:
    class Short:
        def compare(self, _: Any) -> list[Verdict]:
            return [Verdict("a")] * verdicts

    with pytest.raises(DataError, match=f"the judge gave {verdicts} verdicts for 2 matchups"):
        evaluate_judge(Short(), pairs(("a", "b")))


def test_records_stand_in_the_coordinates_of_the_item() -> None:
    """Whatever the coin shows first: "12" has the item's first response first, winners are swapped back, a failure has its reason and no winner."""

    def rule(prompt: str, a: str, b: str) -> Verdict:
        if a == "lost":
            return Verdict("invalid", None, "no verdict")
        return Verdict("a", raw=f"{a} before {b}")  # always the first shown

    rows = [{"prompt": f"p{k}", "response_1": "one" if k else "lost", "response_2": "two", "label": 1 + k % 2, "id": k, "subset": "Natural"} for k in range(20)]
    judged = judge_items(Fake(rule), loaded(rows))
    assert 0 < judged.chosen_first.sum() < 20, "the coin has two sides"
    records = judgment_records(judged, "first")
    lost, *others = records
    assert lost["judgments"] == {"12": {"winner": None, "reason": "no verdict"}, "21": {"winner": "2", "text": "two before lost"}}
    assert [record["label"] for record in records] == ["1", "2"] * 10
    expected = {"12": {"winner": "1", "text": "one before two"}, "21": {"winner": "2", "text": "two before one"}}
    assert all(record["judgments"] == expected for record in others)
    assert (others[0]["id"], others[0]["subset"], others[0]["judge"]) == (1, "Natural", "first")
    found = report(BENCHMARKS["llmbar"], records, partial=True)
    # of 40 verdicts 39 are there, one of each pair right; the lost one is p0's, whose label is 1, so its only verdict is wrong
    assert found["scores"]["Natural"]["value"] == pytest.approx(19 / 40) and found["unscored"] == 1
    assert found["scores"]["same verdict in both orders"]["value"] == 0.0


@pytest.mark.parametrize(
    ("benchmark", "subset", "score"), [("rewardbench", "hep-go", "hep-go"), ("rewardbench-prior", "shp", "shp"), ("hhh", "other", "other")]
)
def test_pairs_of_other_benchmarks_count_the_mean_of_both_orders(benchmark: str, subset: str, score: str) -> None:
    """Right twice, right once, tied twice, lost once and right once, lost twice: 1, 1/2, 1/2, 3/4 and 1/2 of five items; those with a lost one are counted."""
    said = {
        "p0": ("a", "b"),
        "p1": ("a", "a"),
        "p2": ("tie", "tie"),
        "p3": ("invalid", "b"),
        "p4": ("invalid", "invalid"),
    }  # better response first, then second
    judge = Fake(lambda prompt, a, b: said[prompt][a.startswith("worse")])
    rows = [{"prompt": prompt, "chosen": f"better {prompt}", "rejected": f"worse {prompt}", "subset": subset} for prompt in said]
    table = BENCHMARKS[benchmark]
    found = report(table, judgment_records(judge_items(judge, [table.parse(row) for row in rows])), partial=True)
    assert table.pairs and found["scores"][score]["value"] == pytest.approx(3.25 / 5) and found["unscored"] == 2
    assert "2 items could not be scored and count as half right in each order without a verdict" in found["note"]


def test_verdicts_in_item_coordinates() -> None:
    assert [winner_of(Verdict(said)) for said in ("a", "b", "tie", "invalid")] == ["1", "2", "tie", None]


def test_recorded_verdicts_in_any_spelling() -> None:
    """The statistics read A>B for 1; so must the figures beside them."""
    plain = judge_figures(["1", "2", "1"], ["1", "2", "2"], ["1", "1", None], np.arange(3))
    spelt = judge_figures(["A>B", "B>A", 1], ["A", "B>>A", "model_b"], [1, "A>B", "null"], np.arange(3))
    assert str(plain) == str(spelt)
    assert plain["accuracy"]["value"] == 0.5 and plain["kept"]["value"] == pytest.approx(1 / 3) and plain["contradictions"] == 1


def test_a_coin_puts_the_better_response_on_either_side() -> None:
    """Data that write the better one first would have one label only: kappa of a perfect judge would be 0 / 0 in place of 1."""
    judge = Fake(longer)
    found = evaluate_judge(judge, pairs(*[(f"longer {k}", "x") for k in range(40)]))
    first = [matchup.b == "x" for matchup in judge.calls[0][::2]]
    assert 10 < sum(first) < 30 and [matchup.a == "x" for matchup in judge.calls[0][1::2]] == first
    assert found["accuracy"]["value"] == 1.0 and found["kappa"]["value"] == pytest.approx(1.0)
    wrong = evaluate_judge(Fake(lambda p, a, b: longer(p, b, a)), pairs(*[(f"longer {k}", "x") for k in range(40)]))
    assert wrong["accuracy"]["value"] == 0.0 and wrong["kappa"]["value"] < -0.9


def test_a_judge_of_length() -> None:
    """FOUR: chosen longer, shorter, of equal length, longer. All six decided verdicts on unequal pairs go to the longer, the labels to 2 of 3."""
    found = evaluate_judge(Fake(longer), pairs(*FOUR))["length"]
    assert (found["prefers_longer"]["value"], found["prefers_longer"]["n"]) == (1.0, 6)
    assert found["labels_prefer_longer"] == pytest.approx(2 / 3)
    assert (found["accuracy_longer"], found["accuracy_shorter"]) == (1.0, 0.0)
    shorter = evaluate_judge(Fake(lambda p, a, b: longer(p, b, a)), pairs(*FOUR))["length"]
    assert (shorter["prefers_longer"]["value"], shorter["accuracy_longer"], shorter["accuracy_shorter"]) == (0.0, 0.0, 1.0)
    fair = evaluate_judge(Fake(lambda *_: "a"), pairs(*FOUR))["length"]  # each pair once for the longer, once for the shorter
    assert fair["prefers_longer"]["value"] == 0.5
    assert evaluate_judge(Fake(lambda *_: "tie"), pairs(*FOUR))["length"] is None


def test_probabilities_with_the_position_taken_out() -> None:
    """logit P(a) = length of a minus length of b plus 0.7 for the first position: the mean over both orders is the length difference alone."""

    def rule(_: str, a: str, b: str) -> Verdict:
        logit = len(a) - len(b) + 0.7
        return Verdict("a" if logit > 0 else "b", 1 / (1 + math.exp(-logit)))

    found = evaluate_judge(Fake(rule), pairs(*FOUR))["calibration"]
    d = np.array([3, -2, 0, 6])
    assert found["n"] == 4 and found["accuracy"] == 0.5
    assert found["brier"] == pytest.approx(np.mean((1 - 1 / (1 + np.exp(-d))) ** 2))
    assert found["log_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-d))))


def test_without_probabilities_in_both_orders_there_is_no_calibration() -> None:
    assert evaluate_judge(Fake(longer), pairs(*FOUR))["calibration"] is None
    once = Fake(lambda _, a, b: Verdict("a", 0.9 if len(a) > len(b) else None))
    assert evaluate_judge(once, pairs(*FOUR))["calibration"] is None
    certain = Fake(lambda _, a, b: Verdict("a", 1.0))
    assert evaluate_judge(certain, pairs(*FOUR))["calibration"] is None


def test_a_judge_that_prefers_its_own_writing() -> None:
    """Four pairs of me and another: labels prefer mine in 1 of 4, the judge always; a pair without me and one of mine alone take no part."""
    rows = [
        {"prompt": f"p{k}", "chosen": f"{better} {k}", "rejected": f"{worse} {k} x", "chosen_model": better, "rejected_model": worse}
        for k, (better, worse) in enumerate([("me", "other"), ("other", "me"), ("other", "me"), ("third", "me"), ("third", "other"), ("me", "me")])
    ]
    judge = Fake(lambda _, a, b: "a" if a.startswith("me") else "b")
    found = evaluate_judge(judge, loaded(rows), writer="me")["self_preference"]
    assert found["writer"] == "me" and found["by_labels"] == 0.25 and found["by_judge"]["value"] == 1.0 and found["excess"] == 0.75
    assert found["by_judge"]["n"] == 8
    by_length = evaluate_judge(Fake(longer), loaded(rows), writer="me")["self_preference"]  # the other one's answer is longer each time
    assert by_length["by_judge"]["value"] == 0.0 and by_length["excess"] == -0.25
    assert evaluate_judge(judge, loaded(rows))["self_preference"] is None
    assert evaluate_judge(judge, loaded(rows), writer="nobody")["self_preference"] is None


# --- a scorer as a judge ---------------------------------------------------------------------------------------------------------------------------------


class Table:
    def __init__(self, rewards: dict[str, float]):
        self.rewards, self.texts = rewards, 0

    def score(self, conversations: Any) -> np.ndarray:
        self.texts += len(conversations)
        return np.array([self.rewards[c.response] for c in conversations], dtype=np.float32)


REWARDS = {"high": 2.0, "low": -1.0, "level": 2.0, "far": 1e6, "lost": math.nan}


def test_the_higher_reward_wins() -> None:
    judge = ScorerJudge(Table(REWARDS))
    high, low, tie, sure = judge.compare([Matchup("p", a, b) for a, b in (("high", "low"), ("low", "high"), ("high", "level"), ("far", "low"))])
    assert [v.winner for v in (high, low, tie, sure)] == ["a", "b", "tie", "a"]
    assert high.probability == pytest.approx(1 / (1 + math.exp(-3))) and tie.probability == 0.5 and sure.probability == 1.0


def test_exchanging_the_sides_exchanges_the_verdict() -> None:
    judge = ScorerJudge(Table(REWARDS))
    names = list(REWARDS)
    matchups = [Matchup("p", a, b) for a in names for b in names]
    forward, backward = judge.compare(matchups), judge.compare([Matchup(m.prompt, m.b, m.a) for m in matchups])
    turned = {"a": "b", "b": "a", "tie": "tie", "invalid": "invalid"}
    assert [turned[v.winner] for v in forward] == [v.winner for v in backward]
    assert [1 - v.probability for v in forward if v.probability is not None] == pytest.approx([v.probability for v in backward if v.probability is not None])


def test_a_response_that_cannot_be_scored_is_invalid() -> None:
    verdict = ScorerJudge(Table(REWARDS)).compare([Matchup("p", "lost", "low")])[0]
    assert verdict.winner == "invalid" and verdict.probability is None and "could not be scored" in verdict.reason


def test_options_of_a_judge_go_to_its_scorer() -> None:
    class Strict(Table):
        def score(self, conversations: Any, *, on_long: str = "error", **_: Any) -> np.ndarray:
            assert on_long == "nan", "a long response would end the run"
            return super().score(conversations)

    assert ScorerJudge(Strict(REWARDS), on_long="nan").compare([Matchup("p", "lost", "low")])[0].winner == "invalid"


def test_a_scorer_never_contradicts_itself() -> None:
    found = evaluate_judge(ScorerJudge(Table(REWARDS)), pairs(("high", "low"), ("low", "far"), ("high", "level"), ("lost", "low")))
    assert found["contradictions"] == 0 and found["two_orders"]["equal"] == 1.0
    assert (found["accuracy"]["value"], found["ties"], found["invalid"]) == (0.25, 2, 2)
    assert found["reasons"] == {"a response could not be scored": 2}


def test_no_matchups_no_verdicts() -> None:
    assert ScorerJudge(Table(REWARDS)).compare([]) == []


def test_a_scorer_of_several_rewards_a_response_is_refused() -> None:
    """Two numbers a response would pair a response's own numbers with one another."""

    class Two:
        def score(self, conversations: Any) -> np.ndarray:
            return np.zeros((len(conversations), 2))

    with pytest.raises(DataError, match="shape"):
        ScorerJudge(Two()).compare([Matchup("p", "a", "b")])
