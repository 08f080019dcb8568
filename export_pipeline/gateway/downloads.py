"""The requests that a caller may see, and fresh download URLs of finished exports."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.database.enums import RequestStatus
from export_pipeline.gateway.auth import caller_of, may_export
from export_pipeline.gateway.dialect import HEAD, ApiError, Dialect
from export_pipeline.gateway.services import Services
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.audit import record_linked
from export_pipeline.requests.download_links import StoredFile, create, download_url, files_of
from export_pipeline.requests.models import RequestState, read_state
from export_pipeline.stages.upload import describe

URL_LIFETIME = timedelta(minutes=15)
"""From the moment of the request for it (Cometly, Get Contact Export)."""
EXPIRABLE = (RequestStatus.COMPLETED, RequestStatus.EXPIRED)
"""Statuses of requests whose files may have expired."""


@dataclass(frozen=True)
class Download:
    """A file, and a URL that needs no credentials."""

    file: StoredFile
    url: str
    expires_at: datetime


def visible(services: Services, caller: ApiKey, dialect: Dialect, uid: str, dataset: str | None = None) -> RequestState:
    """A request of the caller's organization that they may export.

    Raises:
        ApiError: 404, for every other request as for a uid that does not exist.
    """
    with reading(services.database) as connection:
        state = visible_to(caller, read_state(connection, uid), dataset)
    if state is None:
        raise ApiError(404, dialect.not_found)
    return state


def visible_to(caller: ApiKey, state: RequestState | None, dataset: str | None = None) -> RequestState | None:
    """The request, if the caller may see it and it is of the dataset (None: of any)."""
    if state is None or state.organization_id != caller.organization_id or not may_export(caller, state.dataset):
        return None
    return state if dataset in (None, state.dataset) else None


def has_files(state: RequestState) -> bool:
    """Whether the request's files can be downloaded now."""
    return state.status is RequestStatus.COMPLETED and state.expires_at is not None and state.expires_at > utc_now()


def downloads(services: Services, request: Request, state: RequestState) -> list[Download]:
    """A fresh URL for each file of a request, in their order; an empty list if it has no files now.

    It checks again that the caller may see the request, whatever the endpoint checked.
    """
    if visible_to(caller_of(request), state) is None or not has_files(state) or state.expires_at is None:
        return []
    ends_at = min(utc_now() + URL_LIFETIME, state.expires_at)
    if is_head(request):
        with reading(services.database) as connection:
            return [Download(file, "", ends_at) for file in files_of(connection, state.id)]
    with services.database.begin() as connection:
        files = files_of(connection, state.id)
        if files:
            actor = f"key {caller_of(request).id}"
            record_linked(connection, state.uid, state.organization_id, len(files), actor=actor, within=URL_LIFETIME)
        if services.serves_files:
            tokens = create(connection, state.id, [file.ordinal for file in files], expires_at=ends_at)
            urls = [download_url(base_url(services, request), token) for token in tokens]
            return [Download(file, url, ends_at) for file, url in zip(files, urls, strict=True)]
    lifetime = ends_at - utc_now()
    links = [(file, services.store.link(describe(file), lifetime)) for file in files]
    return [Download(file, link.url, link.expires_at or ends_at) for file, link in links]


def is_head(request: Request) -> bool:
    """Whether the request is HEAD: only the headers of the answer are sent."""
    return bool(request.scope.get(HEAD))


def base_url(services: Services, request: Request) -> str:
    """The gateway's URL: from the settings, or as the caller reached it."""
    return services.settings.public_url or str(request.base_url).rstrip("/")
