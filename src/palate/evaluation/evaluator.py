"""Pairwise accuracy with everything a reader needs to believe it: interval, ties, subsets, calibration, length, lists, baselines, a swap check.

Every response is scored once. An item is one decided comparison; comparisons of one prompt are one cluster. A comparison whose response could
not be scored is counted as `unscored` and takes no part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from palate.data.loading import fingerprint
from palate.errors import ConfigError, DataError, StorageError
from palate.evaluation import lists
from palate.evaluation.benchmarks import Benchmark, make_records, report
from palate.evaluation.items import Items, Scored, compare, score_groups, subset_names, with_rewards
from palate.evaluation.length import length_table
from palate.evaluation.probes import PROBES, run_probes, style_table
from palate.evaluation.ties import three_classes
from palate.stats.calibration import Bin, brier, expected_calibration_error, fit_platt, fit_temperature, log_loss, reliability
from palate.stats.composite import proportion
from palate.stats.intervals import accuracy_interval
from palate.stats.noise import confident_disagreements
from palate.types import PreferenceGroup, Scorer

CONFIDENT = 0.05
"""A label that the model, at its best temperature, gives less than this probability is a confident disagreement."""


@dataclass(frozen=True)
class Result:
    """What `results.json` holds. A field that the data say nothing of is None."""

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
    length: dict[str, Any]
    swap_check: dict[str, Any]
    rewards: dict[str, float]
    listwise: dict[str, Any] | None = None
    best_of_n: dict[str, Any] | None = None
    ties: dict[str, Any] | None = None
    style: dict[str, Any] | None = None
    noise: dict[str, Any] | None = None
    benchmark: dict[str, Any] | None = None
    probes: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None  # each output of a model with several, as if it were the reward
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    result: Result
    compared: Items

    @property
    def items(self) -> list[dict[str, Any]]:
        """One mapping a comparison, in input order."""
        return list(self.compared.lines())

    def save(self, path: str | Path) -> Path:
        """`results.json`, and `results.items.jsonl` beside it. Returns the path of the items."""
        path = Path(path)
        items = path.with_name(f"{path.stem}.items.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(asdict(self.result)), encoding="utf-8")
            with items.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in self.compared.lines())
        except OSError as error:
            raise StorageError(f"{path}: results cannot be written: {error}") from error
        return items


def to_json(value: Any) -> str:
    """JSON that every reader takes: what is not a number is null."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(part) for key, part in item.items()}
        if isinstance(item, (list, tuple, np.ndarray)):
            return [plain(part) for part in item]
        if isinstance(item, (float, np.floating)):
            return float(item) if np.isfinite(item) else None
        return item.item() if isinstance(item, np.generic) else item

    return json.dumps(plain(value), indent=1, ensure_ascii=False, default=str) + "\n"


def evaluate(
    scorer: Scorer,
    groups: Sequence[PreferenceGroup],
    *,
    bins: int = 10,
    confidence: float = 0.95,
    model: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    benchmark: Benchmark | None = None,
    partial: bool = False,
    probes: Sequence[str] = (),
    name: str | None = None,
    **score_options: Any,
) -> Evaluation:
    """Score every response of `groups` once and compare. `score_options` go to the scorer (progress, on_long).

    `benchmark`: the groups are its items, and its own figures stand in the result too (`partial`: some of its subsets may be missing).
    `probes`: names of probes to run as well, or "all"; they score changed copies of the texts. `name`: what the data are called in reports.
    """
    used = list(groups) if benchmark else [group for group in groups if group.comparisons]
    if not any(group.comparisons for group in used):
        raise DataError(f"nothing to evaluate: none of the {len(groups)} groups has a comparison; accuracy needs chosen and rejected, ratings or ranks")
    chosen_probes = probe_names(probes)
    if benchmark:  # a missing subset is found before hours of scoring too
        blank = with_rewards(used, np.zeros(sum(len(group.responses) for group in used)))
        report(benchmark, make_records(benchmark, blank), partial=partial, confidence=confidence)
    started = time.perf_counter()
    scored = score_groups(scorer, used, **score_options)
    seconds = time.perf_counter() - started
    data: dict[str, Any] = {"name": name or (benchmark.title if benchmark else None)}
    data |= {"groups": len(groups), "without_comparison": sum(not group.comparisons for group in groups)}
    evaluation = evaluate_scored(scored, bins=bins, confidence=confidence, model=model, versions=versions, data=data)
    result = evaluation.result
    result.cost.update(scoring_seconds=seconds, scored=len(scored.rewards))
    if benchmark:
        result = replace(result, benchmark=report(benchmark, make_records(benchmark, scored), partial=partial, confidence=confidence))
    if chosen_probes:
        found = run_probes(chosen_probes, scorer, scored.groups, confidence=confidence, rewards=scored.rewards, **score_options)
        table = {row.feature: row.as_section() for row in style_table(scored.groups, scored.rewards, confidence=confidence)} if "style" in found else None
        result = replace(result, probes={name: asdict(probe) for name, probe in found.items()}, style=table)
    return replace(evaluation, result=result)


def probe_names(names: Sequence[str]) -> list[str]:
    """The probes of `names`; "all" stands for every one that any comparisons will do for. A misspelt name is an error before hours of scoring."""
    if list(names) == ["all"]:
        return [name for name in PROBES if name != "twins"]  # those need rows of twins
    for name in names:
        if name not in PROBES:
            raise ConfigError(f"no probe is called {name!r}; probes: all, {', '.join(PROBES)}")
    return list(names)


def evaluate_scored(
    scored: Scored,
    *,
    bins: int = 10,
    confidence: float = 0.95,
    model: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Evaluation:
    """The same from rewards that are already there."""
    started = time.perf_counter()
    items = compare(scored)
    result = figures(items, bins=bins, confidence=confidence)
    known = {**(data or {"groups": len(scored.groups)}), "fingerprint": fingerprint(scored.groups)}
    result = replace(result, data=known, model=dict(model or {}), versions=dict(versions or {}))
    result.cost["statistics_seconds"] = time.perf_counter() - started
    return Evaluation(result, items)


def figures(items: Items, *, bins: int = 10, confidence: float = 0.95) -> Result:
    """Every figure of comparisons, without where they come from: `data`, `model`, `versions` and `cost` are empty."""
    scored, decided = items.scored, items[~items.is_tie]
    right_or_wrong = decided[decided.is_scored]
    if not len(right_or_wrong):
        raise DataError(f"nothing to evaluate: of {len(items)} comparisons {len(items) - len(decided)} are ties and {len(decided)} could not be scored")
    d = right_or_wrong.margin
    summary = summarize(right_or_wrong, confidence)
    sides = np.concatenate([scored.rewards[right_or_wrong.chosen], scored.rewards[right_or_wrong.rejected]])
    return Result(
        **summary,
        confidence=confidence,
        prompts=len(np.unique(right_or_wrong.prompts)),
        label_ties=len(items) - len(decided),
        unscored=len(decided) - len(right_or_wrong),
        log_loss=log_loss(d),
        subsets=_subsets(right_or_wrong, confidence),
        calibration=calibration(d, bins),
        baselines={"longer_wins": _length_baseline(right_or_wrong, confidence)},
        length=length_table(right_or_wrong, confidence),
        swap_check=swap_check(scored, summary),
        rewards={"mean": float(sides.mean()), "std": float(sides.std()), "min": float(sides.min()), "max": float(sides.max())},
        listwise=lists.listwise(scored, confidence),
        best_of_n=lists.best_of_n(scored, confidence),
        ties=three_classes(items[items.is_scored], confidence),
        noise=_noise(d),
    )


def summarize(items: Items, confidence: float) -> dict[str, Any]:
    """Accuracy of decided, scored comparisons with its interval."""
    d = items.margin
    strict, ties = (d > 0).astype(float), int((d == 0).sum())
    interval = accuracy_interval(strict, items.prompts, confidence)
    return {
        "accuracy": float(strict.mean()),
        "accuracy_ties_half": float(strict.mean() + ties / 2 / len(items)),
        "n": len(items),
        "interval": (interval.low, interval.high),
        "interval_method": interval.method,
        "reward_ties": ties,
        "mean_margin": float(d.mean()),
    }


def _subsets(items: Items, confidence: float) -> dict[str, dict[str, Any]]:
    found = subset_names(items)
    if found is None:
        return {}
    names = np.array(found[1])
    return {str(name): summarize(items[names == name], confidence) for name in sorted(set(found[1]))}


def calibration(d: np.ndarray, bins: int) -> dict[str, Any]:
    """Is sigmoid(d) a probability? As it stands and at the best temperature; the two-parameter fit sees every pair in both orders."""
    temperature = fit_temperature(d)
    platt = fit_platt(np.concatenate([d, -d]), np.concatenate([np.ones(len(d)), np.zeros(len(d))]))

    def table(rows: list[Bin]) -> list[dict[str, float]]:
        return [row._asdict() for row in rows]

    return {
        "ece": expected_calibration_error(d, bins=bins),
        "brier": brier(d),
        "temperature": temperature.value,
        "temperature_on_edge": temperature.bounded,
        "ece_at_temperature": expected_calibration_error(d, bins=bins, temperature=temperature.value),
        "brier_at_temperature": brier(d, temperature.value),
        "log_loss_at_temperature": temperature.log_loss,
        "platt": {"slope": platt.slope, "intercept": platt.intercept, "log_loss": platt.log_loss},
        "reliability": table(reliability(d, bins=bins)),
        "reliability_at_temperature": table(reliability(d, bins=bins, temperature=temperature.value)),
    }


def _length_baseline(items: Items, confidence: float) -> dict[str, Any]:
    """What "the longer response (in characters) is better" would score on the same comparisons; equal lengths count half."""
    difference = items.length_difference
    estimate = proportion(np.where(difference == 0, 0.5, (difference > 0).astype(float)), items.prompts, confidence=confidence)
    return {"accuracy": estimate.value, "interval": (estimate.low, estimate.high)}


def _noise(d: np.ndarray) -> dict[str, Any]:
    """Labels that the model, at its best temperature, holds for wrong with confidence: their number, beside the number that calibration allows."""
    temperature = fit_temperature(d).value
    found = confident_disagreements(expit(d / temperature), CONFIDENT)
    return {"confident_disagreements": found.observed, "expected": found.expected, "deviation": found.deviation, "threshold": CONFIDENT}


def swap_check(scored: Scored, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Read the same rewards against exchanged labels: the accuracy must be 1 - accuracy - ties, or the labels are not being read."""
    items = compare(scored, swapped=True)
    items = items[~items.is_tie & items.is_scored]
    accuracy = float((items.margin > 0).mean())
    expected = 1.0 - summary["accuracy"] - summary["reward_ties"] / summary["n"]
    return {"accuracy_swapped": accuracy, "expected": expected, "passed": bool(abs(accuracy - expected) < 1e-9)}
