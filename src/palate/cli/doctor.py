"""`palate doctor DIR --for trl,vllm`: every check of a saved reward model, its own and its consumers', with what to do."""

from __future__ import annotations

from collections.abc import Sequence

from palate.cli.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate doctor", description="Check a saved reward model; exit code 4 when a check fails.")
    parser.add_argument("directory", help="checkpoint folder")
    parser.add_argument("--for", dest="consumers", default="", metavar="NAMES", help="consumers, by comma: trl,vllm,sglang,tei,verl,openrlhf,... or all")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.interchange.doctor.examine import CONSUMERS, consumers_of, examine

    quiet_libraries()
    named = [name.strip() for name in options.consumers.split(",") if name.strip()]
    asked = list(CONSUMERS) if named == ["all"] else consumers_of(named)
    failed: dict[str, int] = {}
    for check in examine(options.directory, asked):
        console.print(f"{'[green]pass[/green]' if check.passed else '[red]FAIL[/red]'}  {check.name}: ", end="")
        console.print(check.advice, markup=False)
        if not check.passed:
            consumer = check.name.partition(":")[0] if ":" in check.name else "the folder itself"
            failed[consumer] = failed.get(consumer, 0) + 1
    found = ", ".join(f"{count} of {name}" for name, count in failed.items())
    total = sum(failed.values())
    console.print(f"{total} check{'s' if total > 1 else ''} failed: {found}" if failed else "All checks passed")
    return 4 if failed else 0
