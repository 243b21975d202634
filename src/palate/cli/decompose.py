"""`palate decompose`: a reward model and preferences -> a checkpoint with a head for each direction of preference, and what the directions are about."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one
from palate.types import PACKINGS

if TYPE_CHECKING:
    from palate.multi_objective.decomposition import Decomposition
    from palate.multi_objective.heads import LinearHeads
    from palate.multi_objective.pairs import Pairs
    from palate.types import PreferenceGroup, Readout

GOLDEN = 8  # exchanges offered as golden examples; the contract keeps the first ones that fit
RECORD = "directions.json"
EVERYONE = "all"  # the user's name where no column says who it is


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.cli.eval import parse_columns
    from palate.data.loading import fingerprint, load_groups
    from palate.evaluation.evaluator import to_json
    from palate.models.checkpoints import write_text
    from palate.multi_objective.decomposition import decompose
    from palate.multi_objective.directions import agreement, explain
    from palate.multi_objective.heads import original_head, save_heads, signed_heads
    from palate.multi_objective.pairs import embedded_pairs
    from palate.reports.directions_tables import agreement_table, directions_table
    from palate.scoring.embeddings import open_embedder

    quiet_libraries()
    output = Path(options.output)
    check_free(output)
    groups = load_groups(options.data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row).groups
    given = {name: getattr(options, name) for name in ("max_length", "packing", "token_budget") if getattr(options, name) is not None}
    embedder, scorer, opened = open_embedder(options.model, options.cache, **given)
    pairs = embedded_pairs(embedder, groups, weights=options.weights, ties=options.ties, on_long=options.on_long, progress=True)
    console.print(
        f"{len(pairs)} comparisons of {len(set(pairs.prompts.tolist()))} prompts; {embedder.computed} responses embedded, {embedder.cached} from the cache"
    )
    if pairs.left_out:
        console.print(f"{pairs.left_out} comparisons left out: a response is longer than the model reads, or empty")
    found = decompose(pairs, components=options.components, centred=options.center)
    original = original_head(scorer)
    heads = original.with_heads(signed_heads(found))
    disputed = agreement(pairs, found, users_of(pairs, options.by)) if options.by else []
    record = {"model": opened.description["name"], "data": str(options.data), "weights": options.weights, **explain(pairs, found, original)}
    record["agreement"] = {"by": options.by, "directions": [one._asdict() for one in disputed]} if disputed else None
    rewards = scorer.contract.rewards if scorer.contract and options.readout == "original" else None
    save_heads(
        scorer,
        heads,
        output,
        golden=golden_of(groups),
        readout=readout_of(options.readout, heads, original, found),
        rewards=rewards,
        data_fingerprint=fingerprint(groups),
        files={RECORD: to_json(record)},
    )
    console.print(directions_table(record))
    if disputed:
        console.print(agreement_table(record["agreement"]))
    console.print(f"{len(heads)} heads: {output} (one reward by its readout: {options.readout}); {output / RECORD}")
    if options.page:
        from palate.reports.directions_page import write_directions_page

        write_directions_page(output / RECORD, Path(options.page))
        console.print(f"Page: {options.page}")
    if options.markdown:
        from palate.reports.directions_page import directions_markdown

        write_text(Path(options.markdown), directions_markdown(output / RECORD))
        console.print(f"Markdown: {options.markdown}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate decompose", description="Many directions of preference in place of one: PCA of chosen minus rejected.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id of a reward model")
    parser.add_argument("--data", required=True, help="preference rows in any known layout; their differences are decomposed")
    parser.add_argument("--output", required=True, help="folder to write: a checkpoint with the original head and two heads a direction")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), default="error", help="a row that cannot be read: end here, or leave it out, counted")
    how = parser.add_argument_group("how")
    how.add_argument("--components", type=at_least_one, default=50, help="directions (default: 50, which makes 100 heads and the original one)")
    how.add_argument("--no-center", dest="center", action="store_false", help="variance about 0 in place of the mean difference: labels play no part")
    how.add_argument(
        "--weights",
        choices=("balanced", "given", "margin"),
        default="balanced",
        help="balanced: a ranking counts as much as a pair; given: by row; margin: times margins",
    )
    how.add_argument("--ties", choices=("drop", "soft"), default="drop", help="comparisons without a winner")
    how.add_argument(
        "--readout",
        choices=("original", "projection", "first"),
        default="original",
        help="the one reward of the checkpoint: the original head's, what the directions hold of it, or the first direction's",
    )
    how.add_argument("--on-long", choices=("error", "nan", "truncate_prompt"), default="nan", help="beyond max_length (nan: left out and counted)")
    how.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    how.add_argument("--packing", choices=PACKINGS, help="how sequences are computed (default: the fastest exact way)")
    how.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    how.add_argument("--cache", help="folder of embeddings computed before (default: among the user's caches)")
    out = parser.add_argument_group("what the directions are about")
    out.add_argument("--by", metavar="COLUMN", help="column that names the annotator of a row: along which directions do annotators differ?")
    out.add_argument("--page", help="HTML page to write")
    out.add_argument("--markdown", help="Markdown file to write")
    options = parser.parse_args(arguments)
    if options.components < 1:
        parser.error(f"--components is {options.components}, expected 1 or more")
    return options


def check_free(output: Path) -> None:
    """Before anything is computed. Raises StorageError where the folder holds something."""
    from palate.errors import StorageError

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"{output}: is not empty; give a new folder")


def golden_of(groups: Sequence[PreferenceGroup]) -> list[Any]:
    return [exchange for group in groups[:GOLDEN] for exchange in group.exchanges()][:GOLDEN]


def readout_of(name: str, heads: LinearHeads, original: LinearHeads, found: Decomposition) -> Readout:
    """The weights of the checkpoint's one reward."""
    from palate.multi_objective.heads import ORIGINAL, projection_weights
    from palate.types import Readout

    if name == "projection":
        return Readout(heads.names, projection_weights(heads, original, found))
    wanted = ORIGINAL if name == "original" else f"{found.names[0]}+"
    return Readout(heads.names, tuple(float(head == wanted) for head in heads.names))


def users_of(pairs: Pairs, column: str | None) -> list[str]:
    """Whose comparison each is. Raises DataError where a row does not say."""
    from palate.errors import DataError

    if column is None:
        return [EVERYONE] * len(pairs)
    users = pairs.metadata(column)
    if None in users:
        group = pairs.groups[pairs.group[users.index(None)]]
        known = ", ".join(str(key) for key in group.metadata if key not in ("source", "location"))
        raise DataError(f"{group.metadata.get('location', 'a row')}: has no column {column!r} to say whose it is; columns that may: {known or 'none'}")
    return [str(user) for user in users]
