"""Findings about preference data before it trains anything: duplicates, contradictions, ties, overlap, length bias.

Nothing is removed here. Each finding has a count and its first locations, so that the owner of the data can look.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from palate.data.loading import prompt_key
from palate.types import PreferenceGroup, text_of

LOCATIONS_SHOWN = 5


@dataclass
class Finding:
    kind: str
    count: int
    meaning: str
    locations: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Counts, lengths (characters) and findings of one data set."""

    groups: int
    prompts: int
    responses: int
    comparisons: int
    ties: int
    undecided: int  # groups without any comparison (single responses, no majority)
    responses_per_prompt: dict[int, int]
    conversational: int
    margins: int
    lengths: dict[str, dict[str, float]]
    longer_wins: float | None  # share of decided comparisons of unequal length won by the longer response
    findings: list[Finding]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_groups(groups: Sequence[PreferenceGroup], *, against: Sequence[PreferenceGroup] | None = None) -> DataReport:
    """Look over a data set; `against` is a second one (say, a test set) whose overlap is reported."""
    duplicates, contradictions, identical, empty = (_Collector() for _ in range(4))
    seen_pairs: dict[tuple[str, str, str], str] = {}
    decided = ties = longer = unequal = undecided = margins = 0
    for group in groups:
        place = str(group.metadata.get("location", ""))
        prompt, texts = prompt_key(group.prompt), [text_of(r) for r in group.responses]
        undecided += not group.comparisons
        if any(not text.strip() for text in texts):
            empty.add(place)
        for c in group.comparisons:
            chosen, rejected = texts[c.chosen], texts[c.rejected]
            if chosen == rejected:
                identical.add(place)
                continue
            if c.is_tie:
                ties += 1
                continue
            decided += 1
            margins += c.margin > 0
            unequal += len(chosen) != len(rejected)
            longer += len(chosen) > len(rejected)
            if (prompt, chosen, rejected) in seen_pairs:
                duplicates.add(f"{place} = {seen_pairs[prompt, chosen, rejected]}")
            if (prompt, rejected, chosen) in seen_pairs:
                contradictions.add(f"{place} x {seen_pairs[prompt, rejected, chosen]}")
            seen_pairs.setdefault((prompt, chosen, rejected), place)
    findings = [
        duplicates.finding("duplicates", "the same prompt, chosen and rejected occur more than once: they count double"),
        contradictions.finding("contradictions", "A beat B in one row and B beat A in another: one of them is wrong, or people disagree"),
        identical.finding("identical sides", "two compared responses are the same text: nothing can be learned"),
        empty.finding("empty sides", "a response is empty"),
    ]
    if against is not None:
        findings.extend(_overlap(groups, against))
    return DataReport(
        groups=len(groups),
        prompts=len({prompt_key(group.prompt) for group in groups}),
        responses=sum(len(group.responses) for group in groups),
        comparisons=decided,
        ties=ties,
        undecided=undecided,
        responses_per_prompt=dict(sorted(Counter(len(group.responses) for group in groups).items())),
        conversational=sum(isinstance(group.prompt, tuple) for group in groups),
        margins=margins,
        lengths=_lengths(groups),
        longer_wins=longer / unequal if unequal else None,
        findings=[finding for finding in findings if finding.count],
    )


class _Collector:
    def __init__(self) -> None:
        self.count = 0
        self.locations: list[str] = []

    def add(self, location: str) -> None:
        self.count += 1
        if len(self.locations) < LOCATIONS_SHOWN:
            self.locations.append(location)

    def finding(self, kind: str, meaning: str) -> Finding:
        return Finding(kind, self.count, meaning, self.locations)


def _overlap(groups: Sequence[PreferenceGroup], against: Sequence[PreferenceGroup]) -> list[Finding]:
    prompts, responses = _Collector(), _Collector()
    other_prompts = {prompt_key(group.prompt) for group in against if text_of(group.prompt).strip()}
    other_responses = {(prompt_key(group.prompt), text_of(r)) for group in against for r in group.responses}
    for group in groups:
        place, prompt = str(group.metadata.get("location", "")), prompt_key(group.prompt)
        if prompt in other_prompts:
            prompts.add(place)
        if any((prompt, text_of(r)) in other_responses for r in group.responses):
            responses.add(place)
    return [
        prompts.finding("prompts in both sets", "the prompt also stands in the other set"),
        responses.finding("responses in both sets", "prompt and response also stand in the other set: a test on them measures memory"),
    ]


def _lengths(groups: Sequence[PreferenceGroup]) -> dict[str, dict[str, float]]:
    kinds: dict[str, list[int]] = defaultdict(list)
    for group in groups:
        kinds["prompt"].append(len(text_of(group.prompt)))
        kinds["response"].extend(len(text_of(r)) for r in group.responses)
        for c in group.comparisons:
            if not c.is_tie:
                kinds["chosen"].append(len(text_of(group.responses[c.chosen])))
                kinds["rejected"].append(len(text_of(group.responses[c.rejected])))
    return {
        kind: {"mean": round(float(np.mean(v)), 1), **{f"p{q}": float(np.percentile(v, q)) for q in (5, 50, 95)}, "max": float(max(v))}
        for kind, v in kinds.items()
    }
