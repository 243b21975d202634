"""Adapters on one backbone: each scores as its merged checkpoint does, in any order of calls; `model.members` trains them in one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.training.test_adapters import train

from palate.cli.main import main
from palate.errors import ConfigError, ContractError
from palate.scoring.adapters import AdapterScorer, load_adapters, member_folders, share_a_backbone
from palate.scoring.ensemble import Ensemble
from palate.scoring.local import load_scorer
from palate.scoring.sources import open_scorer
from palate.training.adapters import adapter_config
from palate.training.settings import read_settings

CPU = {"device": "cpu"}
ITEMS = [("ask 1", "good 1"), ("ask 1", "bad and long " * 4), ("tell me about the sea", "Sure, here is what you asked for")]
KINDS: list[dict[str, Any]] = [{"type": "lora"}, {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}, {"type": "lora", "use_dora": True, "r": 2}]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base_models: dict[str, Path]) -> list[str]:
    """Three adapters of one base, of other shapes and seeds."""
    pairs = [{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    folders = []
    for seed, kind in enumerate(KINDS):
        folder = tmp_path_factory.mktemp("adapter")
        train(folder, base_models["qwen3"], pairs, adapter_config(kind), seed=seed).save_model(str(folder))
        folders.append(str(folder))
    return folders


def test_each_scores_as_its_merged_checkpoint_whatever_ran_before(adapters: list[str]) -> None:
    expected = [load_scorer(folder, **CPU).score(ITEMS) for folder in adapters]  # type: ignore[arg-type]
    assert min(np.abs(expected[i] - expected[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05
    scorers = list(load_adapters(adapters, **CPU))
    for member in (0, 2, 1, 1, 0):
        np.testing.assert_allclose(scorers[member].score(ITEMS), expected[member], atol=1e-5)
    assert len({id(scorer.local.model) for scorer in scorers}) == 1


def test_an_ensemble_of_adapters_holds_one_backbone(adapters: list[str]) -> None:
    opened: Any = open_scorer(f"ensemble-worst:{','.join(adapters)}", **CPU)
    assert all(isinstance(member, AdapterScorer) for member in opened.scorer.members)
    assert opened.description["name"] == f"worst of {', '.join(adapters)}"
    separate = Ensemble([load_scorer(folder, **CPU) for folder in adapters], how="worst")  # type: ignore[arg-type]
    for ours, theirs in zip(opened.scorer.score(ITEMS, return_uncertainty=True), separate.score(ITEMS, return_uncertainty=True), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_shares_no_backbone_is_loaded_by_itself(adapters: list[str], base_models: dict[str, Path], tmp_path: Path, pairs: list[dict]) -> None:
    assert share_a_backbone(adapters)
    folder = tmp_path / "ia3"
    train(folder, base_models["qwen3"], pairs, adapter_config({"type": "ia3"})).save_model(str(folder))
    assert not share_a_backbone([adapters[0], str(folder)])
    opened: Any = open_scorer(f"ensemble:{adapters[0]},{folder}", **CPU)
    assert not any(isinstance(member, AdapterScorer) for member in opened.scorer.members)
    assert np.isfinite(opened.scorer.score(ITEMS)).all()


def test_a_member_that_does_not_keep_its_contract_is_refused(adapters: list[str], tmp_path: Path) -> None:
    """Whose adapter was swapped for another's: the golden examples of the contract tell."""
    shutil.copytree(adapters[0], tmp_path / "a")
    shutil.copy(Path(adapters[0]) / "reward_contract.json", tmp_path / "contract")
    shutil.copytree(adapters[1], tmp_path / "b")
    shutil.copy(tmp_path / "contract", tmp_path / "b" / "reward_contract.json")
    with pytest.raises(ContractError, match="golden example 0: scores"):
        open_scorer(f"ensemble:{tmp_path / 'a'},{tmp_path / 'b'}", **CPU)


def test_members_are_adapters() -> None:
    """Without one there is no frozen base that they could share."""
    with pytest.raises(ConfigError, match="members is for training an adapter"):
        read_settings(None, ["--model.name_or_path", "m", "--model.members", "3", "--data.train", "t", "--training.output_dir", "o"])


def test_members_are_trained_in_one_run_and_go_on_where_it_stopped(
    base_models: dict[str, Path], tmp_path: Path, write_jsonl: Any, pairs: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_jsonl(pairs), tmp_path / "run"
    flags = {
        "model.name_or_path": base_models["qwen3"],
        "model.adapter": "{type: lora, r: 2}",
        "model.members": 2,
        "data.train": data,
        "data.eval.split": 0.3,
        "training.output_dir": out,
        "training.max_steps": 2,
        "training.learning_rate": 0.01,
        "training.report_to": "none",
        "training.use_cpu": "true",
        "training.seed": 5,
    }
    command = ["train", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    assert main(command) == 0
    assert f"palate eval --model ensemble:{out}" in capsys.readouterr().out.replace("\n", "")
    members = member_folders(out)
    assert members == [str(out / "member-1"), str(out / "member-2")] and share_a_backbone(members)
    own = [load_scorer(member, **CPU).score(ITEMS) for member in members]  # type: ignore[arg-type]
    assert np.abs(own[0] - own[1]).max() > 1e-3
    opened = open_scorer(f"ensemble:{out}", **CPU)
    assert opened.identity is not None  # the held-out rewards are on record, so scales are fixed
    scales = [json.loads((Path(member) / "reward_contract.json").read_text())["rewards"] for member in members]
    expected = np.mean([(rewards - scale["mean"]) / scale["std"] for rewards, scale in zip(own, scales, strict=True)], axis=0)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), expected, atol=2e-4)
    with pytest.raises(ConfigError, match=f"read them together as ensemble:{out}"):
        open_scorer(str(out))
    record = (out / "member-1" / "run.json").read_text()
    shutil.rmtree(out / "member-2")  # as after an interruption between the two
    assert main([*command, "--resume"]) == 0
    assert (out / "member-1" / "run.json").read_text() == record
    np.testing.assert_allclose(load_scorer(members[1], **CPU).score(ITEMS), own[1], atol=1e-6)  # type: ignore[arg-type]
