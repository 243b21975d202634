"""A language model that ranks the responses to a prompt in one call, in several orders; a pair is a list of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palate.errors import ConfigError
from palate.judging.caller import Caller
from palate.judging.calls import ChatRequest, Sampling
from palate.judging.capabilities import Capabilities
from palate.judging.lists import Shown, orders_of, verdict_of
from palate.judging.prompts import ListPrompt, ListVariant
from palate.judging.questions import REPAIRS, RESAMPLES, Question, Questioner
from palate.judging.verdicts import Ranking
from palate.types import Conversation, Matchup, Verdict, text_of

ORDERS = 2  # an order and its mirror image: every pair both ways round
WINDOW = 7
"""Most responses in one list. Nectar's judge ranked seven at a time (Zhu et al. 2023, Starling-7B)."""


class ListJudge:
    """Ranks lists of up to `window` responses; longer ones in overlapping windows. Every list is shown in `orders` orders (`lists.orders_of`).

    `references` are right answers to judge by, by the text of the prompt (`text_of`). As a Judge it ranks lists of two, in the order shown.
    Raises ConfigError where the endpoint is known to lack what the variant needs.
    """

    def __init__(
        self,
        caller: Caller,
        model: str,
        *,
        variant: ListVariant = "ranking",
        criteria: str = "",
        rubric: str = "",
        sampling: Sampling | None = None,
        capabilities: Capabilities | None = None,
        repairs: int = REPAIRS,
        resamples: int = RESAMPLES,
        orders: int = ORDERS,
        window: int = WINDOW,
        seed: int = 0,
        references: Mapping[str, Conversation] | None = None,
    ):
        self.variant, self.criteria, self.rubric = variant, criteria, rubric
        self.orders, self.window, self.seed = orders, window, seed
        self.references = dict(references or {})
        self.questioner = Questioner(caller, model, sampling or Sampling(), capabilities, repairs, resamples)
        self.questioner.require(ListPrompt(2, variant))
        orders_of("", (), orders=orders, window=window, seed=seed)  # refuses what cannot be shown before anything is asked

    @property
    def name(self) -> str:
        return self.questioner.model

    def provenance(self) -> dict[str, Any]:
        """What must be known to ask the same again. `template_hash`: of a list of `window`."""
        return {
            **self.questioner.provenance(),
            "style": "list",
            "variant": self.variant,
            "template_hash": ListPrompt(self.window, self.variant).template_hash,
            "criteria": self.criteria,
            "rubric": self.rubric,
            "references": len(self.references),
            "orders": self.orders,
            "window": self.window,
            "seed": self.seed,
        }

    def plan(self, prompts: Sequence[Conversation], responses: Sequence[Sequence[Conversation]]) -> list[Shown]:
        """The lists that are to be shown; a prompt with fewer than two responses has none."""
        found = []
        for g, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
            if len(group) > 1:
                orders = orders_of(prompt, group, orders=self.orders, window=self.window, seed=self.seed)
                found += [Shown(g, order) for order in orders]
        return found

    def rank(self, prompts: Sequence[Conversation], responses: Sequence[Sequence[Conversation]]) -> list[Shown]:
        """Every list of the plan, with its ranking or why there is none."""
        return self._asked(self.plan(prompts, responses), prompts, responses, None)

    def requests(self, prompts: Sequence[Conversation], responses: Sequence[Sequence[Conversation]]) -> Iterator[ChatRequest]:
        """The calls of the first turn, to be counted."""
        for question in self._questions(self.plan(prompts, responses), prompts, responses, None):
            yield self.questioner.request(question)

    def requests_to_compare(self, matchups: Sequence[Matchup]) -> Iterator[ChatRequest]:
        """As `requests`, of lists of two as they stand."""
        for question in self._questions([Shown(k, (0, 1)) for k in range(len(matchups))], [m.prompt for m in matchups], [(m.a, m.b) for m in matchups], None):
            yield self.questioner.request(question)

    def compare(self, matchups: Sequence[Matchup], *, references: Sequence[Conversation | None] | None = None) -> list[Verdict]:
        """One verdict a matchup, in the order shown."""
        if references is not None and len(references) != len(matchups):
            raise ConfigError(f"{len(matchups)} matchups and {len(references)} references; give one each, or None where there is none")
        lists = [Shown(k, (0, 1)) for k in range(len(matchups))]
        asked = self._asked(lists, [m.prompt for m in matchups], [(m.a, m.b) for m in matchups], references)
        return [verdict_of(shown, 0, 1) for shown in asked]

    def _asked(
        self,
        lists: Sequence[Shown],
        prompts: Sequence[Conversation],
        responses: Sequence[Sequence[Conversation]],
        references: Sequence[Conversation | None] | None,
    ) -> list[Shown]:
        said = self.questioner.ask(self._questions(lists, prompts, responses, references))
        return [
            shown._replace(ranks=one.parsed.ranks) if isinstance(one.parsed, Ranking) else shown._replace(reason=one.reason)
            for shown, one in zip(lists, said, strict=True)
        ]

    def _questions(
        self,
        lists: Sequence[Shown],
        prompts: Sequence[Conversation],
        responses: Sequence[Sequence[Conversation]],
        references: Sequence[Conversation | None] | None,
    ) -> Iterator[Question]:
        for shown in lists:
            prompt, group = prompts[shown.prompt], responses[shown.prompt]
            reference = self.references.get(text_of(prompt)) if references is None else references[shown.prompt]
            asked = ListPrompt(len(shown.order), self.variant)
            rendered = asked.render(prompt, [group[k] for k in shown.order], criteria=self.criteria, rubric=self.rubric, reference=reference)
            yield Question(asked, rendered)
