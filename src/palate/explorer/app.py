"""The explorer as an ASGI application: which address shows which page, and what is said where something fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

from palate.errors import PalateError, StorageError
from palate.explorer.assets import served
from palate.explorer.exports import EXPORTS
from palate.explorer.guard import LOOPBACK, Guard
from palate.explorer.labels import annotator_name
from palate.explorer.query import Query
from palate.explorer.site import Site

PRIVATE = {"cache-control": "no-store"}
FIELDS = 10  # of a form
YEAR = 365 * 24 * 3600  # seconds


def create_app(site: Site, *, hosts: tuple[str, ...] = LOOPBACK, key: str | None = None) -> Guard:
    """The site behind its guard. `key`: see Guard."""
    from starlette.applications import Starlette

    return Guard(Starlette(routes=routes(site), exception_handlers=handlers(site)), token=site.token, hosts=hosts, key=key)


def routes(site: Site) -> list[Any]:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, RedirectResponse, Response
    from starlette.routing import Route

    def get(address: str, make: Callable[[Any], str]) -> Route:
        return Route(address, lambda request: HTMLResponse(make(request), headers=PRIVATE))

    def post(address: str, make: Callable[[Any, dict[str, str]], str]) -> Route:
        async def answer(request: Any) -> Response:
            return HTMLResponse(await run_in_threadpool(make, request, await form_of(request)), headers=PRIVATE)

        return Route(address, answer, methods=["POST"])

    def who(request: Any) -> str:
        given = unquote(request.cookies.get("annotator", ""))
        return annotator_name(given) if given else site.annotator

    def row(request: Any) -> int:
        return _within(request.path_params["row"], len(site.pairs))

    def pairs(request: Any) -> Response:
        body = site.pairs_page(request.query_params, who(request))
        # filters that were left empty stay out of the address
        return HTMLResponse(body, headers={**PRIVATE, "hx-push-url": Query.read(request.query_params).address("/pairs")})

    def label(request: Any) -> Response:
        asked = request.query_params
        if not asked.keys() - {"blind"}:
            return RedirectResponse(site.queue().address("/label", blind=asked.get("blind")), 303)
        return HTMLResponse(site.task_page(asked, who(request), pair=asked.get("pair")), headers=PRIVATE)

    async def annotate_as(request: Any) -> Response:
        name = annotator_name((await form_of(request)).get("name", ""))
        answer = Response(status_code=204, headers={"hx-refresh": "true"})
        answer.set_cookie("annotator", quote(name), httponly=True, samesite="strict", max_age=YEAR)
        return answer

    def export(request: Any) -> Response:
        kind = EXPORTS.get(request.path_params["kind"]) or _missing(f"labels are exported as {', '.join(EXPORTS)}")
        body = site.export(kind).encode("utf-8", "backslashreplace")
        return Response(body, media_type=kind.media_type, headers={"content-disposition": f'attachment; filename="{kind.file}"', **PRIVATE})

    def static(request: Any) -> Response:
        file = served().get(request.path_params["name"]) or _missing("there is no such file")
        return Response(file.content, media_type=file.media_type, headers={"cache-control": f"private, max-age={YEAR}, immutable"})

    return [
        Route("/", lambda _: RedirectResponse("/pairs", 303)),
        Route("/pairs", pairs),
        get("/pairs/{row:int}", lambda request: site.pair_page(row(request), request.query_params, who(request))),
        get("/pairs/{row:int}/heat", lambda request: site.heat_part(row(request))),
        Route("/label", label, methods=["GET"]),
        post("/label", lambda request, form: site.label(request.query_params, form, who(request))),
        post("/undo", lambda request, _: site.undo(request.query_params, who(request))),
        get("/labels", lambda request: site.labels_page(who(request))),
        Route("/labels/export/{kind}", export),
        Route("/annotator", annotate_as, methods=["POST"]),
        get("/measures", lambda request: site.report_page("measures", who(request))),
        get("/measures/report", lambda _: site.report_part("measures")),
        get("/compare", lambda request: site.report_page("compare", who(request))),
        get("/compare/report", lambda _: site.report_part("compare")),
        get("/training", lambda request: site.report_page("training", who(request))),
        get("/prompts", lambda request: site.prompts_page(request.query_params, who(request))),
        get("/prompts/{code:int}", lambda request: site.prompt_page(_within(request.path_params["code"], len(site.candidates)), who(request))),
        get("/score", lambda request: site.score_page(who(request))),
        post("/score", lambda _, form: site.score(form)),
        Route("/static/{name}", static),
    ]


def handlers(site: Site) -> Any:
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, Response

    def refused(request: Any, error: HTTPException) -> Response:
        text = "There is no such page." if error.detail == "Not Found" else error.detail
        return HTMLResponse(site.problem_page(error.status_code, text), error.status_code)

    def failed(request: Any, error: PalateError) -> Response:
        status = 500 if isinstance(error, StorageError) else 400
        return HTMLResponse(site.problem_page(status, str(error)), status)

    def broken(request: Any, error: Exception) -> Response:
        return HTMLResponse(site.problem_page(500, f"A mistake of the explorer itself ({type(error).__name__}); the terminal says more."), 500)

    return {HTTPException: refused, PalateError: failed, Exception: broken}


async def form_of(request: Any) -> dict[str, str]:
    """The texts of a form; files are refused."""
    async with request.form(max_files=0, max_fields=FIELDS) as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


def _within(number: int, most: int) -> int:
    return number if number < most else _missing(f"there are {most:,} of them, and no number {number:,}")


def _missing(text: str) -> Any:
    from starlette.exceptions import HTTPException

    raise HTTPException(404, text)
