"""Findings planted by hand are found, counted and located."""

from __future__ import annotations

from palate.data.loading import load_groups
from palate.data.validation import check_groups


def kinds(report) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def test_planted_findings() -> None:
    rows = [
        {"prompt": "p", "chosen": "long answer", "rejected": "short"},
        {"prompt": "p", "chosen": "long answer", "rejected": "short"},  # duplicate of row 1
        {"prompt": "P ", "chosen": "short", "rejected": "long answer"},  # contradicts row 1 (same prompt but for blanks and case)
        {"prompt": "q", "chosen": "x", "rejected": "yy"},
    ]
    report = check_groups(load_groups(rows).groups)
    assert kinds(report) == {"duplicates": 1, "contradictions": 1}
    assert report.findings[0].locations == ["list row 2 = list row 1"]
    assert report.longer_wins == 0.5 and report.comparisons == 4 and report.prompts == 2


def test_ties_and_undecided_are_counted_apart() -> None:
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "label": label} for label in (1, 0, None)]
    report = check_groups(load_groups(rows).groups)
    assert (report.comparisons, report.ties, report.undecided) == (1, 1, 1)


def test_overlap_with_a_second_set() -> None:
    a = load_groups([{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]).groups
    b = load_groups([{"prompt": "p", "chosen": "z", "rejected": "y"}, {"prompt": "q", "chosen": "d", "rejected": "e"}]).groups
    assert kinds(check_groups(a, against=b)) == {"prompts in both sets": 2, "responses in both sets": 1}
