"""The audit trail: one row a transition, in the transaction that makes it.

What belongs here: writing the trail. What does not: deciding what happens (``states``, ``claims``, ``expiry``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from export_pipeline.requests.tables import EventKind, export_events

PIPELINE = "pipeline"
"""The actor of an event that no person caused."""


def record(
    connection: sa.Connection,
    uid: str,
    organization_id: str,
    kind: EventKind,
    detail: Mapping[str, Any] | None = None,
    *,
    actor: str = PIPELINE,
) -> None:
    """Add one event; it outlives the request's row."""
    connection.execute(
        export_events.insert().values(
            request_uid=uid, organization_id=organization_id, kind=kind, actor=actor, detail=detail
        )
    )
