"""The page and Markdown of a decomposition: sections where their figures are, nothing that a text could run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.reports.test_page import EVIL, Parsed

from palate.errors import DataError
from palate.reports.directions_page import directions_markdown, write_directions_page
from palate.reports.directions_tables import agreement_table, directions_table, strongest


def correlation(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "interval": [low, high], "n": 9}


def direction(name: str, explained: float, examples: int = 0, **attributes: dict[str, Any]) -> dict[str, Any]:
    example = {"distance": 2.5, "preferred": False, "prompt": EVIL, "more": f"more {EVIL}", "less": "less", "length_more": 4000, "length_less": 4}
    return {
        "name": name,
        "explained": explained,
        "accuracy": {"value": 0.625, "interval": [0.5, 0.75]},
        "cosine_with_original": -0.25,
        "length": correlation(0.5, 0.4, 0.6),
        "attributes": attributes,
        "examples": [example] * examples,
    }


def record(**more: Any) -> dict[str, Any]:
    tastes = {"wit": correlation(-0.4, -0.6, -0.2), EVIL: correlation(0.1, -0.1, 0.3), "none": correlation(None)}
    directions = [direction("pc01", 0.5, 2, **tastes), *(direction(f"pc{k:02d}", 0.01, **tastes) for k in range(2, 15))]
    base = {"model": EVIL, "data": "prefs.jsonl", "weights": "balanced", "pairs": 1234, "left_out": 3, "prompts": 99, "width": 384, "centred": True}
    return base | {"confidence": 0.95, "explained": 0.63, "original_in_directions": 0.42, "directions": directions} | more


AGREEMENT = {
    "by": "worker",
    "directions": [
        {"name": f"pc{k:02d}", "mean": 0.1, "mean_interval": [0.0, 0.2], "spread": 0.4, "spread_interval": [0.3, 0.5], "p_value": 0.001, "same_sign": 0.75}
        for k in range(14)
    ],
}


def written(tmp_path: Path, data: dict[str, Any]) -> Path:
    path = tmp_path / "directions.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_the_page_holds_every_section_and_runs_nothing(tmp_path: Path) -> None:
    page = write_directions_page(written(tmp_path, record(agreement=AGREEMENT)), tmp_path / "page.html")
    html = page.read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert [name for name in parsed.sections if not name.startswith("pairs_")] == ["variance", "goes_with", "agreement", "pairs", "made"]
    assert "script" not in parsed.tags and not any(name.startswith("on") for _, name, _ in parsed.attributes)
    text = " ".join(parsed.text)
    for figure in ("63.0 %", "42.0 %", "1,234 comparisons over 99 prompts, 3 comparisons left out", "+0.50", "(+0.10)", "-0.25", "0.30 to 0.50"):
        assert figure in text
    assert "the response with less was preferred" in text
    assert {path.name for path in (tmp_path / "page-figures").iterdir()} == {
        f"{name}.{end}" for name in ("agreement", "goes_with", "variance") for end in ("png", "svg")
    }


def test_the_markdown_says_the_same_without_pictures(tmp_path: Path) -> None:
    text = directions_markdown(written(tmp_path, record()))
    assert "| pc01 | 50.0 % | 50.0 % | 62.5 % | 50.0 to 75.0 | -0.25 |" in text
    assert "| pc02 | 1.0 % | 51.0 % |" in text
    assert "<script>" not in text and "Where annotators differ" not in text


def test_tables_name_what_goes_clearly_with_a_direction() -> None:
    data = record(agreement=AGREEMENT)
    assert [name for name, _ in strongest(data["directions"][0])] == ["wit"]  # the others' intervals hold 0, or are none
    assert directions_table(data).row_count == 12
    assert agreement_table(AGREEMENT).row_count == 8
    assert agreement_table({"by": "worker", "directions": AGREEMENT["directions"][:5]}).row_count == 5


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="directions.json of `palate decompose`"):
        write_directions_page(written(tmp_path, {"accuracy": 1}), tmp_path / "page.html")
