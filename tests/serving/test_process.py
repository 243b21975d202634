"""The real process: `palate serve` on a port, asked over TCP, and ended by SIGTERM while it works."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from tests.serving.test_app import saved

from palate.cli.serve import named, parse, settings
from palate.errors import ConfigError
from palate.scoring.remote import RemoteScorer

# --- the command line -----------------------------------------------------------------------------------------------------------------------------


def test_names_of_models() -> None:
    assert named(["a=/x/a", "/y/b"]) == {"a": "/x/a", "/y/b": "/y/b"}
    for wrong in (["a=x", "a=y"], ["=x"], ["a="]):
        with pytest.raises(ConfigError):
            named(wrong)


def test_flags_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALATE_API_KEY", raising=False)
    plain = settings(parse(["--model", "m"]))
    assert (plain.host, plain.port, plain.api_key, plain.on_long, plain.may_load) == ("127.0.0.1", 8000, None, "error", False)
    given = settings(
        parse(["--model", "m", "--max-items", "3", "--timeout", "0.5", "--linger", "0.01", "--may-load", "--model-root", "/models", "--port", "9"])
    )
    assert (given.max_items, given.timeout, given.linger, given.may_load, given.model_roots, given.port) == (3, 0.5, 0.01, True, (Path("/models"),), 9)
    monkeypatch.setenv("PALATE_API_KEY", "from the environment")
    assert settings(parse(["--model", "m"])).api_key == "from the environment"
    assert settings(parse(["--model", "m", "--api-key", "given"])).api_key == "given"


# --- the process ----------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the process, its address), on a port that the system chose."""
    command = [sys.executable, "-m", "palate", "serve", "--model", f"rm={folder}", "--port", "0", "--threads", "1", *flags]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                yield process, found[1]
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.wait()


def taken_in(url: str) -> float:
    """Items that were scored or wait."""
    with urlopen(url + "/metrics", timeout=60) as answer:
        return sum(float(value) for value in re.findall(r"^palate_(?:items_total|queue_items){.*} (\S+)$", answer.read().decode(), re.M))


@pytest.mark.slow
def test_sigterm_finishes_what_was_taken_in(tmp_path: Path) -> None:
    """Requests on their way are answered, new connections are refused, and the exit code is 0."""
    scorer = saved(tmp_path / "rm", 1)
    texts = [f"{'a longer text ' * 12}{i}" for i in range(400)]
    body = json.dumps({"items": [{"text": text} for text in texts]}).encode()
    with serving(tmp_path / "rm", "--batch-items", "1") as (process, url):
        answers: list[list[float]] = []

        def ask() -> None:
            with urlopen(Request(url + "/v1/rewards", body, {"Content-Type": "application/json"}), timeout=300) as answer:
                answers.append([row["reward"] for row in json.load(answer)["data"]])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while taken_in(url) < 3 * len(texts):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(300) == 0
        with pytest.raises(OSError, match="refused"):
            urlopen(url + "/health", timeout=5)
    expected = scorer.score(texts).tolist()
    assert len(answers) == 3 and all(answer == pytest.approx(expected, abs=5e-6) for answer in answers)


@pytest.mark.slow
def test_a_scorer_talks_to_it(tmp_path: Path) -> None:
    """Key, detection of the dialect, and the same rewards as in this process."""
    scorer = saved(tmp_path / "rm", 1)
    with serving(tmp_path / "rm", "--api-key", "secret") as (_, url):
        items = ["whole text", ("prompt", "response"), [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]]
        remote = RemoteScorer(url, api_key="secret")
        assert remote.score(items).tolist() == pytest.approx(scorer.score(items).tolist(), abs=5e-6)


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    saved(tmp_path / "rm", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "palate", "serve", "--model", str(tmp_path / "rm"), "--port", str(taken.getsockname()[1])]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2 and "address already in use" in run.stderr and "--port and --host choose another place" in run.stderr
