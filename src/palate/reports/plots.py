"""Pictures of an evaluation and of a training run, as matplotlib figures.

One palette, colour-blind safe (Okabe and Ito 2008): blue for chosen and for the model, orange for rejected and for baselines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "figure.dpi": 110,
    "svg.fonttype": "none",
}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def rewards(items: Sequence[Mapping[str, Any]]) -> Figure:
    """Distributions of the rewards of chosen and rejected responses."""
    scored = [item for item in items if item["margin"] is not None and item["label"] != "tie"]
    figure, axes = _figure(5.2, 3.2)
    values = [[item[f"reward_{side}"] for item in scored] for side in ("chosen", "rejected")]
    low, high = min(map(min, values)), max(map(max, values))
    for side, colour, data in (("rejected", ORANGE, values[1]), ("chosen", BLUE, values[0])):
        axes.hist(data, bins=30, range=(low, high), alpha=0.6, color=colour, label=side)
    axes.set(xlabel="reward", ylabel="comparisons", title="Rewards of the two sides")
    axes.legend(frameon=False)
    return figure


def margins(items: Sequence[Mapping[str, Any]]) -> Figure:
    """Reward of chosen minus rejected; everything right of zero is ranked as labelled."""
    data = [item["margin"] for item in items if item["margin"] is not None and item["label"] != "tie"]
    figure, axes = _figure(5.2, 3.2)
    width = (max(data) - min(data)) / 30 or 1.0
    edges = [width * k for k in range(math.floor(min(data) / width), math.ceil(max(data) / width) + 1)]  # zero is an edge: no bin holds both kinds
    _, _, patches = axes.hist(data, bins=edges if len(edges) > 1 else 1)
    for left, patch in zip(edges, patches, strict=False):  # type: ignore[arg-type]
        patch.set_facecolor(BLUE if left >= -width / 2 else ORANGE)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel="reward of chosen minus rejected", ylabel="comparisons", title="Margins")
    return figure


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """How often the preferred side is right, against how sure the model is; the diagonal is perfect."""
    figure, axes = _figure(5.2, 3.2)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    curves = [("reliability", BLUE, "as it is"), ("reliability_at_temperature", ORANGE, f"at temperature {calibration['temperature']:.2f}")]
    for key, colour, label in curves:
        table = calibration[key]
        axes.plot([b["confidence"] for b in table], [b["accuracy"] for b in table], color=colour, linewidth=1.2, label=label)
        axes.scatter([b["confidence"] for b in table], [b["accuracy"] for b in table], s=[8 + b["size"] / 2 for b in table], color=colour, alpha=0.7)
    axes.set(xlabel="stated probability", ylabel="share right", title="Reliability", xlim=(0.49, 1.01), ylim=(0, 1.05))
    axes.legend(frameon=False, loc="lower right")
    return figure


def subsets(result: Mapping[str, Any]) -> Figure | None:
    """Accuracy of each subset with its interval, against the whole (dashed) and chance."""
    table = result["subsets"]
    if not table:
        return None
    figure, axes = _figure(5.2, 0.8 + 0.28 * len(table))
    names = sorted(table, key=lambda name: table[name]["accuracy"])
    for y, name in enumerate(names):
        row = table[name]
        axes.plot(row["interval"], [y, y], color=BLUE, linewidth=1.5)
        axes.scatter([row["accuracy"]], [y], color=BLUE, zorder=3)
    axes.axvline(result["accuracy"], color=BLUE, linestyle="--", linewidth=1)
    axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="accuracy", title=f"By subset ({result['confidence']:.0%} intervals)", xlim=(0, 1.02))
    axes.set_yticks(range(len(names)), [f"{name} ({table[name]['n']})" for name in names])
    return figure


def length(items: Sequence[Mapping[str, Any]]) -> Figure:
    """Does the margin follow the difference in length? A cloud without slope says no."""
    scored = [item for item in items if item["margin"] is not None and item["label"] != "tie"]
    figure, axes = _figure(5.2, 3.2)
    x = [item["length_chosen"] - item["length_rejected"] for item in scored]
    axes.scatter(x, [item["margin"] for item in scored], s=8, alpha=0.5, color=BLUE)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xlabel="characters of chosen minus rejected", ylabel="margin", title="Margin and length")
    return figure


def training(log_history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss and accuracy over the steps of a run."""
    rows = [row for row in log_history if "loss" in row and "accuracy" in row]
    if len(rows) < 2:
        return None
    figure, axes = _figure(5.2, 3.2)
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["loss"] for row in rows], color=ORANGE, label="loss")
    axes.plot(steps, [row["accuracy"] for row in rows], color=BLUE, label="accuracy")
    held_out = [row for row in log_history if "eval_accuracy" in row]
    if held_out:
        axes.plot([row["step"] for row in held_out], [row["eval_accuracy"] for row in held_out], "o-", color="black", markersize=4, label="held-out accuracy")
    axes.set(xlabel="step", title="Training", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def speed(result: Mapping[str, Any]) -> Figure:
    """How many times longer each contender takes than the first, batch by batch (dots) and in the median (bars)."""
    contenders = result["contenders"]
    figure, axes = _figure(5.2, 0.9 + 0.5 * len(contenders))
    names = list(contenders)[::-1]
    own = next(iter(contenders))
    for place, name in enumerate(names):
        figures = contenders[name]
        axes.barh(place, figures["ratio"], color=BLUE if name == own else ORANGE, height=0.6)
        axes.plot(figures["ratios"], [place] * len(figures["ratios"]), ".", color="black", markersize=4)
        axes.annotate(f"{figures['ratio']:.2f}x", (max(figures["ratios"]), place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), ["palate" if name == "auto" else name for name in names])
    axes.set(xlabel="time for the same batch, in palate's", title="Training" if result["kind"] == "train" else "Scoring")
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)


def save_figures(
    directory: Path, result: Mapping[str, Any], items: Sequence[Mapping[str, Any]], log_history: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Path]:
    """Write every picture that the data allow as PNG and SVG. Returns name -> SVG path."""
    figures = {
        "training": training(log_history),
        "rewards": rewards(items),
        "margins": margins(items),
        "reliability": reliability(result["calibration"]),
        "subsets": subsets(result),
        "length": length(items),
    }
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        figure.savefig(directory / f"{name}.png")
        paths[name] = directory / f"{name}.svg"
        figure.savefig(paths[name])
        plt.close(figure)
    return paths
