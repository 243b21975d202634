"""Small sites for the tests: made pairs, made rewards, a client that asks as a browser on this machine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from palate.data.loading import load_groups
from palate.explorer.app import create_app
from palate.explorer.labels import LabelFile
from palate.explorer.pairs import Labelled, Pairs
from palate.explorer.rewards import Rewards
from palate.explorer.site import Site

ADDRESS = "http://127.0.0.1:8321"

ROWS = [
    {"prompt": "name a fruit", "chosen": "An apple is a fruit.", "rejected": "A stone, I think it is a fruit.", "domain": "food"},
    {"prompt": "name a colour", "chosen": "Blue is a colour.", "rejected": "I'm sorry, I cannot do that.", "domain": "art"},
    {"prompt": "name a river", "chosen": "Short.", "rejected": "The Rhine is a river of Europe.", "domain": "places"},
    {"prompt": "name a fruit", "chosen": "A stone, I think it is a fruit.", "rejected": "An apple is a fruit.", "domain": "food"},
    {"prompt": "name a tree", "chosen": "An oak is a tree.", "rejected": "No.", "domain": "places"},
    {"prompt": "name a tree", "chosen": "An oak is a tree.", "rejected": "No.", "domain": "places"},
]
MARGINS = (2.0, 0.5, -3.0, -2.0, 1.0, 1.0)
"""Rows 0 and 3 contradict each other; 4 and 5 are one pair twice."""


def rewards_of(margins: Sequence[float], source: str = "first") -> Rewards:
    """Chosen gets the margin and rejected 0; NaN for both where the margin is NaN."""
    return Rewards(np.array([value for margin in margins for value in (margin, 0.0 * margin)]), source)


def pairs_of(rows: Sequence[Mapping[str, Any]] = ROWS, margins: Sequence[float] = MARGINS, other: Sequence[float] | None = None) -> Pairs:
    loaded = load_groups(list(rows), name="rows")
    return Pairs(loaded.groups, rewards_of(margins), other=rewards_of(other, "second") if other is not None else None, report=loaded.reports[0])


def disputed() -> Pairs:
    """Thirty rows on which the model is sure and right, and row 30, on which it is as sure and against the label: 1 in 31 is less than 5 %."""
    rows = [{"prompt": f"p {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    return pairs_of([*rows, {"prompt": "name a river", "chosen": "Short.", "rejected": "The Rhine."}], [3.0] * 30 + [-3.0])


def unlabelled(pairs: Pairs) -> Labelled:
    nothing = np.zeros(len(pairs), dtype=bool)
    return Labelled(0, nothing, nothing)


def site_of(folder: Path, pairs: Pairs | None = None, **given: Any) -> Site:
    return Site(pairs or pairs_of(), LabelFile(folder / "labels.jsonl"), annotator="ada", name="rows", **given)


def client_of(site: Site, **given: Any) -> TestClient:
    return TestClient(create_app(site, **given), base_url=ADDRESS, raise_server_exceptions=True)


def writing(site: Site, **headers: str) -> dict[str, str]:
    """Headers of a write as our own pages send them."""
    return {"X-Palate-Token": site.token, "Origin": ADDRESS, **headers}
