"""One string opens anything that gives rewards, and says who it is: what would give other rewards has another identity."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tests.conftest import DECODER, chatml_tokenizer, llama_tokenizer, tiny_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from palate.data.loading import load_groups
from palate.errors import ConfigError, ModelError
from palate.evaluation.evaluator import evaluate
from palate.scoring.cache import CachedScorer
from palate.scoring.ensemble import Ensemble
from palate.scoring.implicit import load_implicit_scorer
from palate.scoring.input_formats import FormattedScorer
from palate.scoring.local import LocalScorer, load_scorer
from palate.scoring.remote import Answer, RemoteScorer
from palate.scoring.sources import open_scorer
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

ITEMS = [("ask 1", "good 1"), ("ask 1", "bad and long " * 4), ("tell me about the sea", "Sure, here is what you asked for")]
CPU = {"device": "cpu"}


def saved(folder: Path, seed: int, kind: str = "qwen3") -> Path:
    """A reward model of another trainer: weights, config, tokenizer, no contract."""
    model = tiny_model(kind, seed=seed)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    {"qwen3": chatml_tokenizer, "llama": llama_tokenizer}[kind]().save_pretrained(folder)
    return folder


def saved_policy(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**DECODER, vocab_size=len(llama_tokenizer()), initializer_range=0.15)).save_pretrained(folder)
    llama_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of our own, with its contract."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = RewardTrainer(
        model=tiny_model("qwen3", seed=2),
        args=RewardConfig(
            output_dir=str(folder), report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=1e-2, max_steps=4, max_length=64
        ),
        train_dataset=Dataset.from_list([{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]),
        processing_class=chatml_tokenizer(),
    )
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "checkpoint", 0)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("policies")
    return str(saved_policy(root / "policy", 0)), str(saved_policy(root / "reference", 1))


def identity(source: str | Path, **options: Any) -> dict[str, Any]:
    opened = open_scorer(str(source), **{**CPU, **options})
    assert opened.identity is not None
    return json.loads(json.dumps(opened.identity))  # what a key is made of can be written down


# --- what is opened -------------------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint(trained: Path) -> None:
    opened = open_scorer(str(trained), **CPU)
    np.testing.assert_array_equal(opened.scorer.score(ITEMS), load_scorer(trained, **CPU).score(ITEMS))
    assert opened.local is opened.scorer and isinstance(opened.local, LocalScorer)
    assert opened.description["name"] == str(trained) and opened.description["architecture"] == "Qwen3ForSequenceClassification"
    assert opened.description["contract_sha256"] == opened.local.contract.sha256() == identity(trained)["contract"]
    limited = open_scorer(str(trained), max_length=20, packing="padded", token_budget=50, **CPU).local
    assert limited is not None
    assert (limited.encoder.max_length, limited.engine.packing, limited.token_budget) == (20, "padded", 50)


def test_a_checkpoint_through_an_input_format(checkpoint: Path) -> None:
    opened = open_scorer(str(checkpoint), input_format="hash-turns", **CPU)
    assert isinstance(opened.scorer, FormattedScorer) and opened.scorer.scorer is opened.local
    assert opened.description["input_format"] == opened.identity["input_format"] == "hash-turns"
    ids = [chatml_tokenizer()(f"###Human: {prompt} ###Assistant: {response}")["input_ids"] for prompt, response in ITEMS]
    np.testing.assert_allclose(opened.scorer.score(ITEMS), opened.local.score_ids(ids), atol=1e-6)
    assert np.abs(opened.scorer.score(ITEMS) - opened.local.score(ITEMS)).max() > 0.01
    assert "input_format" not in open_scorer(str(checkpoint), **CPU).description


def test_a_policy_and_its_reference(policies: tuple[str, str]) -> None:
    policy, reference = policies
    both, alone = open_scorer(f"dpo:{policy},{reference}", **CPU), open_scorer(f"dpo:{policy}", packing="auto", max_length=None, **CPU)
    np.testing.assert_array_equal(both.scorer.score(ITEMS), load_implicit_scorer(policy, reference, **CPU).score(ITEMS))
    np.testing.assert_array_equal(alone.scorer.score(ITEMS), load_implicit_scorer(policy, length_norm="average", **CPU).score(ITEMS))
    assert both.description == {"name": f"{policy} against {reference}", "architecture": "implicit reward (DPO)"}
    assert alone.description == {"name": policy, "architecture": "implicit reward (mean log-probability)"}
    assert both.local is alone.local is None
    short = open_scorer(f"dpo:{policy}", max_length=5, dtype=torch.bfloat16, **CPU).scorer
    assert short.encoder.max_length == 5 and short.models[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("prefix", "how"), [("ensemble", "mean"), ("ensemble-mean", "mean"), ("ensemble-worst", "worst"), ("ensemble-lower", "lower")])
def test_an_ensemble(tmp_path: Path, prefix: str, how: str) -> None:
    folders = [str(saved(tmp_path / str(seed), seed)) for seed in range(3)]
    opened = open_scorer(f"{prefix}:{','.join(folders)}", **CPU)
    expected = Ensemble([load_scorer(folder, **CPU) for folder in folders], how=how).score(ITEMS)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), expected, atol=1e-6)
    assert np.ptp(expected) > 0.1
    assert opened.description == {"name": f"{how} of {', '.join(folders)}", "architecture": "ensemble"}
    assert opened.identity is None  # its rewards are z-scored over what is asked together


def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    sent: list[tuple[str, Any]] = []

    def send(method: str, url: str, body: Any, timeout: float, key: str | None) -> Answer:
        sent.append((url, body))
        model = {"data": [{"id": "served", "owned_by": "vllm"}]}
        return Answer(200, json.dumps(model if method == "GET" else {"data": [{"probs": [2.5]}], "rewards": [3.5]}))

    monkeypatch.setattr("palate.scoring.remote._send", send)
    return sent


def test_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = answers(monkeypatch)
    opened = open_scorer("http://localhost:8000/", packing="auto", token_budget=None)
    assert isinstance(opened.scorer, RemoteScorer) and opened.scorer.score(["a"]).tolist() == [2.5]
    assert opened.description == {"name": "served", "architecture": "endpoint (vllm)", "url": "http://localhost:8000/"}
    other = open_scorer("https://host/path", protocol="openrlhf")
    assert other.scorer.score(["a"]).tolist() == [3.5]
    assert other.description == {"name": "https://host/path", "architecture": "endpoint (openrlhf)", "url": "https://host/path"}
    assert [url for url, _ in sent] == ["http://localhost:8000/v1/models", "http://localhost:8000/classify", "https://host/path/get_reward"]
    assert opened.identity is other.identity is opened.local is None  # what a server holds may change behind its address


def test_an_ensemble_of_a_checkpoint_and_an_endpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    opened = open_scorer(f"ensemble:{checkpoint},http://localhost:8000", **CPU)
    own = load_scorer(checkpoint, **CPU).score(ITEMS)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), (own - own.mean()) / own.std() / 2, atol=1e-5)


@pytest.mark.parametrize("name", ["ensemble", "ensemble-1", "dpo", "http"])
def test_a_folder_may_be_called_like_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    saved(tmp_path / name, 0)
    monkeypatch.chdir(tmp_path)
    assert open_scorer(name, **CPU).local is not None


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no policy": ("dpo:", {}, "dpo:: expected dpo:POLICY,REFERENCE, or dpo:POLICY without a reference"),
    "three policies": ("dpo:a,b,c", {}, "dpo:a,b,c: expected dpo:POLICY,REFERENCE"),
    "no member": ("ensemble:", {}, r"ensemble:: an ensemble has two members at least; expected ensemble:A,B\[,C\]"),
    "one member": ("ensemble-worst:a,", {}, r"an ensemble has two members at least; expected ensemble-worst:A,B\[,C\]"),
    "median": ("ensemble-median:a,b", {}, r"ensemble-median:a,b: an ensemble combines by mean, worst, lower, variance \(ensemble:, ensemble-worst:"),
    "members with commas": ("ensemble:dpo:a,b,c", {}, "dpo:a has members of its own, so its commas are ambiguous; an ensemble takes checkpoints and endpoints"),
    "an ensemble inside": ("ensemble:a,ensemble-worst:b,c", {}, "ensemble-worst:b has members of its own"),
    "protocol of a folder": ("a", {"protocol": "tei"}, r"protocol tei is for an endpoint \(http://...\), not for a"),
    "unknown protocol": ("http://localhost:8000", {"protocol": "grpc"}, "protocol is 'grpc', expected auto or one of palate, vllm, sglang, openrlhf, tei"),
    "no host": ("http://", {}, "'http://' is no address of an endpoint"),
    "unknown format": ("a", {"input_format": "alpaca"}, "no input format is called 'alpaca'"),
    "unknown format of members": ("ensemble:a,b", {"input_format": "alpaca"}, "no input format is called 'alpaca'"),
    "format of a policy": ("dpo:a,b", {"input_format": "pair"}, "input format pair is for a reward model in this process, not for dpo:a,b"),
    "format of an endpoint": ("http://localhost:8000", {"input_format": "pair"}, "input format pair is for a reward model in this process"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_said_before_anything_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded")

    for loader in ("load_scorer", "load_implicit_scorer"):
        monkeypatch.setattr(f"palate.scoring.sources.{loader}", load)
    source, options, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        open_scorer(source, **options)


def test_what_is_not_there_is_said(checkpoint: Path) -> None:
    for source in ("/nowhere/at/all", "dpo:/nowhere/at/all", f"ensemble:{checkpoint},/nowhere/at/all"):
        with pytest.raises(ModelError, match="/nowhere/at/all: no such folder"):
            open_scorer(source, **CPU)
    with pytest.raises(ModelError, match="no language model"):
        open_scorer(f"dpo:{checkpoint}", **CPU)


# --- identities -----------------------------------------------------------------------------------------------------------------------------------


def test_results_written_beside_a_model_change_nothing(trained: Path, policies: tuple[str, str]) -> None:
    for folder, source in ((trained, str(trained)), (Path(policies[1]), f"dpo:{','.join(policies)}")):
        before = identity(source)
        for name in ("results.json", "results.items.jsonl", "README.md", "page.html", ".gitattributes"):
            (folder / name).write_text("{}")
        (folder / "runs").mkdir()
        assert identity(source) == before
        assert identity(source, packing="padded", token_budget=64) == before  # how it is computed decides nothing
        assert identity(source, max_length=None, dtype=None) == before


def rewrite_weights(folder: Path) -> None:
    """Other numbers in a file of the same size."""
    path = folder / "model.safetensors"
    state = load_file(path)
    state["score.weight"] = state["score.weight"] + 1
    size = path.stat().st_size
    save_file(state, path, metadata={"format": "pt"})
    assert path.stat().st_size == size


def edit_json(name: str, **entries: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return edit


def edit_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "human") + " "
    tokenizer.save_pretrained(folder)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "weights": rewrite_weights,
    "config": edit_json("config.json", rms_norm_eps=1e-3),
    "tokenizer": edit_json("tokenizer_config.json", bos_token="<|im_start|>"),
    "template": edit_template,
    "a vocabulary": lambda folder: (folder / "vocab.json").write_text("{}"),
    "code": lambda folder: (folder / "modeling_mine.py").write_text(""),
    "another shard": lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-00002.safetensors"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_another(checkpoint: Path, name: str) -> None:
    before = identity(checkpoint)
    CHANGES[name](checkpoint)
    assert identity(checkpoint) != before


@pytest.mark.parametrize("options", [{"max_length": 30}, {"dtype": torch.bfloat16}, {"input_format": "pair"}, {"attn_implementation": "eager"}], ids=str)
def test_other_options_are_another_model(checkpoint: Path, options: dict[str, Any]) -> None:
    assert identity(checkpoint, **options) != identity(checkpoint)


def test_fine_tunes_of_one_size_and_time_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """As archives and images unpack them: every file of the same time."""
    folders = [saved(tmp_path / str(seed), seed) for seed in (0, 1)]
    for folder in folders:
        for path in folder.iterdir():
            os.utime(path, (1, 1))
    sizes = [{path.name: path.stat().st_size for path in folder.iterdir()} for folder in folders]
    assert sizes[0] == sizes[1]
    assert identity(folders[0]) != identity(folders[1])


def test_one_folder_by_two_names_is_one_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    (checkpoint.parent / "latest").symlink_to(checkpoint)
    assert identity(checkpoint) == identity(checkpoint.name) == identity("latest") == identity(f"{checkpoint}/")


def test_implicit_identities(policies: tuple[str, str], tmp_path: Path) -> None:
    policy, reference = (shutil.copytree(folder, tmp_path / Path(folder).name) for folder in policies)
    found = [identity(f"dpo:{policy}"), identity(f"dpo:{reference}"), identity(f"dpo:{policy},{reference}"), identity(f"dpo:{reference},{policy}")]
    found += [identity(f"dpo:{policy}", max_length=30), identity(f"dpo:{policy}", dtype=torch.bfloat16), identity(saved(tmp_path / "reward", 0))]
    os.utime(reference / "model.safetensors", (1, 1))
    found.append(identity(f"dpo:{policy},{reference}"))
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)


def test_an_adapter_is_another_model_on_another_base(tmp_path: Path) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    base = saved(tmp_path / "base", 0)
    adapted = get_peft_model(load_scorer(base, **CPU).model, LoraConfig(task_type=TaskType.SEQ_CLS, init_lora_weights=False, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    chatml_tokenizer().save_pretrained(tmp_path / "adapter")
    before = identity(tmp_path / "adapter")
    assert identity(tmp_path / "adapter") == before != identity(base)
    rewards = open_scorer(str(tmp_path / "adapter"), **CPU).scorer.score(ITEMS)
    edit_json("config.json", rms_norm_eps=1.0)(base)
    assert np.abs(open_scorer(str(tmp_path / "adapter"), **CPU).scorer.score(ITEMS) - rewards).max() > 1e-3
    assert identity(tmp_path / "adapter") != before


# --- behind the cache -----------------------------------------------------------------------------------------------------------------------------


def cached(source: str | Path, path: Path, **options: Any) -> CachedScorer:
    opened = open_scorer(str(source), **CPU, **options)
    assert opened.identity is not None
    return CachedScorer(opened.scorer, path, opened.identity)


@pytest.mark.parametrize("kind", ["trained", "dpo", "formatted"])
def test_an_evaluation_through_the_cache_is_the_same(
    kind: str, trained: Path, policies: tuple[str, str], checkpoint: Path, pairs: list[dict[str, Any]], write_jsonl: Any, tmp_path: Path
) -> None:
    """Computed, read back, and half of each: the figures of an evaluation without a cache."""
    source = {"trained": str(trained), "dpo": f"dpo:{','.join(policies)}", "formatted": str(checkpoint)}[kind]
    options = {"input_format": "hh-pair"} if kind == "formatted" else {}
    groups = load_groups(str(write_jsonl(pairs))).groups
    plain = evaluate(open_scorer(source, **CPU, **options).scorer, groups)
    rewards = [(item["reward_chosen"], item["reward_rejected"]) for item in plain.items]
    assert len({reward for pair in rewards for reward in pair}) > 12
    half = cached(source, tmp_path / "half.sqlite", **options)
    evaluate(half, groups[::2])
    scorers = [cached(source, tmp_path / "scores.sqlite", **options), cached(source, tmp_path / "scores.sqlite", **options), half]
    for scorer in scorers:
        found = evaluate(scorer, groups)
        np.testing.assert_allclose([(item["reward_chosen"], item["reward_rejected"]) for item in found.items], rewards, atol=1e-5)
        assert (found.result.accuracy, found.result.interval, found.result.n) == (plain.result.accuracy, plain.result.interval, 12)
    assert [scorer.computed for scorer in scorers] == [24, 0, 24]
    assert scorers[1].cached == 24


def test_a_model_that_is_trained_on_is_computed_again(checkpoint: Path, tmp_path: Path) -> None:
    """The same folder, other weights: nothing of before is given."""
    path = tmp_path / "scores.sqlite"
    before = cached(checkpoint, path).score(ITEMS)
    rewrite_weights(checkpoint)
    after = cached(checkpoint, path)
    np.testing.assert_array_equal(after.score(ITEMS), load_scorer(checkpoint, **CPU).score(ITEMS))
    assert after.computed == len(ITEMS) and np.abs(after.score(ITEMS) - before).min() > 1e-4


def test_two_models_share_a_file(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(seed), seed) for seed in (0, 1)]
    own = [load_scorer(folder, **CPU).score(ITEMS) for folder in folders]
    for _ in range(2):
        for folder, rewards in zip(folders, own, strict=True):
            np.testing.assert_array_equal(cached(folder, tmp_path / "scores.sqlite").score(ITEMS), rewards)
    assert np.abs(own[0] - own[1]).min() > 1e-4


@pytest.mark.parametrize("on_long", ["nan", "truncate_prompt"])
def test_too_long_is_kept_apart_from_cut(checkpoint: Path, tmp_path: Path, on_long: str) -> None:
    items = [("the " * 50, "good"), ("hi", "good")]
    scorer = cached(checkpoint, tmp_path / "scores.sqlite", max_length=20)
    for policy in (on_long, "truncate_prompt", "nan", on_long):
        rewards = scorer.score(items, on_long=policy)
        assert np.isnan(rewards).tolist() == [policy == "nan", False]
        np.testing.assert_allclose(rewards, scorer.scorer.score(items, on_long=policy), atol=1e-6)
