"""What each page of the explorer shows, and the two writes there are (a label, its undoing).

Pages are whole HTML; htmx only puts the part of an answer that changed into the page that is there, so that everything but labelling works without a script.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from palate.errors import DataError
from palate.evaluation.evaluator import CONFIDENT, summarize
from palate.explorer import agreement, query
from palate.explorer.assets import templates
from palate.explorer.candidates import Candidates
from palate.explorer.exports import EXPORTS, Export
from palate.explorer.heat import LEVELS, heat_of
from palate.explorer.labels import Label, LabelFile, annotator_name, choice_of, left_side, now, verdict_of
from palate.explorer.measures import Measures, different_names
from palate.explorer.pairs import Labelled, Pairs, page
from palate.explorer.pasted import pasted
from palate.explorer.query import Query
from palate.explorer.rewards import Model
from palate.explorer.shown import excerpt, metadata, turns, whole_pair
from palate.reports import wording
from palate.reports.page import LONG
from palate.types import Exchange

ROWS = 20  # pairs of a page
PROMPTS = 40
LABELS_SHOWN = 100
AGAINST = ("rejected", "both_bad")
"""Verdicts that contradict a label of the data; a tie of the data is contradicted by none."""

MISSING = {
    "measures": "There are no rewards yet. Start with `--model DIR`, `--items results.json` or `--scores scored.jsonl`.",
    "compare": "There is one model only. Start with `--compare OTHER`: a checkpoint, or the `results.json` of another evaluation.",
    "training": "No training run was named. Start with `--run DIR`, the folder of `palate train`.",
}
"""What a page of figures says where it has none to show."""


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
        self._templates = templates(site=self, wording=wording, query=query, long=LONG, levels=LEVELS, headers=json.dumps({"X-Palate-Token": self.token}))

    def labelled(self) -> Labelled:
        """What the label file says of each row, by now."""
        self.labels.refresh()
        version, current = self.labels.version, self.labels.current  # in this order: a label that comes between them is not taken for known
        if self._labelled.version != version:
            decided, against = (
                np.array([int(label.pair, 16) for label in current if wanted(label)], dtype=np.uint64)
                for wanted in (lambda label: label.decides, lambda label: label.verdict in AGAINST)
            )
            self._labelled = Labelled(version, np.isin(self.pairs.ids, decided), np.isin(self.pairs.ids, against) & self.pairs.decided)
        return self._labelled

    @property
    def sort_choices(self) -> list[tuple[str, str]]:
        """Orders that these data have."""
        without = {"file"} | (set() if self.pairs.other else {"models"}) | (set() if self.pairs.subset else {"subset"})
        without |= set() if self.pairs.is_scored else {"disagreement", "confidence", "uncertain"}
        return [(key, title) for key, title in query.SORTS.items() if key not in without]

    @property
    def finding_choices(self) -> list[tuple[str, str]]:
        return [(name, f"{name} ({wording.count(int(rows.sum()))})") for name, rows in self.pairs.flags.items()]

    @property
    def flip_choices(self) -> list[tuple[str, str]]:
        names = different_names(self.pairs.model, self.pairs.other_model)
        return [(key, title.format(*names)) for key, title in query.FLIPS.items()]

    def html(self, template: str, **given: Any) -> str:
        return wording.clean(self._templates.get_template(template).render(**given))

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
        return summarize(items[mask], agreement.CONFIDENCE) if mask.any() else None

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
        if self.model is None:
            raise DataError("a heat map asks the model: start with --model DIR")
        group = self.pairs.groups[self.pairs.items.group[row]]
        prompt, *sides = self.pairs.conversations(row)
        heat = heat_of(self.model, [Exchange(prompt, side, group.template_args) for side in sides])
        return self.html("heat.html", heat=heat, names=("chosen", "rejected"))

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
        if pair not in self.pairs.rows:
            raise DataError(f"pair {pair!r:.40}: not in these data; were others loaded since? Open the queue again")
        return self.pairs.rows[pair]

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
        if last is None or last.pair not in self.pairs.rows:
            return self.task_page(given, annotator, notice="Nothing to undo." if last is None else "Undone: a pair of other data.")
        return self.task_page(given, annotator, pair=last.pair, notice="Undone. Decide again.")

    def labels_page(self, annotator: str) -> str:
        against = self.labelled().against
        current = self.labels.current
        latest = sorted(current, key=lambda label: label.time)[::-1][:LABELS_SHOWN]
        recent = [(label, label.verdict in AGAINST and label.pair in self.pairs.rows and against[self.pairs.rows[label.pair]]) for label in latest]
        here = sum(label.pair in self.pairs.rows for label in current)
        summary = agreement.summarise(current, self.pairs)
        return self.html("labels.html", annotator=annotator, summary=summary, recent=recent, labels=len(current), here=here, exports=EXPORTS)

    def export(self, kind: Export) -> str:
        self.labels.refresh()
        return kind.write(self.pairs, self.labels.current)

    # --- figures ---

    def report_page(self, tab: str, annotator: str) -> str:
        """Measures, comparison or training. A report that takes seconds is asked for by its page, once that is there."""
        given = {"measures": self.pairs.is_scored, "compare": self.pairs.other is not None, "training": self.measures.run is not None}[tab]
        report = self.measures.report(tab) if given and self.measures.is_quick(tab) else None
        return self.html("report.html", annotator=annotator, tab=tab, report=report, missing=None if given else MISSING[tab])

    def report_part(self, tab: str) -> str:
        return self.html("report_part.html", report=self.measures.report(tab))

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

    def score(self, form: Mapping[str, str]) -> str:
        """Rewards of one or two pasted responses, with what they are made of."""
        if self.model is None:
            raise DataError("there is no model to ask: start with --model DIR")
        exchanges = pasted(form.get("prompt", ""), {"A": form.get("a", ""), "B": form.get("b", "")})
        rewards = self.model.score([*exchanges.values()]).tolist()
        odds = float(expit(rewards[0] - rewards[1])) if len(rewards) == 2 else None
        heat = heat_of(self.model, [*exchanges.values()]) if all(np.isfinite(rewards)) else None
        return self.html("answer.html", rewards=rewards, odds=odds, names=[*exchanges], heat=heat)

    # --- errors ---

    def problem_page(self, status: int, text: str) -> str:
        return self.html("problem.html", annotator=self.annotator, status=status, text=text)


def _row(given: Mapping[str, str], name: str) -> int | None:
    value = given.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 12 else None
