"""What a reward is made of: read at each token, at each step, or as the response grows.

A decoder has an output at every token, but only the one at the last position was trained (unless the loss read others): what the others say is a hint at
where the verdict forms, not a reward. A model of step rewards is read where it was trained, at the end of each step. Every other scorer (encoders,
endpoints, ensembles) is asked for the reward of the response cut off after more and more of its words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from palate.errors import DataError
from palate.explorer.rewards import Model
from palate.scoring.local import LocalScorer
from palate.types import Conversation, Exchange, TokenIds, text_of

CUTS = 32  # places at which a growing response is read: a forward pass each
LEVELS = 5  # shades to either side of the middle
WORD = re.compile(r"\S+\s*|\s+")
WINDOW = 8  # tokens decoded together at most, to see where one begins: no character has more pieces

SAID = {
    "tokens": "The head of the model, read at every token of the response. Only the last position was trained to be a reward; the others show where the "
    "verdict forms, and are no rewards of their parts.",
    "steps": "P(the step is good) at the end of each step, where the model was trained to say it.",
    "growing": "The reward of the response cut off after each part: this model has one output for a whole text. A text that ends in the middle is not "
    "what it was trained on.",
}


class Piece(NamedTuple):
    text: str
    value: float  # NaN: not read here


class Heat(NamedTuple):
    """Pieces of each response, and by which of the three ways they were read."""

    way: str  # tokens, steps or growing
    sides: tuple[tuple[Piece, ...], ...]
    middle: float
    reach: float  # from the middle to the darkest shade

    def level(self, value: float) -> int:
        """-LEVELS to LEVELS; 0 in the middle, and where nothing was read."""
        if not np.isfinite(value) or not self.reach:
            return 0
        return int(np.clip(np.round(LEVELS * (value - self.middle) / self.reach), -LEVELS, LEVELS))

    @property
    def text(self) -> str:
        return SAID[self.way]


def heat_of(model: Model, exchanges: Sequence[Exchange]) -> Heat:
    """Every response read piece by piece, all on one scale. Raises DataError where a sequence is too long for the model."""
    scorer = model.opened.local
    if scorer is not None and model.opened.description.get("input_format") is None:  # a model with a format of its own is asked through it
        with model.lock:
            if scorer.readout.aggregate is not None:
                return _on_one_scale("steps", [_steps(scorer, exchange) for exchange in exchanges])
            if model.opened.description["decoder"]:
                return _on_one_scale("tokens", [_tokens(scorer, exchange) for exchange in exchanges])
    return _on_one_scale("growing", [_growing(model, exchange) for exchange in exchanges])


def _on_one_scale(way: str, sides: Sequence[Sequence[Piece]]) -> Heat:
    values = np.array([piece.value for side in sides for piece in side])
    values = values[np.isfinite(values)]
    if way == "steps":
        return Heat(way, tuple(map(tuple, sides)), 0.5, 0.5)
    middle = float(np.median(values)) if len(values) else 0.0
    # the furthest 2 % may be darker than the scale: the first token often lies far off
    reach = float(np.quantile(np.abs(values - middle), 0.98)) if len(values) else 0.0
    return Heat(way, tuple(map(tuple, sides)), middle, reach)


# --- tokens ---------------------------------------------------------------------------------------------------------------------------------------


def _tokens(scorer: LocalScorer, exchange: Exchange) -> list[Piece]:
    ids = scorer.fit([exchange], "error")[0]
    assert ids is not None  # "error" raises
    batch: dict[str, Any] = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    batch |= {"read_row": torch.zeros(len(ids), dtype=torch.long), "read_position": torch.arange(len(ids))}
    with torch.inference_mode():
        outputs = scorer.model(**{name: tensor.to(scorer.device) for name, tensor in batch.items()}).logits.float().cpu().numpy()
    rewards = outputs @ np.array(scorer.readout.weights, dtype=np.float32)
    uncut = scorer.encoder.encode([exchange])[0]
    start = 0 if isinstance(exchange.response, TokenIds) else scorer.encoder.prompt_length(exchange, uncut) - (len(uncut) - len(ids))
    return pieces(scorer.tokenizer, ids[start:], rewards[start:].tolist())


def pieces(tokenizer: Any, ids: Sequence[int], values: Sequence[float]) -> list[Piece]:
    """Token ids as text with the value at each; tokens that are parts of one character stand together, with the value at the last of them.

    Tokens are decoded with those before them, without which some tokenizers lose the blank that a word begins with.
    """
    found: list[Piece] = []
    first = begun = 0  # ids[first:begun] are shown already and decoded again for their effect on what follows
    for i in range(len(ids)):
        before, after = (tokenizer.decode(list(ids[first:end]), clean_up_tokenization_spaces=False) for end in (begun, i + 1))
        whole = not after.endswith("\ufffd") and len(after) > len(before)
        if whole or i + 1 - begun >= WINDOW or i + 1 == len(ids):
            found.append(Piece(after[len(before) :], float(values[i])))
            first, begun = begun, i + 1
    return found


# --- steps ----------------------------------------------------------------------------------------------------------------------------------------


def _steps(scorer: LocalScorer, exchange: Exchange) -> list[Piece]:
    values = scorer.score_steps([exchange])[0].tolist()
    separator = scorer.readout.separator
    parts = text_of(exchange.response).split(separator)
    found, at = [], 0
    for i, part in enumerate(parts):
        text = part + (separator if i + 1 < len(parts) else "")
        found.append(Piece(text, values[at] if part.strip() else float("nan")))
        at += bool(part.strip())
    return found


# --- growing --------------------------------------------------------------------------------------------------------------------------------------


def _growing(model: Model, exchange: Exchange) -> list[Piece]:
    if isinstance(exchange.response, TokenIds):
        raise DataError("a response of token ids has no words at which it could be cut")
    words = WORD.findall(text_of(exchange.response) if isinstance(exchange.response, str) else str(exchange.response[-1].get("content") or ""))
    if not words:
        raise DataError("the response is empty: there is nothing to read piece by piece")
    ends = np.unique(np.linspace(1, len(words), min(CUTS, len(words))).round().astype(int)).tolist()
    cut = [Exchange(exchange.prompt, _shortened(exchange.response, "".join(words[:end])), exchange.template_args) for end in ends]
    values = model.score(cut).tolist()
    return [Piece("".join(words[start:end]), value) for start, end, value in zip([0, *ends[:-1]], ends, values, strict=True)]


def _shortened(response: Conversation, text: str) -> Conversation:
    """The response with this text in place of its own, or of its last message's."""
    if isinstance(response, str):
        return text
    *before, last = response
    return (*before, {**last, "content": text})  # type: ignore[dict-item]
