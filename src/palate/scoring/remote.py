"""A reward model behind HTTP as a Scorer: our own `/v1/rewards` by batches, vLLM's and SGLang's `/classify`, OpenRLHF's `/get_reward`, TEI's `/predict`.

Requests run side by side; an answer of 429 or 5xx is asked again after a pause, what stays wrong is an error that names the response.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from itertools import repeat
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from tqdm.auto import tqdm

from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, DataError, ModelError
from palate.types import Conversation, Exchange, TokenIds

RETRIED = (429, 500, 502, 503, 504)
TOO_LONG = (400, 413)  # vLLM; TEI
TOO_LARGE = 413  # of our own server: more items or bytes than it takes in one request
RETRIES = 5
FIRST_PAUSE = 0.5  # seconds, doubled each time; a server that is loading a model or shedding load is back within a minute
CONCURRENCY = 16


class Answer(NamedTuple):
    status: int
    text: str
    retry_after: str = ""


class Protocol(NamedTuple):
    """An exchange as the server reads it, the body of some of them (`batch` at most), and their rewards as read from its answer."""

    path: str
    item: Callable[[Exchange], Any]  # raises DataError for what the server does not take
    body: Callable[[Sequence[Any], str | None], dict[str, Any]]  # of items, and the model's name
    rewards: Callable[[Any], list[Any]]  # a `Lost` stands for an item that has none
    batch: int = 1


class Lost(NamedTuple):
    """One item of a batch without a reward, in the server's words."""

    kind: str
    message: str


def _messages(exchange: Exchange) -> list[dict[str, Any]]:
    prompt, response = exchange.prompt, exchange.response
    if isinstance(prompt, TokenIds) or isinstance(response, TokenIds):
        raise DataError("an endpoint is sent text; this conversation holds token ids")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else [dict(m) for m in prompt if not isinstance(m, str)]
    return [*asked, *([{"role": "assistant", "content": response}] if isinstance(response, str) else [dict(m) for m in response])]


def _is_text(exchange: Exchange) -> bool:
    return isinstance(exchange.prompt, str) and isinstance(exchange.response, str) and not exchange.prompt


def _text(exchange: Exchange, protocol: str) -> str:
    if not _is_text(exchange):
        raise DataError(
            f"{protocol} takes whole text that went through the model's template already; give rows of text, or use protocol palate or vllm, which render chats"
        )
    return str(exchange.response)


def _input(exchange: Exchange) -> dict[str, Any]:
    if _is_text(exchange):
        return {"input": exchange.response}
    return {"messages": _messages(exchange)} | ({"chat_template_kwargs": dict(exchange.template_args)} if exchange.template_args else {})


def _native(exchange: Exchange) -> dict[str, Any]:
    """An exchange as `palate serve` reads it: whatever a scorer of this process takes."""
    prompt, response = exchange.prompt, exchange.response
    if isinstance(response, TokenIds):
        return {"input_ids": list(response)}
    if isinstance(prompt, TokenIds):
        raise DataError("a prompt of token ids goes with a response of token ids")
    if _is_text(exchange):
        return {"text": response}
    parts = [part if isinstance(part, str) else [dict(message) for message in part] for part in (prompt, response)]
    return {"prompt": parts[0], "response": parts[1]} | ({"template_args": dict(exchange.template_args)} if exchange.template_args else {})


def _native_rewards(answer: Any) -> list[Any]:
    return [Lost(str(row["error_kind"]), str(row["error"])) if row["raw"] is None else row["raw"] for row in answer["data"]]


def _text_or_ids(exchange: Exchange) -> dict[str, Any]:
    return {"input_ids": list(exchange.response)} if isinstance(exchange.response, TokenIds) else {"text": _text(exchange, "sglang")}


def _first(answer: Any) -> Any:
    """Of a list of one, or of what came without a list around it."""
    return answer[0] if isinstance(answer, list) else answer


PROTOCOLS: dict[str, Protocol] = {
    "palate": Protocol("/v1/rewards", _native, lambda items, model: {"model": model, "items": items}, _native_rewards, batch=64),
    # chats are rendered by the server's own template; `use_activation: false` asks for the raw score
    "vllm": Protocol(
        "/classify", _input, lambda items, model: {"model": model, "use_activation": False, **items[0]}, lambda answer: [answer["data"][0]["probs"][-1]]
    ),
    "sglang": Protocol("/classify", _text_or_ids, lambda items, _: items[0], lambda answer: [_first(answer)["embedding"][-1]]),
    "openrlhf": Protocol(
        "/get_reward", partial(_text, protocol="openrlhf"), lambda items, _: {"query": items, "prompts": [""]}, lambda answer: [answer["rewards"][0]]
    ),
    "tei": Protocol(
        "/predict",
        partial(_text, protocol="tei"),
        lambda items, _: {"inputs": items[0], "raw_scores": True, "truncate": False},
        lambda answer: [_first(answer)["score"]],
    ),
}

NAMED = ("palate", "vllm", "sglang")
"""Servers that say who they are in /v1/models (`owned_by`)."""

TOO_LONG_KINDS = ("too_long", "empty")  # of our own server's items: what a scorer of this process makes NaN


class RemoteScorer:
    """Rewards from an endpoint. `protocol` auto asks the server what it is. `model` is what the server calls it (vLLM: asked of it where none is given)."""

    def __init__(
        self,
        url: str,
        *,
        protocol: str = "auto",
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout: float = 120.0,
    ):
        if protocol not in ("auto", *PROTOCOLS):
            raise ConfigError(f"protocol is {protocol!r}, expected auto or one of {', '.join(PROTOCOLS)}")
        self.url, self.timeout, self.concurrency, self._key = _checked(url), timeout, concurrency, api_key
        self.protocol_name, listed = self._detected() if protocol == "auto" else (protocol, None)
        self.protocol = PROTOCOLS[self.protocol_name]
        self.model = model or listed or (self._served_model() if self.protocol_name == "vllm" else None)

    def score(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """Rewards float32 [N]. What the server refuses as too long (foreign ones: by an answer of 400 or 413) is NaN under on_long="nan"."""
        items = [self._item(place, conversation) for place, conversation in enumerate(conversations)]  # what cannot be sent is said before anything is
        starts = range(0, len(items), self.protocol.batch)
        chunks = [items[start : start + self.protocol.batch] for start in starts]
        rewards = np.empty(len(items), dtype=np.float32)
        with (
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(items), desc="scoring", unit="response", disable=not progress) as bar,
        ):
            for start, found in zip(starts, pool.map(self._rewards, starts, chunks, repeat(on_long)), strict=True):
                rewards[start : start + len(found)] = found
                bar.update(len(found))
        return rewards

    def _detected(self) -> tuple[str, str | None]:
        """(what the server is, its first model where it lists some), by what it says of itself. Raises ConfigError where it does not say."""
        models = self._said("/v1/models").get("data")
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        if first.get("owned_by") in NAMED and isinstance(first.get("id"), str):
            return first["owned_by"], first["id"]
        if "model_id" in self._said("/info"):
            return "tei", None
        paths = self._said("/openapi.json").get("paths")
        if isinstance(paths, dict) and "/get_reward" in paths:
            return "openrlhf", None
        raise ConfigError(f"{self.url} does not say what it speaks (/v1/models, /info and /openapi.json); give protocol: {', '.join(PROTOCOLS)}")

    def _said(self, path: str) -> dict[str, Any]:
        """A JSON object that the server gives there; an empty one where it has none. Raises ModelError where it asks for a key."""
        answer = self._request("GET", path, None)
        if answer.status in (401, 403):
            raise ModelError(f"{self.url}{path} answered {answer.status}: it asks for another API key than was given")
        try:
            found = json.loads(answer.text) if answer.status == 200 else {}
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def _served_model(self) -> str:
        answer = self._request("GET", "/v1/models", None)
        problem = f"{self.url}/v1/models answered {answer.status}: {answer.text[:200]}; say which model with model="
        if answer.status != 200:
            raise ModelError(problem)
        try:
            return str(json.loads(answer.text)["data"][0]["id"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(problem) from error

    def _item(self, place: int, conversation: Exchange | Conversation) -> Any:
        try:
            return self.protocol.item(as_exchange(conversation))
        except DataError as error:
            raise DataError(f"conversation {place}: {error}") from error

    def _rewards(self, start: int, items: Sequence[Any], on_long: str | None) -> list[float]:
        """Rewards of the conversations from `start` on, asked for by one request; by two of half the size where that is too large for the server."""
        answer = self._request("POST", self.protocol.path, self.protocol.body(items, self.model))
        if answer.status == TOO_LARGE and len(items) > 1:
            half = len(items) // 2
            return [*self._rewards(start, items[:half], on_long), *self._rewards(start + half, items[half:], on_long)]
        if answer.status in TOO_LONG and on_long == "nan" and self.protocol.batch == 1:
            return [float("nan")]
        where = f"conversation {start}" if len(items) == 1 else f"conversations {start} to {start + len(items) - 1}"
        if answer.status != 200:
            raise ModelError(f"{where}: {self.url}{self.protocol.path} answered {answer.status}: {answer.text[:300]}")
        try:
            found = self.protocol.rewards(json.loads(answer.text))
            values = [one if isinstance(one, Lost) else float(one) for one in found]
            if len(values) != len(items):
                raise ValueError(f"{len(values)} rewards for {len(items)} conversations")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(f"{where}: {self.url}{self.protocol.path} answered something else than a reward: {answer.text[:300]}") from error
        return [self._number(place, one, on_long) for place, one in enumerate(values, start)]

    def _number(self, place: int, found: float | Lost, on_long: str | None) -> float:
        if isinstance(found, float):
            return found
        if found.kind in TOO_LONG_KINDS and on_long == "nan":
            return float("nan")
        raise ModelError(f"conversation {place}: {self.url}{self.protocol.path}: {found.message}")

    def _request(self, method: str, path: str, body: Any) -> Answer:
        pause = FIRST_PAUSE
        for attempt in range(RETRIES + 1):
            wait = pause
            try:
                answer = _send(method, self.url + path, body, self.timeout, self._key)
            except (OSError, HTTPException) as error:  # refused, reset, timed out, broken off
                if attempt == RETRIES:
                    raise ModelError(f"{self.url}{path}: no answer after {RETRIES + 1} attempts: {error}") from error
            else:
                if answer.status not in RETRIED or attempt == RETRIES:
                    return answer
                if answer.retry_after.isdecimal():
                    wait = max(pause, float(answer.retry_after))
            time.sleep(wait)
            pause *= 2
        raise AssertionError("the loop returns or raises")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ConfigError(f"{url!r} is no address of an endpoint; expected one like http://localhost:8000")
    return url.rstrip("/")


def _send(method: str, url: str, body: Any, timeout: float, key: str | None) -> Answer:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = Request(url, data, headers, method=method)
    try:
        with urlopen(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.read().decode("utf-8", "replace"))
    except HTTPError as error:  # an answer too, of another status
        with error:
            return Answer(error.code, error.read().decode("utf-8", "replace"), error.headers.get("Retry-After", ""))
