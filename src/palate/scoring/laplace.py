"""The last layer's posterior beside a checkpoint: how unsure a linear reward is of a response, from the precision of its weights over embeddings.

reward w.phi + b, uncertainty sqrt((phi - v)^T A^-1 (phi - v)): small along directions that the comparisons spoke of, large along others. `laplace.safetensors`
holds A and v; `multi_objective/pessimism.py` fits them. The uncertainty is that of the difference to a response with the embedding v (the mean of the data):
comparisons say nothing of a constant, so a reward alone has none. Source: Zhu, Jiao and Jordan 2023 (arXiv 2301.11270), section 3 (the bound, v);
MacKay 1992 (the precision as a posterior's).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from palate.errors import ContractError, StorageError
from palate.models.heads import head_name
from palate.scoring.local import LocalScorer
from palate.scoring.uncertainty import Estimate, UncertainScorer
from palate.types import Conversation, Exchange

LAPLACE_NAME = "laplace.safetensors"


@dataclass(frozen=True)
class Posterior:
    """Precision A [H, H] of a linear reward's weights and the embedding v [H] that rewards are told from; `about`: how it was fitted, for people."""

    precision: np.ndarray
    reference: np.ndarray
    about: Mapping[str, Any]

    def deviations(self, embeddings: np.ndarray) -> np.ndarray:
        """sqrt((phi - v)^T A^-1 (phi - v)) of embeddings [N, H], float64 [N]. NaN rows give NaN."""
        return factored_deviations(cholesky(self.precision, lower=True), embeddings - self.reference)

    def save(self, directory: str | Path, scorer: LocalScorer) -> None:
        """`laplace.safetensors` in a checkpoint's folder, for the head of `scorer` alone. Raises StorageError."""
        tensors = {"precision": np.ascontiguousarray(self.precision, dtype=np.float64), "reference": np.ascontiguousarray(self.reference, dtype=np.float64)}
        path = Path(directory) / LAPLACE_NAME
        try:
            save_file(tensors, path, metadata={"head": head_hash(scorer), "about": json.dumps(dict(self.about))})
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{path}: cannot be written: {error}") from error


def factored_deviations(factor: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """|L^-1 x| of rows x [N, H] with the lower Cholesky factor L [H, H] of a precision: their standard deviations, float64 [N]."""
    lost = ~np.isfinite(centred).all(axis=1)
    solved = solve_triangular(factor, np.where(lost[:, None], 0.0, centred).T, lower=True, check_finite=False)
    return np.where(lost, np.nan, np.sqrt((solved**2).sum(axis=0)))


def linear_reward(scorer: LocalScorer) -> tuple[np.ndarray, float]:
    """(w [H], b) of a checkpoint's reward: its readout's weights times its head's."""
    name = head_name(scorer.model)
    assert name is not None
    head = scorer.model.get_submodule(name)
    weights = np.array(scorer.readout.weights)
    bias: Any = head.bias
    return weights @ numbers(head.weight), 0.0 if bias is None else float(weights @ numbers(bias))


def numbers(parameter: Any) -> np.ndarray:
    """A parameter as float64."""
    found: np.ndarray = parameter.detach().cpu().double().numpy()
    return found


def head_hash(scorer: LocalScorer) -> str:
    """Which linear reward a posterior belongs to, in the float32 that heads are saved in."""
    weight, bias = linear_reward(scorer)
    return hashlib.sha256(np.append(weight, bias).astype(np.float32).tobytes()).hexdigest()


class LaplaceScorer(UncertainScorer):
    """The rewards of a checkpoint, each with the standard deviation that its last layer's posterior gives it."""

    def __init__(self, scorer: LocalScorer, posterior: Posterior):
        self.scorer, self.posterior = scorer, posterior
        self._weight, self._bias = linear_reward(scorer)
        self._factor = cholesky(posterior.precision, lower=True)

    def estimate(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> Estimate:
        embeddings = self.scorer.embed(conversations, **options).astype(np.float64)
        deviations = factored_deviations(self._factor, embeddings - self.posterior.reference)
        return Estimate((embeddings @ self._weight + self._bias).astype(np.float32), deviations.astype(np.float32))

    def score_detailed(self, conversations: Sequence[Exchange | Conversation], **options: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(rewards, the uncertainty of each)."""
        rewards, uncertainty = self.estimate(conversations, **options)
        return rewards, [{"uncertainty": one} for one in uncertainty.tolist()]


def read_posterior(directory: str | Path, scorer: LocalScorer) -> Posterior:
    """The posterior in a checkpoint's folder. Raises ContractError for a broken file, or one that was fitted for another head."""
    path = Path(directory) / LAPLACE_NAME
    try:
        with safe_open(str(path), "numpy") as file:
            about: dict[str, str] = file.metadata() or {}
            posterior = Posterior(file.get_tensor("precision"), file.get_tensor("reference"), json.loads(about.get("about", "{}")))
        cholesky(posterior.precision, lower=True)
    except (OSError, SafetensorError, LinAlgError, ValueError) as error:
        raise ContractError(f"{path}: not a readable posterior: {error}; fit it again (palate attributes --bound), or remove the file") from error
    if about.get("head") != head_hash(scorer):
        raise ContractError(f"{path}: was fitted for another reward head than this folder has; fit it again (palate attributes --bound), or remove the file")
    return posterior
