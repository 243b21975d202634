"""A results file as sections: what was measured, each in words and tables, in the order of a page. A field that is not there has no section."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from palate.reports.files import Items, compares
from palate.reports.findings import findings
from palate.reports.forests import Split
from palate.reports.sections import Card, Section, Side, Table, TextPair, facts, plain, recorded, table
from palate.reports.wording import (
    NOTHING,
    count,
    counted,
    duration,
    file_name,
    heading,
    in_unit,
    missing,
    number,
    number_span,
    percent,
    points,
    points_span,
    short_number,
    span,
    span_in_unit,
)

NOT_SHARES = ("kappa", "tau", "correlation", "pearson", "spearman")
"""Words in the name of a score that is no share."""

MODEL_NAMES = {"decoder": "reads left to right", "chat_template_sha256": "chat template (SHA-256)", "contract_sha256": "contract (SHA-256)"}
MODEL_NAMES |= {"trained_on": "trained on (fingerprint)", "name": "model"}


def result_cards(result: Mapping[str, Any]) -> list[Card]:
    """The headline: what a reader must know, and what to compare it with."""
    confidence = f"{100 * result.get('confidence', 0.95):.0f} % interval"
    benchmark = result.get("benchmark")
    cards = [_benchmark_card(benchmark, confidence)] if benchmark else []
    if not compares(result):
        return cards
    baseline, calibration = result["baselines"]["longer_wins"], result["calibration"]
    at = f"{number(calibration['ece_at_temperature'])} at temperature {number(calibration['temperature'], 2)}"
    return [
        *cards,
        Card(percent(result["accuracy"]), "accuracy over comparisons" if benchmark else "accuracy", f"{confidence} {span(result['interval'])}"),
        Card(percent(baseline["accuracy"]), "if the longer response always won", f"{confidence} {span(baseline['interval'])}", "baseline"),
        Card(number(result.get("log_loss")), "log loss", "0.693 is a coin"),
        Card(number(calibration["ece"]), "calibration error (ECE)", at),
    ]


def _benchmark_card(benchmark: Mapping[str, Any], confidence: str) -> Card:
    row = benchmark["scores"][benchmark["primary"]]
    unit = score_unit(benchmark["primary"], row)
    note = f"{confidence} {span_in_unit(row['interval'], unit)}" if row.get("interval") else ""
    return Card(in_unit(row["value"], unit), f"{benchmark.get('title') or benchmark['name']}: {benchmark['primary']}", note)


def result_lead(result: Mapping[str, Any]) -> str:
    if not compares(result):
        items = result["benchmark"].get("items")
        return f"{counted(items, 'item')} of recorded scores." if items else "Recorded scores."
    return f"{counted(result['n'], 'comparison')} over {counted(result.get('prompts') or 0, 'prompt')}."


def result_sections(result: Mapping[str, Any], items: Items | None = None) -> list[Section]:
    """Every section that the result has something for. `items`: the worst of them are shown, and pictures drawn, where they are given."""
    if not compares(result):
        return [section for section in (benchmark_section(result), _made(result)) if section]
    scores = (_standing_out, _measured, benchmark_section, _rewards, _subsets, _heads)
    looks = (_length, _style, _calibration, _listwise, _best_of_n, _ties, _probes, _noise)
    found = [section for make in (*scores, *looks) if (section := make(result))]
    if items is not None and items.worst:
        found.append(disagreements(result, items))
    return [*found, _made(result)]


def _standing_out(result: Mapping[str, Any]) -> Section | None:
    sentences = findings(result)
    return Section("findings", "What stands out", findings=tuple(sentences)) if sentences else None


def _measured(result: Mapping[str, Any]) -> Section:
    rewards = result.get("rewards") or {}
    spread = f"{number(rewards['mean'])} and {number(rewards['std'])}; from {number(rewards['min'])} to {number(rewards['max'])}" if rewards else None
    data = {key: value for key, value in (result.get("data") or {}).items() if key != "fingerprint"}
    counts = [
        ("comparisons with a decided label, scored", count(result["n"])),
        ("prompts (clusters of the intervals)", plain(result.get("prompts"))),
        ("labelled as ties, left out", plain(result.get("label_ties"))),
        ("could not be scored", plain(result.get("unscored"))),
        ("equal rewards", plain(result.get("reward_ties"))),
        *recorded(data),
    ]
    figures = [
        ("accuracy, equal rewards wrong", f"{percent(result['accuracy'])} ({span(result['interval'])}; {result.get('interval_method')})"),
        ("accuracy, equal rewards half right", percent(result.get("accuracy_ties_half"))),
        ("log loss", number(result.get("log_loss"))),
        ("mean margin (chosen minus rejected)", number(result.get("mean_margin"))),
        ("mean and standard deviation of rewards", spread),
    ]
    return Section("measured", "What was measured", tables=(facts(counts), facts(figures)))


# --- benchmark and pictures -----------------------------------------------------------------------------------------------------------------------


def score_unit(name: str, row: Mapping[str, Any]) -> str | None:
    """Whether a score is a share: by its own word, its name, its value."""
    if row.get("unit"):
        return str(row["unit"])
    no_share = missing(row["value"]) or not 0 <= row["value"] <= 1 or any(word in name.lower() for word in NOT_SHARES)
    return None if no_share else "share"


def benchmark_section(result: Mapping[str, Any]) -> Section | None:
    benchmark = result.get("benchmark")
    if not benchmark:
        return None
    rows = []
    for name, row in benchmark["scores"].items():
        unit = score_unit(name, row)
        shown = f"{name} (primary)" if name == benchmark["primary"] else name
        rows.append((shown, in_unit(row["value"], unit), span_in_unit(row.get("interval"), unit), count(row.get("n"))))
    tables = [table(("score", "value", "interval", "n"), rows)]
    if benchmark.get("matrix"):
        tables.append(matrix_table(benchmark["matrix"]))
    source = f"Source: {benchmark['source']}." if benchmark.get("source") else ""
    sentences = tuple(text for text in (benchmark.get("note") or "", source) if text)
    return Section("benchmark", benchmark.get("title") or benchmark["name"], sentences, tuple(tables), ("scores", "matrix"))


def matrix_table(matrix: Mapping[str, Any]) -> Table:
    values = [value for row in matrix["values"] for value in row if not missing(value)]
    shares = all(0 <= value <= 1 for value in values)
    show = percent if shares else short_number
    rows = [(name, *(show(value) for value in row)) for name, row in zip(matrix["rows"], matrix["values"], strict=True)]
    return table(("", *matrix["columns"]), rows, caption=matrix.get("title") or "")


def _rewards(result: Mapping[str, Any]) -> Section:
    return Section("rewards", "Rewards and margins", pictures=("rewards", "margins"))


def _subsets(result: Mapping[str, Any]) -> Section | None:
    subsets = result.get("subsets")
    if not subsets:
        return None
    rows = [
        (name, count(row["n"]), percent(row["accuracy"]), span(row["interval"]), plain(row.get("reward_ties") or None), number(row.get("mean_margin"), 2))
        for name, row in subsets.items()
    ]
    headings = ("subset", "n", "accuracy", "interval", "equal rewards", "mean margin")
    return Section("subsets", "By subset", tables=(table(headings, rows),), pictures=("subsets",))


def _heads(result: Mapping[str, Any]) -> Section | None:
    heads = result.get("heads")
    if not heads:
        return None
    rows = [(name, count(row["n"]), percent(row["accuracy"]), span(row["interval"])) for name, row in heads.items()]
    text = ("How often each output alone ranks the two responses as labelled; where less of it is better, below a half.",)
    return Section("heads", "By output", text=text, tables=(table(("output", "n", "accuracy", "interval"), rows),))


# --- length and style -----------------------------------------------------------------------------------------------------------------------------


def splits_of(result: Mapping[str, Any]) -> list[Split]:
    """Accuracy where the chosen side is longer and where it is shorter, and the same for every feature of style."""
    splits = []
    length = result.get("length") or {}
    if length.get("longer_chosen") and length.get("shorter_chosen"):
        splits.append(Split("length", length["longer_chosen"], length["shorter_chosen"]))
    for feature, row in (result.get("style") or {}).items():
        if row.get("chosen_more") and row.get("chosen_less"):
            splits.append(Split(feature, row["chosen_more"], row["chosen_less"]))
    return splits


def _length(result: Mapping[str, Any]) -> Section | None:
    length = result.get("length")
    if not length:
        return None
    baseline = result["baselines"]["longer_wins"]
    rows: list[tuple[str, str, str, str]] = [
        (name, count(part.get("n")), percent(part["accuracy"]), span(part["interval"]))
        for key, name in (("longer_chosen", "accuracy where the chosen response is longer"), ("shorter_chosen", "accuracy where it is shorter"))
        if (part := length.get(key))
    ]
    rows.append(("if the longer response always won", NOTHING, percent(baseline["accuracy"]), span(baseline["interval"])))
    if calibrated := length.get("calibrated"):
        method = f" ({calibrated['method']})" if calibrated.get("method") else ""
        rows.append((f"accuracy with length taken out{method}", count(calibrated.get("n")), percent(calibrated["accuracy"]), span(calibrated["interval"])))
    more = facts(
        (
            ("pairs of equal length", plain(length.get("equal"))),
            ("correlation of reward and length within a prompt", number(length.get("within_prompt_correlation"))),
            ("the same, given the label", number(length.get("partial_correlation"))),
        )
    )
    return Section("length", "Length", tables=(table(("", "n", "accuracy", "interval"), rows), more), pictures=("length", "reward_length"))


def _style(result: Mapping[str, Any]) -> Section | None:
    style = result.get("style")
    if not style:
        return None
    rows = []
    for feature, row in style.items():
        more, less = row.get("chosen_more") or {}, row.get("chosen_less") or {}
        excess = points(row.get("model_minus_labels"))
        between = points_span(row.get("model_minus_labels_interval"))
        rows.append(
            (
                feature,
                count(row.get("n")),
                percent(row.get("chosen_has_more")),
                percent(row.get("model_prefers_more")),
                f"{excess} ({between})" if between != NOTHING else excess,
                _with_span(more),
                _with_span(less),
            )
        )
    headings = ("feature", "n", "chosen has more", "model prefers more", "difference, points", "accuracy, chosen has more", "accuracy, chosen has less")
    text = "Comparisons whose two sides differ in the feature: what the labels prefer, what the model prefers, and whether it is right either way."
    return Section("style", "Style", (text,), (table(headings, rows),), ("bias",))


def _with_span(part: Mapping[str, Any]) -> str:
    if missing(part.get("accuracy")):
        return NOTHING
    between = span(part.get("interval"))
    return percent(part["accuracy"]) + (f" ({between})" if between != NOTHING else "")


# --- calibration ----------------------------------------------------------------------------------------------------------------------------------


def _calibration(result: Mapping[str, Any]) -> Section | None:
    calibration = result.get("calibration")
    if not calibration:
        return None
    platt = calibration.get("platt") or {}
    temperature = f"at temperature {number(calibration['temperature'], 3)}" + (" (edge of the search)" if calibration.get("temperature_on_edge") else "")
    rows = [
        (name, number(log_loss), number(calibration[f"ece{key}"]), number(calibration.get(f"brier{key}")))
        for name, key, log_loss in (
            ("as it is", "", result.get("log_loss")),
            (temperature, "_at_temperature", calibration.get("log_loss_at_temperature")),
        )
    ]
    if platt:
        rows.append((f"Platt: sigmoid({number(platt['slope'])} d{_offset(platt['intercept'])})", number(platt.get("log_loss")), NOTHING, NOTHING))
    curve = [(f"{100 * b['confidence']:.1f} %", percent(b["accuracy"]), count(b["size"])) for b in calibration.get("reliability") or ()]
    tables = [table(("sigmoid of the difference d of rewards", "log loss", "calibration error", "Brier score"), rows)]
    if curve:
        tables.append(table(("stated probability", "share right", "comparisons"), curve, caption="Reliability, as it is"))
    text = "Is sigmoid(reward of chosen minus reward of rejected) the probability that the label agrees? Bars in the picture are Wilson intervals of each bin."
    return Section("calibration", "Calibration", (text,), tuple(tables), ("reliability",))


def _offset(intercept: float) -> str:
    """Of a fit that sees every pair in both orders it is nothing."""
    return f" {intercept:+.3f}" if abs(intercept) >= 0.0005 else ""


# --- lists ----------------------------------------------------------------------------------------------------------------------------------------


def _listwise(result: Mapping[str, Any]) -> Section | None:
    listwise = result.get("listwise")
    if not listwise or not listwise.get("metrics"):
        return None
    rows = [(heading(name), number(row["value"]), number_span(row.get("interval")), count(row.get("n"))) for name, row in listwise["metrics"].items()]
    lists = f"{counted(listwise['lists'], 'list')} of at least three responses, " if listwise.get("lists") else ""
    text = f"Means over {lists}{counted(listwise['prompts'], 'prompt')}."
    return Section("listwise", "Rankings of K responses", (text,), (table(("metric", "mean", "interval", "n"), rows),), ("listwise",))


def _best_of_n(result: Mapping[str, Any]) -> Section | None:
    curve = result.get("best_of_n")
    if not curve:
        return None
    low, high, oracle, kl = (curve.get(key) or [None] * len(curve["n"]) for key in ("low", "high", "oracle", "kl"))
    rows = [(count(n), number(curve["expected"][i]), number_span((low[i], high[i])), number(oracle[i]), number(kl[i], 2)) for i, n in enumerate(curve["n"])]
    picked = f" A random pick is worth {number(curve['random'])}." if not missing(curve.get("random")) else ""
    left = f" {counted(curve['left_out'], 'shorter list')} left out." if curve.get("left_out") else ""
    text = f"{counted(curve['prompts'], 'prompt')}; gold score: {curve.get('gold') or 'not named'}.{picked}{left}"
    return Section("best_of_n", "Best of n", (text,), (table(("n", "picked by the model", "interval", "best there is", "KL, at most"), rows),), ("best_of_n",))


def _ties(result: Mapping[str, Any]) -> Section | None:
    ties = result.get("ties")
    if not ties:
        return None
    classes, strict = ties.get("three_class") or {}, ties.get("strict") or {}
    rows = [
        (name, _with_span(row), *(number(row.get(key)) for key in ("precision", "recall", "f1")))
        for name, row in (("near rewards are a tie", classes), ("only equal rewards are a tie", strict))
        if row
    ]
    tables = [table(("three classes", "accuracy", "precision", "recall", "F1"), rows)] if rows else []
    kept = {"threshold on the difference of rewards": classes.get("threshold"), "comparisons": classes.get("n"), "labelled ties": ties.get("label_ties")}
    tables.append(facts((name, plain(value)) for name, value in kept.items()))
    if classes.get("confusion") and classes.get("labels"):
        cells = [(f"label: {name}", *(count(value) for value in row)) for name, row in zip(classes["labels"], classes["confusion"], strict=True)]
        tables.append(table(("", *(f"model: {name}" for name in classes["labels"])), cells, caption="Labels against decisions"))
    text = (f"Policy: {ties['policy']}.",) if ties.get("policy") else ()
    return Section("ties", "Ties", text, tuple(one for one in tables if one.rows))


# --- probes and noise -----------------------------------------------------------------------------------------------------------------------------


def probe_pictures(probes: Mapping[str, Any]) -> dict[str, str]:
    """The name of each probe's picture."""
    return {name: f"probe-{i}-{file_name(name)}" for i, name in enumerate(probes, 1)}


def _probes(result: Mapping[str, Any]) -> Section | None:
    probes = result.get("probes")
    if not probes:
        return None
    pictures = probe_pictures(probes)
    text = "Each probe changes or picks something on purpose and looks at what the reward does. sd: standard deviations of the rewards of this data."
    return Section("probes", "Probes", (text,), parts=tuple(_probe(name, probe, pictures[name]) for name, probe in probes.items()))


def _probe(name: str, probe: Mapping[str, Any], picture: str) -> Section:
    title = probe.get("title") or heading(name)
    rows = table(("row", "value", "interval", "n", "not scored"), [_probe_row(row) for row in probe["rows"]])
    pairs = tuple(pair for example in probe.get("examples") or () if (pair := _edit_pair(example)))
    text = tuple(text for text in (probe.get("summary"), probe.get("note")) if text)
    return Section(name, title, text, (rows,), (picture,), pairs, unfolded=0)


def _probe_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    unit = row.get("unit")
    return row["name"], in_unit(row["value"], unit), span_in_unit(row.get("interval"), unit), count(row.get("n")), plain(row.get("unscored") or None)


def _edit_pair(example: Mapping[str, Any]) -> TextPair | None:
    if "original" not in example or "edited" not in example:
        return None
    sides = (
        Side("before", number(example.get("reward"), 2), str(example["original"])),
        Side("after", number(example.get("reward_edited"), 2), str(example["edited"])),
    )
    return TextPair(f"Example: {example.get('edit') or 'an edit'}", (), str(example.get("prompt", "")), sides)


def _noise(result: Mapping[str, Any]) -> Section | None:
    noise = result.get("noise")
    if not noise:
        return None
    rows = (
        ("confident disagreements with the label", plain(noise.get("confident_disagreements"))),
        ("expected of a calibrated model", number(noise.get("expected"), 1)),
        ("counted where P(label) is below", percent(noise.get("threshold"))),
        ("estimated share of wrong labels", percent(noise.get("rate"))),
        ("its interval", span(noise.get("interval"))),
    )
    return Section(
        "noise", "Label noise", ("More confident disagreements than expected point to wrong labels, or to a blind spot of the model.",), (facts(rows),)
    )


# --- items and origin -----------------------------------------------------------------------------------------------------------------------------


def disagreements(result: Mapping[str, Any], items: Items) -> Section:
    """The comparisons on which the model is surest against the label."""
    temperature = 1.0 if result["calibration"].get("temperature_on_edge") else result["calibration"]["temperature"]
    pairs = []
    for item in items.worst:
        agrees = 1 / (1 + math.exp(min(700.0, -item["margin"] / temperature)))
        named = [str(item[key]) for key in ("subset", "domain", "category") if item.get(key)][:1]
        title = str(item.get("id") or item.get("location") or "comparison")
        sides = (
            Side("labelled better", number(item["reward_chosen"], 2), item["chosen"], item.get("length_chosen")),
            Side("labelled worse", number(item["reward_rejected"], 2), item["rejected"], item.get("length_rejected")),
        )
        told = (*named, f"margin {number(item['margin'], 2)}", f"P(label) {percent(agrees)}")
        pairs.append(TextPair(title, told, item["prompt"], sides))
    text = "Where the model is surest against the label: its own errors, or the label's. P(label): at the best temperature."
    return Section("disagreements", "Most confident disagreements", (text,), pairs=tuple(pairs))


def _made(result: Mapping[str, Any]) -> Section:
    check, cost = result.get("swap_check"), result.get("cost") or {}
    swap = None
    if check:
        word = "passed" if check["passed"] else "FAILED"
        swap = f"{word}: accuracy with exchanged labels {number(check['accuracy_swapped'], 4)}, expected {number(check['expected'], 4)}"
    seconds = {"scoring_seconds": "time of scoring", "statistics_seconds": "time of statistics"}
    rows = [
        *recorded(result.get("model"), MODEL_NAMES),
        ("data fingerprint", plain((result.get("data") or {}).get("fingerprint"))),
        ("swap check", swap),
        ("recorded scores", plain(result.get("scores"))),
        *((seconds[key], duration(value)) if key in seconds else (heading(key), plain(value)) for key, value in cost.items()),
        ("versions", plain(result.get("versions"))),
    ]
    return Section("made", "How this was made", tables=(facts(rows),))
