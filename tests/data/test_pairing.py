"""Comparisons by hand: all pairs, soft labels, votes, and weights that make a prompt count once."""

from __future__ import annotations

import pytest

from palate.data.pairing import balance, from_probability, from_scores, from_votes, training_comparisons
from palate.types import Comparison


def test_all_pairs_of_a_ranking() -> None:
    pairs = from_scores([2.0, 0.0, 1.0])
    assert [(c.chosen, c.rejected) for c in pairs] == [(0, 1), (0, 2), (2, 1)]


def test_a_prompt_weighs_one_whatever_k() -> None:
    for k in (2, 3, 9):
        assert sum(c.weight for c in training_comparisons(from_scores(list(range(k))), ties="drop")) == pytest.approx(1.0)


def test_dropped_ties_reduce_the_count() -> None:
    """Scores 1, 1, 0: the tie goes, and the two decided pairs weigh 1/2 each (InstructGPT drops ties)."""
    kept = training_comparisons(from_scores([1, 1, 0]), ties="drop")
    assert [(c.chosen, c.rejected, c.weight) for c in kept] == [(0, 2, 0.5), (1, 2, 0.5)]
    assert len(training_comparisons(from_scores([1, 1, 0]), ties="soft")) == 3


def test_own_weights_survive_balancing() -> None:
    assert balance([Comparison(0, 1, weight=3.0)])[0].weight == 3.0


def test_votes_and_probabilities() -> None:
    assert from_votes(3, 1) == Comparison(0, 1, probability=0.75)
    assert from_votes(0, 2, 2) == Comparison(1, 0, probability=0.75)
    assert from_votes(1, 1).is_tie
    assert from_probability(0.1) == Comparison(0, 1, probability=0.9)
