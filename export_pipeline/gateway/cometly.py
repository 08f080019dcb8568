"""Cometly's dialect: contact exports, in Laravel's shapes.

What belongs here: its fields, statuses, messages and rates. What does not: the list of contacts
(``cometly_contacts``), how its files are written (the catalog's layout ``cometly``). Sources: docs.cometly.com.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from pydantic import BaseModel

from export_pipeline.gateway.auth import caller
from export_pipeline.gateway.bodies import Body, described, parsed
from export_pipeline.gateway.cometly_contacts import routes as contact_routes
from export_pipeline.gateway.cometly_shapes import BASE, DATASET, DIALECT, LAYOUT, Range, instant
from export_pipeline.gateway.dialect import Refusal, build_app, strip_default_errors
from export_pipeline.gateway.downloads import downloads, has_files, seen_by
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.database import reading
from export_pipeline.requests.enums import UNFINISHED, RequestStatus
from export_pipeline.requests.model import RequestState, find_state
from export_pipeline.requests.tables import export_requests

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
        state = seen_by(key, find_state(connection, export_requests.c.id == export_id))
    if state is None or state.dataset != DATASET:
        raise Refusal(404, "Export not found.")
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
