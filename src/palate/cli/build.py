"""`palate build`: prompts with responses -> verdicts, ratings or rankings -> strengths -> preference rows and their data card."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from palate.cli.arguments import Parser, at_least_one, not_negative, number
from palate.cli.judging import add_judge_flags, known_answers, open_caller, open_judge, show_spent
from palate.cli.output import rows_path, write_json, write_rows, write_texts
from palate.cli.styles import chat_judge, check_style, form_of, is_decision, policy_of
from palate.types import text_of

if TYPE_CHECKING:
    from palate.cli.styles import WordJudge
    from palate.judging.build import Built
    from palate.judging.calls import ChatRequest
    from palate.judging.canaries import Canary
    from palate.judging.candidates import Candidates
    from palate.types import Judge, Matchup


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    from palate.cli.console import console, quiet_libraries
    from palate.cli.panels import panel_figures
    from palate.data.loading import read_rows
    from palate.errors import tally
    from palate.judging.candidates import read_candidates
    from palate.judging.card_markdown import card_markdown
    from palate.judging.watched import Watched

    quiet_libraries()
    output = rows_path(options.output, overwrite=True)
    everything = read_candidates(read_rows(options.data, split=options.split))
    found = everything._replace(**{name: getattr(everything, name)[: options.limit] for name in ("prompts", "responses", "ids", "references")})
    console.print(f"{len(found.prompts)} prompts, {sum(map(len, found.responses))} responses; left out: {tally(found.left_out)}", markup=False)
    references = {text_of(prompt): reference for prompt, reference in zip(found.prompts, found.references, strict=True) if reference is not None}
    canaries = drawn_canaries(options, found)
    if options.dry_run:
        return show_plan(options, found, references, canaries)
    opened = open_judge(options, references=references)
    watched = Watched(opened.judge, canaries, has_tie=knows_ties(options), seed=options.seed)
    try:
        built = judged_and_built(options, found, opened.judge, watched, opened.provenance)
    finally:
        spent = show_spent(opened.callers)
    card = {
        **built.card,
        "left_out_before": found.left_out,
        "canaries": watched.figures(),
        "panel": panel_figures(opened),
        "calls": spent,
        "cost_per_row": spent["cost"] / len(built.rows) if spent.get("cost") is not None and built.rows else None,
    }
    write_rows(output, built.rows)
    write_json(output.with_suffix(".card.json"), card)
    write_texts(output.with_suffix(".card.md"), [card_markdown(card, name=output.stem, file=output.name)])
    show(card, options.output)
    return 0


def judged_and_built(options: argparse.Namespace, found: Candidates, judge: Any, watched: Judge, provenance: dict[str, Any]) -> Built:
    """In the style that was asked for. A judge that is not asked about pairs meets its canaries by themselves, at the end."""
    from palate.judging.build import BuildSettings, build, build_listed, build_rated
    from palate.judging.combining import BothOrders

    settings = BuildSettings(
        select=options.select,
        ridge=options.ridge,
        source_prior=not options.no_source_prior,
        rating_span=options.rating_span,
        margin=options.margin,
        margin_clip=options.margin_clip,
        min_margin=options.min_margin,
        pairs_per_prompt=options.pairs_per_prompt,
        seed=options.seed,
    )
    asked: Any = {"prompts": found.prompts, "candidates": found.responses, "settings": settings, "ids": found.ids, "provenance": provenance}
    if options.style == "pairwise":
        return build(BothOrders(watched, policy_of(options)).judge_pairs, **asked)
    built = build_rated(judge, **asked) if options.style == "rating" else build_listed(judge, policy=policy_of(options), **asked)
    watched.compare([])
    return built


def drawn_canaries(options: argparse.Namespace, found: Candidates) -> list[Canary]:
    """Of as many pairs as asked for, else of a share of those that are judged. A response rated twice has one rating: no canary for that style."""
    from palate.judging.watched import draw_canaries, usual_canaries

    check_style(options)
    pairs = len(planned(options, found)) // 2
    num = usual_canaries(pairs) if options.canaries is None else options.canaries
    kinds: Any = ("shuffled",) if options.style == "rating" else ("identical", "shuffled")
    return draw_canaries(found.prompts, found.responses, num, kinds=kinds, seed=options.seed)


def knows_ties(options: argparse.Namespace) -> bool:
    """Whether the judge, or one of a panel, can call two responses equal."""
    if options.judge.startswith("panel:"):
        from palate.cli.panels import read_members

        return any(knows_ties(member) for member in read_members(options)[1])
    return not options.judge.startswith("logits:") and form_of(options) not in ("binary", "token")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="palate build", description="Preference data from a judge, with margins and soft labels.")
    parser.add_argument("--data", required=True, help="rows with prompt and responses (with models), or one response each")
    parser.add_argument("--split", default="train", help="split of a hub data set or folder")
    parser.add_argument(
        "--output",
        required=True,
        help="preference rows to write (.jsonl or .parquet; replaced if there); the data card goes beside them, as JSON and as Markdown",
    )
    parser.add_argument("--limit", type=at_least_one, help="only the first so many prompts")
    parser.add_argument(
        "--canaries",
        type=int,
        metavar="N",
        help="make canaries of N pairs (a response against itself, and against a shuffled copy), to measure the judge's noise; they become no rows "
        "(default: of 5 %% of the pairs, of 50 at most; 0: none)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say how many calls it would take, and make none")
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--select",
        choices=("all", "best_worst", "best_mean2sd", "adjacent", "best_random", "on_policy"),
        default="all",
        help="which pairs of a prompt become rows (docs/judging.md)",
    )
    rows.add_argument(
        "--margin",
        choices=("none", "clip", "llama2_small", "llama2_large", "quantile"),
        default="clip",
        help="how a difference of strengths becomes a margin (none: as it is)",
    )
    rows.add_argument("--margin-clip", type=number(above=0), default=3.0, help="largest margin, in logits (--margin clip, quantile)")
    rows.add_argument("--min-margin", type=not_negative, default=0.0, help="leave out pairs with a smaller margin")
    rows.add_argument("--ridge", type=number(above=0), default=0.5, help="prior precision of a strength")
    rows.add_argument("--rating-span", type=number(above=0), default=6.0, help="logits from the worst rating to the best (--style rating)")
    rows.add_argument("--no-source-prior", action="store_true", help="let a response's prior not depend on the model that wrote it")
    rows.add_argument("--pairs-per-prompt", type=at_least_one, help="judge at most so many pairs of a prompt, the most telling ones (default: all)")
    rows.add_argument("--seed", type=int, default=0, help="of what is drawn: pairs, canaries, orders")
    add_judge_flags(parser)
    return parser.parse_args(arguments)


def show_plan(options: argparse.Namespace, found: Candidates, references: dict[str, Any], canaries: Sequence[Canary]) -> int:
    """The calls of the first turn, exactly; which pairs a budget of pairs picks depends on the answers, so there the first ones stand for them."""
    from palate.cli.console import console
    from palate.judging.budget import dry_run
    from palate.judging.calls import Price

    if options.judge.startswith("panel:"):
        return show_panel_plan(options, found, references, canaries)
    what = described(options, found)
    if options.judge.startswith(("rm:", "logits:", "local:")):
        console.print(f"{what}; {len(canaries)} canaries; no calls: the judge runs in this process")
        return 0
    caller = open_caller(options, options.base_url, max_requests=None, max_cost=None, cached=False, decisions=is_decision(options))
    judge = chat_judge(options, caller, references)
    price = Price(*options.price) if options.price else None
    count = partial(dry_run, price=price, cache=known_answers(options), endpoint=caller.client.endpoint)
    watching = [canary.matchup for canary in canaries]
    console.print(what, markup=False)
    console.print(str(count(first_turn(options, found, judge))), markup=False, highlight=False)
    if watching:
        own = count(pair_requests(options, judge, watching))
        cost = "unknown" if own.cost is None else f"{own.cost:.4f}"
        console.print(f"and {len(watching)} canaries: {own.calls:,} calls, cost {cost} (--canaries 0 leaves them out)", markup=False, highlight=False)
    console.print("Besides these: some short calls that probe the endpoint (unless --no-probe), and up to 3 more for an answer without a verdict")
    return 0


def show_panel_plan(options: argparse.Namespace, found: Candidates, references: dict[str, Any], canaries: Sequence[Canary]) -> int:
    """The plan of each member, as if it were asked about everything: so it is in a jury, and in a cascade where the ones before it decide nothing."""
    from palate.cli.console import console
    from palate.cli.panels import read_members

    panel, members = read_members(options)
    for place, (one, member) in enumerate(zip(panel.judges, members, strict=True)):
        most = "; at most, of what the ones before leave in doubt" if panel.mode == "cascade" and place else ""
        console.print(f"{one.label} ({panel.mode}{most}):", markup=False)
        show_plan(member, found, references, canaries)
    return 0


def described(options: argparse.Namespace, found: Candidates) -> str:
    if options.style == "rating":
        return f"{sum(map(len, found.responses))} responses, {options.votes} answer{'s' if options.votes > 1 else ''} each"
    if options.style == "list":
        from palate.judging.list_judge import ORDERS

        return f"lists of {len(found.prompts)} prompts, in {options.orders or ORDERS} orders"
    return f"{len(planned(options, found)) // 2} pairs in both orders, {options.votes} answer{'s' if options.votes > 1 else ''} each"


def first_turn(options: argparse.Namespace, found: Candidates, judge: WordJudge) -> Iterator[ChatRequest]:
    """The requests that the judging begins with."""
    from palate.judging.list_judge import ListJudge
    from palate.judging.rating_judge import RatingJudge
    from palate.types import Exchange

    texts = [[candidate.text for candidate in group] for group in found.responses]
    if isinstance(judge, RatingJudge):
        return judge.requests([Exchange(prompt, text) for prompt, group in zip(found.prompts, texts, strict=True) for text in group])
    if isinstance(judge, ListJudge):
        return judge.requests(found.prompts, texts)
    return pair_requests(options, judge, planned(options, found))


def pair_requests(options: argparse.Namespace, judge: WordJudge, matchups: Sequence[Matchup]) -> Iterator[ChatRequest]:
    """The requests for verdicts on pairs as they stand, one a vote."""
    from palate.judging.combining import VOTE_TEMPERATURE
    from palate.judging.judge import ChatJudge

    if not isinstance(judge, ChatJudge):
        return judge.requests_to_compare(matchups)
    judges = [judge.with_sample(k, temperature=VOTE_TEMPERATURE) for k in range(options.votes)] if options.votes > 1 else [judge]
    return (one.request(one.render(m, one.references.get(text_of(m.prompt)))) for one in judges for m in matchups)


def planned(options: argparse.Namespace, found: Candidates) -> list[Matchup]:
    from palate.judging.schedule import round_robin
    from palate.types import Matchup

    matchups = []
    for prompt, group in zip(found.prompts, found.responses, strict=True):
        for i, j in round_robin(len(group))[: options.pairs_per_prompt]:
            matchups += [Matchup(prompt, group[i].text, group[j].text), Matchup(prompt, group[j].text, group[i].text)]
    return matchups


def show(card: dict[str, Any], output: str) -> None:
    from palate.cli.console import console
    from palate.reports.judge_tables import card_table

    console.print(card_table(card, title=output))
    if ratings := card.get("ratings"):
        failures = ", ".join(f"{reason} {count}" for reason, count in ratings["failures"].items()) or "none"
        console.print(f"Ratings: {ratings['rated']} of {ratings['responses']} responses; not read: {failures}", markup=False)
    if lists := card.get("lists"):
        failures = ", ".join(f"{reason} {count}" for reason, count in lists["failures"].items()) or "none"
        places = ", ".join(f"{one['mean_rank']:.2f}" for one in lists["places"])
        console.print(f"Lists: {lists['ranked']} of {lists['lists']} ranked; not read: {failures}; mean rank by place: {places}", markup=False)
    if canaries := card["canaries"]:
        names = {"told_apart": "told apart", "first_position": "for the first position", "mistaken": "mistaken"}
        shares = [f"{name} {_share(canaries[key])}" for key, name in names.items() if canaries[key]]
        console.print(f"Canaries: {canaries['asked']} asked, {canaries['invalid']} without a verdict; {'; '.join(shares)}", markup=False)


def _share(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:.0f} % ({100 * low:.0f} to {100 * high:.0f} %) of {found['n']}"
