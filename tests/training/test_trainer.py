"""The trainer's invariants: accumulation, K-wise batches, exact metrics, evaluation, resume, saving, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tests.conftest import chatml_tokenizer, tiny_model
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, HfArgumentParser

from palate.data.loading import load_groups
from palate.errors import ConfigError, DataError, ModelError, StorageError
from palate.models.checkpoints import read_contract
from palate.scoring.local import load_scorer
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer
from palate.types import Comparison, PreferenceGroup

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def make(tmp_path: Path, train: Any, *, model: Any = None, name: str = "out", callbacks: Any = None, eval_dataset: Any = None, **options: Any) -> RewardTrainer:
    extra = {key: options.pop(key) for key in ("peft_config", "compute_metrics") if key in options}
    return RewardTrainer(
        model=model if model is not None else tiny_model("qwen3", seed=1),
        args=RewardConfig(output_dir=str(tmp_path / name), **{**COMMON, **options}),
        train_dataset=train,
        eval_dataset=eval_dataset,
        processing_class=chatml_tokenizer(),
        callbacks=callbacks,
        **extra,
    )


def weights(trainer: RewardTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def k_wise(n: int = 8) -> list[PreferenceGroup]:
    """Groups of 2 to 4 responses with different numbers of decided pairs (ties among them)."""
    scores = ([1, 0], [3, 2, 1], [2, 2, 1], [4, 3, 2, 1])
    return load_groups(
        [
            {"prompt": f"p{i}", "responses": [f"answer {s} of {i} {'x' * s}" + "!" * j for j, s in enumerate(scores[i % 4])], "scores": scores[i % 4]}
            for i in range(n)
        ]
    ).groups


def test_eight_times_one_equals_one_times_eight(tmp_path: Path) -> None:
    """Reduced by the weight of the whole step; with ragged groups the usual mean of means is off by 1e-3."""
    groups = k_wise()
    groups = [PreferenceGroup(g.prompt, g.responses, tuple(c._replace(weight=1.0 + i) for c in g.comparisons)) for i, g in enumerate(groups)]
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2}
    one = make(tmp_path, groups, name="a", per_device_train_batch_size=8, **options)
    eight = make(tmp_path, groups, name="b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    one.train(), eight.train()
    torch.testing.assert_close(weights(one), weights(eight), atol=1e-6, rtol=1e-5)
    for a, b in zip(one.state.log_history[:2], eight.state.log_history[:2], strict=True):
        for name in ("loss", "accuracy", "margin", "mean_reward", "num_tokens", "episode"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_k_wise_rows_train_like_their_explicit_pairs(tmp_path: Path) -> None:
    """One group of K = 4 forwards 4 responses; six pair rows of weight 1/6 forward 12 and give the same step."""
    group = k_wise(4)[3]
    pairs = [PreferenceGroup(group.prompt, (group.responses[c.chosen], group.responses[c.rejected]), (Comparison(0, 1),)) for c in group.comparisons]
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 1, "per_device_train_batch_size": 6}
    together, apart = make(tmp_path, [group], name="a", **options), make(tmp_path, pairs, name="b", **options)
    assert len(together.train_dataset[0]["token_ids"]) == 4
    together.train(), apart.train()
    torch.testing.assert_close(weights(together), weights(apart), atol=1e-6, rtol=1e-5)


def test_training_learns_and_logs_every_name(tmp_path: Path, pairs: list[dict]) -> None:
    trainer = make(tmp_path, Dataset.from_list(pairs), num_train_epochs=8, eval_dataset=Dataset.from_list(pairs), eval_strategy="epoch")
    trainer.train()
    last = next(row for row in reversed(trainer.state.log_history) if "rm/accuracy" in row)
    assert {
        "loss",
        "accuracy",
        "margin",
        "chosen_rewards",
        "rejected_rewards",
        "min_reward",
        "mean_reward",
        "max_reward",
        "num_tokens",
        "episode",
        "epoch",
    } <= set(last)
    assert {"rm/loss", "rm/accuracy", "rm/chosen_rewards", "rm/rejected_rewards", "rm/reward_margin", "rm/lr"} <= set(last)
    evaluated = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert evaluated[-1]["eval_accuracy"] == 1.0 and evaluated[-1]["eval_rm/accuracy"] == 1.0 and "eval_rm/reward_margin" in evaluated[-1]
    assert last["episode"] == 8 * len(pairs)


def test_evaluation_is_exact_over_comparisons(tmp_path: Path) -> None:
    """Batches of different size and groups of different K: the figures do not depend on how they are batched."""
    groups = k_wise(7)
    seen = []
    for size in (1, 3, 7):
        trainer = make(tmp_path, groups, name=f"e{size}", eval_dataset=groups, per_device_eval_batch_size=size)
        seen.append(trainer.evaluate())
    for name in ("eval_loss", "eval_accuracy", "eval_margin", "eval_mean_reward", "eval_comparisons"):
        assert seen[0][name] == pytest.approx(seen[1][name], abs=1e-6) == pytest.approx(seen[2][name], abs=1e-6)


def test_compute_metrics_sees_both_rewards(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list(pairs)
    trainer = make(tmp_path, data, eval_dataset={"all": data}, compute_metrics=lambda p: {"mine": float(np.mean(p.predictions[:, 0] > p.predictions[:, 1]))})
    metrics = trainer.evaluate()
    assert metrics["eval_all_mine"] == pytest.approx(metrics["eval_all_accuracy"])


def test_best_checkpoint_and_early_stopping(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list(pairs)
    trainer = make(
        tmp_path, data, eval_dataset=data, num_train_epochs=6, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="accuracy", greater_is_better=True, save_total_limit=2, callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == 1.0 and trainer.state.epoch < 6.0
    assert load_scorer(trainer.state.best_model_checkpoint).contract is not None, "every checkpoint is a reward model with its contract"


def test_resume_gives_the_uninterrupted_weights(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list(pairs)
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path, data, name="whole", **options)
    whole.train()
    resumed = make(tmp_path, data, name="whole", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    torch.testing.assert_close(weights(whole), weights(resumed))


def test_saved_checkpoint_gives_the_same_scores_everywhere(tmp_path: Path, pairs: list[dict]) -> None:
    trainer = make(tmp_path, Dataset.from_list(pairs), num_train_epochs=2)
    trainer.train()
    trainer.save_model()
    scorer = load_scorer(tmp_path / "out")
    mine = scorer.score([(pairs[0]["prompt"], pairs[0]["chosen"])])
    ids = scorer.encoder.encode([__import__("palate").Exchange(pairs[0]["prompt"], pairs[0]["chosen"])])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert plain(torch.tensor(ids)).logits.item() == pytest.approx(float(mine[0]), abs=1e-5)
    contract = read_contract(tmp_path / "out")
    assert contract.golden and contract.pooling == "last" and contract.length_policy == "drop"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"] and config["problem_type"] == "regression" and config["id2label"] == {"0": "reward"}


def test_adapters_train_and_save_the_head(tmp_path: Path, pairs: list[dict], base_models: dict[str, Path]) -> None:
    """LoraConfig() alone would freeze a random head and lose it at saving."""
    from peft import LoraConfig

    trainer = make(tmp_path, Dataset.from_list(pairs), model=str(base_models["qwen3"]), peft_config=LoraConfig(target_modules="all-linear"), num_train_epochs=3)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad and "score" in n}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert before and all(not torch.equal(before[n], after[n]) for n in before)
    trainer.save_model()
    expected = trainer.model.eval()(**{k: torch.tensor([[5, 6, 7]]) for k in ("input_ids",)}, attention_mask=torch.ones(1, 3, dtype=torch.long)).logits
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1).eval()
    torch.testing.assert_close(again(torch.tensor([[5, 6, 7]])).logits, expected, atol=1e-5, rtol=1e-5)
    scorer = load_scorer(tmp_path / "out")
    assert scorer.score_ids([[5, 6, 7]])[0] == pytest.approx(expected.item(), abs=1e-5)
    assert scorer.contract is not None and scorer.contract.architecture == "Qwen3ForSequenceClassification" and scorer.contract.golden


def test_adapters_save_a_pooler_that_pretraining_did_not_have(tmp_path: Path, pairs: list[dict]) -> None:
    """BERT without its pooler: a fresh one is random; saved with the head, it scores the same after reloading."""
    from peft import LoraConfig
    from tests.conftest import bert_tokenizer
    from transformers import BertModel

    base = BertModel(tiny_model("bert").config, add_pooling_layer=False)
    base.save_pretrained(tmp_path / "base")
    bert_tokenizer().save_pretrained(tmp_path / "base")
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=2, **COMMON)
    trainer = RewardTrainer(str(tmp_path / "base"), args, train_dataset=Dataset.from_list(pairs), peft_config=LoraConfig(target_modules=["query"]))
    trainer.train()
    trainer.save_model()
    ids = [[5, 6, 7]]
    expected = trainer.model.eval()(input_ids=torch.tensor(ids), attention_mask=torch.ones(1, 3, dtype=torch.long)).logits.item()
    assert load_scorer(tmp_path / "out").score_ids(ids)[0] == pytest.approx(expected, abs=1e-5)


def test_a_peft_model_of_the_users_own(tmp_path: Path, pairs: list[dict]) -> None:
    from peft import LoraConfig, get_peft_model

    data = Dataset.from_list(pairs)
    make(tmp_path, data, model=get_peft_model(tiny_model("qwen3"), LoraConfig(task_type="SEQ_CLS")), max_steps=1).train()
    with pytest.raises(ModelError, match="would not be trained"):
        make(tmp_path, data, model=get_peft_model(tiny_model("qwen3"), LoraConfig(target_modules=["q_proj"])))


def test_concatenated_encoded_sets_are_evaluated_whole(tmp_path: Path, pairs: list[dict]) -> None:
    from datasets import concatenate_datasets

    one = make(tmp_path, Dataset.from_list(pairs)).train_dataset
    trainer = make(tmp_path, one, eval_dataset=concatenate_datasets([one, one]))
    assert trainer.evaluate()["eval_comparisons"] == 24


def test_predict_takes_raw_rows(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list(pairs)
    output = make(tmp_path, data).predict(data)
    assert output.predictions.shape == (12, 2) and "test_accuracy" in output.metrics


def test_a_stream_with_a_bad_row_stops(tmp_path: Path, pairs: list[dict]) -> None:
    bad = [*pairs, {"prompt": "p", "chosen": "same", "rejected": "same"}]
    with pytest.raises(DataError, match="identical sides"):
        make(tmp_path, IterableDataset.from_generator(lambda: iter(bad)), max_steps=20).train()


def test_streams_train_with_max_steps(tmp_path: Path, pairs: list[dict]) -> None:
    trainer = make(tmp_path, IterableDataset.from_generator(lambda: iter(pairs)), max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.reports["train"].kept["train"] >= 12


def test_tokenizing_in_several_processes_gives_the_same_data(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list([*pairs, {"prompt": "p", "chosen": "fox " * 300, "rejected": "dog"}])
    one, two = (make(tmp_path, data, name=f"n{n}", dataset_num_proc=n, max_length=200) for n in (1, 2))
    assert one.train_dataset[:] == two.train_dataset[:]
    for trainer in (one, two):
        assert trainer.reports["train"].as_dict()["train"] == {"groups": 13, "kept": 12, "cut": 0, "dropped": {"longer than 200 tokens": 1}}


def test_bad_rows_of_a_dataset_are_named_or_counted(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list([*pairs, {"prompt": "p", "chosen": "same", "rejected": "same"}])
    with pytest.raises(DataError, match=r"1 of 13 rows cannot be used\n  train row 13: identical sides"):
        make(tmp_path, data)
    kept = make(tmp_path, data, on_bad_row="drop")
    assert len(kept.train_dataset) == 12 and kept.reports["train"].as_dict()["train"]["dropped"] == {"identical sides": 1}


def test_everything_too_long_is_an_error_with_the_account(tmp_path: Path, pairs: list[dict]) -> None:
    with pytest.raises(DataError, match=r"nothing is left.*\n.*12 longer than 8 tokens"):
        make(tmp_path, Dataset.from_list(pairs), max_length=8)


def test_learning_rate_by_size(tmp_path: Path, pairs: list[dict]) -> None:
    assert make(tmp_path, Dataset.from_list(pairs), learning_rate=None).args.learning_rate == 5e-5
    config = RewardConfig(output_dir="x")
    assert [config.resolved_learning_rate(n, lora=False) for n in (int(6e8), int(4e9), int(8e9))] == [1e-5, 5e-6, 3e-6]
    assert config.resolved_learning_rate(int(8e9), lora=True) == 1e-4


def test_config_turns_into_flags() -> None:
    args = HfArgumentParser(RewardConfig).parse_args_into_dataclasses(
        ["--output_dir", "x", "--center_rewards_coefficient", "0.01", "--max_length", "77", "--length_policy", "error"]
    )[0]
    assert (args.center_rewards_coefficient, args.max_length, args.length_policy, args.num_train_epochs) == (0.01, 77, "error", 1.0)
    with pytest.raises(ConfigError, match="ties is 'half'"):
        RewardConfig(output_dir="x", ties="half")


def test_a_model_with_two_labels_is_refused(tmp_path: Path, pairs: list[dict]) -> None:
    model = tiny_model("qwen3")
    model.config.num_labels = 2
    with pytest.raises(ModelError, match="num_labels=2"):
        make(tmp_path, Dataset.from_list(pairs), model=model)


def test_samples_are_printed_when_asked(tmp_path: Path, pairs: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.from_list(pairs)
    make(tmp_path, data, eval_dataset=data).evaluate()
    assert "Evaluation samples" not in capsys.readouterr().out
    data = Dataset.from_list([{**row, "prompt": f"[/INST] {row['prompt']} [b]"} for row in pairs])
    make(tmp_path, data, eval_dataset=data, num_print_samples=2).evaluate()
    out = capsys.readouterr().out
    assert "Evaluation samples" in out and "[/INST]" in out, "brackets in texts are text, not markup"


def test_activation_offloading_changes_nothing(tmp_path: Path, pairs: list[dict]) -> None:
    data = Dataset.from_list(pairs)
    runs = [make(tmp_path, data, name=str(flag), activation_offloading=flag, max_steps=2) for flag in (False, True)]
    for trainer in runs:
        trainer.train()
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]))


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, Dataset.from_list(pairs), save_strategy="steps", save_steps=2, max_steps=3)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(StorageError, match=r"checkpoint-2: .*No space left.*removed"):
        trainer.train()
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_a_loss_that_is_not_a_number_ends_with_a_sentence(tmp_path: Path, pairs: list[dict]) -> None:
    trainer = make(tmp_path, Dataset.from_list(pairs), max_steps=2)
    with torch.no_grad():
        trainer.model.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="the loss is nan at step 1"):
        trainer.train()
