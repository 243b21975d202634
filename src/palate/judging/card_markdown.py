"""The card of a built data set as Markdown with the metadata that the Hub reads; what is not among its figures has no line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))
"""The Hub's size categories (https://github.com/huggingface/hub-docs/blob/main/datasetcard.md)."""

TAGS = ["preference", "reward-model", "rlhf", "synthetic", "palate"]
SHOWN = 300  # characters of a fact in a table
BAR = 30  # characters of the longest bar

HOW = {"pairwise": "compared in both orders", "list": "ranked in lists", "rating": "rated one by one"}
STRENGTHS = {
    "pairwise": "Strengths are a Bradley-Terry fit of the prompt's verdicts.",
    "log-odds": "Strengths are fitted to the judge's log-odds, averaged over both orders; one such mean errs by {deviation:.2f} logits (standard deviation).",
    "list": "Strengths are a Bradley-Terry fit of the pairs of every ranking.",
    "rating": "Strengths are ratings: {span:g} logits for the whole scale.",
}
OUTCOMES = {
    "pairwise": {"agreed": "both orders for the same response", "contradiction": "each order for another response", "one tie": "a tie in one order"},
    "list": {"agreed": "the same response ahead both ways round", "contradiction": "another response ahead each way round", "one tie": "a tie one way round"},
    "rating": {"agreed": "different ratings", "both tie": "equal ratings", "one invalid": "one without a rating", "both invalid": "both without a rating"},
}
CANARIES = {
    "told_apart": "a response against itself, not called a tie",
    "first_position": "a response against itself, decided for the one shown first",
    "mistaken": "a response against its shuffled copy, not decided for the intact one",
}
_SPECIAL = re.compile(r"([\\`*_\[\]|#<>])")


def card_markdown(card: Mapping[str, Any], *, name: str, file: str) -> str:
    """The card's text. `card`: what `build` gives, with `calls`, `cost_per_row`, `canaries` and `left_out_before` where they are known; `file`: its rows."""
    style, provenance = card.get("style", "pairwise"), card["provenance"]
    most = max((one["count"] for one in card["margin_histogram"]), default=1)
    known: dict[str, Any] = {"left_out_before": {}, "calls": {}, "cost_per_row": None, "canaries": None, "ratings": None, "lists": None}
    body = (
        _environment()
        .get_template("dataset_card.md")
        .render(
            name=name,
            file=file,
            card={**known, **card},
            provenance={"judge": "a judge without a name", **provenance},
            how=HOW[style],
            outcomes=OUTCOMES[style],
            canaries=CANARIES,
            strengths=_strengths(card, style),
            judge=_judge(provenance, card["settings"]),
            fingerprints=_fingerprints(card),
            bar=lambda count: "█" * math.ceil(BAR * count / most),
        )
    )
    return f"---\n{yaml.safe_dump(metadata(card['rows'], name, file), sort_keys=False, allow_unicode=True)}---\n\n{body.rstrip()}\n"


def metadata(rows: int, name: str, file: str) -> dict[str, Any]:
    """What the Hub reads. No licence and no language: none is recorded."""
    size = next((words for limit, words in SIZES if rows < limit), "100M<n<1B")
    data_files = [{"split": "train", "path": file}]
    return {
        "pretty_name": name,
        "size_categories": [size],
        "task_categories": ["text-generation"],
        "tags": TAGS,
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def _strengths(card: Mapping[str, Any], style: str) -> str:
    deviation = card.get("reading_deviation")
    kind = "log-odds" if style == "pairwise" and deviation is not None else style
    return STRENGTHS[kind].format(deviation=deviation, span=card["settings"]["rating_span"])


def _judge(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the judge and of the rows, each as one line; what is empty is left out."""
    words = {key.replace("_", " "): value for key, value in provenance.items() if key not in ("capabilities", "sampling")}
    sampling = {key: value for key, value in (provenance.get("sampling") or {}).items() if value not in (None, ())}
    notes = (provenance.get("capabilities") or {}).get("notes", ())
    facts = {**words, **sampling, "the endpoint": "; ".join(notes), **{f"build: {key.replace('_', ' ')}": value for key, value in settings.items()}}
    return {key: value for key, value in facts.items() if value not in (None, "", [], {}, ())}


def _fingerprints(card: Mapping[str, Any]) -> dict[str, Any]:
    found = {"rows": card["fingerprint"], "prompts": card["prompts_hash"], "templates": card["provenance"].get("template_hash"), "palate": card["palate"]}
    return {key: value for key, value in found.items() if value}


# --- how a fact is written -------------------------------------------------------------------------------------------------------------------------


def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("palate.judging"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # Markdown
    environment.filters |= {"text": _text, "count": lambda number: f"{number:,}", "percent": _percent, "span": _span, "spans": _spans}
    return environment


def _text(value: Any) -> str:
    """On one line, with Markdown's own characters escaped."""
    said = " ".join((value if isinstance(value, str) else str(value)).split())
    return _SPECIAL.sub(r"\\\1", said if len(said) <= SHOWN else f"{said[:SHOWN]}...")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(interval: Sequence[float] | None, form: str) -> str:
    return "" if not interval or any(map(math.isnan, interval)) else f" ({form % interval[0]} to {form % interval[1]})"


def _spans(interval: Sequence[float]) -> str:
    return f" ({_percent(interval[0])} to {_percent(interval[1])})"
