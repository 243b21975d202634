"""The OpenAPI description of the routes: bodies of all dialects on a path, their answers, their errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from palate.serving.routes import Route

REFERENCE = "#/components/schemas/{model}"
REFUSED = {
    400: "The request cannot be answered as it is",
    401: "No API key, or a wrong one",
    404: "No such model",
    413: "Too large: the body, the number of items, or an input",
    422: "The body has another shape",
    500: "The model failed",
    503: "The queue is full, or the server goes down; Retry-After says when to ask again",
    504: "No answer in time",
}


def document(base: dict[str, Any], routes: Mapping[str, Sequence[Route]]) -> dict[str, Any]:
    """`base` (what FastAPI says of the other paths) with the routes of all dialects."""
    types = [kind for on_path in routes.values() for route in on_path for kind in (route.body, route.reply, route.errors.schema)]
    distinct = list({str(kind): kind for kind in types}.values())
    keyed: Any = [(str(kind), "validation", TypeAdapter(kind)) for kind in distinct]
    found, definitions = TypeAdapter.json_schemas(keyed, ref_template=REFERENCE)
    schemas: dict[str, Any] = {name: found[(name, "validation")] for name, _, _ in keyed}
    paths = {path: {"post": _operation(path, on_path, schemas)} for path, on_path in routes.items()}
    components = base.get("components", {})
    components["schemas"] = {**components.get("schemas", {}), **definitions.get("$defs", {})}
    return {**base, "paths": {**base.get("paths", {}), **paths}, "components": components}


def _operation(path: str, routes: Sequence[Route], schemas: Mapping[str, Any]) -> dict[str, Any]:
    errors = _any([schemas[str(kind)] for kind in {str(r.errors.schema): r.errors.schema for r in routes}.values()])
    return {
        "summary": "; ".join(_first_line(route) for route in routes),
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": _any([schemas[str(route.body)] for route in routes])}}},
        "responses": {
            "200": {"description": "Rewards", "content": {"application/json": {"schema": _any([schemas[str(route.reply)] for route in routes])}}},
            **{str(status): {"description": text, "content": {"application/json": {"schema": errors}}} for status, text in REFUSED.items()},
        },
    }


def _any(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def _first_line(route: Route) -> str:
    return str(sys.modules[route.answer.__module__].__doc__).split(":")[0].split(",")[0].strip()
