"""The gate in front of the app, in plain ASGI: the key, the size of bodies, and one count and one stopwatch a request."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from palate.serving.metrics import Metrics
from palate.serving.routes import Refusal, dump, error_object
from palate.serving.settings import ServerSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)  # asked by load balancers, which hold no key


class Gate:
    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics, paths: Iterable[str]):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.paths = frozenset(paths)  # any other is counted as "other", so that strangers cannot grow the metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                self.metrics.errors.labels(refusal.kind).inc()
                await _refuse(refusal, counted)
            else:
                await self.app(scope, self._bounded(receive), counted)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key", b"content-length")}
        if self.settings.api_key is not None and scope["path"] not in OPEN and not self._knows_key(headers):
            return Refusal(401, "unauthorized", "expected the API key as `Authorization: Bearer KEY`")
        length = headers.get(b"content-length", b"")
        return self._too_large() if length.isdigit() and int(length[:20]) > self.settings.max_body else None

    def _knows_key(self, headers: dict[bytes, bytes]) -> bool:
        """By Bearer, or by X-Api-Key as OpenRLHF's client may send it; compared in constant time."""
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given, str(self.settings.api_key).encode())

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body is larger than {self.settings.max_body} bytes; send fewer items at a time")

    def _bounded(self, receive: Receive) -> Receive:
        """Bodies without a length are stopped where they grow too large."""
        size = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.settings.max_body:
                raise self._too_large()
            return message

        return bounded


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = dump(error_object(refusal))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
