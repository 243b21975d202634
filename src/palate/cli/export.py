"""`palate export`: a checkpoint in another stack's format, loaded again as that stack does it before it is kept."""

from __future__ import annotations

from collections.abc import Sequence

from palate.cli.arguments import Parser

FORMATS = ("hf", "adapter", "deepspeed-chat", "openrlhf", "llamafactory", "token-classification")


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate export", description="Write a reward model in another stack's format; it is kept only if it scores the same.")
    parser.add_argument("directory", help="checkpoint or adapter folder, or a hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="hf: transformers, TRL, vLLM, SGLang, TEI; token-classification: critics of verl and PPO"
    )
    parser.add_argument("--base", help="adapter: the base model to name, or to take a full checkpoint's difference from; llamafactory: whose lm_head to add")
    parser.add_argument("--fold", action="store_true", help="one reward in place of a head's several outputs, by the contract's weights")
    parser.add_argument("--drop-bias", action="store_true", help="leave out a head's bias where the format has no place for it")
    parser.add_argument("--zero-bias", action="store_true", help="write score.bias = 0, which SGLang's Qwen classes start at random where it is missing")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.interchange.exporting import export_model

    quiet_libraries()
    export_model(
        options.directory,
        options.output,
        options.format,
        base=options.base,
        fold=options.fold,
        drop_bias=options.drop_bias,
        zero_bias=options.zero_bias,
        say=lambda line: console.print(line, markup=False),
    )
    return 0
