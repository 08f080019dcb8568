"""From a dialect's request to a row: validated by the rules of a request, then inserted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Header
from pydantic import ValidationError

from export_pipeline.database.engine import reading
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.gateway.services import Services
from export_pipeline.recurring.dispatch import KEY_PREFIX
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import ExportRequest, RequestInput, insert_and_load, load_request
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.validation.request import Preflight, admit
from export_pipeline.source.lookups import check_lists, find_segments

MAX_KEY_LENGTH = 255
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any text of your own: the same request with the same key is made once, and answered the same.",
        max_length=MAX_KEY_LENGTH,
    ),
]


@dataclass(frozen=True)
class Submitted:
    """A row, inserted now or by an earlier request with the same key."""

    request: ExportRequest
    replayed: bool

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says of it."""
        return {"Idempotent-Replayed": "true"} if self.replayed else {}


def submit(services: Services, caller: ApiKey, asked: Mapping[str, Any], key: str | None = None) -> Submitted:
    """Insert a request as an application does, if it passes every rule.

    Args:
        services: the installation.
        caller: whose organization it is for, and who asks.
        asked: columns of ``export_requests``; always the same ones of a dialect, so that two requests can be compared.
        key: ``Idempotency-Key``.

    Raises:
        ExportFailure: the first rule that it breaks, and nothing is inserted.
    """
    _check_key(key)
    row = {**asked, "organization_id": caller.organization_id, "requested_by": caller.member_id}
    try:
        return _submit(services, row, key)
    except sa.exc.IntegrityError:
        if key is None:
            raise
    # Another process inserted it in this very moment.
    return _submit(services, row, key)


def _check_key(key: str | None) -> None:
    # The key of a fire time, used beforehand, would take the place of its request.
    if key is not None and key.startswith(KEY_PREFIX):
        message = (
            f"Idempotency-Key: may not begin with {KEY_PREFIX}, as those of recurring exports do; use another one."
        )
        raise ExportFailure(FailureCode.INVALID_REQUEST, message)


def _submit(services: Services, row: Mapping[str, Any], key: str | None) -> Submitted:
    if row.get("list_ids") or row.get("segment_ids"):
        _check_names(services, row, key)
    with services.database.begin() as connection:
        earlier = _with_key(connection, row["organization_id"], key)
        if earlier is not None:
            return Submitted(_same(earlier, row), replayed=True)
        _admit(connection, services, row)
        return Submitted(_insert(connection, row, key), replayed=False)


def _check_names(services: Services, row: Mapping[str, Any], key: str | None) -> None:
    """Make sure that the organization has the lists and segments, unless the answer is an earlier request's.

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
        return admit(connection, services.organizations, services.catalog, services.settings, request)
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


def _same(earlier: ExportRequest, row: Mapping[str, Any]) -> ExportRequest:
    if any(getattr(earlier, name) != value for name, value in row.items()):
        message = "Idempotency-Key: was used for another request; use a new one for a new request."
        raise ExportFailure(FailureCode.INVALID_REQUEST, message)
    return earlier
