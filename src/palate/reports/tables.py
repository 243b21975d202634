"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

SUBSETS_SHOWN = 40


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def result_table(result: Mapping[str, Any], *, title: str) -> Table:
    """Accuracy with its interval, the length-only baseline beside it, calibration and counts."""
    confidence = f"{100 * result['confidence']:.0f} % interval"
    table = Table(title=title, title_justify="left", show_header=True)
    for heading, justify in (("measure", "left"), ("value", "right"), (confidence, "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    baseline = result["baselines"]["longer_wins"]
    calibration = result["calibration"]
    table.add_row("[bold]accuracy[/bold] (reward ties wrong)", f"[bold]{percent(result['accuracy'])}[/bold]", span(result["interval"]))
    table.add_row("accuracy (reward ties half)", percent(result["accuracy_ties_half"]), "")
    table.add_row("length alone (longer wins)", percent(baseline["accuracy"]), span(baseline["interval"]))
    table.add_row("comparisons / prompts", f"{result['n']} / {result['prompts']}", result["interval_method"])
    table.add_row("mean margin", f"{result['mean_margin']:.3f}", "")
    table.add_row("log loss (a coin: 0.693)", f"{result['log_loss']:.3f}", "")
    table.add_row("calibration error (ECE)", f"{calibration['ece']:.3f}", "")
    edge = " (edge)" if calibration["temperature_on_edge"] else ""
    table.add_row("best temperature", f"{calibration['temperature']:.2f}{edge}", f"ECE there {calibration['ece_at_temperature']:.3f}")
    table.add_row("swap check", "passed" if result["swap_check"]["passed"] else "[red]FAILED[/red]", "")
    for key, name in (("label_ties", "pairs labelled tied, left out"), ("unscored", "comparisons not scored")):
        if result[key]:
            table.add_row(name, str(result[key]), "")
    return table


def subset_table(result: Mapping[str, Any]) -> Table | None:
    if not result["subsets"]:
        return None
    table = Table(title="By subset", title_justify="left")
    for heading, justify in (("subset", "left"), ("n", "right"), ("accuracy", "right"), ("interval", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    rows = list(result["subsets"].items())
    for name, row in rows[:SUBSETS_SHOWN]:
        table.add_row(name, str(row["n"]), percent(row["accuracy"]), span(row["interval"]))
    if len(rows) > SUBSETS_SHOWN:
        table.add_row(f"... {len(rows) - SUBSETS_SHOWN} more in the results file", "", "", "")
    return table


def data_table(report: Mapping[str, Any], source: Mapping[str, Any]) -> Table:
    """`palate data check`: what was recognised, counts, lengths."""
    table = Table(title=f"{source['source']}: {source['layout']}", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    bad = ", ".join(f"{count} x {kind}" for kind, count in source["bad_rows"].items())
    table.add_row("rows", str(source["rows"]))
    table.add_row("rows that cannot be used", bad or "none")
    table.add_row("groups / different prompts", f"{report['groups']} / {report['prompts']}")
    table.add_row("responses per prompt", ", ".join(f"{k}: {n}" for k, n in report["responses_per_prompt"].items()))
    table.add_row("decided comparisons", str(report["comparisons"]))
    table.add_row("ties", str(report["ties"]))
    table.add_row("groups without a comparison", str(report["undecided"]))
    table.add_row("with a margin / as chat", f"{report['margins']} / {report['conversational']}")
    longer = report["longer_wins"]
    table.add_row("longer response wins", percent(longer) if longer is not None else "-")
    for kind, lengths in report["lengths"].items():
        table.add_row(f"characters of {kind} (median, 95 %, max)", f"{lengths['p50']:.0f}, {lengths['p95']:.0f}, {lengths['max']:.0f}")
    return table
