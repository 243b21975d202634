"""A route: one dialect's request on one path, with its answer and its way to refuse; and the JSON that goes in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

if TYPE_CHECKING:
    from palate.serving.gateway import Gateway


class Refusal(Exception):
    """A request that gets no answer, with the HTTP status and the short name under which it is counted."""

    def __init__(self, status: int, kind: str, message: str, *, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


class Reply(NamedTuple):
    body: Any
    truncated: int = 0  # inputs that lost tokens; dialects without a field for it say so in the header X-Truncated


class Body(BaseModel):
    """A request of another server's dialect: fields that mean nothing here are ignored, as those servers do."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: int


class ErrorObject(BaseModel):
    """OpenAI's, vLLM's and our own shape of an error."""

    error: ErrorDetail


def error_object(refusal: Refusal) -> dict[str, Any]:
    return {"error": {"message": str(refusal), "type": refusal.kind, "code": refusal.status}}


class Errors(NamedTuple):
    """How a dialect says no."""

    body: Callable[[Refusal], dict[str, Any]] = error_object
    schema: type[BaseModel] = ErrorObject
    too_long: int = 400  # status of an input beyond max_length
    malformed: int = 400  # status of a body of another shape


PLAIN = Errors()


class Route(NamedTuple):
    path: str
    keys: tuple[str, ...]  # a body that holds one of them is this dialect's; several routes may share a path
    body: type[BaseModel]
    answer: Callable[[Gateway, Any], Awaitable[Reply]]
    reply: Any  # type of the answer, for OpenAPI
    errors: Errors = PLAIN

    def read(self, body: dict[str, Any]) -> BaseModel:
        """The body, checked. Raises Refusal for another shape."""
        try:
            return self.body.model_validate(body)
        except ValidationError as error:
            raise Refusal(self.errors.malformed, "malformed", in_words(error)) from error


def choose(routes: Sequence[Route], body: Any) -> Route:
    """Which of the dialects on one path a body speaks. Raises Refusal where it is none."""
    if not isinstance(body, dict):
        raise Refusal(400, "malformed", f"expected a JSON object, got {type(body).__name__}")
    found = next((route for route in routes if any(key in body for key in route.keys)), None)
    if found is None:
        wanted = "; or ".join(" / ".join(route.keys) for route in routes)
        raise Refusal(400, "malformed", f"expected a body with {wanted}; got {', '.join(map(repr, list(body)[:8])) or 'nothing'}"[:500])
    return found


def parse(data: bytes) -> Any:
    """JSON of a request body. Raises Refusal."""
    try:
        return from_json(data)
    except ValueError as first:
        try:
            return json.loads(data)  # lone surrogates pass here, and become the error of the one item that holds them
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "malformed", f"the body is not JSON: {first}"[:300]) from error


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def in_words(error: ValidationError) -> str:
    """The first few problems of a body, with the place of each."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in problems[:3]]
    return "; ".join([*said, *([f"and {len(problems) - 3} more"] if len(problems) > 3 else [])])[:1000]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
