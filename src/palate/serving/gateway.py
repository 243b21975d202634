"""What dialects ask of the server: rewards of pieces, within the limits of a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel

from palate.serving.hosting import Hosted, Models
from palate.serving.metrics import Metrics
from palate.serving.pieces import Piece, Problem
from palate.serving.routes import PLAIN, Errors, Refusal, Reply
from palate.serving.settings import ServerSettings
from palate.serving.worker import Scored


class Gateway:
    def __init__(self, models: Models, settings: ServerSettings, metrics: Metrics):
        self.models, self.settings, self.metrics = models, settings, metrics

    async def results(self, hosted: Hosted, pieces: Sequence[Piece]) -> list[Scored | Problem]:
        """A result for each piece, in order. Raises Refusal for too many, a full queue, or a request that takes too long."""
        if len(pieces) > self.settings.max_items:
            raise Refusal(413, "too_many_items", f"{len(pieces)} items in one request; at most {self.settings.max_items} are taken")
        try:
            async with asyncio.timeout(self.settings.timeout):
                found = await hosted.worker.score(pieces)
        except TimeoutError as error:
            raise Refusal(504, "timeout", f"no reward within {self.settings.timeout:g} seconds", retry_after=1) from error
        for kind, count in Counter(one.kind for one in found if isinstance(one, Problem)).items():
            self.metrics.errors.labels(kind).inc(count)
        return found

    async def rewards(self, hosted: Hosted, pieces: Sequence[Piece], errors: Errors = PLAIN) -> list[Scored]:
        """The same for dialects that answer all or nothing. Raises Refusal with the first problem."""
        if not pieces:
            raise Refusal(errors.malformed, "malformed", "nothing to score: the list of inputs is empty")
        found = []
        for place, one in enumerate(await self.results(hosted, pieces)):
            if isinstance(one, Problem):
                status = 500 if one.kind in ("failed", "not_finite", "lost") else errors.too_long if one.kind == "too_long" else errors.malformed
                raise Refusal(status, one.kind, f"input {place}: {one.message}")
            found.append(one)
        return found


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


def num_tokens(found: Sequence[Scored]) -> int:
    return sum(len(one.ids) for one in found)


def usage(found: Sequence[Scored]) -> dict[str, int]:
    return {"prompt_tokens": num_tokens(found), "total_tokens": num_tokens(found), "completion_tokens": 0}


def reply(body: object, found: Sequence[Scored]) -> Reply:
    return Reply(body, sum(one.truncated for one in found))
