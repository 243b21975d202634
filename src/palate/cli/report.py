"""`palate report`: pages, Markdown and a model card from files that are already there, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.cli.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate report", description="Pages from results.json, comparison.json or trainer_state.json; model cards.")
    parser.add_argument("source", nargs="+", help="results.json (several: one page over all), comparison.json, trainer_state.json, or a training folder")
    parser.add_argument("--page", help="HTML page to write")
    parser.add_argument("--markdown", help="Markdown file to write")
    parser.add_argument("--card", metavar="DIR", help="write DIR/README.md, the model card of the checkpoint there, with these results")
    parser.add_argument("--title", help="title of the page (default: from the file)")
    options = parser.parse_args(arguments)
    if not (options.page or options.markdown or options.card):
        parser.error("say what to write: --page, --markdown or --card")

    from palate.cli.console import console
    from palate.errors import ConfigError

    sources = [Path(source) for source in options.source]
    kinds = {kind_of(path) for path in sources}
    if len(kinds) > 1 or (len(sources) > 1 and kinds != {"results"}):
        raise ConfigError(f"palate report takes several results, or one file of another kind; got {', '.join(f'{p} ({kind_of(p)})' for p in sources)}")
    kind = kinds.pop()
    if options.page:
        write_page_of(kind, sources, Path(options.page), options.title)
        console.print(f"Page: {options.page}")
    if options.markdown:
        Path(options.markdown).write_text(markdown_of(kind, sources, options.title), encoding="utf-8")
        console.print(f"Markdown: {options.markdown}")
    if options.card:
        from palate.reports.model_card import write_model_card

        if kind != "results":
            raise ConfigError(f"a model card takes results.json, not {kind}")
        console.print(f"Model card: {write_model_card(Path(options.card), results=sources)}")
    return 0


def kind_of(path: Path) -> str:
    """results, comparison or training, by what the file holds. Raises DataError where it is none of them."""
    from palate.errors import DataError
    from palate.evaluation.benchmarks import read_json

    if path.is_dir():
        if (path / "run.json").is_file() or any(path.glob("**/trainer_state.json")):
            return "training"
        raise DataError(f"{path}: holds no trainer_state.json; give a training folder, results.json or comparison.json")
    content = read_json(path)
    keys = content.keys() if isinstance(content, dict) else set()
    for kind, needed in (("training", "log_history"), ("comparison", "pairs"), ("results", "accuracy"), ("results", "benchmark")):
        if needed in keys:
            return kind
    raise DataError(f"{path}: is neither results.json nor comparison.json nor trainer_state.json")


def write_page_of(kind: str, sources: Sequence[Path], page: Path, title: str | None) -> None:
    from palate.reports.page import write_comparison_page, write_index_page, write_page, write_training_page

    if kind == "training":
        write_training_page(sources[0], page, title=title or f"Training: {sources[0]}")
    elif kind == "comparison":
        write_comparison_page(sources[0], page, title=title or "Comparison")
    elif len(sources) > 1:
        write_index_page(sources, page, title=title or "Results")
    else:
        write_page(sources[0], page, title=title or str(sources[0]))


def markdown_of(kind: str, sources: Sequence[Path], title: str | None) -> str:
    from palate.errors import ConfigError
    from palate.reports.markdown import comparison_markdown, result_markdown

    if kind == "training":
        raise ConfigError("a training run has a page (--page), no Markdown")
    if kind == "comparison":
        return comparison_markdown(sources[0], title=title or "Comparison")
    return "\n\n".join(result_markdown(source, title=title or str(source)) for source in sources)
