"""`palate COMMAND`: finds the command, runs it, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "train, evaluate and try a reward model on the sample data (offline, a few minutes)",
    "train": "train a reward model:  palate train --config run.yaml --training.learning_rate 2e-5",
    "eval": "measure a reward model:  palate eval --model out --data test.jsonl --output results.json",
    "compare": "models on the items that they share:  palate compare a/results.json b/results.json",
    "report": "pages, Markdown and model cards from saved results:  palate report results.json --page page.html",
    "judge": "look at a judge before spending on it:  palate judge audit --data gold.jsonl --judge MODEL --base-url URL",
    "generate": "responses of several models:  palate generate --config sources.yaml --prompts prompts.jsonl --output responses.jsonl",
    "build": "preference data from a judge:  palate build --data responses.jsonl --judge MODEL --output prefs.jsonl",
    "decompose": "many directions of preference in place of one:  palate decompose --model out --data prefs.jsonl --output heads",
    "adapt": "fit those directions to a user's few comparisons:  palate adapt --model heads --data user.jsonl --output adapted",
    "attributes": "a head for each rated attribute, and a gate:  palate attributes --model out --data rated.jsonl --output heads",
    "score": "add rewards to rows:  palate score --model out --data rows.jsonl --output scored.jsonl",
    "best-of": "the best of each prompt's responses:  palate best-of --model out --data responses.jsonl --output best.jsonl",
    "serve": "rewards over HTTP, in the dialects of vLLM, SGLang, TEI and OpenRLHF:  palate serve --model out",
    "ui": "browse and label pairs beside their rewards:  palate ui --data prefs.jsonl --model out",
    "data": "look over preference data, and for test sets in it:  palate data check FILE --against TEST",
    "bench": "speed and memory on this machine, against padding and TRL:  palate bench --data FILE",
    "merge": "an adapter and its base as one checkpoint:  palate merge ADAPTER OUTPUT",
    "export": "a checkpoint in another stack's format:  palate export DIR OUTPUT --format deepspeed-chat",
    "import": "another stack's reward model as a checkpoint with a contract:  palate import DIR OUTPUT",
    "doctor": "check a saved reward model:  palate doctor DIR --for vllm,trl",
}

MODULES = {"best-of": "best_of", "import": "import_"}
"""Commands whose names are no names of modules."""

KEEPS = ("generate", "build", "judge")
"""Commands whose calls are kept as they are answered."""

USAGE = "usage: palate COMMAND [options]\n\nReward modelling: from raw preferences to a served reward.\n\ncommands:\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 2 usage or configuration, 3 data, 4 model, 5 disk, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE + "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items()) + "\n\npalate COMMAND --help says more.")
        return 0
    if arguments[0] in ("-V", "--version"):
        from palate import __version__

        print(f"palate {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"palate: unknown command {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; commands: {', '.join(COMMANDS)}"), file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    from palate.errors import PalateError

    # Long-lived warnings of libraries about their own future are for their authors; ours stay on.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        return int(importlib.import_module(f"palate.cli.{MODULES.get(name, name)}").main(arguments) or 0)
    except PalateError as error:
        print(f"palate {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"palate {name}: interrupted" + ("; what was answered is kept: run again to go on" if name in KEEPS else ""), file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
