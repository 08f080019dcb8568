"""JSON bodies: read, bounded, clean enough to be stored, checked against a model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from export_pipeline.database.types import RepeatedKeyError, read_json
from export_pipeline.gateway.auth import caller_of
from export_pipeline.gateway.dialect import ApiError, dialect_of, first_problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_INTEGER = 2**31 - 1
"""Of a column of `export_requests`."""
MAX_NAME = 60
"""Characters of a name that we do not know which an answer repeats."""
M = TypeVar("M", bound=BaseModel)


async def _received(request: Request) -> bytes:
    """The body's bytes.

    Raises:
        Refusal: too large.
        KeyError: a bug: the endpoint names its body before its caller, so that nobody was let in or counted yet.
    """
    caller_of(request)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BYTES} bytes.")
    return bytes(data)


# Not asynchronous: parsing takes a thread, and the event loop goes on.
def json_body(request: Request, data: Annotated[bytes, Depends(_received)]) -> Any:
    """The body as JSON; an empty one is ``{}``, whatever its ``Content-Type`` (SendGrid's clients send none).

    Raises:
        Refusal: no JSON, or JSON that no database stores.
    """
    status = dialect_of(request).invalid_status
    if not data.strip():
        return {}
    try:
        body = read_json(data)
    except RepeatedKeyError as error:
        raise ApiError(status, f"The body {error}.") from None
    except (ValueError, RecursionError):
        raise ApiError(status, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise ApiError(status, "The body is not a JSON object.")
    problem = _problem(body, 0)
    if problem:
        raise ApiError(status, f"The body {problem}.")
    return body


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


def parsed(request: Request, model: type[M], body: dict[str, Any], *, in_query: Sequence[str] = ()) -> M:
    """The body as a model, with what may stand in the query instead.

    Raises:
        Refusal: names the first field that is wrong, unknown or given twice.
    """
    status = dialect_of(request).invalid_status
    query = query_of(request, in_query)
    for name, value in query.items():
        if name in body and str(body[name]) != value:
            raise ApiError(status, f"{name}: is one thing in the query and another in the body.", field=name)
    try:
        return model.model_validate({**query, **body})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        name = str(first["loc"][0])
        known = [field.alias or field_name for field_name, field in model.model_fields.items()]
        raise ApiError(status, _unknown(name, known), field=name[:MAX_NAME])
    raise first_problem(problems, status)


def query_of(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of the query.

    Raises:
        Refusal: one that is unknown, which would be ignored and answer too much, or given twice.
    """
    status, found = dialect_of(request).invalid_status, dict[str, str]()
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise ApiError(status, _unknown(name, known, " in the query"), field=name[:MAX_NAME])
        if name in found:
            raise ApiError(status, f"{name}: is given twice; give it once.", field=name)
        found[name] = value
    return found


def _unknown(name: str, known: Iterable[str], where: str = "") -> str:
    short = name[:MAX_NAME]
    close = difflib.get_close_matches(short, known, n=1)
    advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}."
    return f"{short}: is not known{where}; {advice}"


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
