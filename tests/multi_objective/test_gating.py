"""The gate: a planted switch is learned, verbosity is really taken out of the saved model's rewards, and it loads only where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import spearmanr
from tests.conftest import TOKENIZERS, tiny_model
from tests.scoring.test_uncertainty import CPU, ITEMS, local, saved

from palate.data.templates import prepare_tokenizer
from palate.errors import ConfigError, ContractError, DataError
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.multi_objective.gating import GateTraining, fit_gate, smallest_lambda
from palate.scoring.gated import GATE_NAME, Gate, GatedScorer, GateInputs, GateSettings, gate_inputs, save_gate
from palate.scoring.local import LocalScorer, load_scorer
from palate.scoring.sources import open_scorer
from palate.types import Exchange, Readout, TokenIds

SMALL = GateTraining(hidden=(16,), steps=300, batch=64, dropout=0.0, learning_rate=1e-2, temperature=1.0)


def planted(count: int = 400, seed: int = 0) -> tuple[GateInputs, np.ndarray, np.ndarray]:
    """Two kinds of prompts (the sign of their embedding's first number) and two attributes: the first decides on one kind, the second on the other."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(size=(count, 4)).astype(np.float32)
    outputs = rng.normal(size=(2 * count, 2)) * [2.0, 30.0] + [1.0, -5.0]
    prompt = np.repeat(np.arange(count), 2)
    decisive = (prompts[:, 0] < 0).astype(int)
    first, second = outputs[0::2], outputs[1::2]
    better = first[np.arange(count), decisive] > second[np.arange(count), decisive]
    chosen = np.where(better, np.arange(count) * 2, np.arange(count) * 2 + 1)
    return GateInputs(outputs, rng.integers(1, 50, 2 * count).astype(float), prompts, prompt), chosen, chosen ^ 1


def test_a_planted_switch_is_learned() -> None:
    """Attributes weighed alike are right on three quarters or so; a gate that reads the prompt is right on nearly all, and its weights switch."""
    inputs, chosen, rejected = planted()
    fit = fit_gate(inputs, chosen, rejected, ("a", "b"), training=SMALL)
    assert fit.alike < 0.85 < 0.93 < fit.accuracy and fit.step > 0 and fit.held_out == 80
    with torch.inference_mode():
        weights = fit.gate(torch.from_numpy(inputs.prompts)).numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert weights[inputs.prompts[:, 0] > 0.5, 0].min() > 0.7 and weights[inputs.prompts[:, 0] < -0.5, 1].min() > 0.7


def test_the_same_seed_gives_the_same_gate_and_the_global_one_is_left_alone() -> None:
    inputs, chosen, rejected = planted(60)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gates = [fit_gate(inputs, chosen, rejected, ("a", "b"), training=GateTraining(hidden=(8,), steps=20, batch=16)).gate for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    for name, value in gates[0].state_dict().items():
        assert torch.equal(value, gates[1].state_dict()[name])


# --- verbosity ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.3, 2.0, -0.8])
def test_the_smallest_lambda_is_on_the_edge(slope: float) -> None:
    """|Spearman| is 0.03 or just below at lambda, and above it a little nearer to 0."""
    rng = np.random.default_rng(0)
    verbose = rng.normal(size=2000)
    attribute = slope * verbose + rng.normal(size=2000)
    found = smallest_lambda(attribute, verbose)
    rho = [spearmanr(attribute - part * found * verbose, verbose).statistic for part in (1.0, 0.98)]
    assert abs(rho[0]) <= 0.03 < abs(rho[1]) and np.sign(found) == np.sign(slope)
    assert abs(rho[0]) == pytest.approx(0.03, abs=2e-3)


def test_nothing_is_taken_out_where_there_is_nothing() -> None:
    verbose = np.tile([1.0, 2.0, 1.0, 2.0], 50)
    assert smallest_lambda(np.repeat([1.0, 2.0], 100), verbose) == 0.0
    assert smallest_lambda(np.ones(200), verbose) == 0.0
    with pytest.raises(ConfigError, match="--debias loudness: expected `length`, or one of the attributes a, b"):
        fit_gate(*planted(20), ("a", "b"), against="loudness", training=SMALL)


@pytest.mark.parametrize("against", ["length", "b"])
def test_correlations_are_gone_after_the_fit(against: str) -> None:
    inputs, chosen, rejected = planted()
    inputs.outputs[:, 0] += 0.2 * (inputs.lengths if against == "length" else inputs.outputs[:, 1])
    fit = fit_gate(inputs, chosen, rejected, ("a", "b"), against=against, training=GateTraining(hidden=(4,), steps=2, batch=8))
    assert abs(fit.correlations[0][0]) > 0.3 and abs(fit.correlations[0][1]) <= 0.03 + 1e-9
    if against == "b":
        assert fit.settings.lambdas[1] == 1.0  # verbosity itself drops out
    assert fit.settings.against == against


def test_responses_without_attributes_are_left_out_and_counted() -> None:
    inputs, chosen, rejected = planted(50)
    inputs.outputs[80:] = np.nan
    fit = fit_gate(inputs, chosen, rejected, ("a", "b"), against="length", training=GateTraining(hidden=(4,), steps=2, batch=8))
    assert fit.left_out == 10
    assert fit.settings.means == pytest.approx(inputs.outputs[:80].mean(axis=0))
    inputs.outputs[:] = np.nan
    with pytest.raises(DataError, match="none of 50 comparisons has attributes on both sides"):
        fit_gate(inputs, chosen, rejected, ("a", "b"), training=SMALL)


# --- beside a checkpoint ------------------------------------------------------------------------------------------------------------------------------


def encoder(outputs: tuple[str, ...]) -> LocalScorer:
    model, tokenizer = tiny_model("bert", seed=3, num_labels=len(outputs)), prepare_tokenizer(TOKENIZERS["bert"](), close=True)
    fit_tokenizer(model, tokenizer)
    scorer = LocalScorer(as_reward_model(model, outputs), tokenizer, device="cpu", max_length=64)
    scorer.readout = Readout(outputs, (1 / len(outputs),) * len(outputs))
    return scorer


def gated_folder(tmp_path: Path, scorer: LocalScorer, against: str | None) -> tuple[Path, Gate, GateSettings]:
    folder = saved(tmp_path / "model", scorer)
    torch.manual_seed(0)
    gate = Gate(scorer.width, 2, hidden=(8,), temperature=0.5)
    with torch.no_grad():
        gate.scale.fill_(3.0)
        prompts = torch.from_numpy(gate_inputs(scorer, ITEMS).prompts)
        gate.centre.copy_(prompts.mean(dim=0))
        gate.spread.copy_(prompts.std(dim=0) + 1e-6)
    settings = GateSettings(("help", "verbose"), (0.1, -0.2), (0.5, 2.0), against, 6.0, 3.0, (0.7, -0.3) if against else (), (8,), 0.5)
    save_gate(folder, gate, settings)
    return folder, gate, settings


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("against", [None, "length", "verbose"])
def test_the_rewards_are_the_debiased_gated_sum_by_hand(tmp_path: Path, kind: str, against: str | None) -> None:
    scorer = local(("help", "verbose"), (0.5, 0.5)) if kind == "decoder" else encoder(("help", "verbose"))
    folder, gate, _ = gated_folder(tmp_path, scorer, against)
    opened = open_scorer(str(folder), **CPU)
    outputs = scorer.outputs(ITEMS)
    z = (outputs - [0.1, -0.2]) / [0.5, 2.0]
    own = [scorer.encoder.prompt_ids(item) for item in ITEMS]
    lengths = np.array([len(ids) - len(start) for ids, start in zip(scorer.encoder.encode(ITEMS), own, strict=True)])
    v = {"length": (lengths - 6.0) / 3.0, "verbose": z[:, 1], None: np.zeros(len(ITEMS))}[against]
    debiased = z - v[:, None] * [0.7, -0.3] if against else z
    ends = [start if kind == "decoder" else [*start, scorer.encoder.rules.eos_id] for start in own]
    prompts = torch.from_numpy(np.stack([scorer.embed_ids([ids])[0] for ids in ends]))
    with torch.inference_mode():
        weights = softmax(gate.layers((prompts - gate.centre) / gate.spread).numpy() / 0.5, axis=1)
    expected = 3.0 * (weights * debiased).sum(axis=1)
    np.testing.assert_allclose(opened.scorer.score(ITEMS), expected, atol=2e-3)  # a random model's prompts hardly differ, and are standardised
    rewards, shown = opened.scorer.score_detailed(ITEMS)  # type: ignore[attr-defined]
    np.testing.assert_allclose(rewards, expected, atol=2e-3)
    assert shown[3]["help"] == pytest.approx(outputs[3, 0], abs=1e-5) and shown[3]["gate"]["verbose"] == pytest.approx(weights[3, 1], abs=1e-3)
    assert np.ptp(weights[:, 0]) > 1e-3  # prompts differ, and so do their gates
    if against:
        assert np.abs(expected - 3.0 * (weights * z).sum(axis=1)).max() > 0.02  # what the published code leaves out


def test_the_end_of_a_prompt_is_read_whatever_the_response() -> None:
    """A decoder's embedding of the prompt is its hidden state at that token within the whole sequence too: no response changes it."""
    scorer = local(("help", "verbose"), (0.5, 0.5))
    messages = ({"role": "user", "content": "tell me about the sea"},)
    items = [Exchange(messages, ({"role": "assistant", "content": text},)) for text in ("good", "bad and long")]
    inputs = gate_inputs(scorer, items)
    assert len(inputs.prompts) == 1 and inputs.prompt.tolist() == [0, 0]
    whole, start = scorer.encoder.encode(items)[1], scorer.encoder.prompt_ids(items[1])
    assert whole[: len(start)] == start and scorer.tokenizer.decode(start).endswith("<|im_start|>assistant\n")
    np.testing.assert_allclose(scorer.embed_ids([whole[: len(start)]])[0], inputs.prompts[0], atol=1e-6)
    np.testing.assert_array_equal(inputs.lengths, [len(ids) - len(start) for ids in scorer.encoder.encode(items)])


def test_long_prompts_keep_their_end_and_long_responses_are_nan() -> None:
    scorer = local(("help", "verbose"), (0.5, 0.5), max_length=24, cut_prompts=True)
    long, longer = (Exchange("the sea and " * n + "the wind is it nice", "good") for n in (30, 40))
    inputs = gate_inputs(scorer, [long, longer, Exchange("ask", "good " * 80)], on_long="nan")
    assert len(inputs.prompts) == 2 and np.isnan(inputs.outputs).all(axis=1).tolist() == [False, False, True]


def test_a_gate_needs_a_prompt(tmp_path: Path) -> None:
    folder, *_ = gated_folder(tmp_path, local(("help", "verbose"), (0.5, 0.5)), None)
    scorer = open_scorer(str(folder), **CPU).scorer
    for item in ("whole text", TokenIds([4, 5, 6])):
        with pytest.raises(DataError, match="conversation 1 has no prompt of its own, which a gate reads"):
            scorer.score([ITEMS[0], item])


def test_loading_knows_what_belongs_together(tmp_path: Path) -> None:
    scorer = local(("help", "verbose"), (0.5, 0.5))
    folder, gate, settings = gated_folder(tmp_path, scorer, "length")
    plain = open_scorer(str(saved(tmp_path / "plain", scorer)), **CPU)
    opened = open_scorer(str(folder), **CPU)
    assert isinstance(opened.scorer, GatedScorer) and opened.description["gate"] == "help, verbose" and opened.identity != plain.identity
    np.testing.assert_allclose(load_scorer(folder, **CPU).score(ITEMS), plain.scorer.score(ITEMS), atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has a gate, which reads prompts under the checkpoint's own template"):
        open_scorer(str(folder), input_format="hash-turns", **CPU)

    def golden(score: float) -> Any:
        return ({"exchange": {"prompt": ITEMS[0].prompt, "response": ITEMS[0].response, "template_args": {}}, "score": score},)

    right = float(opened.scorer.score(ITEMS[:1])[0])
    save_gate(folder, gate, GateSettings(**{**vars(settings), "golden": golden(right)}))
    assert open_scorer(str(folder), **CPU).scorer.score(ITEMS[:1])[0] == pytest.approx(right)
    save_gate(folder, gate, GateSettings(**{**vars(settings), "golden": golden(right + 1)}))
    with pytest.raises(ContractError, match=r"gate.json: golden example 0 scores .*; fit the gate again on this checkpoint"):
        open_scorer(str(folder), **CPU)
    save_gate(folder, gate, GateSettings(**{**vars(settings), "attributes": ("verbose", "help")}))
    with pytest.raises(ContractError, match="the gate weighs verbose, help, the checkpoint gives help, verbose"):
        open_scorer(str(folder), **CPU)
    (folder / GATE_NAME).write_text(json.dumps({"gate_version": 2}))
    with pytest.raises(ContractError, match="gate_version is not 1, which this palate reads"):
        open_scorer(str(folder), **CPU)
