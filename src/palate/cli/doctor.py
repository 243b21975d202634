"""`palate doctor DIR`: every check of a saved reward model, with what to do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="palate doctor", description="Check a saved reward model; exit code 4 when a check fails.")
    parser.add_argument("directory", help="checkpoint folder")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.scoring.doctor import examine

    quiet_libraries()
    failed = 0
    for check in examine(options.directory):
        failed += not check.passed
        console.print(f"{'[green]pass[/green]' if check.passed else '[red]FAIL[/red]'}  {check.name}: ", end="")
        console.print(check.advice, markup=False)
    console.print(f"{failed} checks failed" if failed else "All checks passed")
    return 4 if failed else 0
