"""How fast the explorer answers over many pairs: start, first page, every filter and order, search, and the memory that it holds.

    python benchmarks/explorer.py --pairs 100000 --output benchmarks/results/explorer.json

Pairs are made of random words. Each question is asked for the first time (no answer is kept from before), through the whole application but for the
network.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from starlette.testclient import TestClient

from palate.explorer.app import create_app
from palate.explorer.labels import LabelFile
from palate.explorer.pairs import Pairs
from palate.explorer.rewards import Rewards
from palate.explorer.site import Site
from palate.types import Comparison, PreferenceGroup

WORDS = 4000  # different words
LETTERS = {"e": 127, "t": 91, "a": 82, "o": 75, "i": 70, "n": 67, "s": 63, "h": 61, "r": 60, "d": 43, "l": 40, "c": 28, "u": 28, "m": 24, "w": 24} | {
    "f": 22,
    "g": 20,
    "y": 20,
    "p": 19,
    "b": 15,
    "v": 10,
    "k": 8,
    "j": 2,
    "x": 2,
    "q": 1,
    "z": 1,
}
"""How often each letter is one of 1,000 of English (Lewand 2000, Cryptological Mathematics, p. 36)."""
SEED = 0
QUESTIONS = {
    "first page": "/pairs",
    "most against the label": "/pairs?sort=disagreement",
    "least decided": "/pairs?sort=uncertain",
    "chosen longer by most": "/pairs?sort=longer",
    "random order": "/pairs?sort=random",
    "one subset": "/pairs?subset=subset-3",
    "likely mislabelled": "/pairs?outcome=suspect&sort=disagreement",
    "margin from -1 to 1": "/pairs?low=-1&high=1&sort=longer",
    "duplicates": "/pairs?finding=duplicates",
    "a rare word": "/pairs?text={rare}",
    "a word in nearly all": "/pairs?text={common}",
    "words in none": "/pairs?text=not+in+any+of+them",
    "search, subset, margin, order": "/pairs?text={middle}&subset=subset-5&high=0&sort=disagreement",
    "the same words, another order": "/pairs?text={middle}&sort=uncertain",
    "one pair": "/pairs/54321",
    "the queue": "/label?outcome=suspect&sort=disagreement",
    "prompts": "/prompts",
    "the measures, all of them": "/measures/report",
}


def vocabulary(seed: int) -> np.ndarray:
    """Words of 2 to 10 letters, which are as frequent as in English; the common words come first."""
    random = np.random.default_rng(seed)
    letters, weights = zip(*LETTERS.items(), strict=True)
    drawn = random.choice(letters, (2 * WORDS, 10), p=np.array(weights) / sum(weights))
    found = ("".join(row[:size]) for row, size in zip(drawn, random.integers(2, 11, 2 * WORDS), strict=True))
    return np.array(list(dict.fromkeys(found))[:WORDS])


def made(pairs: int, seed: int) -> list[PreferenceGroup]:
    """Pairs of a prompt of 10 to 60 words and two responses of 20 to 200; every hundredth pair stands twice."""
    random = np.random.default_rng(seed)
    words = vocabulary(seed)
    frequency = 1 / np.arange(2, WORDS + 2)
    frequency /= frequency.sum()
    groups: list[PreferenceGroup] = []
    for i in range(pairs):
        if i % 100 == 99:
            groups.append(groups[-1])
            continue
        lengths = (int(random.integers(10, 60)), *(int(n) for n in random.integers(20, 200, 2)))
        drawn = words[random.choice(WORDS, sum(lengths), p=frequency)]
        prompt, chosen, rejected = (" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1]))
        groups.append(PreferenceGroup(prompt, (chosen, rejected), (Comparison(0, 1),), metadata={"subset": f"subset-{i % 12}", "location": f"line {i + 1}"}))
    return groups


class Spent(NamedTuple):
    """Seconds on the clock, and of the processor: the second is the smaller one where others use the machine as well."""

    clock: float
    processor: float

    @classmethod
    def since(cls, before: Spent) -> Spent:
        return cls(time.perf_counter() - before.clock, time.process_time() - before.processor)

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())


def asked(pairs: Pairs) -> dict[str, Spent]:
    """What each question takes, asked once of a fresh application."""
    found, words = {}, vocabulary(SEED)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(pairs, LabelFile(Path(folder) / "labels.jsonl"), annotator="bench", name="made")
        client = TestClient(create_app(site), base_url="http://127.0.0.1")
        for name, address in QUESTIONS.items():
            started = Spent.now()
            answer = client.get(address.format(common=words[0], middle=words[WORDS // 20], rare=words[-1]))
            found[name] = Spent.since(started)
            assert answer.status_code == 200, (name, answer.text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3, help="fresh applications, each asked everything once")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    groups = made(options.pairs, SEED)
    random = np.random.default_rng(SEED)
    rewards = Rewards(random.normal(size=2 * len(groups)) + np.tile([1.0, 0.0], len(groups)), "random")
    characters = sum(len(text) for group in groups for text in (group.prompt, *group.responses))
    before = psutil.Process().memory_info().rss
    spent: dict[str, list[Spent]] = {}
    for _ in range(options.repeats):
        started = Spent.now()
        pairs = Pairs(groups, rewards)
        spent.setdefault("columns", []).append(Spent.since(started))
        for name, took in asked(pairs).items():
            spent.setdefault(name, []).append(took)
        held = psutil.Process().memory_info().rss - before
        del pairs
    result = {
        "pairs": options.pairs,
        "characters": characters,
        "seconds": {
            name: {part: statistics.median(getattr(one, part) for one in values) for part in Spent._fields} | {"worst": max(one.clock for one in values)}
            for name, values in spent.items()
        },
        "held_bytes": held,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": psutil.cpu_count(), "python": platform.python_version()},
    }
    print(f"{options.pairs:,} pairs, {characters / 1e6:.0f} million characters; columns and index hold {held / 1e6:.0f} MB beside the texts")
    for name, row in result["seconds"].items():
        print(f"{name:<32} {row['clock']:7.3f} s (processor {row['processor']:.3f} s)   worst {row['worst']:.3f} s")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
