"""`palate build` killed at random moments and begun again: nothing that was answered is asked twice, and the rows are those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.judging.killed_builds import BuildRun, kill_and_finish, write_responses
from tests.judging.stub_server import Dials, spawned


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4])  # ten: benchmarks/judging.py --build
def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, kills: int) -> None:
    data = write_responses(tmp_path / "responses.jsonl", 800)
    with spawned(Dials(latency=0.05, jitter=0.05, max_concurrency=64, malformed_rate=0.02)) as stub:
        rows, repeated = kill_and_finish(BuildRun(data, stub.url, tmp_path / "killed"), stub, kills)
        assert repeated <= kills * 2 * 64, "only what was under way, and its neighbours of some milliseconds"
        assert BuildRun(data, stub.url, tmp_path / "undisturbed").finish() == rows and len(rows) > 100_000
