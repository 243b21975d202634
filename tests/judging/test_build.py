"""Judgments to rows by hand: strengths, margins, ties, contradictions, what is overruled; every judged pair accounted for; the rows are read as data."""

from __future__ import annotations

import json
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from tests.judging.stubs import Biased, Told, preferring, responses

from palate.cli.main import main
from palate.data.loading import load_groups
from palate.data.pairing import training_comparisons
from palate.errors import ConfigError, DataError
from palate.judging.build import EQUAL, NOT_SELECTED, OVERRULED, SMALL, BuildSettings, Built, assemble, build
from palate.judging.card_figures import position_of
from palate.judging.combining import BothOrders, Judgment
from palate.judging.orders import Policy
from palate.judging.schedule import Candidate, Judged
from palate.types import Matchup, Verdict

PLAIN = BuildSettings(source_prior=False)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def adds_up(card: dict[str, Any]) -> bool:
    return card["judged_pairs"] == card["rows"] - card["inferred_rows"] + sum(card["left_out"].values())


def said(winner: str, first: int = 0, second: int = 1, prompt: int = 0) -> Judged:
    """Both orders say the same: a, b or tie."""
    other = {"a": "b", "b": "a", "tie": "tie"}[winner]
    p = {"a": 1.0, "b": 0.0, "tie": 0.5}[winner]
    reason = "both tie" if winner == "tie" else "agreed"
    return Judged(prompt, first, second, Judgment(winner, reason, p, 0.0, Verdict(winner), Verdict(other)))  # type: ignore[arg-type]


def failed(first: int, second: int, prompt: int = 0) -> Judged:
    return Judged(prompt, first, second, Judgment(None, "one invalid", None, 0.0, Verdict("invalid"), Verdict("a")))


def one_prompt(judged: list[Judged], k: int, settings: BuildSettings = PLAIN) -> Built:
    return assemble(judged, ["p"], [responses(*"xyzuvw"[:k])], settings=settings)


# --- right labels ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["drop", "tie", "keep_mean"])
@pytest.mark.parametrize("order", list(permutations(("best", "middle", "worst"))))
def test_chosen_is_what_the_judge_prefers_whatever_the_order(order: tuple[str, ...], policy: Policy) -> None:
    """open-instruct's un-shuffle takes the first of the pair always: here no order of candidates changes a row."""
    built = build(preferring("best", "middle", "worst", policy=policy), ["p"], [responses(*order)], settings=PLAIN)
    assert {(row["chosen"], row["rejected"]) for row in built.rows} == {("best", "middle"), ("middle", "worst"), ("best", "worst")}
    for row in built.rows:
        assert (row["verdict_ab"], row["verdict_ba"], row["consistent"]) == ("chosen", "chosen", True)
        assert row["chosen_model"] == f"m{order.index(row['chosen'])}" and row["beta_chosen"] > row["beta_rejected"]


def test_failures_never_become_labels() -> None:
    """Of three pairs two fail in one order: one row, and no word on the response that was never judged."""
    built = one_prompt([said("b", 0, 1), failed(0, 2), failed(1, 2)], 3)
    (row,) = built.rows
    assert (row["chosen"], row["rejected"]) == ("y", "x") and built.card["left_out"] == {"one invalid": 2} and adds_up(built.card)
    with pytest.raises(DataError, match=r"no pair can be used: of 1 judgments: 1 x one invalid;"):
        one_prompt([failed(0, 1)], 2)


def test_all_ties_make_no_rows() -> None:
    """distilabel pairs a response with itself where all ratings are equal."""
    with pytest.raises(DataError, match=r"no pair becomes a row: of 3 judgments: 3 x both tie"):
        one_prompt([said("tie", 0, 1), said("tie", 0, 2), said("tie", 1, 2)], 3)


@pytest.mark.parametrize("select", ["all", "adjacent"])
def test_a_pair_that_was_asked_and_not_decided_is_no_row(select: str) -> None:
    """x > y > z by two pairs; x against z failed. The strengths say x > z, but no row does."""
    judged = [said("a", 0, 1), failed(0, 2), said("a", 1, 2)]
    built = one_prompt(judged, 3, BuildSettings(source_prior=False, select=select))  # type: ignore[arg-type]
    assert {(row["chosen"], row["rejected"]) for row in built.rows} == {("x", "y"), ("y", "z")} and adds_up(built.card)
    with pytest.raises(DataError, match="no pair becomes a row"):
        one_prompt(judged, 3, BuildSettings(source_prior=False, select="best_worst"))


# --- by hand -----------------------------------------------------------------------------------------------------------------------------------


def test_two_responses_by_hand() -> None:
    """b = (d/2, -d/2); two games: 2 (1 - sigmoid(d)) = ridge d / 2."""
    (row,) = one_prompt([said("a")], 2).rows
    d = brentq(lambda d: 2 * (1 - sigmoid(d)) - 0.5 * d / 2, 0, 9)
    assert row["margin"] == pytest.approx(d) and row["p_hat"] == pytest.approx(sigmoid(d)) and row["beta_chosen"] == pytest.approx(d / 2)
    assert row["beta_rejected"] == pytest.approx(-d / 2) and row["pair_weight"] == 1.0
    assert row["beta_se"] == pytest.approx((2 * sigmoid(d) * (1 - sigmoid(d)) + 0.5 / 2) ** -0.5), "information of d: two games, and the ridge on both ends"


def test_three_responses_by_hand() -> None:
    """x > y > z, all three pairs: b = (s, 0, -s) with 2 (1 - sigmoid(s)) + 2 (1 - sigmoid(2 s)) = ridge s."""
    built = one_prompt([said("a", 0, 1), said("a", 0, 2), said("a", 1, 2)], 3, BuildSettings(source_prior=False, margin="none"))
    s = brentq(lambda s: 2 * (1 - sigmoid(s)) + 2 * (1 - sigmoid(2 * s)) - 0.5 * s, 0, 9)
    assert {(row["chosen"] + row["rejected"]): round(row["margin"], 6) for row in built.rows} == {"xy": round(s, 6), "xz": round(2 * s, 6), "yz": round(s, 6)}
    assert {row["pair_weight"] for row in built.rows} == {1 / 3} and built.card["prompts_with_rows"] == 1


def test_a_tie_draws_strengths_together_and_makes_no_row() -> None:
    """x = y, x > z, y > z: b = (s, s, -2 s) with the pull of one pair each, 2 (1 - sigmoid(3 s)) = ridge s."""
    built = one_prompt([said("tie", 0, 1), said("a", 0, 2), said("a", 1, 2)], 3)
    s = brentq(lambda s: 2 * (1 - sigmoid(3 * s)) - 0.5 * s, 0, 9)
    assert {(row["chosen"] + row["rejected"]) for row in built.rows} == {"xz", "yz"} and built.rows[0]["margin"] == pytest.approx(min(3.0, 3 * s))
    assert built.card["left_out"] == {"both tie": 1} and adds_up(built.card)


def test_a_circle_has_equal_strengths() -> None:
    """x > y > z > x, and u below all: three rows, the circle's pairs are left out as equal."""
    judged = [said("a", 0, 1), said("a", 1, 2), said("b", 0, 2), *(said("a", k, 3) for k in range(3))]
    built = one_prompt(judged, 4)
    left = built.card["left_out"]
    assert {row["rejected"] for row in built.rows} >= {"u"} and sum(left.get(reason, 0) for reason in (EQUAL, OVERRULED)) == 6 - len(built.rows)
    assert adds_up(built.card) and set(left) <= {EQUAL, OVERRULED}


def test_an_upset_is_overruled() -> None:
    """x beats y, z and u beats nobody but x: its verdict over x stands against the others, and makes no row."""
    judged = [said("a", 0, 1), said("a", 0, 2), said("b", 0, 3), said("a", 1, 3), said("a", 2, 3), said("a", 1, 2)]
    built = one_prompt(judged, 4)
    assert built.card["left_out"] == {OVERRULED: 1} and ("u", "x") not in {(row["chosen"], row["rejected"]) for row in built.rows}
    assert adds_up(built.card) and {row["pair_weight"] for row in built.rows} == {1 / 5}, "weights of the rows that are there add up to 1"


@pytest.mark.parametrize("policy", ["drop", "tie", "keep_mean"])
def test_contradictions_under_each_policy(policy: Policy) -> None:
    """x over y in both orders, z against anyone by position: one row. As ties, z's pairs hold x and y together; dropped, they say nothing.

    Dropped: 2 (1 - sigmoid(d)) = ridge d / 2, d = 1.49. Tied, b = (s, -s, 0): 2 (1 - sigmoid(2 s)) - 2 (sigmoid(s) - 1/2) = ridge s, and d = 2 s < 1.49.
    """
    judge = Told(lambda a, b: "a" if "z" in (a, b) or a == "x" else "b")
    built = build(BothOrders(judge, policy).judge_pairs, ["p"], [responses("x", "y", "z")], settings=PLAIN)
    assert [(row["chosen"], row["rejected"]) for row in built.rows] == [("x", "y")]
    assert built.card["left_out"] == {"contradiction": 2} and built.card["outcomes"] == {"agreed": 1, "contradiction": 2} and adds_up(built.card)
    dropped = brentq(lambda d: 2 * (1 - sigmoid(d)) - 0.5 * d / 2, 0, 9)
    tied = 2 * brentq(lambda s: 2 * (1 - sigmoid(2 * s)) - 2 * (sigmoid(s) - 0.5) - 0.5 * s, 0, 9)
    assert built.rows[0]["margin"] == pytest.approx(dropped if policy == "drop" else tied) and tied < dropped


def test_selectors_and_what_they_leave() -> None:
    judge = preferring("x", "y", "z", "u")
    built = {
        how: build(judge, ["p"], [responses("u", "y", "x", "z")], settings=BuildSettings(source_prior=False, select=how))  # type: ignore[arg-type]
        for how in ("all", "best_worst", "adjacent", "best_random", "best_mean2sd")
    }
    pairs = {how: [row["chosen"] + row["rejected"] for row in found.rows] for how, found in built.items()}
    assert pairs["best_worst"] == ["xu"] and pairs["adjacent"] == ["xy", "yz", "zu"] and len(pairs["all"]) == 6
    assert pairs["best_random"][0][0] == "x" and built["best_worst"].card["left_out"] == {NOT_SELECTED: 5}
    assert all(adds_up(found.card) for found in built.values())


def test_on_policy_rows() -> None:
    group = [Candidate(text, text, on_policy=text == "y") for text in ("x", "y", "z")]
    built = build(preferring("x", "y", "z"), ["p"], [group], settings=BuildSettings(select="on_policy"))
    assert [row["chosen"] + row["rejected"] for row in built.rows] == ["xy", "yz"] and adds_up(built.card)
    with pytest.raises(ConfigError, match="no response is marked"):
        build(preferring("x", "y"), ["p"], [responses("x", "y")], settings=BuildSettings(select="on_policy"))


def test_margin_transforms_and_the_least_margin() -> None:
    judged = [said("a", 0, 1), said("a", 0, 2), said("a", 1, 2)]
    raw = one_prompt(judged, 3, BuildSettings(source_prior=False, margin="none")).rows
    clipped = one_prompt(judged, 3, BuildSettings(source_prior=False, margin_clip=1.5)).rows
    assert [row["margin"] for row in clipped] == [min(1.5, row["margin"]) for row in raw] and [row["p_hat"] for row in clipped] == [row["p_hat"] for row in raw]
    large = one_prompt(judged, 3, BuildSettings(source_prior=False, margin="llama2_large")).rows
    assert {row["margin"] for row in large} <= {0.0, 1.0, 2.0, 3.0}
    built = one_prompt(judged, 3, BuildSettings(source_prior=False, min_margin=2.0))
    assert len(built.rows) == 1 and built.card["left_out"] == {SMALL: 2} and built.rows[0]["pair_weight"] == 1.0 and adds_up(built.card)
    with pytest.raises(DataError, match="lower min_margin"):
        one_prompt(judged, 3, BuildSettings(source_prior=False, min_margin=9.0))


def test_pairs_that_were_not_asked_are_said_to_be_inferred() -> None:
    """x > y and y > z were asked. best_worst: x over z, by the strengths alone."""
    built = one_prompt([said("a", 0, 1), said("a", 1, 2)], 3, BuildSettings(source_prior=False, select="best_worst"))
    assert (built.rows[0]["chosen"], built.rows[0]["rejected"]) == ("x", "z") and built.card["inferred_rows"] == 1
    assert (built.rows[0]["verdict_ab"], built.rows[0]["consistent"]) == (None, None) and adds_up(built.card)
    assert len(one_prompt([said("a", 0, 1), said("a", 1, 2)], 3).rows) == 2, "`all` keeps to what was asked"


# --- sources -----------------------------------------------------------------------------------------------------------------------------------


def test_the_prior_leans_to_the_stronger_source() -> None:
    """strong beats weak on 20 prompts and loses one: with the prior that upset counts for less, the others for more."""
    judged = [said("a", prompt=g) for g in range(20)] + [said("b", prompt=20)]
    groups = [responses(f"s{g}", f"w{g}", sources=("strong", "weak")) for g in range(21)]
    prompts = [f"p{g}" for g in range(21)]
    plain, leaning = (assemble(judged, prompts, groups, settings=BuildSettings(source_prior=on, margin="none")) for on in (False, True))
    assert leaning.card["source_strengths"]["strong"] > 1 > -1 > leaning.card["source_strengths"]["weak"] and plain.card["source_strengths"] == {}
    assert leaning.rows[0]["margin"] > plain.rows[0]["margin"] == pytest.approx(plain.rows[-1]["margin"])
    assert plain.rows[-1]["chosen"] == "w20" and len(plain.rows) == 21
    assert leaning.rows[-1]["chosen"] == "w20" and leaning.rows[-1]["margin"] < plain.rows[-1]["margin"] / 2
    assert adds_up(leaning.card)
    even = [*judged[:10], *(said("b", prompt=g) for g in range(10, 20))]
    (upset,) = [row for row in assemble([*even, judged[0]._replace(prompt=20)], prompts, groups).rows if row["prompt"] == "p20"]
    assert upset["margin"] == pytest.approx(plain.rows[0]["margin"], rel=0.2), "sources that win about as often hardly lean"


def test_sources_that_never_met_have_no_prior() -> None:
    groups = [responses("x0", "y0", sources=("m", "m")), responses("x1", "y1", sources=("n", "n"))]
    assert assemble([said("a", prompt=0), said("a", prompt=1)], ["p", "q"], groups).card["source_strengths"] == {}


# --- position ----------------------------------------------------------------------------------------------------------------------------------


def biased(position: float, *, logits: bool, noise: float = 0.0, n: int = 400) -> list[Judged]:
    random = np.random.default_rng(1)
    strengths = {f"{k}": float(value) for k, value in enumerate(random.normal(0, 1, 2 * n))}
    judge = Biased(strengths, position=position, noise=noise, seed=2, logits=logits)
    pairs = [Matchup(f"p{k}", f"{2 * k}", f"{2 * k + 1}") for k in range(n)]
    return [Judged(k, 0, 1, judgment) for k, judgment in enumerate(BothOrders(judge).judge_pairs(pairs))]


@pytest.mark.parametrize("gamma", [-0.8, 0.0, 0.8])
def test_gamma_lies_in_its_interval(gamma: float) -> None:
    """From verdicts with logistic noise of scale 1, and from noisy log-odds, whose interval is narrower."""
    verdicts, logits = (position_of(biased(gamma, logits=logits, noise=1.0)) for logits in (False, True))
    assert verdicts and logits and (verdicts["from"], logits["from"]) == ("verdicts", "log-odds")
    for found in (verdicts, logits):
        low, high = found["interval"]
        assert low < gamma < high and found["pairs"] == 400 and found["contradictions"] > 0
    assert logits["interval"][1] - logits["interval"][0] < verdicts["interval"][1] - verdicts["interval"][0]


def test_a_judge_that_always_agrees_with_itself_bounds_nothing() -> None:
    found = position_of(biased(0.0, logits=False, n=10))
    assert found == {"gamma": 0.0, "interval": None, "pairs": 10, "from": "verdicts", "contradictions": 0}
    assert position_of([failed(0, 1)]) is None


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 3.0])
def test_margins_of_log_odds_are_the_judges_own(gamma: float) -> None:
    """A mean of 2 logits is a margin of 2, whatever the position is worth, also where it outweighs the difference and the orders contradict each other.

    With one pair the error is that of rounding, variance v = 1/3072: d = 2 / (1 + v ridge / 2). As two games of probability 0.88 it would come to 1.1.
    """
    judge = BothOrders(Biased({"x": 2.0, "y": 0.0}, position=gamma, logits=True), "keep_mean").judge_pairs
    built = build(judge, ["p"], [responses("y", "x")], settings=PLAIN)
    (row,) = built.rows
    assert row["margin"] == pytest.approx(2 / (1 + 0.25 / 3072), abs=1e-9) and row["logit"] == pytest.approx(2.0) and row["chosen"] == "x"
    assert row["consistent"] is (gamma < 2) and built.card["reading_deviation"] == pytest.approx(3072**-0.5)


def test_log_odds_that_err_are_drawn_to_the_prior_by_their_error() -> None:
    """Positions 0 and 2 of two pairs with a mean of 2 logits each: variance 2, so d = 2 / (1 + 2 * 0.5 / 2) = 4/3."""
    judged = []
    for g, position in enumerate((0.0, 2.0)):
        judgment = Judgment("a", "agreed", sigmoid(2), 0.0, Verdict("a"), Verdict("b"), 2.0, position)
        judged.append(Judged(g, 0, 1, judgment))
    built = assemble(judged, ["p", "q"], [responses("x", "y"), responses("u", "v")], settings=PLAIN)
    assert [row["margin"] for row in built.rows] == pytest.approx([4 / 3, 4 / 3]) and built.card["reading_deviation"] == pytest.approx(2**0.5)
    assert built.rows[0]["beta_se"] == pytest.approx((1 / 2 + 0.5 / 2) ** -0.5), "precision of the reading, and the ridge on both ends"


@pytest.mark.parametrize(("policy", "rows"), [("drop", 0), ("tie", 0), ("keep_mean", 1)])
def test_contradicting_log_odds_under_each_policy(policy: Policy, rows: int) -> None:
    """x over y by 1, position worth 3: the labels contradict each other, the mean does not; z far below both."""
    judge = BothOrders(Biased({"x": 1.0, "y": 0.0, "z": -20.0}, position=3.0, logits=True), policy).judge_pairs
    built = build(judge, ["p"], [responses("x", "y", "z")], settings=BuildSettings(source_prior=False, margin="none"))
    own = [row for row in built.rows if row["rejected"] == "y"]
    assert len(own) == rows and built.card["left_out"] == ({} if rows else {"contradiction": 1}) and adds_up(built.card)
    assert built.card["position"]["gamma"] == pytest.approx(3.0)
    if rows:
        assert own[0]["margin"] == pytest.approx(1.0, abs=1e-3)


def test_log_odds_and_verdicts_in_one_fit() -> None:
    """A cascade: words where they decided, log-odds where they did not. x > y by verdicts, y over z by 1.5 logits; the strengths solve both at once."""
    stated = Judgment("a", "agreed", sigmoid(1.5), 0.0, Verdict("a"), Verdict("b"), 1.5, 0.0)
    built = one_prompt([said("a", 0, 1), Judged(0, 1, 2, stated)], 3, BuildSettings(source_prior=False, margin="none"))
    x, y, z = (next(row[f"beta_{side}"] for row in built.rows if row[side] == text) for text, side in (("x", "chosen"), ("y", "chosen"), ("z", "rejected")))
    pull = 2 * (1 - sigmoid(x - y))
    assert 0.5 * x == pytest.approx(pull) and 3072 * (1.5 - (y - z)) == pytest.approx(pull + 0.5 * y, rel=1e-4) and x + y + z == pytest.approx(0, abs=1e-9)


# --- the whole ---------------------------------------------------------------------------------------------------------------------------------


def many(n: int = 30, seed: int = 0) -> tuple[list[str], list[list[Candidate]], dict[str, float]]:
    random = np.random.default_rng(seed)
    groups = [[Candidate(f"answer {g} {k} " + "x" * int(random.integers(1, 30)), f"m{k % 3}") for k in range(int(random.integers(2, 6)))] for g in range(n)]
    return [f"p{g}" for g in range(n)], groups, {str(c.text): float(random.normal()) for group in groups for c in group}


@pytest.mark.parametrize("pairs_per_prompt", [None, 3])
def test_the_order_of_the_input_is_of_no_account(pairs_per_prompt: int | None) -> None:
    prompts, groups, strengths = many()
    judge = BothOrders(Biased(strengths, position=0.3)).judge_pairs
    for select in ("all", "best_random"):
        settings = BuildSettings(select=select, pairs_per_prompt=pairs_per_prompt)  # type: ignore[arg-type]
        straight = build(judge, prompts, groups, settings=settings)
        assert build(judge, prompts, groups, settings=settings).card["fingerprint"] == straight.card["fingerprint"]
        back = build(judge, prompts[::-1], groups[::-1], settings=settings)
        key = [(row["prompt"], row["chosen"], row["rejected"]) for row in straight.rows]
        found = {(row["prompt"], row["chosen"], row["rejected"]): row for row in back.rows}
        assert sorted(found) == sorted(key) and adds_up(back.card)
        for row in straight.rows:
            assert found[row["prompt"], row["chosen"], row["rejected"]]["margin"] == pytest.approx(row["margin"], abs=1e-9)
    turned = build(judge, prompts, [group[::-1] for group in groups])
    assert {(r["chosen"], r["rejected"], round(r["margin"], 9), r["verdict_ab"]) for r in turned.rows} == {
        (r["chosen"], r["rejected"], round(r["margin"], 9), r["verdict_ab"]) for r in build(judge, prompts, groups).rows
    }


def test_rows_are_read_by_their_margin_or_as_soft_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`margin` and `p_hat` are one strength in two forms: who reads margins gets a plain pair with its margin, who does not a soft label; nobody both."""
    prompts, groups, strengths = many()
    rows = build(BothOrders(Biased(strengths)).judge_pairs, prompts, groups, provenance={"judge": "stub", "template_hash": "abc"}).rows
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_margin, soft = load_groups(path).groups, load_groups(path, margins=False).groups
    assert len(by_margin) == len(soft) == len(rows)
    for plain, softly, row in zip(by_margin, soft, rows, strict=True):
        (with_margin,), (with_probability,) = plain.comparisons, softly.comparisons
        assert (plain.responses[with_margin.chosen], plain.responses[with_margin.rejected]) == (row["chosen"], row["rejected"])
        assert with_margin.chosen == with_probability.chosen and plain.metadata["judge"] == "stub" and plain.metadata["chosen_model"] == row["chosen_model"]
        assert (with_margin.margin, with_margin.probability) == (pytest.approx(row["margin"]), 1.0)
        assert (with_probability.margin, with_probability.probability) == (0.0, pytest.approx(row["p_hat"]))
        assert with_margin.weight == with_probability.weight == pytest.approx(row["pair_weight"])
    assert load_groups(path, columns={"weight": "pair_weight"}).groups[0].comparisons[0].weight == pytest.approx(rows[0]["pair_weight"])
    assert main(["data", "check", str(path)]) == 0 and "soft label" in capsys.readouterr().out


def test_every_prompt_weighs_the_same_in_the_loss(tmp_path: Path) -> None:
    """1 / C(K, 2) from the build to the batch: of prompts with 2, 3 and 4 responses each comes to the batch with a weight of 1."""
    groups = [responses(*(f"{g} {k}" for k in range(size))) for g, size in enumerate((2, 3, 4))]
    judge = preferring(*(f"{g} {k}" for g in range(3) for k in range(4)))
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in build(judge, ["p0", "p1", "p2"], groups, settings=PLAIN).rows))
    weights: dict[str, float] = {}
    loaded = load_groups(path).groups
    for group in loaded:
        for comparison in training_comparisons(group.comparisons, ties="drop"):
            weights[str(group.prompt)] = weights.get(str(group.prompt), 0.0) + comparison.weight
    assert len(loaded) == 1 + 3 + 6 and weights == {f"p{g}": pytest.approx(1.0) for g in range(3)}


def test_what_cannot_be_built() -> None:
    with pytest.raises(DataError, match="2 prompts and 1 lists of responses"):
        build(preferring("x", "y"), ["p", "q"], [responses("x", "y")])
    with pytest.raises(DataError, match="none of the 1 prompts has two responses"):
        build(preferring("x"), ["p"], [responses("x")])


def test_ten_thousand_prompts_in_seconds() -> None:
    prompts = [f"p{g}" for g in range(10_000)]
    groups = [responses(*(f"{g} {k}" for k in range(4))) for g in range(10_000)]
    random = np.random.default_rng(0)
    judged = [said("a" if random.random() < 0.7 else "b", i, j, g) for g in range(10_000) for i in range(4) for j in range(i + 1, 4)]
    started = time.process_time()
    built = assemble(judged, prompts, groups)
    assert time.process_time() - started < 15 and adds_up(built.card) and built.card["judged_pairs"] == 60_000
