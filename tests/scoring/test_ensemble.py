"""Members on one scale, combined: the figures by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from palate.errors import ConfigError, DataError
from palate.scoring.ensemble import Ensemble
from palate.scoring.uncertainty import COMBINE
from palate.types import Exchange


class Table:
    """Rewards by the response; `options` are those of the last call."""

    def __init__(self, rewards: dict[str, float]):
        self.rewards = rewards
        self.options: dict[str, Any] = {}

    def score(self, conversations: Sequence[Any], **options: Any) -> np.ndarray:
        self.options = options
        return np.array([self.rewards[str(item)] for item in conversations], dtype=np.float32)


LETTERS = ["a", "b", "c", "d"]
A = Table(dict(zip(LETTERS, [1, 2, 3, 4], strict=True)))  # mean 2.5, deviation sqrt(1.25)
B = Table(dict(zip(LETTERS, [10, -10, 10, -10], strict=True)))  # mean 0, deviation 10
Z_A = (np.arange(1, 5) - 2.5) / np.sqrt(1.25)  # -1.342, -0.447, 0.447, 1.342
Z_B = np.array([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", (Z_A + Z_B) / 2),
        ("worst", [Z_A[0], -1.0, Z_A[2], -1.0]),
        ("lower", (Z_A + Z_B) / 2 - np.abs(Z_A - Z_B) / 2),  # of two numbers the deviation is half their distance
        ("variance", (Z_A + Z_B) / 2 - (Z_A - Z_B) ** 2 / 4),
    ],
)
def test_z_scores_combined_by_hand(how: str, expected: Any) -> None:
    rewards = Ensemble([A, B], how=how).score(LETTERS)
    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


@pytest.mark.parametrize(("how", "expected"), [("mean", [2.0, 0.0]), ("worst", [0.0, -2.0]), ("lower", [2 - np.sqrt(8 / 3), -np.sqrt(8 / 3)])])
def test_three_members_on_fixed_scales(how: str, expected: list[float]) -> None:
    """x: (5 - 1) / 2 = 2, (4 - 0) / 1 = 4, (1 - 1) / 3 = 0; y: 0, 2, -2. Deviation of 0, 2, 4 over all three: sqrt(8 / 3)."""
    members = [Table({"x": 5, "y": 1}), Table({"x": 4, "y": 2}), Table({"x": 1, "y": -5})]
    ensemble = Ensemble(members, how=how, scales=[(1, 2), (0, 1), (1, 3)])
    np.testing.assert_allclose(ensemble.score(["x", "y"]), expected, atol=1e-6)
    np.testing.assert_allclose(ensemble.score(["y"]), expected[1:], atol=1e-6)  # nothing else is in the call, nothing changes


def test_a_member_of_large_rewards_does_not_outvote_the_others() -> None:
    """Two that prefer a to b, one of thousandfold rewards that prefers b: on one scale the majority wins."""
    small, large = Table({"a": 2, "b": 1}), Table({"a": -1000, "b": 1000})
    first, second = Ensemble([small, small, large]).score(["a", "b"])
    assert (first, second) == (pytest.approx(1 / 3), pytest.approx(-1 / 3))


def test_later_calls_keep_the_scale_of_the_first() -> None:
    """Edited texts that all gain 10 show it; z-scored on their own they would look like the originals."""
    member = Table({"a": 0, "b": 2, "A": 10, "B": 12})
    ensemble = Ensemble([member, member])
    np.testing.assert_allclose(ensemble.score(["a", "b"]), [-1, 1])
    np.testing.assert_allclose(ensemble.score(["A", "B"]), [9, 11])
    np.testing.assert_allclose(ensemble.score(["b"]), [1])
    assert ensemble.scales == [(1.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("how", COMBINE)
def test_what_one_member_cannot_score_is_nan_and_shifts_no_scale(how: str) -> None:
    lost = Table(A.rewards | {"e": np.nan})
    rewards = Ensemble([lost, Table(B.rewards | {"e": 1e6})], how=how, scales=[(2.5, np.sqrt(1.25)), (0, 10)]).score([*LETTERS, "e"])
    assert np.isnan(rewards).tolist() == [False] * 4 + [True]
    np.testing.assert_allclose(rewards[:4], Ensemble([A, B], how=how).score(LETTERS), atol=1e-6)
    z_scored = Ensemble([lost, Table(B.rewards | {"e": 0.0})], how=how).score([*LETTERS, "e"])
    assert np.isnan(z_scored).tolist() == [False] * 4 + [True]
    z_b = Z_B * np.sqrt(5 / 4)  # a fifth reward at the mean
    np.testing.assert_allclose(z_scored[:4], COMBINE[how](np.array([Z_A, z_b]), 1.0), atol=1e-6)


@pytest.mark.parametrize("how", COMBINE)
def test_members_that_say_nothing(how: str) -> None:
    """Equal rewards are 0 (no division by 0); a member that scores nothing leaves nothing."""
    equal = Table(dict.fromkeys(LETTERS, 0.1))
    np.testing.assert_array_equal(Ensemble([equal, equal], how=how).score(LETTERS), np.zeros(4))
    nothing = Table(dict.fromkeys(LETTERS, np.nan))
    assert np.isnan(Ensemble([A, nothing], how=how).score(LETTERS)).all()
    assert Ensemble([A, B], how=how).score([]).shape == (0,)


def test_an_empty_first_call_sets_no_scale() -> None:
    ensemble = Ensemble([A, B])
    assert ensemble.score([]).dtype == np.float32
    np.testing.assert_allclose(ensemble.score(LETTERS), (Z_A + Z_B) / 2, atol=1e-6)


def test_members_in_another_order_and_one_member_twice() -> None:
    np.testing.assert_allclose(Ensemble([B, A], how="lower").score(LETTERS), Ensemble([A, B], how="lower").score(LETTERS), atol=1e-6)
    for how in COMBINE:
        np.testing.assert_allclose(Ensemble([A, A, A], how=how).score(LETTERS), Z_A, atol=1e-6)


def test_options_reach_every_member() -> None:
    members = [Table(A.rewards), Table(B.rewards)]
    Ensemble(members).score(LETTERS, on_long="nan", progress=False)
    assert [member.options for member in members] == [{"on_long": "nan", "progress": False}] * 2


class Shaped:
    def __init__(self, *shape: int):
        self.shape = shape

    def score(self, conversations: Sequence[Exchange]) -> np.ndarray:
        return np.arange(np.prod(self.shape), dtype=np.float32).reshape(self.shape)


def test_a_column_is_one_reward_and_other_shapes_are_refused() -> None:
    np.testing.assert_allclose(Ensemble([A, Shaped(4, 1)]).score(LETTERS), Z_A, atol=1e-6)
    with pytest.raises(DataError, match=r"member 2 gave the shape \(4, 2\) for 4 responses; an ensemble needs one reward a response"):
        Ensemble([A, Shaped(4, 2)]).score(LETTERS)
    with pytest.raises(DataError, match=r"member 1 gave the shape \(3,\) for 4 responses"):
        Ensemble([Shaped(3), Shaped(3)]).score(LETTERS)


WRONG: dict[str, tuple[int, dict[str, Any], str]] = {
    "nobody": (0, {}, "an ensemble has two members at least, got 0"),
    "alone": (1, {}, "an ensemble has two members at least, got 1"),
    "how": (2, {"how": "median"}, "an ensemble combines by mean, worst, lower, variance, not by 'median'"),
    "one scale": (2, {"scales": [(0, 1)]}, r"2 members need as many scales \(mean, standard deviation above 0\), got \[\(0, 1\)\]"),
    "no width": (2, {"scales": [(0, 1), (0, 0)]}, "2 members need as many scales"),
    "negative": (2, {"scales": [(0, 1), (0, -1)]}, "2 members need as many scales"),
    "not a number": (2, {"scales": [(0, 1), (0, np.nan)]}, "2 members need as many scales"),
    "no mean": (2, {"scales": [(0, 1), (np.nan, 1)]}, "2 members need as many scales"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_ensemble_is_said_so(name: str) -> None:
    members, options, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        Ensemble([A] * members, **options)
