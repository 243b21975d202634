"""Adaptation weighs heads as the papers define it; what it adapted on is never tested on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.multi_objective.test_decomposition import Fixed, differences

from palate.errors import ConfigError, DataError
from palate.multi_objective.adaptation import adapt
from palate.multi_objective.baselines import gaussian_heads, random_scores, shared_base_ensemble, uniform_heads
from palate.multi_objective.decomposition import decompose, decompose_rows
from palate.multi_objective.heads import LinearHeads, signed_heads
from palate.multi_objective.pairs import embedded_pairs
from palate.multi_objective.trials import SINGLE, TrialSettings, held_out, run_trials
from palate.types import Comparison, PreferenceGroup, Readout


def reference(chosen: np.ndarray, rejected: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The papers' steps one by one, in torch."""
    both = torch.tensor(np.concatenate([chosen, rejected]), dtype=torch.float64)
    deviation = both.std(dim=0)
    deviation[deviation == 0] = 1
    scaled = (both - both.mean(dim=0)) / deviation
    n = len(chosen)
    losses = -torch.nn.functional.logsigmoid(scaled[:n] - scaled[n:]).sum(dim=0)
    return torch.softmax(-losses / temperature, dim=0).numpy()


def scores(n: int = 6, heads: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((n, heads)) + 1, rng.standard_normal((n, heads))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0])
def test_weights_are_the_papers(temperature: float) -> None:
    chosen, rejected = scores()
    found = adapt(chosen, rejected, fallback=Readout(), temperature=temperature)
    np.testing.assert_allclose(found.weights, reference(chosen, rejected, temperature), rtol=1e-12)
    z = (chosen - found.mean) / found.deviation
    np.testing.assert_allclose(found.score(chosen), z @ found.weights, rtol=1e-10)


def test_by_hand() -> None:
    """One pair: both heads are z-scored to +-1/sqrt(2), one right and one wrong, so their margins are +-sqrt(2)."""
    found = adapt(np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]]), fallback=Readout())
    losses = [math.log1p(math.exp(-math.sqrt(2))), math.log1p(math.exp(math.sqrt(2)))]
    np.testing.assert_allclose(found.losses, losses)
    assert found.weights[0] == pytest.approx(1 / (1 + math.exp(losses[0] - losses[1])))
    np.testing.assert_allclose(found.deviation, [math.sqrt(2), 5 / math.sqrt(2)])


def test_a_head_that_does_not_vary_is_divided_by_one_and_learns_nothing() -> None:
    chosen, rejected = scores()
    chosen[:, 2] = rejected[:, 2] = 0.1
    found = adapt(chosen, rejected, fallback=Readout())
    assert found.deviation[2] == 1 and found.losses[2] == pytest.approx(len(chosen) * math.log(2))


def test_without_pairs_the_reward_is_the_fallbacks() -> None:
    readout = Readout(("a", "b", "c"), (0.5, 0.0, -2.0))
    found = adapt(np.zeros((0, 3)), np.zeros((0, 3)), fallback=readout)
    np.testing.assert_allclose(found.score(np.array([[1.0, 2.0, 3.0]])), [0.5 - 6.0])


def test_order_of_heads_and_of_pairs_does_not_matter() -> None:
    chosen, rejected = scores(8, 10)
    found = adapt(chosen, rejected, fallback=Readout())
    order, rows = np.random.default_rng(0).permutation(10), np.random.default_rng(1).permutation(8)
    moved = adapt(chosen[rows][:, order], rejected[rows][:, order], fallback=Readout())
    np.testing.assert_allclose(moved.weights, found.weights[order], rtol=1e-10)
    np.testing.assert_allclose(moved.score(chosen[:, order]), found.score(chosen), rtol=1e-10)


def test_both_signs_collapse_to_the_difference_of_their_weights() -> None:
    directions = decompose_rows([differences()], components=5)
    heads = signed_heads(directions)
    assert heads.names[:3] == ("pc01+", "pc01-", "pc02+")
    e = differences(40, 12, seed=9)
    s = heads.score(e)
    np.testing.assert_allclose(s[:, 0::2], -s[:, 1::2], atol=1e-6)
    found = adapt(s[:10], s[10:20], fallback=Readout())
    z = (s[:, 0::2] - found.mean[0::2]) / found.deviation[0::2]
    np.testing.assert_allclose(found.score(s), z @ (found.weights[0::2] - found.weights[1::2]), atol=1e-5)
    equal = found._replace(weights=np.full(10, 0.1))
    np.testing.assert_allclose(equal.score(s), 0.0, atol=1e-6)


def test_adapted_heads_are_one_head() -> None:
    heads = gaussian_heads(20, 12, seed=0)
    e = differences(30, 12).astype(np.float32)
    s = heads.score(e)
    found = adapt(s[:5], s[5:10], fallback=Readout())
    one = heads.combined(found.coefficients, found.offset)
    assert one.weights.shape == (1, 12)
    np.testing.assert_allclose(one.score(e)[:, 0], found.score(s), atol=1e-5)


def test_weights_and_soft_labels_of_pairs() -> None:
    chosen, rejected = scores()
    twice = adapt(np.repeat(chosen, 2, axis=0), np.repeat(rejected, 2, axis=0), fallback=Readout())
    deviation = np.concatenate([chosen, rejected]).std(axis=0, ddof=1)
    weighted = adapt(chosen, rejected, fallback=Readout(), weights=np.full(len(chosen), 2.0))
    np.testing.assert_allclose(weighted.losses, 2 * adapt(chosen, rejected, fallback=Readout()).losses)
    assert not np.allclose(twice.deviation, deviation)  # the unbiased deviation counts responses, weights do not
    swapped = adapt(rejected, chosen, fallback=Readout(), probability=np.zeros(len(chosen)))
    np.testing.assert_allclose(swapped.weights, adapt(chosen, rejected, fallback=Readout()).weights)


def test_what_cannot_be_adapted_on_is_refused() -> None:
    chosen, rejected = scores()
    with pytest.raises(ConfigError, match="temperature is 0"):
        adapt(chosen, rejected, fallback=Readout(), temperature=0)
    with pytest.raises(DataError, match="shapes"):
        adapt(chosen, rejected[:2], fallback=Readout())
    chosen[0, 0] = np.nan
    with pytest.raises(DataError, match="no score"):
        adapt(chosen, rejected, fallback=Readout())


# --- trials -------------------------------------------------------------------------------------------------------------------------------------------


def two_tastes(prompts: int = 60, width: int = 16, seed: int = 0):
    """Two users with opposite tastes along one planted direction; responses of a prompt, six pairs each, both users on every prompt."""
    rng = np.random.default_rng(seed)
    taste = np.zeros(width)
    taste[3] = 1.0
    vectors = rng.standard_normal((prompts * 4, width))
    groups, users = [], []
    for p in range(prompts):
        for user, sign in (("ann", 1), ("bob", -1)):
            own = [str(4 * p + k) for k in range(4)]
            value = sign * vectors[4 * p : 4 * p + 4] @ taste
            comparisons = tuple(Comparison(a, b) if value[a] > value[b] else Comparison(b, a) for a in range(4) for b in range(a + 1, 4))
            groups.append(PreferenceGroup(f"prompt {p}", tuple(own), comparisons, metadata={"user": user}))
            users += [user] * len(comparisons)
    return embedded_pairs(Fixed(vectors), groups, weights="given"), users, vectors.astype(np.float32), taste


def test_what_was_adapted_on_is_never_tested_on() -> None:
    pairs, _, _, _ = two_tastes()
    rng = np.random.default_rng(0)
    for exclude in ("prompt", "response"):
        for _ in range(20):
            adapted = rng.choice(len(pairs), 5, replace=False)
            tested = held_out(pairs, adapted, np.arange(len(pairs)), exclude)
            texts = {text for i in adapted for text in pairs.texts(i)[1:]}
            assert len(tested) and not set(tested) & set(adapted)
            assert not {text for i in tested for text in pairs.texts(i)[1:]} & texts
            shared = set(pairs.prompts[tested]) & set(pairs.prompts[adapted])
            assert not shared if exclude == "prompt" else shared


def test_the_same_text_under_another_prompt_is_not_tested_either() -> None:
    vectors = differences(6, 4)
    groups = [PreferenceGroup(p, (a, b), (Comparison(0, 1),)) for p, a, b in (("p", "0", "1"), ("q", "2", "0"), ("r", "4", "5"))]
    pairs = embedded_pairs(Fixed(vectors), groups)
    assert held_out(pairs, np.array([0]), np.arange(3), "prompt").tolist() == [2]


def test_opposite_tastes_are_adapted_to_and_the_single_head_serves_one() -> None:
    pairs, users, vectors, taste = two_tastes()
    heads = LinearHeads(("a+", "a-", "b+", "b-"), np.stack([taste, -taste, np.eye(16)[0], -np.eye(16)[0]]).astype(np.float32), np.zeros(4, np.float32))
    sets = {"planted": heads.score(vectors), "random": gaussian_heads(40, 16, seed=1).score(vectors)}
    scores = {name: values[pairs.embeddings.index] for name, values in sets.items()}
    single = (vectors @ taste)[pairs.embeddings.index]
    found = run_trials(pairs, scores, single, users, TrialSettings(pairs=10, draws=8))
    ann, bob = found.users
    assert [u.user for u in found.users] == ["ann", "bob"]
    assert ann.methods[SINGLE].accuracy == 1 and bob.methods[SINGLE].accuracy == 0
    for user in (ann, bob):
        # b+ and b- may bring a little noise into the planted taste; ten pairs leave them almost no weight
        assert user.methods["planted"].accuracy > 0.97 > user.methods["random"].accuracy > 0.6
    assert found.overall["planted"].difference == pytest.approx(found.overall["planted"].accuracy - 0.5)
    assert bob.methods["planted"].difference_interval.low > 0.9 and bob.methods["planted"].p_value < 0.01
    again = run_trials(pairs, scores, single, users, TrialSettings(pairs=10, draws=8))
    assert again.as_dict() == found.as_dict()
    assert all(len(draws) == 8 for draws in ann.draws.values())


def test_users_with_too_little_are_counted_and_pools_are_kept_apart() -> None:
    pairs, users, vectors, taste = two_tastes(prompts=20)
    scores = {"gaussian": gaussian_heads(4, 16, seed=0).score(vectors)[pairs.embeddings.index]}
    single = (vectors @ taste)[pairs.embeddings.index]
    names = ["carl" if i < 5 else user for i, user in enumerate(users)]
    first = pairs.prompts < 10
    found = run_trials(pairs, scores, single, names, TrialSettings(pairs=6, draws=3), adapt_on=first, test_on=~first)
    assert found.too_few == {"carl": 5}
    assert [user.tested for user in found.users] == [60.0, 60.0]  # all of the other half: no prompt is shared
    with pytest.raises(DataError, match="--exclude response"):
        run_trials(pairs, scores, single, ["x"] * len(pairs), TrialSettings(pairs=len(pairs)))


def test_sets_of_heads_take_turns_over_the_draws() -> None:
    pairs, users, vectors, taste = two_tastes(prompts=20)
    single = (vectors @ taste)[pairs.embeddings.index]
    random = random_scores(gaussian_heads, pairs.embeddings, 4, seed=7)
    assert random.shape == (20, len(single), 4)
    np.testing.assert_array_equal(random[2], gaussian_heads(4, 16, seed=9).score(pairs.embeddings))
    three = random[:3]
    own = {str(s): run_trials(pairs, {"random": scores}, single, users, TrialSettings(pairs=6, draws=5)) for s, scores in enumerate(three)}
    both = run_trials(pairs, {"random": three}, single, users, TrialSettings(pairs=6, draws=5))
    assert both.users[0].draws["random"] == [own[str(s % 3)].users[0].draws["random"][s] for s in range(5)]
    assert len({found.users[0].methods["random"].accuracy for found in own.values()}) > 1


def test_random_heads_are_seeded_and_the_ensemble_learns() -> None:
    pairs, _, vectors, _ = two_tastes()
    ann = pairs[np.array([pairs.groups[g].metadata["user"] == "ann" for g in pairs.group])]
    assert uniform_heads(5, 8, 0).weights.min() < 0 < uniform_heads(5, 8, 0).weights.max() <= 1
    np.testing.assert_array_equal(gaussian_heads(5, 8, 3).weights, gaussian_heads(5, 8, 3).weights)
    shared = shared_base_ensemble(ann, 6, seed=0)
    s = shared.score(vectors)[pairs.embeddings.index]
    for j in range(6):
        assert ((s[ann.chosen, j] - s[ann.rejected, j]) > 0).mean() > 0.97
    cosines = np.corrcoef(shared.weights)
    assert cosines[0, 1] < 1 - 1e-6  # they differ where the data say little
    assert decompose(ann, components=1, centred=False).directions.shape == (1, 16)
