"""Any OpenAI-compatible endpoint as a chat client, through the official SDK: vLLM, SGLang, `transformers serve`, providers.

The SDK brings headers, key and the list of models. The request is sent as it stands (`transport.py`) and the answer is read as it comes: to build each
request and a model of every answer anew, as the SDK does, takes a millisecond more, so that one processor could not keep 64 quick calls going.
Attempts, pauses and concurrency are the Caller's, which can see the whole run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import wait
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any, NamedTuple

from palate.errors import ConfigError
from palate.judging.calls import Answer, CallFailure, ChatReply, ChatRequest, FailureKind
from palate.judging.event_loop import finish, in_event_loop
from palate.judging.transport import CONNECT_TIMEOUT, AiohttpTransport, HttpxTransport, Transport, proxied

OPENAI = "https://api.openai.com/v1"
DEFAULT_TIMEOUT = 300.0  # seconds; a reasoning judge may think for minutes
CLOSING = 2.0  # seconds that an exit waits for connections to end
STATUS_KINDS: dict[int, FailureKind] = {401: "denied", 402: "denied", 403: "denied", 408: "timeout", 409: "server", 425: "server", 429: "rate limit"}
STATUS_KINDS[529] = "rate limit"  # Anthropic's "overloaded"
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

AIOHTTP = find_spec("aiohttp") is not None
"""Whether calls go over aiohttp where no proxy stands between, which takes the least processor time."""


class OpenAIClient:
    """Chat completions of one endpoint. `http_client` replaces the transport (an httpx2.AsyncClient: tests, proxies).

    Without api_key, OPENAI_API_KEY is sent to OpenAI's own endpoint and to the one that OPENAI_BASE_URL names, to no other. `timeout` bounds one attempt.
    """

    path = "chat/completions"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        http_client: Any = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise ConfigError("an endpoint is asked through the openai package: pip install 'palate[judge]'") from error
        self._openai = openai
        self.endpoint = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"base_url {self.endpoint!r}, expected http://HOST:PORT/v1 or https://...")
        self._timeout = timeout
        self._settings: dict[str, Any] = {
            "api_key": api_key or _key_of(self.endpoint, from_environment=base_url is None),
            "base_url": self.endpoint,
            "timeout": openai.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            "default_headers": dict(headers or {}),
        }
        self._http_client = http_client
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        weakref.finalize(self, _close, self._connections)  # also at exit

    def _connected(self) -> _Connection:
        """Connections belong to the event loop they were made in."""
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            self._connections[loop] = self._connect()
        return self._connections[loop]

    def _connect(self) -> _Connection:
        url = f"{self._settings['base_url']}/{self.path}"
        http_client = self._http_client or self._openai.DefaultAsyncHttpxClient()
        sdk = self._openai.AsyncOpenAI(**self._settings, http_client=http_client)
        headers = {**sdk.default_headers, **sdk.auth_headers, **self._settings["default_headers"]}
        sent = {name: value for name, value in headers.items() if isinstance(value, str) and not name.startswith("X-Stainless")}  # those count its own retries
        if AIOHTTP and self._http_client is None and not proxied(url):
            return _Connection(sdk, AiohttpTransport(url, sent, self._timeout))
        return _Connection(sdk, HttpxTransport(http_client, url, sent, self._timeout))

    async def complete(self, request: ChatRequest) -> Answer:
        started = time.monotonic()
        response = await self._connected().transport.post(json.dumps(self.body(request)).encode())
        if isinstance(response, CallFailure):
            return response
        if response.status != 200:
            return status_failure(response.status, response.content.decode(errors="replace"), response.headers)
        return self.reply(response.content, time.monotonic() - started)

    def body(self, request: ChatRequest) -> dict[str, Any]:
        return body_of(request)

    def reply(self, content: bytes, seconds: float) -> Answer:
        return reply_of(content, seconds)

    def models(self) -> list[str]:
        """Names that the endpoint serves; empty where it does not tell."""
        return [model["id"] for model in finish(self._models())]

    def state(self, model: str) -> str:
        """What the endpoint says of a model, as JSON: with vLLM its folder and its context. Without the fields that vLLM makes up anew each time."""
        found = [one for one in finish(self._models()) if one["id"] == model]
        return json.dumps([{name: value for name, value in one.items() if name not in ("created", "permission")} for one in found], sort_keys=True, default=str)

    async def _models(self) -> list[dict[str, Any]]:
        try:
            return [model.model_dump(exclude_none=True) for model in (await self._connected().sdk.models.list()).data]
        except self._openai.OpenAIError:
            return []

    def close(self) -> None:
        """Ends the connections, as forgetting the client does."""
        _close(self._connections)


class _Connection(NamedTuple):
    sdk: Any
    transport: Transport

    async def close(self) -> None:
        await self.transport.close()
        await self.sdk.close()


def _key_of(endpoint: str, *, from_environment: bool) -> str:
    if endpoint != OPENAI and not from_environment:
        return "none"  # a local server asks for no key, the SDK does
    if not (key := os.environ.get("OPENAI_API_KEY")):
        raise ConfigError(f"no key for {endpoint}: set OPENAI_API_KEY or pass api_key; for a server of your own, give base_url (http://HOST:PORT/v1)")
    return key


def _close(connections: dict[asyncio.AbstractEventLoop, _Connection]) -> None:
    """Those of event loops that are over went with them."""
    while connections:
        loop, connection = connections.popitem()
        if loop.is_running():
            closed = asyncio.run_coroutine_threadsafe(connection.close(), loop)
            if not in_event_loop():
                wait([closed], CLOSING)


def body_of(request: ChatRequest) -> dict[str, Any]:
    """The body of a chat completion."""
    sampling = request.sampling
    body: dict[str, Any] = {"model": request.model, "messages": [dict(message) for message in request.messages]}
    for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p), ("max_tokens", sampling.max_tokens), ("seed", request.seed)):
        if value is not None:
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": dict(request.schema), "strict": True}}
    return body | dict(request.extra)


def reply_of(content: bytes, seconds: float) -> Answer:
    """A chat completion to a reply; a refusal, an error in disguise and whatever has another form are failures."""
    try:
        return _reply(json.loads(content), seconds)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return CallFailure("server", f"expected a chat completion, got {content[:300].decode(errors='replace')!r} ({type(error).__name__}: {error})")


def _reply(completion: Any, seconds: float) -> Answer:
    if error := completion.get("error"):  # some gateways wrap the status of the server behind them
        code = error.get("code") if isinstance(error, dict) else None
        return status_failure(code if isinstance(code, int) else 500, json.dumps(error), {})
    choices = completion.get("choices") or []
    if not choices:
        return CallFailure("server", f"the answer has no choices: {json.dumps(completion)[:300]}")
    choice, usage = choices[0], completion.get("usage") or {}
    message = choice.get("message") or {}
    prompt_tokens, completion_tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    if message.get("refusal"):
        return CallFailure("refused", str(message["refusal"]), None, prompt_tokens, completion_tokens)
    return ChatReply(
        text=_text(message.get("content")),  # reasoning that a server splits off is not part of it
        finish_reason=str(choice.get("finish_reason") or "stop"),
        top_logprobs=_top_logprobs(choice.get("logprobs")),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        choices=len(choices),
        seconds=seconds,
    )


def _text(content: Any) -> str:
    """Text, or the text of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return "" if content is None else str(content)


def _top_logprobs(logprobs: Any) -> tuple[Mapping[str, float], ...]:
    """Alternatives of each token, the likeliest first; of two that read the same (parts of one character) the likelier stays."""
    found: list[Mapping[str, float]] = []
    for token in (logprobs or {}).get("content") or []:
        alternatives: dict[str, float] = {}
        for one in sorted(token.get("top_logprobs") or [token], key=lambda one: -float(one["logprob"])):
            alternatives.setdefault(one["token"], float(one["logprob"]))
        found.append(alternatives)
    return tuple(found)


def status_failure(status: int, text: str, headers: Mapping[str, str]) -> CallFailure:
    """An HTTP status to the kind of failure that it is."""
    kind: FailureKind = STATUS_KINDS.get(status) or ("server" if status >= 500 else "bad request")
    if "insufficient_quota" in text:  # OpenAI's 429 of an account without money: no waiting helps
        kind = "denied"
    return CallFailure(kind, f"status {status}: {text[:500]}", _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from milliseconds, from a number of seconds, or from an HTTP date."""
    milliseconds, said = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if NUMBER.fullmatch(said):
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None
