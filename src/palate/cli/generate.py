"""`palate generate`: prompts -> responses of several sources, filtered and counted, with a diversity report; what `palate build` judges."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one
from palate.cli.judging import add_call_flags, known_answers, open_caller, show_spent, state_of
from palate.cli.output import rows_path, write_json, write_rows

if TYPE_CHECKING:
    from palate.judging.caller import Caller
    from palate.judging.calls import Price
    from palate.judging.generation import Draw
    from palate.judging.sources import GenerationSettings


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.data.loading import read_rows
    from palate.errors import tally
    from palate.judging.generation import generate, plan, read_prompts
    from palate.judging.sources import read_generation

    quiet_libraries()
    output = rows_path(options.output, overwrite=True)
    settings = with_endpoints(read_generation(options.config), options.base_url, options.api_key_env)
    found = read_prompts(read_rows(options.prompts, split=options.split))
    prompts = found.prompts[: options.limit]
    draws = plan(prompts, settings)
    console.print(f"{len(prompts)} prompts, {len(draws)} responses; left out: {tally(found.left_out)}", markup=False)
    if options.dry_run:
        return show_plan(options, draws)
    callers = open_callers(options, draws)
    if not options.no_probe and not options.allow_constant:
        check_sampling(draws, callers)
    generated = generate(prompts, settings, callers, allow_constant=options.allow_constant)
    report = {**generated.report, "left_out_before": found.left_out, "calls": show_spent(list(callers.values()))}
    write_rows(output, generated.rows)
    write_json(output.with_suffix(".report.json"), report)
    show(report, options.output)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate generate", description="Responses of several sources to prompts, for a judge to compare.")
    parser.add_argument("--config", required=True, help="sources.yaml: sources, per_prompt, sampler, filters, seed (docs/judging.md)")
    parser.add_argument("--prompts", required=True, help="rows with a prompt; other columns but id and reference are left aside")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument("--output", required=True, help="rows of responses to write (.jsonl or .parquet; replaced if there); the report goes beside them")
    parser.add_argument("--base-url", help="endpoint of the sources that name none")
    parser.add_argument("--limit", type=at_least_one, help="only the first so many prompts")
    parser.add_argument("--dry-run", action="store_true", help="say how many calls it would take, and make none")
    parser.add_argument("--allow-constant", action="store_true", help="go on where a source says the same whatever is drawn")
    add_call_flags(parser)
    return parser.parse_args(arguments)


def with_endpoints(settings: GenerationSettings, base_url: str | None, api_key_env: str | None) -> GenerationSettings:
    """Sources that name no endpoint get that of the command line, with its key, which goes to no other address."""
    sources = [
        source if source.base_url else source.model_copy(update={"base_url": base_url, "api_key_env": source.api_key_env or api_key_env})
        for source in settings.sources
    ]
    return settings.model_copy(update={"sources": sources})


def open_callers(options: argparse.Namespace, draws: Sequence[Draw]) -> dict[str | None, Caller]:
    """One for each endpoint. A budget is for all of them together: it is shared out by the number of their calls."""
    urls = list(dict.fromkeys(draw.source.base_url for draw in draws))
    share = {url: sum(draw.source.base_url == url for draw in draws) / len(draws) for url in urls}
    requests, cost = options.max_requests, options.max_cost
    return {
        url: open_caller(
            with_key(options, draws, url),
            url,
            max_requests=None if requests is None else int(requests * share[url]),
            max_cost=None if cost is None else cost * share[url],
            prices=prices_of(draws, url),
        )
        for url in urls
    }


def with_key(options: argparse.Namespace, draws: Sequence[Draw], base_url: str | None) -> argparse.Namespace:
    """The flags with the name of the key of one endpoint."""
    return argparse.Namespace(**{**vars(options), "api_key_env": next(draw.source.api_key_env for draw in draws if draw.source.base_url == base_url)})


def prices_of(draws: Sequence[Draw], base_url: str | None) -> dict[str, Price]:
    """Of the models at one endpoint that the configuration gives a price."""
    from palate.judging.calls import Price

    return {draw.source.model: Price(*draw.source.price) for draw in draws if draw.source.base_url == base_url and draw.source.price}


def check_sampling(draws: Sequence[Draw], callers: Mapping[str | None, Caller]) -> None:
    """Raises ModelError, before anything is spent, where a model that is to be sampled says the same whatever is drawn."""
    from palate.errors import ModelError
    from palate.judging.capabilities import probe_sampling
    from palate.judging.generation import alarm

    greedy: dict[str, str] = {}
    for url, model in dict.fromkeys((draw.source.base_url, draw.source.model) for draw in draws if draw.temperature > 0):
        varies, seen = probe_sampling(callers[url], model, state=state_of(callers[url], model))
        greedy |= {} if varies else {model: seen}
    if greedy:
        raise ModelError(alarm(greedy))


def show_plan(options: argparse.Namespace, draws: Sequence[Draw]) -> int:
    from collections import Counter

    from palate.cli.console import console
    from palate.judging.budget import dry_run
    from palate.judging.calls import Price

    price = Price(*options.price) if options.price else None
    for name, count in Counter(draw.source.label for draw in draws).items():
        console.print(f"  {name}: {count} calls", markup=False, highlight=False)
    for url in dict.fromkeys(draw.source.base_url for draw in draws):
        client = open_caller(with_key(options, draws, url), url, max_requests=None, max_cost=None, cached=False).client
        own = [draw.request for draw in draws if draw.source.base_url == url]
        console.print(client.endpoint, markup=False, highlight=False)
        estimate = dry_run(own, price=price, prices=prices_of(draws, url), cache=known_answers(options), endpoint=client.endpoint)
        console.print(str(estimate), markup=False, highlight=False)
    if not options.no_probe and not options.allow_constant:
        console.print("Besides these: a few short calls to each model that is sampled, which see whether its answers vary (unless --no-probe)")
    return 0


def show(report: dict[str, Any], output: str) -> None:
    from palate.cli.console import console
    from palate.reports.judge_tables import responses_table

    console.print(responses_table(report, title=output))
