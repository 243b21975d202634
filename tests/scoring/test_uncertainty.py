"""Heads that state an uncertainty, by hand: members, Gaussians, quantiles; lower bounds; and what open_scorer makes of one folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.templates import prepare_tokenizer
from palate.errors import ConfigError
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.scoring.contract import build_contract
from palate.scoring.ensemble import Ensemble
from palate.scoring.local import LocalScorer
from palate.scoring.sources import open_scorer
from palate.scoring.uncertainty import COMBINE, HeadScorer, LowerBound, deviation_reader, member_names, quantile_name
from palate.types import Exchange, Readout

ITEMS = [Exchange(f"ask {i % 3}", f"good {'bad ' * (i % 5)}{i}") for i in range(8)]
CPU = {"device": "cpu"}


def local(outputs: tuple[str, ...], weights: tuple[float, ...], *, seed: int = 3, **options: Any) -> LocalScorer:
    model, tokenizer = tiny_model("qwen3", seed=seed, num_labels=len(outputs)), prepare_tokenizer(TOKENIZERS["qwen3"](), close=True)
    fit_tokenizer(model, tokenizer)
    scorer = LocalScorer(as_reward_model(model, outputs), tokenizer, device="cpu", **{"max_length": 64, **options})
    scorer.readout = Readout(outputs, weights)
    return scorer


def saved(folder: Path, scorer: LocalScorer, **contract: Any) -> Path:
    """A checkpoint of this scorer, with a contract."""
    scorer.model.save_pretrained(folder)
    scorer.tokenizer.save_pretrained(folder)
    build_contract(scorer.model, scorer.encoder, golden=ITEMS[:2], readout=scorer.readout, **contract).save(folder)
    return folder


# --- by hand ------------------------------------------------------------------------------------------------------------------------------------------


def test_members_by_hand() -> None:
    """Rewards 1, 2, 6 of one response: mean 3, worst 1, variance ((2)^2 + 1 + 3^2) / 3 = 14/3 over the members themselves."""
    rewards = np.array([[1.0], [2.0], [6.0]])
    found = {how: float(COMBINE[how](rewards, 0.5)[0]) for how in COMBINE}
    assert found == pytest.approx({"mean": 3, "worst": 1, "lower": 3 - math.sqrt(14 / 3) / 2, "variance": 3 - 7 / 3})
    reader = deviation_reader(Readout(member_names(3), (1 / 3,) * 3))
    assert reader is not None
    np.testing.assert_allclose(reader(rewards.T), [math.sqrt(14 / 3)])


def test_gaussians_by_hand() -> None:
    """Two attributes of variance softplus(raw) + 0.0001, weighed 2 and -1: sqrt(4 v_a + v_b). One of weight 0 says nothing of the reward."""
    readout = Readout(("a", "b", "a:raw_variance", "b:raw_variance"), (2.0, -1.0, 0.0, 0.0))
    reader = deviation_reader(readout)
    assert reader is not None
    a, b = math.log(2) + 1e-4, math.log1p(math.exp(3)) + 1e-4
    np.testing.assert_allclose(reader(np.array([[5.0, 7.0, 0.0, 3.0]])), [math.sqrt(4 * a + b)])
    beside = Readout(("reward", "a", "a:raw_variance"), (1.0, 0.0, 0.0))
    assert deviation_reader(beside) is None  # the reward is another output


@pytest.mark.parametrize("levels", [(0.05, 0.5, 0.95), (0.1, 0.2), tuple(i / 20 for i in range(1, 20))])
def test_quantiles_of_a_normal_distribution_give_its_deviation(levels: tuple[float, ...]) -> None:
    """Whatever the quantiles; and twice that of the attribute for a weight of 2. Crossed quantiles, whose slope is negative, give 0."""
    names = tuple(quantile_name("score", q) for q in levels)
    reader = deviation_reader(Readout(names, tuple(2 / len(levels) for _ in levels)))
    assert reader is not None
    outputs = np.array([norm.ppf(levels, loc=3, scale=0.7), norm.ppf(levels)[::-1]])
    np.testing.assert_allclose(reader(outputs), [1.4, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    "readout",
    [
        Readout(),
        Readout(("helpfulness", "verbosity"), (0.5, 0.5)),
        Readout(("wrong", "right"), (0.0, 1.0), "min"),
        Readout(("a@1", "a@2"), (0.5, 0.5)),  # no quantiles lie at 1 and 2
        Readout(("reward#1", "other"), (0.5, 0.5)),
    ],
    ids=str,
)
def test_other_outputs_state_none(readout: Readout) -> None:
    assert deviation_reader(readout) is None


# --- scorers ------------------------------------------------------------------------------------------------------------------------------------------


def test_heads_of_one_checkpoint() -> None:
    scorer = local(member_names(3), (1 / 3,) * 3)
    outputs = scorer.outputs(ITEMS)
    heads = HeadScorer(scorer)
    rewards, uncertainty = heads.score(ITEMS, return_uncertainty=True)
    np.testing.assert_allclose(rewards, outputs.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(uncertainty, outputs.std(axis=1), rtol=1e-5)
    assert rewards.dtype == uncertainty.dtype == np.float32 and uncertainty.min() > 0
    np.testing.assert_array_equal(heads.score(ITEMS), rewards)
    np.testing.assert_array_equal(HeadScorer(scorer, how="worst").score(ITEMS), outputs.min(axis=1))
    np.testing.assert_allclose(HeadScorer(scorer, how="variance", strength=2).score(ITEMS), outputs.mean(1) - 2 * outputs.var(1), rtol=1e-5)
    np.testing.assert_allclose(LowerBound(heads, 0.5).score(ITEMS), rewards - 0.5 * uncertainty, rtol=1e-6)
    assert heads.score_detailed(ITEMS[:1])[1][0] == pytest.approx(
        {**dict(zip(member_names(3), outputs[0].tolist(), strict=True)), "uncertainty": float(uncertainty[0])}, rel=1e-5
    )


def test_worst_is_never_above_the_mean_and_what_is_too_long_is_nan() -> None:
    scorer = local(member_names(4), (0.25,) * 4, max_length=32)
    items = [*ITEMS, Exchange("ask", "good " * 60)]
    mean = HeadScorer(scorer).score(items, on_long="nan")
    for how in ("worst", "lower", "variance"):
        rewards, uncertainty = HeadScorer(scorer, how=how).score(items, return_uncertainty=True, on_long="nan")
        assert (rewards[:-1] <= mean[:-1] + 1e-6).all() and np.isnan([rewards[-1], uncertainty[-1]]).all()


def test_what_states_no_uncertainty_is_said() -> None:
    with pytest.raises(ConfigError, match=r"the outputs reward state no uncertainty; members \(loss.members\), quantiles and Gaussians do"):
        HeadScorer(local(("reward",), (1.0,)))
    with pytest.raises(ConfigError, match=r"the outputs a, a:raw_variance are no members that could be combined by worst"):
        HeadScorer(local(("a", "a:raw_variance"), (1.0, 0.0)), how="worst")
    with pytest.raises(ConfigError, match="multiplied by is -1, expected a number of at least 0"):
        HeadScorer(local(member_names(2), (0.5, 0.5)), strength=-1)


def test_an_ensemble_states_its_members_deviation() -> None:
    members = [local(("reward",), (1.0,), seed=seed) for seed in range(3)]
    ensemble = Ensemble(members, how="variance", strength=0.5, scales=[(0.1, 2.0), (0.0, 1.0), (-0.2, 0.5)])
    scaled = np.array([(member.score(ITEMS) - mean) / deviation for member, (mean, deviation) in zip(members, ensemble.scales or (), strict=True)])
    rewards, uncertainty = ensemble.score(ITEMS, return_uncertainty=True)
    np.testing.assert_allclose(rewards, scaled.mean(0) - 0.5 * scaled.var(0), atol=1e-5)
    np.testing.assert_allclose(uncertainty, scaled.std(0), atol=1e-5)


# --- sources ------------------------------------------------------------------------------------------------------------------------------------------


def test_one_folder_of_members_by_its_sources(tmp_path: Path) -> None:
    scorer = local(member_names(3), (1 / 3,) * 3)
    folder, outputs = saved(tmp_path / "m", scorer), scorer.outputs(ITEMS)
    mean, deviation = outputs.mean(axis=1), outputs.std(axis=1)
    expected = {
        f"{folder}": mean,
        f"ensemble:{folder}": mean,
        f"ensemble-worst:{folder}": outputs.min(axis=1),
        f"ensemble-lower:{folder}": mean - deviation,
        f"ensemble-lower=2:{folder}": mean - 2 * deviation,
        f"ensemble-variance=0.5:{folder}": mean - 0.5 * deviation**2,
        f"lower:{folder}": mean - deviation,
        f"lower=0.25:{folder}": mean - 0.25 * deviation,
        f"lower=2:ensemble-worst:{folder}": outputs.min(axis=1) - 2 * deviation,
    }
    identities = []
    for source, rewards in expected.items():
        opened: Any = open_scorer(source, **CPU)
        np.testing.assert_allclose(opened.scorer.score(ITEMS), rewards, atol=1e-5, err_msg=source)
        np.testing.assert_allclose(opened.scorer.score(ITEMS, return_uncertainty=True)[1], deviation, atol=1e-5)
        identities.append(str(opened.identity))
        assert opened.identity is not None
    assert len(set(identities)) == len(expected)  # all may be cached, none in another's place
    assert open_scorer(str(folder), **CPU).local is not None


WRONG = {
    "ensemble-worst=2:a,b": "nothing is taken off by ensemble-worst; a number goes with ensemble-lower, ensemble-variance and lower",
    "ensemble-lower=much:a,b": "'much' is no number; expected e.g. ensemble-lower=0.5:",
    "average:a": "an average is over two checkpoints at least",
    "ensemble:average:a,b": "average:a has members of its own",
}


@pytest.mark.parametrize("source", WRONG)
def test_sources_that_cannot_be_meant(source: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[source]):
        open_scorer(source)


def test_a_folder_without_uncertainty_has_no_lower_bound(tmp_path: Path) -> None:
    folder = saved(tmp_path / "plain", local(("reward",), (1.0,)))
    with pytest.raises(ConfigError, match=f"lower:{folder}: {folder} states no uncertainty; ensembles do"):
        open_scorer(f"lower:{folder}", **CPU)
    with pytest.raises(ConfigError, match=f"{folder} was not trained with loss.members; expected two names or more"):
        open_scorer(f"ensemble-worst:{folder}", **CPU)


def test_recorded_statistics_fix_the_scale_of_an_ensemble(tmp_path: Path) -> None:
    """Rewards are then a property of the text: equal alone and among others, and they have an identity that changes with the record."""
    from palate.models.checkpoints import RewardStatistics

    folders = []
    for seed, statistics in ((0, RewardStatistics(0.5, 2.0, 1.0, 50)), (1, RewardStatistics(-1.0, 0.25, 1.0, 50))):
        folders.append(saved(tmp_path / str(seed), local(("reward",), (1.0,), seed=seed), rewards=statistics))
    source = f"ensemble-worst:{folders[0]},{folders[1]}"
    opened = open_scorer(source, **CPU)
    own = [open_scorer(str(folder), **CPU).scorer.score(ITEMS) for folder in folders]
    np.testing.assert_allclose(opened.scorer.score(ITEMS[2:3]), np.minimum((own[0] - 0.5) / 2, (own[1] + 1) / 0.25)[2:3], atol=1e-5)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), np.minimum((own[0] - 0.5) / 2, (own[1] + 1) / 0.25), atol=1e-5)
    assert opened.identity is not None and opened.identity["how"] == "worst"
    saved(folders[1], local(("reward",), (1.0,), seed=1), rewards=RewardStatistics(-1.0, 0.5, 1.0, 50))
    assert open_scorer(source, **CPU).identity != opened.identity
    saved(folders[1], local(("reward",), (1.0,), seed=1))  # nothing recorded: z-scored on the first call, and not cached
    assert open_scorer(source, **CPU).identity is None


def test_nothing_is_scored_as_nothing(tmp_path: Path) -> None:
    from palate.scoring.gated import Gate, GatedScorer, GateSettings
    from palate.scoring.laplace import LaplaceScorer, Posterior

    members, pair = local(member_names(2), (0.5, 0.5)), local(("a", "b"), (0.5, 0.5))
    gate = Gate(pair.width, 2, hidden=(4,), temperature=1.0)
    scorers: list[Any] = [
        *(HeadScorer(members, how=how) for how in COMBINE),
        LaplaceScorer(pair, Posterior(np.eye(pair.width), np.zeros(pair.width), {})),
        GatedScorer(pair, gate, GateSettings(("a", "b"), (0.0, 0.0), (1.0, 1.0))),
    ]
    for scorer in scorers:
        assert scorer.score([]).shape == (0,) and scorer.score_detailed([])[1] == []
