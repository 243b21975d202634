"""Averaged weights: of one model they are that model, of linear heads the rewards are averaged; what does not belong together is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_model
from tests.scoring.test_uncertainty import CPU, ITEMS, local, saved

from palate.errors import ConfigError, ModelError, StorageError
from palate.models.checkpoints import RewardStatistics, read_contract
from palate.scoring.averaging import average_saved, load_average
from palate.scoring.local import contract_problems, load_scorer
from palate.scoring.sources import open_scorer


def heads_apart(tmp_path: Path, count: int = 3) -> list[Path]:
    """Checkpoints that differ in their heads alone."""
    folders = []
    for i in range(count):
        scorer = local(("reward",), (1.0,))
        torch.manual_seed(i)
        torch.nn.init.normal_(scorer.model.score.weight)
        folders.append(saved(tmp_path / f"head{i}", scorer, rewards=RewardStatistics(0.0, 1.0, 1.0, 9)))
    return folders


def test_the_average_of_one_model_is_that_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", local(("reward",), (1.0,)))
    averaged, plain = load_average([folder, folder, folder], **CPU), load_scorer(folder, **CPU)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(averaged.model.state_dict()[name], value, rtol=0, atol=0)
    np.testing.assert_array_equal(averaged.score(ITEMS), plain.score(ITEMS))


def test_averaged_linear_heads_give_averaged_rewards(tmp_path: Path) -> None:
    folders = heads_apart(tmp_path)
    expected = np.mean([load_scorer(folder, **CPU).score(ITEMS) for folder in folders], axis=0)
    opened = open_scorer(f"average:{','.join(map(str, folders))}", **CPU)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert opened.identity is not None and opened.identity["kind"] == "average" and opened.local is None
    assert opened.description["name"] == f"average of {', '.join(map(str, folders))}"


def test_a_backbone_is_averaged_weight_by_weight(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(seed), local(("reward",), (1.0,), seed=seed)) for seed in (0, 1)]
    found = load_average(folders, **CPU).model.state_dict()
    states = [load_scorer(folder, **CPU).model.state_dict() for folder in folders]
    for name, value in found.items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert (states[0]["score.weight"] - states[1]["score.weight"]).abs().max() > 0.01


def test_saved_it_is_a_checkpoint_with_a_contract_of_its_own(tmp_path: Path) -> None:
    folders = heads_apart(tmp_path)
    output = tmp_path / "averaged"
    average_saved(folders, output, **CPU)
    scorer = load_scorer(output, **CPU)  # replays the golden examples
    np.testing.assert_array_equal(scorer.score(ITEMS), load_average(folders, **CPU).score(ITEMS))
    contract, member = read_contract(output), read_contract(folders[0])
    assert contract_problems(scorer) == [] and len(contract.golden) == 2
    assert contract.golden[0].score != member.golden[0].score and contract.golden[0].ids == member.golden[0].ids
    assert contract.rewards is None  # the members' were measured of other weights
    assert contract == replace(member, golden=contract.golden, rewards=None, versions=contract.versions)
    with pytest.raises(StorageError, match="is not empty; give a new folder"):
        average_saved(folders, output, **CPU)


def test_what_a_loss_learned_is_averaged_too(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(i), local(("reward",), (1.0,)), loss_parameters={"tie_threshold": [value]}) for i, value in enumerate((1.0, 2.0))]
    average_saved(folders, tmp_path / "both", **CPU)
    assert read_contract(tmp_path / "both").loss_parameters == {"tie_threshold": [1.5]}
    other = saved(tmp_path / "none", local(("reward",), (1.0,)))
    with pytest.raises(ModelError, match="losses of other parameters"):
        load_average([folders[0], other], **CPU)


def no_contract(folder: Path) -> Path:
    scorer = local(("reward",), (1.0,))
    scorer.model.save_pretrained(folder)
    scorer.tokenizer.save_pretrained(folder)
    return folder


def deeper(folder: Path) -> Path:
    scorer = local(("reward",), (1.0,))
    scorer.model = type(scorer.model)(tiny_model("qwen3", num_hidden_layers=3).config)
    return saved(folder, scorer)


OTHERS: dict[str, tuple[Any, str]] = {
    "outputs": (lambda folder: saved(folder, local(("a", "b"), (0.5, 0.5))), "differ in readout; an average is of fine-tunes of one model"),
    "no contract": (no_contract, "one has a contract, the other none"),
    "depth": (deeper, r"have other weights \(model.layers.2.*; an average is of fine-tunes of one model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, name: str) -> None:
    make, message = OTHERS[name]
    folder = saved(tmp_path / "first", local(("reward",), (1.0,)))
    with pytest.raises(ModelError, match=message):
        load_average([folder, make(tmp_path / "other")], **CPU)


def test_one_is_no_average(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an average is over two checkpoints at least, got 1"):
        load_average([tmp_path])
