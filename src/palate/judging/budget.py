"""What a run may spend, what it has spent, and what it would: a call that could go beyond the budget is not begun."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from palate.errors import ConfigError
from palate.judging.call_cache import CallCache
from palate.judging.calls import Answer, ChatReply, ChatRequest, Price

CHARACTERS_PER_TOKEN = 4  # of English text, by OpenAI's rule of thumb
TEMPLATE_TOKENS = 16  # what a chat template puts around one message, at most


@dataclass
class Purse:
    """What was spent out of a budget, by all that share it, and what calls under way may come to. Used in the event loop of all calls."""

    requests: int = 0
    cost: float = 0.0
    reserved: list[float] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)  # for a call under way to give back what it had reserved

    def release(self, most: float) -> None:
        self.reserved.remove(most)
        for turn in self.waiting:
            if not turn.done():
                turn.set_result(None)
        self.waiting.clear()


@dataclass
class Budget:
    """What a run may spend: attempts that reach the endpoint, and money.

    max_cost is kept strictly: a call begins only where it could be paid for with an answer of full length, together with all that are under way. What an
    endpoint charges for a call that timed out is not known and not counted. `prices` are those of models that have another than `price`. Budgets with one
    `purse` are one budget, for several Callers.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    price: Price | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)
    purse: Purse = field(default_factory=Purse)

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None and not self.prices:
            raise ConfigError("max_cost needs the price of tokens (prompt and completion, per million): without it no cost is known")

    def price_of(self, model: str) -> Price | None:
        return self.prices.get(model, self.price)

    def most(self, request: ChatRequest) -> float:
        """The most that a call can cost; 0 where money is not bounded."""
        if self.max_cost is None:
            return 0.0
        if (price := self.price_of(request.model)) is None:
            raise ConfigError(f"max_cost needs the price of {request.model}'s tokens (prompt and completion, per million); others are known")
        if (completion := _completion_limit(request)) is None:
            raise ConfigError("max_cost needs max_tokens in the sampling: without it an answer may be of any length, and cost anything")
        return price.of(_most_prompt_tokens(request), completion)

    async def reserve(self, most: float) -> str:
        """Money for a call of the highest possible cost, waited for where calls under way may yet leave some over; or why there is none."""
        purse = self.purse
        while self.max_cost is not None and purse.cost + sum(purse.reserved) + most > self.max_cost:
            if not purse.reserved or purse.cost + most > self.max_cost:
                return f"{purse.cost:.6g} of {self.max_cost:g} is spent and the next call may cost {most:.6g}"
            purse.waiting.append(turn := asyncio.get_running_loop().create_future())
            await turn
        purse.reserved.append(most)
        return ""

    def begin(self) -> str:
        """Counts an attempt; or why there may be none."""
        if self.max_requests is not None and self.purse.requests >= self.max_requests:
            return f"{self.purse.requests} requests were made"
        self.purse.requests += 1
        return ""

    def pay(self, request: ChatRequest, answer: Answer) -> float | None:
        """What an attempt came to; None where the price is not known."""
        price = self.price_of(request.model)
        cost = None if price is None else price.of(answer.prompt_tokens, answer.completion_tokens)
        self.purse.cost += cost or 0.0
        return cost


@dataclass
class Spent:
    """What a run did, so far."""

    requests: int = 0  # attempts that reached the endpoint
    answered: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0  # attempts of models without a known price
    failures: Counter[str] = field(default_factory=Counter)  # requests that got no answer, by kind
    retries: Counter[str] = field(default_factory=Counter)  # attempts that were made again, by kind
    seconds: float = 0.0  # in which calls ran

    def add(self, answer: Answer, cost: float | None) -> None:
        """The tokens of one attempt, and what they cost where that is known."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += cost or 0.0
        self.unpriced += cost is None

    def settle(self, answer: Answer) -> None:
        """What became of one request, after all its attempts."""
        if isinstance(answer, ChatReply):
            self.answered += 1
        else:
            self.failures[answer.kind] += 1

    def as_dict(self, budget: Budget) -> dict[str, Any]:
        """For provenance. `cost` is None where a price is not known."""
        counts = {name: getattr(self, name) for name in ("requests", "answered", "cached", "prompt_tokens", "completion_tokens", "seconds")}
        known = bool(budget.price or budget.prices) and not self.unpriced
        return counts | {"cost": self.cost if known else None, "failures": dict(self.failures), "retries": dict(self.retries)}


class Estimate(NamedTuple):
    """What requests would come to. `completion_tokens` and `cost` are None where they are not known, never 0."""

    requests: int
    cached: int  # answered before, or asked for twice
    calls: int
    prompt_tokens: int
    completion_tokens: int | None
    cost: float | None
    how: str  # the tokens were found

    def __str__(self) -> str:
        completion = "unknown" if self.completion_tokens is None else f"{self.completion_tokens:,}"
        cost = "unknown" if self.cost is None else f"{self.cost:.2f}" if self.cost >= 1 else f"{self.cost:.4f}"
        return (
            f"{self.requests:,} requests, {self.cached:,} answered before: {self.calls:,} calls\n"
            f"tokens: about {self.prompt_tokens:,} of prompts, {completion} of answers ({self.how})\n"
            f"cost: {cost}"
        )


def dry_run(
    requests: Iterable[ChatRequest],
    *,
    price: Price | None = None,
    prices: Mapping[str, Price] | None = None,
    cache: CallCache | None = None,
    endpoint: str = "",
    completion_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Estimate:
    """What the requests would come to, without a call.

    `prices`: of models that have another than `price`. `completion_tokens` is the length of an answer to reckon with; without it answers are taken to be of
    full length (max_tokens), so that the cost is the
    most they can come to. Give the `endpoint` of the client with its cache: answers are kept by it. Failed attempts that are made again are not foreseen.
    """
    num_requests = prompt = completion = 0
    cost: float | None = 0.0
    bounded = True
    seen: set[bytes] = set()
    for num_requests, request in enumerate(requests, start=1):  # noqa: B007 (used after the loop)
        key = request.key(endpoint)
        if key in seen or (cache is not None and cache.get(key) is not None):
            continue
        seen.add(key)
        text = _text(request)
        own = count_tokens(text) if count_tokens else -(-len(text) // CHARACTERS_PER_TOKEN)
        longest = completion_tokens if completion_tokens is not None else _completion_limit(request)
        bounded &= longest is not None
        prompt, completion = prompt + own, completion + (longest or 0)
        own_price = (prices or {}).get(request.model, price)
        cost = None if cost is None or own_price is None else cost + own_price.of(own, longest or 0)
    how = "prompts by the tokenizer" if count_tokens else f"prompts at {CHARACTERS_PER_TOKEN} characters a token"
    how += f", answers at {completion_tokens} tokens" if completion_tokens is not None else ", answers at most" if bounded else ", answers without a limit"
    known = cost if bounded and (price is not None or prices) else None
    return Estimate(num_requests, num_requests - len(seen), len(seen), prompt, completion if bounded else None, known, how)


def _text(request: ChatRequest) -> str:
    """All that becomes tokens of the prompt."""
    parts = [content if isinstance(content := message.get("content") or "", str) else json.dumps(content) for message in request.messages]
    return "\n".join([*parts, *([] if request.schema is None else [json.dumps(dict(request.schema))])])


def _most_prompt_tokens(request: ChatRequest) -> int:
    """A token is a byte at least."""
    return len(_text(request).encode("utf-8", "replace")) + TEMPLATE_TOKENS * (len(request.messages) + 1)


def _completion_limit(request: ChatRequest) -> int | None:
    extra: Mapping[str, Any] = request.extra
    limits = [request.sampling.max_tokens, extra.get("max_completion_tokens"), extra.get("max_tokens")]
    known = [int(limit) for limit in limits if limit is not None]
    return max(known) * int(extra.get("n") or 1) if known else None
