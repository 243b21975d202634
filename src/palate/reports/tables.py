"""Results as tables for the terminal: an evaluation, its subsets, a benchmark's scores, a comparison of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from palate.reports.result_sections import score_unit
from palate.reports.wording import clean, count, in_unit, number, p_value, percent, points, points_span, shortened, span, span_in_unit

__all__ = ["benchmark_table", "comparison_subset_table", "comparison_table", "flip_table", "percent", "result_table", "span", "subset_table"]

SUBSETS_SHOWN = 40
TEXT_SHOWN = 200  # characters of a text in a cell


def result_table(result: Mapping[str, Any], *, title: str) -> Table:
    """Accuracy with its interval, the length-only baseline beside it, calibration and counts."""
    table = _table(title, ("measure", "value", f"{100 * result['confidence']:.0f} % interval"), words=1)
    baseline, calibration = result["baselines"]["longer_wins"], result["calibration"]
    table.add_row("[bold]accuracy[/bold] (equal rewards wrong)", f"[bold]{percent(result['accuracy'])}[/bold]", span(result["interval"]))
    table.add_row("accuracy (equal rewards half)", percent(result["accuracy_ties_half"]), "")
    table.add_row("length alone (longer wins)", percent(baseline["accuracy"]), span(baseline["interval"]))
    for key, name in (("longer_chosen", "where the chosen response is longer"), ("shorter_chosen", "where it is shorter")):
        if part := (result.get("length") or {}).get(key):
            table.add_row(f"accuracy {name} ({count(part['n'])})", percent(part["accuracy"]), span(part["interval"]))
    table.add_row("comparisons / prompts", f"{count(result['n'])} / {count(result['prompts'])}", result["interval_method"])
    table.add_row("mean margin", number(result["mean_margin"]), "")
    table.add_row("log loss (a coin: 0.693)", number(result["log_loss"]), "")
    table.add_row("calibration error (ECE)", number(calibration["ece"]), "")
    edge = " (edge)" if calibration["temperature_on_edge"] else ""
    table.add_row("best temperature", f"{number(calibration['temperature'], 2)}{edge}", f"ECE there {number(calibration['ece_at_temperature'])}")
    for name, row in ((result.get("listwise") or {}).get("metrics") or {}).items():
        low, high = row.get("interval") or (None, None)
        table.add_row(f"{name.replace('_', ' ')} ({count(row['n'])} rankings)", number(row["value"]), f"{number(low)} to {number(high)}")
    table.add_row("swap check", "passed" if result["swap_check"]["passed"] else "[red]FAILED[/red]", "")
    for key, name in (("label_ties", "pairs labelled tied, left out"), ("unscored", "comparisons not scored")):
        if result[key]:
            table.add_row(name, count(result[key]), "")
    return table


def subset_table(result: Mapping[str, Any]) -> Table | None:
    if not result["subsets"]:
        return None
    table = _table("By subset", ("subset", "n", "accuracy", "interval"), words=1)
    rows = list(result["subsets"].items())
    for name, row in rows[:SUBSETS_SHOWN]:
        table.add_row(escape(clean(name)), count(row["n"]), percent(row["accuracy"]), span(row["interval"]))
    return _more(table, len(rows) - SUBSETS_SHOWN, "results file")


def heads_table(heads: Mapping[str, Any]) -> Table:
    """How often each output alone is right."""
    table = _table("By output", ("output", "n", "accuracy", "interval"), words=1)
    for name, row in heads.items():
        table.add_row(escape(clean(name)), count(row["n"]), percent(row["accuracy"]), span(row["interval"]))
    return table


def benchmark_table(benchmark: Mapping[str, Any], *, title: str, confidence: float) -> Table:
    """The scores of a benchmark as its authors define them, the primary one bold."""
    table = _table(title, ("score", "value", f"{100 * confidence:.0f} % interval", "n"), words=1)
    for name, row in benchmark["scores"].items():
        unit = score_unit(name, row)
        shown, value = escape(clean(name)), in_unit(row["value"], unit)
        if name == benchmark["primary"]:
            shown, value = f"[bold]{shown}[/bold]", f"[bold]{value}[/bold]"
        table.add_row(shown, value, span_in_unit(row.get("interval"), unit), count(row.get("n")))
    if benchmark.get("note"):
        table.caption, table.caption_justify = escape(clean(benchmark["note"])), "left"
    return table


# --- several models -------------------------------------------------------------------------------------------------------------------------------


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Each model, then each pair: difference in points (the first minus the second), interval and p."""
    title = f"{count(comparison['n'])} comparisons that all have"
    table = _table(title, ("model", "accuracy", f"{100 * comparison['confidence']:.0f} % interval", "p", "p, Holm"), words=1)
    for model in comparison["models"]:
        table.add_row(escape(clean(model["name"])), percent(model["accuracy"]), span(model["interval"]), "", "")
    table.add_section()
    for pair in comparison["pairs"]:
        name = escape(clean(f"{pair['b']} minus {pair['a']}"))
        p = pair.get("p_bootstrap", pair.get("p_mcnemar"))
        table.add_row(name, f"{points(pair['difference'])} points", points_span(pair.get("interval")), p_value(p), p_value(pair.get("p_holm")))
    return table


def comparison_subset_table(comparison: Mapping[str, Any]) -> Table | None:
    """Accuracy of each model in each subset; a star where two differ, Holm-corrected, below 0.05."""
    if not comparison.get("subsets"):
        return None
    names = [model["name"] for model in comparison["models"]]
    table = _table("By subset (*: Holm-corrected p < 0.05)", ("subset", "n", *names, ""), words=1)
    for subset, row in list(comparison["subsets"].items())[:SUBSETS_SHOWN]:
        star = "*" if any((pair.get("p_holm") or 1.0) < 0.05 for pair in row.get("pairs") or ()) else ""
        cells = [percent(row["models"][name]["accuracy"]) if name in row["models"] else "" for name in names]
        table.add_row(escape(clean(subset)), count(row["n"]), *cells, star)
    return _more(table, len(comparison["subsets"]) - SUBSETS_SHOWN, "comparison file")


def flip_table(comparison: Mapping[str, Any], number_of_each: int) -> Table | None:
    """The first comparisons of each pair of models that only one of the two ranks as labelled."""
    seen: dict[tuple[str, str], int] = {}
    table = _table("Where the models part", ("only right", "margins", "prompt", "labelled better", "labelled worse"), words=5)
    table.show_lines = True
    for flip in comparison.get("flips") or ():
        pair = (flip["a"], flip["b"])
        seen[pair] = seen.get(pair, 0) + 1
        if seen[pair] <= number_of_each:
            margins = f"{flip['a']} {number(flip['margin_a'], 2)}, {flip['b']} {number(flip['margin_b'], 2)}"
            texts = [shortened(flip[key], TEXT_SHOWN) for key in ("prompt", "chosen", "rejected")]
            table.add_row(*(escape(clean(cell)) for cell in (flip[flip["right"]], margins, *texts)))
    return table if table.row_count else None


# --- making them ----------------------------------------------------------------------------------------------------------------------------------


def _table(title: str, headings: Sequence[str], *, words: int) -> Table:
    """The first `words` columns hold words, the others numbers. Names out of data are never read as markup."""
    table = Table(title=escape(clean(title)), title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(escape(clean(heading)), justify="left" if i < words else "right", overflow="fold")
    return table


def _more(table: Table, left: int, where: str) -> Table:
    if left > 0:
        table.add_row(f"... {left} more in the {where}")
    return table


def probe_table(probe: Mapping[str, Any]) -> Table:
    """One probe: each of its rows with its interval."""
    table = Table(title=f"{probe['title']}: {probe['summary']}", title_justify="left")
    for heading, justify in (("what", "left"), ("value", "right"), ("interval", "right"), ("n", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in probe["rows"]:
        if row["value"] is None:
            table.add_row(row["name"], "-", "", str(row["n"]))
            continue
        share = row["unit"] == "share"
        value = percent(row["value"]) if share else f"{row['value']:+.2f} {row['unit']}"
        low, high = row["interval"] or (None, None)
        shown = "" if low is None else span((low, high)) if share else f"{low:+.2f} to {high:+.2f}"
        table.add_row(row["name"], value, shown, str(row["n"]))
    return table
