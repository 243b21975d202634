"""A gate beside a checkpoint of attribute heads: one reward from the attributes, weighted by what the prompt asks for, verbosity taken out.

    reward = scale * sum_i g_i(prompt) * (z_i - lambda_i v)

z: standardised attributes; v: standardised verbosity (an attribute, or the response's length in tokens); g: softmax of an MLP on the prompt's embedding.
`gate.safetensors` and `gate.json` hold it; `multi_objective/gating.py` fits it. A loader that knows no gates gives the attributes alone.
Source: Wang et al. 2024 (ArmoRM, arXiv 2406.12845), section 3. Its published code computes the lambdas and trains and scores without them; here
training and scoring both go through `debiased`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palate.data.tokenization import as_exchange
from palate.errors import ContractError, DataError, StorageError
from palate.models.checkpoints import score_tolerance, write_text
from palate.models.reward_model import is_decoder
from palate.scoring.local import LocalScorer, exchange_from_json
from palate.types import Conversation, Exchange, TokenIds

GATE_NAME, GATE_WEIGHTS = "gate.json", "gate.safetensors"
GATE_VERSION = 1
LENGTH = "length"
"""Verbosity as the length of a response in tokens, in place of an attribute."""


class Gate(nn.Module):
    """Prompt embeddings [N, H] to attribute weights [N, A] that add up to 1; `scale` turns the weighted sum into log-odds."""

    def __init__(self, width: int, attributes: int, *, hidden: Sequence[int], temperature: float, dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = []
        sizes = (width, *hidden)
        for inside, outside in pairwise(sizes):
            layers += [nn.Linear(inside, outside), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], attributes))
        self.temperature = temperature
        self.scale = nn.Parameter(torch.ones(()))
        self.centre, self.spread = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def forward(self, prompts: Tensor) -> Tensor:
        return torch.softmax(self.layers((prompts - self.centre) / self.spread) / self.temperature, dim=-1)


@dataclass(frozen=True)
class GateSettings:
    """What `gate.json` holds: how attributes are standardised and freed of verbosity, the shape of the MLP, and examples to be replayed."""

    attributes: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    against: str | None = None  # an attribute, `length`, or None: nothing is taken out
    length_mean: float = 0.0
    length_deviation: float = 1.0
    lambdas: tuple[float, ...] = ()  # one an attribute, where `against` is set
    hidden: tuple[int, ...] = (1024, 1024, 1024)
    temperature: float = 10.0
    golden: tuple[Mapping[str, Any], ...] = ()  # {exchange, score}
    about: Mapping[str, Any] = field(default_factory=dict)  # how it was fitted, for people


class GateInputs(NamedTuple):
    outputs: np.ndarray  # [N, A] attributes as the heads give them
    lengths: np.ndarray  # [N] tokens of the responses
    prompts: np.ndarray  # [M, H] embeddings of the distinct prompts
    prompt: np.ndarray  # [N] the prompt of each response


def debiased(settings: GateSettings, outputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Standardised attributes less their lambdas times standardised verbosity. [N, A], [N] -> [N, A]"""
    standard = (outputs - np.array(settings.means)) / np.array(settings.deviations)
    if settings.against is None:
        return standard
    return standard - verbosity(settings, standard, lengths)[:, None] * np.array(settings.lambdas)


def verbosity(settings: GateSettings, standard: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """v [N] of standardised attributes [N, A] and lengths [N]."""
    if settings.against == LENGTH:
        return (lengths - settings.length_mean) / settings.length_deviation
    found: np.ndarray = standard[:, settings.attributes.index(str(settings.against))]
    return found


def gate_inputs(scorer: LocalScorer, conversations: Sequence[Any], *, progress: bool = False, on_long: str | None = None) -> GateInputs:
    """What a gate reads of N conversations. Raises DataError for one without a prompt.

    A prompt's embedding is what the head would read at its end: of a decoder the hidden state at the prompt's last token, which no response can change;
    of an encoder that of the prompt alone. Beyond max_length a prompt keeps its end.
    """
    exchanges = [as_exchange(item) for item in conversations]
    outputs = scorer.outputs(exchanges, progress=progress, on_long=on_long)
    limit, prefix = scorer.encoder.max_length, len(scorer.encoder.rules.prefix)
    places: dict[tuple[int, ...], int] = {}
    prompt, lengths = [], []
    for i, (exchange, ids) in enumerate(zip(exchanges, scorer.encoder.encode(exchanges), strict=True)):
        if not exchange.prompt or isinstance(exchange.prompt, TokenIds) or isinstance(exchange.response, TokenIds):
            raise DataError(f"conversation {i} has no prompt of its own, which a gate reads; give (prompt, response) pairs or messages")
        own = scorer.encoder.prompt_ids(exchange)
        lengths.append(max(1, len(ids) - len(own)))
        if not is_decoder(scorer.model):
            own = [*own, scorer.encoder.rules.eos_id]
        if limit is not None and len(own) > limit:
            own = own[:prefix] + own[prefix + len(own) - limit :]
        prompt.append(places.setdefault(tuple(own), len(places)))
    prompts = scorer.embed_ids([list(ids) for ids in places]) if places else np.empty((0, scorer.width), dtype=np.float32)
    return GateInputs(outputs, np.array(lengths, dtype=float), prompts, np.array(prompt, dtype=int))


class GatedScorer:
    """One reward from a checkpoint's attributes by a gate."""

    def __init__(self, scorer: LocalScorer, gate: Gate, settings: GateSettings):
        """Raises ContractError where the gate's attributes are not the checkpoint's outputs."""
        if settings.attributes != scorer.readout.outputs:
            names = ", ".join(settings.attributes), ", ".join(scorer.readout.outputs)
            raise ContractError(f"the gate weighs {names[0]}, the checkpoint gives {names[1]}; fit it again (palate attributes --gate)")
        self.scorer, self.gate, self.settings = scorer, gate.to(scorer.device).eval(), settings

    def score(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """Rewards float32 [N]. Raises DataError for a conversation without a prompt, which the gate reads."""
        return self.weigh(gate_inputs(self.scorer, conversations, progress=progress, on_long=on_long))[0]

    def score_detailed(
        self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(rewards, of each the attributes by name and `gate`, what each attribute weighed)."""
        inputs = gate_inputs(self.scorer, conversations, progress=progress, on_long=on_long)
        rewards, weights = self.weigh(inputs)
        names = self.settings.attributes
        rows = zip(inputs.outputs.tolist(), weights.tolist(), strict=True)
        return rewards, [{**dict(zip(names, values, strict=True)), "gate": dict(zip(names, shares, strict=True))} for values, shares in rows]

    @torch.inference_mode()
    def weigh(self, inputs: GateInputs) -> tuple[np.ndarray, np.ndarray]:
        """(rewards float32 [N], gate weights float32 [N, A]) of what `gate_inputs` gave."""
        attributes = debiased(self.settings, inputs.outputs.astype(np.float64), inputs.lengths)
        weights = self.gate(torch.from_numpy(inputs.prompts).to(self.scorer.device)).double().cpu().numpy()[inputs.prompt]
        rewards = float(self.gate.scale) * (weights * attributes).sum(axis=1)
        return rewards.astype(np.float32), weights.astype(np.float32)


def save_gate(directory: str | Path, gate: Gate, settings: GateSettings) -> None:
    """`gate.safetensors` and `gate.json` in a checkpoint's folder. Raises StorageError."""
    path = Path(directory) / GATE_WEIGHTS
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in gate.state_dict().items()}, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error
    write_text(Path(directory) / GATE_NAME, json.dumps({"gate_version": GATE_VERSION, **asdict(settings)}, indent=1, ensure_ascii=False) + "\n")


def load_gate(directory: str | Path, scorer: LocalScorer, *, verify: bool = True) -> GatedScorer:
    """The gate in a checkpoint's folder in front of its scorer; its examples are replayed first. Raises ContractError where they do not come out."""
    path = Path(directory) / GATE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("gate_version", None) != GATE_VERSION:
            raise ContractError(f"{path}: gate_version is not {GATE_VERSION}, which this palate reads; upgrade palate")
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        settings = GateSettings(**fields)
        gate = Gate(scorer.width, len(settings.attributes), hidden=settings.hidden, temperature=settings.temperature)
        gate.load_state_dict(load_file(Path(directory) / GATE_WEIGHTS))
    except (OSError, SafetensorError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ContractError(f"{path}: not a readable gate: {error}; fit it again (palate attributes --gate)") from error
    gated = GatedScorer(scorer, gate, settings)
    if verify and settings.golden:
        scores = gated.score([exchange_from_json(one["exchange"]) for one in settings.golden], on_long="nan")
        tolerance = score_tolerance(scorer.model.dtype)
        for i, (one, score) in enumerate(zip(settings.golden, scores.tolist(), strict=True)):
            if not abs(score - one["score"]) <= tolerance * max(1.0, abs(one["score"])):
                raise ContractError(f"{path}: golden example {i} scores {score:.6f}, recorded {one['score']:.6f}; fit the gate again on this checkpoint")
    return gated
