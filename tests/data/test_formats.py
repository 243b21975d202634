"""Every layout from a literal row: what the prompt is, which response is better, by how much."""

from __future__ import annotations

import math
from typing import Any

import pytest

from palate.data.formats import LAYOUTS, detect_layout, parse_row
from palate.errors import DataError, RowError
from palate.types import Comparison, Step, TokenIds


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE = (Comparison(0, 1),)

# row -> (layout, prompt, responses, comparisons)
ROWS: dict[str, tuple[dict[str, Any], str, Any, Any, Any]] = {
    "explicit text": ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, "chosen and rejected", "Sky?", ("Blue.", "Green."), ONE),
    "explicit chat": (
        {"prompt": [SYSTEM, user("Sky?")], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
        "chosen and rejected",
        (SYSTEM, user("Sky?")),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "chat prompt, text responses": (
        {"prompt": [user("Sky?")], "chosen": "Blue.", "rejected": "Green."},
        "chosen and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "implicit chat, several turns": (
        {
            "chosen": [user("Hi"), assistant("Hello"), user("Sky?"), assistant("Blue.")],
            "rejected": [user("Hi"), assistant("Hello"), user("Sky?"), assistant("Green.")],
        },
        "chosen and rejected",
        (user("Hi"), assistant("Hello"), user("Sky?")),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "implicit text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "chosen and rejected",
        "The sky is",
        (" blue.", " green."),
        ONE,
    ),
    "raw HH dialogue": (
        {"chosen": "\n\nHuman: Sky?\n\nAssistant: It is blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: It is green."},
        "chosen and rejected",
        "\n\nHuman: Sky?\n\nAssistant:",
        (" It is blue.", " It is green."),
        ONE,
    ),
    "UltraFeedback: prompt text and whole dialogues": (
        {"prompt": [user("Sky?")], "chosen": [user("Sky?"), assistant("Blue.")], "rejected": [user("Sky?"), assistant("Green.")]},
        "chosen and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "UltraFeedback: a text prompt beside whole dialogues": (
        {"prompt": "Sky?", "chosen": [user("Sky?"), assistant("Blue.")], "rejected": [user("Sky?"), assistant("Green.")]},
        "chosen and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "a text prompt beside answers as messages": (
        {"prompt": "Sky?", "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
        "chosen and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "sides with a system message that the prompt lacks": (
        {"prompt": [user("Sky?")], "chosen": [SYSTEM, user("Sky?"), assistant("Blue.")], "rejected": [SYSTEM, user("Sky?"), assistant("Green.")]},
        "chosen and rejected",
        (SYSTEM, user("Sky?")),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "system and question (Orca pairs)": (
        {"system": "Be brief.", "question": "Sky?", "chosen": "It is blue.", "rejected": "It is green."},
        "chosen and rejected",
        (SYSTEM, user("Sky?")),
        ((assistant("It is blue."),), (assistant("It is green."),)),
        ONE,
    ),
    "an empty system column changes nothing": (
        {"system": "", "question": "Sky?", "chosen": "It is blue.", "rejected": "It is green."},
        "chosen and rejected",
        "Sky?",
        ("It is blue.", "It is green."),
        ONE,
    ),
    "parts of text are joined": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Sky"}, {"type": "text", "text": "?"}]}], "chosen": "a", "rejected": "b"},
        "chosen and rejected",
        (user("Sky?"),),
        ((assistant("a"),), (assistant("b"),)),
        ONE,
    ),
    "Nectar": (
        {"prompt": "Sky?", "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}]},
        "ranked items",
        "Sky?",
        ("a", "b"),
        (Comparison(1, 0),),
    ),
    "Arena": (
        {"conversation_a": [user("Sky?"), assistant("a")], "conversation_b": [user("Sky?"), assistant("b")], "winner": "tie (bothbad)"},
        "Arena battle",
        (user("Sky?"),),
        ((assistant("a"),), (assistant("b"),)),
        (Comparison(0, 1, probability=0.5),),
    ),
    "SHP, 0 is B": ({"history": "Sky?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, "SHP", "Sky?", ("a", "b"), (Comparison(1, 0),)),
    "HelpSteer3: -1 is the first": (
        {"context": [user("Sky?")], "response1": "a", "response2": "b", "overall_preference": -1},
        "two responses and a label",
        (user("Sky?"),),
        ((assistant("a"),), (assistant("b"),)),
        (Comparison(0, 1, strength=1.0),),
    ),
    "HelpSteer2 strength 2 is the second": (
        {"prompt": "Sky?", "response_1": "a", "response_2": "b", "preference_strength": 2},
        "two responses and a label",
        "Sky?",
        ("a", "b"),
        (Comparison(1, 0, strength=2.0),),
    ),
    "HelpSteer attributes": ({"prompt": "Sky?", "response": "a", "helpfulness": 4, "correctness": 3}, "rated attributes", "Sky?", ("a",), ()),
    "margin": (
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 1.5},
        "chosen and rejected",
        "Sky?",
        ("Blue.", "Green."),
        (Comparison(0, 1, margin=1.5),),
    ),
    "TRL ids": (
        {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4], "margin": 0.5},
        "pretokenized pairs",
        "",
        ((1, 2, 3), (1, 4)),
        (Comparison(0, 1, margin=0.5),),
    ),
    "open-instruct ids": ({"chosen_input_ids": [1, 2], "rejected_input_ids": [1, 4]}, "pretokenized pairs", "", ((1, 2), (1, 4)), ONE),
    "older TRL ids with padding": (
        {"input_ids_chosen": [1, 2, 0], "attention_mask_chosen": [1, 1, 0], "input_ids_rejected": [1, 4, 5], "attention_mask_rejected": [1, 1, 1]},
        "pretokenized pairs",
        "",
        ((1, 2), (1, 4, 5)),
        ONE,
    ),
    "RLHFlow ids": (
        {"input_ids_j": [1, 2], "attention_mask_j": [1, 1], "input_ids_k": [0, 4], "attention_mask_k": [0, 1]},
        "pretokenized pairs",
        "",
        ((1, 2), (4,)),
        ONE,
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "2 and 3", "chosen": "5", "rejected": "6"},
        "alpaca ranking",
        "Add.\n2 and 3",
        ("5", "6"),
        ONE,
    ),
    "alpaca with system and history": (
        {"instruction": "Again.", "input": "", "system": "Be brief.", "history": [["Hi", "Hello"]], "chosen": "Yes", "rejected": "No"},
        "alpaca ranking",
        (SYSTEM, user("Hi"), assistant("Hello"), user("Again.")),
        ((assistant("Yes"),), (assistant("No"),)),
        ONE,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Sky?"}], "chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}},
        "sharegpt ranking",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "messages and rejected_response": (
        {"messages": [user("Sky?"), assistant("Blue.")], "rejected_response": "Green."},
        "messages and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "messages and rejected_messages": (
        {"messages": [user("Sky?"), assistant("Blue.")], "rejected_messages": [user("Sky?"), assistant("Green.")]},
        "messages and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "messages and the last rejected turn": (
        {"messages": [user("Sky?"), assistant("Blue.")], "rejected_messages": [assistant("Green.")]},
        "messages and rejected",
        (user("Sky?"),),
        ((assistant("Blue."),), (assistant("Green."),)),
        ONE,
    ),
    "NeMo ranks, 0 is best": (
        {"context": [user("Sky?")], "completions": [{"rank": 1, "completion": [assistant("Green.")]}, {"rank": 0, "completion": [assistant("Blue.")]}]},
        "ranked items",
        (user("Sky?"),),
        ((assistant("Green."),), (assistant("Blue."),)),
        (Comparison(1, 0),),
    ),
    "scores": (
        {"prompt": "Sky?", "responses": ["a", "b", "c"], "scores": [1, 3, 3]},
        "ranking",
        "Sky?",
        ("a", "b", "c"),
        (Comparison(1, 0), Comparison(2, 0), Comparison(1, 2, probability=0.5)),
    ),
    "ranks, lower is better": ({"prompt": "Sky?", "responses": ["a", "b"], "ranks": [2, 1]}, "ranking", "Sky?", ("a", "b"), (Comparison(1, 0),)),
    "ratings by attribute": (
        {"prompt": "Sky?", "responses": ["a", "b"], "ratings": [{"help": 1, "truth": 2}, {"help": 5, "truth": 5}]},
        "ranking",
        "Sky?",
        ("a", "b"),
        (Comparison(1, 0),),
    ),
    "explicit comparisons with a tie": (
        {"prompt": "Sky?", "responses": ["a", "b", "c"], "comparisons": [[0, 1, 2], [0, 2, 0]], "scores": [0, 1, 0]},
        "ranking",
        "Sky?",
        ("a", "b", "c"),
        (Comparison(1, 0), Comparison(0, 2, probability=0.5)),
    ),
    "soft label prob_b": (
        {"prompt": "Sky?", "response_a": "a", "response_b": "b", "prob_b": 0.75},
        "soft label",
        "Sky?",
        ("a", "b"),
        (Comparison(1, 0, probability=0.75),),
    ),
    "soft label p_hat": (
        {"prompt": "Sky?", "chosen": "a", "rejected": "b", "p_hat": 0.6},
        "soft label",
        "Sky?",
        ("a", "b"),
        (Comparison(0, 1, probability=0.6),),
    ),
    "label 2": ({"prompt": "Sky?", "response_1": "a", "response_2": "b", "label": 2}, "two responses and a label", "Sky?", ("a", "b"), (Comparison(1, 0),)),
    "label tie": (
        {"prompt": "Sky?", "response_1": "a", "response_2": "b", "label": 0},
        "two responses and a label",
        "Sky?",
        ("a", "b"),
        (Comparison(0, 1, probability=0.5),),
    ),
    "label A>B": ({"question": "Sky?", "response_A": "a", "response_B": "b", "label": "A>B"}, "two responses and a label", "Sky?", ("a", "b"), ONE),
    "votes without a majority": (
        {"prompt": "Sky?", "response_1": "a", "response_2": "b", "label": None, "votes": [0, 1, 1, 2]},
        "two responses and a label",
        "Sky?",
        ("a", "b"),
        (Comparison(0, 1, probability=0.625),),
    ),
    "unpaired": ({"prompt": "Sky?", "completion": "a", "label": True}, "labelled response", "Sky?", ("a",), ()),
    "outcome": ({"prompt": "2+2?", "response": "4", "is_correct": False}, "labelled response", "2+2?", ("4",), ()),
    "steps": ({"prompt": "2+2?", "completions": ["two", "four"], "labels": [True, False]}, "steps", "2+2?", ("two\nfour",), ()),
    "rated": ({"prompt": "Sky?", "response": "a", "score": 4}, "rated response", "Sky?", ("a",), ()),
    "scoring only": ({"prompt": "Sky?", "response": "a"}, "prompt and response", "Sky?", ("a",), ()),
    "messages only": ({"messages": [user("Sky?"), assistant("a")]}, "messages", (user("Sky?"),), ((assistant("a"),),), ()),
}


@pytest.mark.parametrize("name", ROWS)
def test_layout(name: str) -> None:
    row, layout, prompt, responses, comparisons = ROWS[name]
    assert detect_layout(row).name == layout
    group = parse_row(row)
    assert group.prompt == prompt
    assert group.responses == responses
    assert [tuple(c) for c in group.comparisons] == [pytest.approx(tuple(c)) for c in comparisons]


def test_every_layout_of_the_table_has_a_row() -> None:
    assert {layout.name for layout in LAYOUTS} == {row[1] for row in ROWS.values()}


def test_ids_are_marked_so_that_nothing_tokenizes_them_again() -> None:
    assert all(isinstance(r, TokenIds) for r in parse_row({"chosen_ids": [1, 2], "rejected_ids": [3]}).responses)


def test_ratings_and_labels_are_kept() -> None:
    group = parse_row({"prompt": "p", "responses": ["a", "b"], "scores": [2, 1], "ratings": [{"help": 5}, {"help": 1}]})
    assert group.ratings == ({"score": 2.0, "help": 5.0}, {"score": 1.0, "help": 1.0})
    assert parse_row({"prompt": "p", "response": "a", "helpfulness": 4, "correctness": 3}).ratings == ({"helpfulness": 4.0, "correctness": 3.0},)
    assert parse_row({"prompt": "p", "completion": "a", "label": False}).ratings == ({"label": 0.0},)
    assert parse_row({"prompt": "p", "responses": ["a", "b"], "ratings": [[3, 2, 3], [5, 5, 5]]}).comparisons == (Comparison(1, 0),)


def test_tools_reach_the_template_and_metadata_travels() -> None:
    group = parse_row({"prompt": [user("p")], "chosen": "a", "rejected": "b", "tools": '[{"name": "f"}]', "id": 7, "chat_template_kwargs": {"thinking": False}})
    assert group.template_args == {"tools": [{"name": "f"}], "thinking": False}
    assert group.metadata["id"] == 7


def test_margins_are_per_row() -> None:
    """A missing margin is 0 for its own row and shifts nobody else's (a peer's batches misalign here)."""
    margins = [
        parse_row({"prompt": "p", "chosen": "a", "rejected": "b", **extra}).comparisons[0].margin
        for extra in ({"margin": 2}, {}, {"margin": None}, {"margin": 1})
    ]
    assert margins == [2.0, 0.0, 0.0, 1.0]


PAIRS_IN_WORDS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "sides": ({"prompt": "p", "chosen": "a", "rejected": "b"}, (0, 1)),
    "a label": ({"prompt": "p", "response_1": "a", "response_2": "b", "label": 2}, (1, 0)),
    "ids": ({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, (0, 1)),
    "messages": ({"messages": [user("p"), assistant("a")], "rejected_response": "b"}, (0, 1)),
    "alpaca": ({"instruction": "p", "input": "", "chosen": "a", "rejected": "b"}, (0, 1)),
    "sharegpt": ({"conversations": [user("p")], "chosen": "a", "rejected": "b"}, (0, 1)),
}


@pytest.mark.parametrize("name", PAIRS_IN_WORDS)
@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (2, 2.0),
        ("1.5", 1.5),
        (0, 0.0),
        (None, 0.0),
        ("Significantly better", 3.0),
        (" better ", 2.0),
        ("slightly better", 1.0),
        ("negligibly better", 0.0),
        ("unsure", 0.0),
        ("negligibly better/unsure", 0.0),
    ],
)
def test_strengths_as_numbers_and_in_llama_2_s_words(name: str, strength: Any, expected: float) -> None:
    """They strengthen the side that won, whichever it is, and do not travel on as metadata."""
    row, (chosen, rejected) = PAIRS_IN_WORDS[name]
    row = {**row, "strength": strength, "margin": 0.5}
    group = parse_row(row, strengths=True)
    assert group.comparisons == (Comparison(chosen, rejected, margin=0.5, strength=expected),)
    assert "strength" not in group.metadata
    assert parse_row(row).comparisons[0].strength == 0.0, "a column that no loss asks for is not read"


def test_signed_labels_give_strengths_and_ties_have_none() -> None:
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": value, "margin": 1} for value in (-3, 0, 1)]
    assert [parse_row(row).comparisons[0] for row in rows] == [
        Comparison(0, 1, margin=1.0, strength=3.0),
        Comparison(1, 0, probability=0.5),
        Comparison(1, 0, margin=1.0, strength=1.0),
    ]


def test_a_null_rank_takes_no_part() -> None:
    """Best k of a list: the others are compared with nobody, and those that are compared keep their places."""
    group = parse_row({"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [2, None, 1, 2]})
    assert group.comparisons == (Comparison(2, 0), Comparison(0, 3, probability=0.5), Comparison(2, 3))
    assert group.ranks == pytest.approx((2.0, math.nan, 1.0, 2.0), nan_ok=True)
    nobody = parse_row({"prompt": "p", "responses": ["a", "b"], "ranks": [None, 1]})
    assert nobody.comparisons == () and math.isnan(nobody.ranks[0])


def test_rankings_come_from_ranks_scores_and_ranked_items() -> None:
    """Ranks as given, scores with the sign turned; explicit comparisons give none of their own."""
    responses = {"prompt": "p", "responses": ["a", "b", "c"]}
    assert parse_row({**responses, "ranks": [2, 1, 2]}).ranks == (2.0, 1.0, 2.0)
    assert parse_row({**responses, "scores": [1, 3, 2]}).ranks == (-1.0, -3.0, -2.0)
    assert parse_row({**responses, "scores": [1, 3, 2], "ranks": [1, 2, 3]}).ranks == (1.0, 2.0, 3.0)
    assert parse_row({**responses, "comparisons": [[0, 1, 1]], "scores": [1, 3, 2]}).ranks == ()
    items = {"prompt": "p", "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}, {"answer": "c", "rank": 2.0}]}
    assert parse_row(items).ranks == (2.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([True, False, True], [1, 0, 1]),
        ([1, 0, -1], [1, 0, -1]),
        ([1.0, "0", "-1"], [1, 0, -1]),
        ([None, 1, None], [None, 1, None]),
        ([None, None, None], [None, None, None]),
    ],
)
def test_step_labels(labels: list[Any], expected: list[int | None]) -> None:
    group = parse_row({"prompt": "p", "completions": ["one", "two", "three"], "labels": labels})
    assert group.steps == tuple(Step(text, label) for text, label in zip(("one", "two", "three"), expected, strict=True))
    assert group.responses == ("one\ntwo\nthree",)


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "not text", "column `chosen` holds int 3"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "empty side", "response 1 of 2 is empty"),
        ({"prompt": "p", "chosen": " \n", "rejected": "b"}, "empty side", "response 1 of 2"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "identical sides", "the same text"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin", "expected a finite number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin", "swap the sides, clip it"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"}, "margin", "'much'"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "ragged", "`scores` has 1 entries for 2 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": [{"x": 1}, {"y": 1}]}, "ragged", "different attributes"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "ragged", "None"),
        ({"prompt": "p", "responses": ["a", "b"], "comparisons": [[0, 5, 1]]}, "ragged", "[0, 5, 1]"),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "label": "maybe"}, "label", "'maybe'"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "prob_b": 1.2}, "label", "between 0 and 1"),
        ({"prompt": "p", "completion": "a", "label": "perhaps"}, "label", "true or false"),
        ({"prompt": "p", "chosen": [{"role": "assistant"}], "rejected": [assistant("b")]}, "not text", "message 1 has keys ['role']"),
        ({"messages": [assistant("a"), user("b")], "rejected_response": "c"}, "not text", "ends with a user turn"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "images": ["x.png"]}, "media", "cannot see"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"}, "media", "not text"),
        ({"chosen_ids": [1, None], "rejected_ids": [2]}, "malformed", "pretokenized pairs"),
        ({"prompt": "p", "responses": ["a", "b"], "comparisons": [[0, 1]]}, "malformed", "ranking"),
        ({"instruction": "i", "input": "", "history": [["a"]], "chosen": "a", "rejected": "b"}, "malformed", "alpaca"),
        ({"input_ids_chosen": [1, 2], "attention_mask_chosen": [1], "input_ids_rejected": [3]}, "ragged", "2 ids but its attention mask has 1"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "strength": "much better"}, "strength", "'much better'"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "strength": -1},
            "strength",
            "expected 0 to 3, or one of significantly better, better, slightly better",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "strength": 4}, "strength", "`strength` is 4.0"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "strength": float("nan")}, "strength", "expected a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, "first"]}, "ragged", "column `ranks` holds 'first'"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "ragged", "`ranks` has 1 entries for 2 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": [{"help": None}, {"help": None}]}, "ragged", "`ratings`"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True]}, "ragged", "`labels` has 1 entries for 2"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [1, 2]}, "label", "holds 2, expected true or false, or 1, 0, -1"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [1, 0.5]}, "label", "holds 0.5, expected true or false, or 1, 0, -1"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [1, "+"]}, "label", "holds '+'"),
        ({"prompt": "p", "completions": ["a", 3], "labels": [1, 1]}, "not text", "column `completions` holds int 3"),
    ],
)
def test_bad_rows_say_what_is_wrong(row: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, strengths=True)
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_an_unknown_layout_names_near_columns() -> None:
    with pytest.raises(DataError, match="did you mean `chosen` by `choosen`"):
        detect_layout({"prompt": 1, "choosen": 1, "rejected": 1})


def test_a_row_of_another_layout_than_the_file_is_refused() -> None:
    with pytest.raises(RowError, match="did you mean `chosen` by `choosen`"):
        parse_row({"prompt": "p", "choosen": "r", "rejected": "s"}, detect_layout({"chosen": 1, "rejected": 1}))


def test_scoring_takes_empty_responses() -> None:
    assert parse_row({"prompt": "p", "response": ""}, compared=False).responses == ("",)
    with pytest.raises(RowError, match="empty"):
        parse_row({"prompt": "p", "response": ""})


def test_margins_and_strengths_nobody_asks_for_are_not_read() -> None:
    assert parse_row({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, margins=False).comparisons == ONE
    assert parse_row({"prompt": "p", "chosen": "a", "rejected": "b", "strength": "very"}).comparisons == ONE


@pytest.mark.parametrize(
    ("row", "comparison"),
    [
        ({"prob_b": 0.75}, Comparison(1, 0, margin=0.5, weight=2.0, probability=0.75, strength=1.0)),
        ({"votes": [1, 1, 2, 0], "label": None}, Comparison(0, 1, margin=0.5, weight=2.0, probability=0.625, strength=1.0)),
    ],
    ids=["a probability", "votes"],
)
def test_soft_labels_keep_what_else_the_row_says(row: dict[str, Any], comparison: Comparison) -> None:
    sides = {"prompt": "p", "response_a": "a", "response_b": "b", "margin": 0.5, "weight": 2, "strength": "slightly better"}
    assert parse_row({**sides, **row}, strengths=True).comparisons == (comparison,)


def test_a_weight_counts_for_every_pair_of_a_ranking() -> None:
    assert [c.weight for c in parse_row({"prompt": "p", "responses": ["a", "b", "c"], "scores": [3, 2, 1], "weight": 0.5}).comparisons] == [0.5] * 3


def test_implicit_text_concatenates_to_what_was_given() -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"}
    group = parse_row(row)
    assert [group.prompt + r for r in group.responses] == [row["chosen"], row["rejected"]]
    glued = parse_row({"chosen": "Q:a", "rejected": "Q:b"})  # no blank to split at: the whole stays one text
    assert (glued.prompt, glued.responses) == ("", ("Q:a", "Q:b"))
