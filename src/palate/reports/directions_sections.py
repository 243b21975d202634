"""The directions of a decomposition as sections: how much each holds, what it goes with, and the pairs that lie furthest along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palate.reports.directions_tables import clear, signed
from palate.reports.drawing import BLUE, FAINT, INK, MARKERS, SERIES, as_percent, legend, names_on, new_axes, picture
from palate.reports.sections import Card, Section, Side, TextPair, facts, plain, table
from palate.reports.wording import count, counted, missing, number, number_span, p_value, percent, shortened, span

PICTURED = 12  # directions in a forest
OTHERS = 4  # attributes in that of correlations, beside length


def directions_cards(record: Mapping[str, Any]) -> list[Card]:
    first = record["directions"][0]
    return [
        Card(percent(record["explained"]), f"of the variance lies along {counted(len(record['directions']), 'direction')}", f"of {count(record['width'])}"),
        Card(percent(first["explained"]), f"along the first, {first['name']}", f"alone it is right on {percent(first['accuracy']['value'])}"),
        Card(percent(record["original_in_directions"]), "of the model's own head lies in their span", "squared cosine"),
    ]


def directions_lead(record: Mapping[str, Any]) -> str:
    left = f", {counted(record['left_out'], 'comparison')} left out" if record.get("left_out") else ""
    return f"{counted(record['pairs'], 'comparison')} over {counted(record['prompts'], 'prompt')}{left}; differences are chosen minus rejected."


def directions_sections(record: Mapping[str, Any]) -> list[Section]:
    return [_variance(record), _goes_with(record), *_agreement(record), *_pairs(record), _made(record)]


def directions_pictures(record: Mapping[str, Any]) -> dict[str, Figure | None]:
    return {"variance": variance(record), "goes_with": goes_with(record), "agreement": disputed(record)}


def _variance(record: Mapping[str, Any]) -> Section:
    rows = [
        (
            row["name"],
            percent(row["explained"]),
            percent(total),
            percent(row["accuracy"]["value"]),
            span(row["accuracy"]["interval"]),
            signed(row["cosine_with_original"]),
        )
        for row, total in zip(record["directions"], _running(record), strict=True)
    ]
    headings = ("direction", "variance", "so far", "accuracy alone", "interval", "cosine with the head")
    about = "their mean" if record["centred"] else "0"
    text = (
        f"Principal components of chosen minus rejected, by decreasing variance about {about}. Accuracy is that of the direction as a reward, on the same "
        "comparisons: no held-out figure."
    )
    return Section("variance", "Variance", (text,), (table(headings, rows),), ("variance",))


def _running(record: Mapping[str, Any]) -> list[float]:
    total, found = 0.0, []
    for row in record["directions"]:
        total += row["explained"]
        found.append(total)
    return found


def _goes_with(record: Mapping[str, Any]) -> Section:
    names = list(record["directions"][0]["attributes"])
    rows = [(row["name"], _correlation(row["length"]), *(_correlation(row["attributes"][name]) for name in names)) for row in record["directions"]]
    text = (
        "Correlation of a pair's difference along the direction with its difference in length (characters) and in rated attributes; in brackets where its "
        "interval holds 0. Intervals take prompts as the independent units. A direction's sign is the one that the mean preference has."
    )
    return Section("goes_with", "What directions go with", (text,), (table(("direction", "length", *names), rows),), ("goes_with",))


def _correlation(found: Mapping[str, Any]) -> str:
    value = signed(found["value"])
    return value if missing(found["value"]) or clear(found) else f"({value})"


def _agreement(record: Mapping[str, Any]) -> list[Section]:
    found = record.get("agreement")
    if not found:
        return []
    rows = [
        (
            row["name"],
            number(row["spread"], 2),
            number_span(row["spread_interval"], 2),
            number(row["mean"], 2),
            number_span(row["mean_interval"], 2),
            percent(row["same_sign"]),
            p_value(row["p_value"]),
        )
        for row in found["directions"]
    ]
    text = (
        f"How far each {found['by']} goes along a direction with what they prefer, in units of the spread of all pairs: the standard deviation between them "
        "beyond their noise, and what they share. The most disputed direction stands first; p is that of no difference between those who judged one prompt."
    )
    headings = ("direction", "spread", "interval", "shared", "interval", "on the shared side", "p")
    return [Section("agreement", "Where annotators differ", (text,), (table(headings, rows),), ("agreement",))]


def _pairs(record: Mapping[str, Any]) -> list[Section]:
    shown = [row for row in record["directions"] if row["examples"]]
    if not shown:
        return []
    parts = tuple(
        Section(
            f"pairs_{row['name']}",
            row["name"],
            (f"{percent(row['explained'])} of the variance.",),
            pairs=tuple(_pair(row, one) for one in row["examples"]),
            unfolded=1,
        )
        for row in shown
    )
    text = "Two pairs of each direction that lie furthest apart along it, whichever response was preferred."
    return [Section("pairs", "Pairs furthest apart", (text,), parts=parts)]


def _pair(row: Mapping[str, Any], one: Mapping[str, Any]) -> TextPair:
    told = "the response with more was preferred" if one["preferred"] else "the response with less was preferred"
    sides = (Side(f"more {row['name']}", "", one["more"], one["length_more"]), Side(f"less {row['name']}", "", one["less"], one["length_less"]))
    return TextPair(f"distance {number(one['distance'], 2)}", (told,), one["prompt"], sides)


def _made(record: Mapping[str, Any]) -> Section:
    rows = [(name, plain(record.get(key))) for key, name in (("model", "model"), ("data", "data"), ("weights", "weight of a pair"), ("centred", "centred"))]
    return Section("made", "How this was made", tables=(facts(rows),))


# --- pictures -------------------------------------------------------------------------------------------------------------------------------------


@picture
def variance(record: Mapping[str, Any]) -> Figure:
    """Share of the variance along each direction, and so far."""
    figure, axes = new_axes("Variance along the directions")
    places = range(1, len(record["directions"]) + 1)
    axes.bar(places, [row["explained"] for row in record["directions"]], color=BLUE, alpha=0.75, width=0.8, label="along each")
    axes.plot(places, _running(record), color=INK, linewidth=1.3, label="so far")
    as_percent(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="direction", ylabel="variance (%)", xlim=(0.3, len(record["directions"]) + 0.7))
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


@picture
def goes_with(record: Mapping[str, Any]) -> Figure:
    """Correlations of the first directions with length and the attributes that go most with any of them, with intervals."""
    rows = record["directions"][:PICTURED]
    strength = {name: max(abs(row["attributes"][name]["value"] or 0.0) for row in rows) for name in rows[0]["attributes"]}
    shown = [name for name in sorted(strength, key=lambda name: -strength[name]) if strength[name]][:OTHERS]
    series = [("length", [row["length"] for row in rows]), *((name, [row["attributes"][name] for row in rows]) for name in shown)]
    return _forest("What directions go with", "correlation", [row["name"] for row in rows], series)


@picture
def disputed(record: Mapping[str, Any]) -> Figure | None:
    """How much annotators differ along the most disputed directions, beside what they share, with intervals."""
    if not record.get("agreement"):
        return None
    rows = record["agreement"]["directions"][:PICTURED]
    series = [
        (label, [{"value": row[key], "interval": row[f"{key}_interval"]} for row in rows])
        for label, key in (("spread between them", "spread"), ("shared", "mean"))
    ]
    return _forest("Where annotators differ", "spread of all pairs along the direction = 1", [row["name"] for row in rows], series)


def _forest(title: str, unit: str, names: Sequence[str], series: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """A row a name; in it a value and its interval of every series."""
    figure, axes = new_axes(title, 0.95 + max(0.26, 0.1 + 0.08 * len(series)) * len(names))
    for i, (label, values) in enumerate(series):
        for y, found in enumerate(values):
            if missing(found["value"]):
                continue
            at = y + (i - (len(series) - 1) / 2) * 0.6 / len(series)
            if not any(missing(end) for end in found["interval"]):
                axes.plot(found["interval"], [at, at], color=SERIES[i], linewidth=1.1, zorder=2)
            axes.plot([found["value"]], [at], marker=MARKERS[i], linestyle="", markersize=4.5, color=SERIES[i], zorder=3)
        axes.plot([], [], marker=MARKERS[i], linestyle="", markersize=4.5, color=SERIES[i], label=shortened(label, 24))
    axes.axvline(0, color=FAINT, linewidth=1)
    names_on(axes.yaxis, range(len(names)), names)
    axes.set(xlabel=unit, ylim=(len(names) - 0.4, -0.6))
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    legend(axes)
    return figure
