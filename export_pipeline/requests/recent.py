"""An organization's requests of late, for lists of them.

What belongs here: reading several rows at once. What does not: one row (``model``).
"""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BeforeValidator

from export_pipeline.requests.enums import UNFINISHED, RequestStatus
from export_pipeline.requests.model import RequestState
from export_pipeline.requests.tables import export_requests

LISTED = (*UNFINISHED, RequestStatus.COMPLETED, RequestStatus.FAILED)
"""In flight or ended lately; what was canceled or has expired has nothing more to tell."""


def _texts(value: Any) -> list[str]:
    # SQLite may hold any JSON there.
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


class RecentRequest(RequestState):
    """A request's state, and the lists and segments that it asked for."""

    requested_by: str | None
    list_ids: Annotated[list[str], BeforeValidator(_texts)]
    segment_ids: Annotated[list[str], BeforeValidator(_texts)]


def recent_requests(
    connection: sa.Connection, organization_id: str, dataset: str, *, limit: int
) -> list[RecentRequest]:
    """The newest requests of a dataset, oldest of them first (SendGrid, list exports: the newest is the last)."""
    columns = export_requests.c
    found = connection.execute(
        sa.select(*[columns[name] for name in RecentRequest.model_fields])
        .where(columns.organization_id == organization_id, columns.dataset == dataset, columns.status.in_(list(LISTED)))
        .order_by(columns.id.desc())
        .limit(limit)
    ).mappings()
    return [RecentRequest(**row) for row in found][::-1]
