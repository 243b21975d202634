"""`palate ui`: preference pairs beside their rewards in a browser, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import getpass
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.cli.arguments import Parser, at_least_one, whole

PORT = 8321


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.errors import ConfigError
    from palate.explorer.app import create_app
    from palate.explorer.guard import LOOPBACK

    try:
        import python_multipart  # noqa: F401 (starlette reads forms by it, and misses it only when one arrives)
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"palate ui needs the package {error.name}: pip install 'palate[ui]'") from error
    quiet_libraries()
    listening = listen(options.host, options.port)
    site = open_site(options)
    key = None if options.host in LOOPBACK else secrets.token_urlsafe(24)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}/" + (f"?key={key}" if key else "")
    console.print(f"Open {address}", markup=False)
    console.print(f"Labels go to {site.labels.path}. Ctrl-C ends.", markup=False)
    config = uvicorn.Config(create_app(site, key=key), log_level="warning", server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate ui", description="Browse, measure, compare and label preference pairs beside their rewards.")
    parser.add_argument("--data", required=True, help="file, folder or hub id in any known layout that compares")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names, e.g. chosen=better rejected=worse")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), default="drop", help="drop: rows that cannot be read are counted on the first page")
    parser.add_argument("--limit", type=at_least_one, help="only the first so many groups")
    rewards = parser.add_argument_group("where rewards come from")
    rewards.add_argument("--model", help="what `palate eval --model` takes; every response is scored once and kept in the cache")
    rewards.add_argument("--items", help="results.json of `palate eval --output`, or its items: nothing is scored anew")
    rewards.add_argument("--scores", help="rows that `palate score` wrote, in place of --items")
    rewards.add_argument("--compare", metavar="OTHER", help="a second model, or its results.json")
    rewards.add_argument("--format", help="input format of a model that has one of its own (see palate eval --help)")
    rewards.add_argument("--protocol", help="what an endpoint speaks: palate, vllm, sglang, openrlhf, tei (default: it is asked)")
    rewards.add_argument("--api-key-env", help="environment variable with the endpoint's key")
    rewards.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    rewards.add_argument("--cache", help="file of rewards computed before (default: $PALATE_CACHE, else among the user's caches)")
    rewards.add_argument("--no-cache", action="store_true", help="compute every reward anew, keep none")
    labels = parser.add_argument_group("labelling")
    labels.add_argument("--labels", help="JSONL file to append to (default: NAME.labels.jsonl in this folder, by the name of the data)")
    labels.add_argument("--annotator", help="name under which labels are written (default: yours on this machine)")
    more = parser.add_argument_group("more")
    more.add_argument("--run", metavar="DIR", help="training folder whose curves are shown")
    more.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond this machine everybody needs the key that is printed")
    more.add_argument("--port", type=whole(0, 65535), default=PORT, help="0: any free one")
    options = parser.parse_args(arguments)
    if options.items and options.scores:
        parser.error("--items and --scores are both rewards of the same data; give one of them")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}, expected 1 or more")
    options.packing, options.token_budget = "auto", None  # as `palate eval` has them unless told otherwise
    return options


def listen(host: str, port: int) -> socket.socket:
    """The socket, before anything is loaded: a port that is taken is said at once."""
    from palate.errors import ConfigError

    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # two servers may bind one port, but not both listen
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error}; choose another --port (0: any free one)") from error
    return listening


def open_site(options: argparse.Namespace) -> Any:
    """Everything that the pages show: the data read, the rewards read or computed."""
    from palate.cli.eval import parse_columns
    from palate.data.loading import load_groups
    from palate.explorer.labels import LabelFile
    from palate.explorer.measures import Measures
    from palate.explorer.pairs import Pairs
    from palate.explorer.rewards import from_items, from_model, from_scores, unscored
    from palate.explorer.site import Site
    from palate.reports.files import find_history

    run = Path(options.run) if options.run else None
    if run:
        find_history(run)  # a folder without a log is said before anything is scored
    labels = LabelFile(options.labels or default_labels(options.data))
    loaded = load_groups(options.data, split=options.split, columns=parse_columns(options.columns), on_bad_row=options.on_bad_row, margins=False)
    groups = loaded.groups[: options.limit]
    model = open_model(options, options.model) if options.model else None
    if options.items:
        rewards = from_items(options.items, groups)
    elif options.scores:
        rewards = from_scores(options.scores, groups)
    else:
        rewards = from_model(model, groups) if model else unscored(groups)
    other = open_other(options, groups) if options.compare else None
    pairs = Pairs(groups, rewards, other=other, report=loaded.reports[0])
    name = loaded.reports[0].source
    return Site(pairs, labels, annotator=options.annotator or getpass.getuser(), name=name, model=model, measures=Measures(pairs, run))


def open_model(options: argparse.Namespace, source: str) -> Any:
    from palate.cli.eval import open_cached
    from palate.explorer.rewards import Model

    return Model(open_cached(argparse.Namespace(**{**vars(options), "model": source})))


def open_other(options: argparse.Namespace, groups: Any) -> Any:
    from palate.explorer.rewards import from_items, from_model, is_saved

    if is_saved(options.compare):
        return from_items(options.compare, groups)
    return from_model(open_model(options, options.compare), groups)


def default_labels(data: str) -> Path:
    """Here, not beside the data: a folder of data would be read with its labels next time."""
    return Path(f"{Path(data).resolve().name.split('.')[0]}.labels.jsonl")
