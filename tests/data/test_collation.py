"""An index batch by hand: rows stand once, comparisons point to them across groups, and every loss finds the tokens and columns that it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import chatml_tokenizer

from palate.data.collation import MODEL_KEYS, PreferenceCollator, encoded_row, extra_columns, read_columns, step_class, supervision_columns
from palate.data.loading import load_groups
from palate.data.packing import PackingCollator, whole_sequences
from palate.data.preparation import prepare
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import EncodedGroup, Encoder
from palate.errors import DataError
from palate.types import IGNORED, PreferenceGroup, Step, Supervision

ROWS = [
    {"token_ids": [[5, 6], [5, 7, 8]], "chosen": [0], "rejected": [1], "margin": [0.5], "weight": [1.0], "probability": [1.0], "group": 0},
    {"token_ids": [[1], [2], [3]], "chosen": [2, 2], "rejected": [0, 1], "margin": [0, 0], "weight": [0.5, 0.5], "probability": [1.0, 0.75], "group": 1},
]


def test_two_groups() -> None:
    batch = PreferenceCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [5, 7, 8], [1, 0, 0], [2, 0, 0], [3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert batch["chosen"].tolist() == [0, 4, 4] and batch["rejected"].tolist() == [1, 2, 3]
    assert batch["margin"].tolist() == [0.5, 0.0, 0.0] and batch["weight"].tolist() == [1.0, 0.5, 0.5]
    assert batch["probability"].tolist() == [1.0, 1.0, 0.75] and batch["group"].tolist() == [0, 1, 1]
    assert batch["weight"].dtype == torch.float32 and batch["chosen"].dtype == torch.long


def test_padding_to_a_multiple() -> None:
    assert PreferenceCollator(0, pad_to_multiple_of=8)(ROWS)["input_ids"].shape == (5, 8)


# --- tokens that are read -------------------------------------------------------------------------------------------------------------------------


def row(*token_ids: list[int], pairs: Sequence[tuple[int, int]] = ((0, 1),), group: int = 0, **columns: Any) -> dict[str, Any]:
    """An encoded group; of a single response it has no comparison."""
    pairs = pairs if len(token_ids) > 1 else ()
    constants = {"margin": 0.0, "weight": 1.0, "probability": 1.0}
    given = {"token_ids": list(token_ids), "chosen": [a for a, _ in pairs], "rejected": [b for _, b in pairs], "group": group}
    return {**given, **{name: [value] * len(pairs) for name, value in constants.items()}, **columns}


RESPONSE, DIVERGENCE, PADDED = Supervision(reads="response"), Supervision(reads="divergence"), Supervision(reads="divergence_padded")
STEPS, TEXT = Supervision(comparisons=False, reads="steps", classes=2), Supervision(text=True)
THREE = row([5, 6, 7, 8], [5, 6, 7, 9, 1], [5, 2, 3], pairs=[(0, 1), (2, 0), (1, 2)])

READS: dict[str, tuple[Supervision, list[dict[str, Any]], dict[str, list[int]]]] = {
    "all of each response": (
        RESPONSE,
        [row([5, 6, 7, 8], [5, 6, 9], start=[2, 2]), row([1, 2, 3], start=[1]), row([4], start=[0])],
        {"read_row": [0, 0, 1, 2, 2, 3], "read_position": [2, 3, 2, 1, 2, 0], "last_read": [1, 2, 4, 5]},
    ),
    "from where two sides part": (
        DIVERGENCE,
        [row([5, 6, 7, 8], [5, 6, 9]), row([1, 2], [1, 3])],
        {
            "read_row": [0, 0, 1, 2, 3],
            "read_position": [2, 3, 2, 1, 1],
            "last_read": [1, 2, 3, 4],
            "divergence_start": [2, 1],
            "divergence_stop": [3, 2],
        },
    ),
    "the shorter side's padding too": (
        PADDED,
        [row([5, 6, 7, 8], [5, 6, 9])],
        {"read_row": [0, 0, 1, 1], "read_position": [2, 3, 2, 3], "last_read": [1, 2], "divergence_start": [2], "divergence_stop": [4]},
    ),
    "three that part at different tokens": (
        DIVERGENCE,
        [THREE],
        {
            "read_row": [0, 0, 0, 1, 1, 1, 1, 2, 2],
            "read_position": [1, 2, 3, 1, 2, 3, 4, 1, 2],
            "last_read": [2, 6, 8],
            "divergence_start": [3, 1, 1],
            "divergence_stop": [4, 3, 3],
        },
    ),
    "three with their padding": (
        PADDED,
        [THREE],
        {
            "read_row": [0] * 4 + [1] * 4 + [2] * 4,
            "read_position": [1, 2, 3, 4] * 3,
            "last_read": [2, 7, 9],
            "divergence_start": [3, 1, 1],
            "divergence_stop": [5, 4, 5],
        },
    ),
    "one is the beginning of the other, with padding": (
        PADDED,
        [row([5, 6, 7], [5, 6])],
        {"read_row": [0, 0, 1, 1], "read_position": [1, 2, 1, 2], "last_read": [1, 2], "divergence_start": [2], "divergence_stop": [3]},
    ),
    "equal sides": (
        DIVERGENCE,
        [row([5, 6], [5, 6])],
        {"read_row": [0, 1], "read_position": [1, 1], "last_read": [0, 1], "divergence_start": [1], "divergence_stop": [2]},
    ),
    "steps": (
        STEPS,
        [row([1, 2, 3, 4, 5, 6], step_end=[2, 4], step_label=[1, 0]), row([1, 2, 3], step_end=[0, 2], step_label=[IGNORED, 1])],
        {
            "read_row": [0, 0, 0, 1, 1],
            "read_position": [2, 4, 5, 0, 2],
            "last_read": [2, 4],
            "read_label": [1, 0, IGNORED, IGNORED, 1],
            "read_step": [True, True, False, True, True],  # a step without a label ends too
        },
    ),
    "text": (  # the token before the response predicts its first; the last predicts nothing
        TEXT,
        [row([5, 6, 7, 8], [5, 6, 9], start=[2, 2]), row([4, 5, 6], start=[0])],
        {
            "read_row": [0, 0, 0, 1, 1, 2, 2, 2],
            "read_position": [1, 2, 3, 1, 2, 0, 1, 2],
            "last_read": [2, 4, 7],
            "next_token": [7, 8, IGNORED, 9, IGNORED, 5, 6, IGNORED],
        },
    ),
    "text of a response of EOS alone": (
        TEXT,
        [row([5, 6, 2], [5, 6, 7, 2], start=[2, 2])],
        {"read_row": [0, 0, 1, 1, 1], "read_position": [1, 2, 1, 2, 3], "last_read": [1, 4], "next_token": [2, IGNORED, 7, 2, IGNORED]},
    ),
}
"""Name -> (what the loss reads, encoded groups, columns)."""


@pytest.mark.parametrize("name", READS)
def test_tokens_that_are_read(name: str) -> None:
    supervision, rows, columns = READS[name]
    found = read_columns(rows, supervision)
    assert {key: value.tolist() for key, value in found.items()} == columns
    assert all(value.dtype == (torch.bool if key == "read_step" else torch.long) for key, value in found.items())


@pytest.mark.parametrize(
    ("supervision", "sides", "words"),
    [
        (DIVERGENCE, ([5, 6], [7, 6]), "the first token of both sides differs"),
        (PADDED, ([5, 6], [7, 6, 8]), "the first token of both sides differs"),
        (DIVERGENCE, ([5, 6], [5, 6, 7]), "nothing is left to compare"),  # one side is the beginning of the other
    ],
)
def test_sides_that_cannot_be_compared_token_by_token(supervision: Supervision, sides: tuple[list[int], list[int]], words: str) -> None:
    for one in (sides, sides[::-1]):
        with pytest.raises(DataError, match=words):
            read_columns([row(*one)], supervision)


IDS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@given(st.lists(st.lists(IDS, min_size=2, max_size=4, unique_by=tuple), min_size=1, max_size=3), st.booleans())
def test_every_compared_token_is_read_of_both_sides(groups: list[list[list[int]]], padding: bool) -> None:
    """Whatever the sides: last tokens are found, spans lie within what is read, begin where two sides part, and end with the shorter (or longer)."""
    groups = [[[9, *own, 4] for own in group] for group in groups]  # a prompt, and an end that stands nowhere else
    rows = [row(*ids, pairs=[(a, b) for a in range(len(ids)) for b in range(a)]) for ids in groups]
    found = {key: value.tolist() for key, value in read_columns(rows, PADDED if padding else DIVERGENCE).items()}
    sequences = [ids for group in groups for ids in group]
    read = list(zip(found["read_row"], found["read_position"], strict=True))
    assert [read[i] for i in found["last_read"]] == [(n, len(ids) - 1) for n, ids in enumerate(sequences)]
    assert read == sorted(set(read)), "each response in order, positions rising"
    first = [0]
    for ids in groups:
        first.append(first[-1] + len(ids))
    pairs = [(offset + a, offset + b) for offset, ids in zip(first, groups, strict=False) for a in range(len(ids)) for b in range(a)]
    for (a, b), start, stop in zip(pairs, found["divergence_start"], found["divergence_stop"], strict=True):
        assert {(side, t) for side in (a, b) for t in range(start, stop)} <= set(read)
        one, other = sequences[a], sequences[b]
        end = (max if padding else min)(len(one), len(other))
        assert (start, stop) == (next(t for t in range(len(one)) if one[t] != other[t]), end)


# --- columns --------------------------------------------------------------------------------------------------------------------------------------


def same(got: Any, expected: Any) -> bool:
    return torch.equal(torch.as_tensor(got).nan_to_num(-99.0), torch.as_tensor(expected, dtype=torch.as_tensor(got).dtype).nan_to_num(-99.0))


NAN = math.nan


def responses(*token_ids: list[int], prompt: tuple[list[float], int], **columns: Any) -> dict[str, Any]:
    """`row` with ratings by attribute and a prompt that has been embedded."""
    ratings = {f"rating {name}": columns.pop(name) for name in ("help", "truth")}
    return row(*token_ids, prompt_embedding=prompt[0], prompt_number=prompt[1], **ratings, **columns)


def test_columns_of_responses() -> None:
    """A value a response, in the order of the rows; groups by their own numbers."""
    rows = [
        responses([5, 6, 7], [5, 6], start=[1, 1], rank=[2.0, NAN], help=[1.0, NAN], truth=[NAN, NAN], reference=[-1.5, -2.5], prompt=([1.0, 0.0], 4), group=7),
        responses([1, 2, 3, 4], start=[1], rank=[1.0], help=[3.0], truth=[4.0], reference=[-0.5], prompt=([0.5, 0.5], 1), group=3),
        responses(
            [1, 2],
            [1, 3],
            [1],
            pairs=[(0, 1), (2, 1)],
            start=[1, 1, 0],
            rank=[1, 2, 3],
            help=[0] * 3,
            truth=[1] * 3,
            reference=[0] * 3,
            prompt=([0, 1], 2),
            group=5,
        ),
    ]
    batch = supervision_columns(rows, Supervision(ranks=True, attributes=("help", "truth"), lengths=True, prompts=True))
    assert batch["response_group"].tolist() == [7, 7, 3, 5, 5, 5] and batch["group"].tolist() == [7, 5, 5]
    assert batch["chosen"].tolist() == [0, 3, 5] and batch["rejected"].tolist() == [1, 4, 4]
    assert same(batch["rank"], [2, NAN, 1, 1, 2, 3]) and same(batch["rating"], [[1, NAN], [NAN, NAN], [3, 4], [0, 1], [0, 1], [0, 1]])
    assert batch["response_length"].tolist() == [2, 1, 3, 1, 1, 1] and batch["reference"].tolist() == [-1.5, -2.5, -0.5, 0, 0, 0]
    assert batch["prompt_embedding"].tolist() == [[1, 0], [0, 1], [0, 1]] and batch["prompt_number"].tolist() == [4, 2, 2], "one a comparison"
    assert "read_row" not in batch
    assert all(batch[name].dtype == torch.float32 for name in ("rank", "rating", "response_length", "reference", "prompt_embedding"))


def test_columns_that_nobody_reads_are_not_built() -> None:
    pairwise = supervision_columns([row([5, 6], [5, 7])], Supervision())
    assert set(pairwise) == {"chosen", "rejected", "margin", "weight", "probability", "group"}
    assert extra_columns(Supervision()) == () and extra_columns(TEXT) == ("start",) and extra_columns(STEPS) == ("step_end", "step_label")


@pytest.mark.parametrize(("classes", "labels", "expected"), [(2, (0, 1, None), [0, 1, IGNORED]), (3, (-1, 0, 1, None), [0, 1, 2, IGNORED])])
def test_classes_of_steps(classes: int, labels: tuple[int | None, ...], expected: list[int]) -> None:
    assert [step_class(label, classes) for label in labels] == expected


@pytest.mark.parametrize(("last_only", "expected"), [(False, [1, IGNORED, 0]), (True, [IGNORED, IGNORED, 0])])
def test_an_encoded_row_of_steps(last_only: bool, expected: list[int]) -> None:
    group = PreferenceGroup("p", ("r",), steps=(Step("a", 1), Step("b", None), Step("c", 0)))
    encoded = EncodedGroup([[1, 2, 3, 4]], group, 0, step_ends=(1, 2, 3))
    made = encoded_row(encoded, 4, Supervision(comparisons=False, reads="steps", classes=2, last_step_only=last_only))
    assert made["step_end"] == [1, 2, 3] and made["step_label"] == expected and made["group"] == 4 and made["chosen"] == []


def test_an_encoded_row_of_ratings_and_ranks() -> None:
    """Attributes in the order that the loss names them; what a response lacks is NaN, and a group without any is NaN throughout."""
    supervision = Supervision(ranks=True, attributes=("truth", "help"), prompts=True)
    ids = [[1, 2, 3], [1, 2]]
    rated = encoded_row(EncodedGroup(ids, PreferenceGroup("ask", ("a", "b"), ratings=({"help": 1.0}, {"truth": 2.0, "help": 3.0})), 0), 0, supervision)
    assert same(rated["rating truth"], [NAN, 2]) and same(rated["rating help"], [1, 3]) and same(rated["rank"], [NAN, NAN]) and rated["prompt"] == "ask"
    ranked = encoded_row(EncodedGroup(ids, PreferenceGroup("ask", ("a", "b"), ranks=(2.0, NAN)), 0), 0, supervision)
    assert same(ranked["rating truth"], [NAN, NAN]) and same(ranked["rating help"], [NAN, NAN]) and same(ranked["rank"], [2, NAN])
    assert (ranked["length"], ranked["tokens"]) == (3, 3)


# --- through the data room ------------------------------------------------------------------------------------------------------------------------

SOURCE: list[dict[str, Any]] = [
    {"prompt": "tell me", "responses": ["the sea", "the sea and the wind", "no"], "ranks": [1.0, 2.0, None]},
    {"prompt": "say it", "responses": ["the fox", "the dog"], "ranks": [2.0, 1.0]},
    {"prompt": "again the same", "responses": ["yes", "yes and no", "the wind", "the night"], "ranks": [1.0, 1.0, None, 2.0]},
]
RATED: list[dict[str, Any]] = [
    {"prompt": "tell me", "response": "the sea", "score": {"help": 1.0, "truth": None}},
    {"prompt": "say it", "response": "the fox", "score": {"help": None, "truth": 2.5}},
    {"prompt": "again", "response": "the wind", "score": {"help": 3.0, "truth": 0.0}},
]
STEPWISE: list[dict[str, Any]] = [
    {"prompt": "prove it", "completions": ["the sea", "the wind"], "labels": [1, None]},
    {"prompt": "prove it again", "completions": ["yes", "no", "yes"], "labels": [0, 1, 1]},
]
KINDS: dict[str, tuple[list[dict[str, Any]], Supervision]] = {
    "ranks": (SOURCE, Supervision(ranks=True)),
    "lengths": (SOURCE, Supervision(lengths=True)),
    "text": (SOURCE, TEXT),
    "prompts": (SOURCE, Supervision(prompts=True)),
    "divergence": (SOURCE, DIVERGENCE),
    "ratings": (RATED, Supervision(comparisons=False, attributes=("truth", "help"))),
    "ratings at every token": (RATED, Supervision(comparisons=False, reads="response", attributes=("help",))),
    "steps": (STEPWISE, STEPS),
}


def encoded(rows: Any, supervision: Supervision) -> list[dict[str, Any]]:
    tokenizer = prepare_tokenizer(chatml_tokenizer())
    return list(prepare(rows, Encoder(tokenizer, max_length=64), name="train", supervision=supervision)[0])


def plain(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comparable where NaN stands."""
    return repr([sorted(one.items()) for one in rows])


@pytest.mark.parametrize("name", KINDS)
def test_lists_data_sets_and_streams_encode_alike(name: str) -> None:
    """And Arrow keeps NaN as NaN: None would end the run, and 0 would train towards it."""
    source, supervision = KINDS[name]
    from_list = encoded(load_groups(source).groups, supervision)
    assert len(from_list) == len(source) - (name == "ratings at every token")
    assert set(extra_columns(supervision)) <= set(from_list[0])
    assert plain(encoded(Dataset.from_list(source), supervision)) == plain(from_list)
    streamed = encoded(IterableDataset.from_generator(lambda: iter(source)), supervision)
    assert [len(one["token_ids"]) for one in streamed] == [len(one["token_ids"]) for one in from_list]
    assert plain([{**one, "group": 0} for one in streamed]) == plain([{**one, "group": 0} for one in from_list])


def test_missing_ranks_and_ratings_survive_arrow() -> None:
    assert same(
        torch.tensor([value for one in encoded(load_groups(SOURCE).groups, KINDS["ranks"][1]) for value in one["rank"]]), [1, 2, NAN, 2, 1, 1, 1, NAN, 2]
    )
    rated = encoded(Dataset.from_list(RATED), KINDS["ratings"][1])
    assert same(torch.tensor([one["rating truth"] + one["rating help"] for one in rated]), [[NAN, 1], [2.5, NAN], [0, 3]])


@pytest.mark.parametrize("budget", [1000, 12])
@pytest.mark.parametrize("packing", ["shared", "packed", "padded"])
@pytest.mark.parametrize("name", KINDS)
def test_packed_and_padded_batches_say_the_same(name: str, packing: str, budget: int) -> None:
    """However a batch is cut and laid out, each part has the columns of its own rows, and reads the same tokens of the same sequences."""
    source, supervision = KINDS[name]
    rows = [{key: value for key, value in one.items() if key != "prompt"} for one in encoded(load_groups(source).groups, supervision)]
    pad = PreferenceCollator(0, supervision=supervision)
    parts = PackingCollator(packing, pad, budget)(rows)["parts"]
    assert (len(parts) == 1) == (budget == 1000)
    seen: list[int] = []
    for part in parts:
        held = list(dict.fromkeys(part["response_group"].tolist())) if "response_group" in part else []
        expected = pad([rows[group] for group in held])
        assert {key for key in expected if key not in MODEL_KEYS} == {key for key in part if key not in MODEL_KEYS}
        for key in {*part} - {"input_ids", "attention_mask", "trees"}:
            assert same(part[key], expected[key]), key
        sequences = (
            whole_sequences(part)
            if "trees" in part
            else [ids[mask.bool()].tolist() for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)]
        )
        assert sequences == [ids for group in held for ids in rows[group]["token_ids"]]
        seen += held
    assert sorted(seen) == list(range(len(rows)))
