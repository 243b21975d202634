"""Prompts to responses of several sources: who writes what, the calls, what is left out and why, and how diverse the rest is.

What a prompt gets depends on its text and the seed, not on its place; the same settings ask the same, so a run that was cut off goes on from the cache.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from palate.data.formats import PROMPTS
from palate.errors import DataError, ModelError, tally
from palate.judging.caller import Caller
from palate.judging.calls import Answer, ChatReply, ChatRequest, Sampling
from palate.judging.candidates import read_conversation
from palate.judging.diversity import Written, constant_sources, diversity
from palate.judging.filters import Seen, problem_of
from palate.judging.schedule import prompt_seed
from palate.judging.sources import GenerationSettings, SourceSettings
from palate.types import Conversation, Message, TokenIds, content_text, text_of


class Prompt(NamedTuple):
    text: Conversation
    id: str
    reference: Conversation | None = None


class Prompts(NamedTuple):
    prompts: list[Prompt]
    left_out: dict[str, int]


class Draw(NamedTuple):
    """One response to be written."""

    prompt: int
    source: SourceSettings
    system_prompt: str
    request: ChatRequest

    @property
    def temperature(self) -> float:
        return self.request.sampling.temperature or 0.0


class Generated(NamedTuple):
    rows: list[dict[str, Any]]  # as `read_candidates` takes them
    report: dict[str, Any]


def read_prompts(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Prompts:
    """(location, row) pairs to prompts, each once; a `reference` goes along. Raises DataError with the place of a row without a prompt."""
    found: dict[str, Prompt] = {}
    left_out: Counter[str] = Counter()
    for location, row in rows:
        prompt = read_conversation(row, PROMPTS, location)
        key = text_of(prompt)
        if not key.strip():
            left_out["empty prompt"] += 1
        elif key in found:
            left_out["repeated prompt"] += 1
        else:
            own = row.get("id", row.get("prompt_id"))
            reference = read_conversation(row, ("reference",), location) if row.get("reference") is not None else None
            found[key] = Prompt(prompt, hashlib.sha256(key.encode()).hexdigest()[:16] if own is None else str(own), reference)
    if not found:
        raise DataError(f"there are no prompts; left out: {tally(left_out)}")
    return Prompts(list(found.values()), dict(left_out))


# --- who writes what ---------------------------------------------------------------------------------------------------------------------------


def plan(prompts: Sequence[Prompt], settings: GenerationSettings) -> list[Draw]:
    """The responses to be written, prompt by prompt."""
    return [draw for g, prompt in enumerate(prompts) for draw in _draws(g, prompt, settings)]


def _draws(g: int, prompt: Prompt, settings: GenerationSettings) -> list[Draw]:
    random = np.random.default_rng(prompt_seed(settings.seed, prompt.text))
    sources = choose_sources(settings, random)
    starts = {source.label: random.integers(1 << 16, size=2).tolist() for source in settings.sources}
    taken: Counter[str] = Counter()
    samples: Counter[bytes] = Counter()
    draws = []
    for source in sources:
        k, (first, second) = taken[source.label], starts[source.label]
        taken[source.label] += 1
        temperature = source.temperature[(first + k) % len(source.temperature)]
        system = source.system_prompts[(second + k) % len(source.system_prompts)] if source.system_prompts else ""
        sampling = Sampling(temperature=temperature, top_p=source.top_p, max_tokens=source.max_tokens, seed=source.sampling_seed)
        request = ChatRequest(source.model, messages_of(prompt.text, system, prompt.id), sampling)
        # two sources may ask the same of one model: each draw has a number of its own
        same = request.key(source.base_url or "")
        draws.append(Draw(g, source, system, ChatRequest(source.model, request.messages, sampling, samples[same])))
        samples[same] += 1
    return draws


def choose_sources(settings: GenerationSettings, random: np.random.Generator) -> list[SourceSettings]:
    """The source of each of a prompt's responses. Nobody writes a second one before everyone (of the kind that is due) has written a first."""
    written: Counter[str] = Counter()
    chosen: list[SourceSettings] = []
    while len(chosen) < settings.per_prompt:
        free = [source for source in settings.sources if source.most is None or written[source.label] < source.most]
        if not free:
            break
        due = _due(free, chosen, settings)
        fewest = min(written[source.label] for source in due)
        fresh = [source for source in due if written[source.label] == fewest]
        weights = np.array([source.weight for source in fresh])
        pick = fresh[int(random.choice(len(fresh), p=weights / weights.sum()))]
        written[pick.label] += 1
        chosen.append(pick)
    return [chosen[k] for k in random.permutation(len(chosen))]


def _due(free: Sequence[SourceSettings], chosen: Sequence[SourceSettings], settings: GenerationSettings) -> Sequence[SourceSettings]:
    """Those of whom the next one is taken."""
    if settings.sampler == "by_strength":
        so_far = Counter(source.strength for source in chosen)
        least = min(so_far[source.strength] for source in free)
        return [source for source in free if so_far[source.strength] == least]
    if settings.sampler == "one_on_policy":
        wanted = not any(source.on_policy for source in chosen)
        return [source for source in free if source.on_policy == wanted] or free
    return free


def messages_of(prompt: Conversation, system: str, where: str) -> tuple[Message, ...]:
    """A prompt as a request has it; a source's system prompt stands before the prompt's own."""
    if isinstance(prompt, TokenIds):
        raise DataError(f"prompt {where}: token ids cannot be sent to a chat endpoint; give text or messages")
    messages: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    if not system:
        return messages
    if messages[0].get("role") in ("system", "developer"):
        return ({**messages[0], "content": f"{system}\n\n{content_text(messages[0])}"}, *messages[1:])
    return ({"role": "system", "content": system}, *messages)


# --- calls and rows ----------------------------------------------------------------------------------------------------------------------------


def generate(prompts: Sequence[Prompt], settings: GenerationSettings, callers: Mapping[str | None, Caller], *, allow_constant: bool = False) -> Generated:
    """Rows of responses and a report. `callers`: by `base_url`; endpoints are asked one after the other.

    Raises ModelError where a source says the same whatever is drawn above temperature 0 (unless `allow_constant`), and where nothing is left.
    """
    draws = plan(prompts, settings)
    answers = ask(draws, callers)
    written = [
        Written(draw.prompt, draw.source.label, draw.system_prompt, draw.temperature, answer.text)
        for draw, answer in zip(draws, answers, strict=True)
        if isinstance(answer, ChatReply)
    ]
    constant = constant_sources(written)
    if constant and not allow_constant:
        raise ModelError(alarm({name: f"{prompts} prompts" for name, prompts in constant.items()}))
    rows, left_out = _rows(prompts, draws, answers, settings)
    if not rows:
        why = tally({reason: sum(counts.values()) for reason, counts in left_out.items()})
        raise ModelError(f"none of {len(draws)} answers can be used: {why}; look at the endpoint, or at the filters")
    return Generated(rows, _report(rows, draws, left_out, constant, written, settings))


def alarm(constant: Mapping[str, str]) -> str:
    """What to do about sources that say the same whatever is drawn; `constant`: how that was seen, by source."""
    found = ", ".join(f"{name} ({seen})" for name, seen in constant.items())
    return (
        f"the same answer whatever was drawn, at a temperature above 0: {found}. The server decodes greedily (`transformers serve` does, unless the model's "
        "generation_config samples); mend it, give the source temperature: 0, or pass --allow-constant"
    )


def ask(draws: Sequence[Draw], callers: Mapping[str | None, Caller]) -> list[Answer]:
    """The answer to each draw, in order."""
    answers: dict[int, Answer] = {}
    for base_url, caller in callers.items():
        places = [i for i, draw in enumerate(draws) if draw.source.base_url == base_url]
        answers |= zip(places, caller.run([draws[i].request for i in places]), strict=True)
    missing = {draw.source.base_url for i, draw in enumerate(draws) if i not in answers}
    if missing:
        raise ValueError(f"no caller for {sorted(map(str, missing))}; there are some for {sorted(map(str, callers))}")
    return [answers[i] for i in range(len(draws))]


def _rows(
    prompts: Sequence[Prompt], draws: Sequence[Draw], answers: Sequence[Answer], settings: GenerationSettings
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """(a row for each prompt with a response, what was left out: reason -> source -> count)."""
    seen = [Seen(settings.filters.near_duplicates) for _ in prompts]
    kept: list[list[tuple[Draw, ChatReply]]] = [[] for _ in prompts]
    left_out: dict[str, Counter[str]] = {}
    for draw, answer in zip(draws, answers, strict=True):
        reason = _reason(answer, seen[draw.prompt], settings)
        if not reason and isinstance(answer, ChatReply):
            kept[draw.prompt].append((draw, answer))
        else:
            left_out.setdefault(reason, Counter())[draw.source.label] += 1
    rows = [_row(prompt, own) for prompt, own in zip(prompts, kept, strict=True) if own]
    return rows, {reason: dict(counts) for reason, counts in left_out.items()}


def _reason(answer: Answer, seen: Seen, settings: GenerationSettings) -> str:
    """Why an answer is left out; empty where it is not."""
    if not isinstance(answer, ChatReply):
        return f"failed call: {answer.kind}"
    filters = settings.filters
    return problem_of(answer.text, answer.finish_reason, refusals=filters.refusals, truncated=filters.truncated) or seen.repeats(answer.text)


def _row(prompt: Prompt, own: Sequence[tuple[Draw, ChatReply]]) -> dict[str, Any]:
    row = {
        "id": prompt.id,
        "prompt": prompt.text,
        "responses": [reply.text for _, reply in own],
        "models": [draw.source.label for draw, _ in own],
        "on_policy": [draw.source.on_policy for draw, _ in own],
        "params": [_params(draw) for draw, _ in own],
        "finish_reasons": [reply.finish_reason for _, reply in own],
    }
    return row if prompt.reference is None else row | {"reference": prompt.reference}


def _params(draw: Draw) -> dict[str, Any]:
    sampling = draw.request.sampling
    return {
        "model": draw.source.model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "system_prompt": draw.system_prompt,
        "sample": draw.request.sample,
        "seed": draw.request.seed,
    }


def _report(
    rows: Sequence[Mapping[str, Any]],
    draws: Sequence[Draw],
    left_out: Mapping[str, Mapping[str, int]],
    constant: Mapping[str, int],
    written: Sequence[Written],
    settings: GenerationSettings,
) -> dict[str, Any]:
    """asked = responses + everything in left_out."""
    counts = Counter(len(row["responses"]) for row in rows)
    return {
        "prompts": len({draw.prompt for draw in draws}),
        "rows": len(rows),
        "asked": len(draws),
        "responses": sum(len(row["responses"]) for row in rows),
        "left_out": {reason: dict(own) for reason, own in left_out.items()},
        "responses_per_row": {str(k): counts[k] for k in sorted(counts)},
        "by_source": dict(Counter(model for row in rows for model in row["models"])),
        "constant": dict(constant),
        "diversity": diversity(written),
        "settings": settings.model_dump(mode="json"),
    }
