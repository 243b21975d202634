"""Prompts -> responses of three sources -> a judge -> preference rows -> a reward model, which agrees with the judge above chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.judging.stub_server import Dials, running
from tests.judging.stubs import Counted

from palate.cli.main import main
from palate.judging.build import build
from palate.judging.caller import Caller
from palate.judging.calls import ChatRequest
from palate.judging.candidates import read_candidates
from palate.judging.combining import BothOrders
from palate.judging.function_client import FunctionClient
from palate.judging.generation import Prompt, generate
from palate.judging.judge import ChatJudge
from palate.judging.sources import parse_generation
from palate.scoring.sources import open_scorer
from palate.types import Exchange

MANNERS = {"polite": "Sure, here is what you asked for", "plain": "the answer is", "rude": "No, go away, you fool"}
STRENGTHS = {"polite": 2.0, "plain": 0.0, "rude": -2.0}


def write(request: ChatRequest) -> str:
    """A source writes in its manner, and says its strength for the judge to see."""
    number = int(np.random.default_rng(list(request.key("x"))).integers(1000))
    return f"{MANNERS[request.model]} {number} (strength {STRENGTHS[request.model]})"


def rows_of(subjects: range) -> list[dict[str, object]]:
    settings = parse_generation({"sources": [{"model": model} for model in MANNERS], "per_prompt": 3})
    prompts = [Prompt(f"tell me about number {k}", f"{k}") for k in subjects]
    generated = generate(prompts, settings, {None: Caller(FunctionClient(write))})
    found = read_candidates((f"row {k}", row) for k, row in enumerate(generated.rows))
    judge = ChatJudge(Caller(Counted(Dials(position_bias=0.5)).client), "stub")
    return build(BothOrders(judge).judge_pairs, found.prompts, found.responses, ids=found.ids, provenance=judge.provenance()).rows


def test_a_reward_model_learns_what_the_judge_prefers(tmp_path: Path, base_models: dict[str, Path]) -> None:
    train, test = rows_of(range(40)), rows_of(range(100, 120))
    assert len(train) == 120 and all(row["consistent"] for row in train)
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in train))
    flags = {
        "model.name_or_path": base_models["qwen3"],
        "data.train": path,
        "data.max_length": 96,
        "loss.margins": "none",
        "training.output_dir": tmp_path / "out",
        "training.learning_rate": "1e-3",
        "training.max_steps": 50,
        "training.per_device_train_batch_size": 8,
        "training.use_cpu": "true",
        "training.report_to": "none",
    }
    assert main(["train", *(part for key, value in flags.items() for part in (f"--{key}", str(value)))]) == 0
    scorer = open_scorer(str(tmp_path / "out")).scorer
    chosen, rejected = (scorer.score([Exchange(str(row["prompt"]), str(row[side])) for row in test]) for side in ("chosen", "rejected"))
    assert np.mean(np.asarray(chosen) > np.asarray(rejected)) > 0.8, "60 pairs at 0.5 exceed 0.8 once in a million"


def test_the_commands_from_fifty_prompts_to_a_measured_model(tmp_path: Path, base_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the README has them, against endpoints: one judge that likes length (and a little what stands first), so that is what the model must learn."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tell me about number {k}."}) + "\n" for k in range(50)))
    long, short = "amber basalt cedar delta ember fjord garnet harbour island juniper", "amber basalt cedar"
    gold = [{"prompt": f"Say more about {k}.", "chosen": f"{long} {k}", "rejected": f"{short} {k}"} for k in range(30)]
    Path("gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    with running(Dials(length_bias=8.0, position_bias=0.1)) as stub:
        sources = [{"model": name, "base_url": stub.url, "price": [1.0, 2.0]} for name in ("small", "large", "own")]
        Path("sources.yaml").write_text(yaml.safe_dump({"per_prompt": 4, "sources": sources}))
        judge = ["--judge", "judge", "--base-url", stub.url, "--price", "1", "2"]
        assert main(["generate", "--config", "sources.yaml", "--prompts", "prompts.jsonl", "--output", "responses.jsonl"]) == 0
        assert main(["judge", "audit", "--data", "gold.jsonl", *judge, "--min-kappa", "0.6", "--output", "audit.json"]) == 0
        build = ["build", "--data", "responses.jsonl", *judge, "--output", "prefs.jsonl"]
        assert main([*build, "--dry-run"]) == 0 and not Path("prefs.jsonl").exists()
        assert main([*build, "--max-cost", "2"]) == 0
    card = json.loads(Path("prefs.card.json").read_text())
    assert card["prompts"] == 50 and card["judged_pairs"] == 300 and 0 < card["calls"]["cost"] < 2 and card["rows"] > 100
    built = [json.loads(line) for line in Path("prefs.jsonl").read_text().splitlines()]
    asked = list(dict.fromkeys(row["prompt"] for row in built))
    for name, prompts in (("train.jsonl", set(asked[:40])), ("test.jsonl", set(asked[40:]))):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in built if row["prompt"] in prompts))
    settings = {"model.name_or_path": base_models["qwen3"], "data.train": "train.jsonl", "data.max_length": 128, "loss.margins": "none"}
    training = {"output_dir": "out", "max_steps": 160, "learning_rate": "1e-3", "per_device_train_batch_size": 8, "use_cpu": "true", "report_to": "none"}
    flags = settings | {f"training.{name}": value for name, value in training.items()}
    assert main(["train", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]) == 0
    assert main(["eval", "--model", "out", "--data", "test.jsonl", "--output", "results.json"]) == 0
    assert json.loads(Path("results.json").read_text())["accuracy"] > 0.8, "prompts that it did not see, the same judge; 0.91 to 1.00 in twelve runs"
