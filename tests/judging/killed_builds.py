"""`palate build` as a process that is killed and begun again, against a stub that counts what it is asked; for a test and for benchmarks/judging.py."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.judging.stub_server import Stub, hash_of

from palate.judging.call_cache import CallCache
from palate.judging.caller import Caller
from palate.judging.judge import ChatJudge
from palate.judging.openai_client import OpenAIClient, body_of
from palate.types import Matchup

FILLER = "It says what was asked, gives the reason for it, and ends where the answer ends. "


def write_responses(path: Path, prompts: int, characters: int = 600) -> Path:
    """Rows of two responses each; every response says its own strength, for the stub to judge by."""
    draw = random.Random(0)
    with path.open("w") as file:
        for g in range(prompts):
            texts = [f"Answer {k} to {g} (strength {draw.gauss(0, 1):.3f}). " + (FILLER * (characters // len(FILLER) + 1))[:characters] for k in range(2)]
            row = {"id": f"p{g}", "prompt": f"Question {g}: what is to be done, and why? " + FILLER, "responses": texts, "models": ["one", "two"]}
            file.write(json.dumps(row) + "\n")
    return path


@dataclass
class BuildRun:
    """The command and its files."""

    data: Path
    url: str
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "answers.sqlite"

    @property
    def output(self) -> Path:
        return self.folder / "prefs.jsonl"

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = {"--data": self.data, "--output": self.output, "--judge": "stub", "--base-url": self.url, "--cache": self.cache}
        command = [sys.executable, "-m", "palate", "build", *(str(part) for pair in flags.items() for part in pair)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    def finish(self) -> bytes:
        """To the end; the rows."""
        assert self.start().wait() == 0
        return self.output.read_bytes()

    def requests(self) -> dict[bytes, str]:
        """Key in the cache -> hash of the body, of both orders of every pair."""
        judge = ChatJudge(Caller(OpenAIClient(self.url)), "stub")
        found = {}
        for line in self.data.read_text().splitlines():
            row = json.loads(line)
            x, y = row["responses"]
            for matchup in (Matchup(row["prompt"], x, y), Matchup(row["prompt"], y, x)):
                request = judge.request(judge.render(matchup))
                found[request.key(self.url)] = hash_of(body_of(request))
        return found

    def num_kept(self) -> int:
        if not self.cache.exists():
            return 0
        with CallCache(self.cache) as cache:
            return len(cache)

    def kept(self, requests: dict[bytes, str]) -> set[str]:
        """Those that are in the cache, by the hash of the body."""
        with CallCache(self.cache) as cache:
            return {body for key, body in requests.items() if cache.get(key) is not None}


def kill_and_finish(run: BuildRun, stub: Stub, kills: int, seed: int = 0) -> tuple[bytes, int]:
    """(the rows in the end, requests made more than once), after SIGKILLs at random moments. Raises AssertionError where a kept answer was asked for again."""
    chance, requests = random.Random(seed), run.requests()
    share = len(requests) // (kills + 1)
    known: list[tuple[set[str], Counter[str]]] = []
    for _ in range(kills):
        before = run.num_kept()
        process = run.start()
        while process.poll() is None and run.num_kept() < before + share * chance.random():  # imports take seconds: the clock starts at work
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        known.append((run.kept(requests), Counter(stub.stats()["by_body"])))
    rows, asked = run.finish(), Counter(stub.stats()["by_body"])
    assert set(requests.values()) <= set(asked), "the requests are not those that the build makes"
    for kept, counted in known:
        again = [body for body in kept if asked[body] != counted[body]]
        assert not again, f"{len(again)} of {len(kept)} answers that were kept were asked for again"
    return rows, sum(count - 1 for count in asked.values())
