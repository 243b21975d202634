"""`palate compare A B [C ...]`: saved results on the comparisons that they share -> differences with intervals and p, flipped items, page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.cli.arguments import Parser, share, whole


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate compare", description="Compare models on the items that they share.")
    parser.add_argument("results", nargs="+", help="results.json of two models or more (written by palate eval --output), or folders that hold one")
    parser.add_argument("--names", nargs="+", help="what to call them (default: each model's own name)")
    parser.add_argument("--output", help="comparison.json to write")
    parser.add_argument("--page", help="HTML page to write (needs --output)")
    parser.add_argument("--markdown", help="Markdown file to write (needs --output)")
    parser.add_argument("--confidence", type=share, default=0.95, help="of intervals")
    parser.add_argument("--flips", type=whole(0), default=3, help="flipped items to print of each pair of models")
    options = parser.parse_args(arguments)
    for flag in ("page", "markdown"):
        if getattr(options, flag) and not options.output:
            parser.error(f"--{flag} needs --output")
    if not 0 < options.confidence < 1:
        parser.error(f"--confidence is {options.confidence}, expected a number between 0 and 1, e.g. 0.95")

    from palate.cli.console import console
    from palate.errors import StorageError
    from palate.evaluation.comparison import compare_results
    from palate.evaluation.evaluator import to_json
    from palate.reports.tables import comparison_subset_table, comparison_table, flip_table

    comparison = compare_results(options.results, names=options.names, confidence=options.confidence)
    console.print(comparison_table(comparison))
    if table := comparison_subset_table(comparison):
        console.print(table)
    if options.flips and (table := flip_table(comparison, options.flips)):
        console.print(table)
    if options.output:
        output = Path(options.output)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(to_json(comparison), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{output}: the comparison cannot be written: {error}") from error
        console.print(f"Comparison: {output}")
        if options.page:
            from palate.reports.page import write_comparison_page

            write_comparison_page(output, Path(options.page))
            console.print(f"Page: {options.page}")
        if options.markdown:
            from palate.reports.markdown import comparison_markdown

            Path(options.markdown).write_text(comparison_markdown(output), encoding="utf-8")
            console.print(f"Markdown: {options.markdown}")
    return 0
