"""Directions are the eigenvectors of the sample covariance, one batch at a time or at once, whatever weighs the pairs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from palate.errors import DataError
from palate.multi_objective import decomposition
from palate.multi_objective.decomposition import Moments, decompose, decompose_rows, principal_directions
from palate.multi_objective.pairs import Pairs, embedded_pairs
from palate.scoring.embeddings import Embeddings
from palate.types import Comparison, PreferenceGroup


def differences(n: int = 300, width: int = 12, seed: int = 0) -> np.ndarray:
    """Correlated, with a mean away from 0."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)


class Fixed:
    """Embeddings of responses that are their own numbers."""

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors.astype(np.float32)

    def embed(self, conversations, *, progress=False, on_long=None):
        return Embeddings(self.vectors, [int(item.response) for item in conversations])


def pairs_of(z: np.ndarray, comparisons: list[Comparison] | None = None, **options) -> Pairs:
    """Differences z as pairs: the chosen response lies at z, the rejected at 0."""
    vectors = np.concatenate([z, np.zeros((1, z.shape[1]))])
    groups = [PreferenceGroup(f"prompt {i}", (str(i), str(len(z))), ((comparisons or [Comparison(0, 1)] * len(z))[i],)) for i in range(len(z))]
    return embedded_pairs(Fixed(vectors), groups, **options)


def test_centred_directions_are_those_of_sklearn_and_of_the_sample_covariance() -> None:
    z = differences()
    found = decompose_rows([z], components=5)
    reference = PCA(n_components=5).fit(z)
    np.testing.assert_allclose(found.variance, reference.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(found.explained, reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * reference.components_, axis=1)), 1.0, rtol=1e-9)
    values, vectors = np.linalg.eigh(np.cov(z.T))
    np.testing.assert_allclose(found.variance, values[::-1][:5], rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.directions @ vectors[:, ::-1])[:, :5], np.eye(5), atol=1e-7)


def test_uncentred_directions_are_right_singular_vectors_and_ignore_labels() -> None:
    z = differences()
    found = decompose_rows([z], components=4, centred=False)
    _, singular, vectors = np.linalg.svd(z, full_matrices=False)
    np.testing.assert_allclose(found.variance, singular[:4] ** 2 / len(z), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * vectors[:4], axis=1)), 1.0, rtol=1e-9)
    flipped = decompose_rows([z * np.random.default_rng(1).choice([-1, 1], len(z))[:, None]], components=4, centred=False)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * flipped.directions, axis=1)), 1.0, rtol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_batches_give_what_all_at_once_gives(centred: bool) -> None:
    z = differences()
    whole = decompose_rows([z], components=6, centred=centred)
    parts = decompose_rows([z[:1], z[1:130], z[130:]], components=6, centred=centred)
    np.testing.assert_allclose(parts.directions, whole.directions, atol=1e-9)
    np.testing.assert_allclose(parts.mean, z.mean(axis=0), rtol=1e-12)


def test_the_mean_lies_on_the_positive_side() -> None:
    found = decompose_rows([differences()], components=12)
    assert (found.directions @ found.mean >= 0).all()
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(12), atol=1e-9)
    assert found.explained.sum() == pytest.approx(1.0)


def test_lanczos_gives_what_the_whole_eigendecomposition_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    z = differences(400, 60)
    whole = decompose_rows([z], components=7)
    monkeypatch.setattr(decomposition, "LANCZOS", 10)
    lanczos = decompose_rows([z], components=7)
    np.testing.assert_allclose(lanczos.directions, whole.directions, atol=1e-8)
    np.testing.assert_allclose(lanczos.variance, whole.variance, rtol=1e-9)
    np.testing.assert_array_equal(decompose_rows([z], components=7).directions, lanczos.directions)  # the same every time


def test_a_planted_preference_of_low_rank_is_recovered() -> None:
    rng = np.random.default_rng(3)
    planted = np.linalg.qr(rng.standard_normal((40, 3)))[0].T
    z = rng.standard_normal((2000, 3)) * [5, 3, 2] @ planted + 0.1 * rng.standard_normal((2000, 40))
    found = decompose_rows(np.array_split(z, 7), components=3)
    cosines = np.linalg.svd(found.directions @ planted.T)[1]
    assert cosines.min() > 0.999
    assert found.explained.sum() > 0.98


def test_weights_count_as_repetition() -> None:
    z = differences(50, 6)
    weights = np.random.default_rng(0).integers(1, 4, 50)
    weighted, repeated = Moments(6), Moments(6)
    weighted.add(z, weights.astype(float), np.ones(50))
    repeated.add(np.repeat(z, weights, axis=0), np.ones(weights.sum()), np.ones(weights.sum()))
    for centred in (True, False):
        a, b = (principal_directions(m, components=3, centred=centred) for m in (weighted, repeated))
        np.testing.assert_allclose(a.directions, b.directions, atol=1e-9)
        np.testing.assert_allclose(a.explained, b.explained, rtol=1e-9)


def test_a_soft_label_is_a_difference_that_holds_in_part_both_ways() -> None:
    z, p = differences(60, 5), np.random.default_rng(0).uniform(0.5, 1, 60)
    soft, split = Moments(5), Moments(5)
    soft.add(z, np.ones(60), p)
    split.add(np.concatenate([z, -z]), np.concatenate([p, 1 - p]), np.ones(120))
    np.testing.assert_allclose(soft.mean, split.mean, rtol=1e-9)
    np.testing.assert_allclose(soft.covariance(centred=False), split.covariance(centred=False), rtol=1e-9)


def test_pairs_carry_their_weights_and_labels() -> None:
    z = differences(30, 5)
    comparisons = [Comparison(0, 1, margin=float(i % 3), weight=1.0 + i % 2, probability=0.8) for i in range(30)]
    given, margin = (pairs_of(z, comparisons, weights=how) for how in ("given", "margin"))
    assert given.weight.tolist() == [1.0 + i % 2 for i in range(30)]
    assert margin.weight.tolist() == [(1.0 + i % 2) * (i % 3) for i in range(30)]
    moments = Moments(5)
    moments.add(z.astype(np.float32), given.weight, np.full(30, 0.8))
    np.testing.assert_allclose(decompose(given, components=2).directions, principal_directions(moments, components=2, centred=True).directions, atol=1e-6)
    with pytest.raises(DataError, match="need margins"):
        pairs_of(z, weights="margin")


def test_a_ranking_counts_as_much_as_a_pair_when_balanced() -> None:
    vectors = differences(7, 4)
    ranked = PreferenceGroup("k", ("0", "1", "2"), (Comparison(0, 1), Comparison(0, 2), Comparison(1, 2)))
    pair = PreferenceGroup("p", ("3", "4"), (Comparison(1, 0),))
    tie = PreferenceGroup("t", ("5", "6"), (Comparison(0, 1, probability=0.5),))
    pairs = embedded_pairs(Fixed(vectors), [ranked, pair, tie])
    assert pairs.weight.tolist() == [1 / 3, 1 / 3, 1 / 3, 1.0]
    assert pairs.chosen.tolist() == [0, 0, 1, 4] and pairs.rejected.tolist() == [1, 2, 2, 3]
    assert pairs.prompts.tolist() == [0, 0, 0, 1]
    assert embedded_pairs(Fixed(vectors), [ranked, pair, tie], weights="given").weight.tolist() == [1.0] * 4
    assert len(embedded_pairs(Fixed(vectors), [ranked, pair, tie], ties="soft")) == 5


def test_what_cannot_be_embedded_is_left_out_and_counted() -> None:
    class Holes(Fixed):
        def embed(self, conversations, **options):
            index = [int(item.response) for item in conversations]
            return Embeddings(self.vectors, [-1 if i == 1 else i for i in index])

    groups = [PreferenceGroup("a", ("0", "1"), (Comparison(0, 1),)), PreferenceGroup("b", ("2", "3"), (Comparison(0, 1),))]
    pairs = embedded_pairs(Holes(differences(4, 3)), groups)
    assert len(pairs) == 1 and pairs.left_out == 1 and pairs.texts(0) == ("b", "2", "3")
    with pytest.raises(DataError, match="none of 1 comparisons"):
        embedded_pairs(Holes(differences(4, 3)), groups[:1])
    with pytest.raises(DataError, match="no decided comparison"):
        embedded_pairs(Holes(differences(4, 3)), [PreferenceGroup("a", ("0", "1"))])


def test_more_components_than_the_data_have_are_refused() -> None:
    z = differences(10, 30)
    with pytest.raises(DataError, match="9 at most"):
        decompose_rows([z], components=10)
    assert len(decompose_rows([z], components=9).directions) == 9
    with pytest.raises(DataError, match="vary in 2 directions"):
        decompose_rows([differences(50, 2) @ np.random.default_rng(0).standard_normal((2, 8))], components=3)
    alike = np.tile(differences(1, 8) * 1000, (40, 1))  # about their mean they vary by rounding alone
    with pytest.raises(DataError, match="differences of 40 comparisons do not vary about their mean; leave them uncentred"):
        decompose_rows([alike], components=2)
    assert decompose_rows([alike], components=1, centred=False).explained == pytest.approx([1.0])
    with pytest.raises(DataError, match="one batch"):
        decompose_rows([], components=3)
