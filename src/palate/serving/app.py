"""The FastAPI app: every dialect's routes on their paths, health, models, metrics, and what may be loaded while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from palate.errors import ConfigError
from palate.serving.gate import Gate
from palate.serving.gateway import Gateway
from palate.serving.hosting import Hosted, Models
from palate.serving.metrics import Metrics
from palate.serving.openapi import document
from palate.serving.protocols import llamafactory, native, nim, openrlhf, sglang, slime, tei, vllm
from palate.serving.routes import Refusal, Reply, Route, choose, dump, error_object, in_words, parse
from palate.serving.settings import ServerSettings
from palate.serving.worker import CLOSING

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

DIALECTS = (native, vllm, sglang, openrlhf, tei, llamafactory, slime, nim)


GONE = (499, "client_gone", "the client went away before its answer")
"""Nobody reads it, but the counts of requests and errors do. Source of the status: nginx."""

WATCHED_AFTER = 2.0
"""Seconds after which a request that has no answer yet is watched for the end of its connection. Watching each from its start took 5 % of the throughput of
small decoders (64 clients, a second a request)."""


def routes_by_path() -> dict[str, list[Route]]:
    """Every path with the dialects on it; which of them a body speaks, its keys say."""
    found: dict[str, list[Route]] = {}
    for dialect in DIALECTS:
        for route in dialect.ROUTES:
            found.setdefault(route.path, []).append(route)
    return found


def make_app(models: Models, settings: ServerSettings, metrics: Metrics) -> FastAPI:
    """The app over models that are loaded already; it drains them when it goes down."""
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'palate[serve]'") from error

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(models.close)

    app = FastAPI(title="palate", description="Rewards over HTTP, in several dialects", version=_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    gateway = Gateway(models, settings, metrics)
    routes = routes_by_path()
    for path, on_path in routes.items():
        app.add_route(path, _endpoint(gateway, on_path, Response), methods=["POST"])  # Starlette's own: bodies are read and checked by the dialects
    _add_operations(app, models, settings, metrics, Request, Response)

    def refuse(_: Any, error: Any) -> Any:
        """What no dialect answered: an unknown path, a wrong method, a body that grew too large."""
        known = error if isinstance(error, Refusal) else Refusal(error.status_code, "http", str(error.detail))
        return _refused(known, metrics, Response, error_object(known), getattr(error, "headers", None) or {})

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_middleware(Gate, settings=settings, metrics=metrics, paths=[*routes, *OPERATIONS])
    described = app.openapi
    app.openapi = cache(lambda: document(described(), routes))  # type: ignore[method-assign]
    return app


def _endpoint(gateway: Gateway, routes: Sequence[Route], response_type: Any) -> Callable[[Any], Awaitable[Any]]:
    """One path: read, choose the dialect, answer or refuse in its words."""

    async def endpoint(request: Any) -> Any:
        route = routes[0]
        try:
            body = parse(await _read(request, gateway.settings.timeout))
            route = choose(routes, body)
            answer = await _while_connected(request, _answer(gateway, route, body))
        except Refusal as refusal:
            return _refused(refusal, gateway.metrics, response_type, route.errors.body(refusal))
        headers = {"X-Truncated": str(answer.truncated)} if answer.truncated else None
        return response_type(dump(answer.body), media_type="application/json", headers=headers)

    return endpoint


async def _read(request: Any, timeout: float) -> bytes:
    """The body. Raises Refusal where it comes too slowly, or not to its end."""
    from starlette.requests import ClientDisconnect

    try:
        async with asyncio.timeout(timeout):
            return bytes(await request.body())
    except TimeoutError as error:
        raise Refusal(408, "slow_body", "the body did not arrive in time") from error
    except ClientDisconnect as error:
        raise Refusal(*GONE) from error


async def _answer(gateway: Gateway, route: Route, body: dict[str, Any]) -> Reply:
    """Asked twice where the model was swapped between its choice and its queue, so that no answer is of two models."""
    try:
        return await route.answer(gateway, route.read(body))
    except Refusal as refusal:
        if refusal.kind != CLOSING:
            raise
        return await route.answer(gateway, route.read(body))


async def _while_connected(request: Any, answer: Coroutine[Any, Any, Reply]) -> Reply:
    """The answer, which is worked on only as long as its client is there; a quick one is not watched, since each watch costs turns of the event loop."""
    task = asyncio.current_task()
    assert task is not None
    watch: asyncio.Task[None] | None = None
    answered = False

    def left(ended: asyncio.Task[None]) -> None:
        if not ended.cancelled() and not answered:
            task.cancel()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.create_task(_gone(request))
        watch.add_done_callback(left)

    timer = asyncio.get_running_loop().call_later(WATCHED_AFTER, begin)
    try:
        return await answer
    except asyncio.CancelledError:
        if watch is None or not watch.done():
            raise
        task.uncancel()
        raise Refusal(*GONE) from None
    finally:
        answered = True
        timer.cancel()
        if watch is not None:
            watch.cancel()


async def _gone(request: Any) -> None:
    """Until the connection ends."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(refusal: Refusal, metrics: Metrics, response_type: Any, body: Any, headers: dict[str, str] | None = None) -> Any:
    metrics.errors.labels(refusal.kind).inc()
    headers = dict(headers or {})
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    return response_type(dump(body), status_code=refusal.status, media_type="application/json", headers=headers)


# --- operations ---------------------------------------------------------------------------------------------------------------------------------

OPERATIONS = ("/health", "/v1/models", "/v1/models/load", "/v1/models/reload", "/metrics", "/openapi.json")


class LoadRequest(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    path: str = Field(max_length=4096)


class ReloadRequest(BaseModel):
    name: str = Field(max_length=200)


def _add_operations(app: FastAPI, models: Models, settings: ServerSettings, metrics: Metrics, request_type: Any, response_type: Any) -> None:
    async def health() -> dict[str, str]:
        """Models are loaded and warm before the server listens, so an answer means that it is ready."""
        return {"status": "ok"}

    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [_described(hosted) for hosted in models.all()]}

    async def page() -> Any:
        return response_type(metrics.page(), media_type="text/plain; version=0.0.4")

    async def load(request: Any) -> Any:
        return await _load(models, LoadRequest, request, metrics, response_type)

    async def reload(request: Any) -> Any:
        return await _load(models, ReloadRequest, request, metrics, response_type)

    load.__annotations__ = reload.__annotations__ = {"request": request_type}
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/v1/models", listed, methods=["GET"])
    app.add_api_route("/metrics", page, methods=["GET"], response_class=response_type)
    if settings.may_load:
        app.add_api_route("/v1/models/load", load, methods=["POST"], include_in_schema=False)
        app.add_api_route("/v1/models/reload", reload, methods=["POST"], include_in_schema=False)


async def _load(models: Models, kind: type[LoadRequest] | type[ReloadRequest], request: Any, metrics: Metrics, response_type: Any) -> Any:
    """Load beside the running models, then swap: what the old one has is finished by it."""
    try:
        try:
            wanted = kind.model_validate(parse(await _read(request, models.settings.timeout)))
        except ValidationError as error:
            raise Refusal(400, "malformed", in_words(error)) from error
        path = wanted.path if isinstance(wanted, LoadRequest) else models.get(wanted.name).source
        hosted = await asyncio.to_thread(models.load_requested, wanted.name, path, int(time.time()))
    except Refusal as refusal:
        return _refused(refusal, metrics, response_type, error_object(refusal))
    logger.warning("%s is served from %s now", hosted.name, hosted.source)
    return response_type(dump(_described(hosted)), media_type="application/json")


def _described(hosted: Hosted) -> dict[str, Any]:
    """As OpenAI lists a model, with what says whose rewards these are. No path of the server's disk."""
    scorer = hosted.scorer
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.loaded,
        "owned_by": "palate",
        "max_model_len": scorer.encoder.max_length,
        "template_sha": scorer.encoder.template_hash(),
        "contract_sha": scorer.contract.sha256() if scorer.contract else None,
        "outputs": list(scorer.readout.outputs),
        "packing": scorer.engine.packing,
    }


def _version() -> str:
    from importlib.metadata import version

    return version("palate")
