"""`palate adapt`: a checkpoint of many heads and a user's few comparisons -> how well adaptation does, and the adapted head as a plain reward model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palate.cli.arguments import Parser, at_least_one, number
from palate.types import PACKINGS

if TYPE_CHECKING:
    import numpy as np

    from palate.multi_objective.heads import LinearHeads
    from palate.multi_objective.pairs import Pairs
    from palate.multi_objective.trials import Trials
    from palate.scoring.embeddings import CachedEmbedder
    from palate.scoring.local import LocalScorer

RECORD = "adaptation.json"


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.cli.decompose import check_free, users_of
    from palate.errors import ModelError
    from palate.multi_objective.heads import heads_of, original_head
    from palate.multi_objective.trials import TrialSettings, run_trials
    from palate.scoring.embeddings import open_embedder

    quiet_libraries()
    if options.output:
        check_free(Path(options.output))
    given = {name: getattr(options, name) for name in ("max_length", "packing", "token_budget") if getattr(options, name) is not None}
    embedder, scorer, _ = open_embedder(options.model, options.cache, **given)
    heads = heads_of(scorer)
    if len(heads) < 2:
        raise ModelError(f"{options.model}: has the one output {heads.names[0]}, and adaptation weighs several; make some by palate decompose or attributes")
    pairs = read_pairs(embedder, options.data, options)
    users = users_of(pairs, options.by)
    if options.n:
        scores, single = scores_of(pairs, heads, embedder, options), original_head(scorer).score(pairs.embeddings)[:, 0]
        settings = [TrialSettings(n, options.draws, options.temperature, options.exclude, options.seed) for n in options.n]
        results = [run_trials(pairs, scores, single, users, each) for each in settings]
        for found in results:
            show(found, by=options.by)
        if options.results:
            write_results(Path(options.results), results, options)
            console.print(f"Results: {options.results}")
    if options.output:
        save_adapted(pairs, scorer, heads, users, options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate adapt", description="Weigh the heads of a checkpoint by a user's few comparisons; no training.")
    parser.add_argument("--model", required=True, help="checkpoint with several heads, as palate decompose or palate attributes writes it")
    parser.add_argument("--data", required=True, help="the users' preference rows, in any known layout")
    parser.add_argument("--output", help="folder to write: one head, adapted to all comparisons of the user, as a plain reward model")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), default="error", help="a row that cannot be read: end here, or leave it out, counted")
    whose = parser.add_argument_group("whose preferences")
    whose.add_argument("--by", metavar="COLUMN", help="column that names the user (annotator, topic, attribute) of a row; without it all rows are one user's")
    whose.add_argument("--user", help="with --by and --output: whose head to write")
    how = parser.add_argument_group("how")
    how.add_argument("--temperature", type=number(above=0), default=1.0, help="of the softmax over heads (default: 1, the paper's)")
    how.add_argument("--n", type=numbers, metavar="N[,N]", help="test adaptation to so many comparisons (default without --output: 5,15)")
    how.add_argument("--draws", type=at_least_one, default=20, help="random choices of the comparisons that are adapted on")
    how.add_argument(
        "--exclude", choices=("prompt", "response"), default="prompt", help="what a tested comparison shares with none adapted on: prompt and texts, or texts"
    )
    how.add_argument("--shared-base", metavar="DATA", help="preference rows to train the shared-base ensemble on, a baseline; it is left out without them")
    how.add_argument("--seed", type=int, default=0, help="of the draws and of random heads")
    how.add_argument("--results", help="JSON file of all figures to write")
    how.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="beyond max_length (nan: left out and counted)")
    how.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    how.add_argument("--packing", choices=PACKINGS, help="how sequences are computed (default: the fastest exact way)")
    how.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    how.add_argument("--cache", help="folder of embeddings computed before (default: among the user's caches)")
    options = parser.parse_args(arguments)
    if options.n is None and not options.output:
        options.n = [5, 15]
    if options.user is not None and not (options.by and options.output):
        parser.error("--user names whose head to write; it needs --by and --output")
    if options.output and options.by and options.user is None:
        parser.error("--output is one head; with --by say whose by --user")
    if options.draws < 2:
        parser.error(f"--draws is {options.draws}, expected 2 or more (an interval over draws needs two)")
    if options.results and not options.n:
        parser.error("--results are the figures of a test; say how many comparisons to adapt on by --n")
    return options


def numbers(text: str) -> list[int]:
    """For argparse: whole numbers from 1 on, with commas between."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} holds a number below 1")
    return found


def read_pairs(embedder: CachedEmbedder, data: str, options: argparse.Namespace) -> Pairs:
    from palate.cli.console import console
    from palate.cli.eval import parse_columns
    from palate.data.loading import load_groups
    from palate.multi_objective.pairs import embedded_pairs

    groups = load_groups(data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False).groups
    pairs = embedded_pairs(embedder, groups, weights="given", on_long=options.on_long, progress=True)
    console.print(f"{data}: {len(pairs)} comparisons" + (f", {pairs.left_out} left out (a response is too long, or empty)" if pairs.left_out else ""))
    return pairs


# --- is it worth it? --------------------------------------------------------------------------------------------------------------------------------


def scores_of(pairs: Pairs, heads: LinearHeads, embedder: CachedEmbedder, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """What the checkpoint's heads and as many of each baseline say of every response."""
    from palate.multi_objective.baselines import gaussian_heads, random_scores, shared_base_ensemble, uniform_heads

    responses, count, seed = pairs.embeddings, len(heads), options.seed
    found = {"heads, adapted": heads.score(responses)}
    if options.shared_base:
        found["shared-base ensemble, adapted"] = shared_base_ensemble(read_pairs(embedder, options.shared_base, options), count, seed).score(responses)
    found["random uniform heads, adapted"] = random_scores(uniform_heads, responses, count, seed)
    found["random Gaussian heads, adapted"] = random_scores(gaussian_heads, responses, count, seed)
    return found


def show(found: Trials, *, by: str | None) -> None:
    from palate.cli.console import console
    from palate.reports.adaptation_tables import overall_table, user_table

    record = found.as_dict()
    if len(found.users) > 1:
        console.print(user_table(record, by=by or "user"))
    console.print(overall_table(record))
    if found.too_few:
        console.print(f"{len(found.too_few)} without enough comparisons to adapt on and to test on: left out")


def write_results(path: Path, results: Sequence[Trials], options: argparse.Namespace) -> None:
    from palate.evaluation.evaluator import to_json
    from palate.models.checkpoints import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json({"model": options.model, "data": options.data, "by": options.by, "trials": [found.as_dict() for found in results]}))


# --- the adapted head -------------------------------------------------------------------------------------------------------------------------------


def save_adapted(pairs: Pairs, scorer: LocalScorer, heads: LinearHeads, users: Sequence[str], options: argparse.Namespace) -> None:
    """Adapt on all comparisons of the user and write the one head that comes out."""
    import numpy as np

    from palate.cli.console import console
    from palate.cli.decompose import EVERYONE, golden_of
    from palate.data.loading import fingerprint
    from palate.errors import DataError
    from palate.evaluation.evaluator import to_json
    from palate.multi_objective.adaptation import adapt
    from palate.multi_objective.heads import save_heads

    user = options.user if options.by else EVERYONE
    own = pairs[np.array(users) == user]
    if not len(own):
        raise DataError(f"--user {user}: no comparison is theirs; there are {', '.join(sorted(set(users))[:8])}")
    chosen, rejected = (heads.score(own.embeddings.subset(side)) for side in (own.chosen, own.rejected))
    found = adapt(chosen, rejected, fallback=scorer.readout, weights=own.weight, probability=own.probability, temperature=options.temperature)
    groups = [pairs.groups[g] for g in dict.fromkeys(own.group.tolist())]
    record = {
        "model": options.model,
        "user": user,
        "comparisons": found.pairs,
        "temperature": options.temperature,
        "heads": {name: {"weight": w, "loss": loss} for name, w, loss in zip(heads.names, found.weights, found.losses, strict=True)},
    }
    save_heads(
        scorer,
        heads.combined(found.coefficients, found.offset),
        options.output,
        golden=golden_of(groups),
        data_fingerprint=fingerprint(groups),
        files={RECORD: to_json(record)},
    )
    console.print(f"Adapted to {found.pairs} comparisons: {options.output}; most weight: {strongest(heads, found.weights)}")


def strongest(heads: LinearHeads, weights: np.ndarray, count: int = 3) -> str:
    order = sorted(range(len(heads)), key=lambda j: -weights[j])[:count]
    return ", ".join(f"{heads.names[j]} {weights[j]:.2f}" for j in order)
