"""Best-of-n under a gold scorer by one head or run, ensembles of either, averaged weights and lower bounds; whether stated uncertainties hold; ridge heads
and a gate on real ratings.

    python benchmarks/uncertainty.py --data FOLDER --scratch FOLDER --output results/uncertainty.json [--only alpaca,gsm8k,runs,few,ratings,attributes]

all-MiniLM-L6-v2, trained in each case in one short run (two epochs, for ratings three, learning rate 1e-4, one thread, bfloat16 autocast). Gold: win
probabilities of a judge over a common baseline (alpaca_eval_kwise), right answers (gsm8k_kwise), ratings of 1 to 5 (gpt4_rated). `few` fits heads on
the frozen backbones to few, partly wrong, comparisons, 20 times over. `runs` trains four models by `palate train`, one epoch each, with seeds of their
own, and tests them on 32 candidates of a prompt and more. Elsewhere there is one seed: what intervals over prompts do not hold is how much a second
training run would differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

MEMBERS = 4
SIZES = {"alpaca": 180, "gsm8k": 300}  # training prompts
TESTED = 500  # prompts at most
LARGEST_N = 4  # every prompt has as many responses
LONGEST = 1200  # characters of prompt and response: what 320 tokens hold, as a rule
STRENGTHS = (0.5, 1.0, 2.0)
FEW = ((10, 0.0), (10, 0.25), (40, 0.0), (40, 0.25))
"""(prompts with comparisons, share of the labels that is flipped); a quarter is what Coste et al. 2023 flip."""
REPEATS = 20
POOLED_N = 32  # candidates that a prompt of the pool has at least
Rows = list[dict[str, Any]]
Lists = list[tuple[np.ndarray, slice]]


def lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- data ---------------------------------------------------------------------------------------------------------------------------------------------


def alpaca(folder: Path) -> tuple[Rows, Rows]:
    """(training rows ranked by score, test rows with win probabilities as gold), apart by instruction; responses that fit, of prompts with four."""
    rows = []
    for row in lines(folder / "alpaca_eval_kwise.jsonl"):
        fits = [i for i, response in enumerate(row["responses"]) if len(row["prompt"]) + len(response) <= LONGEST]
        if len(fits) >= LARGEST_N:
            rows.append({"prompt": row["prompt"], **{name: [row[name][i] for i in fits] for name in ("responses", "scores", "win_probs")}})
    random.Random(0).shuffle(rows)
    train = [{"prompt": row["prompt"], "responses": row["responses"], "scores": row["scores"]} for row in rows[: SIZES["alpaca"]]]
    test = [{"prompt": row["prompt"], "responses": row["responses"], "gold": row["win_probs"]} for row in rows[SIZES["alpaca"] :][:TESTED]]
    return train, test


def gsm8k(folder: Path) -> tuple[Rows, Rows]:
    """The same with right answers (1 or 0); training questions have some of each."""
    rows = lines(folder / "gsm8k_kwise.jsonl")
    random.Random(0).shuffle(rows)
    mixed = [i for i, row in enumerate(rows) if 0 < sum(row["scores"]) < len(row["scores"])][: SIZES["gsm8k"]]
    train = [{"prompt": rows[i]["prompt"], "responses": rows[i]["responses"], "scores": rows[i]["scores"]} for i in mixed]
    rest = [row for i, row in enumerate(rows) if i not in set(mixed)]
    return train, [{"prompt": row["prompt"], "responses": row["responses"], "gold": row["scores"]} for row in rest[:TESTED]]


def rated(folder: Path) -> tuple[Rows, Rows]:
    """(training, test) rows of one rated response; `words` is the log of its length, a second attribute. Apart by question: second turns repeat it."""
    rows = []
    for row in lines(folder / "gpt4_rated_vicuna.jsonl"):
        rows += [{"question": row["id"], "prompt": row["prompt"], "response": r, "score": s} for r, s in zip(row["responses"], row["scores"], strict=True)]
    for row in lines(folder / "gpt4_rated_mt_bench.jsonl"):
        rows.append({"question": "-".join(row["id"].split("-")[:2]), "prompt": row["prompt"], "response": row["response"], "score": row["score"]})
    questions = sorted({row["question"] for row in rows})
    random.Random(0).shuffle(questions)
    held = set(questions[: len(questions) // 3])
    for row in rows:
        row["words"] = float(np.log1p(len(row["response"].split())))
    return [row for row in rows if row["question"] not in held], [row for row in rows if row["question"] in held]


def pool(folder: Path) -> Rows:
    """What many systems answered to one instruction, as one pool: test rows of POOLED_N responses or more that fit, of instructions `alpaca` does not train on.

    Log-odds of every file are against the same baseline by the same judge; a text that several systems gave counts once.
    """
    found: dict[str, dict[str, float]] = {}
    for file in ("alpaca_eval_pairs_test.jsonl", "alpaca_eval_pairs_train_small.jsonl"):
        for row in lines(folder / file):
            found.setdefault(row["prompt"], {}).update({row[side]: float(expit(row[f"score_{side}"])) for side in ("chosen", "rejected")})
    for row in lines(folder / "alpaca_eval_kwise.jsonl"):
        found.setdefault(row["prompt"], {}).update(zip(row["responses"], row["win_probs"], strict=True))
    for row in lines(folder / "alpaca_eval_direct_soft.jsonl"):
        found.setdefault(row["prompt"], {})[row["response_b"]] = row["prob_b"]
    for row in alpaca(folder)[0]:
        found.pop(row["prompt"], None)
    fits = {prompt: {text: gold for text, gold in own.items() if text.strip() and len(prompt) + len(text) <= LONGEST} for prompt, own in found.items()}
    return [{"prompt": prompt, "responses": list(own), "gold": list(own.values())} for prompt, own in fits.items() if len(own) >= POOLED_N]


# --- training -----------------------------------------------------------------------------------------------------------------------------------------


def trained(name: str, rows: Rows, loss: Mapping[str, Any], scratch: Path, *, batch: int, max_length: int, epochs: int = 2) -> Path:
    """The folder of a reward model of these rows; one that is there already is taken."""
    from datasets import Dataset

    from palate import RewardConfig, RewardTrainer
    from palate.sample import base_model_path

    folder = scratch / name
    if (folder / "reward_contract.json").is_file():
        return folder
    args = RewardConfig(
        output_dir=str(folder),
        loss=dict(loss),
        num_train_epochs=epochs,
        learning_rate=1e-4,
        per_device_train_batch_size=batch,
        max_length=max_length,
        length_policy="truncate_prompt",
        use_cpu=True,
        bf16=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
        seed=0,
    )
    started = time.perf_counter()
    trainer = RewardTrainer(model=str(base_model_path()), args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    print(f"{name}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    return folder


def run_of(rows: Rows, seed: int, scratch: Path) -> Path:
    """The same in one epoch by `palate train`, one output, under a seed of its own for the head's start and the order of the rows."""
    from palate.cli.main import main as palate
    from palate.sample import base_model_path

    folder, data = scratch / f"alpaca-run-{seed}", scratch / "alpaca-train.jsonl"
    if (folder / "reward_contract.json").is_file():
        return folder
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = {
        "model.name_or_path": base_model_path(),
        "data": {"train": str(data), "max_length": 320, "length_policy": "truncate_prompt"},
        "loss": {"type": "bradley_terry", "margins": "none", "centering": 0.01},
        "training.output_dir": folder,
        "training.num_train_epochs": 1,
        "training.learning_rate": 1e-4,
        "training.per_device_train_batch_size": 8,
        "training.use_cpu": True,
        "training.bf16": True,
        "training.save_strategy": "no",
        "training.report_to": "none",
        "training.seed": seed,
    }
    given = {f"{key}.{name}": value for key, part in flags.items() if isinstance(part, dict) for name, value in part.items()}
    given |= {key: value for key, value in flags.items() if not isinstance(value, dict)}
    started = time.perf_counter()
    if palate(["train", *(part for key, value in given.items() for part in (f"--{key}", str(value)))]):
        raise SystemExit(f"{folder}: training failed")
    print(f"{folder.name}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    return folder


# --- best of n ----------------------------------------------------------------------------------------------------------------------------------------


def best_of_n(name: str, make: Callable[[Path], tuple[Rows, Rows]], folder: Path, scratch: Path) -> dict[str, Any]:
    """Gold of the best of 1 to 4 by each proxy, its difference to a single head's, and how often pairs of the test prompts are told right."""
    from palate.data.loading import load_groups
    from palate.multi_objective.pairs import embedded_pairs
    from palate.multi_objective.pessimism import fit_posterior
    from palate.scoring.laplace import linear_reward
    from palate.scoring.local import load_scorer
    from palate.scoring.uncertainty import COMBINE

    train, test = make(folder)
    loss = {"members": {"count": MEMBERS, "bootstrap": True}, "margins": "none", "centering": 0.01}
    scorer = load_scorer(trained(name, train, loss, scratch, batch=8, max_length=320))
    pairs = embedded_pairs(_InMemory(scorer), load_groups(train, margins=False).groups)
    fit = fit_posterior(pairs, linear_reward(scorer)[0])
    embeddings = embedded_test(name, make, folder, scratch)[1]
    kept = np.isfinite(embeddings).all(axis=1)
    outputs = embeddings @ _head(scorer)[0].T + _head(scorer)[1]  # [N, members]
    deviations = fit.posterior.deviations(embeddings.astype(np.float64))
    mean = outputs.mean(axis=1)
    proxies: dict[str, np.ndarray] = {f"head {m + 1}": outputs[:, m] for m in range(MEMBERS)}
    proxies |= {"mean of heads": mean, "worst of heads": COMBINE["worst"](outputs.T, 1.0)}
    for strength in STRENGTHS:
        proxies[f"mean - {strength:g} deviation of heads"] = COMBINE["lower"](outputs.T, strength)
        proxies[f"mean - {strength:g} variance of heads"] = COMBINE["variance"](outputs.T, strength)
        proxies[f"mean - {strength:g} last-layer deviation"] = mean - strength * deviations
    usable = kept_lists(test, kept, LARGEST_N)
    found = chosen_by(proxies, [f"head {m + 1}" for m in range(MEMBERS)], usable, kept, range(1, LARGEST_N + 1))
    uncertainty = {
        "heads": calibrated(usable, kept, outputs, None),
        "last layer": calibrated(usable, kept, np.repeat(mean[:, None], MEMBERS, axis=1), (fit, embeddings)),
    }
    posterior = {"ridge": fit.ridge, "temperature": fit.temperature, "held_out": fit.held_out, "plain": fit.plain}
    return {"train_prompts": len(train), **found, "posterior": posterior, "uncertainty": uncertainty}


def kept_lists(test: Rows, kept: np.ndarray, least: int) -> Lists:
    """(gold of the kept responses, rows of all of them) of each prompt with `least` kept ones; `kept` bool [N], responses one prompt after the other."""
    starts = np.cumsum([0, *(len(row["responses"]) for row in test)])
    lists = [(np.array(row["gold"])[kept[a:b]], slice(a, b)) for row, a, b in zip(test, starts[:-1], starts[1:], strict=True)]
    return [(gold, rows) for gold, rows in lists if len(gold) >= least]


def chosen_by(proxies: Mapping[str, np.ndarray], singles: Sequence[str], usable: Lists, kept: np.ndarray, ns: Sequence[int]) -> dict[str, Any]:
    """Gold of the best of n by each proxy [N]; at the largest n, its difference to the mean of single models', and what the last half of n brought."""
    from palate.stats.best_of_n import best_of_n_curve, expected_best_of_n
    from palate.stats.intervals import mean_interval

    def golds(proxy: str, n: int) -> np.ndarray:
        return np.array([expected_best_of_n(gold, proxies[proxy][rows][kept[rows]], n) for gold, rows in usable])

    def over(difference: np.ndarray) -> list[float]:
        low, high, _ = mean_interval(difference, np.arange(len(difference)))
        return [float(difference.mean()), float(low), float(high)]

    largest = ns[-1]
    single = np.mean([golds(name, largest) for name in singles], axis=0)
    table: dict[str, Any] = {}
    for proxy, rewards in proxies.items():
        curve = best_of_n_curve([gold for gold, _ in usable], [rewards[rows][kept[rows]] for _, rows in usable], ns)
        table[proxy] = {name: getattr(curve, name).tolist() for name in ("expected", "low", "high")}
        table[proxy]["gold"] = table[proxy].pop("expected")
        table[proxy]["over_single"] = over(golds(proxy, largest) - single)
        table[proxy]["last_half"] = over(golds(proxy, largest) - golds(proxy, largest // 2))
    found = {"n": list(ns), "test_prompts": curve.prompts, "left_out": curve.left_out, "oracle": curve.oracle.tolist(), "random": float(curve.random[0])}
    return found | {"proxies": table}


def runs(folder: Path, scratch: Path) -> dict[str, Any]:
    """Models trained one by one on the rows of `alpaca`: single, combined, and their weights averaged, on the pool."""
    from palate.scoring.ensemble import Ensemble

    train, test, ns = alpaca(folder)[0], pool(folder), [2**k for k in range(POOLED_N.bit_length())]
    folders = [run_of(train, seed, scratch) for seed in range(1, MEMBERS + 1)]
    exchanges = [(row["prompt"], response) for row in test for response in row["responses"]]
    singles = {f"run {m + 1}": scored(str(one), exchanges, scratch) for m, one in enumerate(folders)}
    averaged = scored(f"average:{','.join(map(str, folders))}", exchanges, scratch, "float32")  # members rounded before they are averaged choose otherwise
    kept = np.isfinite([*singles.values(), averaged]).all(axis=0)
    members: Any = [_Scored(rewards) for rewards in singles.values()]
    proxies = singles | {"average of weights": averaged, "length": np.array([float(len(response)) for _, response in exchanges])}
    for how, strengths in (("mean", (1.0,)), ("worst", (1.0,)), ("variance", STRENGTHS), ("lower", STRENGTHS)):
        for strength in strengths:  # without evaluation data no contract has a scale: members are z-scored over what is scored, as the commands do
            called = {"variance": f"mean - {strength:g} variance of runs", "lower": f"mean - {strength:g} deviation of runs"}.get(how, f"{how} of runs")
            proxies[called] = Ensemble(members, how=how, strength=strength).estimate(exchanges).rewards
    usable = kept_lists(test, kept, POOLED_N)
    scaled = np.array([(rewards - rewards[kept].mean()) / rewards[kept].std() for rewards in singles.values()])
    agree = np.corrcoef(scaled[:, kept])[np.triu_indices(MEMBERS, 1)]
    found = {"train_prompts": len(train), **chosen_by(proxies, list(singles), usable, kept, ns), "correlation_of_runs": float(agree.mean())}
    return found | {"uncertainty": {"runs": calibrated(usable, kept, scaled.T, None)}}


def scored(source: str, exchanges: Sequence[Any], scratch: Path, dtype: str = "bfloat16") -> np.ndarray:
    """Rewards [N] of what `palate best-of --model` takes, NaN for what is too long. Kept in a file, one for each source, dtype and list of texts."""
    from palate.scoring.sources import open_scorer

    key = hashlib.sha256(json.dumps([source, dtype, exchanges]).encode()).hexdigest()[:16]
    path = scratch / f"rewards-{key}.npy"
    if not path.is_file():
        scorer: Any = open_scorer(source, dtype=dtype).scorer
        np.save(path, scorer.score(exchanges, on_long="nan"))
    return np.load(path)


def embedded_test(name: str, make: Callable[[Path], tuple[Rows, Rows]], folder: Path, scratch: Path) -> tuple[Rows, np.ndarray]:
    """(test rows, embeddings of their responses one after the other), computed once by the model of this name."""
    from palate.scoring.local import load_scorer

    test, path = make(folder)[1], scratch / f"{name}-test.npy"
    if not path.is_file():
        np.save(path, load_scorer(scratch / name).embed([(row["prompt"], response) for row in test for response in row["responses"]], on_long="nan"))
    return test, np.load(path)


def few(folder: Path, scratch: Path) -> dict[str, Any]:
    """Heads on a frozen backbone fitted to the comparisons of few prompts that it has not seen, best of n on the others; the means of 20 draws.

    One head is fitted to all of them and has the posterior; those of the ensemble are each fitted to a resample of the prompts, with replacement.
    Intervals: over the draws, of the difference to the one head. On gsm8k's backbone heads of 40 prompts choose no better than chance, so there is
    nothing to compare.
    """
    from palate.multi_objective.baselines import shared_base_ensemble
    from palate.multi_objective.pessimism import fit_posterior
    from palate.scoring.uncertainty import COMBINE
    from palate.stats.best_of_n import expected_best_of_n
    from palate.stats.intervals import mean_interval

    test, embeddings = embedded_test("alpaca", alpaca, folder, scratch)
    ends = np.cumsum([len(row["responses"]) for row in test])[:-1]
    whole = [(np.array(row["gold"]), x) for row, x in zip(test, np.split(embeddings.astype(np.float64), ends), strict=True) if np.isfinite(x).all()]
    found: dict[str, Any] = {}
    for prompts, noise in FEW:
        best: dict[str, list[float]] = {}  # gold of the best of LARGEST_N, draw by draw
        for seed in range(REPEATS):
            rng = np.random.default_rng(seed)
            order = rng.permutation(len(whole))
            pairs = _compared([whole[i] for i in order[:prompts]], noise, rng)
            resamples = [np.concatenate([np.flatnonzero(pairs.prompts == p) for p in rng.choice(prompts, prompts)]) for _ in range(MEMBERS)]
            heads = np.concatenate([shared_base_ensemble(pairs[rows], 1, m).weights for m, rows in enumerate(resamples)])
            one = shared_base_ensemble(pairs, 1, MEMBERS).weights[0]
            posterior = fit_posterior(pairs, one, seed=seed).posterior
            gold, x = [whole[i][0] for i in order[prompts:]], np.concatenate([whole[i][1] for i in order[prompts:]])
            outputs, deviations = heads @ x.T, posterior.deviations(x)
            proxies = {"one head": x @ one, "mean of heads": outputs.mean(axis=0), "worst of heads": outputs.min(axis=0)}
            for strength in STRENGTHS:
                proxies[f"mean - {strength:g} deviation of heads"] = COMBINE["lower"](outputs, strength)
                proxies[f"one head - {strength:g} last-layer deviation"] = x @ one - strength * deviations
            for proxy, rewards in proxies.items():
                lists = zip(gold, np.split(rewards, np.cumsum([len(own) for own in gold])[:-1]), strict=True)
                best.setdefault(proxy, []).append(float(np.mean([expected_best_of_n(g, r, LARGEST_N) for g, r in lists])))
        single = np.array(best.pop("one head"))  # [repeats]
        table: dict[str, Any] = {"one head": {"gold": float(single.mean())}}
        for proxy, golds in best.items():
            gain = np.array(golds) - single
            low, high, _ = mean_interval(gain, np.arange(REPEATS))
            table[proxy] = {"gold": float(np.mean(golds)), "over_single": [float(gain.mean()), float(low), float(high)]}
        found[f"{prompts} prompts, {noise:.0%} flipped"] = table
    return found


def _compared(rows: Sequence[tuple[np.ndarray, np.ndarray]], noise: float, rng: np.random.Generator) -> Any:
    """Pairs of every two responses of unequal gold of these (gold, embeddings), a share of them the wrong way round."""
    from palate.data.loading import load_groups
    from palate.multi_objective.pairs import embedded_pairs

    compared = []
    for i, (gold, _) in enumerate(rows):
        for better, worse in np.argwhere(gold[:, None] > gold[None]):
            ends = (worse, better) if rng.random() < noise else (better, worse)
            compared.append({"prompt": f"{i}", "chosen": f"{i} {ends[0]}", "rejected": f"{i} {ends[1]}"})
    return embedded_pairs(_Known(rows), load_groups(compared).groups)


def calibrated(usable: Lists, kept: np.ndarray, outputs: np.ndarray, posterior: Any) -> dict[str, Any]:
    """Pairs of unequal gold: do their probabilities, and errors, follow the deviation of the difference? Fitted temperature in both cases."""
    from palate.stats.calibration import expected_calibration_error, fit_temperature, log_loss
    from palate.stats.uncertainty import error_growth, moderated

    difference, spread, prompts = [], [], []
    for prompt, (gold, rows) in enumerate(usable):
        index = np.arange(rows.start, rows.stop)[kept[rows]]
        better, worse = np.nonzero(gold[:, None] > gold[None])
        d = outputs[index[better]] - outputs[index[worse]]
        difference += d.mean(axis=1).tolist()
        if posterior is None:
            spread += d.std(axis=1).tolist()
        else:
            fit, embeddings = posterior
            x = embeddings[index[better]].astype(np.float64) - embeddings[index[worse]]
            spread += fit.posterior.deviations(x + fit.posterior.reference).tolist() if len(x) else []
        prompts += [prompt] * len(better)
    d, s = np.array(difference), np.array(spread)
    temperature = fit_temperature(d).value
    allowed = moderated(d / temperature, (s / temperature) ** 2)
    again = fit_temperature(allowed).value
    growth = error_growth((d <= 0).astype(float), s, prompts)
    return {
        "pairs": len(d),
        "accuracy": float((d > 0).mean()),
        "temperature": temperature,
        "log_loss": [log_loss(d, temperature), log_loss(allowed, again)],
        "ece": [expected_calibration_error(d, temperature=temperature), expected_calibration_error(allowed, temperature=again)],
        "errors_follow_deviation": [growth.spearman, growth.interval.low, growth.interval.high],
    }


# --- ratings ------------------------------------------------------------------------------------------------------------------------------------------


def ratings(folder: Path, scratch: Path) -> dict[str, Any]:
    """Gaussian and quantile heads on ratings of 1 to 5: do their deviations cover held-out ratings, and do errors grow with them?

    Ratings are told from their training mean, so that heads need not first learn a constant.
    """
    from palate.scoring.sources import open_scorer
    from palate.stats.uncertainty import coverage, error_growth

    train, test = rated(folder)
    mean = float(np.mean([row["score"] for row in train]))
    rows = [{"prompt": row["prompt"], "response": row["response"], "score": row["score"] - mean} for row in train]
    truth, questions = np.array([row["score"] for row in test]) - mean, [row["question"] for row in test]
    found: dict[str, Any] = {"train": len(train), "test": len(test), "test_questions": len(set(questions))}
    for kind in ("gaussian", "quantile"):
        model = trained(f"rated-{kind}", rows, {"type": kind}, scratch, batch=16, max_length=512, epochs=3)
        scorer: Any = open_scorer(str(model)).scorer
        rewards, deviation = scorer.score([(row["prompt"], row["response"]) for row in test], return_uncertainty=True, on_long="nan")
        scored = np.isfinite(rewards)
        error, spread, of = (rewards - truth)[scored], deviation[scored], [q for q, s in zip(questions, scored, strict=True) if s]
        growth = error_growth(error, spread, of)
        found[kind] = {
            "scored": int(scored.sum()),
            "rmse": float(np.sqrt((error**2).mean())),
            "deviation_of_ratings": float(truth[scored].std()),
            "growth": [growth.spearman, growth.interval.low, growth.interval.high],
            "bins": growth.bins,
            "coverage": [[row.level, row.covered, row.interval.low, row.interval.high] for row in coverage(error, spread, of)],
        }
    return found


# --- attributes ---------------------------------------------------------------------------------------------------------------------------------------


def attributes(folder: Path, scratch: Path) -> dict[str, Any]:
    """Ridge heads on the embeddings of the model trained on alpaca, and gates for them with and without verbosity taken out.

    `score` is rated in gpt4_rated alone, `judge` (log-odds of the judge) in alpaca_eval's training split alone, `words` in both: missing ratings are the rule.
    Test pairs are of instructions that neither the heads, the gates, nor the backbone was trained on.
    """
    from palate.data.loading import load_groups
    from palate.multi_objective.attributes import Ratings, attribute_readout, fit_attributes
    from palate.multi_objective.gating import GateTraining, fit_gate
    from palate.multi_objective.heads import save_heads
    from palate.scoring.gated import GatedScorer, gate_inputs
    from palate.scoring.local import load_scorer
    from palate.stats.intervals import accuracy_interval, codes_of
    from palate.stats.ranking import spearman

    backbone = load_scorer(scratch / "alpaca", max_length=512)
    rows = [row | {"judge": np.nan} for part in rated(folder) for row in part]
    for row in [row for row in lines(folder / "alpaca_eval_kwise.jsonl") if row["split"] == "train"][:200]:
        for response, score in zip(row["responses"], row["scores"], strict=True):
            words = float(np.log1p(len(response.split())))
            rows.append({"question": row["id"], "prompt": row["prompt"], "response": response, "score": np.nan, "judge": score, "words": words})
    embeddings = backbone.embed([(row["prompt"], row["response"]) for row in rows], on_long="nan")
    values = Ratings(("score", "judge", "words"), np.array([[row["score"], row["judge"], row["words"]] for row in rows], dtype=float))
    heads, fits = fit_attributes(embeddings, values, codes_of([row["question"] for row in rows]), intercept=True)
    model = scratch / "attributes"
    if not model.exists():
        save_heads(backbone, heads, model, golden=[], readout=attribute_readout(fits))
    scorer = load_scorer(model)
    pairs = lines(folder / "alpaca_eval_pairs_train_small.jsonl")
    random.Random(0).shuffle(pairs)
    seen = {row["prompt"] for row in alpaca(folder)[0]}
    test = [row for row in lines(folder / "alpaca_eval_pairs_test.jsonl") if row["prompt"] not in seen][:600]
    groups, held = (load_groups([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in part]).groups for part in (pairs[:1000], test))
    taught, tested = (gate_inputs(scorer, [e for group in part for e in group.exchanges()], on_long="nan") for part in (groups, held))
    longer, prompts = tested.lengths[0::2] > tested.lengths[1::2], np.array([str(group.prompt) for group in held])
    found: dict[str, Any] = {"rated": [fit._asdict() for fit in fits], "train_pairs": len(groups)}

    def measured(rewards: np.ndarray) -> dict[str, Any]:
        d, known = rewards[0::2] - rewards[1::2], np.isfinite(rewards)
        both = np.isfinite(d)
        right = (d > 0).astype(float)
        interval = accuracy_interval(right[both], prompts[both].tolist())
        return {
            "test_pairs": int(both.sum()),
            "accuracy": [float(right[both].mean()), interval.low, interval.high],
            "longer_chosen": float(right[both & longer].mean()),
            "shorter_chosen": float(right[both & ~longer].mean()),
            "length_correlation": spearman(rewards[known], tested.lengths[known]),
        }

    found |= {name: measured(tested.outputs[:, i]) for i, name in enumerate(heads.names)}
    found["alike"] = measured(tested.outputs @ np.array(scorer.readout.weights))
    ends = np.arange(len(groups)) * 2
    for against in (None, "words", "length"):
        fit = fit_gate(taught, ends, ends + 1, heads.names, against=against, training=GateTraining(hidden=(128, 128), steps=400, batch=256))
        rewards = GatedScorer(scorer, fit.gate, fit.settings).weigh(tested)[0]
        correlations = [[None if np.isnan(one) else one for one in row] for row in fit.correlations]  # nothing is left of verbosity itself
        found[f"gate, less {against}" if against else "gate"] = measured(rewards) | {"lambdas": fit.settings.lambdas, "correlations": correlations}
    return found


class _Scored:
    """A member whose rewards are at hand."""

    def __init__(self, rewards: np.ndarray):
        self.rewards = rewards

    def score(self, conversations: Sequence[Any], **_: Any) -> np.ndarray:
        return self.rewards


class _Known:
    """Embeddings at hand, of responses called `prompt number` and `response number`."""

    def __init__(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]):
        self.rows = rows

    def embed(self, conversations: Sequence[Any], **_: Any) -> Any:
        from palate.scoring.embeddings import Embeddings

        places = [tuple(int(part) for part in one.response.split()) for one in conversations]
        return Embeddings(np.array([self.rows[i][1][j] for i, j in places], dtype=np.float32), np.arange(len(places)))


class _InMemory:
    """Embeddings of a run that are not worth keeping."""

    def __init__(self, scorer: Any):
        self.scorer = scorer

    def embed(self, conversations: Sequence[Any], **_: Any) -> Any:
        from palate.scoring.embeddings import Embeddings

        rows = self.scorer.embed(conversations, on_long="nan")
        whole = np.isfinite(rows).all(axis=1)
        return Embeddings(rows, np.where(whole, np.arange(len(rows)), -1))


def _head(scorer: Any) -> tuple[np.ndarray, np.ndarray]:
    from palate.multi_objective.heads import heads_of

    heads = heads_of(scorer)
    return heads.weights, heads.bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="alpaca,gsm8k,runs,few,ratings,attributes")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "alpaca": lambda: best_of_n("alpaca", alpaca, options.data, options.scratch),
        "gsm8k": lambda: best_of_n("gsm8k", gsm8k, options.data, options.scratch),
        "runs": lambda: runs(options.data, options.scratch),
        "few": lambda: few(options.data, options.scratch),
        "ratings": lambda: ratings(options.data, options.scratch),
        "attributes": lambda: attributes(options.data, options.scratch),
    }
    found = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for name in options.only.split(","):
        found[name] = jobs[name]()
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
