"""SendGrid's dialect: Export Contacts, and the lists and segments that an export may name."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import UNFINISHED
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.gateway.auth import caller, organization_of
from export_pipeline.gateway.dialect import ApiError, Dialect, instant_text
from export_pipeline.gateway.downloads import EXPIRABLE, base_url, downloads, has_files, visible
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import MAX_INTEGER, Body, IdempotencyKey, described, parsed, query_of, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RecentRequest, RequestState, recent_requests
from export_pipeline.requests.organizations import find_member
from export_pipeline.source.lookups import SegmentEntry, lists_page, names_of, segments_of

PATH = "/v3/marketing/contacts/exports"
LISTS = "/v3/marketing/lists"
SEGMENTS = "/v3/marketing/segments/2.0"
DATASET = "contacts"
LAYOUT = "sendgrid"
LISTED = 100
"""The most exports that the list shows."""
Status = Literal["pending", "ready", "failure"]


class _Model(BaseModel, populate_by_name=True):
    """Some names differ in JSON: `_metadata`."""


class SendGridError(BaseModel):
    """One error."""

    message: str
    field: str | None = None
    help: dict[str, Any] | None = None


class SendGridErrors(BaseModel):
    """Every error of this API."""

    errors: list[SendGridError]


class Metadata(_Model):
    """`_metadata`: the URL of this, and of the next page."""

    self_: str = Field(alias="self")
    next: str | None = None
    count: int | None = None


DIALECT = Dialect(
    name="sendgrid",
    title="Contacts exports, as SendGrid speaks",
    description="Point a SendGrid client's `host` here.",
    shape=lambda error: {"errors": [{"field": error.field, "message": error.message}]},
    error=SendGridErrors,
    invalid_status=400,
    # Clients look for these words (source-sendgrid).
    unauthenticated="authorization required",
    forbidden="access forbidden",
    too_many="too many requests",
    not_found="resource not found",
    names={"max_file_size_mb": "max_file_size", "recipient_emails": "notifications"},
)
_authenticate = caller(DATASET)


def sendgrid_caller(
    key: Annotated[ApiKey, Depends(_authenticate)],
    on_behalf_of: Annotated[str | None, Header(description="Not supported: each key has one organization.")] = None,
) -> ApiKey:
    """A caller for the key's own organization: ignoring a subuser would export the wrong contacts."""
    if on_behalf_of:
        raise ApiError(403, DIALECT.forbidden, field="On-Behalf-Of")
    return key


SendGridCaller = Annotated[ApiKey, Depends(sendgrid_caller)]


_exports = APIRouter(tags=["exports"])
_directory = APIRouter(tags=["lists and segments"])
ROUTERS = (_exports, _directory)


class ContactList(_Model):
    """A list."""

    id: str
    name: str
    contact_count: int
    metadata: Metadata = Field(alias="_metadata")


class Lists(_Model):
    """A page of lists; `_metadata.next` is the next one's URL."""

    result: list[ContactList]
    metadata: Metadata = Field(alias="_metadata")


class SegmentStatus(BaseModel):
    """Whether the segment's query is valid."""

    query_validation: Literal["VALID", "INVALID"]
    error_message: str


class Segment(BaseModel):
    """A segment; its instants are null, because the application does not store them."""

    id: str
    name: str
    contacts_count: int | None = Field(description="Null if the query is invalid, or counting took too long.")
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


@_directory.get(LISTS, response_model_exclude_none=True, responses=DIALECT.documented(400, 403), summary="Lists")
def lists(
    request: Request, key: SendGridCaller, services: Serves,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> Lists:  # fmt: skip
    """Sorted by id."""
    query_of(request, ("page_size", "page_token"))
    organization = organization_of(services, key)
    page = lists_page(
        services.source, services.dataset(DATASET), organization.id, after=page_token or None, limit=page_size + 1
    )
    base = f"{base_url(services, request)}{LISTS}"
    entries, more = page[:page_size], len(page) > page_size
    metadata = Metadata(
        self_=f"{base}?page_size={page_size}" + (f"&page_token={quote(page_token)}" if page_token else ""),
        next=f"{base}?page_size={page_size}&page_token={quote(entries[-1].id)}" if more else None,
        count=len(entries),
    )
    result = [
        ContactList(id=one.id, name=one.name or "", contact_count=one.rows, metadata=Metadata(self_=f"{base}/{one.id}"))
        for one in entries
    ]
    return Lists(result=result, metadata=metadata)


@_directory.get(SEGMENTS, responses=DIALECT.documented(400, 403), summary="Segments")
def segments(request: Request, key: SendGridCaller, services: Serves) -> Segments:
    """Each counted now, as long as the time limit allows."""
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


class Notifications(BaseModel, extra="forbid"):
    """Whether a link is mailed to the key's member."""

    email: bool | None = None


class ExportInput(BaseModel, extra="forbid"):
    """All fields are optional; an unknown one is an error, because it may be meant to narrow the export."""

    list_ids: list[str] | None = None
    segment_ids: list[str] | None = None
    notifications: Notifications | None = None
    file_type: Literal["csv", "json"] | None = None
    max_file_size: int | None = Field(
        default=None, ge=1, le=MAX_INTEGER, description=f"MB; {DEFAULT_MAX_FILE_SIZE_MB} by default."
    )
    field_selections: list[Literal["*"]] | None = Field(
        default=None, description="Not SendGrid's, but clients send it; an export always has all fields."
    )


class ExportCreated(_Model):
    """The new job."""

    metadata: Metadata = Field(alias="_metadata")
    id: str


class _Export(_Model):
    id: str
    status: Status
    created_at: str
    completed_at: str | None = None
    expires_at: str
    urls: list[str] | None = None
    metadata: Metadata = Field(alias="_metadata")


class ContactExport(_Export):
    """A job; `urls` once it is ready, `message` if it failed."""

    updated_at: str
    message: str | None = None
    contact_count: int | None = None


class Named(BaseModel):
    """A list or segment; these keys are SendGrid's."""

    ID: str
    Name: str


class ListedExport(_Export):
    """A job in the list."""

    user_id: str | None = None
    export_type: Literal["contacts_export", "list_export", "segment_export"]
    segments: list[Named]
    lists: list[Named]


class ExportList(_Model):
    """Exports in progress or recently completed; the newest is the last."""

    result: list[ListedExport]
    metadata: Metadata = Field(alias="_metadata")


@_exports.post(
    PATH,
    status_code=202,
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
    """Without lists and segments: all contacts."""
    export = parsed(request, ExportInput, body, in_query=["file_type"])
    uid = submit(services, key, _columns(services, key, export), idempotency_key, response).uid
    return ExportCreated(id=uid, metadata=_metadata(services, request, uid))


def _columns(services: Services, key: ApiKey, export: ExportInput) -> dict[str, Any]:
    mails = export.notifications is not None and bool(export.notifications.email)
    return {
        "dataset": DATASET,
        "format": "ndjson" if export.file_type == "json" else "csv",
        "compression": "gzip",
        "layout": LAYOUT,
        "list_ids": export.list_ids or None,
        "segment_ids": export.segment_ids or None,
        "max_file_size_mb": export.max_file_size or DEFAULT_MAX_FILE_SIZE_MB,
        "notify_email": mails,
        "recipient_emails": [_address(services, key)] if mails else [],
        # Programs read these files: values must be exactly as stored.
        "options": {"guard_formulas": False},
    }


def _address(services: Services, key: ApiKey) -> str:
    """The address for `notifications.email`: that of the member for whom the key acts."""
    member = None
    if key.member_id is not None:
        with reading(services.database) as connection:
            member = find_member(connection, key.organization_id, key.member_id)
    if member is None or member.email is None:
        message = "notifications.email: this key has no member with an address; set it to false."
        raise ApiError(400, message, field="notifications")
    return member.email


@_exports.get(
    PATH + "/{id}", response_model_exclude_none=True, responses=DIALECT.documented(403, 404), summary="Export status"
)
def read(request: Request, id: str, key: SendGridCaller, services: Serves) -> ContactExport:  # noqa: A002 - its name
    """Its URLs are fresh at each read and need no credentials."""
    state = visible(services, key, DIALECT, id, DATASET)
    facts = _facts(services, request, state)
    return ContactExport(
        **facts,
        updated_at=instant_text(state.updated_at),
        message=_message(state) if facts["status"] == "failure" else None,
        contact_count=state.row_count,
    )


@_exports.get(PATH, response_model_exclude_none=True, responses=DIALECT.documented(400, 403), summary="List exports")
def list_exports(request: Request, key: SendGridCaller, services: Serves) -> ExportList:
    """Exports in progress or recently completed."""
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
            **_facts(services, request, state),
            user_id=state.requested_by,
            export_type=_export_type(state),
            lists=[Named(ID=one, Name=names.get(one, "")) for one in state.list_ids],
            segments=[Named(ID=one, Name=names.get(one, "")) for one in state.segment_ids],
        )
        for state in found
    ]
    return ExportList(result=result, metadata=Metadata(self_=f"{base_url(services, request)}{PATH}"))


def _facts(services: Services, request: Request, state: RequestState) -> dict[str, Any]:
    """The fields of a job in both answers."""
    status = _status(state)
    # The document requires it for pending jobs too: the files will be kept at least until then.
    expires_at = state.expires_at or state.created_at + timedelta(days=services.settings.retention_days)
    return {
        "id": state.uid,
        "status": status,
        "created_at": instant_text(state.created_at),
        "completed_at": instant_text(state.completed_at) if state.completed_at else None,
        "expires_at": instant_text(expires_at),
        "urls": [one.url for one in downloads(services, request, state)] if status == "ready" else None,
        "metadata": _metadata(services, request, state.uid),
    }


def _status(state: RequestState) -> Status:
    if state.status in UNFINISHED:
        return "pending"
    # `ready` has at least one URL: an expired export is not ready any more [?].
    return "ready" if has_files(state) else "failure"


def _message(state: RequestState) -> str:
    if state.status in EXPIRABLE:
        return "The files of this export have expired; create a new export."
    return DIALECT.translate(state.message or "The export failed.")


def _export_type(state: RecentRequest) -> Literal["contacts_export", "list_export", "segment_export"]:
    if state.list_ids:
        return "list_export"
    return "segment_export" if state.segment_ids else "contacts_export"


def _metadata(services: Services, request: Request, uid: str) -> Metadata:
    return Metadata(self_=f"{base_url(services, request)}{PATH}/{uid}")
