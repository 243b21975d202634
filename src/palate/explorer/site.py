"""The pages of the explorer: what each one shows, and the two writes there are (a label, its undoing).

Pages are whole HTML; htmx only puts the part of an answer that changed into the page that is there, so that everything but labelling works without a script.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.special import expit

from palate.errors import DataError, PalateError, StorageError
from palate.evaluation.evaluator import CONFIDENT, summarize
from palate.explorer import agreement, exports, query
from palate.explorer.candidates import Candidates
from palate.explorer.guard import LOOPBACK, Guard
from palate.explorer.heat import LEVELS, heat_of
from palate.explorer.labels import Label, LabelFile, annotator_name, choice_of, left_side, now, verdict_of
from palate.explorer.measures import Measures
from palate.explorer.pairs import Labelled, Pairs, page
from palate.explorer.query import Query
from palate.explorer.rewards import Model
from palate.explorer.shown import excerpt, metadata, outcome, turns, whole_pair
from palate.reports import wording
from palate.reports.page import LONG
from palate.types import Exchange, Message

ROWS = 20  # pairs of a page
PROMPTS = 40
LABELS_SHOWN = 100
CONFIDENCE = 0.95
AGAINST = ("rejected", "both_bad")
"""Verdicts that contradict a label of the data; a tie of the data is contradicted by none."""

STATIC = {
    "page.css": ("palate.reports", "templates/page.css", "text/css"),
    "explorer.css": ("palate.explorer", "static/explorer.css", "text/css"),
    "htmx.js": ("palate.explorer", "static/htmx.min.js", "text/javascript"),
    "keys.js": ("palate.explorer", "static/keys.js", "text/javascript"),
}
"""Every file that is served, by name: nothing in the address becomes a path."""

HTMX = {"allowEval": False, "allowScriptTags": False, "includeIndicatorStyles": False, "selfRequestsOnly": True, "historyCacheSize": 0} | {
    "refreshOnHistoryMiss": True,
    "defaultSettleDelay": 0,
}
"""Settings of htmx under the content policy. Pages are private, so it keeps none. Without a delay what was swapped in answers to the very next key."""


class Task(NamedTuple):
    """One pair to be decided by one annotator, and how far the queue is."""

    row: int | None  # None: all is done
    left: str
    done: int
    total: int
    kept: str | None  # the annotator's own choice on it, where there is one


class Site:
    """Everything that pages are made of."""

    def __init__(self, pairs: Pairs, labels: LabelFile, *, annotator: str, name: str, model: Model | None = None, measures: Measures | None = None):
        self.pairs = pairs
        self.labels = labels
        self.annotator = annotator_name(annotator)
        self.name = name
        self.model = model
        self.measures = measures or Measures(pairs)
        self.candidates = Candidates(pairs)
        self.token = secrets.token_urlsafe(24)
        self._labelled = Labelled(-1, np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
        self.static = {file: (files(room).joinpath(path).read_bytes(), kind) for file, (room, path, kind) in STATIC.items()}
        version = hashlib.sha256(b"".join(content for content, _ in self.static.values())).hexdigest()[:12]
        self._environment = Environment(
            loader=PackageLoader("palate.explorer"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        shared = {"site": self, "version": version, "htmx": json.dumps(HTMX), "wording": wording, "query": query, "long": LONG, "levels": LEVELS}
        self._environment.globals |= {**shared, "headers": json.dumps({"X-Palate-Token": self.token})}

    @cached_property
    def rows(self) -> dict[str, int]:
        return self.pairs.row_of()

    def labelled(self) -> Labelled:
        """What the label file says of each row, by now."""
        self.labels.refresh()
        if self._labelled.version != self.labels.version:
            current = self.labels.current
            decided, against = (
                np.array([int(label.pair, 16) for label in current if wanted(label)], dtype=np.uint64)
                for wanted in (lambda label: label.decides, lambda label: label.verdict in AGAINST)
            )
            self._labelled = Labelled(self.labels.version, np.isin(self.pairs.ids, decided), np.isin(self.pairs.ids, against) & self.pairs.decided)
        return self._labelled

    @property
    def sorts(self) -> list[tuple[str, str]]:
        """Orders that these data have."""
        without = {"file"} | (set() if self.pairs.other else {"models"}) | (set() if self.pairs.subset else {"subset"})
        without |= set() if self.pairs.is_scored else {"disagreement", "confidence", "uncertain"}
        return [(key, title) for key, title in query.SORTS.items() if key not in without]

    @property
    def finding_choices(self) -> list[tuple[str, str]]:
        return [(name, f"{name} ({wording.count(int(rows.sum()))})") for name, rows in self.pairs.flags.items()]

    def html(self, template: str, **given: Any) -> str:
        return wording.clean(self._environment.get_template(template).render(**given))

    # --- pairs ---

    def pairs_page(self, given: Mapping[str, str], annotator: str) -> str:
        asked = Query.read(given)
        order = self.pairs.order(asked, self.labelled())
        shown = page(order, ROWS, after=_row(given, "after"), before=_row(given, "before"))
        rows = [excerpt(self.pairs, int(row)) for row in shown.rows]
        summary = None if asked.depends_on_rewards else self._summary(order)
        return self.html("pairs.html", annotator=annotator, asked=asked, page=shown, rows=rows, summary=summary)

    def _summary(self, order: np.ndarray) -> dict[str, Any] | None:
        """Accuracy on the rows that are shown; None where none of them has a label and two rewards."""
        items = self.pairs.items
        mask = np.zeros(len(items), dtype=bool)
        mask[order] = True
        mask &= self.pairs.decided & np.isfinite(self.pairs.margin)
        return summarize(items[mask], CONFIDENCE) if mask.any() else None

    def pair_page(self, row: int, given: Mapping[str, str], annotator: str) -> str:
        asked = Query.read(given)
        order = self.pairs.order(asked, self.labelled())
        found = np.flatnonzero(order == row)
        at = int(found[0]) if len(found) else None
        near = (order[at - 1] if at else None, order[at + 1] if at is not None and at + 1 < len(order) else None)
        before, after = (None if one is None else int(one) for one in near)
        pair = whole_pair(self.pairs, row)
        prompt = int(self.candidates.prompt_of[self.pairs.items.chosen[row]])
        said = {"metadata": metadata(self.pairs, row), "labels": self.labels.on(pair.identity)}
        where = {"before": before, "after": after, "at": at, "total": len(order), "prompt": prompt, "candidates": int(self.candidates.sizes[prompt])}
        return self.html("pair.html", annotator=annotator, asked=asked, pair=pair, **said, **where)

    def heat_part(self, row: int) -> str:
        group = self.pairs.groups[self.pairs.items.group[row]]
        prompt, *sides = self.pairs.conversations(row)
        return self._heat([Exchange(prompt, side, group.template_args) for side in sides], ("chosen", "rejected"))

    def _heat(self, exchanges: list[Exchange], names: tuple[str, ...]) -> str:
        if self.model is None:
            raise DataError("a heat map asks the model: start with --model DIR")
        return self.html("heat.html", heat=heat_of(self.model, exchanges), names=names)

    # --- labelling ---

    def queue(self) -> Query:
        """What is labelled unless something else is asked for."""
        return Query(outcome="suspect", sort="disagreement") if self.pairs.suspect.any() else Query(sort="random")

    def task_page(self, given: Mapping[str, str], annotator: str, *, pair: str | None = None, notice: str = "") -> str:
        asked, blind = Query.read(given), given.get("blind") != "0"
        task = self._task(asked, annotator, pair)
        shown = None if task.row is None else whole_pair(self.pairs, task.row)
        seen = None if blind else 0
        where = {"address": asked.address("/label", blind=seen), "undo": asked.address("/undo", blind=seen)}
        rule = {"expected": self.pairs.disagreements, "confident": 1 - CONFIDENT} if asked.outcome == "suspect" else {"expected": None, "confident": None}
        return self.html("label.html", annotator=annotator, asked=asked, blind=blind, task=task, pair=shown, notice=notice, **where, **rule)

    def _task(self, asked: Query, annotator: str, pair: str | None) -> Task:
        order = self.pairs.order(asked, self.labelled())
        own = np.array([int(label.pair, 16) for label in self.labels.current if label.annotator == annotator], dtype=np.uint64)
        done = np.isin(self.pairs.ids[order], own)
        if pair is not None:
            row: int | None = self._row_of(pair)
        else:
            left = order[~done]
            row = int(left[0]) if len(left) else None
        identity = "" if row is None else self.pairs.identity(row)
        side, last = left_side(identity, annotator), self.labels.of(identity, annotator)
        return Task(row, side, int(done.sum()), len(order), choice_of(last.verdict, side) if last else None)

    def _row_of(self, pair: str) -> int:
        if pair not in self.rows:
            raise DataError(f"pair {pair!r:.40}: not in these data")
        return self.rows[pair]

    def label(self, given: Mapping[str, str], form: Mapping[str, str], annotator: str) -> str:
        """Write a decision down; the next task."""
        pair, blind = form.get("pair", ""), given.get("blind") != "0"
        row, left = self._row_of(pair), left_side(pair, annotator)
        location = str(self.pairs.groups[self.pairs.items.group[row]].metadata.get("location", ""))
        self.labels.add(Label(pair, annotator, now(), verdict_of(form.get("choice", ""), left), left, blind, location))
        return self.task_page(given, annotator)

    def undo(self, given: Mapping[str, str], annotator: str) -> str:
        """Take the last decision back; its pair again."""
        last = self.labels.undo(annotator)
        if last is None or last.pair not in self.rows:
            return self.task_page(given, annotator, notice="Nothing to undo." if last is None else "Undone: a pair of other data.")
        return self.task_page(given, annotator, pair=last.pair, notice="Undone. Decide again.")

    def labels_page(self, annotator: str) -> str:
        self.labels.refresh()
        current = self.labels.current
        against = self.labelled().against
        latest = sorted(current, key=lambda label: label.time, reverse=True)[:LABELS_SHOWN]
        recent = [(label, label.verdict in AGAINST and label.pair in self.rows and against[self.rows[label.pair]]) for label in latest]
        here = sum(label.pair in self.rows for label in current)
        summary = agreement.summarise(current, self.pairs)
        return self.html("labels.html", annotator=annotator, summary=summary, recent=recent, labels=len(current), here=here, exports=exports.EXPORTS)

    # --- figures ---

    def measures_page(self, annotator: str) -> str:
        ready = self.measures.is_made("rewards")
        report = self.measures.rewards() if ready else None
        missing = None if self.pairs.is_scored else "There are no rewards yet. Start with --model DIR, --items results.json or --scores scored.jsonl."
        return self.html("report.html", annotator=annotator, title="Measures", tab="measures", report=report, later="/measures/report", missing=missing)

    def compare_page(self, annotator: str) -> str:
        ready = self.measures.is_made("comparison")
        report = self.measures.comparison() if ready else None
        missing = None if self.pairs.other else "There is one model only. Start with --compare OTHER: a checkpoint, or the results.json of another evaluation."
        return self.html("report.html", annotator=annotator, title="Compare", tab="compare", report=report, later="/compare/report", missing=missing)

    def training_page(self, annotator: str) -> str:
        missing = None if self.measures.run else "No training run was named. Start with --run DIR, the folder of `palate train`."
        report = self.measures.training() if self.measures.run else None
        return self.html("report.html", annotator=annotator, title="Training", tab="training", report=report, later="", missing=missing)

    def report_part(self, name: str) -> str:
        report = {"measures": self.measures.rewards, "compare": self.measures.comparison}[name]()
        return self.html("report_part.html", report=report)

    # --- candidates ---

    def prompts_page(self, given: Mapping[str, str], annotator: str) -> str:
        shown = page(self.candidates.order(), PROMPTS, after=_row(given, "after"), before=_row(given, "before"))
        return self.html("prompts.html", annotator=annotator, page=shown, prompts=[self.candidates.prompt(int(code)) for code in shown.rows])

    def prompt_page(self, code: int, annotator: str) -> str:
        group = self.pairs.groups[self.candidates.group_of[self.candidates.rows[self.candidates.starts[code]]]]
        return self.html("prompt.html", annotator=annotator, code=code, turns=turns(group.prompt), candidates=self.candidates.of(code))

    # --- scoring ---

    def score_page(self, annotator: str) -> str:
        return self.html("score.html", annotator=annotator)

    def score(self, form: Mapping[str, str], annotator: str) -> str:
        """Rewards of one or two pasted responses, with what they are made of."""
        if self.model is None:
            raise DataError("there is no model to ask: start with --model DIR")
        exchanges = [exchange for side in ("a", "b") if (exchange := pasted(form.get("prompt", ""), form.get(side, "")))]
        if not exchanges:
            raise DataError("there is no response: paste one, or a whole conversation as a list of messages that ends with the assistant's")
        rewards = self.model.score(exchanges).tolist()
        odds = float(expit(rewards[0] - rewards[1])) if len(rewards) == 2 else None
        said = outcome(rewards[0] - rewards[1], decided=True) if len(rewards) == 2 else ""
        names = tuple("ab"[: len(exchanges)])
        heat = heat_of(self.model, exchanges) if all(np.isfinite(rewards)) else None
        return self.html("answer.html", annotator=annotator, rewards=rewards, odds=odds, said=said, names=names, heat=heat)

    # --- errors ---

    def problem_page(self, status: int, text: str) -> str:
        return self.html("problem.html", annotator=self.annotator, status=status, text=text)


def pasted(prompt: str, response: str) -> Exchange | None:
    """What somebody typed: texts, or a conversation as JSON messages. None where there is no response."""
    asked = _messages(prompt)
    if asked and not response.strip():
        return Exchange(asked[:-1], asked[-1:]) if asked[-1]["role"] == "assistant" else None
    if not response.strip():
        return None
    if asked:
        return Exchange(asked, ({"role": "assistant", "content": response},))
    return Exchange(prompt, response)


def _messages(text: str) -> tuple[Message, ...]:
    """A JSON list of messages; empty where the text is none."""
    if not text.lstrip().startswith("["):
        return ()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return ()
    valid = [isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in found]
    return tuple(found) if found and all(valid) else ()


def _row(given: Mapping[str, str], name: str) -> int | None:
    value = given.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 12 else None


# --- the application ------------------------------------------------------------------------------------------------------------------------------


def create_app(site: Site, *, hosts: tuple[str, ...] = LOOPBACK, key: str | None = None) -> Guard:
    """The site as an ASGI application behind its guard. `key`: see Guard."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, RedirectResponse, Response
    from starlette.routing import Route

    def who(request: Any) -> str:
        given = unquote(request.cookies.get("annotator", ""))
        return annotator_name(given) if given else site.annotator

    def page_of(make: Any) -> Any:
        def answer(request: Any) -> Response:
            return HTMLResponse(make(request), headers={"cache-control": "no-store"})

        return answer

    def within(request: Any, name: str, most: int) -> int:
        number = request.path_params[name]
        if number >= most:
            raise HTTPException(404, f"there are {most:,} of them, and no number {number:,}")
        return int(number)

    def pair(request: Any) -> str:
        return site.pair_page(within(request, "row", len(site.pairs)), request.query_params, who(request))

    def start_labelling(request: Any) -> Response:
        if not (set(request.query_params) - {"blind"}):
            blind = request.query_params.get("blind")
            return RedirectResponse(site.queue().address("/label", blind=blind), 303)
        return HTMLResponse(site.task_page(request.query_params, who(request), pair=request.query_params.get("pair")), headers={"cache-control": "no-store"})

    async def form_of(request: Any) -> dict[str, str]:
        async with request.form(max_files=0, max_fields=10) as form:
            return {name: value for name, value in form.items() if isinstance(value, str)}

    def written(make: Any) -> Any:
        async def answer(request: Any) -> Response:
            from starlette.concurrency import run_in_threadpool

            text = await run_in_threadpool(make, request, await form_of(request))
            return HTMLResponse(text, headers={"cache-control": "no-store"})

        return answer

    async def annotate_as(request: Any) -> Response:
        name = annotator_name((await form_of(request)).get("name", ""))
        answer = Response(status_code=204, headers={"hx-refresh": "true"})
        answer.set_cookie("annotator", quote(name), httponly=True, samesite="strict", max_age=365 * 24 * 3600)
        return answer

    def export(request: Any) -> Response:
        kind = exports.EXPORTS.get(request.path_params["kind"])
        if kind is None:
            raise HTTPException(404, f"labels are exported as {', '.join(exports.EXPORTS)}")
        site.labels.refresh()
        body = kind.write(site.pairs, site.labels.current).encode("utf-8", "backslashreplace")
        return Response(body, media_type=kind.media_type, headers={"content-disposition": f'attachment; filename="{kind.file}"', "cache-control": "no-store"})

    def static(request: Any) -> Response:
        found = site.static.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "there is no such file")
        return Response(found[0], media_type=found[1], headers={"cache-control": "private, max-age=86400"})

    def problem(request: Any, error: Any) -> Response:
        if isinstance(error, HTTPException):
            text = "There is no such page." if error.detail == "Not Found" else str(error.detail)
            return HTMLResponse(site.problem_page(error.status_code, text), error.status_code)
        status = 500 if isinstance(error, StorageError) else 400
        return HTMLResponse(site.problem_page(status, str(error)), status)

    def failure(request: Any, error: Any) -> Response:
        return HTMLResponse(site.problem_page(500, f"A mistake of the explorer itself ({type(error).__name__}); the terminal says more."), 500)

    routes = [
        Route("/", lambda request: RedirectResponse("/pairs", 303)),
        Route("/pairs", page_of(lambda request: site.pairs_page(request.query_params, who(request)))),
        Route("/pairs/{row:int}", page_of(pair)),
        Route("/pairs/{row:int}/heat", page_of(lambda request: site.heat_part(within(request, "row", len(site.pairs))))),
        Route("/label", start_labelling, methods=["GET"]),
        Route("/label", written(lambda request, form: site.label(request.query_params, form, who(request))), methods=["POST"]),
        Route("/undo", written(lambda request, form: site.undo(request.query_params, who(request))), methods=["POST"]),
        Route("/labels", page_of(lambda request: site.labels_page(who(request)))),
        Route("/labels/export/{kind}", export),
        Route("/measures", page_of(lambda request: site.measures_page(who(request)))),
        Route("/measures/report", page_of(lambda request: site.report_part("measures"))),
        Route("/compare", page_of(lambda request: site.compare_page(who(request)))),
        Route("/compare/report", page_of(lambda request: site.report_part("compare"))),
        Route("/training", page_of(lambda request: site.training_page(who(request)))),
        Route("/prompts", page_of(lambda request: site.prompts_page(request.query_params, who(request)))),
        Route("/prompts/{code:int}", page_of(lambda request: site.prompt_page(within(request, "code", len(site.candidates)), who(request)))),
        Route("/score", page_of(lambda request: site.score_page(who(request))), methods=["GET"]),
        Route("/score", written(lambda request, form: site.score(form, who(request))), methods=["POST"]),
        Route("/annotator", annotate_as, methods=["POST"]),
        Route("/static/{name}", static),
    ]
    handlers: Any = {PalateError: problem, HTTPException: problem, Exception: failure}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token=site.token, hosts=hosts, key=key)
