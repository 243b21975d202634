"""How a body reaches an endpoint and its answer comes back: over aiohttp, or over the HTTP client of the SDK; each knows its own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from palate.judging.calls import CallFailure, FailureKind

CONNECT_TIMEOUT = 15.0
KEPT_OPEN = 4.0
"""Seconds that an idle connection is kept. Uvicorn, and vLLM with it, closes one after 5: a request on its way at that moment would be lost."""


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]  # by names of any case
    content: bytes


class Transport(Protocol):
    """Connections to one address, in one event loop."""

    async def post(self, content: bytes) -> Response | CallFailure:
        """One request with this body; a failure where no whole answer came."""
        ...

    async def close(self) -> None: ...


class AiohttpTransport:
    """A session of its own: half of the processor time that the SDK's client over aiohttp takes for the same."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float):
        import aiohttp
        import httpx2

        self._url, self._timeout = url, timeout
        self._lost = aiohttp.ClientError
        trusted = httpx2.create_ssl_context() if url.startswith("https:") else True  # the certificates that the SDK trusts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_OPEN, ssl=trusted),  # how many run at once is the Caller's matter
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_TIMEOUT)),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def post(self, content: bytes) -> Response | CallFailure:
        try:
            async with self._session.post(self._url, data=content) as response:
                return Response(response.status, response.headers, await response.read())
        except TimeoutError:
            return out_of_time(self._url, self._timeout)
        except self._lost as error:
            return lost(self._url, error)

    async def close(self) -> None:
        await self._session.close()


class HttpxTransport:
    """The SDK's HTTP client, or one that was given: knows every kind of proxy."""

    def __init__(self, client: Any, url: str, headers: Mapping[str, str], timeout: float):
        import httpx2

        self._client, self._url, self._timeout = client, url, timeout
        self._failed, self._request = httpx2.RequestError, httpx2.Request
        limits = dict.fromkeys(("read", "write", "pool"), timeout) | {"connect": min(timeout, CONNECT_TIMEOUT)}
        self._fixed: dict[str, Any] = {"headers": httpx2.Headers(dict(headers)), "extensions": {"timeout": limits}}
        self._out_of_time = httpx2.TimeoutException

    async def post(self, content: bytes) -> Response | CallFailure:
        try:
            async with asyncio.timeout(self._timeout):  # an endpoint that sends a sign of life now and then must end too
                response = await self._client.send(self._request("POST", self._url, content=content, **self._fixed))
                return Response(response.status_code, response.headers, response.content)
        except TimeoutError:
            return out_of_time(self._url, self._timeout)
        except self._failed as error:
            return lost(self._url, error, "timeout" if isinstance(error, self._out_of_time) else "connection")

    async def close(self) -> None:
        await self._client.aclose()


def out_of_time(url: str, timeout: float) -> CallFailure:
    return CallFailure("timeout", f"{url}: no answer within {timeout:g} s")


def lost(url: str, error: BaseException, kind: FailureKind = "connection") -> CallFailure:
    """The error that another one was made of says most."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return CallFailure(kind, f"{url}: {cause} ({type(cause).__name__})")


def proxied(url: str) -> bool:
    """Whether the environment (HTTPS_PROXY and its like, NO_PROXY) sends requests to this address through a proxy."""
    address, proxies = urlsplit(url), getproxies()
    return bool(proxies.get(address.scheme) or proxies.get("all")) and not proxy_bypass(address.hostname or "")
