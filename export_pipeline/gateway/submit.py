"""From an HTTP request to a row: the JSON body read and checked, the row inserted if it passes the request rules."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel, ValidationError

from export_pipeline.database.engine import reading
from export_pipeline.database.tables import export_requests
from export_pipeline.database.types import RepeatedKeyError, read_json
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.gateway.auth import caller_of
from export_pipeline.gateway.dialect import ApiError, dialect_of, first_problem
from export_pipeline.gateway.services import Services
from export_pipeline.recurring.dispatch import KEY_PREFIX
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import ExportRequest, RequestInput, insert_and_load, load_request
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.validation.request import Preflight, admit
from export_pipeline.source.lookups import check_lists, find_segments

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_INTEGER = 2**31 - 1
"""Of a column of `export_requests`."""
MAX_NAME = 60
"""Characters of an unknown name that an answer repeats."""
M = TypeVar("M", bound=BaseModel)
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any text: requests with the same key create one export and get the same answer.", max_length=255
    ),
]


async def _received(request: Request) -> bytes:
    """The body's bytes; an ``ApiError`` if they are too many."""
    caller_of(request)  # a KeyError is a bug: the endpoint names its body before its caller, who is not checked yet
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BYTES} bytes.")
    return bytes(data)


# Not asynchronous: parsing takes a thread, and the event loop goes on.
def json_body(request: Request, data: Annotated[bytes, Depends(_received)]) -> Any:
    """The body, a JSON object of values that databases store; an empty one is ``{}``.

    Its ``Content-Type`` does not matter, because SendGrid's clients send none.
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
    """Whether a database stores the text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and text.isascii() | (text.encode(errors="replace").decode() == text)


Body = Annotated[dict[str, Any], Depends(json_body)]


def parsed(request: Request, model: type[M], body: dict[str, Any], *, in_query: Sequence[str] = ()) -> M:
    """The body as a model, with the fields that may stand in the query instead.

    An ``ApiError`` names the first field that is wrong, unknown or given twice.
    """
    status = dialect_of(request).invalid_status
    query = query_of(request, in_query)
    for name, value in query.items():
        if name in body and str(body[name]) != value:
            raise ApiError(status, f"{name}: differs between the query and the body.", field=name)
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
    """The parameters of the query, each known and given once: ignoring one could return too many rows."""
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
    """The body for the OpenAPI document of an endpoint that reads it with ``parsed``."""
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

    inlined: dict[str, Any] = walk(schema)
    return inlined


def submit(
    services: Services, caller: ApiKey, columns: Mapping[str, Any], key: str | None, response: Response
) -> ExportRequest:
    """Insert a request as an application does; an ``ExportFailure`` for the first rule that it breaks.

    The columns are always the same ones in a dialect, so that two requests with the same key (``Idempotency-Key``) can
    be compared. The response gets a header if an earlier one is returned.
    """
    # A key of a fire time, used beforehand, would take the place of its request.
    if key is not None and key.startswith(KEY_PREFIX):
        message = f"Idempotency-Key: may not begin with {KEY_PREFIX}, as recurring exports use it; use another one."
        raise ExportFailure(FailureCode.INVALID_REQUEST, message)
    row = {**columns, "organization_id": caller.organization_id, "requested_by": caller.member_id}
    try:
        request, is_replay = _submit(services, row, key)
    except sa.exc.IntegrityError:
        if key is None:
            raise
        # Another process inserted the key at the same moment.
        request, is_replay = _submit(services, row, key)
    if is_replay:
        response.headers["Idempotent-Replayed"] = "true"
    return request


def _submit(services: Services, row: Mapping[str, Any], key: str | None) -> tuple[ExportRequest, bool]:
    if row.get("list_ids") or row.get("segment_ids"):
        _check_names(services, row, key)
    with services.database.begin() as connection:
        earlier = _with_key(connection, row["organization_id"], key)
        if earlier is not None:
            if any(getattr(earlier, name) != value for name, value in row.items()):
                message = "Idempotency-Key: was used for another request; use a new one for a new request."
                raise ExportFailure(FailureCode.INVALID_REQUEST, message)
            return earlier, True
        _admit(connection, services, row)
        return _insert(connection, row, key), False


def _check_names(services: Services, row: Mapping[str, Any], key: str | None) -> None:
    """Check that the organization has the lists and segments, unless an earlier request is returned.

    The source may be slow: it is read before the request is inserted, while no transaction is open, and after every
    other rule.
    """
    with reading(services.database) as connection:
        if _with_key(connection, row["organization_id"], key) is not None:
            return
        organization, checked = _admit(connection, services, row)
    check_lists(services.source, checked.dataset, organization.id, checked.list_ids)
    find_segments(services.source, checked.dataset, organization.id, checked.segment_ids)


def _admit(connection: sa.Connection, services: Services, row: Mapping[str, Any]) -> tuple[Organization, Preflight]:
    try:
        request = RequestInput(**row)
        return admit(connection, services.catalog, services.settings, request)
    except (ValidationError, sa.exc.DataError, OverflowError, UnicodeError):
        raise _cannot_be_stored() from None


def _insert(connection: sa.Connection, row: Mapping[str, Any], key: str | None) -> ExportRequest:
    try:
        return insert_and_load(connection, **row, idempotency_key=key)
    except (sa.exc.DataError, OverflowError, UnicodeError):
        raise _cannot_be_stored() from None


def _cannot_be_stored() -> ExportFailure:
    message = "The request holds a value that the database cannot store."
    return ExportFailure(FailureCode.INVALID_REQUEST, message)


def _with_key(connection: sa.Connection, organization_id: str, key: str | None) -> ExportRequest | None:
    if key is None:
        return None
    columns = export_requests.c
    found = connection.execute(
        sa.select(columns.id).where(columns.organization_id == organization_id, columns.idempotency_key == key)
    ).scalar()
    return None if found is None else load_request(connection, found)
