"""Lists: orders and windows by hand, rankings to verdicts of pairs, position taken out, failures counted, from raw reply to row."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from tests.judging.stub_server import Dials
from tests.judging.stubs import Counted, responses
from tests.judging.test_judge import GREEDY, scripted

from palate.errors import ConfigError, DataError
from palate.judging.build import BuildSettings, build_listed
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import CallFailure, ChatReply, ChatRequest
from palate.judging.combining import BothOrders
from palate.judging.function_client import FunctionClient
from palate.judging.list_judge import ListJudge
from palate.judging.lists import Shown, judgments, list_figures, orders_of, windows
from palate.judging.orders import Policy
from palate.types import Matchup

PLAIN = BuildSettings(source_prior=False)
BLOCK = re.compile(r"<<<response ([A-Z]) [0-9a-f]{16}>>>\n(.*?)\n<<<end of response", re.DOTALL)


def texts(k: int) -> list[str]:
    return [f"answer {i} (strength {-i / 2})" for i in range(k)]


def judge_of(stub: Counted, **settings: object) -> ListJudge:
    return ListJudge(Caller(stub.client), "stub", **settings)  # type: ignore[arg-type]


# --- what is shown -----------------------------------------------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    assert windows((3, 1, 2), 3) == [(3, 1, 2)] and windows((0, 1, 2, 3), 2) == [(0, 1), (1, 2), (2, 3)]
    assert windows(tuple(range(10)), 4) == [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 8, 9)]
    assert windows(tuple(range(8)), 5) == [(0, 1, 2, 3, 4), (2, 3, 4, 5, 6), (3, 4, 5, 6, 7)], "the last one ends where the list ends"


@pytest.mark.parametrize(("k", "orders", "window"), [(2, 2, 7), (4, 2, 7), (4, 8, 7), (5, 4, 7), (9, 2, 4), (9, 4, 7), (27, 2, 26)])
def test_every_pair_stands_both_ways_round_and_nobody_is_cut_off(k: int, orders: int, window: int) -> None:
    found = orders_of("Why?", texts(k), orders=orders, window=window, seed=1)
    ways: Counter[tuple[int, int]] = Counter()
    for order in found:
        assert len(set(order)) == len(order) <= window
        ways.update(combinations(order, 2))
    assert all(ways[i, j] == ways[j, i] for i, j in ways)
    joined = {0}
    while grown := {j for i, j in ways if i in joined} - joined:
        joined |= grown
    assert joined == set(range(k)), "every response is joined to every other"
    if k <= window:
        assert len(found) == orders and len(ways) == k * (k - 1)
        assert orders < 2 * k or all(Counter(order[place] for order in found) == dict.fromkeys(range(k), orders // k) for place in range(k))


def test_orders_follow_the_texts_not_their_places() -> None:
    shown = {tuple(tuple(turned[k] for k in order) for order in orders_of("Why?", turned, orders=4, window=7, seed=1)) for turned in permutations(texts(4))}
    assert len(shown) == 1
    others = {orders_of(f"Question {g}?", texts(4), orders=2, window=7, seed=seed)[0] for g in range(20) for seed in range(5)}
    assert len(others) == 24, "all orders come up"


@pytest.mark.parametrize(("settings", "message"), [({"orders": 3}, "mirror image"), ({"orders": 0}, "mirror image"), ({"window": 27}, "2 to 26")])
def test_what_cannot_be_shown_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge_of(Counted(), **settings)


# --- rankings to judgments ---------------------------------------------------------------------------------------------------------------------


def test_two_rankings_by_hand() -> None:
    """x y z ranked x > y = z, and z y x ranked y > x > z: x over z both ways; x and y contradict each other; y and z: a tie one way, y the other."""
    lists = [Shown(0, (0, 1, 2), (1.0, 2.0, 2.0)), Shown(0, (2, 1, 0), (3.0, 1.0, 2.0))]
    found = {(one.first, one.second): one.judgment for one in judgments(lists, "drop")}
    assert [(pair, one.winner, one.reason) for pair, one in found.items()] == [
        ((0, 1), None, "contradiction"),
        ((0, 2), "a", "agreed"),
        ((1, 2), None, "one tie"),
    ]
    assert (found[0, 1].first.winner, found[0, 1].second.winner) == ("a", "a"), "as its order showed it: x stood first, then y"
    kept = {(one.first, one.second): one.judgment for one in judgments(lists, "keep_mean")}
    assert (kept[0, 1].winner, kept[1, 2].winner, kept[1, 2].probability) == ("tie", "a", 0.75)


def test_a_list_that_failed_decides_nothing() -> None:
    """One of two orders: no judgment. One of four: its mirror image has none beside it, and the other two decide."""
    ranked, failed = Shown(0, (0, 1), (1.0, 2.0)), Shown(0, (1, 0), reason="no verdict")
    (one,) = judgments([ranked, failed], "drop")
    assert (one.judgment.winner, one.judgment.reason, one.judgment.second.reason) == (None, "one invalid", "no verdict")
    (one,) = judgments([ranked, failed, ranked, Shown(0, (1, 0), (2.0, 1.0))], "drop")
    assert (one.judgment.winner, one.judgment.probability) == ("a", 1.0)


def test_more_orders_are_pooled_by_the_way_round() -> None:
    """0 before 1: won, lost, won; 1 before 0: 1 lost, lost, won. Two shares of 2/3 for 0."""
    lists = [Shown(0, (0, 1), ranks) for ranks in ((1.0, 2.0), (2.0, 1.0), (1.0, 2.0))] + [Shown(0, (1, 0), r) for r in ((2.0, 1.0), (2.0, 1.0), (1.0, 2.0))]
    (one,) = judgments(lists, "drop")
    assert one.judgment.winner == "a" and one.judgment.probability == pytest.approx(2 / 3)


def test_mean_rank_by_place_by_hand() -> None:
    """Whoever stands first wins, in two lists of three; a third list failed, a fourth is shorter. Ties share a rank, and the mean of all is 2."""
    lists = [Shown(0, (0, 1, 2), (1.0, 2.0, 3.0)), Shown(1, (2, 1, 0), (1.0, 2.0, 2.0)), Shown(1, (0, 1, 2), reason="cut off"), Shown(2, (0, 1), (1.0, 2.0))]
    found = list_figures(lists)
    assert (found["lists"], found["ranked"], found["failures"]) == (4, 3, {"cut off": 1})
    assert [one["mean_rank"] for one in found["places"]] == pytest.approx([(1 + 4 / 3) / 2, (2 + 7 / 3) / 2, (3 + 7 / 3) / 2])
    assert list_figures([Shown(0, (0, 1), reason="empty")])["places"] == []


# --- against a judge whose beliefs are known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["ranking", "json"])
@pytest.mark.parametrize(("k", "calls"), [(2, 2), (5, 2), (9, 4)])
def test_the_order_of_the_judge_comes_out_whatever_the_order_shown(variant: str, k: int, calls: int) -> None:
    stub = Counted(Dials())
    group = responses(*texts(k)[::-1])
    built = build_listed(judge_of(stub, variant=variant), ["Why?"], [group], settings=PLAIN)
    assert len(stub.requests) == calls and all((request.schema is None) == (variant == "ranking") for request in stub.requests)
    place = {text: i for i, text in enumerate(texts(k))}
    assert all(place[str(row["chosen"])] < place[str(row["rejected"])] for row in built.rows)
    assert len(built.rows) == built.card["judged_pairs"] <= k * (k - 1) / 2 and (k > 7 or len(built.rows) == k * (k - 1) / 2)
    assert built.card["lists"]["ranked"] == calls and built.card["style"] == "list"


@pytest.mark.parametrize("policy", ["drop", "tie", "keep_mean"])
def test_position_bias_makes_no_wrong_label(policy: Policy) -> None:
    """Every place back costs 0.8, neighbours differ by 0.5: one order misplaces pairs, the mirror image takes it back; the bias is reported."""
    stub = Counted(Dials(position_bias=0.8))
    prompts = [f"Question {g}?" for g in range(12)]
    built = build_listed(judge_of(stub), prompts, [responses(*texts(4)) for _ in prompts], policy=policy, settings=PLAIN)
    place = {text: i for i, text in enumerate(texts(4))}
    assert built.rows and all(place[str(row["chosen"])] < place[str(row["rejected"])] for row in built.rows)
    card = built.card
    assert card["outcomes"]["contradiction"] > 10 and card["position"]["gamma"] > 0 and card["position"]["contradictions"] == card["outcomes"]["contradiction"]
    ranks = [one["mean_rank"] for one in card["lists"]["places"]]
    assert ranks == sorted(ranks) and ranks[0] < 2 < 3 < ranks[-1] and np.mean(ranks) == pytest.approx(2.5)
    assert card["judged_pairs"] == len(built.rows) + sum(card["left_out"].values())


def test_no_wrong_label_from_raw_reply_to_row() -> None:
    """A list that leaves one out, names one twice, quotes a ranking, is cut off or withheld gives no game; the others make the rows."""
    group = ["x", "y", "z"]

    def ranking(request: ChatRequest, *best_first: str) -> str:
        letter = {text: name for name, text in BLOCK.findall(str(request.messages[1]["content"]))}
        return "[[" + " > ".join(letter[text] for text in best_first) + "]]"

    said: dict[str, list[object]] = {
        "left out": ["[[A > B]]", "[[A > B]]"],
        "twice": ["[[A > A > B]]", "[[A > B > C > D]]"],
        "quoted": ["> [[A > B > C]]\nis what it says itself", "```\n[[A > B > C]]\n```"],
        "cut off": [ChatReply("[[A > B > C]] or", "length"), ChatReply("[[A > B > C]]", "length")],
        "withheld": [CallFailure("refused", "no"), CallFailure("refused", "no")],
    }
    seen: Counter[str] = Counter()

    def answer(request: ChatRequest) -> object:
        name = next((name for name in said if name in str(request.messages)), None)
        if name is None:
            return "I think\n" + ranking(request, "z", "x", "y")
        seen[name] += 1
        return said[name][seen[name] % 2]

    judge = ListJudge(Caller(FunctionClient(answer)), "m", repairs=0, resamples=0)  # type: ignore[arg-type]
    prompts = [*said, "Why?"]
    built = build_listed(judge, prompts, [responses(*group) for _ in prompts], settings=PLAIN)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in built.rows] == [("Why?", "x", "y"), ("Why?", "z", "x"), ("Why?", "z", "y")]
    assert built.card["left_out"] == {"both invalid": 15} and built.card["lists"]["failures"] == {
        "wrong schema": 3,
        "not offered": 1,
        "no verdict": 2,
        "cut off": 2,
        "refused: no": 2,
    }
    with pytest.raises(DataError, match="no pair can be used: of 3 judgments: 3 x both invalid; 6 times: refused: no"):
        build_listed(judge, ["withheld"], [responses(*group)])
    with pytest.raises(ConfigError, match="style list asks about all responses"):
        build_listed(judge, ["Why?"], [responses(*group)], settings=BuildSettings(pairs_per_prompt=2))


def test_repair_asks_for_all_of_the_list() -> None:
    asked, client = scripted("[[A > B]]", "[[B > C > A]]", "[[C > B > A]]")
    lists = ListJudge(Caller(client, concurrency=1), "m", capabilities=GREEDY).rank(["Why?"], [["x", "y", "z"]])
    assert len(asked) == 3 and "all 3 responses" in asked[-1].messages[-1]["content"] and all(shown.ranks is not None for shown in lists)


# --- as any judge ------------------------------------------------------------------------------------------------------------------------------


def test_a_pair_is_a_list_of_two_in_the_order_shown() -> None:
    stub = Counted(Dials(strengths={"good": 1.5, "bad": -1.5}))
    judge = judge_of(stub, references={"Why?": "Because of the tides."})
    matchups = [Matchup("Why?", "good", "bad"), Matchup("Why?", "bad", "good")]
    assert [verdict.winner for verdict in judge.compare(matchups)] == ["a", "b"] and len(stub.requests) == 2
    assert all("Because of the tides." in str(request.messages) for request in stub.requests)
    assert [one.winner for one in BothOrders(judge).judge_pairs(matchups)] == ["a", "b"]
    assert judge.compare([Matchup("How?", "good", "bad")], references=["By hand."])[0].winner == "a" and "By hand." in str(stub.requests[-1].messages)
    with pytest.raises(ConfigError, match="2 matchups and 1 references"):
        judge.compare(matchups, references=[None])
    keys = [request.key("e") for request in stub.requests[:2]]
    assert [request.key("e") for request in judge.requests_to_compare(matchups)] == keys
    _, client = scripted(*["hm"] * 4)
    assert ListJudge(Caller(client), "m").compare(matchups[:1])[0].reason == "no verdict"


def test_requests_are_those_that_are_made_and_kept(tmp_path: Path) -> None:
    prompts, groups = ["Why?", "How?", "Alone?"], [texts(9), texts(3), texts(1)]
    stub = Counted(Dials())
    with CallCache(tmp_path / "answers.sqlite") as cache:
        judge = ListJudge(Caller(stub.client, cache=cache), "stub", orders=4)
        counted = sorted(request.key("e") for request in judge.requests(prompts, groups))
        first = judge.rank(prompts, groups)
        assert sorted(request.key("e") for request in stub.requests) == counted and len(counted) == 2 * 4 + 4
        dead = Caller(FunctionClient(lambda _: CallFailure("bad request", "dead"), name="stub"), cache=cache)
        assert ListJudge(dead, "stub", orders=4).rank(prompts, groups) == first and dead.spent.requests == 0
    assert judge.provenance()["orders"] == 4 and judge.provenance()["style"] == "list" and judge.name == "stub"
