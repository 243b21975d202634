"""From strengths to rows: which pairs of a prompt's responses become chosen and rejected, and how strengths become margins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from palate.errors import ConfigError

Selector: TypeAlias = Literal["all", "best_worst", "best_mean2sd", "adjacent", "best_random", "on_policy"]
MarginTransform: TypeAlias = Literal["none", "clip", "llama2_small", "llama2_large", "quantile"]

MARGIN_CLIP = 3.0
"""Upper end of a clipped margin: Llama 2's large scale ends at 3 (arXiv 2307.09288, table 27)."""

LLAMA2_STEPS = {"llama2_small": (0.0, 1 / 3, 2 / 3, 1.0), "llama2_large": (0.0, 1.0, 2.0, 3.0)}
"""Margins of negligibly, slightly, clearly and significantly better (arXiv 2307.09288, table 27)."""

LLAMA2_CUTS = (0.62, 0.75, 0.88)
"""P(chosen is better) from which a preference counts as slight, clear, significant. The paper has people choose the step; these are thirds of the way
from a coin (0.5) to near certainty, a choice of ours."""

SD_BELOW_MEAN = 2.0
"""The rejected response of `best_mean2sd` lies nearest to mean - 2 sd (Xiao et al. 2025, arXiv 2502.16825)."""


class Selected(NamedTuple):
    chosen: int
    rejected: int


def select_pairs(
    strengths: np.ndarray, how: Selector = "all", *, judged: set[frozenset[int]] | None = None, on_policy: Sequence[bool] = (), seed: int = 0
) -> list[Selected]:
    """Pairs of one prompt's responses [K], the stronger one chosen; equal strengths make no pair, nor does a response without a strength (NaN).

    all: every pair (of those in `judged`, where it is given); best_worst; best_mean2sd: best against the one nearest to mean - 2 sd; adjacent: neighbours
    in order; best_random: best against a random other; on_policy: every pair of an on-policy response with any other.
    Raises ConfigError for an unknown way, or for on_policy without saying which responses are.
    """
    if how not in get_args(Selector):
        raise ConfigError(f"pairs are selected by {', '.join(get_args(Selector))}, not by {how!r}")
    values = np.asarray(strengths, dtype=float)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return []
    order = known[np.argsort(-values[known], kind="stable")]
    best = int(order[0])
    if how == "all":
        pairs = [pair for pair in combinations(known.tolist(), 2) if judged is None or frozenset(pair) in judged]
    elif how == "best_worst":
        pairs = [(best, int(order[-1]))]
    elif how == "best_mean2sd":
        target = values[known].mean() - SD_BELOW_MEAN * values[known].std()
        others = [k for k in known.tolist() if k != best]
        pairs = [(best, min(others, key=lambda k: (abs(values[k] - target), k)))]
    elif how == "adjacent":
        pairs = [(int(a), int(b)) for a, b in pairwise(order)]
    elif how == "best_random":
        pairs = [(best, int(np.random.default_rng(seed).choice([k for k in known.tolist() if k != best])))]
    else:
        if len(on_policy) != len(values):
            raise ConfigError(f"on_policy pairs need to know which of the {len(values)} responses are on-policy, got {len(on_policy)} marks")
        pairs = [(a, b) for a, b in combinations(known.tolist(), 2) if on_policy[a] != on_policy[b]]
    return [Selected(a, b) if values[a] > values[b] else Selected(b, a) for a, b in pairs if values[a] != values[b]]


def margins_of(differences: np.ndarray, transform: MarginTransform = "clip", *, clip: float = MARGIN_CLIP) -> np.ndarray:
    """Differences of strengths [P] (logits, none negative) to margins [P].

    none: as they are; clip: at most `clip`; llama2_small, llama2_large: Llama 2's steps, by P(chosen is better) = sigmoid(difference); quantile: the
    share of differences that are smaller, times `clip` (ties share a mean rank). Raises ConfigError for a negative difference: chosen and rejected would
    stand the wrong way round.
    """
    if transform not in get_args(MarginTransform):
        raise ConfigError(f"margins are transformed by {', '.join(get_args(MarginTransform))}, not by {transform!r}")
    d = np.asarray(differences, dtype=float)
    if (d < 0).any():
        raise ConfigError(f"{int((d < 0).sum())} differences of strengths are negative: chosen and rejected stand the wrong way round")
    if transform == "none":
        return d
    if transform == "clip":
        return np.minimum(d, clip)
    if transform == "quantile":
        if not len(d):
            return d
        smaller, not_larger = (np.searchsorted(np.sort(d), d, side=side) for side in ("left", "right"))
        return (smaller + not_larger) / (2 * len(d)) * clip
    return np.array(LLAMA2_STEPS[transform])[np.searchsorted(LLAMA2_CUTS, 1 / (1 + np.exp(-d)), side="right")]
