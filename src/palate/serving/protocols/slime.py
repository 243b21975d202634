"""slime's remote reward (`--rm-type remote_rm --rm-url http://HOST:PORT/slime`): the JSON answer is the number. Source: slime/rollout/rm_hub/__init__.py.

slime sends prompts as the policy read them: rendered text where its template was applied (then prompt and response are joined as they stand), messages
where not. Plain text without a special token is taken as a question, and goes through this model's template.
"""

from __future__ import annotations

from typing import Any

from palate.serving.gateway import Gateway, reply
from palate.serving.hosting import Hosted
from palate.serving.messages import Chat, conversation
from palate.serving.pieces import Piece, messages_exchange, turn_exchange
from palate.serving.protocols.openrlhf import ending_once
from palate.serving.routes import Body, Reply, Route
from palate.types import Exchange


class RewardRequest(Body):
    prompt: str | Chat
    response: str
    label: Any = None  # the reference answer; a reward model does not look at it


async def reward(gateway: Gateway, body: RewardRequest) -> Reply:
    hosted = gateway.models.get(None)
    found = await gateway.rewards(hosted, [_piece(hosted, body)])
    return reply(found[0].reward, found)


def _piece(hosted: Hosted, body: RewardRequest) -> Piece:
    tokenizer = hosted.scorer.tokenizer
    marks = [str(mark) for mark in tokenizer.all_special_tokens]
    response = body.response
    for mark in (tokenizer.eos_token, tokenizer.pad_token):  # rollouts keep the token that ended them
        response = response.removesuffix(str(mark)) if mark else response
    if not isinstance(body.prompt, str):
        return Piece(messages_exchange([*conversation(body.prompt), {"role": "assistant", "content": response}]))
    if any(mark in body.prompt for mark in marks):
        return Piece(Exchange("", ending_once(hosted, body.prompt + body.response)), "bare")
    return Piece(turn_exchange(hosted.scorer, body.prompt, response))


ROUTES = (Route("/slime", ("prompt",), RewardRequest, reward, float),)
