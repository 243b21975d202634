"""The `loss:` section: short and long form, what each loss asks of head and data, and the sentence that each wrong combination ends with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from palate.errors import ConfigError
from palate.losses.pairwise import raw_tie_threshold
from palate.losses.pointwise import rising
from palate.training.config import RewardConfig
from palate.training.loss_settings import TERM_KINDS, LossSettings
from palate.training.settings import read_settings
from palate.training.supervision import Plan, plan
from palate.types import MarginRule, Readout, Supervision

FLAGS = ["--model.name_or_path", "m", "--data.train", "a.jsonl", "--training.output_dir", "out"]


def from_config(loss: Any = None, **fields: Any) -> LossSettings:
    return RewardConfig(output_dir="out", loss=loss, use_cpu=True, report_to="none", **fields).loss_settings()


def from_flags(*flags: str) -> LossSettings:
    return read_settings(None, [*FLAGS, *flags]).loss


def as_file(folder: Path, loss: Any) -> Path:
    """A run whose loss section begins in line 4."""
    path = folder / "run.yaml"
    head = "model: {name_or_path: m}\ndata: {train: a.jsonl}\ntraining: {output_dir: out}\n"
    path.write_text(head + (loss if isinstance(loss, str) else yaml.safe_dump({"loss": loss}, sort_keys=False)))
    return path


# --- forms ----------------------------------------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, dict[str, Any]] = {
    "bradley_terry": {"label_smoothing": 0.1, "unbiased": True, "centering": 0.01, "margins": "llama2_small"},
    "scaled_bradley_terry": {"margins": {"source": "strength", "scale": 0.5, "clip": 2.0}},
    "hinge": {"zero_sum": 0.001},
    "squared": {"text": {"variant": "dpo", "beta": 0.2}},
    "focal": {"gamma": 1.0, "barrier": 0.02, "cross_prompt": {"form": "inside", "weight": 0.5}},
    "rao_kupper": {"threshold": 1.5},
    "davidson": {"weight": 2.0},
    "plackett_luce": {"length_decorrelation": {"weight": 0.5, "orthogonal": 0.0}},
    "listwise_softmax": {"temperature": 2.0, "rating": "help"},
    "regression": {"attributes": ["help", "truth"], "reward_weights": {"help": 2.0}},
    "gaussian": {"attributes": ["help"]},
    "quantile": {"quantiles": [0.1, 0.9]},
    "ordinal": {"levels": [1.0, 2.0, 3.0], "rating": "help"},
    "outcome": {"rating": "is_correct"},
    "token_outcome": {"margins": "none"},
    "token_divergence": {"padding": "include", "centering": 0.1},
    "steps": {"classes": 3, "last_step_only": True, "aggregate": "product", "separator": "\n\n"},
}
"""Type -> some of its options and of the section's."""


def test_every_type_is_here() -> None:
    assert set(SECTIONS) == set(TERM_KINDS)


@pytest.mark.parametrize("kind", SECTIONS)
def test_one_term_may_stand_in_the_section_itself(tmp_path: Path, kind: str) -> None:
    """As a dictionary, in a file, as flags and as JSON on the command line."""
    own = {key: value for key, value in SECTIONS[kind].items() if key not in LossSettings.model_fields}
    rest = {key: value for key, value in SECTIONS[kind].items() if key in LossSettings.model_fields}
    long = LossSettings.model_validate({"terms": [{"type": kind, **own}], **rest})
    short = {"type": kind, **SECTIONS[kind]}
    assert LossSettings.model_validate(short) == long
    assert [term.type for term in long.terms] == [kind] and all(getattr(long.terms[0], key) == value for key, value in own.items())
    assert from_config(short) == from_config(json.dumps(short)) == long
    assert read_settings(as_file(tmp_path, short), []).loss == long
    assert from_flags(*(part for key, value in short.items() for part in (f"--loss.{key}", json.dumps(value)))) == long


@pytest.mark.parametrize("kind", SECTIONS)
def test_what_is_written_down_reads_back(kind: str) -> None:
    """The run's record, and what the settings hand to the trainer."""
    loss = LossSettings.model_validate({"type": kind, **SECTIONS[kind]})
    for dumped in (loss.model_dump(), loss.model_dump(mode="json"), json.loads(loss.model_dump_json()), loss.model_dump(exclude_defaults=True)):
        assert LossSettings.model_validate(dumped) == loss
    assert from_config(loss.model_dump(mode="json")) == loss
    run = read_settings(None, [*FLAGS, "--loss.terms", json.dumps(loss.model_dump(mode="json")["terms"])])
    assert RewardConfig(**{**run.trainer_arguments(), "use_cpu": True, "report_to": "none"}).loss_settings() == run.loss


def test_nothing_said_is_bradley_terry() -> None:
    plain = LossSettings.model_validate({"terms": [{"type": "bradley_terry"}]})
    assert LossSettings() == LossSettings.model_validate({}) == from_config() == from_flags() == plain
    assert from_config({"label_smoothing": 0.1}) == from_config({"type": "bradley_terry", "label_smoothing": 0.1})


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"margins": "strength"}, {"margins": {"source": "strength"}}),
        ({"margins": True}, {"margins": {"source": "column"}}),
        ({"margins": False}, {"margins": {"source": "none"}}),
        ({"text": "dpo"}, {"text": {"variant": "dpo"}}),
        ({"text": 0.2}, {"text": {"weight": 0.2}}),
        ({"text": True}, {"text": {}}),
        ({"text": False}, {}),
        ({"length_decorrelation": 2}, {"length_decorrelation": {"weight": 2.0}}),
        ({"length_decorrelation": True}, {"length_decorrelation": {"weight": 1.0, "orthogonal": 1.0}}),
        ({"length_decorrelation": False}, {"length_decorrelation": None}),
        ({"cross_prompt": 0.5}, {"cross_prompt": {"weight": 0.5}}),
        ({"cross_prompt": True}, {"cross_prompt": {"form": "outside"}}),
        ({"type": "regression", "attributes": "help"}, {"type": "regression", "attributes": ["help"]}),
    ],
    ids=str,
)
def test_short_for(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert from_config(short) == from_config(long)


def test_words_of_a_file_and_of_flags(tmp_path: Path) -> None:
    """`none` is a word in YAML, not nothing."""
    assert read_settings(as_file(tmp_path, "loss: {margins: none, text: sft}\n"), []).loss == from_flags("--loss.margins", "none", "--loss.text", "sft")
    assert from_flags("--loss.margins", "none").margin_source == "none" and from_flags().margin_source == "column"
    over = read_settings(as_file(tmp_path, "loss:\n  type: focal\n  gamma: 3\n"), ["--loss.gamma", "1", "--loss.centering=0.1"]).loss
    assert over == from_config({"type": "focal", "gamma": 1.0, "centering": 0.1})


def test_trl_s_fields_say_the_same() -> None:
    for fields, section in (
        ({"loss_type": "hinge"}, {"type": "hinge"}),
        ({"use_margins": False}, {"margins": "none"}),
        ({"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ({"center_rewards_coefficient": 0.01}, {"centering": 0.01}),
        ({"center_rewards_coefficient": None}, {}),
    ):
        assert from_config(**fields) == from_config(section)


# --- what each asks of the head -------------------------------------------------------------------------------------------------------------------

TWO = {"attributes": ["help", "truth"]}
HEADS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[float, ...], tuple[float, ...]]] = {
    **{
        kind: ({"type": kind, **options}, ("reward",), (1.0,), (1.0,))
        for kind, options in SECTIONS.items()
        if kind not in ("regression", "gaussian", "quantile", "steps", "plackett_luce")
    },
    "nothing said": ({}, ("reward",), (1.0,), (1.0,)),
    "regression, one": ({"type": "regression"}, ("reward",), (1.0,), (1.0,)),
    "regression, two": ({"type": "regression", **TWO}, ("help", "truth"), (0.5, 0.5), (0.5, 0.5)),
    "regression, weighed": (
        {"type": "regression", **TWO, "reward_weights": {"truth": 3.0, "help": -1.0}},
        ("help", "truth"),
        (-1.0, 3.0),
        (-1.0, 3.0),
    ),
    "regression, one left out": ({"type": "regression", **TWO, "reward_weights": {"truth": 2.0}}, ("help", "truth"), (0.0, 2.0), (0.0, 2.0)),
    "gaussian, one": ({"type": "gaussian"}, ("score", "score:raw_variance"), (1.0, 0.0), (1.0, 0.0)),
    "gaussian, two": (
        {"type": "gaussian", **TWO, "reward_weights": {"help": 2.0, "truth": 1.0}},
        ("help", "truth", "help:raw_variance", "truth:raw_variance"),
        (2.0, 1.0, 0.0, 0.0),
        (2.0, 1.0, 0.0, 0.0),
    ),
    "quantile, one": ({"type": "quantile", "quantiles": [0.1, 0.5]}, ("score@0.1", "score@0.5"), (0.5, 0.5), (0.5, 0.5)),
    "quantile, two": (
        {"type": "quantile", **TWO, "quantiles": [0.25, 0.75], "reward_weights": {"help": 3.0, "truth": 1.0}},
        ("help@0.25", "help@0.75", "truth@0.25", "truth@0.75"),
        (1.5, 1.5, 0.5, 0.5),
        (1.5, 1.5, 0.5, 0.5),
    ),
    "pairs and one attribute": ({"terms": [{"type": "bradley_terry"}, {"type": "regression"}]}, ("reward",), (1.0,), (1.0,)),
    "pairs and two attributes": (
        {"terms": [{"type": "regression", **TWO}, {"type": "hinge"}]},
        ("reward", "help", "truth"),
        (1.0, 0.0, 0.0),
        (1.0, 0.0, 0.0),
    ),
    "pairs and a variance": (
        {"terms": [{"type": "bradley_terry"}, {"type": "gaussian"}]},
        ("reward", "score", "score:raw_variance"),
        (1.0, 0.0, 0.0),
        (1.0, 0.0, 0.0),
    ),
    "two heads": ({"length_decorrelation": True}, ("quality", "length"), (1.0, 1.0), (1.0, 0.0)),
    "two heads of a list": ({"type": "plackett_luce", "length_decorrelation": True}, ("quality", "length"), (1.0, 1.0), (1.0, 0.0)),
}
"""Name -> (section, the head's outputs, what each weighs in training's comparisons, what each weighs in the reward that is read)."""


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    section, outputs, training, reading = HEADS[name]
    made = plan(from_config(section))
    assert made.readout == Readout(outputs, pytest.approx(reading)) and made.objective.outputs == outputs
    assert made.objective.reward == pytest.approx(training) and made.objective.reading == pytest.approx(reading)


@pytest.mark.parametrize(("classes", "outputs", "good"), [(2, ("wrong", "right"), (0.0, 1.0)), (3, ("wrong", "neutral", "right"), (0.0, 1.0, 1.0))])
def test_the_head_of_steps(classes: int, outputs: tuple[str, ...], good: tuple[float, ...]) -> None:
    made = plan(from_config({"type": "steps", "classes": classes, "aggregate": "product", "separator": "\n\n"}))
    assert made.readout == Readout(outputs, good, "product", "\n\n") and made.objective.outputs == outputs


def test_nineteen_quantiles_by_default() -> None:
    made = plan(from_config({"type": "quantile"}))
    assert made.readout.outputs[0] == "score@0.05" and made.readout.outputs[2] == "score@0.15" and made.readout.outputs[-1] == "score@0.95"
    assert len(made.readout.outputs) == 19 and sum(made.readout.weights) == pytest.approx(1.0)


def test_columns_of_attributes_that_several_terms_read() -> None:
    """One column an attribute, whoever reads it; outputs of attributes begin behind the reward."""
    made = plan(from_config({"terms": [{"type": "outcome", "rating": "truth"}, {"type": "regression", "attributes": ["help", "truth"]}]}))
    outcome, regression = made.objective.terms
    assert made.supervision.attributes == ("truth", "help")
    assert outcome.columns == (0,) and regression.columns == (1, 0) and regression.first == 1  # type: ignore[attr-defined]
    shared = plan(from_config({"terms": [{"type": "bradley_terry"}, {"type": "regression"}]})).objective.terms[1]
    assert shared.first == 0  # type: ignore[attr-defined]


def test_learned_thresholds_start_where_they_should() -> None:
    """Five levels: thresholds one apart around zero; two levels: zero. Ties: 1.5 (Rao and Kupper) and 1 (Davidson), none where they are fixed."""
    for levels, expected in (([1, 2, 3, 4, 5], [-1.5, -0.5, 0.5, 1.5]), ([1, 2, 3], [-0.5, 0.5]), ([0, 1], [0.0])):
        (raw,) = plan(from_config({"type": "ordinal", "levels": levels})).objective.parameters.values()
        assert rising(torch.tensor(raw)).tolist() == pytest.approx(expected, abs=5e-3)  # `rising` keeps them a thousandth apart at least, which it adds
    for kind, start in (("rao_kupper", 1.5), ("davidson", 1.0)):
        assert plan(from_config({"type": kind})).objective.parameters == {"tie_threshold": (raw_tie_threshold(kind, start),)}
        assert plan(from_config({"type": kind, "threshold": 2.0})).objective.parameters == {}


# --- and of the data ------------------------------------------------------------------------------------------------------------------------------

NO_PAIRS: dict[str, Any] = {"comparisons": False}
ALONE: dict[str, Any] = {**NO_PAIRS, "ignores_margins": True}
DATA: dict[str, tuple[dict[str, Any], Supervision]] = {
    "bradley_terry": ({}, Supervision()),
    "margins": ({"margins": {"source": "ratings", "scale": 0.5, "clip": 2.0}}, Supervision(margins=MarginRule("ratings", 0.5, 2.0))),
    "no margins": ({"margins": "none"}, Supervision(margins=MarginRule("none"))),
    "scaled": ({"type": "scaled_bradley_terry"}, Supervision(scaled=True)),
    "ties": ({"type": "davidson"}, Supervision(ignores_margins=True)),
    "margins left unread": ({"type": "davidson", "margins": "none"}, Supervision(margins=MarginRule("none"))),
    "plackett_luce": ({"type": "plackett_luce"}, Supervision(**ALONE, ranks=True)),
    "listwise by an attribute": ({"type": "listwise_softmax", "rating": "help"}, Supervision(**ALONE, ranks=True, rank_by="help")),
    "regression": ({"type": "regression", **TWO}, Supervision(**ALONE, attributes=("help", "truth"))),
    "ordinal": ({"type": "ordinal", "levels": [1, 2], "rating": "help"}, Supervision(**ALONE, attributes=("help",), levels=(1.0, 2.0), leveled="help")),
    "outcome": ({"type": "outcome"}, Supervision(**ALONE, attributes=("label",), outcomes=("label",))),
    "token_outcome": ({"type": "token_outcome"}, Supervision(**ALONE, attributes=("label",), outcomes=("label",), reads="response")),
    "token_divergence": ({"type": "token_divergence"}, Supervision(reads="divergence", ignores_margins=True)),
    "with padding": ({"type": "token_divergence", "padding": "include"}, Supervision(reads="divergence_padded", ignores_margins=True)),
    "steps": ({"type": "steps", "separator": "\n\n"}, Supervision(**ALONE, reads="steps", classes=2, separator="\n\n")),
    "last steps": ({"type": "steps", "classes": 3, "last_step_only": True}, Supervision(**ALONE, reads="steps", classes=3, last_step_only=True)),
    "mixed": ({"terms": [{"type": "plackett_luce"}, {"type": "hinge"}, {"type": "regression"}]}, Supervision(ranks=True, attributes=("score",))),
    "lengths": ({"length_decorrelation": True}, Supervision(lengths=True)),
    "text": ({"text": True}, Supervision(text=True)),
    "prompts": ({"cross_prompt": True}, Supervision(prompts=True)),
}


@pytest.mark.parametrize("name", DATA)
def test_what_is_read_of_the_data(name: str) -> None:
    section, supervision = DATA[name]
    made = plan(from_config(section))
    assert made.supervision == supervision
    assert made.on_tokens == (supervision.reads != "last" or supervision.text)


def coefficients(made: Plan) -> dict[str, float]:
    return dict(zip([term.name for term in made.objective.terms], made.objective.coefficients, strict=True))


def test_weights_of_terms() -> None:
    """GRM mixes (1 - a) loss + a text; what stands beside the loss is added as it is."""
    section = {"terms": [{"type": "bradley_terry", "weight": 2.0}, {"type": "plackett_luce", "weight": 0.5}], "text": 0.1, "centering": 0.01}
    made = plan(from_config(section))
    assert coefficients(made) == pytest.approx({"bradley_terry": 1.8, "plackett_luce": 0.45, "text": 0.1, "centering": 0.01})
    assert not made.objective.across
    across = plan(from_config({"zero_sum": 0.001, "cross_prompt": {"weight": 0.5, "form": "inside", "own_floor": 0.2}, "margins": "none"})).objective.across
    assert (across.zero_sum, across.cross_prompt, across.inside, across.own_floor, across.margins) == (0.001, 0.5, True, 0.2, False)
    odin = plan(from_config({"length_decorrelation": {"weight": 0.3, "orthogonal": 0.7}})).objective
    assert odin.across.length_decorrelation == 0.3 and odin.orthogonal == 0.7


# --- what is refused ------------------------------------------------------------------------------------------------------------------------------

BT, PL = {"type": "bradley_terry"}, {"type": "plackett_luce"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"terms": [BT, {**BT, "label_smoothing": 0.1}]}, "bradley_terry stands twice among the terms; give it once, with all its attributes"),
    "other tokens": ({"terms": [{"type": "token_divergence"}, {"type": "token_outcome"}]}, "token_divergence and token_outcome read different tokens"),
    "steps and tokens": ({"terms": [{"type": "steps"}, {"type": "token_outcome"}]}, "steps and token_outcome read different tokens"),
    **{
        f"steps and {name}": ({"type": "steps", name: value}, "steps gives classes, not a reward that other terms could share; let it stand alone")
        for name, value in {"centering": 0.1, "zero_sum": 0.1, "length_decorrelation": True, "text": True, "cross_prompt": True}.items()
    },
    "steps and pairs": ({"terms": [{"type": "steps"}, BT]}, "steps gives classes, not a reward that other terms could share; let it stand alone"),
    "two readings of a ranking": (
        {"terms": [PL, {"type": "listwise_softmax"}]},
        "plackett_luce and listwise_softmax would read one ranking in two ways; train one of them",
    ),
    **{
        f"weights of {name}": ({**section, "reward_weights": {"help": 1.0}}, "reward_weights weigh the attributes of one regression, gaussian or quantile term")
        for name, section in {
            "nothing": {},
            "an outcome": {"type": "outcome"},
            "steps": {"type": "steps"},
            "one attribute": {"type": "regression", "attributes": "help"},
            "attributes beside a reward": {"terms": [BT, {"type": "regression", "attributes": ["help", "truth"]}]},
        }.items()
    },
    "an attribute twice": ({"type": "regression", "attributes": ["help", "help"]}, "an attribute stands twice"),
    "an attribute named reward": ({"type": "gaussian", "attributes": ["reward", "help"]}, "an attribute named reward would be taken for the reward"),
    "two heads for attributes": (
        {"terms": [{"type": "regression"}, {"type": "gaussian"}]},
        "regression and gaussian would give the same attributes two heads; train one of them",
    ),
    **{
        f"margins of {kind}": (
            {"type": kind, "margins": "column", **({"levels": [1, 2]} if kind == "ordinal" else {})},
            f"margins are read by no term ({kind}); leave them out, or set margins: none",
        )
        for kind, term in TERM_KINDS.items()
        if not term.uses_margins
    },
    "margins of none of several": ({"terms": [PL, {"type": "regression"}], "margins": "strength"}, "margins are read by no term (plackett_luce, regression)"),
    "nothing to scale by": ({"type": "scaled_bradley_terry", "margins": "none"}, "multiplies by the margin; margins: none leaves nothing to train on"),
    "subtracted and multiplied": (
        {"terms": [{"type": "scaled_bradley_terry"}, {"type": "hinge"}]},
        "scaled_bradley_terry multiplies by the margin that the other term subtracts; train one of them",
    ),
    **{
        f"{name} without sides": ({**PL, name: value}, f"{name} looks at chosen and rejected sides, which plackett_luce does not read; add a pairwise term")
        for name, value in {"centering": 0.1, "text": True, "cross_prompt": True}.items()
    },
    "text and tokens": ({"type": "token_divergence", "text": True}, "text reads other tokens than token_divergence; train one of them"),
    **{
        f"length and {kind}": ({"type": kind, "length_decorrelation": True}, "adds a length head to one reward; it goes with pairwise and listwise terms")
        for kind in ("token_divergence", "token_outcome", "regression", "gaussian", "quantile", "outcome")
    },
    "unbiased without a chance": ({"unbiased": True}, "unbiased needs label_smoothing, the chance that a label is flipped"),
    "falling quantiles": ({"type": "quantile", "quantiles": [0.5, 0.1]}, "expected numbers between 0 and 1, each larger than the last"),
    "quantiles of 1": ({"type": "quantile", "quantiles": [0.5, 1.0]}, "expected numbers between 0 and 1, each larger than the last"),
    "falling levels": ({"type": "ordinal", "levels": [2, 1]}, "expected rising numbers"),
    "an unknown aggregate": ({"type": "steps", "aggregate": "max"}, "expected one of min, product, mean, last"),
    "an unknown source": ({"margins": "strenght"}, "expected one of column, ratings, strength, llama2_small, llama2_large, none"),
    "an unknown type": ({"type": "bradly_terry"}, "type is 'bradly_terry'; did you mean bradley_terry? known types: bradley_terry, scaled_bradley_terry"),
    "a term beside terms": ({"terms": [PL], "label_smoothing": 0.1}, "label_smoothing stands beside terms; put it into one of them"),
}
"""Name -> (section, sentence)."""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_combinations(tmp_path: Path, name: str) -> None:
    """In Python, in a file (which names the line where the section begins, or a later one), and as flags."""
    section, sentence = WRONG[name]
    with pytest.raises(ConfigError, match=rf"^loss[^\n]*: [^\n]*{re.escape(sentence)}"):
        from_config(section)
    with pytest.raises(ConfigError, match=rf"run\.yaml:[4-9]: `loss[^`]*`: [^\n]*{re.escape(sentence)}"):
        read_settings(as_file(tmp_path, section), [])
    with pytest.raises(ConfigError, match=rf": `loss[^`]*`: [^\n]*{re.escape(sentence)}"):
        from_flags(*(part for key, value in section.items() for part in (f"--loss.{key}", json.dumps(value))))


@pytest.mark.parametrize("section", [{"type": "regression"}, {"type": "scaled_bradley_terry"}, {"type": "plackett_luce"}, {"type": "steps"}], ids=str)
def test_off_topic_negatives_need_a_term_that_compares(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"which {section['type']} does not compare"):
        plan(from_config(section), off_topic=1)
    assert plan(from_config(section)).settings == from_config(section)
    assert plan(from_config({"terms": [BT, {"type": "regression"}]}), off_topic=1).supervision.comparisons


def test_weights_of_unknown_attributes_are_refused() -> None:
    with pytest.raises(ConfigError, match="loss.reward_weights names humour, which is not among the attributes help, truth"):
        plan(from_config({"type": "regression", **TWO, "reward_weights": {"help": 1.0, "humour": 1.0}}))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--loss.label_smoothing", "0.7"], "flag --loss.label_smoothing: `loss.label_smoothing` is 0.7: input should be less than 0.5"),
        (["--loss.label_smoothig", "0.1"], "flag --loss.label_smoothig: unknown key `loss.label_smoothig`; did you mean `loss.label_smoothing`?"),
        (["--loss.margn", "none"], "flag --loss.margn: unknown key `loss.margn`; did you mean `loss.margins`?"),
        (["--loss.margins", "strenght"], "flag --loss.margins: `loss.margins.source`: expected one of column"),
        (["--loss.margins.sorce", "x"], "flag --loss.margins.sorce: unknown key `loss.margins.sorce`; did you mean `loss.margins.source`?"),
        (["--loss.cross_prompt.temprature", "1"], "unknown key `loss.cross_prompt.temprature`; did you mean `loss.cross_prompt.temperature`?"),
        (["--loss.cross_prompt", "0"], "flag --loss.cross_prompt: `loss.cross_prompt.weight` is 0: input should be greater than 0"),
        (["--loss.text.variant", "ppo"], "flag --loss.text.variant: `loss.text.variant` is 'ppo': input should be 'sft', 'dpo' or 'dpo_free'"),
        (["--loss.text", "1"], "flag --loss.text: `loss.text.weight` is 1: input should be less than 1"),
        (["--loss.length_decorrelation.ortogonal", "1"], "did you mean `loss.length_decorrelation.orthogonal`?"),
        (["--loss.type", "hinge", "--loss.gamma", "1"], "flag --loss.gamma: unknown key `loss.gamma`; known keys: weight, label_smoothing, unbiased, margins"),
        (["--loss.type", "focal", "--loss.gama", "1"], "flag --loss.gama: unknown key `loss.gama`; did you mean `loss.gamma`?"),
        (["--loss.type", "ordinal"], "`loss.levels` is missing; set it in the file or with --loss.levels"),
        (["--loss.type", "quantile", "--loss.quantiles", "[0.9, 0.1]"], "flag --loss.quantiles: `loss.quantiles`: expected numbers between 0 and 1"),
        (["--loss.type", "hing"], "flag --loss.type: "),
        (["--training.loss_type", "hinge"], "flag --training.loss_type: `training.loss_type` is set with loss.type"),
        (["--training.use_margins", "false"], "`training.use_margins` is set with loss.margins"),
        (["--training.center_rewards_coefficient", "0.1"], "`training.center_rewards_coefficient` is set with loss.centering"),
    ],
    ids=str,
)
def test_flags_are_named_with_the_nearest_key(flags: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_flags(*flags)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("loss:\n  type: hinge\n  label_smothing: 0.1\n", "run.yaml:6: unknown key `loss.label_smothing`; did you mean `loss.label_smoothing`?"),
        ("loss:\n  type: hinge\n\n  label_smoothing: 0.9\n", "run.yaml:7: `loss.label_smoothing` is 0.9: input should be less than 0.5"),
        (
            "loss:\n  terms:\n    - type: bradley_terry\n    - type: regression\n      atributes: [a]\n",
            "run.yaml:8: unknown key `loss.terms.1.atributes`; did you mean `loss.terms.1.attributes`?",
        ),
        (
            "loss:\n  terms:\n    - type: bradley_terry\n    - type: ordinal\n      levels: [3, 1]\n",
            "run.yaml:8: `loss.terms.1.levels`: expected rising numbers",
        ),
        ("loss:\n  terms:\n    - type: bradley_terry\n    - type: ordinl\n", "run.yaml:7: `loss.terms.1`: type is 'ordinl'; did you mean ordinal?"),
        ("loss:\n  terms:\n    - weight: 2\n", "run.yaml:6: `loss.terms.0`"),
        ("loss:\n  terms: []\n", "run.yaml:5: `loss.terms` is []"),
        ("loss: hinge\n", "run.yaml:4: `loss` is 'hinge'"),
        ("loss:\n  margins: {source: column,\n            clp: 2}\n", "run.yaml:6: unknown key `loss.margins.clp`; did you mean `loss.margins.clip`?"),
    ],
)
def test_files_are_named_with_line_and_nearest_key(tmp_path: Path, loss: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(as_file(tmp_path, loss), [])
    assert sentence in str(caught.value)


SECTION_KEYS_IN_A_TERM = {"margins": "none", "centering": 0.1, "text": "sft", "cross_prompt": 0.5}


@pytest.mark.parametrize("key", SECTION_KEYS_IN_A_TERM)
def test_a_key_of_the_section_in_a_term_is_sent_to_the_section(key: str) -> None:
    """It is known, a level higher: neither suggested where it was refused, nor answered with the keys of the part that it names."""
    section = {"terms": [{"type": "hinge", key: SECTION_KEYS_IN_A_TERM[key]}]}
    for read in (lambda: from_config(section), lambda: from_flags("--loss.terms", json.dumps(section["terms"]))):
        with pytest.raises(ConfigError, match=rf"unknown key `?loss\.terms\.0\.{key}`?") as caught:
            read()
        hint = str(caught.value).partition("; ")[2]
        assert f"loss.terms.0.{key}" not in hint and re.search(rf"loss\.{key}\b", hint)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"loss": {"label_smoothing": 0.7}}, r"^loss\.label_smoothing:? is 0\.7"),
        ({"loss": {"unbiased": True}}, "^loss: unbiased needs label_smoothing"),
        ({"loss": {"type": "hinge", "gamma": 1}}, r"^unknown key loss\.gamma; known keys: weight, label_smoothing"),
        ({"loss": {"margin": "none"}}, r"^unknown key loss\.margin; did you mean `loss\.margins`\?"),
        ({"loss": {"type": "ordinal"}}, r"^loss\.levels:? (is missing|field required)"),
        ({"loss": {"terms": [BT, {"type": "ordinal"}]}}, r"^loss\.terms\.1\.levels:? (is missing|field required)"),
        ({"loss": {"terms": [BT, {"type": "hinge", "gamma": 1}]}}, r"^unknown key loss\.terms\.1\.gamma"),
        ({"label_smoothing": 0.7}, r"label_smoothing:? is 0\.7"),
        ({"loss_type": "hing"}, "type is 'hing'; did you mean hinge\\?"),
    ],
    ids=str,
)
def test_a_dictionary_s_errors_name_its_own_keys(fields: dict[str, Any], sentence: str) -> None:
    """What stood in the section itself, or in TRL's fields, is not said to stand in terms that nobody wrote."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        from_config(**fields)
    assert ("terms" in str(caught.value)) == ("terms" in (fields.get("loss") or {}))


@pytest.mark.parametrize(
    "field", [{"loss_type": "hinge"}, {"use_margins": False}, {"label_smoothing": 0.1}, {"center_rewards_coefficient": 0.01}], ids=lambda f: next(iter(f))
)
@pytest.mark.parametrize("loss", [{"type": "hinge"}, {}])
def test_trl_s_fields_beside_a_section_are_refused(loss: dict[str, Any], field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss is given beside loss_type, use_margins, label_smoothing or center_rewards_coefficient; say it once, in loss"):
        from_config(loss, **field)
