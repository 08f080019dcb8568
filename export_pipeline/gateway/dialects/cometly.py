"""Cometly's dialect: the list of contacts and contact exports, in Laravel's shapes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import UNFINISHED, RequestStatus
from export_pipeline.database.tables import export_requests
from export_pipeline.gateway.auth import caller
from export_pipeline.gateway.dialect import ApiError, Dialect, instant_text
from export_pipeline.gateway.downloads import EXPIRABLE, base_url, downloads, has_files, visible_to
from export_pipeline.gateway.row_pages import read_page, selection_of
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import Body, IdempotencyKey, described, parsed, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RequestState, find_state
from export_pipeline.scheduling.wall_clock import given_as_time

BASE = "/public-api/v1"
CONTACTS_PATH = f"{BASE}/contacts"
PATH = f"{BASE}/contacts/exports"
DATASET = "contacts"
LAYOUT = "cometly"
CREATES, READS = 5, 30
"""Requests a minute and space (Create Contact Export, Get Contact Export)."""
LISTS = 30
"""A minute and space; the documents name no number for this endpoint [?]: as many as for single contacts."""
BEING_PROCESSED = "Export is being processed. Please check back in a few minutes."
LARGEST_FILE_MB = 5_000_000
"""One `download_url` is one file: the largest that S3 accepts."""
_INT64 = 2**63 - 1
_FORMAT = "%Y-%m-%d %H:%M:%S"
_LENGTH = len("2025-01-31 23:59:59")


class CometlyError(BaseModel):
    """Every error of this API; a 422 names its fields too, as Laravel does."""

    message: str
    errors: dict[str, list[str]] | None = None


def _shape(error: ApiError) -> dict[str, Any]:
    body: dict[str, Any] = {"message": error.message}
    if error.status == 422 and error.field:
        body["errors"] = {error.field: [error.message]}
    return body


DIALECT = Dialect(
    name="cometly",
    title="Contact exports, as Cometly speaks",
    description="Each organization is a space.",
    shape=_shape,
    error=CometlyError,
    invalid_status=422,
    # Laravel's own sentences: Cometly's documents show only the shape [?].
    unauthenticated="Unauthenticated.",
    forbidden="This action is unauthorized.",
    too_many="Too Many Attempts.",
)


def _wall_clock(value: Any) -> datetime:
    try:
        if isinstance(value, str) and len(value) == _LENGTH:
            return datetime.strptime(value, _FORMAT)  # noqa: DTZ007 - wall clock of the space
    except ValueError:
        pass
    raise PydanticCustomError("wall_clock", "must be a time such as 2025-01-31 23:59:59")


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        value = value.lower()
    # The 0 and 1 of Laravel's `boolean` rule, and the words of query strings.
    known = {True: True, False: False, "1": True, "0": False, "true": True, "false": False}
    if isinstance(value, bool | int | str) and value in known:
        return known[value]
    raise PydanticCustomError("flag", "must be 0 or 1, true or false")


WallClock = Annotated[
    datetime,
    BeforeValidator(_wall_clock),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", "examples": ["2025-01-31 23:59:59"]}
    ),
]
Flag = Annotated[bool, BeforeValidator(_flag), WithJsonSchema({"enum": [0, 1, "0", "1", True, False, "true", "false"]})]


class Range(BaseModel, extra="forbid"):
    """Which contacts, and which lists besides their own fields."""

    start_date: WallClock = Field(description="Created from, in the space's time zone.")
    # Always a time here: midnight means that second, not the whole day.
    end_date: Annotated[WallClock, AfterValidator(given_as_time)] = Field(
        description="Created until, both ends included; after `start_date`."
    )
    include_comet_tokens: Flag = Field(default=False, description="The last five, newest first.")
    include_all_emails: Flag = Field(default=False, description="Those of merged profiles too.")

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of ``export_requests`` that say which rows, and which child lists."""
        flags = {"comet_tokens": self.include_comet_tokens, "all_emails": self.include_all_emails}
        include = [name for name, wanted in flags.items() if wanted]
        dates = {"start_date": self.start_date, "end_date": self.end_date}
        return {"dataset": DATASET, "layout": LAYOUT, "include": include, **dates}


Lister = Annotated[ApiKey, Depends(caller(DATASET, endpoint="list contacts", limit=LISTS))]
Creator = Annotated[ApiKey, Depends(caller(DATASET, endpoint="create export", limit=CREATES))]
Reader = Annotated[ApiKey, Depends(caller(DATASET, endpoint="read export", limit=READS))]
_contacts = APIRouter(tags=["contacts"])
_exports = APIRouter(tags=["exports"])
ROUTERS = (_exports, _contacts)


class Contact(BaseModel):
    """A contact; the lists only if requested."""

    id: int
    email: str | None
    name: str | None
    phone: str | None
    location: str | None
    comet_tokens: list[str] = []
    emails: list[str] = []


class Contacts(BaseModel):
    """A page of contacts."""

    data: list[Contact]
    path: str
    per_page: int
    next_cursor: str | None
    next_page_url: str | None
    prev_cursor: str | None
    prev_page_url: str | None


class Listed(Range):
    """The parameters of the list."""

    per_page: int = Field(default=200, ge=1, le=5000)
    cursor: str | None = Field(default=None, max_length=500)


@dataclass(frozen=True)
class _Cursor:
    """A place between two contacts, and the direction of the page (as Laravel writes it)."""

    id: int
    forward: bool

    def __str__(self) -> str:
        data = {"id": self.id, "_pointsToNextItems": self.forward}
        return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str | None) -> _Cursor | None:
        if not text:
            return None
        try:
            data = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            found = cls(data["id"], data["_pointsToNextItems"])
            if type(found.id) is int and -_INT64 - 1 <= found.id <= _INT64 and isinstance(found.forward, bool):
                return found
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise ApiError(422, "cursor: not issued by this API; start without one.", field="cursor")


class Parameters(BaseModel):
    """The parameters for the OpenAPI document; ``Listed`` reads them."""

    start_date: str | None = Field(default=None, description="Required; wall clock of the space.")
    end_date: str | None = Field(default=None, description="Required; both ends included.")
    per_page: str | None = Field(default=None, description="1 to 5000; 200 by default.")
    cursor: str | None = Field(default=None, description="`next_cursor` or `prev_cursor` of another page.")
    include_comet_tokens: str | None = Field(default=None, description="0 or 1.")
    include_all_emails: str | None = Field(default=None, description="0 or 1.")


@_contacts.get(
    CONTACTS_PATH, response_model_exclude_unset=True, responses=DIALECT.documented(403, 422), summary="List contacts"
)
def contacts(request: Request, key: Lister, services: Serves, _documented: Annotated[Parameters, Query()]) -> Contacts:
    """The newest first."""
    query = parsed(request, Listed, {}, in_query=tuple(Listed.model_fields))
    place = _Cursor.read(query.cursor)
    rows, is_newer, is_older = _page(services, key, query, place)
    newer = str(_Cursor(rows[0]["id"], forward=False)) if rows and is_newer else None
    older = str(_Cursor(rows[-1]["id"], forward=True)) if rows and is_older else None
    path = f"{base_url(services, request)}{CONTACTS_PATH}"

    def url(cursor: str | None) -> str | None:
        return f"{path}?{urlencode({**request.query_params, 'cursor': cursor})}" if cursor else None

    return Contacts(
        data=[Contact(**row) for row in rows],
        path=path,
        per_page=query.per_page,
        next_cursor=older,
        next_page_url=url(older),
        prev_cursor=newer,
        prev_page_url=url(newer),
    )


def _page(
    services: Services, key: ApiKey, query: Listed, place: _Cursor | None
) -> tuple[list[dict[str, Any]], bool, bool]:
    """A page, newest first, and whether there are newer and older ones."""
    selection, checked = selection_of(services, key, **query.columns)
    backward = place is not None and not place.forward
    found = read_page(
        services.source,
        selection,
        limit=query.per_page + 1,
        after=place.id if place is not None and backward else None,
        before=place.id if place is not None and not backward else None,
        newest_first=not backward,
        headers=[column.header for column in checked.columns],
        timestamps="seconds",
    )
    rows, more = found[: query.per_page], len(found) > query.per_page
    if backward:
        return rows[::-1], more, True
    return rows, place is not None, more


class ExportQueued(BaseModel):
    """The new export."""

    export_id: int
    status: Literal["queued"]


class ContactExport(BaseModel):
    """An export's status; `message` until it is completed, then `download_url`."""

    export_id: int
    status: Literal["queued", "processing", "completed", "failed"]
    created_at: str
    message: str | None = None
    completed_at: str | None = None
    download_url: str | None = None
    expires_at: str | None = None


@_exports.post(
    PATH,
    status_code=202,
    responses=DIALECT.documented(403, 413, 422),
    openapi_extra=described(Range, required=False),
    summary="Create contact export",
)
def create(
    request: Request, response: Response, key: Creator, body: Body, services: Serves,
    idempotency_key: IdempotencyKey = None,
) -> ExportQueued:  # fmt: skip
    """The contacts created from one wall-clock time to another, both included, in the space's time zone."""
    dates = parsed(request, Range, body, in_query=tuple(Range.model_fields))
    columns = {
        **dates.columns,
        "format": "ndjson",
        "compression": "gzip",
        "max_file_size_mb": LARGEST_FILE_MB,
        "notify_email": False,
        "recipient_emails": [],
    }
    return ExportQueued(export_id=submit(services, key, columns, idempotency_key, response).id, status="queued")


@_exports.get(
    PATH + "/{export_id}",
    response_model_exclude_none=True,
    responses=DIALECT.documented(403, 404, 422),
    summary="Get contact export",
)
def read(
    request: Request, export_id: Annotated[int, Path(ge=1, le=_INT64)], key: Reader, services: Serves
) -> ContactExport:
    """`download_url` is valid for 15 minutes; each request returns a fresh one."""
    with reading(services.database) as connection:
        state = visible_to(key, find_state(connection, export_requests.c.id == export_id), DATASET)
    if state is None:
        raise ApiError(404, "Export not found.")
    return _view(services, request, state)


def _view(services: Services, request: Request, state: RequestState) -> ContactExport:
    facts: dict[str, Any] = {"export_id": state.id, "created_at": instant_text(state.created_at)}
    if state.status in UNFINISHED:
        status: Literal["queued", "processing"] = "queued" if state.status is RequestStatus.QUEUED else "processing"
        return ContactExport(**facts, status=status, message=BEING_PROCESSED)
    if not has_files(state):
        return ContactExport(**facts, status="failed", message=_message(state))
    (download,) = downloads(services, request, state)[:1]
    return ContactExport(
        **facts,
        status="completed",
        completed_at=instant_text(state.completed_at) if state.completed_at else None,
        download_url=download.url,
        expires_at=instant_text(download.expires_at),
    )


def _message(state: RequestState) -> str:
    if state.status in EXPIRABLE:
        return "The file of this export has expired. Create a new export."
    return state.message or "The export failed."
