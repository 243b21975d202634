"""What each direction of a decomposition is about: accuracy by itself, what it goes with (length, rated attributes), the pairs that lie furthest along it.

Everything is measured on the comparisons that the directions come from, so accuracies are no held-out ones. A difference and its reverse say the same of a
direction, so correlations are of differences about 0 and do not depend on which response is called chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, stats

from palate.errors import DataError
from palate.multi_objective.decomposition import Decomposition
from palate.multi_objective.heads import LinearHeads
from palate.multi_objective.pairs import Pairs
from palate.multi_objective.trials import right
from palate.stats.intervals import accuracy_interval, codes_of, upper_level

EXAMPLES = 2  # pairs shown at the end of each direction
EXPLAINED = 12  # directions that are shown with their pairs; the table has all
TEXT_SHOWN = 600  # characters of a text


class Correlations(NamedTuple):
    """Of K columns with one number a pair."""

    value: np.ndarray  # [K]
    low: np.ndarray
    high: np.ndarray
    n: int


def correlations(columns: np.ndarray, other: np.ndarray, clusters: np.ndarray, *, confidence: float = 0.95) -> Correlations:
    """Correlations about 0, sum xy / sqrt(sum x^2 sum y^2), of differences. [P, K], [P], [P] -> Correlations

    It is Pearson's of the pairs and their reverses together. Intervals: Fisher's z with the standard error of the ratio over independent clusters
    (prompts; the infinitesimal jackknife, times sqrt(G / (G - 1))) and Student's quantile with G - 1 degrees of freedom. NaN where nothing varies.
    """
    codes = codes_of(clusters)
    groups = int(codes.max()) + 1
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) > 0])
    x, y = columns[order], other[order, None]
    products, squares, own = (np.add.reduceat(part, starts, axis=0) for part in (x * y, x**2, y**2))
    a, b, c = (part.sum(axis=0) for part in (products, squares, own))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = a / np.sqrt(b * c)
        away = products / np.sqrt(b * c) - r / 2 * (squares / b + own / c)
        error = np.sqrt((away**2).sum(axis=0) * groups / (groups - 1)) if groups > 1 else np.full_like(r, np.nan)
        half = stats.t.ppf(upper_level(confidence), groups - 1) * error / (1 - r**2) if groups > 1 else error
        centre = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return Correlations(r, np.tanh(centre - half), np.tanh(centre + half), len(other))


def explain(pairs: Pairs, found: Decomposition, original: LinearHeads, *, confidence: float = 0.95) -> dict[str, Any]:
    """The record of all directions that tables and pages are made of."""
    along = np.concatenate([z @ found.directions.T for z, _ in pairs.differences()])  # [P, K]
    length = correlations(along, pairs.length_difference.astype(float), pairs.prompts, confidence=confidence)
    rated = {name: one for name in pairs.attributes() if (one := _rated(pairs, along, name, confidence)) is not None}
    head = original.weights[0].astype(np.float64)
    cosine = found.directions @ head / max(float(np.linalg.norm(head)), np.finfo(float).tiny)
    directions = [
        {
            "name": found.names[k],
            "explained": float(found.explained[k]),
            "accuracy": _accuracy(along[:, k], pairs.prompts, confidence),
            "cosine_with_original": float(cosine[k]),
            "length": _at(length, k),
            "attributes": {name: _at(one, k) for name, one in rated.items()},
            "examples": _examples(pairs, along[:, k]) if k < EXPLAINED else [],
        }
        for k in range(len(found.directions))
    ]
    return {
        "pairs": len(pairs),
        "left_out": pairs.left_out,
        "prompts": len(np.unique(pairs.prompts)),
        "width": pairs.embeddings.width,
        "centred": found.centred,
        "confidence": confidence,
        "explained": float(found.explained.sum()),
        "original_in_directions": float((cosine**2).sum()),
        "directions": directions,
    }


def _rated(pairs: Pairs, along: np.ndarray, name: str, confidence: float) -> Correlations | None:
    difference = pairs.rating_difference(name)
    known = np.isfinite(difference)
    return correlations(along[known], difference[known], pairs.prompts[known], confidence=confidence) if difference[known].any() else None


def _at(found: Correlations, k: int) -> dict[str, Any]:
    return {"value": float(found.value[k]), "interval": [float(found.low[k]), float(found.high[k])], "n": found.n}


def _accuracy(along: np.ndarray, prompts: np.ndarray, confidence: float) -> dict[str, Any]:
    values = right(along)
    interval = accuracy_interval(values, prompts, confidence)
    return {"value": float(values.mean()), "interval": [interval.low, interval.high]}


def _examples(pairs: Pairs, along: np.ndarray) -> list[dict[str, Any]]:
    """Pairs that lie furthest along the direction, a prompt and a text at most once: `more` is the response with more of it, whichever was preferred."""
    shown: list[dict[str, Any]] = []
    seen: set[int] = set()
    for i in np.argsort(-np.abs(along), kind="stable").tolist():
        texts = {-1 - int(pairs.prompts[i]), int(pairs.contents[pairs.chosen[i]]), int(pairs.contents[pairs.rejected[i]])}
        if seen & texts:
            continue
        seen |= texts
        prompt, chosen, rejected = pairs.texts(i)
        preferred = bool(along[i] >= 0)
        more, less = (chosen, rejected) if preferred else (rejected, chosen)
        shown.append({"distance": float(abs(along[i])), "preferred": preferred, **_cut(prompt=prompt, more=more, less=less)})
        if len(shown) == EXAMPLES:
            break
    return shown


def _cut(**texts: str) -> dict[str, Any]:
    return {name: text[:TEXT_SHOWN] for name, text in texts.items()} | {f"length_{name}": len(text) for name, text in texts.items() if name != "prompt"}


# --- annotators ---------------------------------------------------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How far annotators go along one direction with what they prefer, in units of the spread of all pairs along it."""

    name: str
    mean: float  # over annotators: the preference that they share
    mean_interval: tuple[float, ...]
    spread: float  # standard deviation between annotators, beyond the noise of each; 0 where there is none to be seen
    spread_interval: tuple[float, ...]
    p_value: float  # that annotators of one prompt do not differ; NaN where no prompt has two
    same_sign: float  # share of annotators on the side of the mean


DRAWS = 999  # resamples of annotators, whose percentiles are the intervals, and permutations of them
LEAST_VOTES = 10  # comparisons of an annotator; fewer tell neither mean nor noise


def agreement(pairs: Pairs, found: Decomposition, annotators: Sequence[Any], *, confidence: float = 0.95, seed: int = 0) -> list[Agreement]:
    """Each direction by how much annotators differ along it, the most disputed first. `annotators` [P]: whose comparison it is.

    An annotator's preference along a direction is the mean of chosen minus rejected along it. What these means vary by beyond their standard errors is
    the spread, by the estimator of DerSimonian and Laird (1986, Controlled Clinical Trials 7, 177-188); intervals resample annotators. The p-value deals
    each prompt's comparisons out anew among those who judged it, so that having judged other prompts is no difference between people. Raises
    DataError where fewer than two annotators have LEAST_VOTES comparisons.
    """
    codes = codes_of(annotators)
    busy = np.bincount(codes) >= LEAST_VOTES
    if busy.sum() < 2:
        raise DataError(f"{int(busy.sum())} annotators have {LEAST_VOTES} comparisons or more; agreement needs two of them")
    along = np.concatenate([z @ found.directions.T for z, _ in pairs.differences()])
    along, codes, prompts = along[busy[codes]], codes_of(codes[busy[codes]]), pairs.prompts[busy[codes]]
    along /= np.sqrt((along**2).mean(axis=0))
    rows = [along[codes == code] for code in range(int(busy.sum()))]
    means = np.stack([part.mean(axis=0) for part in rows])  # [annotators, K]
    noise = np.stack([part.var(axis=0, ddof=1) / len(part) for part in rows])
    rng = np.random.default_rng(seed)
    drawn = [_spread(means[pick], noise[pick]) for pick in rng.integers(0, len(rows), (DRAWS, len(rows)))]
    tails = [1 - upper_level(confidence), upper_level(confidence)]
    centre, spread = _spread(means, noise)
    shared, apart = (np.quantile([one[part] for one in drawn], tails, axis=0).T.tolist() for part in (0, 1))
    p = _permuted(along, codes, prompts, rng)
    same = (np.sign(means) == np.sign(centre)).mean(axis=0)
    result = [
        Agreement(name, float(centre[k]), tuple(shared[k]), float(spread[k]), tuple(apart[k]), float(p[k]), float(same[k]))
        for k, name in enumerate(found.names)
    ]
    return sorted(result, key=lambda one: -one.spread)


def _permuted(along: np.ndarray, codes: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """p-values [K] of the sum of squares between annotators, under permutations of them within prompts."""
    place = np.argsort(prompts, kind="stable")
    if len(np.unique(np.column_stack([prompts, codes]), axis=0)) == len(np.unique(prompts)):  # each prompt has one annotator
        return np.full(along.shape[1], np.nan)
    sizes = np.bincount(codes)[:, None]

    def between(labels: np.ndarray) -> np.ndarray:
        sums = sparse.csr_array((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(len(sizes), len(labels))) @ along
        found: np.ndarray = (sums**2 / sizes).sum(axis=0)
        return found

    seen = between(codes) * (1 - 1e-12)  # rounding; equal arrangements must count as reached
    reached, labels = np.zeros(along.shape[1]), codes.copy()
    for _ in range(DRAWS):
        labels[place] = codes[np.lexsort((rng.random(len(codes)), prompts))]
        reached += between(labels) >= seen
    return (1 + reached) / (DRAWS + 1)


def _spread(means: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean over annotators, standard deviation between them), each [K], from means and squared errors [annotators, K]."""
    weights = 1 / np.maximum(noise, np.finfo(float).tiny)
    total = weights.sum(axis=0)
    q = (weights * (means - (weights * means).sum(axis=0) / total) ** 2).sum(axis=0)
    between = np.maximum(0.0, (q - (len(means) - 1)) / (total - (weights**2).sum(axis=0) / total))
    pooled = 1 / (noise + between)
    return (pooled * means).sum(axis=0) / pooled.sum(axis=0), np.sqrt(between)
