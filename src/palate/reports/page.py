"""Self-contained HTML pages: an evaluation, a comparison of models, a training run, an index of several results (no script, nothing from outside).

Everything that data can bring into a page goes through the template's escaping; pictures are SVG whose texts matplotlib has escaped. The pictures are
written as PNG and SVG beside the page too: in `figures/` for index.html, in `NAME-figures/` for NAME.html.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from palate.errors import DataError, StorageError
from palate.reports import curves, forests, plots
from palate.reports.comparison_sections import comparison_cards, comparison_lead, comparison_sections
from palate.reports.differences import left_out, marked_differences
from palate.reports.drawing import inline, save_all
from palate.reports.files import Items, compares, read_comparison, read_history, read_items, read_result
from palate.reports.index_sections import Entry, index_cards, index_sections, model_of
from palate.reports.result_sections import probe_pictures, result_cards, result_lead, result_sections, splits_of
from palate.reports.sections import Card, Section, facts
from palate.reports.training_sections import training_cards, training_lead, training_sections
from palate.reports.wording import clean, counted

LONG = 24  # rows of a table beyond which it is folded away


def write_page(
    results: Path,
    page: Path,
    *,
    title: str,
    log_history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """The page of one evaluation from `results.json` and, where they are there, the items beside it. `facts` go first under "How this was made"."""
    result = read_result(results)
    items = read_items(results)
    found = result_sections(result, items)
    if log_history:
        found.insert(-1, Section("training", "Training", ("Lines are smoothed, raw values faint; black dots are held-out data.",), pictures=("training",)))
    found[-1] = with_facts(found[-1], facts or {})
    return save_page(page, title, "Evaluation", result_lead(result), result_cards(result), found, result_pictures(result, items, log_history))


def write_comparison_page(comparison: Path, page: Path, *, title: str | None = None) -> Path:
    """The page of a comparison.json."""
    data = read_comparison(comparison)
    title = title or " and ".join(model["name"] for model in data["models"])
    pictures = {
        "models": forests.models(data),
        "differences": forests.differences(data),
        "side_by_side": forests.side_by_side(data),
        "flips": curves.flips(data),
    }
    return save_page(page, title, "Comparison", comparison_lead(data), comparison_cards(data), comparison_sections(data), pictures)


def write_training_page(state: Path, page: Path, *, title: str | None = None) -> Path:
    """The page of a training run, from its folder, its run.json, or the trainer_state.json of a checkpoint."""
    data, state = read_history(state), Path(state)
    title = title or f"Training of {state.parent.resolve().name if state.is_file() else state.resolve().name}"
    pictures = {"training": curves.training(data["log_history"])}
    return save_page(page, title, "Training", training_lead(data), training_cards(data), training_sections(data), pictures)


def write_index_page(results: Sequence[Path], page: Path, *, title: str | None = None, pages: Sequence[Path | None] = ()) -> Path:
    """One page over several results of one model: a card and a row for each, linked to its own page.

    `pages` names those, one a result (None where there is none); unset, a result's page is the NAME.html beside NAME.json.
    """
    if not results:
        raise DataError("an index page needs at least one results.json, got none")
    if pages and len(pages) != len(results):
        raise DataError(f"{len(pages)} pages for {len(results)} results; give one for each (None where there is none)")
    beside = pages or [found if (found := Path(path).with_suffix(".html")).is_file() else None for path in results]
    links = [_relative(path, page) if path else None for path in beside]
    entries = [Entry(Path(path), read_result(path), link) for path, link in zip(results, links, strict=True)]
    lead = f"{counted(len(entries), 'result')}."
    title = title or f"Results of {model_of(entries)}"
    return save_page(
        page, title, "Results", lead, index_cards(entries), index_sections(entries), {"results": forests.results([entry.row() for entry in entries])}
    )


def result_pictures(result: Mapping[str, Any], items: Items | None, log_history: Sequence[Mapping[str, Any]] = ()) -> dict[str, Figure | None]:
    """Every picture that the data allow, by name."""
    benchmark = result.get("benchmark") or {}
    pictures: dict[str, Figure | None] = {
        "scores": forests.scores(benchmark) if benchmark else None,
        "matrix": plots.matrix(benchmark["matrix"]) if benchmark.get("matrix") else None,
        "training": curves.training(log_history),
    }
    if not compares(result):
        return pictures
    listwise = result.get("listwise") or {}
    pictures |= {
        "reliability": plots.reliability(result["calibration"], result["confidence"]) if result["calibration"].get("reliability") else None,
        "subsets": forests.subsets(result),
        "bias": forests.bias(splits_of(result), result["accuracy"]),
        "listwise": forests.listwise(listwise["metrics"]) if listwise.get("metrics") else None,
        "best_of_n": plots.best_of_n(result["best_of_n"]) if result.get("best_of_n") else None,
    }
    probes = result.get("probes") or {}
    pictures |= {picture: forests.probe(probes[name], name) for name, picture in probe_pictures(probes).items()}
    if items is not None and len(items.chosen):
        pictures |= {name: draw(items) for name, draw in plots.OF_ITEMS.items()}
    return pictures


def with_facts(section: Section, given: Mapping[str, str]) -> Section:
    if not given:
        return section
    first = facts(given.items())
    return Section(section.key, section.title, section.text, (first._replace(rows=(*first.rows, *section.tables[0].rows)), *section.tables[1:]))


# --- writing --------------------------------------------------------------------------------------------------------------------------------------


def save_page(page: Path, title: str, kind: str, lead: str, cards: Sequence[Card], found: Sequence[Section], pictures: Mapping[str, Figure | None]) -> Path:
    """One HTML file with its pictures inside, which are also left in a folder beside it. Raises StorageError where it cannot be written."""
    page = Path(page)
    folder = page.parent / ("figures" if page.stem == "index" else f"{page.stem}-figures")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        figures = {name: inline(path) for name, path in save_all(pictures, folder).items()}
        html = _template().render(
            title=title,
            kind=kind,
            lead=lead,
            cards=cards,
            figures=figures,
            long=LONG,
            sections=[section for section in found if _shown(section, figures)],
        )
        page.write_text(clean(html), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{page}: the page cannot be written: {error}") from error
    return page


def _shown(section: Section, figures: Mapping[str, Any]) -> bool:
    """A section of pictures needs one of them; others stand on what they say."""
    if section.tables or section.pairs or section.findings or section.parts:
        return True
    return any(name in figures for name in section.pictures)


def _template() -> Any:
    environment = Environment(loader=PackageLoader("palate.reports"), autoescape=select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"marked_differences": marked_differences, "left_out": left_out}
    return environment.get_template("page.html")


def _relative(target: Path, page: Path) -> str:
    return quote(Path(os.path.relpath(target, Path(page).parent)).as_posix())
