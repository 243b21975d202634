"""Shaped rewards by hand: scale, then clip, then weight; parts told separately; what one part cannot score has no reward."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from palate.errors import ConfigError, DataError
from palate.models.checkpoints import RewardStatistics
from palate.serving.shaping import Part, Rule, Scale, Shaped, format_reward, length_penalty, scale_of, whole_text
from palate.types import Exchange


class Fixed:
    """Rewards in the order of the call; remembers what it was shown."""

    def __init__(self, *rewards: float):
        self.rewards, self.seen = rewards, []

    def score(self, conversations: Sequence[Any], **options: Any) -> np.ndarray:
        self.seen += [*conversations, options] if options else conversations
        return np.array(self.rewards[: len(conversations)], dtype=np.float32)


ITEMS = [Exchange("p", "ab"), Exchange("p", "abcdef"), Exchange("p", "<think>x</think> y")]


def test_the_sum_by_hand() -> None:
    """model: (3 - 1) / 2 = 1, (-7 - 1) / 2 = -4 clipped to -2, (11 - 1) / 2 = 5 clipped to 2, each doubled. Length, from 2 to 6: 0, -1, -1 (18 characters).

    Format: 0, 0, 1, at half weight. Totals: 2, -4 - 1, 4 - 1 + 0.5.
    """
    shaped = Shaped(
        {
            "model": Part(Fixed(3, -7, 11), weight=2, scale=Scale(1, 2), clip=(-2, 2)),
            "length": length_penalty(2, 6),
            "format": Part(format_reward(r"<think>.*</think>.*"), weight=0.5),
        }
    )
    rewards, parts = shaped.score_parts(ITEMS)
    assert rewards.tolist() == [2, -5, 3.5] and rewards.dtype == np.float32
    assert parts["model"].tolist() == [2, -4, 4] and parts["model_raw"].tolist() == [3, -7, 11]
    assert parts["length"].tolist() == [0, -1, -1] and "length_raw" not in parts
    assert parts["format"].tolist() == [0, 0, 0.5] and parts["format_raw"].tolist() == [0, 0, 1]
    assert shaped.score(ITEMS).tolist() == rewards.tolist()


def test_the_length_penalty_falls_evenly_in_the_unit_that_is_counted() -> None:
    """DAPO, eq. 13, with L_max 10 and L_cache 4: 0 up to 6 words, -1/4 a word, -1 from 10 on."""
    words = length_penalty(6, 10, count=lambda text: len(text.split()))
    texts = [Exchange("a long prompt does not count", " ".join(["x"] * n)) for n in (0, 6, 7, 9, 10, 50)]
    assert words.score(texts).tolist() == [0, 0, -0.25, -0.75, -1, -1]


def test_a_missing_part_is_a_missing_reward() -> None:
    shaped = Shaped({"a": Fixed(1, float("nan"), 2), "b": Rule(lambda exchange: None if len(exchange.response) > 10 else 1.0)})
    np.testing.assert_array_equal(shaped.score(ITEMS), [2, np.nan, np.nan])


def test_sums_of_sums_and_options_reach_every_scorer() -> None:
    inner = Fixed(1, 2, 3)
    outer = Shaped({"inner": Part(Shaped({"a": inner, "one": Rule(lambda _: 1.0)}), weight=-1)})
    assert outer.score(ITEMS, on_long="nan").tolist() == [-2, -3, -4]
    assert inner.seen[-1] == {"on_long": "nan"}


def test_formatted_text_is_one_to_models_and_two_to_rules() -> None:
    """The prompt must not count as length, and nothing may stand between prompt and response for the model."""
    model = Fixed(5)
    shaped = whole_text(Shaped({"model": model, "nested": Shaped({"length": length_penalty(2, 4)})}))
    assert shaped.score([Exchange("<|user|>hi<|assistant|>", "abc")]).tolist() == [4.5]
    assert model.seen == [Exchange("", "<|user|>hi<|assistant|>abc")]
    chat = Exchange(({"role": "user", "content": "hi"},), "abc")
    shaped.score([chat])
    assert model.seen[-1] == chat  # messages are rendered by the model's own template


def test_the_contracts_statistics_are_a_scale() -> None:
    contract = SimpleNamespace(rewards=RewardStatistics(mean=0.5, std=2.0, temperature=1.0, comparisons=80))
    assert scale_of(SimpleNamespace(contract=contract)) == Scale(0.5, 2.0)  # type: ignore[arg-type]
    contract.rewards = None
    with pytest.raises(ConfigError, match="without held-out comparisons"):
        scale_of(SimpleNamespace(contract=contract))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "one part at least"),
        ({"a": "out"}, r"'out' is a name; open it first.*open_scorer\('out'\)"),
        ({"a": Part(Fixed(), scale=Scale(0, 0))}, "above 0"),
        ({"a": Part(Fixed(), clip=(1, 1))}, "lower bound first"),
        ({"a": Part(Fixed(), weight=float("nan"))}, "finite"),
    ],
)
def test_parts_that_cannot_be_summed_are_refused(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Shaped(parts)


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower one first"):
        length_penalty(5, 5)
    with pytest.raises(ConfigError, match="no regular expression"):
        format_reward("(")


def test_several_rewards_a_response_are_refused() -> None:
    class Many:
        def score(self, conversations: Sequence[Any]) -> np.ndarray:
            return np.zeros((len(conversations), 2))

    with pytest.raises(DataError, match=r"shape \(3, 2\) for 3 responses"):
        Shaped({"a": Many()}).score(ITEMS)
