"""TEI's dialect (text-embeddings-inference): /predict in its three shapes, and /rerank with `texts`.

Single texts get the special tokens of the tokenizer; a pair is a prompt and its response, through the model's template. Without `raw_scores` a score goes
through a sigmoid, as TEI does for one label. Sources: router/src/http/types.rs, router/src/http/server.rs; 413 is its status of what is too long.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from palate.serving.gateway import Gateway, reply
from palate.serving.hosting import Hosted
from palate.serving.pieces import Piece, turn_exchange
from palate.serving.routes import Body, Errors, Refusal, Reply, Route, sigmoid
from palate.types import Exchange

TYPES = {413: "Validation", 422: "Tokenizer", 400: "Empty", 503: "Overloaded", 504: "Overloaded", 404: "Validation"}


class TeiError(BaseModel):
    error: str
    error_type: str


def _error(refusal: Refusal) -> dict[str, str]:
    return {"error": str(refusal), "error_type": TYPES.get(refusal.status, "Backend")}


ERRORS = Errors(_error, TeiError, too_long=413, malformed=422)


class Truncating(Body):
    raw_scores: bool = False
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"

    def piece(self, hosted: Hosted, *texts: str) -> Piece:
        if len(texts) == 2:
            return Piece(turn_exchange(hosted.scorer, *texts))
        limit = hosted.scorer.encoder.max_length if self.truncate else None
        return Piece(Exchange("", texts[0]), "tokenizer", limit=limit, cut="left" if self.truncation_direction in ("left", "Left") else "right")

    def scored(self, reward: float) -> float:
        return reward if self.raw_scores else sigmoid(reward)


class PredictRequest(Truncating):
    """`inputs`: a text; a pair [a, b]; or a batch [[a], [b, c], ...] of either."""

    inputs: str | list[str] | list[list[str] | str]


class Prediction(BaseModel):
    score: float
    label: str


async def predict(gateway: Gateway, body: PredictRequest) -> Reply:
    hosted = gateway.models.get(None)
    given = body.inputs
    batch = isinstance(given, list) and any(isinstance(one, list) for one in given)
    rows = [[one] if isinstance(one, str) else one for one in given] if batch else [[given] if isinstance(given, str) else given]
    for place, row in enumerate(rows):
        if len(row) not in (1, 2):
            raise Refusal(422, "malformed", f"input {place}: expected one text or a pair of texts, got {len(row)}")
    found = await gateway.rewards(hosted, [body.piece(hosted, *map(str, row)) for row in rows], ERRORS)
    answers = [[{"score": body.scored(one.reward), "label": "reward"}] for one in found]
    return reply(answers if batch else answers[0], found)


class RerankRequest(Truncating):
    query: str
    texts: list[str]
    return_text: bool = False


class Rank(BaseModel):
    index: int
    score: float
    text: str | None = None


async def rerank(gateway: Gateway, body: RerankRequest) -> Reply:
    hosted = gateway.models.get(None)
    found = await gateway.rewards(hosted, [body.piece(hosted, body.query, text) for text in body.texts], ERRORS)
    order = sorted(range(len(found)), key=lambda i: -found[i].reward)
    rows = [{"index": i, "score": body.scored(found[i].reward)} | ({"text": body.texts[i]} if body.return_text else {}) for i in order]
    return reply(rows, found)


ROUTES = (
    Route("/predict", ("inputs",), PredictRequest, predict, list[Prediction] | list[list[Prediction]], ERRORS),
    Route("/rerank", ("texts",), RerankRequest, rerank, list[Rank], ERRORS),
)
