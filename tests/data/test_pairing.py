"""Comparisons by hand: all pairs, soft labels, votes, weights that make a prompt count once; rankings, margins and off-topic negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.pairing import (
    against_off_topic,
    balance,
    best_response,
    from_probability,
    from_scores,
    from_votes,
    is_ranking,
    ranks_of,
    training_comparisons,
    with_margins,
    with_off_topic,
)
from palate.types import MARGIN_SOURCES, Comparison, MarginRule, PreferenceGroup


def test_all_pairs_of_a_ranking() -> None:
    pairs = from_scores([2.0, 0.0, 1.0])
    assert [(c.chosen, c.rejected) for c in pairs] == [(0, 1), (0, 2), (2, 1)]


def test_a_prompt_weighs_one_whatever_k() -> None:
    for k in (2, 3, 9):
        assert sum(c.weight for c in training_comparisons(from_scores(list(range(k))), ties="drop")) == pytest.approx(1.0)


def test_dropped_ties_reduce_the_count() -> None:
    """Scores 1, 1, 0: the tie goes, and the two decided pairs weigh 1/2 each (InstructGPT drops ties)."""
    kept = training_comparisons(from_scores([1, 1, 0]), ties="drop")
    assert [(c.chosen, c.rejected, c.weight) for c in kept] == [(0, 2, 0.5), (1, 2, 0.5)]
    assert len(training_comparisons(from_scores([1, 1, 0]), ties="soft")) == 3


def test_own_weights_survive_balancing() -> None:
    assert balance([Comparison(0, 1, weight=3.0)])[0].weight == 3.0


def test_votes_and_probabilities() -> None:
    assert from_votes(3, 1) == Comparison(0, 1, probability=0.75)
    assert from_votes(0, 2, 2) == Comparison(1, 0, probability=0.75)
    assert from_votes(1, 1).is_tie
    assert from_probability(0.1) == Comparison(0, 1, probability=0.9)


# --- rankings -------------------------------------------------------------------------------------------------------------------------------------

TIE = {"probability": 0.5}


def group(k: int = 3, comparisons: Sequence[Comparison] = (), prompt: str = "p", **columns: Any) -> PreferenceGroup:
    """Responses "p0", "p1", ... to the prompt "p"."""
    return PreferenceGroup(prompt, tuple(f"{prompt}{i}" for i in range(k)), tuple(comparisons), **columns)


RANKINGS: dict[str, tuple[int, list[Comparison], tuple[float, ...] | None]] = {
    "in order": (3, [Comparison(2, 0), Comparison(2, 1), Comparison(0, 1)], (1, 2, 0)),
    "a pair": (2, [Comparison(1, 0)], (1, 0)),
    "a soft label decides": (2, [Comparison(1, 0, probability=0.6)], (1, 0)),
    "a tied pair": (2, [Comparison(0, 1, **TIE)], (0, 0)),
    "a tie at the bottom": (3, [Comparison(0, 1), Comparison(0, 2), Comparison(1, 2, **TIE)], (0, 1, 1)),
    "a tie at the top": (3, [Comparison(0, 1, **TIE), Comparison(0, 2), Comparison(1, 2)], (0, 0, 2)),
    "two ties": (4, [Comparison(0, 1, **TIE), Comparison(2, 3, **TIE), *(Comparison(a, b) for a in (0, 1) for b in (2, 3))], (0, 0, 2, 2)),
    "a pair is missing": (3, [Comparison(0, 1), Comparison(1, 2)], None),
    "a response is in no comparison": (3, [Comparison(0, 1)], None),
    "a pair stands twice": (2, [Comparison(0, 1), Comparison(0, 1)], None),
    "a pair contradicts itself": (2, [Comparison(0, 1), Comparison(1, 0)], None),
    "a circle": (3, [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)], None),
    "a circle below the best": (4, [*(Comparison(0, i) for i in (1, 2, 3)), Comparison(1, 2), Comparison(2, 3), Comparison(3, 1)], None),
    "ties that do not chain": (3, [Comparison(0, 1, **TIE), Comparison(1, 2, **TIE), Comparison(0, 2)], None),
    "nothing": (3, [], None),
    "one response": (1, [], None),
}
"""Name -> (responses, comparisons, how many are better than each)."""


@pytest.mark.parametrize("name", RANKINGS)
def test_ranks_from_comparisons(name: str) -> None:
    k, comparisons, ranks = RANKINGS[name]
    assert ranks_of(group(k, comparisons)) == ranks
    assert ranks_of(group(k, comparisons[::-1])) == ranks


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_all_pairs_of_scores_give_their_order_back(scores: list[int]) -> None:
    """Rank = how many scores are higher, ties included."""
    expected = tuple(float(sum(other > score for other in scores)) for score in scores)
    assert ranks_of(group(len(scores), from_scores(scores))) == expected


def test_own_ranks_come_before_comparisons_and_an_attribute_before_both() -> None:
    g = group(2, [Comparison(0, 1)], ranks=(5.0, 2.0), ratings=({"help": 3.0}, {"truth": 1.0}))
    assert ranks_of(g) == (5.0, 2.0)
    assert ranks_of(g, "help") == (-3.0, pytest.approx(math.nan, nan_ok=True)), "higher ratings rank lower; a missing one is NaN"
    assert ranks_of(replace(g, ratings=()), "help") is None


@pytest.mark.parametrize(
    ("ranks", "says"),
    [((1, 2), True), ((1, math.nan, 2), True), ((2, 2), False), ((1, math.nan), False), ((math.nan, math.nan), False), ((), False), (None, False)],
)
def test_a_ranking_has_two_different_ranks(ranks: tuple[float, ...] | None, says: bool) -> None:
    assert is_ranking(ranks) is says


# --- margins --------------------------------------------------------------------------------------------------------------------------------------

COMPARISONS = (
    Comparison(1, 0, margin=2.0, strength=3.0),  # rated 5 against 1
    Comparison(0, 2, margin=0.5, strength=1.0),  # rated 1 against 3: the raters disagree
    Comparison(2, 3),  # nothing is said; rated alike
    Comparison(1, 3, margin=7.0, strength=2.0, probability=0.5),  # a tie has no margin whatever stands beside it
    Comparison(3, 0, margin=1.0, strength=2.0),  # rated 3 against 1, after rows without a margin
)
RATINGS = ({"help": 0.0, "truth": 2.0}, {"score": 5.0, "help": 0.0}, {"help": 3.0}, {"help": 2.0, "truth": 4.0})
"""Overall 1 (mean), 5 (its score alone), 3, 3."""


@pytest.mark.parametrize(
    ("rule", "margins"),
    [
        (MarginRule(), [2, 0.5, 0, 0, 1]),
        (MarginRule("ratings"), [4, 0, 0, 0, 2]),
        (MarginRule("strength"), [3, 1, 0, 0, 2]),
        (MarginRule("llama2_small"), [1, 1 / 3, 0, 0, 2 / 3]),
        (MarginRule("llama2_large"), [3, 1, 0, 0, 2]),
        (MarginRule("none"), [0, 0, 0, 0, 0]),
        (MarginRule(scale=0.5), [1, 0.25, 0, 0, 0.5]),
        (MarginRule(clip=1.5), [1.5, 0.5, 0, 0, 1]),
        (MarginRule("ratings", 0.5, 1.5), [1.5, 0, 0, 0, 1]),  # scaled first, then cut
        (MarginRule("strength", 2.0, 3.0), [3, 2, 0, 0, 3]),
        (MarginRule("none", 2.0, 3.0), [0, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_margins_by_rule(rule: MarginRule, margins: list[float]) -> None:
    made = with_margins(COMPARISONS, RATINGS, rule)
    assert [c.margin for c in made] == pytest.approx(margins)
    assert [c._replace(margin=0.0) for c in made] == [c._replace(margin=0.0) for c in COMPARISONS], "nothing else changes"


@pytest.mark.parametrize("source", MARGIN_SOURCES)
def test_what_a_rule_cannot_say_is_zero(source: str) -> None:
    """No margin, no strength and no ratings: 0 by every rule, also where the group's responses have ratings without a value."""
    for ratings in ((), ({}, {}), ({"score": 1.0}, {})):
        assert with_margins([Comparison(0, 1)], ratings, MarginRule(source))[0].margin == 0.0


@pytest.mark.parametrize(("strength", "small", "large"), [(0.0, 0, 0), (0.4, 0, 0), (1.4, 1 / 3, 1), (2.6, 1, 3), (4.0, 0, 0)])
def test_llama2_scales_have_three_steps(strength: float, small: float, large: float) -> None:
    margins = [with_margins([Comparison(0, 1, strength=strength)], (), MarginRule(f"llama2_{size}"))[0].margin for size in ("small", "large")]
    assert margins == pytest.approx([small, large])


# --- off-topic negatives --------------------------------------------------------------------------------------------------------------------------


def many(n: int = 30) -> list[PreferenceGroup]:
    return [group(3, from_scores([1, 2, 0]), prompt=f"q{i} ") for i in range(n)]


def test_off_topic_responses_are_the_best_of_other_prompts_and_lose_to_the_own() -> None:
    groups = many()
    best = {g.responses[1]: g.prompt for g in groups}
    for own, mixed in zip(groups, with_off_topic(groups, 2, seed=1), strict=True):
        assert mixed.responses[:3] == own.responses and len(mixed.responses) == 5
        assert (mixed.off_topic, mixed.comparisons) == (2, own.comparisons), "compared once the group is known to fit"
        assert against_off_topic(own.comparisons, (3, 4))[3:] == (Comparison(1, 3, weight=0.6), Comparison(1, 4, weight=0.6))
        donors = [best[response] for response in mixed.responses[3:]]  # a KeyError: not the donor's best
        assert own.prompt not in donors and len(set(donors)) == 2
        assert (mixed.ratings, mixed.ranks) == ((), ())


def test_off_topic_draws_follow_the_seed() -> None:
    groups = many()
    assert with_off_topic(groups, 2, seed=1) == with_off_topic(groups, 2, seed=1)
    assert with_off_topic(groups, 2, seed=1) != with_off_topic(groups, 2, seed=2)
    assert with_off_topic(groups, 0, seed=1) == groups


@pytest.mark.parametrize(
    "comparisons",
    [[], [Comparison(0, 1, probability=0.5)], [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)]],
    ids=["none", "a tie", "a circle"],
)
def test_a_group_without_a_best_response_stays_as_it_is(comparisons: list[Comparison]) -> None:
    odd = group(3, comparisons)
    mixed = with_off_topic([odd, *many()], 2, seed=0)
    assert mixed[0] == odd and all(len(g.responses) == 5 for g in mixed[1:])


def test_the_best_of_a_tie_at_the_top_is_nobody_and_ties_below_do_not_matter() -> None:
    top, below = group(3, from_scores([2, 2, 1])), group(3, from_scores([1, 3, 1]))
    mixed = with_off_topic([top, below, *many()], 1, seed=0)
    assert mixed[0] == top and mixed[1].off_topic == 1
    assert best_response(top.comparisons) is None and best_response(below.comparisons) == 1


def test_fewer_peers_than_asked_give_what_there_is() -> None:
    pair = many(2)
    mixed = with_off_topic(pair, 3, seed=0)
    assert [g.responses[3:] for g in mixed] == [(pair[1].responses[1],), (pair[0].responses[1],)]
    same = [replace(g, prompt="one prompt") for g in many()]
    assert with_off_topic(same, 2, seed=0) == same
    alone = many(1)
    assert with_off_topic(alone, 2, seed=0) == alone


def test_off_topic_responses_are_of_the_prompt_s_own_kind() -> None:
    """A text is no response to a chat, nor the other way round."""
    chats = [
        replace(g, prompt=({"role": "user", "content": f"{g.prompt}?"},), responses=tuple(({"role": "assistant", "content": r},) for r in g.responses))
        for g in many(5)
    ]
    mixed = with_off_topic([*chats, *many(5)], 2, seed=0)
    assert all(len(g.responses) == 5 and len({type(r) for r in g.responses}) == 1 for g in mixed)


def test_off_topic_responses_have_no_ratings_and_no_rank() -> None:
    rated = [replace(g, ratings=tuple({"score": s} for s in (1.0, 2.0, 0.0)), ranks=(2.0, 1.0, 3.0)) for g in many()]
    mixed = with_off_topic(rated, 2, seed=0)[0]
    assert mixed.ratings == (*rated[0].ratings, {}, {}) and mixed.ranks[:3] == (2, 1, 3) and all(map(math.isnan, mixed.ranks[3:]))
    assert [c.margin for c in with_margins(mixed.comparisons, mixed.ratings, MarginRule("ratings"))] == [1, 1, 2]
    assert all(with_margins([Comparison(1, k)], mixed.ratings, MarginRule("ratings"))[0].margin == 0 for k in (3, 4))


@pytest.mark.parametrize("scores", [[1, 0], [0, 2, 1]], ids=["a pair", "three"])
def test_off_topic_responses_leave_a_ranking_by_comparisons_standing(scores: list[int]) -> None:
    """What ranked its responses before still does: a loss that reads rankings keeps the group."""
    own = group(len(scores), from_scores(scores))
    ranks, mixed = ranks_of(own), ranks_of(with_off_topic([own, *many()], 1, seed=0)[0])
    assert ranks is not None and mixed is not None
    assert mixed[: len(scores)] == ranks


@pytest.mark.parametrize(
    ("weights", "negatives", "expected"),
    [
        ([1.0], 1, [0.5, 0.5]),
        ([1 / 3] * 3, 3, [1 / 6] * 6),
        ([0.25, 0.75], 2, [0.125, 0.375, 0.25, 0.25]),
        ([2.0, 1.0], 0, [2.0, 1.0]),
    ],
)
def test_off_topic_comparisons_share_the_weight_of_their_prompt(weights: list[float], negatives: int, expected: list[float]) -> None:
    """A prompt counts once, whatever was added to it; the others keep their proportions."""
    own = tuple(Comparison(0, k + 1, margin=0.5, weight=weight) for k, weight in enumerate(weights))
    made = against_off_topic(own, range(10, 10 + negatives))
    assert [c.weight for c in made] == pytest.approx(expected) and sum(c.weight for c in made) == pytest.approx(sum(weights))
    assert [(c.chosen, c.rejected, c.margin) for c in made[len(own) :]] == [(0, 10 + i, 0.0) for i in range(negatives)]
    assert [c._replace(weight=1.0) for c in made[: len(own)]] == [c._replace(weight=1.0) for c in own]
    assert against_off_topic((), (1, 2)) == ()
