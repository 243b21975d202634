"""Where rewards come from: a scorer, items saved by `palate eval`, or rows scored by `palate score`; each as one number a response of the groups."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palate.data.formats import detect_layout, parse_row
from palate.data.loading import prompt_key, read_rows
from palate.errors import DataError, RowError
from palate.evaluation.comparison import items_path
from palate.evaluation.items import Items, compare, score_groups, with_rewards
from palate.scoring.cache import CachedScorer
from palate.scoring.rows import WRITTEN
from palate.scoring.sources import Opened
from palate.types import Exchange, PreferenceGroup, text_of


class Rewards(NamedTuple):
    """One number a response, in the order of `group.exchanges()`, NaN where there is none; `source` says who gave them."""

    values: np.ndarray  # float64 [N]
    source: str


class Model:
    """A scorer that answers one request at a time: torch and its caches are shared by all threads of the server."""

    def __init__(self, opened: Opened):
        self.opened = opened
        self.name = str(opened.description["name"])
        self.lock = threading.Lock()

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Rewards of what somebody typed, float [N]; kept in no cache. NaN for what is too long or empty."""
        scorer: Any = self.opened.scorer.scorer if isinstance(self.opened.scorer, CachedScorer) else self.opened.scorer
        with self.lock:
            found: np.ndarray = np.asarray(scorer.score(exchanges, on_long="nan"), dtype=float)
        return found[:, 0] if found.ndim == 2 else found


def from_model(model: Model, groups: Sequence[PreferenceGroup], *, progress: bool = True) -> Rewards:
    """Every response scored once, through the cache where the model is behind one."""
    scored = score_groups(model.opened.scorer, groups, progress=progress, on_long="nan")
    # of a checkpoint the last part of its path says enough
    return Rewards(scored.rewards, Path(model.name).name if model.opened.local else model.name)


def from_items(path: str | Path, groups: Sequence[PreferenceGroup]) -> Rewards:
    """Rewards saved by `palate eval --output results.json`, found by the texts of prompt and pair. Raises DataError where none of them fits the groups."""
    file = items_path(Path(path))
    saved: dict[tuple[str, str], tuple[float, float]] = {}
    for number, row in _json_lines(file):
        try:
            both = (row["reward_chosen"], row["reward_rejected"])
            saved[row["prompt_key"], row["pair_key"]] = tuple(np.nan if reward is None else float(reward) for reward in both)  # type: ignore[assignment]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} line {number}: {error}; expected items written by `palate eval --output results.json`") from error
    blank = compare(with_rewards(groups, np.full(sum(len(group.responses) for group in groups), np.nan)))
    values = blank.scored.rewards
    for chosen, rejected, line in zip(blank.chosen.tolist(), blank.rejected.tolist(), blank.lines(), strict=True):
        values[[chosen, rejected]] = saved.get((line["prompt_key"], line["pair_key"]), values[[chosen, rejected]])
    return Rewards(_some(values, file, "evaluate the same data again"), _model_name(file))


def from_scores(path: str | Path, groups: Sequence[PreferenceGroup]) -> Rewards:
    """Rewards of rows that `palate score` wrote, found by prompt and response; the rows may stand in any order and layout."""
    saved: dict[tuple[str, str], float] = {}
    layout = None
    for location, row in read_rows(path):
        if "reward" not in row:
            raise DataError(f"{location}: no `reward` among {', '.join(row)}; expected rows written by `palate score`")
        plain = {key: value for key, value in row.items() if key not in WRITTEN}
        try:
            layout = layout or detect_layout(plain)
            group = parse_row(plain, layout, margins=False, compared=False)
        except RowError:
            continue  # `palate score` gives such a row a reason in place of a reward
        given = row["reward"] if isinstance(row["reward"], list) else [row["reward"]] * len(group.responses)
        if len(given) != len(group.responses) or (len(group.responses) > 1 and not isinstance(row["reward"], list) and row["reward"] is not None):
            raise DataError(f"{location}: `reward` is {row['reward']!r:.60} for {len(group.responses)} responses; expected one number a response")
        for response, reward in zip(group.responses, given, strict=True):
            saved[prompt_key(group.prompt), text_of(response)] = np.nan if reward is None else float(reward)
    values = [saved.get((key, text_of(r)), np.nan) for group in groups for key in [prompt_key(group.prompt)] for r in group.responses]
    return Rewards(_some(np.array(values, dtype=float), Path(path), "score the same data again"), Path(path).name)


def is_saved(source: str) -> bool:
    """Whether this names saved items rather than a model; a checkpoint's folder is a model, though results may lie in it."""
    path = Path(source)
    is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    return path.suffix in (".json", ".jsonl") or ((path / "results.json").is_file() and not is_model)


def _some(values: np.ndarray, path: Path, advice: str) -> np.ndarray:
    if not np.isfinite(values).any():
        raise DataError(f"{path}: holds no reward of any of the {len(values)} responses in the data; {advice}")
    return values


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path} line {number}: broken JSON: {error.msg}; the file is cut off? Evaluate again") from error


def _model_name(items: Path) -> str:
    """The model's name by the result beside its items, else the file's."""
    result = items.with_name(items.name.removesuffix(".items.jsonl") + ".json")
    if result.is_file():
        try:
            name = json.loads(result.read_text(encoding="utf-8")).get("model", {}).get("name")
        except (json.JSONDecodeError, AttributeError) as error:
            raise DataError(f"{result}: is not a result ({error}); evaluate again") from error
        if name:
            return Path(str(name)).name
    return items.name.removesuffix(".items.jsonl")


def unscored(groups: Sequence[PreferenceGroup]) -> Rewards:
    """No rewards at all: the data can still be read and labelled."""
    return Rewards(np.full(sum(len(group.responses) for group in groups), np.nan), "")


def compared(groups: Sequence[PreferenceGroup], rewards: Rewards) -> Items:
    return compare(with_rewards(groups, rewards.values))
