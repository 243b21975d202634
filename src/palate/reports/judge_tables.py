"""Tables of the judging commands: a judge's audit, and the data card of what was built with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def _share(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if not found:
        return "-", ""
    span = found["interval"]
    return f"{100 * found['value']:.1f} %", f"{100 * span[0]:.1f} to {100 * span[1]:.1f}" if span else ""


def audit_table(figures: Mapping[str, Any], *, title: str, confidence: float) -> Table:
    """What a judge is worth: right verdicts, what both orders keep, where it leans, what it failed to say."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("measure", "left"), ("value", "right"), (f"{100 * confidence:g} % interval", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_row("accuracy, mean of both orders", *_share(figures["accuracy"]))
    table.add_row("kept: both orders agree and decide", *_share(figures["kept"]))
    table.add_row("accuracy of what is kept", *_share(figures["kept_accuracy"]))
    low, high = figures["kappa"]["interval"] or (float("nan"), float("nan"))
    table.add_row("kappa with the labels (first order)", f"{figures['kappa']['value']:.3f}", f"{low:.3f} to {high:.3f}")
    table.add_row("contradictions between the orders", str(figures["contradictions"]), "")
    table.add_row("of these for the first position", *_share(figures["first_position"]))
    if length := figures.get("length"):
        table.add_row("verdicts for the longer response", *_share(length["prefers_longer"]))
        table.add_row("labels for the longer response", f"{100 * length['labels_prefer_longer']:.1f} %", "")
    if calibration := figures.get("calibration"):
        table.add_row("log loss of its probabilities (a coin: 0.693)", f"{calibration['log_loss']:.3f}", f"ECE {calibration['ece']:.3f}")
    if own := figures.get("self_preference"):
        table.add_row(f"{own['writer']} wins by the judge", *_share(own["by_judge"]))
        table.add_row(f"{own['writer']} wins by the labels", f"{100 * own['by_labels']:.1f} %", "")
    if canaries := figures.get("canaries"):
        names = {
            "told_apart": "a response told apart from itself",
            "first_position": "of these for the first position",
            "mistaken": "worse than a shuffled copy",
        }
        for key, name in names.items():
            table.add_row(f"canaries: {name}", *_share(canaries[key]))
    _panel_rows(table, figures.get("panel"))
    table.add_row("tied verdicts", str(figures["ties"]), "")
    table.add_row("invalid verdicts", str(figures["invalid"]), ", ".join(f"{reason} {count}" for reason, count in list(figures["reasons"].items())[:3]))
    return table


def _panel_rows(table: Table, panel: Mapping[str, Any] | None) -> None:
    """What the members of a jury or a cascade did, each with its cost."""
    if not panel:
        return
    for member, calls in zip(panel["members"], panel["calls"], strict=True):
        accuracy = f"{100 * member['accuracy']:.1f} %" if "accuracy" in member else "-"
        cost = "" if calls is None else f"{calls['requests']} calls" + ("" if calls["cost"] is None else f", cost {calls['cost']:.4f}")
        table.add_row(f"{panel['mode']}: {member['name']}", accuracy, cost)
    if panel["mode"] == "jury":
        for one in panel["agreement"]:
            same, kappa = (None if one["same"] is None else f"{100 * one['same']:.1f} %"), one["kappa"]
            table.add_row(f"agreement of {' and '.join(one['of'])}", same or "-", "" if kappa is None else f"kappa {kappa:.3f}")
        table.add_row("independent votes by weight (Kish)", f"{panel['by_weight']:.2f}", "")
        if panel["effective_votes"] is not None:
            table.add_row("independent votes by correlation of errors", f"{panel['effective_votes']:.2f}", "")
        return
    stage: Mapping[str, Any] | None = panel["cascade"]
    for member in panel["members"][1:]:
        if stage is not None:
            share = stage["share_passed_on"]
            table.add_row(f"pairs passed on to {member['name']}", "-" if share is None else f"{100 * share:.1f} %", f"{stage['passed_on']} of {stage['pairs']}")
            stage = stage.get("then")


def card_table(card: Mapping[str, Any], *, title: str) -> Table:
    """What was built, and what was not kept."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("[bold]rows[/bold]", f"[bold]{card['rows']}[/bold]")
    table.add_row("prompts with rows / prompts", f"{card['prompts_with_rows']} / {card['prompts']}")
    table.add_row("judged pairs", str(card["judged_pairs"]))
    if card["inferred_rows"]:
        table.add_row("rows by the strengths alone, their pair was not judged", str(card["inferred_rows"]))
    for reason, count in card["outcomes"].items():
        table.add_row(f"  {reason}", str(count))
    for reason, count in card["left_out"].items():
        table.add_row(f"left out: {reason}", str(count))
    if card["margins"]:
        table.add_row("margins (5, 50, 95 %)", ", ".join(f"{card['margins'][q]:.2f}" for q in ("p5", "p50", "p95")))
    if card["longer_chosen"] is not None:
        table.add_row("longer response chosen", f"{100 * card['longer_chosen']:.1f} %")
    if position := card["position"]:
        interval = position["interval"]
        table.add_row(
            "worth of the first position (logits)", f"{position['gamma']:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")
        )
    for source, strength in sorted(card["source_strengths"].items(), key=lambda item: -item[1]):
        table.add_row(f"strength of {source}", f"{strength:+.2f}")
    return table


def responses_table(report: Mapping[str, Any], *, title: str) -> Table:
    """What each source wrote: answers, responses kept, and how different those to one prompt are."""
    table = Table(title=title, title_justify="left")
    for heading in ("source", "answers", "kept", "distinct 1", "distinct 2", "similarity", "identical"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    diversity = report["diversity"]
    for name, figures in (*diversity["sources"].items(), ("all", diversity["overall"])):
        kept = report["responses"] if name == "all" and name not in report["by_source"] else report["by_source"].get(name, 0)
        numbers = [figures[key] for key in ("distinct_1", "distinct_2", "mean_jaccard", "identical")]
        table.add_row(name, str(figures["answers"]), str(kept), *("-" if number is None else f"{number:.2f}" for number in numbers))
    left = ", ".join(f"{reason} {sum(own.values())}" for reason, own in report["left_out"].items()) or "none"
    table.caption = f"{report['rows']} prompts with responses; left out: {left}"
    return table


def replay_table(rows: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Recorded judgments by judge and subset: what both orders keep, and how right that is."""
    figures = ("n", "kept", "accuracy_of_kept", "accuracy_of_both_orders", "outcomes")
    names = [name for name in rows[0] if name not in figures]
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for heading in ("n", "kept", "right of kept", "right, both orders", "contradictions", "ties", "invalid"):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = [f"{100 * row[key]:.1f} %" if row[key] == row[key] else "-" for key in ("kept", "accuracy_of_kept", "accuracy_of_both_orders")]
        outcomes = row["outcomes"]
        ties, invalid = (sum(outcomes.get(f"{how} {what}", 0) for how in ("one", "both")) for what in ("tie", "invalid"))
        counts = (str(count) for count in (outcomes.get("contradiction", 0), ties, invalid))
        table.add_row(*(str(row[name]) for name in names), str(row["n"]), *shares, *counts)
    return table
