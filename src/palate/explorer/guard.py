"""Who may ask, and what every answer says: Host, Origin and token are checked, bodies bounded, and a strict content policy goes with each answer.

The data are private and hold whatever people and models wrote. A page on the internet can send requests to a server on this machine through the user's own
browser: it cannot pass for our host (DNS rebinding is refused by the Host check), it cannot read the token that every write needs, and nothing in the data
can run a script in our pages, which load nothing but their own files.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_BODY = 1 << 20  # bytes of a write: a pasted conversation of a million characters
TOKEN_HEADER = "x-palate-token"
KEY_COOKIE = "palate-key"

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    # data: is for the points of a picture, which an SVG holds as an image
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Refusal(Exception):
    """A request that is not answered: the status and why."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Guard:
    """Around the application. `key`: asked of everybody, once, where the server listens beyond this machine."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, token: str, hosts: tuple[str, ...] = LOOPBACK, key: str | None = None):
        self.app = app
        self.token = token
        self.hosts = hosts
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the explorer speaks HTTP, not {scope['type']}")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        try:
            self._check_host(headers)
            if self.key is not None and await self._knows_key(scope, headers, guarded):
                return
            if scope["method"] not in ("GET", "HEAD"):
                self._check_write(headers)
        except Refusal as refusal:
            await answer(guarded, refusal.status, str(refusal))
            return
        await self.app(scope, receive, guarded)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        if self.key is not None:  # the machine may have many names there; the key tells friends from strangers
            return
        host = host_of("//" + headers.get("host", ""))
        if host not in self.hosts:
            raise Refusal(421, f"this server is called {' or '.join(self.hosts)}, not {host or 'nothing'}")

    def _check_write(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(403, "a write from another site")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refusal(403, "a write from another site")
        if not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode("latin-1"), self.token.encode()):
            raise Refusal(403, "a write without this server's token; the server was started anew? Load the page again")
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise Refusal(411, "a write needs a Content-Length, and no Transfer-Encoding")
        if int(length) > LARGEST_BODY:
            raise Refusal(413, f"{int(length):,} bytes; at most {LARGEST_BODY:,} are read")

    async def _knows_key(self, scope: Scope, headers: Mapping[str, str], send: Send) -> bool:
        """True where the request was answered: the key of the address becomes a cookie. Raises Refusal where there is neither."""
        assert self.key is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if given and secrets.compare_digest(given.encode(), self.key.encode()):
            cookie = f"{KEY_COOKIE}={self.key}; HttpOnly; SameSite=Strict; Path=/"
            await answer(send, 303, "", {"location": "/", "set-cookie": cookie})
            return True
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(KEY_COOKIE)
        except CookieError:
            kept = None
        if kept is None or not secrets.compare_digest(kept.value.encode(), self.key.encode()):
            raise Refusal(403, "open the address with the key that `palate ui` printed")
        return False


def host_of(address: str) -> str:
    """The host of an address, in lower case and without port; empty where it is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


async def answer(send: Send, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
    """A short plain answer."""
    every = {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": [(name.encode(), value.encode("latin-1")) for name, value in every.items()]})
    await send({"type": "http.response.body", "body": text.encode()})
