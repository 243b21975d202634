"""What directions go with, measured so that it does not depend on which side is called chosen; and where annotators differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.multi_objective.test_decomposition import Fixed

from palate.errors import DataError
from palate.multi_objective.decomposition import decompose
from palate.multi_objective.directions import EXAMPLES, EXPLAINED, agreement, correlations, explain
from palate.multi_objective.heads import LinearHeads
from palate.multi_objective.pairs import Pairs, embedded_pairs
from palate.stats.bootstrap import bootstrap_statistic
from palate.types import Comparison, PreferenceGroup


def test_correlations_are_pearsons_of_pairs_and_their_reverses() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3)) + 1, rng.standard_normal(200) + 2
    found = correlations(x, y, np.arange(200))
    expected = [stats.pearsonr(np.r_[column, -column], np.r_[y, -y])[0] for column in x.T]
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    sign = rng.choice([-1, 1], 200)
    flipped = correlations(x * sign[:, None], y * sign, np.arange(200))
    for one, other in zip(flipped, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_their_intervals_are_those_of_a_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(150), 4)
    shared = rng.standard_normal(150)[prompts]
    x, y = shared + rng.standard_normal(600), shared + rng.standard_normal(600)
    found = correlations(x[:, None], y, prompts)

    def of(index: np.ndarray) -> float:
        a, b = x[index], y[index]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    drawn = bootstrap_statistic(of, prompts, draws=2000)
    np.testing.assert_allclose([found.low[0], found.high[0]], [drawn.low, drawn.high], atol=0.015)
    alone = correlations(x[:, None], y, np.arange(600))
    assert found.high[0] - found.low[0] > 1.2 * (alone.high[0] - alone.low[0])  # four pairs of a prompt say less than four prompts


def test_one_prompt_has_no_interval_and_a_constant_no_correlation() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    found = correlations(x, np.array([1.0, 1.0, 3.0]), np.zeros(3, dtype=int))
    assert np.isfinite(found.value[0]) and np.isnan(found.low).all() and np.isnan(found.value[1])


def length_pairs(n: int = 240) -> Pairs:
    """Along the first axis lies length, along the second a rated attribute; longer responses win."""
    rng = np.random.default_rng(2)
    vectors, groups = [], []
    for i in range(n):
        lengths, clear = rng.integers(10, 200, 2), rng.integers(1, 6, 2)
        for k in range(2):
            vectors.append([lengths[k] / 10, 3.0 * clear[k], *rng.standard_normal(4) * 0.3])
        texts = tuple(f"{2 * i + k}".ljust(int(lengths[k])) for k in range(2))
        best = int(lengths[1] > lengths[0])
        ratings = tuple({"clarity": float(c)} for c in clear) if i % 2 else ()
        groups.append(PreferenceGroup(f"prompt {i // 2}", texts, (Comparison(best, 1 - best),), ratings))
    return embedded_pairs(Fixed(np.array(vectors)), groups)


def test_the_record_says_what_each_direction_is_about() -> None:
    pairs = length_pairs()
    found = decompose(pairs, components=3, centred=False)
    original = LinearHeads(("original",), np.eye(6, dtype=np.float32)[:1], np.zeros(1, dtype=np.float32))
    record = explain(pairs, found, original)
    first, second, third = record["directions"]
    assert first["length"]["value"] > 0.99 and first["length"]["n"] == 240 and first["accuracy"]["value"] > 0.97
    assert abs(second["attributes"]["clarity"]["value"]) > 0.98 and second["attributes"]["clarity"]["n"] == 120
    assert abs(third["length"]["value"]) < 0.2 and first["cosine_with_original"] > 0.99
    assert record["original_in_directions"] == pytest.approx(1.0, abs=1e-3) and record["prompts"] == 120
    along = np.concatenate([z @ found.directions[0] for z, _ in pairs.differences()])
    furthest = int(np.abs(along).argmax())
    example = first["examples"][0]
    assert example["distance"] == pytest.approx(abs(along[furthest]))
    assert example["length_more"] > example["length_less"] and example["preferred"]
    assert len({example["prompt"] for example in first["examples"]}) == EXAMPLES <= EXPLAINED


def opinions(seed: int = 0, differ: float = 1.0) -> tuple[Pairs, list[str]]:
    """Thirty annotators of forty pairs each: all like the first axis, half of them the second and half its opposite (times `differ`)."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((800, 4)) * [4, 3, 2, 1]
    groups, names = [], []
    for who in range(30):
        taste = np.array([0.6, differ * (0.6 if who % 2 else -0.6), 0, 0])
        for _ in range(40):
            a, b = rng.choice(800, 2, replace=False)
            wins = rng.random() < 1 / (1 + np.exp(-(vectors[a] - vectors[b]) @ taste))
            groups.append(PreferenceGroup(f"p {len(groups) % 3}", (str(a), str(b)), (Comparison(0, 1) if wins else Comparison(1, 0),)))
            names.append(f"w{who}")
    return embedded_pairs(Fixed(vectors), groups, weights="given"), names


def test_a_disputed_direction_is_told_from_a_shared_one() -> None:
    pairs, names = opinions()
    rows = {row.name: row for row in agreement(pairs, decompose(pairs, components=4, centred=False), names)}
    shared, disputed = rows["pc01"], rows["pc02"]
    assert agreement(pairs, decompose(pairs, components=4, centred=False), names)[0].name == "pc02"
    assert shared.mean_interval[0] > 0.3 and shared.same_sign == 1.0
    assert disputed.spread_interval[0] > 0.3 and disputed.p_value == 0.001 and abs(disputed.mean) < 0.25
    assert rows["pc03"].p_value > 1e-3 and rows["pc03"].spread < disputed.spread / 2


def test_without_dispute_no_direction_is_called_disputed() -> None:
    below = 0
    for seed in range(8):
        pairs, names = opinions(seed, differ=0.0)
        below += sum(row.p_value < 0.05 for row in agreement(pairs, decompose(pairs, components=4, centred=False), names))
    assert below <= 6  # of 32, 1.6 expected


def test_having_judged_other_prompts_is_no_difference_between_people() -> None:
    """Two prompts with opposite preferences along the first axis, each judged by annotators of its own: their means differ, the people may not."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((200, 3))
    groups, names = [], []
    for i in range(600):
        a, b = rng.choice(200, 2, replace=False)
        side = i % 2
        wins = (vectors[a, 0] > vectors[b, 0]) != side
        groups.append(PreferenceGroup(f"prompt {side}", (str(a), str(b)), (Comparison(0, 1) if wins else Comparison(1, 0),)))
        names.append(f"{side} {rng.integers(5)}")
    pairs = embedded_pairs(Fixed(vectors), groups, weights="given")
    axes = decompose(pairs, components=3, centred=False)
    first = max(agreement(pairs, axes, names), key=lambda row: row.spread)
    assert first.spread > 0.3 and first.p_value > 0.05
    assert np.isnan(agreement(pairs, axes, [str(n % 2) for n in range(600)])[0].p_value)  # one annotator a prompt: nothing to deal out


def test_annotators_of_a_few_votes_are_not_asked() -> None:
    pairs, names = opinions()
    with pytest.raises(DataError, match="1 annotators have"):
        agreement(pairs, decompose(pairs, components=2), ["busy" if i < 40 else str(i) for i in range(len(names))])
