"""Cometly's dialect: contact exports, in Laravel's shapes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import UNFINISHED, RequestStatus
from export_pipeline.database.tables import export_requests
from export_pipeline.gateway.auth import caller, organization_of
from export_pipeline.gateway.bodies import Body, described, parsed
from export_pipeline.gateway.dialect import ApiError, Dialect, build_app, strip_default_errors
from export_pipeline.gateway.downloads import base_url, downloads, has_files, visible_to
from export_pipeline.gateway.row_pages import listed, read_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RequestInput, RequestState, find_state
from export_pipeline.requests.validation.request import Preflight, preflight
from export_pipeline.scheduling.wall_clock import given_as_time

# What Cometly's endpoints share: the dialect, the range of dates, the flags.


BASE = "/public-api/v1"
DATASET = "contacts"
LAYOUT = "cometly"
_FORMAT = "%Y-%m-%d %H:%M:%S"
_LENGTH = len("2025-01-31 23:59:59")


class CometlyError(BaseModel):
    """Every error of this API; a 422 names its fields too, as Laravel does."""

    message: str
    errors: dict[str, list[str]] | None = None


def _shape(refusal: ApiError) -> dict[str, Any]:
    body: dict[str, Any] = {"message": refusal.message}
    if refusal.status == 422 and refusal.field:
        body["errors"] = {refusal.field: [refusal.message]}
    return body


DIALECT = Dialect(
    name="cometly",
    title="Contact exports, as Cometly speaks",
    description="Each organization is a space.",
    shape=_shape,
    error=CometlyError,
    invalid_status=422,
    # Laravel's own words, as Cometly's documents show only the shape [?].
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
    # Beside the 0 and 1 of Laravel's `boolean` rule, the words that a query string has.
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


class Range(BaseModel):
    """Which contacts, and what of each beside its own fields."""

    model_config = ConfigDict(extra="forbid")

    start_date: WallClock = Field(description="Created from, in the space's time zone.")
    # Always a time here: midnight is its second, not the day.
    end_date: Annotated[WallClock, AfterValidator(given_as_time)] = Field(
        description="Created until, both ends included; after `start_date`."
    )
    include_comet_tokens: Flag = Field(default=False, description="The last five, newest first.")
    include_all_emails: Flag = Field(default=False, description="Those of merged profiles too.")

    @property
    def include(self) -> list[str]:
        """The child lists that are asked for."""
        flags = {"comet_tokens": self.include_comet_tokens, "all_emails": self.include_all_emails}
        return [name for name, wanted in flags.items() if wanted]


def instant(value: datetime) -> str:
    """As Cometly writes it: 2024-01-15T10:30:00Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Cometly's list of contacts: the newest first, page by page by a cursor.


CONTACTS_PATH = f"{BASE}/contacts"
LISTS = 30
"""A minute and space; the documents name no number for this endpoint [?]: as many as for single contacts."""
_INT64_RANGE = range(-(2**63), 2**63)
Lister = Annotated[ApiKey, Depends(caller(DATASET, endpoint="list contacts", limit=LISTS))]


class Contact(BaseModel):
    """A contact; the lists only where they are asked for."""

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
    """A place between two contacts, and which way the page lies (as Laravel writes it)."""

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
            if type(found.id) is int and found.id in _INT64_RANGE and isinstance(found.forward, bool):
                return found
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise ApiError(422, "cursor: is none of ours; begin without one.", field="cursor")


def contact_routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["contacts"])
    router.get(
        CONTACTS_PATH,
        response_model=Contacts,
        response_model_exclude_unset=True,
        responses=DIALECT.documented(403, 422),
        summary="List contacts",
    )(contacts)
    return router


class Parameters(BaseModel):
    """The parameters for the OpenAPI document; ``Listed`` reads them."""

    start_date: str | None = Field(default=None, description="Required; wall clock of the space.")
    end_date: str | None = Field(default=None, description="Required; both ends included.")
    per_page: str | None = Field(default=None, description="1 to 5000; 200 by default.")
    cursor: str | None = Field(default=None, description="`next_cursor` or `prev_cursor` of another page.")
    include_comet_tokens: str | None = Field(default=None, description="0 or 1.")
    include_all_emails: str | None = Field(default=None, description="0 or 1.")


def contacts(request: Request, key: Lister, services: Serves, _given: Annotated[Parameters, Query()]) -> Contacts:
    """The newest first."""
    asked = parsed(request, Listed, {}, in_query=tuple(Listed.model_fields))
    place = _Cursor.read(asked.cursor)
    rows, before, after = _page(services, key, asked, place)
    return _envelope(services, request, asked, rows, before=before, after=after)


def _page(
    services: Services, key: ApiKey, asked: Listed, place: _Cursor | None
) -> tuple[list[dict[str, Any]], bool, bool]:
    """A page, newest first, and whether there are newer and older ones."""
    checked = _checked(services, key, asked)
    backward = place is not None and not place.forward
    found = read_page(
        services.source,
        listed(checked, key.organization_id),
        limit=asked.per_page + 1,
        after=place.id if place is not None and backward else None,
        before=place.id if place is not None and not backward else None,
        newest_first=not backward,
        headers=[column.header for column in checked.columns],
        timestamps="seconds",
    )
    rows, more = found[: asked.per_page], len(found) > asked.per_page
    if backward:
        return rows[::-1], more, True
    return rows, place is not None, more


def _checked(services: Services, key: ApiKey, asked: Listed) -> Preflight:
    organization = organization_of(services, key)
    rows = RequestInput(
        organization_id=key.organization_id,
        dataset=DATASET,
        format="ndjson",
        recipient_emails=[],
        layout=LAYOUT,
        start_date=asked.start_date,
        end_date=asked.end_date,
        include=asked.include,
    )
    return preflight(rows, services.catalog, organization)


def _envelope(
    services: Services,
    request: Request,
    asked: Listed,
    rows: list[dict[str, Any]],
    *,
    before: bool,
    after: bool,
) -> Contacts:
    path = f"{base_url(services, request)}{CONTACTS_PATH}"
    newer = str(_Cursor(rows[0]["id"], forward=False)) if rows and before else None
    older = str(_Cursor(rows[-1]["id"], forward=True)) if rows and after else None

    def url(cursor: str | None) -> str | None:
        parameters = {**request.query_params, "cursor": cursor}
        return f"{path}?{urlencode(parameters)}" if cursor else None

    return Contacts(
        data=[Contact(**row) for row in rows],
        path=path,
        per_page=asked.per_page,
        next_cursor=older,
        next_page_url=url(older),
        prev_cursor=newer,
        prev_page_url=url(newer),
    )


PATH = f"{BASE}/contacts/exports"
CREATES, READS = 5, 30
"""Requests a minute and space (Create Contact Export, Get Contact Export)."""
BEING_PROCESSED = "Export is being processed. Please check back in a few minutes."
LARGEST_FILE_MB = 5_000_000
"""One `download_url` is one file: the largest that S3 takes."""
_INT64 = 2**63 - 1
Creator = Annotated[ApiKey, Depends(caller(DATASET, endpoint="create export", limit=CREATES))]
Reader = Annotated[ApiKey, Depends(caller(DATASET, endpoint="read export", limit=READS))]


class ExportQueued(BaseModel):
    """The export."""

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


_exports = APIRouter(tags=["exports"])


def build(services: Services) -> FastAPI:
    """The app."""
    app = build_app(DIALECT, services)
    app.include_router(_exports)
    app.include_router(contact_routes())
    strip_default_errors(app)
    return app


@_exports.post(
    PATH,
    status_code=202,
    response_model=ExportQueued,
    responses=DIALECT.documented(403, 413, 422),
    openapi_extra=described(Range, required=False),
    summary="Create contact export",
)
def create(
    request: Request, response: Response, key: Creator, body: Body, services: Serves,
    idempotency_key: IdempotencyKey = None,
) -> ExportQueued:  # fmt: skip
    """The contacts created from one wall-clock time to another, both included, in the space's time zone."""
    asked = parsed(request, Range, body, in_query=tuple(Range.model_fields))
    submitted = submit(services, key, _columns(asked), idempotency_key)
    response.headers.update(submitted.headers)
    return ExportQueued(export_id=submitted.request.id, status="queued")


def _columns(asked: Range) -> dict[str, Any]:
    return {
        "dataset": DATASET,
        "format": "ndjson",
        "compression": "gzip",
        "layout": LAYOUT,
        "start_date": asked.start_date,
        "end_date": asked.end_date,
        "include": asked.include,
        "max_file_size_mb": LARGEST_FILE_MB,
        "notify_email": False,
        "recipient_emails": [],
    }


@_exports.get(
    PATH + "/{export_id}",
    response_model=ContactExport,
    response_model_exclude_none=True,
    responses=DIALECT.documented(403, 404, 422),
    summary="Get contact export",
)
def read(
    request: Request, export_id: Annotated[int, Path(ge=1, le=_INT64)], key: Reader, services: Serves
) -> ContactExport:
    """`download_url` lives 15 minutes from this request; ask again for another."""
    with reading(services.database) as connection:
        state = visible_to(key, find_state(connection, export_requests.c.id == export_id))
    if state is None or state.dataset != DATASET:
        raise ApiError(404, "Export not found.")
    return _view(services, request, state)


def _view(services: Services, request: Request, state: RequestState) -> ContactExport:
    created_at = instant(state.created_at)
    if state.status in UNFINISHED:
        status: Literal["queued", "processing"] = "queued" if state.status is RequestStatus.QUEUED else "processing"
        return ContactExport(export_id=state.id, status=status, created_at=created_at, message=BEING_PROCESSED)
    if not has_files(state):
        return ContactExport(export_id=state.id, status="failed", created_at=created_at, message=_message(state))
    (download,) = downloads(services, request, state)[:1]
    return ContactExport(
        export_id=state.id,
        status="completed",
        created_at=created_at,
        completed_at=instant(state.completed_at) if state.completed_at else None,
        download_url=download.url,
        expires_at=instant(download.expires_at),
    )


def _message(state: RequestState) -> str:
    if state.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED):
        return "The file of this export has expired. Create a new export."
    return state.message or "The export failed."
