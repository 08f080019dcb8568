"""Fresh download URLs of finished exports, and which requests a caller may see at all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from fastapi import Request

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.database.enums import RequestStatus
from export_pipeline.gateway.auth import caller_of, may_export
from export_pipeline.gateway.logs import HEAD
from export_pipeline.gateway.services import Services
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.audit import record_linked
from export_pipeline.requests.download_links import StoredFile, create, download_url, files_of
from export_pipeline.requests.models import RequestState, read_state
from export_pipeline.stages.upload import describe

URL_LIFETIME = timedelta(minutes=15)
"""Counted from the moment it is asked for (Cometly, Get Contact Export)."""


@dataclass(frozen=True)
class Download:
    """A file, and a URL that needs no credentials."""

    file: StoredFile
    url: str
    expires_at: datetime


def visible(services: Services, caller: ApiKey, uid: str) -> RequestState | None:
    """A request of the caller's organization that they may export; every other one is as unknown as none."""
    with reading(services.database) as connection:
        return visible_to(caller, read_state(connection, uid))


def visible_to(caller: ApiKey, state: RequestState | None) -> RequestState | None:
    """The request, if the caller may see it."""
    if state is None or state.organization_id != caller.organization_id or not may_export(caller, state.dataset):
        return None
    return state


def has_files(state: RequestState) -> bool:
    """Whether the request's files can be downloaded now."""
    return state.status is RequestStatus.COMPLETED and state.expires_at is not None and state.expires_at > utc_now()


def downloads(services: Services, request: Request, state: RequestState) -> list[Download]:
    """A fresh URL for each file of a request, in their order; none if there are no files (any more).

    Whoever found the request, nothing is minted for a caller who may not see it.
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
            return _sealed(connection, base_url(services, request), state, files, ends_at)
    lifetime = ends_at - utc_now()
    linked = [(file, services.store.link(describe(file), lifetime)) for file in files]
    return [Download(file, link.url, link.expires_at or ends_at) for file, link in linked]


def _sealed(
    connection: sa.Connection, base: str, state: RequestState, files: list[StoredFile], ends_at: datetime
) -> list[Download]:
    tokens = create(connection, state.id, [file.ordinal for file in files], expires_at=ends_at)
    return [Download(file, download_url(base, token), ends_at) for file, token in zip(files, tokens, strict=True)]


def is_head(request: Request) -> bool:
    """Whether the headers alone are asked for."""
    return bool(request.scope.get(HEAD))


def base_url(services: Services, request: Request) -> str:
    """Where this gateway is reached: as the settings say, or as the caller reached it."""
    return services.settings.public_url or str(request.base_url).rstrip("/")
