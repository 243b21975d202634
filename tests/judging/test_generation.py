"""Who writes what, what is left out and counted, the alarm for greedy servers, and rows that are read as candidates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.errors import ConfigError, DataError, ModelError
from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest
from palate.judging.candidates import read_candidates
from palate.judging.diversity import Written, constant_sources, distinct, diversity
from palate.judging.filters import Seen, is_refusal, jaccard, shingles
from palate.judging.function_client import FunctionClient
from palate.judging.generation import Generated, Prompt, choose_sources, generate, messages_of, plan, read_prompts
from palate.judging.sources import parse_generation, read_generation
from palate.types import TokenIds

PROMPTS = [Prompt(f"Tell me about number {k}.", f"id{k}") for k in range(20)]
THREE = [{"model": "small", "strength": 1}, {"model": "middle", "strength": 2, "on_policy": True}, {"model": "large", "strength": 3}]


def settings(sources: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    return parse_generation({"sources": sources or THREE, **more})


def warm(request: ChatRequest) -> str:
    """Another text for every model, temperature, system prompt and draw."""
    return f"{request.model} says {np.random.default_rng(list(request.key('x'))).integers(10**12)} of {request.messages[-1]['content']}"


def run(answer: Any = warm, sources: list[dict[str, Any]] | None = None, *, allow_constant: bool = False, **more: Any) -> Generated:
    return generate(PROMPTS, settings(sources, **more), {None: Caller(FunctionClient(answer))}, allow_constant=allow_constant)


def adds_up(report: dict[str, Any]) -> bool:
    return report["asked"] == report["responses"] + sum(sum(own.values()) for own in report["left_out"].values())


# --- settings ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [{"model": "m", "temprature": 1}]}, r"unknown key `sources.0.temprature`; did you mean `temperature`\?"),
        ({"sources": [{"model": "m"}], "per_promt": 2}, r"unknown key `per_promt`; did you mean `per_prompt`\?"),
        ({"sources": [{}]}, "`sources.0.model` is missing"),
        ({"sources": [{"model": "m"}, {"model": "m"}]}, "two sources are named 'm'"),
        ({"sources": [{"model": "m", "temperature": 0}]}, "per_prompt is 4, but the sources give 1 at most"),
        ({"sources": [{"model": "m", "temperature": [0.5, -1]}]}, "expected 0 or more"),
        ({"sources": [{"model": "m"}], "sampler": "by_strength"}, "different `strength`"),
        ({"sources": [{"model": "m"}], "sampler": "one_on_policy"}, "on_policy: true, and one without"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_generation(values)


def test_settings_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text("sources:\n  - {model: m, temperature: [0.7, 1.0], system_prompts: Be brief.}\nper_prompt: 2\n")
    found = read_generation(path)
    assert found.sources[0].temperature == [0.7, 1.0] and found.sources[0].system_prompts == ["Be brief."] and found.sources[0].label == "m"
    with pytest.raises(ConfigError, match="no such file"):
        read_generation(tmp_path / "none.yaml")


# --- who writes what ---------------------------------------------------------------------------------------------------------------------------


def test_nobody_writes_twice_before_everyone_has_written() -> None:
    for seed in range(30):
        counts = Counter(source.label for source in choose_sources(settings(per_prompt=4), np.random.default_rng(seed)))
        assert sorted(counts.values()) == [1, 1, 2]


def test_weights_and_limits() -> None:
    given = settings([{"model": "often", "weight": 9}, {"model": "rare"}], per_prompt=1)
    counts = Counter(choose_sources(given, np.random.default_rng(seed))[0].label for seed in range(400))
    assert 330 < counts["often"] < 385, "nine in ten"
    limited = settings([{"model": "one", "n": 1}, {"model": "rest"}], per_prompt=5)
    assert Counter(source.label for source in choose_sources(limited, np.random.default_rng(0))) == {"one": 1, "rest": 4}


def test_by_strength_spreads_over_strengths_not_models() -> None:
    sources = [{"model": f"weak {k}", "strength": 1} for k in range(5)] + [{"model": "strong", "strength": 2}]
    for seed in range(20):
        chosen = choose_sources(settings(sources, per_prompt=4, sampler="by_strength"), np.random.default_rng(seed))
        assert Counter(source.strength for source in chosen) == {1: 2, 2: 2}


def test_exactly_one_on_policy() -> None:
    for seed in range(20):
        assert sum(source.on_policy for source in choose_sources(settings(sampler="one_on_policy"), np.random.default_rng(seed))) == 1


def test_the_plan_depends_on_the_prompt_and_the_seed_alone() -> None:
    given = settings([{"model": "m", "temperature": [0.5, 1.0], "system_prompts": ["Brief.", "Long."]}, {"model": "n"}], per_prompt=5)
    straight, back = ({order[draw.prompt].id: [] for draw in plan(order, given)} for order in (PROMPTS, PROMPTS[::-1]))
    for order, found in ((PROMPTS, straight), (PROMPTS[::-1], back)):
        for draw in plan(order, given):
            found[order[draw.prompt].id].append(draw.request.key("e"))
    assert straight == back
    other = plan(PROMPTS, given.model_copy(update={"seed": 1}))
    assert [draw.request for draw in other] != [draw.request for draw in plan(PROMPTS, given)]


def test_every_draw_is_a_request_of_its_own() -> None:
    """Two sources of one model and equal settings would otherwise share one answer from the cache."""
    given = settings([{"model": "m", "name": "one"}, {"model": "m", "name": "two"}], per_prompt=4)
    keys = [draw.request.key("e") for draw in plan(PROMPTS, given)]
    assert len(set(keys)) == len(keys) == 80 and {draw.request.sample for draw in plan(PROMPTS, given)} == {0, 1, 2, 3}


def test_a_sampling_seed_is_sent_another_with_each_draw() -> None:
    draws = plan(PROMPTS, settings([{"model": "m", "sampling_seed": 7}, {"model": "n"}], per_prompt=4))
    seeds = {name: {draw.request.sample: draw.request.seed for draw in draws if draw.source.model == name} for name in "mn"}
    assert seeds["m"][0] == 7 and len(set(seeds["m"].values())) == 2 and seeds["n"] == {0: None, 1: None}
    row = run(sources=[{"model": "m", "sampling_seed": 7}], per_prompt=2).rows[0]
    assert [one["seed"] for one in row["params"]] == [seeds["m"][one["sample"]] for one in row["params"]]


def test_system_prompts_are_sent_and_kept_out_of_the_row() -> None:
    generated = run(sources=[{"model": "m", "system_prompts": ["Be brief.", "Be long."]}], per_prompt=2)
    row = generated.rows[0]
    assert row["prompt"] == PROMPTS[0].text and {one["system_prompt"] for one in row["params"]} == {"Be brief.", "Be long."}
    own = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    assert messages_of(own, "Be brief.", "p") == ({"role": "system", "content": "Be brief.\n\nBe kind."}, own[1]) and messages_of(own, "", "p") == own
    with pytest.raises(DataError, match="prompt p: token ids"):
        messages_of(TokenIds((1, 2)), "", "p")


# --- filters and diversity ---------------------------------------------------------------------------------------------------------------------


def test_filters_by_hand() -> None:
    assert is_refusal("I’m sorry, but I can't do that.") and is_refusal('"As an AI model, I ...') and not is_refusal("I'm sorry to hear that. Try rest.")
    assert shingles("Abcdef") == {"abcde", "bcdef"} and shingles("ab") == {"ab"} and jaccard(shingles("abcdef"), shingles("abcdeg")) == 1 / 3
    seen = Seen(0.9)
    text = "the quick brown fox jumps over the lazy dog and runs away from the river " * 2
    assert [seen.repeats(one) for one in (text, text.upper() + " ", text + "x", "other")] == ["", "repeated response", "near-duplicate", ""]


def test_distinct_by_hand() -> None:
    assert distinct(["a b a", "a b"], 1) == 2 / 5 and distinct(["a b a", "a b"], 2) == 2 / 3 and distinct(["a"], 2) is None
    found = diversity([Written(0, "m", "", 1.0, "same"), Written(0, "m", "", 1.0, "Same "), Written(0, "n", "", 1.0, "other words")])
    assert found["sources"]["m"]["identical"] == 1.0 and found["sources"]["n"]["mean_jaccard"] is None
    assert found["overall"]["identical"] == 1 / 3 and found["overall"]["pairs"] == 3


def test_everything_left_out_is_counted() -> None:
    def answer(request: ChatRequest) -> Answer | str:
        odd: list[Answer | str] = [
            "",
            ChatReply("It goes on and", "length"),
            "I cannot help with that.",
            "One answer.",
            " one   ANSWER.",
            CallFailure("bad request", "status 400"),
        ]
        return odd[request.sample]

    generated = run(answer, [{"model": "m"}], per_prompt=6)
    assert generated.report["left_out"] == {
        reason: {"m": 20} for reason in ("empty response", "truncated", "refusal", "repeated response", "failed call: bad request")
    }
    # which of the two spellings comes first is the plan's to say: samples are in order
    assert adds_up(generated.report) and generated.report["responses_per_row"] == {"1": 20} and generated.rows[0]["responses"] == ["One answer."]


def test_refusals_may_stay() -> None:
    generated = run(lambda request: f"I cannot help with that, {warm(request)}", per_prompt=2, filters={"refusals": False})
    assert generated.report["left_out"] == {} and generated.report["responses"] == 40
    with pytest.raises(ModelError, match="none of 40 answers can be used"):
        run(lambda request: f"I cannot help with that, {warm(request)}", per_prompt=2)


def test_a_greedy_server_raises_the_alarm() -> None:
    """As `transformers serve`: a temperature is taken, the answer is one."""

    def greedy(request: ChatRequest) -> str:
        return f"{request.model}: the same to {request.messages[-1]['content']}" if request.model == "small" else warm(request)

    with pytest.raises(ModelError, match=r"small \(\d+ prompts\)\. The server decodes greedily"):
        run(greedy, per_prompt=6)
    allowed = run(greedy, per_prompt=6, allow_constant=True)
    assert allowed.report["constant"] == {"small": 20} and allowed.report["left_out"] == {"repeated response": {"small": 20}} and adds_up(allowed.report)
    cold = [{"model": "small", "temperature": 0}, {"model": "large"}]
    assert run(greedy, cold, per_prompt=3).report["constant"] == {}, "at temperature 0 one answer is what was asked for"


def test_the_alarm_compares_what_is_comparable() -> None:
    one = Written(0, "m", "Brief.", 1.0, "x")
    assert constant_sources([one, one._replace(system_prompt="Long.")]) == {}, "one answer to each question"
    assert constant_sources([one, one._replace(temperature=0.7), one._replace(prompt=1), one._replace(prompt=1)]) == {"m": 2}
    assert constant_sources([one, one, one._replace(prompt=1), one._replace(prompt=1, text="y")]) == {}, "it varied once"


# --- the whole ---------------------------------------------------------------------------------------------------------------------------------


def test_rows_are_read_as_candidates() -> None:
    generated = run(per_prompt=4)
    found = read_candidates((f"row {k}", row) for k, row in enumerate(generated.rows))
    assert found.ids == [prompt.id for prompt in PROMPTS] and found.left_out == {} and all(len(group) == 4 for group in found.responses)
    for group, row in zip(found.responses, generated.rows, strict=True):
        assert [candidate.on_policy for candidate in group] == [candidate.source == "middle" for candidate in group]
        assert [params["model"] for params in row["params"]] == row["models"] and row["finish_reasons"] == ["stop"] * 4


def test_a_run_that_was_cut_off_goes_on_from_the_cache(tmp_path: Path) -> None:
    """Half of the prompts first, then all: only the other half is asked, and the same rows come out as in one go."""
    with CallCache(tmp_path / "answers.sqlite") as cache:
        first, second = (Caller(FunctionClient(warm), cache=cache) for _ in range(2))
        half = generate(PROMPTS[:10], settings(), {None: first})
        whole = generate(PROMPTS, settings(), {None: second})
    assert first.spent.requests == second.spent.requests == second.spent.cached == 40
    assert whole.rows[:10] == half.rows and whole.rows == run().rows


def test_prompts_from_rows() -> None:
    rows = [{"prompt": "p", "id": 3, "reference": "r"}, {"question": "q"}, {"prompt": "p"}, {"prompt": " "}]
    found = read_prompts((f"row {k}", row) for k, row in enumerate(rows))
    assert [(prompt.text, prompt.reference) for prompt in found.prompts] == [("p", "r"), ("q", None)] and found.prompts[0].id == "3"
    assert found.left_out == {"repeated prompt": 1, "empty prompt": 1}
    with pytest.raises(DataError, match="row 0: has no `prompt`"):
        read_prompts([("row 0", {"text": "x"})])
