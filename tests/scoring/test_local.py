"""Scores do not depend on order, batching or length of the others; a checkpoint that changed is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tests.conftest import TOKENIZERS, tiny_model
from transformers import AutoTokenizer, pipeline

from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, ContractError, DataError, ModelError
from palate.interchange.doctor.examine import examine
from palate.models.checkpoints import CONTRACT_NAME
from palate.models.heads import initialise_head
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.scoring.local import LocalScorer, load_scorer
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer
from palate.types import Readout, TokenIds

COMMON: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "max_steps": 2,
    "max_length": 64,
}


def conversation(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def trained(folder: Path, kind: str, *, chat: bool = True, **options: Any) -> Path:
    rows = [{"chosen": conversation(f"ask {i}", f"good {i}"), "rejected": conversation(f"ask {i}", f"bad {i}")} for i in range(8)]
    if not chat:
        rows = [{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    trainer = RewardTrainer(
        model=tiny_model(kind, seed=2),
        args=RewardConfig(output_dir=str(folder), **{**COMMON, **options}, chat_template_path="plain" if kind == "bert" else None),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZERS[kind](),
    )
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture(scope="module", params=["qwen3", "llama", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("qwen"), "qwen3")


MANY = [conversation("what is paris?", "the capital " * n) for n in (1, 9, 2, 14, 5, 1)]


def test_order_and_batches_do_not_matter(checkpoint: Path) -> None:
    scorer = load_scorer(checkpoint)
    together = scorer.score(MANY)
    assert together.dtype == np.float32 and together.shape == (6,)
    assert together[0] == together[5]
    alone = np.concatenate([scorer.score([c]) for c in MANY])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(scorer.score(MANY[::-1]), together[::-1], atol=1e-6)
    np.testing.assert_allclose(load_scorer(checkpoint, token_budget=20).score(MANY), together, atol=1e-6)
    assert scorer.score([]).shape == (0,)


def test_pipeline_gives_the_raw_reward(checkpoint: Path) -> None:
    """No sigmoid, and the same ids, from the golden text alone."""
    scorer = load_scorer(checkpoint)
    classify = pipeline("text-classification", model=str(checkpoint), device="cpu")
    for golden in scorer.contract.golden:
        assert classify(golden.text)[0]["score"] == pytest.approx(golden.score, abs=1e-5)


def test_cross_encoder_gives_the_raw_reward(checkpoint: Path) -> None:
    from sentence_transformers import CrossEncoder

    golden = load_scorer(checkpoint).contract.golden[0]
    encoder = CrossEncoder(str(checkpoint), device="cpu")
    features = {"input_ids": torch.tensor([golden.ids]), "attention_mask": torch.ones(1, len(golden.ids), dtype=torch.long)}
    assert encoder.model(**features).logits.item() == pytest.approx(golden.score, abs=1e-5)
    assert type(encoder.activation_fn).__name__ == "Identity"


def test_trl_grpo_takes_the_folder_as_reward(qwen: Path, tmp_path: Path) -> None:
    """reward_funcs="dir": a whole GRPO step rewarded by our checkpoint, with exactly our scores."""
    from tests.conftest import DECODER
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(qwen)
    torch.manual_seed(0)
    policy = Qwen3ForCausalLM(
        Qwen3Config(**DECODER, head_dim=8, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=str(qwen),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=6,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "what is paris?"}]}] * 2),
        processing_class=tokenizer,
    )
    completions = [[{"role": "assistant", "content": text}] for text in ("good 1", "bad 1")]
    prompts = [[{"role": "user", "content": "ask 1"}]] * 2
    rewards = trainer._calculate_rewards([{"prompt": p} for p in prompts], prompts, completions, [[1], [1]])
    expected = load_scorer(qwen).score([[*p, *c] for p, c in zip(prompts, completions, strict=True)])
    theirs = rewards[:, 0].detach().cpu().numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    trainer.train()
    assert any("reward" in row for row in trainer.state.log_history)


def test_too_long_is_an_error_nan_or_a_cut_prompt(qwen: Path) -> None:
    scorer = load_scorer(qwen)
    long_prompt, long_response = conversation("the " * 100, "good"), conversation("the", "good " * 100)
    with pytest.raises(DataError, match=r"conversation 1 has \d+ tokens, max_length is 64"):
        scorer.score([MANY[0], long_prompt])
    assert np.isnan(scorer.score([MANY[0], long_prompt], on_long="nan")).tolist() == [False, True]
    assert np.isfinite(scorer.score([long_prompt], on_long="truncate_prompt")).all()
    with pytest.raises(DataError, match="its response alone does not fit"):
        scorer.score([long_response], on_long="truncate_prompt")


def test_prompt_and_response_equal_the_whole_text(tmp_path: Path) -> None:
    scorer = load_scorer(trained(tmp_path / "text", "llama", chat=False))
    whole, parts = scorer.score(["ask 1\n\ngood 1", ("ask 1", "good 1")])
    assert whole == pytest.approx(parts, abs=1e-6)


def changed(checkpoint: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(checkpoint, folder))


def failures(folder: Path) -> dict[str, str]:
    return {check.name: check.advice for check in examine(folder) if not check.passed}


def test_a_sound_checkpoint_passes_every_check(checkpoint: Path) -> None:
    assert failures(checkpoint) == {}


def test_changed_weights_are_refused(qwen: Path, tmp_path: Path) -> None:
    folder = changed(qwen, tmp_path / "w")
    state = load_file(folder / "model.safetensors")
    state["score.weight"] = state["score.weight"] * 1.01
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ContractError, match="golden example 0: scores"):
        load_scorer(folder)
    assert "golden examples" in failures(folder)
    assert load_scorer(folder, verify=False).score([MANY[0]]).shape == (1,)


def test_a_changed_template_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = changed(qwen, tmp_path / "t")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>the ")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ContractError, match="chat template is not the one used in training"):
        load_scorer(folder)


def test_doctor_finds_what_consumers_trip_over(qwen: Path, tmp_path: Path) -> None:
    folder = changed(qwen, tmp_path / "d")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "problem_type": None,
        "id2label": {"0": "a", "1": "b"},
        "label2id": {"a": 0, "b": 1},
        "architectures": ["RewardModel"],
        "sentence_transformers": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / CONTRACT_NAME).unlink()
    assert set(failures(folder)) == {"architecture", "one label", "raw scores", "sentence-transformers activation", CONTRACT_NAME}


def test_a_broken_or_newer_contract_is_said_so(qwen: Path, tmp_path: Path) -> None:
    folder = changed(qwen, tmp_path / "c")
    (folder / CONTRACT_NAME).write_text("{")
    with pytest.raises(ContractError, match="not a readable contract"):
        load_scorer(folder)
    (folder / CONTRACT_NAME).write_text('{"contract_version": 99}')
    with pytest.raises(ContractError, match="contract_version is 99"):
        load_scorer(folder)


def test_a_foreign_reward_model_loads_without_a_contract(tmp_path: Path) -> None:
    """A plain save of another trainer: the tokenizer's conventions are used, nothing can be verified."""
    tiny_model("llama").save_pretrained(tmp_path)
    TOKENIZERS["llama"]().save_pretrained(tmp_path)
    scorer = load_scorer(tmp_path)
    assert isinstance(scorer, LocalScorer) and scorer.contract is None and not scorer.encoder.closed
    assert np.isfinite(scorer.score(MANY)).all()


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_a_random_head_gives_no_rewards(base_models: dict[str, Path], kind: str) -> None:
    with pytest.raises(ModelError, match="no trained reward head is in it"):
        load_scorer(base_models[kind])


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    """The table of positions would be read past its end, deep in the model and only at the first long text."""
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    TOKENIZERS["bert"]().save_pretrained(tmp_path)
    positions = model.config.max_position_embeddings
    assert load_scorer(tmp_path, max_length=positions).encoder.max_length == positions
    with pytest.raises(ConfigError, match=rf"max_length is {positions + 1}, and .* has positions for {positions} tokens"):
        load_scorer(tmp_path, max_length=positions + 1)


@pytest.mark.parametrize(("device", "message"), [("gpu", "'gpu' is none that torch knows"), ("cuda:99", r"torch finds \d+ GPUs on this machine")])
def test_a_device_that_is_not_there_is_refused(device: str, message: str, qwen: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_scorer(qwen, device=device)


def test_bfloat16_backbone_keeps_the_contract_within_its_rounding(qwen: Path) -> None:
    scores = load_scorer(qwen, dtype=torch.bfloat16).score(MANY)
    np.testing.assert_allclose(scores, load_scorer(qwen).score(MANY), atol=0.05)


def test_responses_to_one_prompt_cost_the_prompt_once(qwen: Path) -> None:
    """Sixteen responses, in any order among others: the first layer sees the prompt's tokens once."""
    scorer, padded = load_scorer(qwen), load_scorer(qwen, packing="padded")
    assert scorer.engine.packing == "shared" and padded.engine.packing == "padded"
    items = [conversation("what is paris? " * 9, f"the capital {n}") for n in range(16)] + [conversation("berlin?", "yes")]
    seen: list[int] = []
    scorer._packing_checked = True
    hook = scorer.model.model.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    rewards = scorer.score(items[::-1])[::-1]
    hook.remove()
    np.testing.assert_allclose(rewards, padded.score(items), atol=1e-6)
    lengths = [len(ids) for ids in scorer.encoder.encode([as_exchange(item) for item in items])]
    assert sum(seen) < sum(lengths) / 3


def test_equal_conversations_tie_exactly(qwen: Path) -> None:
    """Places in a row round differently; equal text is computed once, so that it ties."""
    items = [conversation("a " * (k % 3), "the same answer") for k in range(12)] * 2
    rewards = load_scorer(qwen, token_budget=30).score(items)
    assert all(len({rewards[i] for i in range(k, 24, 3)}) == 1 for k in range(3))


def test_a_scorer_that_is_not_exact_pads(qwen: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer, padded = load_scorer(qwen, verify=False), load_scorer(qwen, verify=False, packing="padded")
    for one in (scorer, padded):
        one.model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output + 3 * output.roll(1, dims=1))
    np.testing.assert_allclose(scorer.score(MANY), padded.score(MANY), atol=1e-6)
    assert scorer.engine.packing == "padded" and any("packing: padded" in message for message in caplog.messages)


# --- several outputs, and steps -------------------------------------------------------------------------------------------------------------------


def untrained(readout: Readout, kind: str = "qwen3", **options: Any) -> LocalScorer:
    """A scorer of random weights with a head of these outputs."""
    tokenizer = prepare_tokenizer(TOKENIZERS[kind]())
    model = as_reward_model(tiny_model(kind, num_labels=len(readout.outputs)), readout.outputs)
    initialise_head(model.score, seed=0)
    fit_tokenizer(model, tokenizer)
    scorer = LocalScorer(model, tokenizer, **{"max_length": 64, **options})
    scorer.readout = readout
    return scorer


ATTRIBUTES = Readout(("help", "truth", "help:raw_variance"), (0.75, -0.25, 0.0))
STEPS = Readout(("wrong", "right"), (0.0, 1.0), "min")


def exact(scorer: LocalScorer, ids: list[int]) -> np.ndarray:
    """The head's outputs at the last of these tokens, alone in the model."""
    with torch.no_grad():
        return scorer.model(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def good(outputs: np.ndarray, weights: tuple[float, ...] = STEPS.weights) -> float:
    powers = np.exp(outputs - outputs.max())
    return float(powers @ np.array(weights) / powers.sum())


@pytest.mark.parametrize("packing", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_reward_is_the_weighted_sum_of_named_outputs(kind: str, packing: str) -> None:
    scorer = untrained(ATTRIBUTES, kind, packing=packing, token_budget=40)
    outputs = scorer.outputs(MANY)
    assert outputs.dtype == np.float32 and outputs.shape == (6, 3)
    expected = np.stack([exact(scorer, scorer.encoder.encode([as_exchange(c)])[0]) for c in MANY])
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    rewards = scorer.score(MANY)
    assert rewards.dtype == np.float32 and np.ptp(rewards) > 0.01
    np.testing.assert_allclose(rewards, outputs @ np.array([0.75, -0.25, 0.0]), atol=1e-6)
    np.testing.assert_array_equal(outputs[0], outputs[5])
    again, read_from = scorer.score_detailed(MANY)
    np.testing.assert_array_equal(again, rewards)
    assert [list(one) for one in read_from] == [list(ATTRIBUTES.outputs)] * 6
    np.testing.assert_array_equal([list(one.values()) for one in read_from], outputs)
    ids = [scorer.encoder.encode([as_exchange(c)])[0] for c in MANY]
    np.testing.assert_allclose(scorer.score_ids(ids), rewards, atol=1e-6)


def test_what_cannot_be_scored_is_nan_in_every_output() -> None:
    scorer = untrained(ATTRIBUTES)
    items = [MANY[0], conversation("the " * 100, "good"), MANY[2]]
    outputs, rewards = scorer.outputs(items, on_long="nan"), scorer.score(items, on_long="nan")
    assert np.isnan(outputs).all(axis=1).tolist() == np.isnan(outputs).any(axis=1).tolist() == np.isnan(rewards).tolist() == [False, True, False]
    np.testing.assert_allclose(outputs[[0, 2]], scorer.outputs([MANY[0], MANY[2]]), atol=1e-6)
    assert scorer.outputs([]).shape == (0, 3) and scorer.score([]).shape == (0,)


def test_a_model_without_steps_scores_none() -> None:
    with pytest.raises(DataError, match="this model gives help, truth, help:raw_variance for a whole response"):
        untrained(ATTRIBUTES).score_steps(MANY)


def text_until(scorer: LocalScorer, prompt: str, response: str) -> list[int]:
    """Ids of a text that breaks off here: what the model has read at the end of a step, no EOS after it."""
    return scorer.encoder.rules.prefix + scorer.tokenizer(f"{prompt}\n\n{response}", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("packing", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_step_is_read_where_it_ends(kind: str, packing: str) -> None:
    """P(right) by the model that has read so far and no further."""
    scorer = untrained(STEPS, kind, packing=packing)
    (steps,) = scorer.score_steps([("what is two?", "two plus two\nis four\nfour")])
    read = ["two plus two\n", "two plus two\nis four\n", "two plus two\nis four\nfour"]
    expected = [good(exact(scorer, text_until(scorer, "what is two?", part))) for part in read]
    np.testing.assert_allclose(steps, expected, atol=1e-6)
    assert len(set(np.round(expected, 4))) == 3
    assert scorer.score([("what is two?", "two plus two\nis four\nfour")])[0] == pytest.approx(min(expected), abs=1e-6)


@pytest.mark.parametrize("how", ["min", "product", "mean", "last"])
def test_steps_are_gathered_as_the_contract_says(how: str) -> None:
    """Three classes, of which neutral is good too; steps that two line breaks part."""
    readout = Readout(("wrong", "neutral", "right"), (0.0, 1.0, 1.0), how, "\n\n")
    scorer = untrained(readout)
    item = ("what is two?", "two plus\ntwo\n\nis four")
    (steps,) = scorer.score_steps([item])
    expected = [good(exact(scorer, text_until(scorer, item[0], part)), readout.weights) for part in ("two plus\ntwo\n\n", "two plus\ntwo\n\nis four")]
    np.testing.assert_allclose(steps, expected, atol=1e-6)
    gathered = {"min": min(expected), "product": expected[0] * expected[1], "mean": sum(expected) / 2, "last": expected[1]}[how]
    assert scorer.score([item])[0] == pytest.approx(gathered, abs=1e-6)


@pytest.mark.parametrize("packing", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_steps_of_a_cut_prompt(kind: str, packing: str) -> None:
    """The response stands whole at the end of what is left; beside it, one that fits and shares its prompt's start."""
    scorer = untrained(STEPS, kind, packing=packing, max_length=32)
    prompt, response = "the " * 60 + "end", "two plus two\nis four"
    whole = scorer.encoder.encode([as_exchange((prompt, response))])[0]
    first = len(scorer.encoder.rules.prefix)
    kept = whole[:first] + whole[first + len(whole) - 32 :]
    breaks = [i for i, token in enumerate(kept) if scorer.tokenizer.decode([token]) == "\n"]  # two of the separator, one in the response
    assert len(breaks) == 3 and len(kept) == 32
    expected = [good(exact(scorer, kept[: breaks[-1] + 1])), good(exact(scorer, kept[:-1]))]
    cut, short = scorer.score_steps([(prompt, response), ("the the", response)], on_long="truncate_prompt")
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    np.testing.assert_allclose(short, scorer.score_steps([("the the", response)])[0], atol=1e-6)
    always = untrained(STEPS, kind, packing=packing, max_length=32, cut_prompts=True)
    np.testing.assert_allclose(always.score([(prompt, response)]), [min(expected)], atol=1e-6)


NOT_SCORED = {
    "too long": ("the " * 100, "two\nfour"),
    "an empty response": ("what is two?", ""),
    "blank lines": ("what is two?", "\n \n"),
}


@pytest.mark.parametrize("among", [True, False], ids=["among others", "alone"])
@pytest.mark.parametrize("packing", ["auto", "padded"])
@pytest.mark.parametrize("name", NOT_SCORED)
def test_responses_without_a_step_are_nan(name: str, packing: str, among: bool) -> None:
    scorer = untrained(STEPS, packing=packing)
    others = [("what is two?", "two\nfour"), ("what is two?", "four")] if among else []
    items = [*others, NOT_SCORED[name]]
    rewards, steps = scorer.score(items, on_long="nan"), scorer.score_steps(items, on_long="nan")
    assert np.isnan(rewards).tolist() == [False] * len(others) + [True]
    assert np.isnan(steps[-1]).all() and len(steps[-1]) <= 1
    if among:
        np.testing.assert_allclose(rewards[:2], scorer.score(others), atol=1e-6)
        assert [len(one) for one in steps[:2]] == [2, 1]


def test_steps_too_long_are_an_error_by_default() -> None:
    with pytest.raises(DataError, match=r"conversation 1 has \d+ tokens, max_length is 64"):
        untrained(STEPS).score([("p", "two"), NOT_SCORED["too long"]])


def test_steps_keep_their_order_over_chunks_and_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses of one to five steps, each thrice, some of them chats: in any order, chunk and batch the same as alone."""
    monkeypatch.setattr("palate.scoring.local.CHUNK", 5)
    words = ["the sea", "the wind", "two plus two", "is four", "yes"]
    items: list[Any] = [("say", "\n".join(words[i:])) for i in range(5)]
    items += [conversation("say it", "\n".join(words[: i + 1])) for i in range(3)]
    scorer = untrained(STEPS)
    alone = [scorer.score_steps([item])[0] for item in items]
    assert [len(one) for one in alone] == [5, 4, 3, 2, 1, 1, 2, 3]
    order = [7, 0, 3, 3, 5, 1, 6, 2, 4, 0, 7, 1, 2, 4, 5, 6, 3, 0]
    for together in (scorer, untrained(STEPS, token_budget=30), untrained(STEPS, packing="padded", token_budget=50)):
        found = together.score_steps([items[i] for i in order])
        for i, steps in zip(order, found, strict=True):
            np.testing.assert_allclose(steps, alone[i], atol=1e-6)
        np.testing.assert_allclose(together.score([items[i] for i in order]), [alone[i].min() for i in order], atol=1e-6)


def test_equal_responses_have_equal_steps() -> None:
    scorer = untrained(STEPS, token_budget=40)
    found = scorer.score_steps([("say", f"{'the ' * (k % 3)}sea\nthe wind") for k in range(12)])
    assert all(np.array_equal(found[i], found[k]) for k in range(3) for i in range(k, 12, 3))


def test_equal_ids_with_other_steps() -> None:
    """A whole text reads like a prompt and its response, but the prompt's lines are no steps: each has the steps that it has alone."""
    scorer = untrained(STEPS)
    items: list[Any] = [("the sea", "two\nfour"), "the sea\n\ntwo\nfour", ("the sea\n\ntwo\n", "four")]
    alone = [scorer.score_steps([item])[0] for item in items]
    assert [len(one) for one in alone] == [2, 3, 1]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        for i, steps in zip(order, scorer.score_steps([items[i] for i in order]), strict=True):
            np.testing.assert_allclose(steps, alone[i], atol=1e-6)


def test_steps_of_token_ids_are_refused_by_number() -> None:
    with pytest.raises(DataError, match="conversation 1: steps cannot be found in a response of token ids"):
        untrained(STEPS).score([("p", "two"), TokenIds([5, 6, 7])])
