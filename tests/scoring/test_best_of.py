"""The best of each prompt's responses by hand: order, ties, thresholds, repeats, pairs, and the rows that they are read from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from palate.errors import DataError
from palate.scoring.best_of import Samples, best_rows, pair_rows, read_samples

NAN = math.nan


def samples(*rewards: float, texts: str = "abcdefgh", **fields: Any) -> Samples:
    return Samples("q", tuple(texts[: len(rewards)]), ("",) * len(rewards), rewards=np.array(rewards), **fields)


def located(*rows: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"rows.jsonl:{i + 1}", row) for i, row in enumerate(rows)]


def chosen(kept: Any) -> list[tuple[str, float, int]]:
    return [(row["completion"], row["reward"], row["rank"]) for row in kept.rows]


# --- the best -------------------------------------------------------------------------------------------------------------------------------------


def test_the_best_of_each_prompt_and_the_first_of_equals() -> None:
    kept = best_rows([samples(1, 3, 3, NAN), samples(-2, -5)])
    assert chosen(kept) == [("b", 3, 1), ("a", -2, 1)] and kept.rows[0]["samples"] == 3
    assert kept.left_out == {"response without a reward": 1, "not among the best": 3}


def test_the_k_best_and_all_above_a_threshold() -> None:
    one = samples(1, 3, 2, 0)
    assert chosen(best_rows([one], keep=2)) == [("b", 3, 1), ("c", 2, 2)]
    kept = best_rows([one, samples(0, -1)], keep=None, threshold=1)
    assert chosen(kept) == [("b", 3, 1), ("c", 2, 2), ("a", 1, 3)]  # the threshold itself is kept
    assert kept.left_out == {"reward below the threshold": 3, "prompt without a response kept": 1}
    with pytest.raises(DataError, match="keep=0"):
        best_rows([one], keep=0)


def test_a_text_is_kept_once_however_often_it_was_drawn() -> None:
    kept = best_rows([samples(2, 2, 1, texts="aab")], keep=2)
    assert chosen(kept) == [("a", 2, 1), ("b", 1, 2)] and kept.left_out == {"repeated response": 1}


def test_pairs_of_best_and_worst() -> None:
    kept = pair_rows([samples(1, 3, NAN, 0, 0), samples(2, 2), samples(5, NAN), samples(NAN), samples(-1, -2)], threshold=0)
    (row,) = kept.rows
    assert (row["chosen"], row["rejected"], row["chosen_reward"], row["rejected_reward"], row["samples"]) == ("b", "e", 3, 0, 4)
    assert kept.left_out == {
        "response without a reward": 3,
        "prompt whose responses have equal rewards": 1,
        "prompt with fewer than two responses": 2,
        "prompt whose best reward is below the threshold": 1,
    }


def test_rows_are_all_text_or_all_messages_and_say_who_wrote_them() -> None:
    chat = Samples(({"role": "user", "content": "q"},), ("a", "b"), ("m", "n"), rewards=np.array([0.0, 1.0]), id=7, template_args={"tools": [1]})
    (row,) = best_rows([chat]).rows
    assert row == {
        "id": 7,
        "tools": [1],
        "model": "n",
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "b"}],
        "reward": 1.0,
        "rank": 1,
        "samples": 2,
    }
    (pair,) = pair_rows([chat]).rows
    assert (pair["chosen_model"], pair["rejected_model"]) == ("n", "m") and pair["rejected"] == [{"role": "assistant", "content": "a"}]


# --- rows in --------------------------------------------------------------------------------------------------------------------------------------


def test_rows_of_generate_rankings_and_single_responses() -> None:
    generated = {"id": "x", "prompt": "q", "responses": ["a", "a"], "models": ["m", "n"], "on_policy": [True, False], "params": [{}, {}]}
    (one,) = read_samples(located(generated))
    assert one.responses == ("a", "a") and one.models == ("m", "n") and one.id == "x"  # samples are samples: equal ones count in the curve
    (ranked,) = read_samples(located({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}), values=["scores"])
    assert ranked.values == {"scores": (1.0, 2.0)}
    (single,) = read_samples(located(*({"prompt": "q", "response": text, "model": "m"} for text in "abc")))
    assert single.responses == ("a", "b", "c") and single.models == ("m", "m", "m")
    named = [{"prompt": "q", "response": "a", "prompt_id": 1}, {"prompt": "q", "response": "b", "prompt_id": 2}]
    assert len(read_samples(located(*named))) == 2
    mapped = read_samples(located({"question_": "q", "samples": ["a", "b"]}), columns={"prompt": "question_", "responses": "samples"})
    assert mapped[0].responses == ("a", "b")


def test_rewards_that_rows_bring_along_may_be_missing() -> None:
    rows = [{"prompt": "q", "responses": ["a", "b"], "reward": [1.5, None]}, {"prompt": "r", "responses": ["c"], "reward": 2}]
    one, two = read_samples(located(*rows), values=["reward"])
    assert one.values["reward"][0] == 1.5 and math.isnan(one.values["reward"][1]) and two.values["reward"] == (2.0,)
    alone = [{"prompt": "q", "response": text, "reward": reward} for text, reward in (("a", None), ("b", 1))]  # as `palate score` writes them
    assert read_samples(located(*alone), values=["reward"])[0].values["reward"][1] == 1
    assert one.first(1).responses == ("a",) and one.first(1).values == {"reward": (1.5,)}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "q", "responses": ["a", "b"], "reward": [1]}, r"rows.jsonl:1: 'reward' has 1 values for 2 responses"),
        ({"prompt": "q", "responses": ["a"]}, "rows.jsonl:1: has no column 'reward'; columns: prompt, responses"),
        ({"prompt": "q", "responses": ["a"], "reward": ["good"]}, "expected numbers"),
        ({"line": "{broken"}, "not a JSON object"),
        ({"something": 1, "reward": 1}, "no known layout"),
    ],
)
def test_rows_that_cannot_be_read_name_their_place(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_samples(located(row), values=["reward"])


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        read_samples([])
