"""What all commands parse alike: numbers within their bounds, and help that names every option and its default."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, NoReturn

import pytest

from palate.cli.arguments import Parser, at_least_one, not_negative, number, share, whole
from palate.cli.main import COMMANDS, MODULES


class Parsed(Exception):
    pass


def parsers_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[Parser]:
    """The parser of a command and those of its subcommands, as its `main` makes them."""

    def caught(self: Parser, *_: Any) -> NoReturn:
        raise Parsed(self)

    monkeypatch.setattr(Parser, "parse_args", caught)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"palate.cli.{MODULES.get(command, command)}").main([])
    found = [parsed.value.args[0]]
    for parser in found:
        found += [sub for action in parser._actions if isinstance(action, argparse._SubParsersAction) for sub in action.choices.values()]
    return found


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])  # which takes the names of a configuration
def test_every_option_says_what_it_does_and_what_it_is_by_default(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in parsers_of(command, monkeypatch):
        options = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
        assert [action.dest for action in options if not action.help] == []
        text = " ".join(parser.format_help().split())
        for action in options:
            if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
                assert f"(default: {action.default}" in text or "(default" in str(action.help), (parser.prog, action.dest)


def test_the_help_names_defaults_once() -> None:
    parser = Parser(prog="p")
    parser.add_argument("--a", type=int, default=0, help="first")
    parser.add_argument("--b", default="x", help="second (default: that of the model)")
    parser.add_argument("--c", action="store_true", help="third")
    parser.add_argument("--d", nargs="*", default=[], help="fourth")
    text = " ".join(parser.format_help().split())
    assert text.endswith("--a A first (default: 0) --b B second (default: that of the model) --c third --d [D ...] fourth")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (at_least_one, "1", 1),
        (whole(0, 65535), "65535", 65535),
        (whole(0), "0", 0),
        (not_negative, "0", 0.0),
        (share, "0.95", 0.95),
        (number(least=-1, most=1), "-1", -1.0),
        (number(above=0), "1e-3", 0.001),
    ],
)
def test_numbers_within_their_bounds(kind: Any, text: str, value: float) -> None:
    assert kind(text) == value and type(kind(text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (at_least_one, "0", "0: expected a whole number of at least 1"),
        (at_least_one, "1.5", "'1.5' is not a whole number"),
        (whole(0, 65535), "70000", "70000: expected a whole number from 0 to 65535"),
        (not_negative, "-1", "-1: expected a number at least 0"),
        (not_negative, "nan", "nan: expected a number at least 0"),
        (number(above=0), "inf", "inf: expected a number above 0"),
        (share, "1", "1: expected a number above 0 and below 1"),
        (share, "x", "'x' is not a number"),
    ],
)
def test_numbers_beyond_them(kind: Any, text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value) == message
