"""Pairwise accuracy with everything a reader needs to believe it: interval, ties, subsets, calibration, baselines, a swap check.

Every response is scored once. An item is one decided comparison; comparisons of one prompt are one cluster. A comparison whose response could
not be scored is counted as `unscored` and takes no part.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.loading import fingerprint, prompt_key
from palate.errors import DataError, StorageError
from palate.stats.calibration import Bin, expected_calibration_error, fit_temperature, log_loss, reliability
from palate.stats.intervals import accuracy_interval
from palate.types import PreferenceGroup, Scorer, text_of

SUBSET_KEYS = ("subset", "domain", "category", "source")
"""Metadata that names a subset; the first one that takes several values is used (`source` is always there: the file)."""

TEXT_SHOWN = 600  # characters of a text kept in an item, enough to recognise and judge it


@dataclass(frozen=True)
class Result:
    """What `results.json` holds."""

    accuracy: float  # a tie of rewards is wrong
    accuracy_ties_half: float
    n: int  # decided comparisons that were scored
    interval: tuple[float, float]
    interval_method: str
    confidence: float
    prompts: int
    reward_ties: int
    label_ties: int  # comparisons labelled as ties: no side to be right about, left out
    unscored: int
    mean_margin: float
    log_loss: float
    subsets: dict[str, dict[str, Any]]
    calibration: dict[str, Any]
    baselines: dict[str, Any]
    swap_check: dict[str, Any]
    rewards: dict[str, float]
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    result: Result
    items: list[dict[str, Any]]  # one a comparison, in input order

    def save(self, path: str | Path) -> Path:
        """`results.json`, and `results.items.jsonl` beside it. Returns the path of the items."""
        path = Path(path)
        items = path.with_name(f"{path.stem}.items.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self.result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            items.write_text("".join(json.dumps(item, ensure_ascii=False, default=str) + "\n" for item in self.items), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: results cannot be written: {error}") from error
        return items


def evaluate(
    scorer: Scorer,
    groups: Sequence[PreferenceGroup],
    *,
    bins: int = 10,
    confidence: float = 0.95,
    model: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    **score_options: Any,
) -> Evaluation:
    """Score every response of `groups` once and compare. `score_options` go to the scorer (progress, on_long)."""
    compared = [group for group in groups if group.comparisons]
    if not compared:
        raise DataError(f"nothing to evaluate: none of the {len(groups)} groups has a comparison; accuracy needs chosen and rejected, ratings or ranks")
    exchanges = [exchange for group in compared for exchange in group.exchanges()]
    rewards = np.asarray(scorer.score(exchanges, **score_options), dtype=float)
    items = list(_items(compared, rewards))
    decided = [item for item in items if item["label"] != "tie"]
    scored = [item for item in decided if item["outcome"] != "unscored"]
    if not scored:
        raise DataError(f"nothing to evaluate: of {len(items)} comparisons {len(items) - len(decided)} are ties and {len(decided)} could not be scored")
    d = np.array([item["margin"] for item in scored])
    summary = _summary(scored, confidence)
    sides = np.array([item[f"reward_{side}"] for side in ("chosen", "rejected") for item in scored])
    result = Result(
        **summary,
        confidence=confidence,
        prompts=len({item["prompt_key"] for item in scored}),
        label_ties=len(items) - len(decided),
        unscored=len(decided) - len(scored),
        log_loss=log_loss(d),
        subsets=_subsets(scored, confidence),
        calibration=_calibration(d, bins),
        baselines={"longer_wins": _length_baseline(scored, confidence)},
        swap_check=swap_check(compared, rewards, summary),
        rewards={"mean": float(sides.mean()), "std": float(sides.std()), "min": float(sides.min()), "max": float(sides.max())},
        data={"groups": len(groups), "without_comparison": len(groups) - len(compared), "fingerprint": fingerprint(groups)},
        model=dict(model or {}),
        versions=dict(versions or {}),
    )
    return Evaluation(result, items)


def _items(groups: Sequence[PreferenceGroup], rewards: np.ndarray) -> Any:
    start = 0
    for group in groups:
        texts = [text_of(r) for r in group.responses]
        key = prompt_key(group.prompt if text_of(group.prompt).strip() else group.responses[0])
        subset = {name: str(group.metadata[name]) for name in SUBSET_KEYS if group.metadata.get(name) is not None}
        for c in group.comparisons:
            r_chosen, r_rejected = rewards[start + c.chosen], rewards[start + c.rejected]
            scored = bool(np.isfinite(r_chosen) and np.isfinite(r_rejected))
            yield {
                "id": group.metadata.get("id"),
                "location": group.metadata.get("location"),
                "prompt_key": key,
                **subset,
                "label": "tie" if c.is_tie else "chosen",
                "probability": c.probability,
                "reward_chosen": float(r_chosen) if scored else None,
                "reward_rejected": float(r_rejected) if scored else None,
                "margin": float(r_chosen - r_rejected) if scored else None,
                "outcome": "unscored" if not scored else "tie" if r_chosen == r_rejected else "right" if r_chosen > r_rejected else "wrong",
                "length_chosen": len(texts[c.chosen]),
                "length_rejected": len(texts[c.rejected]),
                "prompt": text_of(group.prompt)[:TEXT_SHOWN],
                "chosen": texts[c.chosen][:TEXT_SHOWN],
                "rejected": texts[c.rejected][:TEXT_SHOWN],
            }
        start += len(group.responses)


def _summary(items: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    strict = np.array([item["outcome"] == "right" for item in items], dtype=float)
    ties = sum(item["outcome"] == "tie" for item in items)
    interval = accuracy_interval(strict, [item["prompt_key"] for item in items], confidence)  # type: ignore[arg-type]
    return {
        "accuracy": float(strict.mean()),
        "accuracy_ties_half": float(strict.mean() + ties / 2 / len(items)),
        "n": len(items),
        "interval": (interval.low, interval.high),
        "interval_method": interval.method,
        "reward_ties": ties,
        "mean_margin": float(np.mean([item["margin"] for item in items])),
    }


def _subsets(items: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, dict[str, Any]]:
    for key in SUBSET_KEYS:
        names = {item.get(key) for item in items}
        if len(names) > 1 and None not in names:
            members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            for item in items:
                members[item[key]].append(item)
            return {name: _summary(members[name], confidence) for name in sorted(members)}
    return {}


def _calibration(d: np.ndarray, bins: int) -> dict[str, Any]:
    temperature = fit_temperature(d)

    def table(rows: list[Bin]) -> list[dict[str, float]]:
        return [row._asdict() for row in rows]

    return {
        "ece": expected_calibration_error(d, bins=bins),
        "temperature": temperature.value,
        "temperature_on_edge": temperature.bounded,
        "ece_at_temperature": expected_calibration_error(d, bins=bins, temperature=temperature.value),
        "log_loss_at_temperature": temperature.log_loss,
        "reliability": table(reliability(d, bins=bins)),
        "reliability_at_temperature": table(reliability(d, bins=bins, temperature=temperature.value)),
    }


def _length_baseline(items: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """What "the longer response (in characters) is better" would score on the same comparisons; equal lengths count half."""
    values = [0.5 if item["length_chosen"] == item["length_rejected"] else float(item["length_chosen"] > item["length_rejected"]) for item in items]
    interval = accuracy_interval(values, [item["prompt_key"] for item in items], confidence)
    return {"accuracy": float(np.mean(values)), "interval": (interval.low, interval.high)}


def swap_check(groups: Sequence[PreferenceGroup], rewards: np.ndarray, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Read the same rewards against exchanged labels: the accuracy must be 1 - accuracy - ties, or the labels are not being read."""
    swapped = [replace(g, comparisons=tuple(c._replace(chosen=c.rejected, rejected=c.chosen) for c in g.comparisons), ratings=(), ranks=()) for g in groups]
    items = [item for item in _items(swapped, rewards) if item["label"] != "tie" and item["outcome"] != "unscored"]
    accuracy = float(np.mean([item["outcome"] == "right" for item in items]))
    expected = 1.0 - summary["accuracy"] - summary["reward_ties"] / summary["n"]
    return {"accuracy_swapped": accuracy, "expected": expected, "passed": bool(abs(accuracy - expected) < 1e-9)}
