"""SendGrid's dialect: Export Contacts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import UNFINISHED, RequestStatus
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.gateway.auth import caller, organization_of
from export_pipeline.gateway.bodies import MAX_INTEGER, Body, described, parsed, query_of
from export_pipeline.gateway.dialect import ApiError, Dialect, build_app, strip_default_errors
from export_pipeline.gateway.downloads import base_url, downloads, has_files, visible
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RecentRequest, RequestState, recent_requests
from export_pipeline.source.lookups import ListEntry, SegmentEntry, lists_page, names_of, segments_of

# What SendGrid's endpoints share: the dialect, metadata, who may call.


DATASET = "contacts"


class SendGridError(BaseModel):
    """One thing that is wrong."""

    message: str
    field: str | None = None
    help: dict[str, Any] | None = None


class SendGridErrors(BaseModel):
    """Every error of this API."""

    errors: list[SendGridError]


class Metadata(BaseModel):
    """`_metadata`: where this is, and what comes next."""

    model_config = ConfigDict(populate_by_name=True)

    self_: str = Field(alias="self")
    next: str | None = None
    count: int | None = None


DIALECT = Dialect(
    name="sendgrid",
    title="Contacts exports, as SendGrid speaks",
    description="Point a SendGrid client's `host` here.",
    shape=lambda refusal: {"errors": [{"field": refusal.field, "message": refusal.message}]},
    error=SendGridErrors,
    invalid_status=400,
    # Clients look for these words (source-sendgrid).
    unauthenticated="authorization required",
    forbidden="access forbidden",
    too_many="too many requests",
    not_found="resource not found",
    names={"max_file_size_mb": "max_file_size", "recipient_emails": "notifications"},
)
_let_in = caller(DATASET)


def sendgrid_caller(
    key: Annotated[ApiKey, Depends(_let_in)],
    on_behalf_of: Annotated[str | None, Header(description="Not supported: each key has one organization.")] = None,
) -> ApiKey:
    """A caller for their own organization: to ignore a subuser would export somebody else's contacts."""
    if on_behalf_of:
        raise ApiError(403, DIALECT.forbidden, field="On-Behalf-Of")
    return key


SendGridCaller = Annotated[ApiKey, Depends(sendgrid_caller)]


def instant(value: datetime) -> str:
    """As SendGrid writes it: 2021-02-01T12:35:22Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# SendGrid's lists and segments: what `list_ids` and `segment_ids` may name.


LISTS = "/v3/marketing/lists"
SEGMENTS = "/v3/marketing/segments/2.0"


class ContactList(BaseModel):
    """A list."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    name: str
    contact_count: int
    metadata: Metadata = Field(alias="_metadata")


class Lists(BaseModel):
    """A page of lists; `_metadata.next` is the next one's URL."""

    model_config = ConfigDict(populate_by_name=True)

    result: list[ContactList]
    metadata: Metadata = Field(alias="_metadata")


class SegmentStatus(BaseModel):
    """Whether the segment's query can be used."""

    query_validation: Literal["VALID", "INVALID"]
    error_message: str


class Segment(BaseModel):
    """A segment; its instants are null, as the application does not tell them."""

    id: str
    name: str
    contacts_count: int | None = Field(description="Null if the query cannot be used, or counting took too long.")
    query_dsl: str | None
    created_at: str | None = None
    updated_at: str | None = None
    sample_updated_at: str | None = None
    next_sample_update: str | None = None
    parent_list_ids: list[str]
    query_version: Literal["2"] = "2"
    status: SegmentStatus


class Segments(BaseModel):
    """All segments."""

    results: list[Segment]


def directory_routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["lists and segments"])
    router.get(
        LISTS,
        response_model=Lists,
        response_model_exclude_none=True,
        responses=DIALECT.documented(400, 403),
        summary="Lists",
    )(lists)
    router.get(SEGMENTS, response_model=Segments, responses=DIALECT.documented(400, 403), summary="Segments")(segments)
    return router


def lists(
    request: Request, key: SendGridCaller, services: Serves,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> Lists:  # fmt: skip
    """In the order of their ids."""
    query_of(request, ("page_size", "page_token"))
    organization = organization_of(services, key)
    page = lists_page(
        services.source,
        services.dataset(DATASET),
        organization.id,
        after=page_token or None,
        limit=page_size + 1,
    )
    base = f"{base_url(services, request)}{LISTS}"
    shown, more = page[:page_size], len(page) > page_size
    metadata = Metadata(
        self_=f"{base}?page_size={page_size}" + (f"&page_token={quote(page_token)}" if page_token else ""),
        next=f"{base}?page_size={page_size}&page_token={quote(shown[-1].id)}" if more else None,
        count=len(shown),
    )
    return Lists(result=[_list(one, base) for one in shown], metadata=metadata)


def _list(entry: ListEntry, base: str) -> ContactList:
    return ContactList(
        id=entry.id, name=entry.name or "", contact_count=entry.rows, metadata=Metadata(self_=f"{base}/{entry.id}")
    )


def segments(request: Request, key: SendGridCaller, services: Serves) -> Segments:
    """Each counted now, as far as the time is enough for it."""
    query_of(request, ())
    organization = organization_of(services, key)
    found = segments_of(services.source, services.dataset(DATASET), organization.id, organization.time_zone)
    return Segments(results=[_segment(one) for one in found])


def _segment(entry: SegmentEntry) -> Segment:
    status = SegmentStatus(query_validation="INVALID" if entry.problem else "VALID", error_message=entry.problem or "")
    return Segment(
        id=entry.id,
        name=entry.name or "",
        contacts_count=entry.rows,
        query_dsl=entry.query_dsl,
        parent_list_ids=[],
        status=status,
    )


PATH = "/v3/marketing/contacts/exports"
LISTED = 100
"""Exports that the list shows at most."""
LAYOUT = "sendgrid"


class Notifications(BaseModel):
    """Whether the key's member is mailed a link."""

    model_config = ConfigDict(extra="forbid")

    email: bool | None = None


class ExportInput(BaseModel):
    """All of it optional; another key is refused, as it may be meant to narrow the export."""

    model_config = ConfigDict(extra="forbid")

    list_ids: list[str] | None = None
    segment_ids: list[str] | None = None
    notifications: Notifications | None = None
    file_type: Literal["csv", "json"] | None = None
    max_file_size: int | None = Field(
        default=None, ge=1, le=MAX_INTEGER, description=f"MB; {DEFAULT_MAX_FILE_SIZE_MB} by default."
    )
    field_selections: list[Literal["*"]] | None = Field(
        default=None, description="Not SendGrid's; clients send it, and all fields are what they get."
    )


class ExportCreated(BaseModel):
    """The job."""

    model_config = ConfigDict(populate_by_name=True)

    metadata: Metadata = Field(alias="_metadata")
    id: str


class ContactExport(BaseModel):
    """A job's status; `urls` once it is ready, `message` if it failed."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    status: Literal["pending", "ready", "failure"]
    created_at: str
    updated_at: str
    completed_at: str | None = None
    expires_at: str
    urls: list[str] | None = None
    message: str | None = None
    contact_count: int | None = None
    metadata: Metadata = Field(alias="_metadata")


class Named(BaseModel):
    """A list or segment; SendGrid writes these keys so."""

    ID: str
    Name: str


class ListedExport(BaseModel):
    """A job in the list."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    status: Literal["pending", "ready", "failure"]
    created_at: str
    completed_at: str | None = None
    expires_at: str
    urls: list[str] | None = None
    user_id: str | None = None
    export_type: Literal["contacts_export", "list_export", "segment_export"]
    segments: list[Named]
    lists: list[Named]
    metadata: Metadata = Field(alias="_metadata")


class ExportList(BaseModel):
    """In flight or recently completed; the newest is the last."""

    model_config = ConfigDict(populate_by_name=True)

    result: list[ListedExport]
    metadata: Metadata = Field(alias="_metadata")


def build(services: Services) -> FastAPI:
    """The app."""
    app = build_app(DIALECT, services)
    app.include_router(_exports)
    app.include_router(directory_routes())
    strip_default_errors(app)
    return app


_exports = APIRouter(tags=["exports"])


@_exports.post(
    PATH,
    status_code=202,
    response_model=ExportCreated,
    response_model_exclude_none=True,
    responses=DIALECT.documented(400, 403, 413),
    openapi_extra=described(ExportInput, required=False),
    summary="Export contacts",
)
def create(
    request: Request, response: Response, key: SendGridCaller, body: Body, services: Serves,
    _in_query: Annotated[str | None, Query(alias="file_type", description="For clients that send no body.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> ExportCreated:  # fmt: skip
    """Neither lists nor segments: all contacts."""
    asked = parsed(request, ExportInput, body, in_query=["file_type"])
    submitted = submit(services, key, _columns(services, key, asked), idempotency_key)
    response.headers.update(submitted.headers)
    uid = submitted.request.uid
    return ExportCreated(id=uid, metadata=_metadata(services, request, uid))


def _columns(services: Services, key: ApiKey, asked: ExportInput) -> dict[str, Any]:
    mails = asked.notifications is not None and bool(asked.notifications.email)
    return {
        "dataset": DATASET,
        "format": "ndjson" if asked.file_type == "json" else "csv",
        "compression": "gzip",
        "layout": LAYOUT,
        "list_ids": asked.list_ids or None,
        "segment_ids": asked.segment_ids or None,
        "max_file_size_mb": asked.max_file_size or DEFAULT_MAX_FILE_SIZE_MB,
        "notify_email": mails,
        "recipient_emails": [_address(services, key)] if mails else [],
        # Programs read these files, and a value is to be what was stored.
        "options": {"guard_formulas": False},
    }


def _address(services: Services, key: ApiKey) -> str:
    """Where `notifications.email` goes: to whom the key acts for."""
    member = None
    if key.member_id is not None:
        with reading(services.database) as connection:
            member = services.organizations.member(connection, key.organization_id, key.member_id)
    if member is None or member.email is None:
        message = "notifications.email: this key acts for no member with an address; leave it false."
        raise ApiError(400, message, field="notifications")
    return member.email


@_exports.get(
    PATH + "/{id}",
    response_model=ContactExport,
    response_model_exclude_none=True,
    responses=DIALECT.documented(403, 404),
    summary="Export status",
)
def read(request: Request, id: str, key: SendGridCaller, services: Serves) -> ContactExport:  # noqa: A002 - its name
    """Its URLs are fresh at each read and need no credentials."""
    state = visible(services, key, id)
    if state is None or state.dataset != DATASET:
        raise ApiError(404, DIALECT.not_found)
    told = _told(services, request, state)
    return ContactExport(
        **told,
        updated_at=instant(state.updated_at),
        message=_message(state) if told["status"] == "failure" else None,
        contact_count=state.row_count,
    )


@_exports.get(
    PATH,
    response_model=ExportList,
    response_model_exclude_none=True,
    responses=DIALECT.documented(400, 403),
    summary="List exports",
)
def list_exports(request: Request, key: SendGridCaller, services: Serves) -> ExportList:
    """Those in flight or recently completed."""
    query_of(request, ())
    with reading(services.database) as connection:
        found = recent_requests(connection, key.organization_id, DATASET, limit=LISTED)
    names = names_of(
        services.source,
        services.dataset(DATASET),
        key.organization_id,
        list_ids=sorted({one for state in found for one in state.list_ids}),
        segment_ids=sorted({one for state in found for one in state.segment_ids}),
    )
    result = [
        ListedExport(
            **_told(services, request, state),
            user_id=state.requested_by,
            export_type=_export_type(state),
            lists=[Named(ID=one, Name=names.get(one, "")) for one in state.list_ids],
            segments=[Named(ID=one, Name=names.get(one, "")) for one in state.segment_ids],
        )
        for state in found
    ]
    return ExportList(result=result, metadata=Metadata(self_=f"{base_url(services, request)}{PATH}"))


def _told(services: Services, request: Request, state: RequestState) -> dict[str, Any]:
    """What both answers say."""
    status = _status(state)
    # The document demands it of pending jobs too: the files will live at least so long.
    expires_at = state.expires_at or state.created_at + services.retention
    return {
        "id": state.uid,
        "status": status,
        "created_at": instant(state.created_at),
        "completed_at": instant(state.completed_at) if state.completed_at else None,
        "expires_at": instant(expires_at),
        "urls": [one.url for one in downloads(services, request, state)] if status == "ready" else None,
        "metadata": _metadata(services, request, state.uid),
    }


def _status(state: RequestState) -> Literal["pending", "ready", "failure"]:
    if state.status in UNFINISHED:
        return "pending"
    # `ready` has at least one URL: what has expired is not ready any more [?].
    return "ready" if has_files(state) else "failure"


def _message(state: RequestState) -> str:
    if state.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED):
        return "The files of this export have expired; ask for a new export."
    return DIALECT.worded(state.message or "The export failed.")


def _export_type(state: RecentRequest) -> Literal["contacts_export", "list_export", "segment_export"]:
    if state.list_ids:
        return "list_export"
    return "segment_export" if state.segment_ids else "contacts_export"


def _metadata(services: Services, request: Request, uid: str) -> Metadata:
    return Metadata(self_=f"{base_url(services, request)}{PATH}/{uid}")
