"""Our own dialect: batches of conversations, an error for each that is bad, rewards of tokens, steps and heads; comparisons; best of n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, TypeAdapter, ValidationError, model_validator

from palate.errors import DataError
from palate.serving.gateway import Gateway, Usage, reply, usage
from palate.serving.hosting import Hosted
from palate.serving.messages import Chat, check_template_args, conversation
from palate.serving.pieces import Piece, Problem
from palate.serving.routes import Refusal, Reply, Route, in_words, sigmoid
from palate.serving.worker import Scored
from palate.types import Exchange, TokenIds

Part = Literal["reward", "tokens", "steps", "heads", "uncertainty"]


class Strict(BaseModel):
    """Our own requests: a key that nobody reads is an error, not a surprise."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ChatItem(Strict):
    """A conversation that ends with the response."""

    messages: Chat = Field(min_length=1)
    template_args: dict[str, Any] = {}


class PairItem(Strict):
    """A prompt, text or messages, and the response to it. Two texts are plain text: no chat template is applied."""

    prompt: str | Chat
    response: str | Chat
    template_args: dict[str, Any] = {}


class TextItem(Strict):
    """Whole text; BOS and EOS are seen to."""

    text: str


class IdsItem(Strict):
    """Token ids, used as they are."""

    input_ids: list[int]


Item = ChatItem | PairItem | TextItem | IdsItem
ITEMS: dict[str, TypeAdapter[Any]] = {"messages": TypeAdapter(ChatItem), "prompt": TypeAdapter(PairItem), "text": TypeAdapter(TextItem)}
ITEMS |= {"response": ITEMS["prompt"], "input_ids": TypeAdapter(IdsItem)}


class RewardsRequest(Strict):
    model: str | None = None
    items: SkipValidation[list[Item]]  # each is checked by itself: a bad one is its own error
    parts: list[Part] = Field(["reward"], alias="return")
    calibrate: bool = False


class RewardItem(BaseModel):
    index: int
    reward: float | None
    raw: float | None
    truncated: bool
    tokens: list[float] | None = None
    token_ids: list[int] | None = None
    steps: list[float] | None = None
    heads: dict[str, float] | None = None
    gate: dict[str, float] | None = None
    uncertainty: float | None = None
    error: str | None = None
    error_kind: str | None = None


class RewardsReply(BaseModel):
    data: list[RewardItem]
    model: str
    usage: Usage
    template_sha: str | None


async def rewards(gateway: Gateway, body: RewardsRequest) -> Reply:
    hosted = gateway.models.get(body.model)
    wanted = set(body.parts)
    scale = _scale(hosted) if body.calibrate else (0.0, 1.0)
    _refuse_what_it_lacks(hosted, wanted)
    if not isinstance(body.items, list):
        raise Refusal(400, "malformed", "items: expected a list")
    read = [_piece(item, every_token="tokens" in wanted, uncertain="uncertainty" in wanted) for item in body.items]
    found = await _results(gateway, hosted, read)
    data = [_row(i, one, wanted, hosted, scale) for i, one in enumerate(found)]
    scored = [one for one in found if isinstance(one, Scored)]
    return reply(_envelope(hosted, scored) | {"data": data}, scored)


def _refuse_what_it_lacks(hosted: Hosted, wanted: set[Part]) -> None:
    if "steps" in wanted and hosted.scorer.readout.aggregate is None:
        raise Refusal(400, "not_given", f"{hosted.name} rewards whole responses, not steps; leave `steps` out of `return`")
    if "uncertainty" in wanted and hosted.worker.deviations is None:
        raise Refusal(
            400,
            "not_given",
            f"{hosted.name} states no uncertainty; checkpoints with members, quantiles, Gaussians or a posterior do (palate attributes --bound)",
        )


def _scale(hosted: Hosted) -> tuple[float, float]:
    """(mean, standard deviation) of its rewards on held-out data."""
    statistics = hosted.scorer.contract.rewards if hosted.scorer.contract else None
    if statistics is None:
        raise Refusal(400, "not_calibrated", f"{hosted.name} has no measured rewards to calibrate by; run `palate eval --record` on held-out pairs first")
    return statistics.mean, statistics.std or 1.0


def _piece(item: Any, *, every_token: bool = False, uncertain: bool = False) -> Piece | Problem:
    kind = next((key for key in ITEMS if isinstance(item, dict) and key in item), None)
    if kind is None:
        return Problem("malformed", "expected messages, prompt and response, text, or input_ids")
    try:
        read = ITEMS[kind].validate_python(item)
        return Piece(_exchange(read), every_token=every_token, uncertain=uncertain)
    except ValidationError as error:
        return Problem("malformed", in_words(error))
    except DataError as error:
        return Problem("malformed", str(error))


def _exchange(item: Item) -> Exchange:
    if isinstance(item, TextItem):
        return Exchange("", item.text)
    if isinstance(item, IdsItem):
        return Exchange("", TokenIds(item.input_ids))
    check_template_args(item.template_args)
    if isinstance(item, ChatItem):
        messages = conversation(item.messages)
        return Exchange(messages[:-1], messages[-1:], item.template_args)
    prompt, response = (part if isinstance(part, str) else conversation(part) for part in (item.prompt, item.response))
    return Exchange(prompt, response, item.template_args)


async def _results(gateway: Gateway, hosted: Hosted, read: Sequence[Piece | Problem]) -> list[Scored | Problem]:
    """Those that are no problem already, scored; all in order."""
    for one in read:
        if isinstance(one, Problem):
            gateway.metrics.errors.labels(one.kind).inc()
    found = iter(await gateway.results(hosted, [one for one in read if isinstance(one, Piece)]))
    return [one if isinstance(one, Problem) else next(found) for one in read]


def _row(index: int, one: Scored | Problem, wanted: set[Part], hosted: Hosted, scale: tuple[float, float]) -> dict[str, Any]:
    if isinstance(one, Problem):
        return {"index": index, "reward": None, "raw": None, "truncated": False, "error": one.message, "error_kind": one.kind}
    row: dict[str, Any] = {"index": index, "reward": (one.reward - scale[0]) / scale[1], "raw": one.reward, "truncated": one.truncated}
    if one.tokens is not None:
        row |= {"tokens": [(value - scale[0]) / scale[1] if np.isfinite(value) else None for value in one.tokens], "token_ids": one.ids}
    if "steps" in wanted:
        row["steps"] = one.steps
    if "heads" in wanted:
        row["heads"] = dict(zip(hosted.scorer.readout.outputs, one.outputs, strict=False))  # a model of step rewards has none of its own
        if one.gate is not None:
            row["gate"] = dict(zip(hosted.scorer.readout.outputs, one.gate, strict=True))
    if one.uncertainty is not None:
        row["uncertainty"] = one.uncertainty / scale[1]
    return row


def _envelope(hosted: Hosted, scored: Sequence[Scored]) -> dict[str, Any]:
    return {"model": hosted.name, "usage": usage(scored), "template_sha": hosted.scorer.encoder.template_hash()}


# --- comparisons and best of n ------------------------------------------------------------------------------------------------------------------


class Group(Strict):
    prompt: str | Chat = ""
    responses: list[str | Chat]
    template_args: dict[str, Any] = {}


class CompareRequest(Strict):
    """One pair (`prompt`, `responses`), or several (`pairs`)."""

    model: str | None = None
    prompt: str | Chat = ""
    responses: list[str | Chat] | None = None
    template_args: dict[str, Any] = {}
    pairs: SkipValidation[list[Group]] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> CompareRequest:
        if (self.responses is None) == (self.pairs is None):
            raise ValueError("give prompt and responses, or pairs")
        return self


class Comparison(BaseModel):
    index: int
    probability: float | None
    margin: float | None
    rewards: list[float | None]
    error: str | None = None


class CompareReply(BaseModel):
    data: list[Comparison]
    temperature: float
    calibrated: bool
    model: str
    usage: Usage
    template_sha: str | None


class BestOfNRequest(Group):
    model: str | None = None


class BestOfNReply(BaseModel):
    best: int | None
    order: list[int]
    rewards: list[float | None]
    errors: dict[str, str]
    model: str
    usage: Usage
    template_sha: str | None


class _Pair(NamedTuple):
    pieces: list[Piece | Problem]
    problem: str | None


def _group_pieces(group: Group) -> list[Piece | Problem]:
    return [_piece({"prompt": group.prompt, "response": response, "template_args": group.template_args}) for response in group.responses]


def _pair(value: Any) -> _Pair:
    try:
        group = Group.model_validate(value)
    except ValidationError as error:
        return _Pair([], in_words(error))
    if len(group.responses) != 2:
        return _Pair([], f"a comparison has two responses, got {len(group.responses)}")
    return _Pair(_group_pieces(group), None)


async def compare(gateway: Gateway, body: CompareRequest) -> Reply:
    """P(first is better) = sigmoid(margin / T), T as measured on held-out pairs; 1, Bradley-Terry as trained, where it was not."""
    hosted = gateway.models.get(body.model)
    statistics = hosted.scorer.contract.rewards if hosted.scorer.contract else None
    temperature = statistics.temperature if statistics else 1.0
    single = {"prompt": body.prompt, "responses": body.responses, "template_args": body.template_args}
    if body.pairs is not None and not isinstance(body.pairs, list):
        raise Refusal(400, "malformed", "pairs: expected a list")
    pairs = [_pair(one) for one in (body.pairs if body.pairs is not None else [single])]
    if body.pairs is None and pairs[0].problem:
        raise Refusal(400, "malformed", pairs[0].problem)
    found = await _results(gateway, hosted, [piece for pair in pairs for piece in pair.pieces])
    left = iter(found)
    data = [_comparison(i, pair.problem, [next(left) for _ in pair.pieces], temperature) for i, pair in enumerate(pairs)]
    scored = [one for one in found if isinstance(one, Scored)]
    return reply({"data": data, "temperature": temperature, "calibrated": statistics is not None} | _envelope(hosted, scored), scored)


def _comparison(index: int, problem: str | None, sides: Sequence[Scored | Problem], temperature: float) -> dict[str, Any]:
    said = [f"response {place}: {one.message}" for place, one in enumerate(sides) if isinstance(one, Problem)]
    rewards = [_reward(one) for one in sides]
    if problem or said:
        return {"index": index, "probability": None, "margin": None, "rewards": rewards, "error": problem or "; ".join(said)}
    margin = float(rewards[0] or 0.0) - float(rewards[1] or 0.0)
    return {"index": index, "probability": sigmoid(margin / temperature), "margin": margin, "rewards": rewards}


async def best_of_n(gateway: Gateway, body: BestOfNRequest) -> Reply:
    hosted = gateway.models.get(body.model)
    if not body.responses:
        raise Refusal(400, "malformed", "responses: give at least one")
    found = await _results(gateway, hosted, _group_pieces(body))
    rewards = [_reward(one) for one in found]
    known = [(-reward, i) for i, reward in enumerate(rewards) if reward is not None]
    order = [i for _, i in sorted(known)]
    errors = {str(i): one.message for i, one in enumerate(found) if isinstance(one, Problem)}
    scored = [one for one in found if isinstance(one, Scored)]
    best = order[0] if order else None
    return reply({"best": best, "order": order, "rewards": rewards, "errors": errors} | _envelope(hosted, scored), scored)


def _reward(one: Scored | Problem) -> float | None:
    return None if isinstance(one, Problem) else one.reward


ROUTES = (
    Route("/v1/rewards", ("items",), RewardsRequest, rewards, RewardsReply),
    Route("/v1/compare", ("responses", "pairs"), CompareRequest, compare, CompareReply),
    Route("/v1/best_of_n", ("responses",), BestOfNRequest, best_of_n, BestOfNReply),
)
