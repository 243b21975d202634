"""Styles of judging on the command line: pairs, ratings, lists; the flags of each, what follows from them, and the judge that they name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from palate.cli.arguments import whole

if TYPE_CHECKING:
    from palate.judging.caller import Caller
    from palate.judging.capabilities import Capabilities
    from palate.judging.judge import ChatJudge
    from palate.judging.list_judge import ListJudge
    from palate.judging.orders import Policy
    from palate.judging.rating_judge import RatingJudge
    from palate.types import Conversation

    WordJudge: TypeAlias = ChatJudge | RatingJudge | ListJudge


def add_style_flags(judge: argparse._ArgumentGroup) -> None:
    judge.add_argument(
        "--style", choices=("pairwise", "rating", "list"), default="pairwise", help="ask about two responses, about each by itself, or about all in one list"
    )
    judge.add_argument(
        "--form",
        choices=("five_step", "three_way", "binary", "token", "json"),
        help="how a verdict is asked for (token: log-odds; default: five_step, and words for the styles rating and list, which know json besides)",
    )
    judge.add_argument("--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of ratings (default: 1 10)")
    judge.add_argument("--aspects", default="", help="rate by each of these and take the mean: YAML file of names and what they mean")
    judge.add_argument("--orders", type=whole(2), help="orders in which a list is shown, an even number: each comes with its mirror image (default: 2)")
    judge.add_argument("--window", type=whole(2), help="most responses in one list; longer ones are cut into windows that overlap (default: 7)")
    judge.add_argument(
        "--policy",
        choices=("drop", "tie", "keep_mean"),
        help="where the two orders contradict each other (default: keep_mean for log-odds, whose mean is free of position, drop for words)",
    )


def is_decision(options: argparse.Namespace) -> bool:
    """Whether the judge is asked for log-odds at /v1/systemone, and for nothing else."""
    return options.judge.startswith("decision:")


def form_of(options: argparse.Namespace) -> str:
    """How a verdict is asked for: what is not said follows from the style."""
    from palate.errors import ConfigError

    if options.style == "pairwise":
        return options.form or ("token" if is_decision(options) else "five_step")
    if options.form not in (None, "json"):
        raise ConfigError(f"--form {options.form} is a verdict on a pair; with --style {options.style} use json, or leave it out (words)")
    return options.form or {"rating": "number", "list": "ranking"}[options.style]


def policy_of(options: argparse.Namespace) -> Policy:
    """What becomes of contradictions: where nothing is said, log-odds are averaged, and words that change with the order are dropped."""
    log_odds = options.judge.startswith("logits:") or (options.style == "pairwise" and form_of(options) == "token")
    return options.policy or ("keep_mean" if log_odds else "drop")


def check_style(options: argparse.Namespace) -> None:
    """What is asked for in vain is refused, before anything is opened."""
    from palate.errors import ConfigError

    if options.style != "pairwise" and options.judge.startswith(("rm:", "logits:")):
        raise ConfigError(f"--style {options.style}: {options.judge.partition(':')[0]}: compares pairs and can be asked nothing else; use --style pairwise")
    if is_decision(options) and (options.style != "pairwise" or form_of(options) != "token"):
        raise ConfigError("decision: says A or B by log-odds and writes nothing; use --style pairwise and --form token, or leave both out")
    if options.style == "list" and options.votes > 1:
        raise ConfigError(f"--votes {options.votes}: a list is asked about in several orders, not several times; raise --orders")
    if options.aspects and options.style != "rating":
        raise ConfigError(f"--aspects are rated one by one, and --style is {options.style}; use --style rating, or --criteria")
    for flag, style in (("scale", "rating"), ("orders", "list"), ("window", "list")):
        if getattr(options, flag) is not None and options.style != style:
            raise ConfigError(f"--{flag} is for --style {style}, and --style is {options.style}; leave it out")
    if options.style == "rating" and options.policy:
        raise ConfigError(f"--policy {options.policy} is about two orders of a pair, and a rating is given without an order; leave it out")


def chat_judge(options: argparse.Namespace, caller: Caller, references: Mapping[str, Conversation], capabilities: Capabilities | None = None) -> WordJudge:
    """The judge of the chosen style."""
    from palate.judging.calls import Sampling
    from palate.judging.judge import ChatJudge, Instructions
    from palate.judging.list_judge import ListJudge
    from palate.judging.prompts import PairPrompt, RatingPrompt
    from palate.judging.rating_judge import RatingJudge

    form: Any = form_of(options)
    model = options.judge.removeprefix("decision:")
    rubric = _rubric(options.rubric)
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.sampling_seed)
    common: dict[str, Any] = {"sampling": sampling, "capabilities": capabilities, "references": references}
    told: dict[str, Any] = {**common, "criteria": options.criteria, "rubric": rubric}
    if options.style == "rating":
        low, high = options.scale or (RatingPrompt.low, RatingPrompt.high)
        prompt = RatingPrompt(low, high, form)
        return RatingJudge(caller, model, prompt=prompt, aspects=_aspects(options.aspects), votes=options.votes, **told)
    if options.style == "list":
        shown = {name: value for name in ("orders", "window") if (value := getattr(options, name)) is not None}
        return ListJudge(caller, model, variant=form, seed=getattr(options, "seed", 0), **shown, **told)
    return ChatJudge(caller, model, instructions=Instructions(PairPrompt(form), options.criteria, rubric), **common)


def _aspects(path: str) -> dict[str, str]:
    """Names and criteria of a YAML file."""
    import yaml

    from palate.errors import ConfigError

    if not path:
        return {}
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--aspects {path}: cannot be read as YAML: {error}") from error
    if not (isinstance(found, dict) and found and all(isinstance(name, str) and name and isinstance(text, str) for name, text in found.items())):
        raise ConfigError(f"--aspects {path}: expected names with what each means, such as `honesty: Does it say what it does not know?`, got {found!r:.80}")
    return found


def _rubric(path: str) -> str:
    from palate.errors import ConfigError

    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--rubric {path}: cannot be read as text: {error}") from error
