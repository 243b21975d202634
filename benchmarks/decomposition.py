"""Does adaptation at test time beat one head? Decomposed heads against random heads, a shared-base ensemble and the single head; and what it all costs.

    python benchmarks/decomposition.py quality [--sets workers topics kwise attributes mixture] [--data FOLDER]
    python benchmarks/decomposition.py cost [--rows 100000] [--width 4096] [--scratch FOLDER]

Quality: MiniLM is trained on each set as `palate train` does (1 epoch, learning rate 1e-4, batch 16, 1000 pairs at most), embedded once, and decomposed
into 50 directions of the training comparisons; users, topics or attributes of held-out prompts are adapted to by 5 and 15 comparisons, 20 draws each. A set
whose file is not on this machine is skipped, visibly. Both write benchmarks/results/decomposition.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from palate.data.loading import load_groups, split_by_prompt
from palate.data.pairing import from_scores
from palate.evaluation.evaluator import to_json
from palate.models.checkpoints import package_versions
from palate.multi_objective.adaptation import adapt
from palate.multi_objective.baselines import gaussian_heads, random_scores, shared_base_ensemble, uniform_heads
from palate.multi_objective.decomposition import decompose, decompose_rows
from palate.multi_objective.directions import agreement
from palate.multi_objective.heads import LinearHeads, original_head, save_heads, signed_heads
from palate.multi_objective.pairs import embedded_pairs
from palate.multi_objective.trials import Exclude, Trials, TrialSettings, run_trials
from palate.sample import base_model_path, load_sample
from palate.scoring.embeddings import open_embedder
from palate.scoring.local import load_scorer
from palate.training.run import train
from palate.training.settings import RunSettings
from palate.types import Exchange, PreferenceGroup, Readout, text_of

RESULTS = Path(__file__).parent / "results" / "decomposition.json"
COMPONENTS = 50
LONGEST = 900  # characters of a response: a run takes minutes on two cores
TRAINED_ON = 1000  # pairs at most, or rankings / 4
TRIED = ((5, 1.0), (15, 1.0), (15, 0.1))  # (comparisons adapted on, temperature): the paper's, and one colder, where few heads carry the weight
DISPUTED = 3  # directions recorded at either end


class Task(NamedTuple):
    """What a model is trained on, and whom it is then adapted to."""

    train: list[dict[str, Any]]  # rows
    users: list[PreferenceGroup]  # `user` in the metadata; where `adapts` is there, only those with it true are adapted on and only others tested
    exclude: Exclude
    note: str
    annotators: bool = False  # users are people who judged the same things


def for_user(user: str, prompt: Any, responses: list[Any], scores: list[float], **metadata: Any) -> PreferenceGroup:
    return PreferenceGroup(prompt, tuple(responses), from_scores(scores), metadata={"user": user, **metadata})


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# --- the sets -----------------------------------------------------------------------------------------------------------------------------------------


def workers(folder: Path) -> Task:
    """Every second of the crowd workers with many votes is held out: adapted to by votes on training topics, tested by votes on unseen topics."""
    texts = {(row["topic"], row["id"]): row for row in rows_of(folder / "ukpconvarg_arguments.jsonl")}
    votes = rows_of(folder / "ukpconvarg_votes.jsonl")
    cast = {split: Counter(w for row in votes if row["split"] == split for w, vote, _ in row["votes"] if vote) for split in ("train", "test")}
    busy = sorted(worker for worker, n in cast["train"].items() if n >= 100 and cast["test"][worker] >= 40)
    held = set(busy[::2])
    rows, users = [], []
    for row in votes:
        prompt = texts[row["topic"], row["arg_1"]]["prompt"]
        sides = [texts[row["topic"], row[name]]["text"] for name in ("arg_1", "arg_2")]
        won = Counter(vote for worker, vote, _ in row["votes"] if worker not in held)
        if row["split"] == "train" and won[1] != won[2]:
            rows.append({"prompt": prompt, "chosen": sides[won[2] > won[1]], "rejected": sides[won[1] > won[2]]})
        users += [
            for_user(worker, prompt, sides, [float(vote == 1), float(vote == 2)], adapts=row["split"] == "train")
            for worker, vote, _ in row["votes"]
            if vote and worker in held
        ]
    return Task(a_few(rows), users, "prompt", f"{len(held)} of {len(busy)} busy crowd workers held out; their votes train nothing", annotators=True)


def topics(folder: Path) -> Task:
    """Debates that were not trained on; each has two prompts (sides), so a test shares no text with what was adapted on, but may share its prompt."""
    train_rows, test_rows = (rows_of(folder / f"ukpconvarg_pairs_{part}.jsonl") for part in ("train", "test"))
    users = [for_user(row["topic"], row["prompt"], [row["chosen"], row["rejected"]], [1, 0]) for row in test_rows]
    return Task(a_few([pair(row) for row in train_rows]), users, "response", "six sides of three unseen debates")


def kwise(folder: Path) -> Task:
    """AlpacaEval by the source of its instructions."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for row in rows_of(folder / "alpaca_eval_kwise.jsonl"):
        short = [k for k, text in enumerate(row["responses"]) if 0 < len(text) <= LONGEST]
        if len(short) > 1:
            rows[row["split"]].append({**row, "responses": [row["responses"][k] for k in short], "scores": [row["scores"][k] for k in short]})
    train_rows = [{key: row[key] for key in ("prompt", "responses", "scores")} for row in rows["train"]]
    users = [for_user(row["dataset"], row["prompt"], row["responses"], row["scores"]) for row in rows["test"]]
    return Task(a_few(train_rows, TRAINED_ON // 4), users, "prompt", "users are the five sources of AlpacaEval's instructions, prompts held out")


def attributes(folder: Path) -> Task:
    """The sample set: trained on its overall score, adapted to each rated attribute."""
    rows = [
        {"prompt": group.prompt, "responses": list(group.responses), "scores": [rating["score"] for rating in group.ratings]} for group in load_sample("train")
    ]
    names = [name for name in load_sample("test")[0].ratings[0] if name != "score"]
    users = [for_user(name, group.prompt, list(group.responses), [rating[name] for rating in group.ratings]) for group in load_sample("test") for name in names]
    return Task(rows, users, "prompt", "users are the rated attributes of the sample set, prompts held out")


def mixture(folder: Path) -> Task:
    """One model of two tastes, harmlessness (people) and AlpacaEval (a judge); adapted to either, to more text and to less."""
    harmless = [group for group in load_groups(folder / "hh_harmless.jsonl", on_bad_row="drop").groups if len(text_of(group.responses[0])) <= LONGEST]
    own, unseen = split_by_prompt(harmless, fraction=0.25, seed=0)
    rows = a_few([{"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1]} for g in own], TRAINED_ON // 2)
    helpful = a_few([pair(row) for row in rows_of(folder / "alpaca_eval_pairs_train_small.jsonl")], len(rows))
    users = [for_user("harmless", g.prompt, list(g.responses), [1, 0]) for g in unseen]
    test = [row for row in rows_of(folder / "alpaca_eval_pairs_test.jsonl") if max(len(row["chosen"]), len(row["rejected"])) <= LONGEST]
    for row in a_few(test, TRAINED_ON // 2):
        sides = [row["chosen"], row["rejected"]]
        lengths = [float(len(text)) for text in sides]
        users += [for_user("alpaca", row["prompt"], sides, [1, 0])]
        users += [for_user("longer", row["prompt"], sides, lengths), for_user("shorter", row["prompt"], sides, [-n for n in lengths])]
    return Task(rows + helpful, users, "prompt", "trained on both tastes in equal parts; longer and shorter are preferences for length alone on AlpacaEval")


SETS: dict[str, Callable[[Path], Task]] = {"workers": workers, "topics": topics, "kwise": kwise, "attributes": attributes, "mixture": mixture}


def pair(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("prompt", "chosen", "rejected")}


def a_few(rows: list[dict[str, Any]], most: int = TRAINED_ON) -> list[dict[str, Any]]:
    picked = np.random.default_rng(0).permutation(len(rows))[:most]
    return [rows[i] for i in sorted(picked)]


# --- quality ------------------------------------------------------------------------------------------------------------------------------------------


def quality(name: str, task: Task, scratch: Path) -> dict[str, Any]:
    data = scratch / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in task.train), encoding="utf-8")
    directory = train(settings(data, scratch / "model"), say=lambda text: None).directory
    embedder, scorer, _ = open_embedder(str(directory), scratch / "cache")
    on = embedded_pairs(embedder, load_groups(data, on_bad_row="drop").groups)
    found = decompose(on, components=COMPONENTS)
    users = embedded_pairs(embedder, task.users, weights="given")
    original, directions = original_head(scorer), signed_heads(found)
    uncentred = signed_heads(decompose(on, components=COMPONENTS, centred=False))
    count = len(directions)
    heads: dict[str, LinearHeads] = {
        "directions": directions,
        "directions and original": original.with_heads(directions),
        "first 10 directions": LinearHeads(directions.names[:20], directions.weights[:20], directions.bias[:20]),
        "uncentred directions": uncentred,
        "shared-base ensemble": shared_base_ensemble(on, count, seed=0),
    }
    scores = {kind: each.score(users.embeddings) for kind, each in heads.items()}
    scores |= {
        f"random {kind}": random_scores(make, users.embeddings, count, seed=0) for kind, make in (("uniform", uniform_heads), ("Gaussian", gaussian_heads))
    }
    single = original.score(users.embeddings)[:, 0]
    pool = np.array([bool(value) for value in users.metadata("adapts")])
    apart = {"adapt_on": pool, "test_on": ~pool} if pool.any() else {}
    results = {}
    for n, temperature in TRIED:
        trials = run_trials(users, scores, single, users.metadata("user"), TrialSettings(n, temperature=temperature, exclude=task.exclude), **apart)
        results[f"{n} pairs, temperature {temperature:g}"] = figures(trials)
        shown = {kind: f"{100 * t.accuracy:.1f} ({100 * t.difference:+.1f}, p {t.p_value:.3f})" for kind, t in trials.overall.items()}
        print(name, n, temperature, f"{len(trials.users)} users", shown, flush=True)
    record = {
        "note": task.note,
        "train_pairs": len(on),
        "explained": [float(share) for share in found.explained[:10]],
        "explained_by_all": float(found.explained.sum()),
        "cosine_of_pc01_and_the_original_head": float((directions.weights[0] @ original.weights[0]) / np.linalg.norm(original.weights[0])),
        "trials": results,
    }
    if task.annotators:
        disputed = [one._asdict() for one in agreement(users, found, users.metadata("user"))]
        record |= {"most_disputed": disputed[:DISPUTED], "least_disputed": disputed[-DISPUTED:]}
    rounded: dict[str, Any] = json.loads(to_json(record), parse_float=lambda text: round(float(text), 4))
    return rounded


def figures(trials: Trials) -> dict[str, Any]:
    """The mean over users of each method, and every user's accuracy."""
    record = trials.as_dict()
    users = {user.user: {kind: trial.accuracy for kind, trial in user.methods.items()} for user in trials.users}
    return {"overall": record["overall"], "users": users, "too_few": len(trials.too_few)}


def settings(data: Path, output: Path) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"name_or_path": str(base_model_path()), "chat_template": "plain"},
            "data": {"train": str(data), "max_length": 512, "on_bad_row": "drop"},
            "loss": {"type": "bradley_terry"},
            "training": {
                "output_dir": str(output),
                "num_train_epochs": 1,
                "per_device_train_batch_size": 16,
                "learning_rate": 1e-4,
                "warmup_steps": 0.1,
                "use_cpu": True,
                "bf16": True,
                "train_sampling_strategy": "group_by_length",
                "save_strategy": "no",
                "report_to": "none",
                "seed": 42,
            },
        }
    )


# --- cost ---------------------------------------------------------------------------------------------------------------------------------------------


def cost(rows: int, width: int, scratch: Path) -> dict[str, Any]:
    load = [round(value, 1) for value in os.getloadavg()]  # of the machine before, 1, 5 and 15 minutes
    seconds, processor_seconds, share = decomposition_cost(rows, width, scratch)
    return {
        "load": load,
        "decomposition": {
            "rows": rows,
            "width": width,
            "components": COMPONENTS,
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "peak_gib": peak_gib(),
            "explained": share,
        },
        "adaptation_ms": adaptation_cost(),
        "scoring": scoring_cost(scratch),
    }


def decomposition_cost(rows: int, width: int, scratch: Path) -> tuple[float, float, float]:
    """Seconds of decomposing differences that lie in a file as float32, by the clock and of all cores, and the variance that the directions explain."""
    path = scratch / "differences.f32"
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((200, width)).astype(np.float32) * (1 / np.arange(1, 201, dtype=np.float32))[:, None] ** 0.5
    with open(path, "wb") as file:
        for start in range(0, rows, 4096):
            size = min(4096, rows - start)
            file.write((rng.standard_normal((size, 200), dtype=np.float32) @ planted + rng.standard_normal((size, width), dtype=np.float32)).tobytes())
    stored = np.memmap(path, dtype=np.float32, mode="r", shape=(rows, width))

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, rows, 4096):
            yield stored[start : start + 4096]

    started = time.perf_counter(), time.process_time()
    found = decompose_rows(batches(), components=COMPONENTS)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    path.unlink()
    return round(seconds[0], 1), round(seconds[1], 1), float(found.explained.sum())


def peak_gib() -> float:
    """Of this process, mapped file pages included."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def adaptation_cost() -> dict[str, float]:
    """Milliseconds of adapting 100 heads to 15 pairs: from scores, and from embeddings of width 4096."""
    rng = np.random.default_rng(0)
    chosen, rejected = rng.standard_normal((2, 15, 100))
    heads = gaussian_heads(100, 4096, seed=0)
    embeddings = rng.standard_normal((30, 4096)).astype(np.float32)

    def whole() -> None:
        scores = heads.score(embeddings)
        found = adapt(scores[:15], scores[15:], fallback=Readout())
        heads.combined(found.coefficients, found.offset)

    return {"from_scores": median_ms(lambda: adapt(chosen, rejected, fallback=Readout())), "from_embeddings_to_one_head": median_ms(whole)}


def median_ms(run: Callable[[], Any], times: int = 30) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return round(1000 * float(np.median(found)), 2)


def scoring_cost(scratch: Path, responses: int = 100, rounds: int = 15) -> dict[str, Any]:
    """Processor seconds, which other work on the machine moves little, of scoring with one head and with a hundred, in turns, on MiniLM."""
    groups = load_sample("train")
    items = [exchange for group in groups for exchange in group.exchanges()][:responses]
    data = scratch / "one.jsonl"
    data.write_text("".join(json.dumps({"prompt": "p", "chosen": f"a {i}", "rejected": f"b {i}"}) + "\n" for i in range(16)), encoding="utf-8")
    one = load_scorer(train(settings(data, scratch / "one"), say=lambda text: None).directory)
    names = tuple(f"h{j:02d}" for j in range(100))
    drawn = gaussian_heads(100, one.width, seed=0)
    readout = Readout(names, (1.0,) + (0.0,) * 99)
    save_heads(one, LinearHeads(names, drawn.weights, drawn.bias), scratch / "hundred", golden=[Exchange("p", "a")], readout=readout)
    scorers = {"one": one, "hundred": load_scorer(scratch / "hundred")}
    found: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, scorer in scorers.items():
            started = time.process_time()
            scorer.outputs(items)
            found[name].append(time.process_time() - started)
    seconds = {name: round(float(np.median(times)), 3) for name, times in found.items()}
    ratios = np.array(found["hundred"]) / np.array(found["one"])
    return {"responses": responses, "processor_seconds": seconds, "ratio": float(np.median(ratios)), "ratio_range": [float(ratios.min()), float(ratios.max())]}


# --- the command --------------------------------------------------------------------------------------------------------------------------------------


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON, what holds no other list or object on one line."""
    path.write_text(re.sub(r"[\[{][^][{}]*[\]}]", lambda found: " ".join(found[0].split()), to_json(record)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "cost"))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PALATE_SHARED_DATA", "../shared/data")))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, help="folder for a file of rows x width x 4 bytes (default: the temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = json.loads(options.output.read_text()) if options.output.exists() else {"sets": {}}
    record |= {"hardware": f"{os.cpu_count()} CPU cores", "versions": package_versions()}
    if options.what == "cost":
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            record["cost"] = cost(options.rows, options.width, Path(scratch))
        print(json.dumps(record["cost"], indent=1))
        write(options.output, record)
        return
    for name in options.sets:
        try:
            task = SETS[name](options.data)
        except FileNotFoundError as error:
            print(f"{name}: skipped, {error.filename} is not there")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            record["sets"][name] = quality(name, task, Path(scratch))
        record["sets"] = {name: record["sets"][name] for name in SETS if name in record["sets"]}
        write(options.output, record)


if __name__ == "__main__":
    main()
