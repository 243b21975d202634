"""Figures and pictures of the whole set, by the evaluation and the reports: computed once, when somebody first looks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from palate.errors import DataError
from palate.evaluation.comparison import compare_results
from palate.evaluation.evaluator import figures
from palate.evaluation.items import Items as Compared
from palate.explorer.figures import DRAWING, svg
from palate.explorer.pairs import Pairs
from palate.reports import curves, forests
from palate.reports.comparison_sections import comparison_cards, comparison_lead, comparison_sections
from palate.reports.files import Items, read_history
from palate.reports.page import result_pictures
from palate.reports.result_sections import result_cards, result_lead, result_sections
from palate.reports.sections import Card, Section, facts
from palate.reports.training_sections import training_cards, training_lead, training_sections
from palate.reports.wording import count, number
from palate.stats.ranking import kendall_tau_b, spearman

LEFT_OUT = ("measured", "made")
"""Sections of a report that a page beside the data does not need."""


class Report(NamedTuple):
    """What a page of figures shows."""

    lead: str
    cards: list[Card]
    sections: list[Section]
    figures: dict[str, Markup]


class Measures:
    """The reports of a session, each made at first use."""

    def __init__(self, pairs: Pairs, run: Path | None = None):
        self.pairs = pairs
        self.run = run
        self._made: dict[str, Report] = {}
        self._lock = threading.Lock()

    def is_quick(self, name: str) -> bool:
        """Whether the report is there, or is made at once."""
        return name == "training" or name in self._made

    def report(self, name: str) -> Report:
        """`measures` or `compare`, kept once made, or `training`, read anew each time: the run may be going on."""
        if name == "training":
            return self._training()
        with self._lock:
            if name not in self._made:
                self._made[name] = self._rewards() if name == "measures" else self._comparison()
            return self._made[name]

    def _training(self) -> Report:
        assert self.run is not None
        state = read_history(self.run)
        figures = _drawn({"training": lambda: curves.training(state["log_history"])})
        return Report(training_lead(state), training_cards(state), training_sections(state), figures)

    def _rewards(self) -> Report:
        if not (self.pairs.decided & np.isfinite(self.pairs.margin)).any():
            raise DataError("no comparison has both a label and two rewards, so there is nothing to measure")
        result = asdict(figures(self.pairs.items))
        with DRAWING:
            drawn = {name: svg(picture, name) for name, picture in result_pictures(result, columns(self.pairs.items)).items() if picture is not None}
        sections = [section for section in result_sections(result) if section.key not in LEFT_OUT]
        return Report(result_lead(result), result_cards(result), sections, drawn)

    def _comparison(self) -> Report:
        other = self.pairs.other
        if other is None:
            raise DataError("there is one model only, so nothing to compare; start with --compare OTHER")
        with tempfile.TemporaryDirectory() as folder:
            # the comparison reads saved items, so that its figures are those of `palate compare`
            paths = [Path(folder) / f"{name}.items.jsonl" for name in ("first", "second")]
            for path, items in zip(paths, (self.pairs.items, other), strict=True):
                with path.open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, default=str) + "\n" for line in items.lines())
            found = compare_results(paths, names=different_names(self.pairs.model, self.pairs.other_model))
        figures = _drawn(
            {
                "models": lambda: forests.models(found),
                "differences": lambda: forests.differences(found),
                "side_by_side": lambda: forests.side_by_side(found),
                "flips": lambda: curves.flips(found),
            }
        )
        sections = [section for section in comparison_sections(found) if section.key not in LEFT_OUT]
        agreement = next(i for i, section in enumerate(sections) if section.key == "agreement")
        sections.insert(agreement + 1, _ranks(self.pairs.items, other))
        return Report(comparison_lead(found), comparison_cards(found), sections, figures)


def _ranks(a: Compared, b: Compared) -> Section:
    """Do both models put responses, and margins, in the same order?"""
    rewards, margins = (_both(x, y) for x, y in ((a.scored.rewards, b.scored.rewards), (a.margin, b.margin)))
    rows = []
    for name, (x, y) in (("rewards", rewards), ("margins", margins)):
        rows += [(f"{name}, Spearman", number(spearman(x, y))), (f"{name}, Kendall tau-b", number(kendall_tau_b(x, y))), (f"{name}, n", count(len(x)))]
    text = "1: the same order, 0: none in common. Rewards are over all responses, margins over pairs."
    return Section("ranks", "Rank correlation", (text,), (facts(rows),))


def _both(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def different_names(a: str, b: str) -> Sequence[str]:
    """Names of two models that a reader can tell apart: their last parts, unless those are the same."""
    last = [Path(name).name or name for name in (a, b)]
    names = last if last[0] != last[1] else [a, b]
    return names if names[0] != names[1] else [f"{name} ({i})" for i, name in enumerate(names, 1)]


def columns(items: Compared) -> Items:
    """Decided, scored comparisons as the columns that pictures are drawn from."""
    used = items[~items.is_tie & items.is_scored]
    rewards, lengths = used.scored.rewards, used.scored.lengths
    return Items(rewards[used.chosen], rewards[used.rejected], lengths[used.chosen].astype(float), lengths[used.rejected].astype(float))


def _drawn(makers: Mapping[str, Callable[[], Figure | None]]) -> dict[str, Markup]:
    with DRAWING:
        return {name: svg(figure, name) for name, make in makers.items() if (figure := make()) is not None}
