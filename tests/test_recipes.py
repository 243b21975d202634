"""Every recipe is a run that would start: its settings hold, and a dry run with a tiny stand-in for model and data goes through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palate.training.run import dry_run
from palate.training.settings import read_settings

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))

ELSEWHERE = {
    "bf16": "false",
    "fsdp": '""',
    "fsdp_config": "{}",
    "deepspeed": "null",
    "gradient_checkpointing": "false",
    "optim": "adamw_torch",
    "use_cpu": "true",
}
"""What one process without a GPU cannot do; everything else is taken as it stands."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_of_the_recipe(recipe: Path, base_models: dict[str, Path], pairs: list[dict[str, Any]], write_jsonl: Callable[..., Path]) -> None:
    settings = read_settings(recipe, [])  # as it stands
    data = str(write_jsonl([{**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(pairs * 5)]))
    flags = ["--model.name_or_path", str(base_models["qwen3"]), "--model.dtype", "float32", "--data.train", data, "--data.eval.split", "0.1"]
    if isinstance(settings.data.eval, list):
        flags = [*flags[:-2], "--data.eval", "null"]
    if settings.model.quantization:
        flags += ["--model.quantization", "null"]
    flags += [part for key, value in ELSEWHERE.items() for part in (f"--training.{key}", value)]
    plan = dry_run(read_settings(recipe, flags))
    assert plan["learning_rate"] == settings.training["learning_rate"] and plan["encoded"]["train"]["tokens"] > 0
    assert plan["packing"]["packing"] == "shared"


def test_recipes_name_what_lies_beside_them() -> None:
    zero = json.loads((RECIPES[0].parent / "zero3.json").read_text())
    assert zero["zero_optimization"]["stage"] == 3
    assert "--config recipes/fsdp2-multinode.yaml" in (RECIPES[0].parent / "fsdp2-multinode.slurm").read_text()
