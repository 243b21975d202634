"""`palate merge`: an adapter and its base as one full checkpoint, which gives the same rewards."""

from __future__ import annotations

from collections.abc import Sequence

from palate.cli.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate merge", description="Write an adapter merged into its base model: a full checkpoint that loads anywhere.")
    parser.add_argument("adapter", help="folder of a trained adapter")
    parser.add_argument("output", help="folder to write")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.interchange.merging import merge_saved

    quiet_libraries()
    merge_saved(options.adapter, options.output)
    console.print(f"Merged into [bold]{options.output}[/bold]; its golden examples score as they did")
    return 0
