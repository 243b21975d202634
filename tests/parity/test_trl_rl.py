"""Real steps of TRL's GRPO and Online DPO on a tiny policy: our adapters give what TRL computes from the folder, and a judge drives both trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.conftest import DECODER, chatml_tokenizer, tiny_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder
from palate.judging.online import judge_reward
from palate.scoring.contract import build_contract
from palate.scoring.sources import open_scorer
from palate.serving.adapters import trl_reward
from palate.serving.shaping import Part, Shaped, length_penalty
from palate.types import Exchange, Matchup, Verdict, text_of

PROMPTS = [[{"role": "user", "content": text}] for text in ("what is paris?", "tell me about the sea", "two plus two", "a poem")]

COMMON: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "seed": 3,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    model, tokenizer = tiny_model("qwen3", seed=3), prepare_tokenizer(chatml_tokenizer())
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_contract(model.eval(), Encoder(tokenizer, max_length=512), golden=[Exchange("a", "b")]).save(folder)
    return folder


def policy() -> Any:
    torch.manual_seed(5)
    tokenizer = chatml_tokenizer()
    return Qwen3ForCausalLM(
        Qwen3Config(
            **DECODER,
            head_dim=8,
            vocab_size=len(tokenizer),
            initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def grpo(rewards: Any, tmp_path: Path, **options: Any) -> tuple[GRPOTrainer, dict[str, Any]]:
    trainer = GRPOTrainer(
        model=policy(),
        reward_funcs=rewards,
        args=GRPOConfig(output_dir=str(tmp_path), num_generations=4, max_completion_length=8, **{**COMMON, **options}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "answer": ["the capital"] * 4}),
        processing_class=chatml_tokenizer(),
    )
    trainer.train()
    return trainer, next(log for log in trainer.state.log_history if "reward" in log)


def test_grpo_gets_the_same_rewards_from_the_folder_and_from_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    """One step with three reward functions: the folder, which TRL loads and scores itself, and the adapter, plain and as a coroutine."""
    seen: dict[str, list[Any]] = {}

    def recording(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        seen["pairs"] = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [0.0] * len(prompts)

    functions = [str(checkpoint), trl_reward(str(checkpoint), name="plain"), trl_reward(str(checkpoint), name="awaited", asynchronous=True), recording]
    trainer, log = grpo(functions, tmp_path)
    theirs = log[f"rewards/{checkpoint.name}/mean"]
    assert log["rewards/plain/mean"] == pytest.approx(theirs, abs=1e-5) and log["rewards/awaited/mean"] == pytest.approx(theirs, abs=1e-5)
    assert log["rewards/plain/std"] == pytest.approx(log[f"rewards/{checkpoint.name}/std"], abs=1e-5) and log["rewards/plain/std"] > 1e-3
    assert theirs == pytest.approx(float(open_scorer(str(checkpoint)).scorer.score(seen["pairs"]).mean()), abs=1e-5)
    assert log["plain/unscored"] == 0 and trainer.state.global_step == 1


def test_grpo_logs_each_part_of_a_shaped_reward(checkpoint: Path, tmp_path: Path) -> None:
    shaped = Shaped({"model": Part(open_scorer(str(checkpoint)).scorer, clip=(-1, 1)), "length": Part(length_penalty(0, 20), weight=0.5)})
    _, log = grpo(trl_reward(shaped), tmp_path)
    assert log["reward"] == pytest.approx(log["palate/model"] + log["palate/length"], abs=1e-5)
    assert -1 <= log["palate/model"] <= 1 and -0.5 <= log["palate/length"] < 0 and "palate/model_raw" in log


class Longer:
    """Prefers the longer text; ties are undecided."""

    def __init__(self) -> None:
        self.asked: list[Matchup] = []

    def compare(self, matchups: Sequence[Matchup]) -> list[Verdict]:
        self.asked += matchups
        sizes = [(len(text_of(m.a)), len(text_of(m.b))) for m in matchups]
        return [Verdict("tie" if a == b else "a" if a > b else "b") for a, b in sizes]


def test_grpo_steps_on_a_judge(tmp_path: Path) -> None:
    """Four completions of each prompt, all pairs in both orders; win rates of a group have mean 1/2, and the policy moves."""
    judge = Longer()
    rewards = [judge_reward(judge, by="win_rate"), judge_reward(judge, reference="answer", name="against")]
    before = torch.cat([p.detach().flatten() for p in policy().parameters()])
    trainer, log = grpo(rewards, tmp_path, learning_rate=1e-2)
    assert log["rewards/judge/mean"] == pytest.approx(0.5, abs=1e-6) and 0 <= log["rewards/against/mean"] <= 1
    assert {m.prompt[0]["content"] for m in judge.asked} <= {prompt[0]["content"] for prompt in PROMPTS}
    assert log["judge/failed"] == 0 and 0 < log["judge/decided"] <= 1
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert not torch.equal(before, after) and np.isfinite(log["loss"])


def test_online_dpo_steps_on_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL 1.16's Online DPO knows no judges, but plain reward functions: the judge's choice of each pair is the one that it trains on."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    judge = Longer()
    given: list[tuple[list[Any], list[float | None]]] = []
    reward = judge_reward(judge, by="win_rate", asynchronous=False)

    def remembered(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        given.append((list(completions), reward(prompts, completions, **columns)))
        return given[-1][1]

    trainer = OnlineDPOTrainer(
        model=policy(),
        reward_funcs=remembered,
        args=OnlineDPOConfig(output_dir=str(tmp_path), max_new_tokens=8, max_length=64, temperature=1.0, **COMMON),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=chatml_tokenizer(),
    )
    trainer.train()
    log = next(log for log in trainer.state.log_history if "objective/scores_margin" in log)
    completions, rewards = given[0]
    assert len(completions) == 8 and len(judge.asked) > 0
    lengths = [len(text_of(tuple(completion))) for completion in completions]
    decided = [(one, one + 4) for one in range(4) if lengths[one] != lengths[one + 4]]  # TRL puts the second completions after all first ones
    assert decided
    for one, other in decided:
        assert (rewards[one], rewards[other]) == ((1, 0) if lengths[one] > lengths[other] else (0, 1))
    assert log["objective/scores_margin"] >= 0 and trainer.state.global_step == 1
