"""`palate bench`: speed and memory of training or scoring on this machine, against the padded path and TRL, as ratios."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palate.cli.arguments import Parser, at_least_one


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate bench", description="Contenders take turns on the same batches; medians of ratios are printed.")
    parser.add_argument("--data", help="preference data (default: the sample set)")
    parser.add_argument("--model", default="qwen3-30m", help="checkpoint folder, hub id, or a random model: qwen3-30m, llama-8b")
    parser.add_argument("--kind", choices=("train", "score"), default="train", help="training steps, or scoring")
    parser.add_argument(
        "--against", nargs="*", metavar="NAME", help="packed, padded, auto+compile, trl (training), pipeline (scoring); default: padded and the peer"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (training)")
    parser.add_argument("--batch-size", type=at_least_one, default=8, help="groups of a step")
    parser.add_argument("--max-length", type=at_least_one, default=1024, help="tokens; longer rows are left out by all contenders")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="batches measured")
    parser.add_argument("--token-budget", type=at_least_one, help="tokens computed at a time (default: by device)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory (a fresh process for each contender)")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder for bench.json and bench.png")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.errors import ConfigError
    from palate.sample import sample_path

    peer = "trl" if options.kind == "train" else "pipeline"
    known = {"auto", "shared", "packed", "padded", peer} | ({"auto+compile", "shared+compile", "packed+compile", "padded+compile"} if peer == "trl" else set())
    against = options.against if options.against is not None else ["padded", peer]
    if unknown := set(against) - known:
        raise ConfigError(f"--against {', '.join(sorted(unknown))}: expected some of {', '.join(sorted(known))}")
    if "trl" in against and find_spec("trl") is None:
        if options.against is not None:
            raise ConfigError("--against trl needs TRL: pip install trl")
        console.print("TRL is not installed and is left out (pip install trl)")
        against.remove("trl")
    quiet_libraries()

    import torch

    from palate.bench.speed import machine, measure, peak_memory
    from palate.bench.workload import from_file
    from palate.reports.plots import save, speed

    source = {
        "path": str(options.data or sample_path() / "train.jsonl"),
        "model": options.model,
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "limit": options.batch_size * (options.rounds + 2),
    }
    contenders = ["auto", *(name for name in against if name != "auto")]
    with console.status("measuring"):
        work = from_file(**source, dtype=torch.float32)
        result = measure(work, contenders, kind=options.kind, bf16=options.bf16, rounds=options.rounds, token_budget=options.token_budget)
        if not options.no_memory:
            for name, figures in result["contenders"].items():
                figures["peak_memory_mib"] = peak_memory(source, name, kind=options.kind, bf16=options.bf16, token_budget=options.token_budget)
    console.print(table(result))
    options.output.mkdir(parents=True, exist_ok=True)
    record = {**result, "source": source, "machine": machine()}
    (options.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    save(speed(result), options.output / "bench.png")
    console.print(f"written to {options.output}/bench.json and bench.png")
    return 0


def table(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    unit = "pairs/s" if result["kind"] == "train" else "responses/s"
    precision = "bfloat16 autocast" if result["bf16"] else "as the weights"
    title = f"{result['kind']}, {result['batch_size']} groups a batch, {precision}; matmul {result['matmul_gflops']:.0f} GFLOP/s"
    view = Table(title=title, title_justify="left")
    columns = ("contender", unit, "tokens/s", "of matmul", "peak MiB", "time")
    for column in columns:
        view.add_column(column, justify="left" if column == "contender" else "right", overflow="fold")
    for name, figures in result["contenders"].items():
        rate = figures["comparisons_per_second" if result["kind"] == "train" else "sequences_per_second"]
        memory = figures.get("peak_memory_mib")
        view.add_row(
            "palate" if name == "auto" else name,
            f"{rate:.2f}",
            f"{figures['unique_tokens_per_second']:.0f}",
            f"{figures['share_of_matmul_rate']:.0%}",
            f"{memory:.0f}" if memory else "-",
            f"{figures['ratio']:.2f}x",
        )
    return view
