"""What the judging commands share: flags for a judge, the judge they name, progress, and what it cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from palate.cli.arguments import at_least_one, not_negative, number, whole
from palate.cli.styles import add_style_flags, chat_judge, check_style, is_decision, policy_of

if TYPE_CHECKING:
    from palate.cli.styles import WordJudge
    from palate.judging.budget import Purse
    from palate.judging.call_cache import CallCache
    from palate.judging.caller import Caller
    from palate.judging.calls import Price
    from palate.types import Conversation


class Opened(NamedTuple):
    judge: Any  # a Judge
    caller: Caller | None  # None where no calls are made, or by its members
    provenance: dict[str, Any]
    members: tuple[Opened, ...] = ()  # of a panel

    @property
    def callers(self) -> list[Caller]:
        return [caller for one in self.members for caller in one.callers] or ([self.caller] if self.caller else [])


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    judge = parser.add_argument_group("the judge")
    judge.add_argument(
        "--judge",
        required=True,
        help="model name at the endpoint, or decision:MODEL (log-odds of `transformers serve`); in this process rm:CHECKPOINT (a reward model), local:MODEL "
        "(asked in words), logits:MODEL (A or B by log-odds); panel:FILE.yaml (several: a jury or a cascade)",
    )
    judge.add_argument("--base-url", help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1 (default: OpenAI's own)")
    add_style_flags(judge)
    judge.add_argument("--criteria", default="", help="what makes a response better, in words")
    judge.add_argument("--rubric", default="", help="a file with a rubric")
    judge.add_argument("--temperature", type=not_negative, default=0.0, help="of the judge's sampling")
    judge.add_argument("--max-tokens", type=at_least_one, default=2048, help="most tokens of an answer")
    judge.add_argument("--sampling-seed", type=int, help="sent with every question, a number made of it with every further draw (default: none is sent)")
    judge.add_argument("--votes", type=at_least_one, default=1, help="answers drawn a question (needs an endpoint that samples)")
    add_call_flags(parser)


def add_call_flags(parser: argparse.ArgumentParser) -> None:
    calls = parser.add_argument_group("the calls")
    calls.add_argument("--api-key-env", help="environment variable with the endpoint's key (default: OPENAI_API_KEY, for OpenAI's own address alone)")
    calls.add_argument("--cache", default="palate-answers.sqlite", help="file of raw answers; what is in it is not asked again")
    calls.add_argument("--concurrency", type=at_least_one, default=64, help="calls at once, at most")
    calls.add_argument("--timeout", type=number(above=0), default=300.0, help="seconds for one call")
    calls.add_argument("--max-requests", type=whole(0), help="stop after so many calls")
    calls.add_argument("--max-cost", type=not_negative, help="stop before this cost (needs --price)")
    calls.add_argument("--price", nargs=2, type=not_negative, metavar=("PROMPT", "COMPLETION"), help="money per million tokens")
    calls.add_argument("--no-probe", action="store_true", help="do not ask the endpoint what it can do")


def open_judge(options: argparse.Namespace, *, references: Mapping[str, Conversation] | None = None, purse: Purse | None = None) -> Opened:
    """The judge that the flags name. A reward model judges without calls. `references`: right answers to judge by, by the text of the prompt.

    `purse`: what the budget of the flags is spent from, where others spend from it too.
    """
    check_style(options)
    if options.judge.startswith("panel:"):
        return _open_panel(options, references or {})
    if options.judge.startswith("rm:"):
        from palate.evaluation.judges import ScorerJudge
        from palate.scoring.sources import open_scorer

        opened = open_scorer(options.judge.removeprefix("rm:"))
        provenance = {"judge": opened.description["name"], "kind": "reward model", "policy": policy_of(options)}
        return Opened(ScorerJudge(opened.scorer, on_long="nan"), None, provenance)
    if options.judge.startswith("logits:"):
        from palate.scoring.generative import load_pairwise_judge

        name = options.judge.removeprefix("logits:")
        return Opened(load_pairwise_judge(name), None, {"judge": name, "kind": "log-odds of A and B", "policy": policy_of(options)})
    return _open_chat(options, references or {}, purse)


def _open_panel(options: argparse.Namespace, references: Mapping[str, Conversation]) -> Opened:
    """A jury or a cascade: its members opened one by one, with one budget for all."""
    from palate.cli.panels import panel_of, read_members
    from palate.judging.budget import Purse

    panel, flags = read_members(options)
    purse = Purse()
    members = tuple(open_judge(one, references=references, purse=purse) for one in flags)
    judge, provenance = panel_of(options, panel, flags, members)
    return Opened(judge, None, provenance, members)


def open_caller(
    options: argparse.Namespace,
    base_url: str | None,
    *,
    max_requests: int | None,
    max_cost: float | None,
    cached: bool = True,
    prices: Mapping[str, Price] | None = None,
    purse: Purse | None = None,
    decisions: bool = False,
) -> Caller:
    """Calls to one endpoint as the flags have them, within what is left of the budget.

    `prices`: of models with another price than that of the flags. `decisions`: log-odds of `transformers serve`, in place of chat completions.
    """
    from palate.judging.budget import Budget, Purse
    from palate.judging.call_cache import CallCache
    from palate.judging.caller import Caller
    from palate.judging.calls import Price
    from palate.judging.decision_client import DecisionClient
    from palate.judging.openai_client import OpenAIClient

    client = (DecisionClient if decisions else OpenAIClient)(base_url, api_key=_key(options.api_key_env), timeout=options.timeout)
    budget = Budget(max_requests, max_cost, Price(*options.price) if options.price else None, prices or {}, purse or Purse())
    return Caller(client, cache=CallCache(options.cache) if cached else None, budget=budget, concurrency=options.concurrency)


def _key(variable: str | None) -> str | None:
    """The key that a named variable holds. Unnamed: the client's own rule, which sends OPENAI_API_KEY to no other address than OpenAI's."""
    import os

    from palate.errors import ConfigError

    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ConfigError(f"--api-key-env {variable}: this environment variable is not set")
    return os.environ[variable]


def _open_chat(options: argparse.Namespace, references: Mapping[str, Conversation], purse: Purse | None) -> Opened:
    from palate.cli.console import console
    from palate.errors import ConfigError
    from palate.judging.capabilities import probe

    if options.votes < 1:
        raise ConfigError(f"--votes {options.votes}: a question is asked once at least")
    if options.judge.startswith("local:"):
        return _open_local(options, references)
    decisions = is_decision(options)
    caller = open_caller(options, options.base_url, max_requests=options.max_requests, max_cost=options.max_cost, purse=purse, decisions=decisions)
    judge = chat_judge(options, caller, references)
    if not options.no_probe and not decisions:
        capabilities = probe(caller, options.judge, state=state_of(caller, options.judge))
        for note in capabilities.notes:
            console.print(f"  {note}", markup=False, highlight=False)
        judge = chat_judge(options, caller, references, capabilities)
    return _opened(options, judge, caller)


def state_of(caller: Caller, model: str) -> str:
    """What an endpoint says of a model; nothing where it is no endpoint."""
    from palate.judging.openai_client import OpenAIClient

    return caller.client.state(model) if isinstance(caller.client, OpenAIClient) else ""


def _open_local(options: argparse.Namespace, references: Mapping[str, Conversation]) -> Opened:
    """A language model in this process, asked in words; what it can do is known without a probe."""
    from palate.judging.call_cache import CallCache
    from palate.judging.caller import Caller
    from palate.judging.local_client import LocalClient

    client = LocalClient(options.judge.removeprefix("local:"))
    caller = Caller(client, cache=CallCache(options.cache), start_concurrency=client.max_batch, concurrency=max(client.max_batch, options.concurrency))
    judge = chat_judge(options, caller, references, client.capabilities)
    return _opened(options, judge, caller)


def _opened(options: argparse.Namespace, judge: WordJudge, caller: Caller) -> Opened:
    """The judge itself, or its votes; a judge of ratings counts its votes itself."""
    from palate.judging.combining import Votes
    from palate.judging.judge import ChatJudge

    provenance = judge.provenance() | {"votes": options.votes, "policy": None if options.style == "rating" else policy_of(options)}
    return Opened(Votes(judge, options.votes) if options.votes > 1 and isinstance(judge, ChatJudge) else judge, caller, provenance)


def known_answers(options: argparse.Namespace) -> CallCache | None:
    """The cache, where there is one: a dry run writes no file."""
    from palate.judging.call_cache import CallCache

    return CallCache(options.cache) if Path(options.cache).is_file() else None


def summed(spent: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several callers spent, as one."""
    from collections import Counter

    total: dict[str, Any] = {
        name: sum(one[name] for one in spent) for name in ("requests", "answered", "cached", "prompt_tokens", "completion_tokens", "seconds")
    }
    costs = [one["cost"] for one in spent]
    total["cost"] = None if None in costs else sum(costs)
    for name in ("failures", "retries"):
        total[name] = dict(sum((Counter(one[name]) for one in spent), Counter()))
    return total


def show_spent(callers: Sequence[Caller]) -> dict[str, Any]:
    """Print what the calls came to, and return it; nothing where there is nobody to call."""
    from palate.cli.console import console
    from palate.errors import tally

    if not callers:
        return {}
    spent = summed([caller.spent.as_dict(caller.budget) for caller in callers])
    cost = "unknown (no --price)" if spent["cost"] is None else f"{spent['cost']:.4f}"
    console.print(
        f"Calls: {spent['requests']} asked, {spent['cached']} from the cache; tokens {spent['prompt_tokens']} in, {spent['completion_tokens']} out; "
        f"cost {cost}; failed: {tally(spent['failures'], 'none')}; asked again: {tally(spent['retries'], 'none')}; {spent['seconds']:.1f} s",
        markup=False,
    )
    if any(caller.stopped for caller in callers):
        console.print("The budget ended the run: what was answered is kept; run again with a larger one to go on.")
    return spent
