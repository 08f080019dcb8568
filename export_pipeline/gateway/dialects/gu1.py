"""gu1's dialect: the list of entities, and their bulk export by e-mail."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, Field
from pydantic.alias_generators import to_camel

from export_pipeline.database.enums import RequestStatus
from export_pipeline.gateway.auth import caller
from export_pipeline.gateway.dialect import ApiError, Dialect
from export_pipeline.gateway.downloads import EXPIRABLE, downloads, visible
from export_pipeline.gateway.row_pages import read_page, selection_of
from export_pipeline.gateway.services import Serves
from export_pipeline.gateway.submit import Body, IdempotencyKey, described, parsed, query_of, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RequestState, RequestTemplate, overall_progress

BASE = "/entities"
PATH = f"{BASE}/export/jobs"
DATASET = "entities"
LIMIT = 100
"""gu1 lists up to 100 entities and has no pages (docs/contracts.md)."""
FILTERS = ("type", "country", "taxId", "externalId")
MESSAGE = "The export was queued. Every recipient is mailed when it is ready."
_NOT_YET = "The files of this export are not available yet."
_GONE = "The files of this export have expired. Create a new export."


class Model(BaseModel, alias_generator=to_camel, populate_by_name=True):
    """camelCase in JSON; only column keys are snake_case."""


class Gu1Error(BaseModel):
    """Every error of this API; `code` is our addition, stable for programs."""

    success: Literal[False]
    error: str
    code: str


DIALECT = Dialect(
    name="gu1",
    title="Bulk entity export, as gu1 speaks",
    description="Each key belongs to the organization that `X-Organization-ID` names.",
    shape=lambda error: {"success": False, "error": error.message, "code": error.code},
    error=Gu1Error,
    invalid_status=400,
    unauthenticated="Not authenticated",
    forbidden="Missing permission: entities:export",
    too_many="Too many requests; wait as long as Retry-After says.",
    not_found="Not found",
    names={name: to_camel(name) for name in RequestTemplate.model_fields},
)
_let_in = caller(DATASET)


def gu1_caller(
    key: Annotated[ApiKey, Depends(_let_in)],
    x_organization_id: Annotated[str | None, Header(description="Required: the key's organization.")] = None,
) -> ApiKey:
    """A caller who names the key's own organization."""
    if not x_organization_id:
        raise ApiError(400, "X-Organization-ID header is required")
    if x_organization_id.strip().lower() != key.organization_id.lower():
        raise ApiError(403, "This API key does not belong to the organization that X-Organization-ID names")
    return key


Gu1Caller = Annotated[ApiKey, Depends(gu1_caller)]
_entities = APIRouter(tags=["entities"])
_jobs = APIRouter(tags=["export jobs"])
ROUTERS = (_jobs, _entities)


class Entities(BaseModel):
    """The entities, their fields in camelCase."""

    entities: list[dict[str, Any]]


@_entities.get(
    BASE,
    responses=DIALECT.documented(400, 403),
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": "Exact."}
            for name in FILTERS
        ]
    },
    summary="List entities",
)
def entities(request: Request, key: Gu1Caller, services: Serves) -> Entities:
    """The first hundred that the filters select; an unknown parameter is an error."""
    selection, _ = selection_of(services, key, dataset=DATASET, filters=query_of(request, FILTERS))
    headers = [to_camel(column.name) for column in selection.columns]
    return Entities(entities=read_page(services.source, selection, limit=LIMIT, headers=headers))


class JobInput(Model, extra="forbid"):
    """A bulk export by e-mail."""

    recipient_emails: list[str] = Field(min_length=1, description="At most 26 different addresses.")
    format: Literal["csv", "xlsx", "json"]
    filters: dict[str, Any] = Field(default={}, description="As in the list of entities; {} selects everything.")
    email_locale: str | None = Field(default=None, description="en, es or pt; any other value means en.")
    columns: list[str] | None = Field(default=None, description="snake_case keys in order; all by default.")
    from_sender_id: str | None = None
    from_email: str | None = None


class JobQueued(Model):
    """The job."""

    job_id: str
    message: str


class Job(Model):
    """A job."""

    job_id: str
    status: Literal["queued", "running", "completed", "failed"]
    format: str
    total_items: int | None
    processed_items: int | None
    progress: float | None = Field(description="Percent, over all steps.")
    file_count: int | None
    size_bytes: int | None
    error: str | None
    error_code: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None


class JobAnswer(Model):
    """The job."""

    success: Literal[True] = True
    job: Job


class File(Model):
    """A file, and a URL that needs no credentials."""

    url: str
    file_name: str
    size_bytes: int
    rows: int
    expires_at: datetime


class Download(File):
    """The first file's facts, and all files."""

    job_id: str
    files: list[File]


class DownloadAnswer(Model):
    """Where the files are."""

    success: Literal[True] = True
    download: Download


@_jobs.post(
    PATH,
    status_code=202,
    responses=DIALECT.documented(400, 403, 413),
    openapi_extra=described(JobInput),
    summary="Export entities and mail them",
)
def create(
    request: Request, response: Response, key: Gu1Caller, body: Body, services: Serves,
    idempotency_key: IdempotencyKey = None,
) -> JobQueued:  # fmt: skip
    """An export that cannot be made or mailed is an error at once."""
    columns = {**parsed(request, JobInput, body).model_dump(), "dataset": DATASET, "notify_email": True}
    return JobQueued(job_id=submit(services, key, columns, idempotency_key, response).uid, message=MESSAGE)


@_jobs.get(PATH + "/{jobId}", responses=DIALECT.documented(400, 403, 404), summary="A job")
def read(jobId: str, key: Gu1Caller, services: Serves) -> JobAnswer:  # noqa: N803 - its documented name
    """Poll every few seconds until it is completed or failed."""
    return JobAnswer(job=_view(visible(services, key, DIALECT, jobId, DATASET)))


@_jobs.get(PATH + "/{jobId}/download", responses=DIALECT.documented(400, 403, 404), summary="Where the files are")
def download(request: Request, jobId: str, key: Gu1Caller, services: Serves) -> DownloadAnswer:  # noqa: N803
    """Available once the job is completed; each URL is fresh."""
    state = visible(services, key, DIALECT, jobId, DATASET)
    files = [
        File(url=one.url, file_name=file.name, size_bytes=file.bytes, rows=file.rows, expires_at=one.expires_at)
        for one in downloads(services, request, state)
        for file in [one.file]
    ]
    if not files:
        raise ApiError(404, _GONE if state.status in EXPIRABLE else _NOT_YET)
    return DownloadAnswer(download=Download(**files[0].model_dump(), job_id=state.uid, files=files))


_SHOWN_AS = {RequestStatus.CANCELED: RequestStatus.FAILED, RequestStatus.EXPIRED: RequestStatus.COMPLETED}
"""gu1 has four statuses. A canceled job has failed; an expired one was completed (a guess: docs/contracts.md)."""


def _view(state: RequestState) -> Job:
    done, total = overall_progress(state)
    status = _SHOWN_AS.get(state.status, state.status)
    has_failed = status is RequestStatus.FAILED
    return Job(
        job_id=state.uid,
        status=status.value,
        format=state.format,
        total_items=state.rows_total,
        processed_items=state.row_count if state.row_count is not None else state.rows_done,
        progress=round(100 * done / total, 1) if total else None,
        file_count=state.file_count,
        size_bytes=state.byte_count,
        error=DIALECT.translate(state.message) if has_failed and state.message else None,
        error_code=state.error_code if has_failed else None,
        created_at=state.created_at,
        started_at=state.started_at,
        completed_at=state.completed_at,
        expires_at=state.expires_at,
    )
