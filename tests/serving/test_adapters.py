"""Each adapter called as its stack calls it; what comes out is what `scorer.score` gives, and single samples are scored together."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import chatml_tokenizer, tiny_model

from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder, as_exchange
from palate.errors import ConfigError, DataError, ModelError
from palate.scoring.contract import build_contract
from palate.scoring.local import load_scorer
from palate.serving import adapters
from palate.serving.adapters import (
    NemoRLEnvironment,
    areal_reward,
    ms_swift_orm,
    ms_swift_plugin,
    openrlhf_reward,
    slime_reward,
    trl_reward,
    verifiers_group_reward,
    verifiers_reward,
    verl_score,
)
from palate.serving.shaping import Part, Shaped, length_penalty
from palate.types import Exchange, text_of


class Length:
    """The reward is the length of the response; nothing for "?", an error for "!"."""

    def __init__(self) -> None:
        self.calls: list[list[Exchange]] = []

    def score(self, conversations: Sequence[Any]) -> np.ndarray:
        exchanges = [as_exchange(item) for item in conversations]
        self.calls.append(exchanges)
        texts = [text_of(exchange.response) for exchange in exchanges]
        if any(text.endswith("!") for text in texts):
            raise DataError("conversation with an exclamation mark")
        return np.array([math.nan if text.endswith("?") else len(text) for text in texts], dtype=np.float32)


@pytest.fixture
def length() -> Length:
    return Length()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with its contract: the template closed, sequences up to 128 tokens."""
    folder = tmp_path_factory.mktemp("rm")
    model, tokenizer = tiny_model("qwen3", seed=3), prepare_tokenizer(chatml_tokenizer())
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_contract(model.eval(), Encoder(tokenizer, max_length=128), golden=[Exchange("a", "b")]).save(folder)
    return folder


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CHAT = "<|im_start|>user\nask 1<|im_end|>\n<|im_start|>assistant\n"
SHAPED = {"length": length_penalty(2, 6)}


# --- TRL ------------------------------------------------------------------------------------------------------------------------------------------


def test_trl_as_grpo_calls_it(checkpoint: Path) -> None:
    scorer = load_scorer(checkpoint)
    reward = trl_reward(str(checkpoint), name="rm")
    metrics: dict[str, float] = {}
    chat = {"prompts": [user("ask 1"), user("ask 2")], "completions": [assistant("good"), assistant("bad one")]}
    others = {"completion_ids": [[1, 2], [3]], "answer": ["x", "y"], "trainer_state": None, "log_extra": lambda *_: None, "log_metric": metrics.__setitem__}
    expected = scorer.score([p + c for p, c in zip(*chat.values(), strict=True)])
    assert reward(**chat, **others) == pytest.approx(expected.tolist(), abs=1e-6) and reward.__name__ == "rm"
    assert metrics == {"rm/unscored": 0}
    plain = {"prompts": ["ask 1", "ask 2"], "completions": [" good", " bad one"]}
    expected = scorer.score(list(zip(*plain.values(), strict=True)))
    assert reward(**plain, **others) == pytest.approx(expected.tolist(), abs=1e-6)
    assert np.ptp(expected) > 1e-3


def test_trl_asynchronous_is_a_coroutine_function(length: Length) -> None:
    reward = trl_reward(length, asynchronous=True)
    assert inspect.iscoroutinefunction(reward)
    assert asyncio.run(reward(prompts=["p", "p"], completions=["abc", "a?"], completion_ids=[[1], [2]])) == [3.0, None]


def test_trl_a_missing_reward_is_none_and_costs_nobody_else_his(length: Length) -> None:
    logged: dict[str, Any] = {}
    reward = trl_reward(Shaped({"model": length, **SHAPED}))
    completions = ["abcd", "no!", "no?", "a"]
    assert reward(["p"] * 4, completions, log_metric=logged.__setitem__, log_extra=logged.__setitem__) == [3.5, None, None, 1.0]
    assert logged["palate/unscored"] == pytest.approx(0.5)  # of the four rewards
    assert logged["palate/model"][0] == 4 and math.isnan(logged["palate/model"][1])  # the table's column comes last, the metric under one name before it


def test_trl_mixed_texts_and_messages_become_a_chat(length: Length) -> None:
    trl_reward(length)([user("p")], ["abc"])
    assert length.calls == [[Exchange(tuple(user("p")), tuple(assistant("abc")))]]
    with pytest.raises(DataError, match="expected text or messages"):
        trl_reward(length)([3], [assistant("a")])


def test_trl_a_conversation_beyond_the_limit_has_no_reward(checkpoint: Path) -> None:
    """What is opened by its name does not stop a run of days for one long sample."""
    found = trl_reward(str(checkpoint))([user("ask"), user("ask")], [assistant("good"), assistant("good " * 600)])
    assert found[0] is not None and found[1] is None


# --- OpenRLHF -------------------------------------------------------------------------------------------------------------------------------------


def test_openrlhf_as_its_agent_calls_it(checkpoint: Path) -> None:
    """One sample a call, each in a thread of its own; the query with its special tokens is what the chat template writes, so rewards are those of chats."""
    reward_func = openrlhf_reward(str(checkpoint), max_wait=0.1)
    scorer = load_scorer(checkpoint)
    responses = [f"good {i}" for i in range(8)]
    queries = [f"{CHAT}{response}<|im_end|>" for response in responses]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: reward_func([query], [CHAT], ["label"]), queries))
    expected = scorer.score([[*user("ask 1"), *assistant(response)] for response in responses])
    assert [one["rewards"].shape for one in found] == [(1,)] * 8
    assert [one["rewards"].item() for one in found] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[0]["scores"] is found[0]["rewards"] and found[0]["extra_logs"] == {}
    cut_off = reward_func([f"{CHAT}good 0"], [CHAT], ["label"])["rewards"].item()  # a response at its token limit has no end of turn: it is added
    assert cut_off == pytest.approx(float(expected[0]), abs=1e-6)


def test_openrlhf_parts_are_logged_and_rules_see_the_response_alone(length: Length) -> None:
    reward_func = openrlhf_reward(Shaped({"model": length, **SHAPED}))
    found = reward_func([f"{CHAT}abcd"], [CHAT], [None])
    assert found["extra_logs"]["length"].tolist() == [-0.5] and found["extra_logs"]["model"].tolist() == [len(CHAT) + 4]
    assert length.calls == [[Exchange("", f"{CHAT}abcd")]]
    with pytest.raises(DataError, match="does not begin with its prompt"):
        reward_func(["other abcd"], [CHAT], [None])


def test_openrlhf_another_template_and_missing_rewards(length: Length) -> None:
    own = openrlhf_reward(length, exchange=lambda query, prompt, label: Exchange(tuple(user(label)), tuple(assistant("abc"))), unscored=-1)
    assert own(["q"], ["p"], ["asked"])["rewards"].tolist() == [3] and length.calls[0][0].prompt == tuple(user("asked"))
    assert openrlhf_reward(length, unscored=-1)(["abc?", "ab"], ["", ""], ["", ""])["rewards"].tolist() == [-1, 2]
    with pytest.raises(DataError, match="no reward: .*unscored="):
        openrlhf_reward(length)(["abc?"], [""], [""])


# --- verl -----------------------------------------------------------------------------------------------------------------------------------------


def test_verl_sixty_four_samples_make_one_batch(length: Length) -> None:
    """As its reward loop does: a partial of the coroutine function, keyword arguments, one sample a call."""
    compute_score = verl_score(length, max_wait=600)  # a batch ends at 64
    assert inspect.iscoroutinefunction(compute_score) and inspect.iscoroutinefunction(partial(compute_score))

    async def run() -> list[dict[str, float]]:
        samples = [{"data_source": "d", "solution_str": "x" * i, "ground_truth": "g", "extra_info": {"question": f"q {i}", "num_turns": 2}} for i in range(64)]
        return await asyncio.gather(*(compute_score(**sample, reward_router_address="a:1", reward_model_tokenizer=None) for sample in samples))

    assert asyncio.run(run()) == [{"score": float(i)} for i in range(64)]
    assert [len(call) for call in length.calls] == [64]
    assert length.calls[0][0] == Exchange(tuple(user("q 0")), tuple(assistant("")))


def test_verl_plain_function_parts_and_prompts(length: Length) -> None:
    compute_score = verl_score(Shaped({"model": length, **SHAPED}), asynchronous=False)
    assert compute_score("d", "abcd", "g", {"question": np.array(user("q"), dtype=object)}) == {"score": 3.5, "model": 4, "length": -0.5}
    assert length.calls[0][0].prompt == tuple(user("q"))
    named = verl_score(Shaped({"score": Part(length, weight=0.5), **SHAPED}), asynchronous=False)
    assert named("d", "abcd", "g", {"question": "q"})["score"] == 1.5  # the reward, not the part of that name
    with pytest.raises(DataError, match=r"no `question` \(it has split\)"):
        compute_score("d", "abcd", "g", {"split": "train"})
    with pytest.raises(DataError, match="no reward"):
        compute_score("d", "ab?", "g", {"question": "q"})
    own = verl_score(length, exchange=lambda source, solution, truth, extra: Exchange(truth, solution), unscored=0.0, asynchronous=False)
    assert own("d", "ab?", "g") == {"score": 0.0} and length.calls[-1][0].prompt == "g"


def test_an_endpoint_that_is_down_is_an_error_and_no_reward() -> None:
    class Down:
        def score(self, conversations: Sequence[Any]) -> np.ndarray:
            raise ModelError("no answer after 6 attempts")

    with pytest.raises(ModelError, match="no answer"):
        asyncio.run(verl_score(Down(), unscored=0.0)("d", "a", "g", {"question": "q"}))


# --- NeMo-RL --------------------------------------------------------------------------------------------------------------------------------------


def test_nemo_rl_a_step_is_the_reward(length: Length) -> None:
    environment = NemoRLEnvironment(Shaped({"model": length, **SHAPED}))
    logs = [[{"role": "user", "content": CHAT, "token_ids": torch.tensor([1])}, {"role": "assistant", "content": text}] for text in ("abcd", "a")]
    observations, metadata, stops, rewards, terminateds, answers = environment.step(logs, [{"n": 1}, None])
    assert rewards.tolist() == [len(CHAT) + 3.5, len(CHAT) + 1] and rewards.dtype == torch.float32
    assert terminateds.tolist() == [True, True] and stops == [None, None] and answers == ["abcd", "a"] and metadata == [{"n": 1}, None]
    assert observations[0] == {"role": "environment", "content": f"Environment: {len(CHAT) + 3.5}"}
    batch, metrics = environment.global_post_process_and_metrics({"rewards": rewards})
    assert metrics == {"palate/model": len(CHAT) + 2.5, "palate/length": -0.25, "palate/unscored": 0} and batch["rewards"] is rewards
    assert environment.global_post_process_and_metrics(batch)[1] == {}
    environment.shutdown()


def test_nemo_rl_logs_of_chats(checkpoint: Path) -> None:
    log = [*user("ask 1"), *assistant("good"), *user("more"), *assistant("well")]
    rewards = NemoRLEnvironment(str(checkpoint), formatted=False).step([log], [None]).rewards
    assert rewards.tolist() == pytest.approx(load_scorer(checkpoint).score([log]).tolist(), abs=1e-6)
    with pytest.raises(DataError, match="empty"):
        NemoRLEnvironment(Length()).step([[]], [None])


# --- ms-swift -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ms_swift_makes_the_object_and_calls_it(length: Length, asynchronous: bool) -> None:
    orm = ms_swift_orm(length, asynchronous=asynchronous)(args=SimpleNamespace())
    conversations = [[*user("q"), *assistant("abc")], [*user("q"), *assistant("a?")]]
    found = orm(["abc", "a?"], messages=conversations, trainer_state=None, solution=["x", "y"])
    assert (asyncio.run(found) if inspect.iscoroutine(found) else found) == [3, None]
    assert length.calls[0][0] == Exchange(tuple(user("q")), tuple(assistant("abc")))
    assert inspect.iscoroutinefunction(orm.__call__) == asynchronous


def test_ms_swift_without_its_columns_is_refused(length: Length) -> None:
    with pytest.raises(DataError, match="no `messages`"):
        ms_swift_orm(length)()(["abc"])
    with pytest.raises(DataError, match="2 completions and 1 conversations"):
        ms_swift_orm(length)()(["a", "b"], messages=[[*user("q"), *assistant("a")]])


def test_ms_swift_plugin(length: Length) -> None:
    plugin = ms_swift_plugin(length)(model=None, template=None)
    found = plugin(inputs=[{"messages": [*user("q"), *assistant("abc")]}, {"messages": [*user("q"), *assistant("a?")]}], trainer_state=None)
    assert found[0] == 3 and torch.isnan(found[1])


# --- verifiers ------------------------------------------------------------------------------------------------------------------------------------


def test_verifiers_passes_by_parameter_names(length: Length) -> None:
    """As Rubric does: only what the function asks for, and plural names make it a group's."""
    reward, group = verifiers_reward(length, name="helpful", max_wait=600), verifiers_group_reward(length)
    assert set(inspect.signature(reward).parameters) == {"prompt", "completion"} and reward.__name__ == "helpful"
    assert set(inspect.signature(group).parameters) == {"prompts", "completions"}

    async def run() -> list[float]:
        return await asyncio.gather(*(reward(prompt=user("q"), completion=assistant("x" * i)) for i in range(64)))

    assert asyncio.run(run()) == list(range(64)) and len(length.calls) == 1
    assert asyncio.run(group(prompts=["q", user("q")], completions=["ab", assistant("abc")])) == [2, 3]
    with pytest.raises(DataError, match="no reward"):
        asyncio.run(verifiers_reward(length)(prompt="q", completion="ab?"))


# --- slime and AReaL ------------------------------------------------------------------------------------------------------------------------------


def test_slime_samples_alone_and_in_groups(length: Length) -> None:
    rm = slime_reward(length, unscored=-1)
    formatted, chat = SimpleNamespace(prompt=CHAT, response="abc", label=None), SimpleNamespace(prompt=user("q"), response="ab", label=None)
    assert asyncio.run(rm(None, formatted)) == len(CHAT) + 3 and length.calls[-1] == [Exchange("", f"{CHAT}abc")]
    assert asyncio.run(rm(None, [formatted, chat])) == [len(CHAT) + 3, 2]
    assert length.calls[-1][1] == Exchange(tuple(user("q")), tuple(assistant("ab")))
    assert asyncio.run(rm(None, SimpleNamespace(prompt="", response="a?"))) == -1
    own = slime_reward(length, exchange=lambda sample: Exchange(sample.label, sample.response))
    asyncio.run(own(None, SimpleNamespace(prompt=CHAT, response="abc", label=tuple(user("l")))))
    assert length.calls[-1] == [Exchange(tuple(user("l")), "abc")]


def test_areal_goes_through_a_pickle(checkpoint: Path) -> None:
    reward_fn = pickle.loads(pickle.dumps(areal_reward(str(checkpoint))))
    scorer = load_scorer(checkpoint)
    data = {"messages": user("ask 1"), "answer": "x"}
    found = reward_fn(CHAT, "good<|im_end|>", [1, 2], [3], **data)
    assert found == pytest.approx(float(scorer.score([[*user("ask 1"), *assistant("good")]])[0]), abs=1e-6)
    chat = areal_reward(str(checkpoint), chat=True)(CHAT, "good", [1], [2], **data)
    assert chat == pytest.approx(found, abs=1e-6)
    with pytest.raises(DataError, match="no reward"):
        reward_fn(CHAT, "good " * 600, [1], [2])
    with pytest.raises(DataError, match="the data has only answer"):
        areal_reward(str(checkpoint), chat=True)(CHAT, "good", [1], [2], answer="x")


# --- all ------------------------------------------------------------------------------------------------------------------------------------------


def test_no_adapter_needs_its_stack() -> None:
    code = (
        "import sys; import palate.serving.adapters; "
        "stacks = ('trl', 'openrlhf', 'verl', 'nemo_rl', 'swift', 'verifiers', 'slime', 'areal', 'ray', 'fastapi'); "
        "print([name for name in stacks if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert adapters.__all__ == sorted(adapters.__all__)


def test_a_source_that_is_not_there_fails_at_once() -> None:
    with pytest.raises((ModelError, ConfigError)):
        trl_reward("./no/such/folder")


def test_parts_may_be_weighted_models(length: Length) -> None:
    mixed = Shaped({"a": Part(length, weight=0.5), "b": Part(Length(), weight=2, clip=(0, 3))})
    assert trl_reward(mixed)(["p", "p"], ["ab", "abcd"]) == [0.5 * 2 + 2 * 2, 0.5 * 4 + 2 * 3]
