"""What an endpoint can really do, found by asking: servers accept settings that they ignore, and a judge built on those would lie.

`transformers serve`, for one, takes logprobs, n, response_format, temperature and seed without a word and answers greedily. A feature that needs what is
not there refuses, with the reason; the findings stand in the provenance of everything that the endpoint judged.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from palate.errors import ConfigError, ModelError
from palate.judging.caller import Caller
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, Sampling

A_DAY = 86_400  # seconds for which the answers of a probe count
DRAWS = 4  # answers drawn at temperature 1; four equal ones of a dozen free words happen to no model that samples
FREE = "Write one sentence of about twelve words on any subject that comes to your mind. Be as surprising as you can."
LABEL = "Which letter comes first in the alphabet, K or J? Answer with the letter alone."
SHAPED = "Say anything that you like about the sea."
SHAPE = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["blue", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
SAYS_NO = ("bad request", "server", "refused")
"""Failures that an endpoint meets a feature with that it does not have: `transformers serve` answers 422 to unknown fields, and 500 to a logit_bias."""

NEEDED_FOR = {
    "logprobs": "label log-odds",
    "sampling": "votes, and several answers of one source to a prompt",
    "structured": "verdicts as JSON by schema",
    "n": "several answers in one request",
    "seed": "answers that can be drawn again",
}


@dataclass(frozen=True)
class Capabilities:
    """True: seen to work; False: seen not to; `notes` say what was seen."""

    logprobs: bool
    n: bool
    structured: bool
    sampling: bool
    seed: bool
    notes: tuple[str, ...] = ()

    def require(self, feature: str, who: str) -> None:
        """Raises ConfigError where the endpoint lacks what `who` needs."""
        if not getattr(self, feature):
            why = next((note for note in self.notes if note.startswith(f"{feature}: ")), f"{feature}: not there")
            raise ConfigError(f"{who}: {NEEDED_FOR[feature]} need an endpoint with working {feature}, which this one has not ({why.partition(': ')[2]})")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe(caller: Caller, model: str, *, state: str = "") -> Capabilities:
    """Ask some short questions (12 calls). Raises ModelError where a plain question gets no answer.

    Answers in the caller's cache count for a day, and as long as `state` is the same, what the endpoint says of itself (`OpenAIClient.state`): a name may
    stand for another server tomorrow.
    """
    first = _draw_of(state)
    free = Sampling(temperature=1.0, max_tokens=32)
    asked: list[ChatRequest] = [
        _request(model, LABEL, Sampling(temperature=0.0, max_tokens=4), sample=first),
        _request(model, LABEL, Sampling(temperature=0.0, max_tokens=4), sample=first, top_logprobs=5),
        _request(model, SHAPED, Sampling(temperature=0.0, max_tokens=64), sample=first, schema=SHAPE),
        _request(model, FREE, free, sample=first, extra={"n": 2}),
        *_free_draws(model, first),
        *(_request(model, FREE, free, sample=first + k, extra={"seed": seed}) for k, seed in enumerate((1, 1, 2, 3))),
    ]
    _plain, with_logprobs, shaped, several, *drawn = _answered(caller, model, asked)
    found = {
        "logprobs": _logprobs(with_logprobs),
        "n": _several(several),
        "structured": _structured(shaped),
        "sampling": _varies(drawn[:DRAWS]),
        "seed": _seeded(drawn[DRAWS:]),
    }
    return Capabilities(**{name: works for name, (works, _) in found.items()}, notes=tuple(f"{name}: {note}" for name, (_, note) in found.items()))


def probe_sampling(caller: Caller, model: str, *, state: str = "") -> tuple[bool, str]:
    """(whether answers vary at a temperature above 0, what was seen), by the first of the questions of `probe` and those about this (5 calls)."""
    first = _draw_of(state)
    plain = _request(model, LABEL, Sampling(temperature=0.0, max_tokens=4), sample=first)
    return _varies(_answered(caller, model, [plain, *_free_draws(model, first)])[1:])


def _draw_of(state: str) -> int:
    """The number of the first draw of a probe: another one tomorrow, and where the endpoint says other things of itself."""
    digest = hashlib.sha256(f"{int(time.time() // A_DAY)} {state}".encode()).digest()
    return int.from_bytes(digest[:4]) * 100


def _free_draws(model: str, first: int) -> list[ChatRequest]:
    return [_request(model, FREE, Sampling(temperature=1.0, max_tokens=32), sample=first + k) for k in range(DRAWS)]


def _answered(caller: Caller, model: str, asked: Sequence[ChatRequest]) -> list[Answer]:
    """Answers, of which the first is one to a plain question; what the endpoint did not get to say is no finding."""
    plain, *others = answers = caller.run(asked)
    if isinstance(plain, CallFailure):
        raise ModelError(f"{caller.client.endpoint}, model {model}: a plain question failed ({plain.kind}): {plain.message}")
    for answer in others:
        if isinstance(answer, CallFailure) and answer.kind not in SAYS_NO:
            raise ModelError(f"{caller.client.endpoint}, model {model}: a question of the probe failed ({answer.kind}): {answer.message}; try again")
    return answers


def _request(model: str, text: str, sampling: Sampling, **more: Any) -> ChatRequest:
    return ChatRequest(model, ({"role": "user", "content": text},), sampling, **more)


def _failed(answer: Answer) -> tuple[bool, str] | None:
    return (False, f"the request was answered with {answer.kind}: {answer.message[:200]}") if isinstance(answer, CallFailure) else None


def _logprobs(answer: Answer) -> tuple[bool, str]:
    if failed := _failed(answer):
        return failed
    assert isinstance(answer, ChatReply)
    most = max((len(token) for token in answer.top_logprobs), default=0)
    return (True, f"{most} alternatives a token where 5 were asked for") if most > 1 else (False, "asked for and not given")


def _several(answer: Answer) -> tuple[bool, str]:
    if failed := _failed(answer):
        return failed
    assert isinstance(answer, ChatReply)
    return answer.choices == 2, f"{answer.choices} answers where 2 were asked for"


def _structured(answer: Answer) -> tuple[bool, str]:
    if failed := _failed(answer):
        return failed
    assert isinstance(answer, ChatReply)
    try:
        fits = json.loads(answer.text) in ({"colour": "blue"}, {"colour": "green"})
    except json.JSONDecodeError:
        fits = False
    return fits, "the answer fits the schema" if fits else f"the answer ignores the schema: {answer.text[:80]!r}"


def _varies(answers: Sequence[Answer]) -> tuple[bool, str]:
    for answer in answers:
        if failed := _failed(answer):
            return failed
    different = len({answer.text for answer in answers if isinstance(answer, ChatReply)})
    return different > 1, f"{different} different answers of {len(answers)} at temperature 1"


def _seeded(answers: Sequence[Answer]) -> tuple[bool, str]:
    for answer in answers:
        if failed := _failed(answer):
            return failed
    one, again, *others = (answer.text for answer in answers if isinstance(answer, ChatReply))
    if one != again:
        return False, "one seed gave two answers"
    return (True, "equal for one seed, other for others") if any(other != one for other in others) else (False, "every seed gives the same answer")
