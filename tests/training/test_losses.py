"""Every kind of supervision through the trainer: packed equals padded, 8 x 1 equals 1 x 8, and what is saved scores as it was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.collation import MODEL_KEYS
from palate.data.divergence import divergence_span
from palate.data.loading import load_groups
from palate.errors import ConfigError, DataError, ModelError
from palate.models.checkpoints import read_contract
from palate.scoring.local import load_scorer
from palate.scoring.sources import open_scorer
from palate.training.config import RewardConfig
from palate.training.supervision import plan
from palate.training.trainer import RewardTrainer

WORDS = ["the", "sea", "wind", "night", "sky", "harbour", "fox", "river", "brown", "lazy"]


def text(i: int, n: int) -> str:
    return " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(1 + n))


def pairs() -> list[dict[str, Any]]:
    """Two responses; margins, strengths, soft labels' neighbours and ties come in the rows that need them."""
    return [{"prompt": f"tell me about {text(i, i % 5)}", "chosen": text(i, 3 + i % 4), "rejected": text(i + 3, 1 + i % 6)} for i in range(16)]


def margins() -> list[dict[str, Any]]:
    return [{**row, "margin": 0.5 + i % 3} for i, row in enumerate(pairs())]


def ties() -> list[dict[str, Any]]:
    return [{"prompt": r["prompt"], "response_1": r["chosen"], "response_2": r["rejected"], "label": (1, 2, 0)[i % 3]} for i, r in enumerate(pairs())]


def soft() -> list[dict[str, Any]]:
    return [{"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"], "prob_b": (i % 5) / 5 + 0.1} for i, r in enumerate(pairs())]


def rankings() -> list[dict[str, Any]]:
    """Two to five responses, with ties and responses that are not ranked."""
    ranks = ([1, 2], [2, 1, 3], [1, 2, 2, None], [3, 1, 2, 2, 3])
    return [
        {"prompt": f"say {text(i, i % 4)}", "responses": [text(i + 2 * j, 2 + (i + j) % 5) for j in range(len(ranks[i % 4]))], "ranks": ranks[i % 4]}
        for i in range(16)
    ]


def ratings() -> list[dict[str, Any]]:
    """Two attributes, one of them missing here and there."""
    rows = []
    for i in range(16):
        k = 1 + i % 3
        scores = [{"helpfulness": float((i + j) % 5), "verbosity": float((2 * i + j) % 5)} for j in range(k)]
        rows.append({"prompt": f"rate {text(i, i % 4)}", "responses": [text(i + j, 2 + (i + j) % 4) for j in range(k)], "scores": scores})
    for row in rows[::4]:
        for score in row["scores"]:
            score.pop("verbosity")
    return rows


def outcomes() -> list[dict[str, Any]]:
    return [{"prompt": f"solve {text(i, i % 4)}", "completion": text(i + 1, 2 + i % 5), "label": i % 3 == 0} for i in range(16)]


def stepwise(classes: int = 2) -> list[dict[str, Any]]:
    labels = ([True, False], [True, True, False]) if classes == 2 else ([1, -1], [1, 0, None])
    return [{"prompt": f"prove {text(i, i % 4)}", "completions": [text(i + j, 2 + j) for j in range(2 + i % 2)], "labels": labels[i % 2]} for i in range(16)]


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bradley_terry, margins": (margins, {"type": "bradley_terry", "margins": {"scale": 0.5, "clip": 1.0}}),
    "scaled_bradley_terry": (margins, {"type": "scaled_bradley_terry"}),
    "rDPO": (pairs, {"label_smoothing": 0.1, "unbiased": True}),
    "soft labels": (soft, {"label_smoothing": 0.1}),
    "hinge": (margins, {"type": "hinge"}),
    "squared": (margins, {"type": "squared"}),
    "focal with barrier": (pairs, {"type": "focal", "barrier": 0.02}),
    "rao_kupper": (ties, {"type": "rao_kupper"}),
    "davidson, fixed": (ties, {"type": "davidson", "threshold": 0.7}),
    "all pairs": (rankings, {"type": "bradley_terry", "centering": 0.01}),
    "plackett_luce": (rankings, {"type": "plackett_luce"}),
    "listwise_softmax": (rankings, {"type": "listwise_softmax", "temperature": 2.0}),
    "regression, two attributes": (ratings, {"type": "regression", "attributes": ["helpfulness", "verbosity"]}),
    "gaussian": (ratings, {"type": "gaussian", "attributes": ["helpfulness"]}),
    "quantile": (ratings, {"type": "quantile", "attributes": "helpfulness", "quantiles": [0.1, 0.5, 0.9]}),
    "ordinal": (ratings, {"type": "ordinal", "rating": "helpfulness", "levels": [0, 1, 2, 3, 4]}),
    "outcome": (outcomes, {"type": "outcome"}),
    "token_outcome": (outcomes, {"type": "token_outcome"}),
    "token_divergence": (pairs, {"type": "token_divergence"}),
    "steps": (stepwise, {"type": "steps"}),
    "three classes of steps": (lambda: stepwise(3), {"type": "steps", "classes": 3, "last_step_only": False}),
    "mixed": (ratings, {"terms": [{"type": "bradley_terry"}, {"type": "regression", "attributes": ["helpfulness", "verbosity"], "weight": 0.5}]}),
    "text, sft": (pairs, {"text": "sft"}),
    "text, dpo": (pairs, {"text": {"variant": "dpo", "weight": 0.2}}),
    "text, dpo_free": (pairs, {"text": {"variant": "dpo_free", "weight": 0.2}}),
    "zero_sum": (pairs, {"zero_sum": 0.1}),
    "length_decorrelation": (pairs, {"length_decorrelation": 0.5}),
    "cross_prompt": (pairs, {"cross_prompt": {"weight": 0.5}}),
    "cross_prompt, inside": (pairs, {"cross_prompt": {"weight": 0.5, "form": "inside"}}),
    "members": (pairs, {"members": 3}),
    "members, bootstrap": (pairs, {"members": {"count": 2, "bootstrap": True}, "centering": 0.1, "text": "sft"}),
    "members of rankings": (rankings, {"type": "plackett_luce", "members": {"count": 2, "bootstrap": True}}),
    "members of outcomes": (outcomes, {"type": "outcome", "members": {"count": 2, "bootstrap": True, "seed": 4}}),
    "members of tokens": (pairs, {"type": "token_divergence", "members": 2}),
}
"""Name -> (rows, loss section)."""

TIES = {"rao_kupper", "davidson, fixed"}


@pytest.fixture(autouse=True)
def embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts embedded by their letters: what the trainer does with embeddings is tested here, sentence-transformers in test_embeddings.py."""

    def letters(prompts: list[str], encoder: str | None = None) -> np.ndarray:
        counts = np.array([[prompt.count(letter) for letter in "abcdefgh"] for prompt in prompts], dtype=np.float32) + 0.1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    monkeypatch.setattr("palate.training.embeddings.embed_prompts", letters)


def make(folder: Path, name: str, *, train: bool = True, model: Any = None, data: Any = None, loss: Any = None, **options: Any) -> RewardTrainer:
    rows, section = CASES.get(name, (None, None))
    section = loss or section
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "loss": section,
        "ties": "soft" if name in TIES else "drop",
        **options,
    }
    outputs = plan(RewardConfig(output_dir=str(folder), loss=section, use_cpu=True, report_to="none").loss_settings()).readout.outputs
    model = model if model is not None else tiny_model("qwen3", seed=1, num_labels=len(outputs), tie_word_embeddings=True)
    groups = load_groups(data if data is not None else rows(), margins=not isinstance(section, dict) or section.get("margins") != "none").groups
    trainer = RewardTrainer(model=model, args=RewardConfig(**settings), train_dataset=groups, eval_dataset=groups, processing_class=TOKENIZERS["qwen3"]())
    if train:
        trainer.train()
    return trainer


def parameters(trainer: RewardTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def losses(trainer: RewardTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_run(one: RewardTrainer, other: RewardTrainer) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(parameters(one), parameters(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_packed_equals_padded_and_one_by_one_equals_at_once(tmp_path: Path, name: str) -> None:
    """Four steps: shared prefixes against padding, against single groups with accumulation, against parts of a small token budget."""
    reference = make(tmp_path / "padded", name, packing="padded", token_budget=100_000)
    assert all(math.isfinite(value) for value in losses(reference)) and losses(reference)[0] != losses(reference)[-1]
    before = make(tmp_path / "start", name, train=False)
    assert not torch.equal(parameters(before), parameters(reference))
    shared = make(tmp_path / "shared", name)
    assert shared.engine.packing == "shared"
    assert_same_run(shared, reference)
    assert_same_run(make(tmp_path / "accumulated", name, per_device_train_batch_size=1, gradient_accumulation_steps=8), reference)
    assert_same_run(make(tmp_path / "parts", name, token_budget=40), reference)


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_scores_the_same(tmp_path: Path, name: str) -> None:
    """The head has the outputs of the loss, by name, and the loaded scorer reads the reward as training's evaluation did."""
    trainer = make(tmp_path / "run", name, max_steps=2)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    assert scorer.readout == trainer.plan.readout and scorer.readout.outputs == trainer.objective.outputs
    groups = load_groups(CASES[name][0]()).groups
    exchanges = [exchange for group in groups for exchange in group.exchanges()]
    rewards = scorer.score(exchanges)
    assert rewards.shape == (len(exchanges),) and np.isfinite(rewards).all()
    if scorer.readout.aggregate is None:
        assert scorer.outputs(exchanges).shape == (len(exchanges), len(scorer.readout.outputs))
        assert metrics["eval_min_reward"] == pytest.approx(rewards.min(), rel=1e-4, abs=1e-5)
        assert metrics["eval_max_reward"] == pytest.approx(rewards.max(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["rao_kupper", "ordinal"])
def test_learned_thresholds_are_trained_saved_and_resumed(tmp_path: Path, name: str) -> None:
    whole = make(tmp_path / "whole", name)
    parameter = "tie_threshold" if name == "rao_kupper" else "ordinal_thresholds"
    start = torch.tensor(whole.objective.parameters[parameter])
    assert not torch.allclose(whole._loss_parameters()[parameter], start)
    half = make(tmp_path / "half", name, train=False, save_strategy="steps", save_steps=2)
    half.args.max_steps = 4
    half.train()
    folder = tmp_path / "half" / "checkpoint-2"
    assert not any("loss_parameters" in key for key in safetensors_keys(folder))
    assert not np.allclose(read_contract(folder).loss_parameters[parameter], start.tolist())
    resumed = make(tmp_path / "half", name, train=False)
    resumed.train(resume_from_checkpoint=str(folder))
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["members, bootstrap", "members of rankings"])
def test_members_go_on_from_a_checkpoint_and_load_with_their_uncertainty(tmp_path: Path, name: str) -> None:
    """Each member's resample is the same after the interruption, and its head in the checkpoint is its own."""
    whole = make(tmp_path / "whole", name)
    make(tmp_path / "half", name, save_strategy="steps", save_steps=2)
    resumed = make(tmp_path / "half", name, train=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=1e-6, atol=1e-7)
    assert losses(resumed)[-2:] == pytest.approx(losses(whole)[-2:], rel=1e-6)
    resumed.save_model(str(tmp_path / "saved"))
    groups = load_groups(CASES[name][0]()).groups
    exchanges = [exchange for group in groups for exchange in group.exchanges()]
    with torch.inference_mode():
        batch = resumed.pad.pad(resumed.encoder.encode(exchanges))
        outputs = whole.model.eval()(**batch).logits.numpy()
    rewards, uncertainty = open_scorer(str(tmp_path / "saved"), device="cpu").scorer.score(exchanges, return_uncertainty=True)  # type: ignore[call-arg]
    np.testing.assert_allclose(rewards, outputs.mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(uncertainty, outputs.std(axis=1), rtol=1e-3, atol=1e-5)
    assert uncertainty.max() > 0.01


def safetensors_keys(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        return list(file.keys())


def test_the_quality_head_is_the_reward(tmp_path: Path) -> None:
    """ODIN: two named heads are saved; scoring reads quality alone."""
    trainer = make(tmp_path / "run", "length_decorrelation")
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    exchanges = [e for g in load_groups(pairs()).groups for e in g.exchanges()]
    outputs = scorer.outputs(exchanges)
    assert scorer.readout.outputs == ("quality", "length")
    np.testing.assert_array_equal(scorer.score(exchanges), outputs[:, 0])
    assert not np.allclose(outputs[:, 0], outputs[:, 1])


def test_length_decorrelation_moves_length_into_its_head(tmp_path: Path) -> None:
    """A rating that is length: with a strong weight the correlation of quality and length falls, that of the length head rises."""
    rows = [{"prompt": f"q {i}", "chosen": text(i, 9), "rejected": text(i, 2)} for i in range(16)]
    loss = {"length_decorrelation": {"weight": 3.0, "orthogonal": 0.1}}
    trainer = make(tmp_path, "length_decorrelation", data=rows, loss=loss, max_steps=60, learning_rate=0.3, per_device_train_batch_size=16)
    values = [entry["length_decorrelation"] for entry in trainer.state.log_history if "length_decorrelation" in entry]
    assert values[-1] < values[0] - 0.3


def test_text_is_not_saved(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", "text, dpo")
    trainer.save_model(str(tmp_path / "saved"))
    assert not any("text_head" in key for key in safetensors_keys(tmp_path / "saved"))


def test_step_rewards(tmp_path: Path) -> None:
    """P(good) of each step, and one reward by each way of gathering."""
    trainer = make(tmp_path / "run", "steps")
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    exchanges = [("prove it", "one step\nanother step\na last one"), ("prove it", "only this")]
    first, second = scorer.score_steps(exchanges)
    assert first.shape == (3,) and second.shape == (1,) and ((first > 0) & (first < 1)).all()
    assert scorer.score(exchanges)[0] == first.min()
    for how, value in {"product": first.prod(), "mean": first.mean(), "last": first[-1]}.items():
        scorer.readout = scorer.readout.__class__(scorer.readout.outputs, scorer.readout.weights, how)
        assert scorer.score(exchanges)[0] == pytest.approx(value, rel=1e-6)


def test_a_step_is_judged_without_what_follows(tmp_path: Path) -> None:
    """The score of a step does not depend on the steps after it."""
    trainer = make(tmp_path / "run", "steps", max_steps=1)
    trainer.save_model(str(tmp_path / "saved"))
    scorer = load_scorer(tmp_path / "saved")
    long, other = scorer.score_steps([("p", "the fox\nthe sea\nthe wind"), ("p", "the fox\nthe sea\nnight river")])
    np.testing.assert_allclose(long[:2], other[:2], rtol=1e-5)


def test_off_topic_negatives(tmp_path: Path) -> None:
    trainer = make(tmp_path, "bradley_terry, margins", data=pairs(), loss={"type": "bradley_terry"}, off_topic_negatives=2, max_steps=1)
    row = trainer.train_dataset[0]
    assert len(row["token_ids"]) == 4 and row["chosen"] == [0, 0, 0] and row["rejected"] == [1, 2, 3] and row["weight"] == pytest.approx([1 / 3] * 3)
    assert len(trainer.eval_dataset[0]["token_ids"]) == 2  # evaluation stays as it is


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no ranking": (outcomes, {"type": "plackett_luce"}, "without a ranking"),
    "margins ignored": (margins, {"type": "plackett_luce"}, "has a margin, which the loss ignores"),
    "margins asked of a loss without": (margins, {"type": "rao_kupper", "margins": "column"}, "read by no term"),
    "scaled without margins": (pairs, {"type": "scaled_bradley_terry"}, "without a margin to scale by"),
    "strength that is not there": (pairs, {"margins": "llama2_small"}, "no comparison of the train data has a margin"),
    "an attribute that is not there": (ratings, {"type": "regression", "attributes": ["honesty"]}, "rating of honesty"),
    "no ties": (pairs, {"type": "rao_kupper"}, "none among 16 comparisons"),
    "no steps": (outcomes, {"type": "steps"}, "without labelled steps"),
    "an outcome that is a score": (ratings, {"type": "outcome", "rating": "helpfulness"}, "between 0 and 1"),
    "a level that is not named": (ratings, {"type": "ordinal", "rating": "helpfulness", "levels": [1, 2, 3]}, "levels"),
    "a third class": (lambda: stepwise(3), {"type": "steps"}, "classes: 3"),
    "weights of unknown attributes": (ratings, {"type": "regression", "attributes": ["helpfulness", "verbosity"], "reward_weights": {"humour": 1}}, "humour"),
    "weights of no attributes": (pairs, {"reward_weights": {"humour": 1}}, "weigh the attributes"),
    "an attribute twice": (ratings, {"type": "regression", "attributes": ["helpfulness", "helpfulness"]}, "stands twice"),
    "an attribute called reward": (ratings, {"type": "regression", "attributes": ["reward", "verbosity"]}, "taken for the reward"),
    "two rankings": (rankings, {"terms": [{"type": "plackett_luce"}, {"type": "listwise_softmax"}]}, "one ranking in two ways"),
    "length beside outcomes": (outcomes, {"type": "outcome", "length_decorrelation": 1}, "adds a length head"),
    "sides that begin apart": (
        lambda: [{"prompt": "", "chosen": "fox", "rejected": "sea"}] * 8,
        {"type": "token_divergence"},
        "first token of both sides differs",
    ),
    "two tokenwise": (pairs, {"terms": [{"type": "token_divergence"}, {"type": "token_outcome"}]}, "different tokens"),
    "options of another loss": (rankings, {"type": "plackett_luce", "label_smoothing": 0.1}, "unknown key"),
    "steps and centering": (stepwise, {"type": "steps", "centering": 0.1}, "stand alone"),
    "members of steps": (stepwise, {"type": "steps", "members": 2}, "members are heads of one reward each; steps has several outputs"),
    "members of attributes": (
        ratings,
        {"type": "regression", "attributes": ["helpfulness", "verbosity"], "members": 2},
        "has the outputs helpfulness, verbosity",
    ),
    "one member": (pairs, {"members": 1}, "greater than or equal to 2"),
    "centering without sides": (outcomes, {"type": "outcome", "centering": 0.1}, "chosen and rejected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_combinations_end_at_setup(tmp_path: Path, name: str) -> None:
    rows, loss, words = WRONG[name]
    with pytest.raises((ConfigError, DataError), match=words):
        make(tmp_path, name, data=rows(), loss=loss, train=False)


def test_token_losses_need_a_decoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a decoder"):
        RewardTrainer(
            model=tiny_model("bert"),
            args=RewardConfig(output_dir=str(tmp_path), loss={"type": "token_divergence"}, use_cpu=True, report_to="none"),
            train_dataset=load_groups(pairs()).groups,
            processing_class=TOKENIZERS["bert"](),
        )


def test_a_head_with_other_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="num_labels=1; expected one for each of helpfulness, verbosity"):
        make(tmp_path, "regression, two attributes", model=tiny_model("qwen3"), train=False)


def test_left_padding_is_refused_by_token_losses(tmp_path: Path) -> None:
    trainer = make(tmp_path, "token_divergence", train=False, packing="padded")
    batch = next(iter(trainer.get_train_dataloader()))["parts"][0]
    turned = {**batch, "attention_mask": batch["attention_mask"].flip(1), "input_ids": batch["input_ids"].flip(1)}
    with pytest.raises(DataError, match="padded on the left"):
        trainer.compute_loss(trainer.model, turned)


def test_padding_included_is_deepspeed_chat(tmp_path: Path) -> None:
    """The trainer's loss on a padded batch, against DeepSpeed-Chat's own procedure on the values of every token, padding too."""
    trainer = make(tmp_path, "token_divergence", loss={"type": "token_divergence", "padding": "include"}, train=False)
    assert trainer.engine.packing == "padded"
    (part,) = next(iter(trainer.get_train_dataloader()))["parts"]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, part)
        length = part["input_ids"].shape[1]
        rows, columns = torch.meshgrid(torch.arange(len(part["input_ids"])), torch.arange(length), indexing="ij")
        everything = {"input_ids": part["input_ids"], "attention_mask": part["attention_mask"], "read_row": rows.flatten(), "read_position": columns.flatten()}
        values = trainer.model(**everything).logits[:, 0].view(-1, length)
    ids = part["input_ids"].tolist()
    expected = []
    for a, b in zip(part["chosen"].tolist(), part["rejected"].tolist(), strict=True):
        span = divergence_span(ids[a], ids[b], int(trainer.processing_class.pad_token_id))
        compared = slice(span.start, span.stop)
        expected.append(torch.nn.functional.softplus(values[b, compared] - values[a, compared]).mean())
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_dpo_starts_at_log_2(tmp_path: Path) -> None:
    """Before the first step the model is its own reference, so the text term is log 2."""
    trainer = make(tmp_path, "text, dpo", max_steps=1)
    assert trainer.state.log_history[0]["text"] == pytest.approx(math.log(2), rel=1e-5)


def test_text_log_probabilities_are_those_of_the_language_model(tmp_path: Path) -> None:
    """Sum over the response's tokens, in packed rows, against logits of the whole sequence through the embedding."""
    trainer = make(tmp_path, "text, sft", train=False)
    (part,) = next(iter(trainer.get_train_dataloader()))["parts"]
    outputs = trainer.model(**{key: value for key, value in part.items() if key in MODEL_KEYS})
    text = trainer.objective.read(outputs.logits, part, outputs.text).text
    rows = {row["group"]: row for row in trainer.train_dataset}
    groups = part["response_group"].tolist()
    for n, group in enumerate(groups):
        k = groups[:n].count(group)
        ids, start = torch.tensor(rows[group]["token_ids"][k]), rows[group]["start"][k]
        hidden = trainer.model.model(ids[None]).last_hidden_state[0]
        logp = torch.log_softmax(hidden @ trainer.model.model.embed_tokens.weight.T, 1)
        expected = logp[start - 1 : -1].gather(1, ids[start:, None]).sum()
        torch.testing.assert_close(text[n], expected, rtol=1e-5, atol=1e-4)


def test_off_topic_negatives_need_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which outcome does not compare"):
        make(tmp_path, "outcome", off_topic_negatives=1, train=False)


def test_off_topic_negatives_go_with_margins_and_never_cost_a_group(tmp_path: Path) -> None:
    """Negatives that are too long, or are the group's own text, are left out and counted; weights of a group add up to what they were."""
    rows = [{**row, "weight": 0.5} for row in pairs()] + [{"prompt": "long", "chosen": text(0, 60), "rejected": "no"}]
    trainer = make(tmp_path, "x", data=rows, loss={"type": "bradley_terry"}, off_topic_negatives=2, max_length=60, train=False)
    report = trainer.reports["train"]
    assert report.kept["list"] == 16 and report.facts["off-topic negatives"] > 0
    assert report.dropped["list"] == {"longer than 60 tokens": 1}
    assert all(sum(row["weight"]) == pytest.approx(0.5) for row in trainer.train_dataset)


def test_mixed_terms_where_one_has_nothing(tmp_path: Path) -> None:
    """ODIN's overlap is a share of the step, not of a term: a first term without items left it at 0/0."""
    rows = [{"prompt": f"p {i}", "response_1": text(i, 3), "response_2": text(i + 1, 5), "label": 1} for i in range(8)]
    loss = {"terms": [{"type": "rao_kupper", "threshold": 2.0}, {"type": "bradley_terry"}], "length_decorrelation": 0.5}
    rows[0]["label"] = 0
    trainer = make(tmp_path, "rao_kupper", data=rows, loss=loss, per_device_train_batch_size=1, max_steps=4)
    assert torch.isfinite(parameters(trainer)).all() and "head_overlap" in trainer.state.log_history[0]


def test_dpo_refuses_data_that_come_after_training(tmp_path: Path) -> None:
    trainer = make(tmp_path, "text, dpo", max_steps=1)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    with pytest.raises(ConfigError, match="the model before training, which is gone"):
        trainer.evaluate(load_groups(pairs()).groups)


@pytest.mark.parametrize("levels", [[0.1, 0.2, 0.3], [1, 2.5, 4]])
def test_levels_between_whole_numbers(tmp_path: Path, levels: list[float]) -> None:
    rows = [{"prompt": f"p {i}", "response": text(i, 3), "score": levels[i % 3]} for i in range(9)]
    trainer = make(tmp_path, "x", data=rows, loss={"type": "ordinal", "levels": levels}, max_steps=1)
    assert math.isfinite(losses(trainer)[0])


@pytest.mark.parametrize(
    ("rows", "loss", "words"),
    [
        (ratings, {"type": "ordinal", "rating": "helpfulness", "levels": [0, 1, 2]}, "name every value"),
        (ratings, {"type": "outcome", "rating": "helpfulness"}, "between 0 and 1"),
        (lambda: stepwise(3), {"type": "steps"}, "classes: 3"),
        (margins, {"type": "plackett_luce"}, "has a margin, which the loss ignores"),
    ],
)
def test_streams_are_checked_row_by_row(tmp_path: Path, rows: Any, loss: dict[str, Any], words: str) -> None:
    from datasets import IterableDataset

    outputs = plan(RewardConfig(output_dir=str(tmp_path), loss=loss, use_cpu=True, report_to="none").loss_settings()).readout.outputs
    trainer = RewardTrainer(
        model=tiny_model("qwen3", num_labels=len(outputs)),
        args=RewardConfig(output_dir=str(tmp_path), loss=loss, max_steps=4, use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=IterableDataset.from_generator(lambda: iter(rows())),
        processing_class=TOKENIZERS["qwen3"](),
    )
    with pytest.raises(DataError, match=words):
        trainer.train()


def test_encoded_data_of_other_attributes_are_refused(tmp_path: Path) -> None:
    """Columns carry the attribute's name: data encoded for one are not read as another."""
    trainer = make(tmp_path, "gaussian", train=False)
    with pytest.raises(DataError, match="no column rating verbosity"):
        RewardTrainer(
            model=tiny_model("qwen3"),
            args=RewardConfig(output_dir=str(tmp_path), loss={"type": "regression", "attributes": "verbosity"}, use_cpu=True, report_to="none"),
            train_dataset=trainer.train_dataset,
            processing_class=TOKENIZERS["qwen3"](),
        )


def test_prompts_that_repeat_are_one_prompt_across(tmp_path: Path) -> None:
    """Two rows of one prompt never meet each other's sides."""
    rows = pairs()[:2] + [{**pairs()[0], "chosen": "another fox"}]
    trainer = make(tmp_path, "cross_prompt", data=rows, train=False)
    numbers = trainer.train_dataset["prompt_number"]
    assert numbers[0] == numbers[2] != numbers[1]


def test_step_rewards_while_training_are_those_of_scoring(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", "steps", max_steps=1)
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    exchanges = [exchange for group in load_groups(stepwise()).groups for exchange in group.exchanges()]
    rewards = load_scorer(tmp_path / "saved").score(exchanges)
    assert [metrics[f"eval_{name}_reward"] for name in ("min", "mean", "max")] == pytest.approx([rewards.min(), rewards.mean(), rewards.max()], rel=1e-4)


def test_a_separator_of_ones_own(tmp_path: Path) -> None:
    """Steps are joined in training where a response is cut in scoring; a step that holds the separator is left out and counted."""
    rows = [*stepwise(), {"prompt": "p", "completions": ["one ## two", "three"], "labels": [True, True]}]
    trainer = make(tmp_path / "run", "steps", data=rows, loss={"type": "steps", "separator": " ## "}, max_steps=1)
    (reason,) = trainer.reports["train"].dropped["list"]
    assert "step holds the separator" in reason and " ## " in trainer.processing_class.decode(trainer.train_dataset[0]["token_ids"][0])
    trainer.save_model(str(tmp_path / "saved"))
    (steps,) = load_scorer(tmp_path / "saved").score_steps([("p", "the fox ## the sea")])
    assert len(steps) == 2
