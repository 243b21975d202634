"""`palate import`: another stack's reward model as a checkpoint with a contract, every decision a line."""

from __future__ import annotations

from collections.abc import Sequence

from palate.cli.arguments import Parser, at_least_one

FORMATS = ("auto", "openrlhf", "llamafactory", "deepspeed-chat", "trl", "open-instruct", "nemo-rl", "classifier", "adapter")


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="palate import", description="Make a checkpoint with a contract from another stack's reward model.")
    parser.add_argument("directory", help="its folder, or a hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="whose it is (auto: seen from its files, asked where they leave it open)")
    parser.add_argument("--template", help="chat template: a .jinja file, a model that has it, `plain`, `deepspeed-chat`, or `none` for plain text alone")
    parser.add_argument("--tokenizer", help="folder or hub id of the tokenizer, where the folder has none")
    parser.add_argument("--base", help="base model of an adapter, in place of the one that it names")
    parser.add_argument("--pad-token", help="token of the vocabulary to pad with (default: the tokenizer's own unless it is EOS; else one is found or added)")
    parser.add_argument("--eos-token", help="token that ends plain text, where it is not the tokenizer's EOS")
    parser.add_argument("--end-text", default="<|endoftext|>", help="what DeepSpeed-Chat put behind every response")
    parser.add_argument("--value-head", help="name of the head among the tensors, where it is an unusual one")
    parser.add_argument("--weights", nargs="*", default=[], metavar="OUTPUT=WEIGHT", help="what each of several outputs weighs in the reward")
    parser.add_argument("--max-length", type=at_least_one, help="longest sequence in tokens (default: what positions allow)")
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files (tensors alone are taken from them)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that its config names")
    options = parser.parse_args(arguments)

    from palate.cli.console import console, quiet_libraries
    from palate.interchange.import_options import ImportOptions
    from palate.interchange.importing import import_model

    quiet_libraries()
    said = ImportOptions(
        format=options.format,
        template=options.template,
        pad_token=options.pad_token,
        eos_token=options.eos_token,
        end_text=options.end_text,
        tokenizer=options.tokenizer,
        base=options.base,
        value_head=options.value_head,
        weights=parse_weights(options.weights),
        max_length=options.max_length,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    import_model(options.directory, options.output, said, say=lambda line: console.print(line, markup=False))
    return 0


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """["helpful=1", "length=-0.1"] -> {"helpful": 1.0, "length": -0.1}"""
    from palate.errors import ConfigError

    weights = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"--weights {one}: expected OUTPUT=WEIGHT, like helpful=1") from error
    return weights
