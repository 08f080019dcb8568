"""JSON bodies: read, bounded, clean enough to be stored, checked against a model.

What belongs here: what is true of every body. What does not: any dialect's fields.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from export_pipeline.gateway.dialect import Refusal, dialect_of, first_problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_INTEGER = 2**31 - 1
"""Of a column of `export_requests`."""

M = TypeVar("M", bound=BaseModel)


async def json_body(request: Request) -> Any:
    """The body as JSON; an empty one is ``{}``, whatever its ``Content-Type`` (SendGrid's clients send none).

    Raises:
        Refusal: too large, no JSON, or JSON that no database stores.
    """
    status = dialect_of(request).invalid_status
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise Refusal(413, f"The body is larger than {MAX_BYTES} bytes.")
    if not data.strip():
        return {}
    try:
        body = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Refusal(status, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refusal(status, "The body is not a JSON object.")
    problem = _problem(body, 0)
    if problem:
        raise Refusal(status, f"The body {problem}.")
    return body


def _refuse(_constant: str) -> None:
    raise ValueError


def _problem(value: Any, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((found for item in value if (found := _problem(item, depth + 1))), None)
    if isinstance(value, str) and not is_storable(value):
        return "holds a character that no database stores"
    if isinstance(value, float) and not math.isfinite(value):
        return "holds a number that is too large"
    return None


def is_storable(text: str) -> bool:
    """Whether a database takes the text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and text.isascii() | (text.encode(errors="replace").decode() == text)


Body = Annotated[dict[str, Any], Depends(json_body)]


def parsed(request: Request, model: type[M], body: Any) -> M:
    """The body as a model.

    Raises:
        Refusal: names the first field that is wrong.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    raise first_problem(problems, dialect_of(request).invalid_status)


def described(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The body for the OpenAPI document of an endpoint that reads it by itself."""
    schema = _inlined(model.model_json_schema(by_alias=True))
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Without ``$defs``, whose references would be relative to the whole document."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return walk(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: walk(value) for key, value in node.items()}
        return [walk(item) for item in node] if isinstance(node, list) else node

    found: dict[str, Any] = walk(schema)
    return found
