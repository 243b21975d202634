"""OpenRLHF's /get_reward: whole texts with their special tokens, each made to end in one EOS. Source: openrlhf/cli/serve_rm.py.

Its server cuts the end of what is too long and says nothing; here the length policy of this server holds, and `extra_logs.truncated` says what was cut.
"""

from __future__ import annotations

from pydantic import BaseModel

from palate.serving.gateway import Gateway, reply
from palate.serving.hosting import Hosted
from palate.serving.pieces import Piece
from palate.serving.routes import Body, Reply, Route
from palate.types import Exchange


class RewardRequest(Body):
    """`prompts` and `labels` come along and are not read: the query holds both prompt and response."""

    query: str | list[str]


class RewardReply(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


async def get_reward(gateway: Gateway, body: RewardRequest) -> Reply:
    hosted = gateway.models.get(None)
    texts = [body.query] if isinstance(body.query, str) else body.query
    found = await gateway.rewards(hosted, [Piece(Exchange("", ending_once(hosted, text)), "bare") for text in texts])
    rewards = [one.reward for one in found]
    return reply({"rewards": rewards, "scores": rewards, "extra_logs": {"truncated": [float(one.truncated) for one in found]}}, found)


def ending_once(hosted: Hosted, text: str) -> str:
    """Without pad and EOS tokens at either end, then one EOS."""
    tokenizer = hosted.scorer.tokenizer
    eos = str(tokenizer.eos_token or tokenizer.sep_token)
    marks = tuple({eos, str(tokenizer.pad_token)})
    while text.startswith(marks):
        text = text.removeprefix(next(mark for mark in marks if text.startswith(mark)))
    while text.endswith(marks):
        text = text.removesuffix(next(mark for mark in marks if text.endswith(mark)))
    return text + eos


ROUTES = (Route("/get_reward", ("query",), RewardRequest, get_reward, RewardReply),)
