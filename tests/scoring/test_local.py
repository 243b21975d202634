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

from palate.data.tokenization import as_exchange
from palate.errors import ContractError, DataError
from palate.models.checkpoints import CONTRACT_NAME
from palate.scoring.doctor import examine
from palate.scoring.local import LocalScorer, load_scorer
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

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
