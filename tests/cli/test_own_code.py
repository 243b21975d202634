"""Models whose folder brings code of its own, at the commands that score: refused before the code runs, read by it where that is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.interchange import stacks
from tests.interchange.checkpoints import checkpoint
from tests.interchange.test_importing import OWN_CODE

from palate.cli.main import main
from palate.errors import ConfigError, ModelError
from palate.scoring.local import load_scorer
from palate.scoring.sources import open_scorer

PROMPT, RESPONSES = "what is paris?", ("the capital of france", "a poem")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[float]]:
    """(a checkpoint of a kind that transformers does not have, its rewards of the responses); its code leaves the file `ran` when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = checkpoint(tmp_path / "own")
    rewards = load_scorer(folder).score([(PROMPT, response) for response in RESPONSES]).tolist()
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{OWN_CODE}")
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification"}
    stacks.edit_config(folder, model_type="own", architectures=["OwnForSequenceClassification"], auto_map=code)
    return folder, rewards


def run(command: str, folder: Path, *flags: str) -> int:
    """The exit code; what was written is beside the folder, as `output`."""
    data = folder.parent / "data.jsonl"
    row = {"prompt": PROMPT, "chosen": RESPONSES[0], "rejected": RESPONSES[1]} if command == "eval" else {"prompt": PROMPT, "responses": RESPONSES}
    data.write_text(json.dumps(row) + "\n")
    own_flags = {"score": [], "eval": ["--no-cache"], "best-of": ["--keep", "all"]}[command]
    return main([command, "--model", str(folder), "--data", str(data), "--output", str(folder.parent / "output.jsonl"), *own_flags, *flags])


@pytest.mark.parametrize("command", ["score", "eval", "best-of"])
def test_code_runs_only_where_that_is_allowed(command: str, own: tuple[Path, list[float]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, rewards = own
    ran, output = folder.parent / "ran", folder.parent / "output.jsonl"
    assert run(command, folder) == ModelError.exit_code
    assert "trust_remote_code" in capsys.readouterr().err and not ran.exists() and not output.exists()
    assert run(command, folder, "--trust-remote-code") == 0
    assert ran.exists()
    text = output.read_text()
    if command == "eval":
        found = [json.loads(text)["mean_margin"]]
        rewards = [rewards[0] - rewards[1]]
    elif command == "score":
        found = json.loads(text)["reward"]
    else:
        found = [row["reward"] for row in sorted(map(json.loads, text.splitlines()), key=lambda row: RESPONSES.index(row["completion"]))]
    assert found == pytest.approx(rewards, abs=1e-5)


def test_shards_are_scored_by_own_code_too(own: tuple[Path, list[float]]) -> None:
    folder, rewards = own
    parts = folder.parent / "parts"
    data = folder.parent / "data.jsonl"
    data.write_text(json.dumps({"prompt": PROMPT, "responses": RESPONSES}) + "\n")
    assert main(["score", "--model", str(folder), "--data", str(data), "--output", str(parts), "--trust-remote-code"]) == 0
    (part,) = parts.glob("part-*.jsonl")
    assert json.loads(part.read_text())["reward"] == pytest.approx(rewards, abs=1e-5)


@pytest.mark.parametrize("source", ["dpo:a,b", "genrm:a", "http://127.0.0.1:1"])
def test_what_runs_no_code_of_its_own_says_so(source: str) -> None:
    with pytest.raises(ConfigError, match="code that comes with a model is run for reward models"):
        open_scorer(source, trust_remote_code=True)


def test_recorded_rewards_need_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["best-of", "--rewards", "reward", "--data", "absent.jsonl", "--output", str(tmp_path / "best.jsonl"), "--trust-remote-code"]
    assert main(arguments) == ConfigError.exit_code and "nothing is scored" in capsys.readouterr().err
