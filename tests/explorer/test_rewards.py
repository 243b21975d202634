"""Where rewards come from, and what they are made of: items, scored rows, a model; tokens, steps, growing responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.loading import load_groups
from palate.data.templates import prepare_tokenizer
from palate.errors import DataError
from palate.evaluation.evaluator import evaluate
from palate.explorer.heat import LEVELS, Heat, Piece, heat_of, pieces
from palate.explorer.rewards import Model, from_items, from_model, from_scores, is_saved
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.scoring.cache import CachedScorer
from palate.scoring.local import LocalScorer, describe_model
from palate.scoring.rows import scored_rows
from palate.scoring.sources import Opened
from palate.types import Exchange, PreferenceGroup, Readout


class Lengths:
    """The reward is the number of characters, less one for a question mark."""

    def score(self, conversations: Any, **_: Any) -> np.ndarray:
        return np.array([len(str(one.response)) - ("?" in str(one.prompt)) for one in conversations], dtype=np.float32)


def opened(kind: str, **options: Any) -> Opened:
    outputs = options.pop("outputs", ("reward",))
    model, tokenizer = tiny_model(kind, seed=3, num_labels=len(outputs)), prepare_tokenizer(TOKENIZERS[kind](), close=False)
    fit_tokenizer(model, tokenizer)
    scorer = LocalScorer(as_reward_model(model, outputs), tokenizer, **options)
    return Opened(scorer, describe_model(scorer), None, scorer)


@pytest.fixture
def groups(pairs: list[dict[str, Any]]) -> list[PreferenceGroup]:
    ranked = {"prompt": "rank these", "responses": ["aaaa", "bb", "c"], "scores": [3, 2, 1]}
    return [*load_groups(pairs, name="pairs").groups, *load_groups([ranked], name="ranked").groups]


def test_items_of_an_evaluation_find_their_pairs_in_any_order(groups: list[PreferenceGroup], tmp_path: Path) -> None:
    evaluate(Lengths(), groups, model={"name": "some/lengths"}).save(tmp_path / "results.json")
    expected = from_model(Model(Opened(Lengths(), {"name": "lengths"}, None)), groups, progress=False)
    assert expected.values.tolist() == [len(str(response)) for group in groups for response in group.responses]
    turned = groups[::-1]
    for path in (tmp_path / "results.json", tmp_path / "results.items.jsonl", tmp_path):
        found = from_items(path, turned)
        assert found.values.tolist() == [len(str(response)) for group in turned for response in group.responses]
        assert found.source == "lengths" and is_saved(str(path))
    part = from_items(tmp_path, [*turned, PreferenceGroup("new", ("x", "y"), turned[-1].comparisons)])
    assert np.isnan(part.values[-2:]).all() and np.isfinite(part.values[:-2]).all(), "what was not evaluated has no reward"
    (tmp_path / "config.json").write_text("{}")
    assert not is_saved(str(tmp_path)) and is_saved(str(tmp_path / "results.json")), "a checkpoint in which results lie is a model"
    with pytest.raises(DataError, match="no reward of any"):
        from_items(tmp_path, [PreferenceGroup("new", ("x", "y"), turned[-1].comparisons)])
    (tmp_path / "results.items.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1"):
        from_items(tmp_path, groups)


def test_rows_that_palate_score_wrote(tmp_path: Path, pairs: list[dict[str, Any]]) -> None:
    model = opened("qwen3")
    assert model.local is not None
    rows = [(f"row {i}", row) for i, row in enumerate(pairs)]
    from palate.data.formats import detect_layout

    path = tmp_path / "scored.jsonl"
    written = scored_rows(model.local, rows, detect_layout(pairs[0]))
    path.write_text("".join(json.dumps(row) + "\n" for row in written[::-1]))
    groups = load_groups(pairs, name="pairs").groups
    np.testing.assert_allclose(from_scores(path, groups).values, from_model(Model(model), groups, progress=False).values, atol=1e-5)
    path.write_text(json.dumps({**pairs[0], "reward": 1.5}) + "\n")
    with pytest.raises(DataError, match="one number a response"):
        from_scores(path, groups)
    path.write_text(json.dumps(pairs[0]) + "\n")
    with pytest.raises(DataError, match="no `reward`"):
        from_scores(path, groups)


def test_what_is_pasted_is_kept_in_no_cache(tmp_path: Path) -> None:
    cached = CachedScorer(Lengths(), tmp_path / "scores.sqlite", {"model": "lengths"})
    assert Model(Opened(cached, {"name": "lengths"}, {})).score([Exchange("p", "abc")]).tolist() == [3.0]
    assert cached.computed == 0 and not (tmp_path / "scores.sqlite").exists()


# --- what a reward is made of -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["what is the capital of france?", ({"role": "user", "content": "what is the capital of france?"},)])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_token_rewards_are_rewards_of_what_stands_before(kind: str, prompt: Any) -> None:
    """A decoder's output at a token is the reward of the sequence that ends there; the last one is the reward itself."""
    model = opened(kind)
    scorer = model.local
    assert scorer is not None
    answer = "paris is the capital é 🙂 of   france"
    response: Any = answer if isinstance(prompt, str) else ({"role": "assistant", "content": answer},)
    exchange = Exchange(prompt, response)
    heat = heat_of(Model(model), [exchange])
    (side,) = heat.sides
    assert heat.way == "tokens" and answer in "".join(piece.text for piece in side), "blanks and characters of several tokens are whole"
    assert side[-1].value == pytest.approx(float(scorer.score([exchange])[0]), abs=1e-5)
    ids = scorer.encoder.encode([exchange])[0]
    start = scorer.encoder.prompt_length(exchange, ids)
    by_prefix = scorer.score_ids([ids[: end + 1] for end in range(start, len(ids))])
    assert side[0].value == pytest.approx(float(by_prefix[0]), abs=1e-5)
    assert {round(piece.value, 4) for piece in side} <= {round(float(value), 4) for value in by_prefix}


def test_pieces_keep_every_character() -> None:
    tokenizer = TOKENIZERS["qwen3"]()
    text = "naïve café 日本語 🙂🙂 end"
    ids = tokenizer(text)["input_ids"]
    found = pieces(tokenizer, ids, list(range(len(ids))))
    assert "".join(piece.text for piece in found) == text and "\ufffd" not in "".join(piece.text for piece in found)
    assert [piece.value for piece in found] == sorted(piece.value for piece in found) and found[-1].value == len(ids) - 1
    broken = pieces(tokenizer, ids[:-1] if len(ids) > 1 else ids, list(range(len(ids))))
    assert broken[-1].value == len(ids) - 2, "the last token is shown even where its character is not whole"


def test_steps_are_read_where_they_end() -> None:
    model = opened("qwen3", outputs=("bad", "good"))
    scorer = model.local
    assert scorer is not None
    scorer.readout = Readout(("bad", "good"), (0.0, 1.0), "min", "\n")
    exchange = Exchange("two plus two?", "two plus two\n\nis four\nso four")
    heat = heat_of(Model(model), [exchange])
    assert heat.way == "steps" and [piece.text for piece in heat.sides[0]] == ["two plus two\n", "\n", "is four\n", "so four"]
    values = [piece.value for piece in heat.sides[0]]
    assert np.isnan(values[1]) and [values[0], *values[2:]] == pytest.approx(scorer.score_steps([exchange])[0].tolist())
    assert (heat.middle, heat.reach) == (0.5, 0.5) and heat.level(values[1]) == 0


@pytest.mark.parametrize("kind", ["bert", "other"])
def test_other_models_are_asked_as_the_response_grows(kind: str) -> None:
    model = Model(opened("bert") if kind == "bert" else Opened(Lengths(), {"name": "lengths"}, None))
    words = [f"w{i}" for i in range(100)]
    exchange = Exchange("p", " ".join(words))
    (side,) = heat_of(model, [exchange]).sides
    assert "".join(piece.text for piece in side) == " ".join(words) and len(side) == 32
    assert side[-1].value == pytest.approx(float(model.score([exchange])[0]), abs=1e-5)
    if kind == "other":
        assert [piece.value for piece in side] == np.cumsum([len(piece.text) for piece in side]).tolist()
        chat = Exchange("p", ({"role": "assistant", "content": "one two"},))
        assert [piece.text for piece in heat_of(model, [chat]).sides[0]] == ["one ", "two"]
    with pytest.raises(DataError, match="empty"):
        heat_of(model, [Exchange("p", "")])


def test_levels_are_symmetric_and_bounded() -> None:
    heat = Heat("tokens", ((Piece("x", 1.0),),), 1.0, 2.0)
    assert [heat.level(value) for value in (1.0, 3.0, -1.0, 99.0, -99.0, float("nan"), 2.0)] == [0, LEVELS, -LEVELS, LEVELS, -LEVELS, 0, 2]
    assert Heat("tokens", (), 1.0, 0.0).level(5.0) == 0, "one value for all has no shade"


def test_a_sequence_beyond_the_limit_is_said() -> None:
    model = Model(opened("qwen3", max_length=16))
    assert np.isnan(model.score([Exchange("p", "the quick brown fox " * 9)])).all()
    with pytest.raises(DataError, match="max_length is 16"):
        heat_of(model, [Exchange("p", "the quick brown fox " * 9)])
