"""The audit trail: one row a transition, in the transaction that makes it.

It says who asked, for what (filters included), who was handed links and who opened them, and when the files were
deleted; it outlives the request's row and its files. What it repeats of a request is personal data: see
``EXPORT_AUDIT_RETENTION_DAYS``.
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
from export_pipeline.database.types import current_instant, instant_after

PIPELINE = "pipeline"
"""The actor of an event that no person caused."""
APPLICATION = "application"
"""Who asked, if the row does not say."""
COMMAND = "command"
"""The actor of what an operator did with ``export-pipeline``."""
LONGEST_KEPT = 1_000_000
"""Characters of one asked column that the trail repeats, as the gateway takes them; a longer one is left out."""
_events = export_events.c
_rows = export_requests.c
_ASKED_TEXTS = ("dataset", "format", "layout", "start_date", "end_date", "window_from", "window_before")
_ASKED_JSON = ("columns", "filters", "list_ids", "segment_ids", "include", "recipient_emails")


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
    """Add one event; it outlives the request's row."""
    connection.execute(
        export_events.insert().values(
            request_uid=uid, organization_id=organization_id, kind=kind, actor=actor, detail=detail
        )
    )


def record_asked(connection: sa.Connection, request_ids: Sequence[int]) -> None:
    """Add who asked each of these requests, and for what; once a request, by whatever touches it first.

    The database copies it: a row that Python cannot read must not keep the others from being claimed.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    build = sa.func.json_object if on_sqlite else sa.func.jsonb_build_object
    parts: list[sa.ColumnElement[Any]] = []
    for name in (*_ASKED_TEXTS, *_ASKED_JSON, "recurring_export_id"):
        parts += [sa.literal_column(f"'{name}'"), _asked(name, on_sqlite=on_sqlite)]
    known = sa.exists().where(_events.request_uid == _rows.uid, _events.kind == EventKind.ASKED)
    asked = sa.select(
        _rows.uid,
        _rows.organization_id,
        sa.literal(EventKind.ASKED.value),
        sa.func.coalesce(_rows.requested_by, APPLICATION),
        build(*parts),
        sa.func.coalesce(_asked_at(on_sqlite=on_sqlite), current_instant()),
    ).where(_rows.id.in_(request_ids), ~known)
    names = ["request_uid", "organization_id", "kind", "actor", "detail", "created_at"]
    connection.execute(export_events.insert().from_select(names, asked))


def _asked_at(*, on_sqlite: bool) -> sa.ColumnElement[Any]:
    """When the row was inserted; on SQLite NULL if what stands there is no instant."""
    if not on_sqlite:
        return _rows.created_at
    return sa.func.strftime("%Y-%m-%d %H:%M:%f", _rows.created_at).op("||")("000")


def _asked(name: str, *, on_sqlite: bool) -> sa.ColumnElement[Any]:
    """A column's value for the trail; None if it is too long, or no JSON where it should be."""
    column = _rows[name]
    if name not in _ASKED_JSON:
        return sa.func.substr(sa.cast(column, sa.Text), 1, LONGEST_KEPT)
    fits = sa.func.length(sa.cast(column, sa.Text)) <= LONGEST_KEPT
    if not on_sqlite:
        return sa.case((fits, column))
    # SQLite keeps whatever it is given: json() of a blob would fail the claim of every row.
    sound = sa.and_(fits, sa.func.typeof(column) == "text", sa.func.json_valid(column) == 1)
    return sa.case((sound, sa.func.json(column)))


def record_linked(
    connection: sa.Connection, uid: str, organization_id: str, files: int, *, actor: str, within: timedelta
) -> None:
    """Add that somebody was handed URLs of the files, unless the trail says so of them ``within`` that time already.

    A client that polls is handed new ones at every read.
    """
    same = (_events.request_uid == uid, _events.kind == EventKind.LINKED, _events.actor == actor)
    recent = _events.created_at > instant_after(-within.total_seconds())
    if connection.execute(sa.select(_events.id).where(*same, recent)).first() is None:
        record(connection, uid, organization_id, EventKind.LINKED, {"files": files}, actor=actor)


def events_of(connection: sa.Connection, uid: str) -> list[Event]:
    """A request's trail, oldest first; it may be there when the request is not."""
    # As text: detail may nest deeper than Python's JSON reads.
    columns = (_events.created_at, _events.kind, _events.actor, sa.cast(_events.detail, sa.Text))
    found = connection.execute(sa.select(*columns).where(_events.request_uid == uid).order_by(_events.id))
    return [Event(*row) for row in found]


def operators_message(connection: sa.Connection, uid: str) -> str | None:
    """Why a request failed last, in the words for operators; None if the requester's own words say it."""
    newest = (
        sa.select(sa.cast(_events.detail, sa.Text))
        .where(_events.request_uid == uid, _events.kind == EventKind.FAILED)
        .order_by(_events.id.desc())
        .limit(1)
    )
    message = json.loads(connection.execute(newest).scalar() or "{}").get("message")
    return message if isinstance(message, str) else None


def forget(connection: sa.Connection, keep: timedelta) -> int:
    """Delete the trails whose last event is older than ``keep``; how many events that were."""
    oldest = instant_after(-keep.total_seconds())
    newer = export_events.alias("newer")
    goes_on = sa.exists().where(newer.c.request_uid == _events.request_uid, newer.c.created_at >= oldest)
    return connection.execute(export_events.delete().where(_events.created_at < oldest, ~goes_on)).rowcount
