"""The audit trail: one row per transition, written in the same transaction.

It records who requested what (filters included), who received links and opened them, and when the files were deleted.
It outlives the row and the files of a request. Its copy of the input is personal data: ``EXPORT_AUDIT_RETENTION_DAYS``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import EventKind
from export_pipeline.database.tables import export_events, export_requests
from export_pipeline.database.types import instant_after

PIPELINE = "pipeline"
"""The actor of events that no person caused."""
APPLICATION = "application"
"""The actor of a request whose row names none."""
COMMAND = "command"
"""The actor of what an operator does with ``export-pipeline``."""
LONGEST_KEPT = 1_000_000
"""Characters of an input column that the trail copies, the gateway's own limit; longer JSON is left out."""
_events = export_events.c
_rows = export_requests.c
_INPUT_TEXTS = ("dataset", "format", "layout", "start_date", "end_date", "window_from", "window_before")
_INPUT_JSON = ("columns", "filters", "list_ids", "segment_ids", "include", "recipient_emails")


@dataclass(frozen=True)
class Event:
    """One row of the trail; ``detail`` is JSON text."""

    at: datetime
    kind: str
    actor: str | None
    detail: str | None


def record(
    connection: sa.Connection,
    uid: str,
    organization_id: str,
    kind: EventKind,
    detail: Mapping[str, Any] | None = None,
    *,
    actor: str = PIPELINE,
) -> None:
    """Add one event."""
    connection.execute(
        export_events.insert().values(
            request_uid=uid, organization_id=organization_id, kind=kind, actor=actor, detail=detail
        )
    )


def record_input(connection: sa.Connection, request_ids: Sequence[int]) -> None:
    """Add who requested each of these requests, and what; once per request, by the first transition.

    The database copies it, so that a row that Python cannot read does not block the claim of the others.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    build = sa.func.json_object if on_sqlite else sa.func.jsonb_build_object
    parts: list[sa.ColumnElement[Any]] = []
    for name in (*_INPUT_TEXTS, *_INPUT_JSON, "recurring_export_id"):
        parts += [sa.literal_column(f"'{name}'"), _input_value(name, on_sqlite=on_sqlite)]
    known = sa.exists().where(_events.request_uid == _rows.uid, _events.kind == EventKind.ASKED)
    inputs = sa.select(
        _rows.uid,
        _rows.organization_id,
        sa.literal(EventKind.ASKED.value),
        sa.func.coalesce(_rows.requested_by, APPLICATION),
        build(*parts),
        _rows.created_at,
    ).where(_rows.id.in_(request_ids), ~known)
    names = ["request_uid", "organization_id", "kind", "actor", "detail", "created_at"]
    connection.execute(export_events.insert().from_select(names, inputs))


def _input_value(name: str, *, on_sqlite: bool) -> sa.ColumnElement[Any]:
    """A column's value for the trail; JSON that is too long is NULL."""
    column = _rows[name]
    if name not in _INPUT_JSON:
        return sa.func.substr(sa.cast(column, sa.Text), 1, LONGEST_KEPT)
    text = sa.cast(column, sa.Text)
    fits = sa.func.length(text) <= LONGEST_KEPT
    if not on_sqlite:
        return sa.case((fits, column))
    # Inside the event it is one level deeper, and may exceed the depth that SQLite allows.
    sound = sa.and_(fits, sa.func.json_valid(sa.literal("[") + text + sa.literal("]")))
    return sa.case((sound, sa.func.json(column)))


def record_linked(
    connection: sa.Connection, uid: str, organization_id: str, files: int, *, actor: str, within: timedelta
) -> None:
    """Add that the actor received URLs of the files, unless the trail has such an event ``within`` that time.

    A client that polls receives new URLs at every read.
    """
    same = (_events.request_uid == uid, _events.kind == EventKind.LINKED, _events.actor == actor)
    recent = _events.created_at > instant_after(-within.total_seconds())
    if connection.execute(sa.select(_events.id).where(*same, recent)).first() is None:
        record(connection, uid, organization_id, EventKind.LINKED, {"files": files}, actor=actor)


def events_of(connection: sa.Connection, uid: str) -> list[Event]:
    """The trail of a request, oldest first; it may outlive the request."""
    # As text, because the nesting may be too deep for Python's JSON parser.
    columns = (_events.created_at, _events.kind, _events.actor, sa.cast(_events.detail, sa.Text))
    found = connection.execute(sa.select(*columns).where(_events.request_uid == uid).order_by(_events.id))
    return [Event(*row) for row in found]


def operators_message(connection: sa.Connection, uid: str) -> str | None:
    """The message for operators of the last failure; None if the requester's message says it all."""
    newest = (
        sa.select(sa.cast(_events.detail, sa.Text))
        .where(_events.request_uid == uid, _events.kind == EventKind.FAILED)
        .order_by(_events.id.desc())
        .limit(1)
    )
    message = json.loads(connection.execute(newest).scalar() or "{}").get("message")
    return message if isinstance(message, str) else None


def forget(connection: sa.Connection, keep: timedelta) -> int:
    """Delete the trails whose last event is older than ``keep``. Returns the number of events."""
    oldest = instant_after(-keep.total_seconds())
    newer = export_events.alias("newer")
    goes_on = sa.exists().where(newer.c.request_uid == _events.request_uid, newer.c.created_at >= oldest)
    return connection.execute(export_events.delete().where(_events.created_at < oldest, ~goes_on)).rowcount
