"""Real preference data of many origins: what is recognised, how many rows are used, and which files are refused, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from palate.data.loading import load_groups
from palate.data.validation import check_groups
from palate.errors import DataError

# file -> (layout, rows, rows that cannot be used by kind, decided comparisons, ties)
FILES: dict[str, tuple[str, int, dict[str, int], int, int]] = {
    "alpaca_eval_direct_soft": ("soft label", 2216, {}, 2216, 0),
    "alpaca_eval_kwise": ("ranking", 805, {}, 15145, 698),
    "alpaca_eval_pairs_test": ("chosen and rejected", 1994, {}, 1994, 0),
    "alpaca_eval_pairs_train_small": ("chosen and rejected", 4000, {}, 4000, 0),
    "gpt4_rated_mt_bench": ("rated response", 320, {}, 0, 0),
    "gpt4_rated_vicuna": ("ranking", 80, {}, 322, 158),
    "gsm8k_kwise": ("ranking", 1319, {}, 2429, 5477),
    "gsm8k_orm": ("labelled response", 5276, {}, 0, 0),
    "gsm8k_pairs": ("chosen and rejected", 2426, {}, 2426, 0),
    "hh_harmless": ("chosen and rejected", 2000, {"empty side": 4}, 1996, 0),
    "hhh_alignment": ("chosen and rejected", 221, {}, 221, 0),
    "llamafactory_dpo_en_demo": ("chosen and rejected", 300, {}, 300, 0),
    "llamafactory_dpo_zh_demo": ("chosen and rejected", 300, {}, 300, 0),
    "llamafactory_kto_en_demo": ("labelled response", 300, {}, 0, 0),
    "llmbar": ("chosen and rejected", 419, {}, 419, 0),
    "llmbar_processed_human": ("chosen and rejected", 466, {"identical sides": 1, "empty side": 1}, 464, 0),
    "pandalm_testset": ("two responses and a label", 999, {"empty side": 54}, 842, 103),
    "qa_feedback_kwise_human": ("ranking", 500, {}, 2616, 384),
    "ukpconvarg_pairs_test": ("chosen and rejected", 1500, {"margin": 22}, 1478, 0),
    "ukpconvarg_pairs_train": ("chosen and rejected", 9000, {"margin": 161}, 8839, 0),
}
REFUSED = {
    "gsm8k_test_reference": "no known layout has the columns gold_answer, prompt, qid, reference",
    "judgement_bias_counterfactual": "no known layout has the columns id, level, original, perturbed",
    "ukpconvarg_arguments": "no known layout has the columns id, prompt, text, topic",
    "ukpconvarg_votes": "no known layout has the columns arg_1, arg_2, gold",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_real_file_loads_as_expected(name: str, shared_data: Path) -> None:
    layout, rows, bad, comparisons, ties = FILES[name]
    loaded = load_groups(shared_data / f"{name}.jsonl", on_bad_row="drop")
    report = loaded.reports[0]
    assert (report.layout, report.rows, dict(report.bad)) == (layout, rows, bad)
    assert report.groups == rows - sum(bad.values()) == len(loaded.groups)
    checked = check_groups(loaded.groups)
    assert (checked.comparisons, checked.ties) == (comparisons, ties)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_responses_is_refused_in_words(name: str, shared_data: Path) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        load_groups(shared_data / f"{name}.jsonl")


def test_margins_that_nobody_uses_do_not_cost_rows(shared_data: Path) -> None:
    assert len(load_groups(shared_data / "ukpconvarg_pairs_train.jsonl", margins=False).groups) == 9000
