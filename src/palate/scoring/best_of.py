"""Best-of-n and rejection sampling: prompts with their sampled responses and rewards -> the best ones as rows for SFT, or best and worst as pairs.

Ties go to the response that came first. What has no reward takes no part, and everything that is left out is counted by its reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from palate.data.formats import Layout, detect_layout, parse_row
from palate.errors import DataError, RowError
from palate.scoring.unranked import as_read
from palate.types import Conversation, Exchange, TokenIds, text_of

PROMPT_IDS = ("prompt_id", "group_id")
MODEL_LISTS, MODELS = ("models", "sources"), ("model", "source", "generator")
"""Where a row says who wrote its responses: a list, or one name."""


@dataclass(frozen=True)
class Samples:
    """One prompt and its K responses; `values` are columns of numbers that rows bring along, NaN where one is missing."""

    prompt: Conversation
    responses: tuple[Conversation, ...]
    models: tuple[str, ...]  # empty where it is not said
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0))  # [K]
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    id: Any = None
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def exchanges(self) -> list[Exchange]:
        return [Exchange(self.prompt, response, self.template_args) for response in self.responses]

    def first(self, n: int) -> Samples:
        """The first n responses."""
        cut = {name: numbers[:n] for name, numbers in self.values.items()}
        return replace(self, responses=self.responses[:n], models=self.models[:n], rewards=self.rewards[:n], values=cut)


class Kept(NamedTuple):
    rows: list[dict[str, Any]]
    left_out: Counter[str]  # responses and prompts, by reason


# --- rows in --------------------------------------------------------------------------------------------------------------------------------------


def read_samples(rows: Iterable[tuple[str, Mapping[str, Any]]], *, columns: Mapping[str, str] | None = None, values: Sequence[str] = ()) -> list[Samples]:
    """(location, row) pairs to samples by prompt, in order of appearance; rows of one prompt (by `prompt_id`, else by its text) belong together.

    A row holds a prompt with a list of responses, as `palate generate` writes, or any other known layout: one response, or compared ones.
    `values` names columns with a number, or a list of one a response. Raises DataError, with its place, for a row that cannot be read.
    """
    found: dict[str, Samples] = {}
    layout: Layout | None = None
    for location, row in rows:
        if row.keys() == {"line"}:
            raise DataError(f"{location}: not a JSON object")
        try:
            own_columns = {name: value for name, value in row.items() if name not in values}
            told = as_read(own_columns, columns, location)
            layout = layout or detect_layout(told)
            group = parse_row(told, layout, margins=False, compared=False)
        except RowError as error:
            raise DataError(f"{location}: {error.kind}: {error}") from error
        except DataError as error:
            raise DataError(f"{location}: {error}") from error
        k = len(group.responses)
        numbers = {name: _numbers(row, name, k, location) for name in values}
        own = Samples(group.prompt, group.responses, _models(row, k), values=numbers, id=row.get("id"), template_args=group.template_args)
        key = next((str(row[name]) for name in PROMPT_IDS if row.get(name) is not None), text_of(group.prompt))
        found[key] = _together(found[key], own) if key in found else own
    if not found:
        raise DataError("no rows; expected prompts with responses")
    return list(found.values())


def _numbers(row: Mapping[str, Any], name: str, k: int, location: str) -> tuple[float, ...]:
    if name not in row:
        raise DataError(f"{location}: has no column {name!r}; columns: {', '.join(map(str, row))}")
    given = row[name] if isinstance(row[name], (list, tuple)) else [row[name]]
    if len(given) != k:
        raise DataError(f"{location}: {name!r} has {len(given)} values for {k} responses; expected one each")
    try:
        return tuple(math.nan if value is None else float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{location}: {name!r} holds {row[name]!r:.60}, expected numbers") from error


def _models(row: Mapping[str, Any], k: int) -> tuple[str, ...]:
    many = next((row[name] for name in MODEL_LISTS if isinstance(row.get(name), (list, tuple)) and len(row[name]) == k), None)
    if many is not None:
        return tuple(map(str, many))
    one = next((str(row[name]) for name in MODELS if isinstance(row.get(name), str)), "")
    return (one,) * k


def _together(a: Samples, b: Samples) -> Samples:
    return replace(
        a,
        responses=(*a.responses, *b.responses),
        models=(*a.models, *b.models),
        values={name: (*numbers, *b.values[name]) for name, numbers in a.values.items()},
    )


# --- rows out -------------------------------------------------------------------------------------------------------------------------------------


def best_rows(samples: Iterable[Samples], *, keep: int | None = 1, threshold: float | None = None) -> Kept:
    """Rows `prompt`, `completion`, `reward`, `rank` (from 1), `samples` (responses scored) of the `keep` best responses of each prompt; None: all.

    `threshold`: the least reward that is kept. A text that a prompt was answered with before is kept once.
    """
    if keep is not None and keep < 1:
        raise DataError(f"keep={keep}: expected at least one response a prompt")
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for one in samples:
        order = _ranked(one, left_out)
        good = [i for i in order if threshold is None or one.rewards[i] >= threshold]
        left_out["reward below the threshold"] += len(order) - len(good)
        distinct = list({text_of(one.responses[i]): i for i in reversed(good)}.values())[::-1]  # the first, best one of equal texts
        left_out["repeated response"] += len(good) - len(distinct)
        kept = distinct if keep is None else distinct[:keep]
        left_out["not among the best"] += len(distinct) - len(kept)
        left_out["prompt without a response kept"] += not kept
        for rank, i in enumerate(kept, 1):
            prompt, completion = _sides(one.prompt, one.responses[i])
            rows.append({**_common(one, i), "prompt": prompt, "completion": completion, "reward": float(one.rewards[i]), "rank": rank, "samples": len(order)})
    return Kept(rows, +left_out)


def pair_rows(samples: Iterable[Samples], *, threshold: float | None = None) -> Kept:
    """Rows `prompt`, `chosen`, `rejected`, `chosen_reward`, `rejected_reward` of the best and the worst response of each prompt.

    `threshold`: the least reward of a chosen response. A prompt whose responses all have one reward makes no pair.
    """
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for one in samples:
        order = _ranked(one, left_out)
        best, worst = (order[0], order[-1]) if order else (0, 0)
        if len(order) < 2:
            left_out["prompt with fewer than two responses"] += 1
        elif one.rewards[best] == one.rewards[worst]:
            left_out["prompt whose responses have equal rewards"] += 1
        elif threshold is not None and one.rewards[best] < threshold:
            left_out["prompt whose best reward is below the threshold"] += 1
        else:
            prompt, chosen = _sides(one.prompt, one.responses[best])
            _, rejected = _sides(one.prompt, one.responses[worst])
            rewards = {"chosen_reward": float(one.rewards[best]), "rejected_reward": float(one.rewards[worst])}
            rows.append({**_common(one), "prompt": prompt, "chosen": chosen, "rejected": rejected, **rewards, "samples": len(order)})
            if one.models[best] or one.models[worst]:
                rows[-1] |= {"chosen_model": one.models[best], "rejected_model": one.models[worst]}
    return Kept(rows, +left_out)


def _ranked(one: Samples, left_out: Counter[str]) -> list[int]:
    """Responses with a reward, the best first; equal ones as they came."""
    scored = np.flatnonzero(np.isfinite(one.rewards))
    left_out["response without a reward"] += len(one.responses) - len(scored)
    return scored[np.argsort(-one.rewards[scored], kind="stable")].tolist()


def _common(one: Samples, i: int | None = None) -> dict[str, Any]:
    named = {"model": one.models[i]} if i is not None and one.models[i] else {}
    return ({} if one.id is None else {"id": one.id}) | dict(one.template_args) | named


def _sides(prompt: Conversation, response: Conversation) -> tuple[Any, Any]:
    """Both as texts or both as messages, which trainers ask for."""
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt, response
    return _messages(prompt, "user"), _messages(response, "assistant")


def _messages(part: Conversation, role: str) -> list[dict[str, Any]]:
    if isinstance(part, TokenIds):
        raise DataError("a response is token ids; rows for training hold texts or messages")
    return [{"role": role, "content": part}] if isinstance(part, str) else [dict(message) for message in part]
