"""`palate serve`: rewards over HTTP, in our own dialect and in those of vLLM, SGLang, TEI, OpenRLHF and others."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from palate.cli.arguments import Parser, at_least_one, not_negative, number, whole
from palate.serving.settings import ServerSettings
from palate.types import PACKINGS

KEY_VARIABLE = "PALATE_API_KEY"


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)

    from palate.cli.console import quiet_libraries
    from palate.serving.hosting import Loading
    from palate.serving.running import serve

    quiet_libraries()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    given = {name: getattr(options, name) for name in ("packing", "token_budget", "max_length", "device", "dtype")}
    loading = Loading({name: value for name, value in given.items() if value is not None}, options.allow_pickle, options.trust_remote_code)
    serve(named(options.model), settings(options), loading)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate serve", description="Serve reward models over HTTP (docs/serving.md).")
    parser.add_argument("--model", action="append", required=True, metavar="[NAME=]PATH", help="checkpoint folder or hub id; may be repeated")
    where = parser.add_argument_group("where, and who may")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    where.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any free one")
    where.add_argument("--api-key", help=f"key that clients must send (others on this machine can see it in the list of processes: prefer {KEY_VARIABLE})")
    what = parser.add_argument_group("the model")
    what.add_argument("--on-long", choices=("error", "truncate_prompt"), default="error", help="beyond max_length; what was cut is said in the answer")
    what.add_argument("--max-length", type=at_least_one, help="in place of the checkpoint's own")
    what.add_argument("--packing", choices=PACKINGS, default="auto", help="how sequences are computed (auto: the fastest exact way)")
    what.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    what.add_argument("--device", help="cpu, cuda:1 (default: a GPU if there is one)")
    what.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the backbone (default: as it was saved)")
    what.add_argument("--threads", type=at_least_one, help="CPU threads that compute (leave a core for HTTP)")
    what.add_argument("--allow-pickle", action="store_true", help="load weights that are no safetensors")
    what.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body", type=at_least_one, default=ServerSettings.max_body, help="bytes of a request")
    limits.add_argument("--max-items", type=at_least_one, default=ServerSettings.max_items, help="items of a request")
    limits.add_argument("--queue-items", type=at_least_one, default=ServerSettings.queue_items, help="items queued before 503 is answered")
    limits.add_argument("--queue-tokens", type=at_least_one, default=ServerSettings.queue_tokens, help="tokens queued before 503 is answered")
    limits.add_argument("--timeout", type=number(above=0), default=ServerSettings.timeout, help="seconds until 504 is answered")
    limits.add_argument("--batch-tokens", type=at_least_one, help="tokens computed before newcomers are looked at (default: a few rows' worth)")
    limits.add_argument("--batch-items", type=at_least_one, help="items computed before newcomers are looked at (1: no batching)")
    limits.add_argument("--linger", type=not_negative, default=ServerSettings.linger, help="seconds that an idle model waits for company to a first item")
    change = parser.add_argument_group("other models while it runs")
    change.add_argument("--may-load", action="store_true", help="offer POST /v1/models/load and /v1/models/reload")
    change.add_argument("--model-root", action="append", default=[], type=Path, help="folder that they may load from; may be repeated")
    return parser.parse_args(arguments)


def named(models: Sequence[str]) -> dict[str, str]:
    """NAME=PATH pairs; a path alone is its own name. Raises ConfigError where two have one name."""
    from palate.errors import ConfigError

    found: dict[str, str] = {}
    for given in models:
        name, equals, path = given.partition("=")
        name, path = (name, path) if equals else (given, given)
        if not name or not path:
            raise ConfigError(f"--model {given}: expected a path, or NAME=PATH")
        if name in found:
            raise ConfigError(f"--model: two models are called {name}; give them names of their own (NAME=PATH)")
        found[name] = path
    return found


def settings(options: argparse.Namespace) -> ServerSettings:
    limits = ("max_body", "max_items", "queue_items", "queue_tokens", "timeout", "batch_tokens", "batch_items", "linger")
    given = {name: getattr(options, name) for name in limits if getattr(options, name) is not None}
    key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    where = {"host": options.host, "port": options.port, "api_key": key, "on_long": options.on_long}
    return ServerSettings(**where, **given, may_load=options.may_load, model_roots=tuple(options.model_root))
