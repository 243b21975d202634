"""The shipped set is what it says: size, domains, failures, ratings, splits, and quality that does not follow length."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import spearmanr

from palate.data.loading import load_groups, prompt_key
from palate.data.validation import check_groups
from palate.errors import ModelError
from palate.sample import base_model_path, gold_path, load_sample, sample_path
from palate.types import text_of

ROWS = [json.loads(line) for split in ("train", "test") for line in (sample_path() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
ATTRIBUTES = {"helpfulness", "correctness", "clarity", "safety"}


def test_size_and_domains() -> None:
    assert len(ROWS) == 320 and len({row["id"] for row in ROWS}) == 320
    assert len(Counter(row["domain"] for row in ROWS)) == 16 and set(Counter(row["domain"] for row in ROWS).values()) == {20}
    assert len(load_sample("train")) == 240 and len(load_sample("test")) == 80
    for row in ROWS:
        assert len(row["responses"]) == len(row["scores"]) == len(row["ratings"]) == len(row["failures"]) == 4
        assert len(set(row["responses"])) == 4 and max(row["scores"]) - min(row["scores"]) >= 2
        assert all(set(rating) == ATTRIBUTES and all(value in (1, 2, 3, 4, 5) for value in rating.values()) for rating in row["ratings"])


def test_conversations_of_every_kind() -> None:
    roles = [[message["role"] for message in row["prompt"]] for row in ROWS]
    assert sum(r[0] == "system" for r in roles) >= 30 and sum(r.count("user") > 1 for r in roles) >= 30
    assert all(r[-1] == "user" for r in roles)


def test_every_realistic_failure_occurs() -> None:
    kinds = Counter(f for row in ROWS for f in row["failures"])
    for kind in (
        "wrong_fact",
        "ignored_instruction",
        "ignored_format",
        "off_topic",
        "needless_refusal",
        "unsafe_compliance",
        "rude",
        "evasive",
        "padded",
        "truncated",
    ):
        assert kinds[kind] >= 20, kind


def test_honest_ties() -> None:
    assert 20 <= sum(len(set(row["scores"])) < 4 for row in ROWS) <= 60


@pytest.mark.parametrize("split", ["train", "test"])
def test_quality_does_not_follow_length(split: str) -> None:
    """Mean rank correlation of score and characters within a prompt: below 0.1 either way, on each side of the split too."""
    correlations = [spearmanr([len(text_of(r)) for r in g.responses], [rating["score"] for rating in g.ratings]).statistic for g in load_sample(split)]
    assert abs(float(np.nanmean(correlations))) < 0.1
    longer = check_groups(load_sample(split)).longer_wins
    assert longer is not None and abs(longer - 0.5) < 0.02


def test_the_split_shares_no_prompt_and_nothing_contradicts() -> None:
    train, test = load_sample("train"), load_sample("test")
    assert len(load_groups(sample_path(), split="test").groups) == 80, "the folder reads as a data set with splits"
    assert not {prompt_key(g.prompt) for g in train} & {prompt_key(g.prompt) for g in test}
    assert check_groups(train, against=test).findings == []


def test_the_base_model_is_the_published_one() -> None:
    folder = base_model_path()
    assert (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def test_an_altered_base_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import palate.sample

    monkeypatch.setattr(palate.sample, "BASE_MODEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="sha256 is 53aa51172d"):
        base_model_path()
    monkeypatch.setattr(palate.sample, "BASE_MODEL_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=r"pip install 'palate\[quickstart\]'"):
        base_model_path()


def test_the_gold_set() -> None:
    """66 pairs, none with equal sides or a prompt twice; length decides no more than a coin would, so that a judge that goes by it is seen."""
    groups = load_groups(gold_path()).groups
    rows = [json.loads(line) for line in gold_path().read_text(encoding="utf-8").splitlines()]
    assert len(groups) == len(rows) == 66 and len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 66
    assert min(Counter(row["category"] for row in rows).values()) >= 6 and len({row["category"] for row in rows}) == 8
    assert all(row["chosen"].strip() != row["rejected"].strip() and row["why"] for row in rows)
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in rows if row["category"] != "long and wrong"]
    assert 0.4 < sum(longer) / len(longer) < 0.6
    assert [group.metadata["category"] for group in groups] == [row["category"] for row in rows]
    own = {text_of(group.prompt) for split in ("train", "test") for group in load_sample(split)}
    assert not own & {row["prompt"] for row in rows}
