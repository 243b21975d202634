"""The tensors of a stranger's folder: safetensors, or a pickle where that was allowed; and what else in such a folder must not be trusted.

Weight files are named by an index that anyone may have written, a `.bin` is a program, and `auto_map` in a config is code to import. Nothing of
this is followed unless the user says so.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palate.errors import ModelError

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
"""Names that transformers gives to whole weight files; split ones have an index beside them."""

LFS_POINTER = b"version https://git-lfs"
"""How the file begins that Git leaves where a large one was not fetched."""

CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json")


class Weights(NamedTuple):
    """Files that hold a model's tensors."""

    files: tuple[Path, ...]
    pickled: bool

    def names(self) -> list[str]:
        """Names of all tensors, from the headers of safetensors alone. A pickle would have to be read whole: it has none to show."""
        return [] if self.pickled else [name for path in self.files for name in _names(path)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where it is none; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def find_weights(folder: Path, whole: tuple[str, str] = (SAFE, PICKLED)) -> Weights | None:
    """The weight files of a folder, safetensors before pickles; None where it has neither."""
    for name, pickled in zip(whole, (False, True), strict=True):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return Weights(tuple(_split_files(index)), pickled)
        if (folder / name).is_file():
            return Weights((folder / name,), pickled)
    return None


def _split_files(index: Path) -> list[Path]:
    """The files that an index names; each must lie beside it."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{index}: has no weight_map")
    files = sorted({str(name) for name in named.values()})
    for name in files:
        if name != Path(name).name or name in (".", "..") or "\\" in name:
            raise ModelError(f"{index}: weight_map names {name!r}; expected files in this folder, so nothing was read")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: weight_map names {name!r}, which is not there; the download is incomplete")
    return [index.parent / name for name in files]


def read_tensors(weights: Weights, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Every tensor by name. A pickle is read with `allow_pickle` alone, and then as tensors only (`torch.load(weights_only=True)`)."""
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        for name, tensor in _unpickled(path, allow_pickle) if weights.pickled else _safe(path):
            if name in tensors:
                raise ModelError(f"{path}: {name} is in another file of this model as well")
            tensors[name] = tensor
    return tensors


def _names(path: Path) -> list[str]:
    try:
        with safe_open(str(path), "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        reason = "a Git LFS pointer in place of the weights; fetch them with `git lfs pull`" if pointer else str(error)
        raise ModelError(f"{path}: not a readable safetensors file: {reason}") from error


def _safe(path: Path) -> Iterator[tuple[str, Tensor]]:
    names = _names(path)
    with safe_open(str(path), "pt") as file:
        for name in names:
            yield name, file.get_tensor(name)


def _unpickled(path: Path, allowed: bool) -> Iterator[tuple[str, Tensor]]:
    refuse_pickle(path, allowed)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: holds more than tensors, or is broken ({reason}); it was not run. Convert it where you trust it") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected tensors by name, found {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: expected tensors by name, found {name!r}: {type(tensor).__name__}")
        yield name, tensor


def refuse_pickle(path: Path, allowed: bool) -> None:
    if not allowed:
        raise ModelError(f"{path} is a pickle, which may carry code. If you trust where it is from, pass --allow-pickle (tensors alone are read from it)")


def refuse_code(folder: Path, trusted: bool) -> None:
    """Raises ModelError where a config asks for code to be imported and nobody said that this is fine."""
    for name in CONFIGS:
        if read_json(folder / name).get("auto_map") and not trusted:
            raise ModelError(
                f"{folder / name}: auto_map asks for code of this model to be run. Pass --trust-remote-code if you have read it, "
                "or take auto_map out if transformers' own class is meant"
            )
