"""The files of docs/rl.md run as they stand; what they take from their stacks is stood in for."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import chatml_tokenizer, tiny_model

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).resolve().parents[2] / "docs" / "rl.md").read_text(encoding="utf-8"), re.DOTALL)
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    tiny_model("qwen3", seed=3).save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)
    return folder


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


CALLS: dict[str, Any] = {
    "trl_reward": lambda made: made["reward"]([CHAT[:1]], [CHAT[1:]], completion_ids=[[1]])[0],
    "openrlhf_reward": lambda made: made["reward_func"](["q a"], ["q"], [""])["rewards"].item(),
    "verl_score": lambda made: asyncio.run(made["compute_score"]("d", "a", "g", {"question": "q"}))["score"],
    "NemoRLEnvironment": lambda made: made["RewardEnvironment"]({"source": made["source"]}).step([CHAT], [None]).rewards.item(),
    "ms_swift_orm": lambda made: made["orms"]["palate"]()(["a"], messages=[CHAT])[0] + float(made["rm_plugins"]["palate"]()([{"messages": CHAT}])[0]),
    "verifiers_reward": lambda made: asyncio.run(made["rubric"].funcs[0](prompt=CHAT[:1], completion=CHAT[1:])),
    "slime_reward": lambda made: asyncio.run(made["rm"](None, SimpleNamespace(prompt=CHAT[:1], response="a"))),
    "areal_reward": lambda made: made["reward_fn"]("q", "a", [1], [2]),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_file_of_each_stack_gives_a_reward(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_MODEL", str(checkpoint))
    registered: dict[str, str] = {}
    stand_in(monkeypatch, "ray", remote=lambda cls: cls)
    for package in ("nemo_rl", "nemo_rl.environments", "swift"):
        stand_in(monkeypatch, package)
    stand_in(monkeypatch, "nemo_rl.environments.utils", register_env=registered.__setitem__)
    stand_in(monkeypatch, "swift.rewards", orms={}, rm_plugins={})
    stand_in(monkeypatch, "verifiers", Rubric=SimpleNamespace)
    (block,) = [block for block in BLOCKS if f"import {name}" in block and "Shaped" not in block]
    made: dict[str, Any] = {"source": str(checkpoint), "__name__": "reward"}
    exec(compile(block, f"docs/rl.md:{name}", "exec"), made)
    reward = CALLS[name](made)
    assert isinstance(reward, float) and torch.isfinite(torch.tensor(reward))
    assert registered == ({"palate": "reward.RewardEnvironment"} if name == "NemoRLEnvironment" else {})


def test_every_stack_has_its_file() -> None:
    from palate.serving import adapters

    functions = {name for name in adapters.__all__ if inspect.isfunction(getattr(adapters, name)) or name == "NemoRLEnvironment"}
    assert functions - {"ms_swift_plugin", "verifiers_group_reward"} == set(CALLS)


def test_judges_are_called_as_the_page_says() -> None:
    """Each line of the block on judges, with judges that are asked nothing."""
    (block,) = [block for block in BLOCKS if "judge_reward" in block]
    made: dict[str, Any] = {"judge": SimpleNamespace(compare=None), "rating_judge": SimpleNamespace(rate=None)}
    exec(compile(block, "docs/rl.md:judges", "exec"), made)
    assert callable(made["reward"]) and not inspect.iscoroutinefunction(made["reward"]) and callable(made["trainer_judge"].judge)
