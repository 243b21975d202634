"""What a user says of another stack's model where its files do not, and what was found in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from palate.interchange.conventions import ENDOFTEXT
from palate.interchange.weights import Weights

Say = Callable[[str], None]
"""Hears every decision, one line each."""


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a model where its files do not."""

    format: str = "auto"
    template: str | None = None  # as `model.chat_template`; `deepspeed-chat`; `none`: plain text alone
    pad_token: str | None = None
    eos_token: str | None = None
    end_text: str = ENDOFTEXT
    tokenizer: str | None = None  # where the folder has none
    base: str | None = None
    value_head: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)  # of several outputs in the reward
    max_length: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def use_safetensors(self) -> bool | None:
        """What transformers is told: True for nothing else, None for whichever there is."""
        return None if self.allow_pickle else True


class Found(NamedTuple):
    """A stranger's folder, read: its layout, the trainer whose conventions hold, its weights where they are its own."""

    folder: Path
    layout: str
    convention: str
    weights: Weights | None
    tensors: dict[str, Tensor] | None  # of a pickle, which had to be read to be recognised
