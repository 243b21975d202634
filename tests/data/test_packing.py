"""Trees, rows and budgets: nothing lost, nothing counted twice, the same every time."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.data.collation import PreferenceCollator, encoded_row
from palate.data.packing import BalancedSampler, PackingCollator, batches_by_length, fill, first_trees, num_tokens, plant, whole_sequences
from palate.data.tokenization import EncodedGroup, shared_prefix
from palate.types import Comparison, PreferenceGroup

SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), max_size=12)


def encoded(token_ids: list[list[int]], comparisons: list[Comparison], index: int) -> dict:
    return encoded_row(EncodedGroup(token_ids, PreferenceGroup("", tuple("r" for _ in token_ids), tuple(comparisons)), 0), index)


ROWS = [
    encoded([[5, 6, 7, 8], [5, 6, 9]], [Comparison(0, 1, margin=2.0)], 0),
    encoded([[5, 6], [5, 6, 1], [5, 2, 3, 4]], [Comparison(1, 0), Comparison(2, 1, weight=0.5)], 1),
    encoded([[1, 2, 3], [4, 5]], [Comparison(1, 0, probability=0.7)], 2),
]


def test_first_fit_decreasing_by_hand() -> None:
    assert fill([3, 7, 5, 2, 9, 4], 10) == [[0, 1], [2, 5], [3], [4]]
    assert fill([12, 1], 10) == [[0], [1]]  # larger than the budget: a row of its own
    assert fill([], 10) == []


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(5, 40))
def test_rows_hold_everything_once_and_keep_to_the_budget(sizes: list[int], budget: int) -> None:
    rows = fill(sizes, budget)
    assert sorted(chain.from_iterable(rows)) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= budget or len(row) == 1 for row in rows)
    assert rows == sorted(rows) and rows == fill(sizes, budget)
    # first-fit leaves no two rows that would go into one
    loads = sorted(sum(sizes[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > budget


@given(SEQUENCES, st.integers(1, 40))
def test_trees_hold_every_sequence_once_under_a_prefix_that_all_share(sequences: list[list[int]], budget: int) -> None:
    trees = plant(sequences, budget)
    assert sorted(chain.from_iterable(tree.indices for tree in trees)) == list(range(len(sequences)))
    for indices, prefix in trees:
        assert len({tuple(sequences[i][:prefix]) for i in indices}) == 1 and all(len(sequences[i]) >= prefix for i in indices)
        size = prefix + sum(len(sequences[i]) - prefix for i in indices)
        assert size <= budget or len(indices) == 1


def test_prompts_with_a_common_start_are_kept_apart_where_that_saves_more() -> None:
    """Two prompts of a common system message: 3 shared tokens for all four, or 6 and 6 for each pair."""
    system, first, second = [1, 1, 1], [2, 2, 2], [3, 3, 3]
    sequences = [system + first + [7], system + second + [7], system + first + [8], system + second + [8]]
    assert sorted((sorted(tree.indices), tree.prefix) for tree in plant(sequences, 100)) == [([0, 2], 6), ([1, 3], 6)]
    alone = [system + [k] for k in range(4, 8)]
    assert [(sorted(tree.indices), tree.prefix) for tree in plant(alone, 100)] == [([0, 1, 2, 3], 3)]
    assert [(tree.indices, tree.prefix) for tree in plant([[4, 4], [4, 4]], 100)] == [([0, 1], 2)]


def test_a_tree_beyond_the_budget_repeats_its_prefix() -> None:
    sequences = [[1, 1, 1, 1, k] for k in range(6)]
    assert [(len(tree.indices), tree.prefix) for tree in plant(sequences, 7)] == [(3, 4), (3, 4)]


def test_batches_by_length_by_hand() -> None:
    assert batches_by_length([3, 9, 4, 8], 18) == [[1, 3], [2, 0]]
    assert batches_by_length([50], 18) == [[0]]


@pytest.mark.parametrize("packing", ["shared", "packed", "padded"])
@pytest.mark.parametrize("budget", [1, 7, 100])
def test_every_layout_holds_the_same_comparisons(packing: str, budget: int) -> None:
    """Comparisons as (ids of chosen, ids of rejected, numbers), whatever the layout and wherever the budget cuts."""
    expected = {
        ((5, 6, 7, 8), (5, 6, 9), 2.0, 1.0, 1.0, 0),
        ((5, 6, 1), (5, 6), 0.0, 1.0, 1.0, 1),
        ((5, 2, 3, 4), (5, 6, 1), 0.0, 0.5, 1.0, 1),
        ((4, 5), (1, 2, 3), 0.0, 1.0, 0.7, 2),
    }
    batch = PackingCollator(packing, PreferenceCollator(0), budget)(ROWS)
    assert len(batch["parts"]) == (3 if budget == 1 else 1 if budget == 100 else len(batch["parts"]))
    found, tokens = set(), 0
    for part in batch["parts"]:
        if packing == "padded":
            sequences = [ids[mask.bool()].tolist() for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)]
        else:
            assert part["input_ids"].shape == (1, sum(map(sum, part["trees"])))
            sequences = whole_sequences(part)
        columns = (part[key].tolist() for key in ("chosen", "rejected", "margin", "weight", "probability", "group"))
        for chosen, rejected, margin, weight, probability, group in zip(*columns, strict=True):
            found.add((tuple(sequences[chosen]), tuple(sequences[rejected]), margin, weight, round(probability, 6), group))
        tokens += int(num_tokens(part))
    assert found == expected
    assert tokens == 4 + 3 + 2 + 3 + 4 + 3 + 2


def test_shared_rows_count_a_prompt_once() -> None:
    (part,) = PackingCollator("shared", PreferenceCollator(0), 100)(ROWS)["parts"]
    assert part["trees"] == [[2, 2, 1], [1, 1, 2, 3], [0, 3, 2]]
    assert part["input_ids"].tolist() == [[5, 6, 7, 8, 9, 5, 6, 6, 1, 2, 3, 4, 1, 2, 3, 4, 5]]
    assert [row["tokens"] for row in ROWS] == [5, 7, 5] and part["input_ids"].numel() == 17
    few = first_trees(part, 3)
    assert few["trees"] == [[2, 2, 1], [1, 1, 2, 3]] and torch.equal(few["input_ids"], part["input_ids"][:, :12])


def test_sharing_ends_where_ids_differ() -> None:
    assert shared_prefix([[1, 2, 3, 4], [1, 2, 9], [1, 2, 3]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 3]]) == 2 and shared_prefix([[1, 2]]) == 2 and shared_prefix([[3], [4]]) == 0


def test_the_balanced_sampler_keeps_steps_and_evens_ranks() -> None:
    sizes = torch.randint(10, 1000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    dealt = list(BalancedSampler(order, sizes, batch_size=4, batches=4))  # type: ignore[arg-type]
    for start in range(0, 64, 16):
        assert sorted(dealt[start : start + 16]) == sorted(order[start : start + 16])
        loads = [sum(sizes[i] for i in dealt[start + 4 * b : start + 4 * b + 4]) for b in range(4)]
        before = [sum(sizes[i] for i in order[start + 4 * b : start + 4 * b + 4]) for b in range(4)]
        assert max(loads) - min(loads) <= max(sizes[i] for i in order[start : start + 16])
        assert max(loads) - min(loads) < max(before) - min(before)
    assert list(BalancedSampler(order[:10], sizes, batch_size=4, batches=4)) == order[:10]  # type: ignore[arg-type]
