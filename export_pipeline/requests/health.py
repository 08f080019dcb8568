"""Queue statistics for operators, and health checks for monitors.

Each check is one number of the request database and the bound above which an operator should look. All times are those
of the database. No Dagster instance is needed: the sensor ``export_installation`` writes its ticks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from export_pipeline.database.engine import insert_or
from export_pipeline.database.enums import NotificationStatus, RequestStatus, WebhookStatus
from export_pipeline.database.tables import export_notifications, export_requests, export_ticks, export_webhooks
from export_pipeline.database.types import current_instant


class Line(BaseModel, frozen=True):
    """The unfinished requests of one organization, or of all."""

    organization_id: str | None
    """None: all organizations."""
    waiting: int
    """``queued``: waiting for a first run, or for a new attempt after a process died."""
    running: int
    oldest_wait_seconds: float | None
    """Seconds since the oldest waiting request was inserted; None if none waits."""


def _age(instant: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
    """The seconds since an instant; whole seconds on SQLite."""
    now, then = (sa.cast(sa.extract("epoch", at), sa.Double) for at in (current_instant(), instant))
    return now - then


def queue(connection: sa.Connection, organization_id: str | None = None) -> list[Line]:
    """One line per organization with waiting or running requests, the longest wait first."""
    rows = export_requests.c
    waits, runs = rows.status == RequestStatus.QUEUED, rows.status == RequestStatus.RUNNING
    counted = connection.execute(
        sa.select(
            rows.organization_id,
            sa.func.count().filter(waits).label("waiting"),
            sa.func.count().filter(runs).label("running"),
            sa.func.max(_age(rows.created_at)).filter(waits).label("oldest"),
        )
        .where(sa.or_(waits, runs), sa.true() if organization_id is None else rows.organization_id == organization_id)
        .group_by(rows.organization_id)
    )
    lines = [
        Line(
            organization_id=str(row.organization_id),
            waiting=row.waiting,
            running=row.running,
            oldest_wait_seconds=None if row.oldest is None else max(row.oldest, 0.0),
        )
        for row in counted
    ]
    return sorted(lines, key=lambda line: (-_wait(line), line.organization_id or ""))


def _wait(line: Line) -> float:
    return -1.0 if line.oldest_wait_seconds is None else line.oldest_wait_seconds


def total(lines: Sequence[Line]) -> Line:
    """The sum of all lines."""
    return Line(
        organization_id=None,
        waiting=sum(line.waiting for line in lines),
        running=sum(line.running for line in lines),
        oldest_wait_seconds=max(lines, key=_wait).oldest_wait_seconds if lines else None,
    )


LONGEST_TICK_SECONDS = 180.0
"""The daemon loads a new code location every minute, which is slow on a busy machine."""
LONGEST_WAIT_SECONDS = 3600.0
LONGEST_OWED_SECONDS = 3600.0
TRIED_FOR_SECONDS = 2 * 86_400.0
"""Older mails and webhooks are not tried any more, so nothing waits for them."""
MOST_POSTPONEMENTS = 5
"""So many postponements take about ten minutes without an answer of the source or the store."""
_rows = export_requests.c


class Check(BaseModel, frozen=True):
    """One number and its bound."""

    name: str
    value: float | None
    """None: there is nothing to measure."""
    bound: float
    ok: bool
    meaning: str
    """What the number means, and what to look at if it exceeds its bound."""


def note_tick(connection: sa.Connection, sensor: str) -> None:
    """Record that the sensor ticks now."""
    insert = insert_or(connection, export_ticks).values(sensor=sensor, ticked_at=current_instant())
    connection.execute(insert.on_conflict_do_update(index_elements=["sensor"], set_={"ticked_at": current_instant()}))


def checks(
    connection: sa.Connection, *, heartbeat_timeout_seconds: float, longest_wait_seconds: float = LONGEST_WAIT_SECONDS
) -> list[Check]:
    """All checks, in the order in which an operator should look."""
    silent_bound = 2 * heartbeat_timeout_seconds + 60
    queued = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.postponed_at.is_(None))
    running = _rows.status == RequestStatus.RUNNING
    return [
        _tick(connection),
        _check(
            "oldest_wait_seconds",
            _oldest(connection, _rows.created_at, queued),
            longest_wait_seconds,
            "the longest that a request has waited. Look at export-pipeline queue, the sensor export_requests and the "
            "run queue.",
        ),
        _check(
            "longest_silence_seconds",
            _oldest(connection, _rows.heartbeat_at, running),
            silent_bound,
            "the longest that a running export has written no heartbeat. Look at the sensor export_reconciler.",
        ),
        _check(
            "oldest_owed_mail_seconds",
            _oldest(connection, _rows.completed_at, _owes_mail()),
            LONGEST_OWED_SECONDS,
            "the longest that a mail has waited since its export ended. Look at the runs of job notify and at the mail "
            "provider.",
        ),
        _check(
            "oldest_due_webhook_seconds",
            _oldest(connection, export_webhooks.c.next_try_at, export_webhooks.c.status == WebhookStatus.PENDING),
            LONGEST_OWED_SECONDS,
            "the longest that a webhook has been due. Look at the sensor export_webhooks and the runs of job webhooks.",
        ),
        outage(connection),
    ]


def outage(connection: sa.Connection) -> Check:
    """Whether the source, the store or staging has not answered for a long time; names the failure codes."""
    postponed = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.postponed_at.is_not(None))
    most = connection.execute(sa.select(sa.func.max(_rows.postponements)).where(postponed)).scalar_one()
    codes = connection.execute(sa.select(_rows.error_code).where(postponed).distinct().order_by(_rows.error_code))
    names = ", ".join(str(code) for code in codes.scalars() if code)
    meaning = f"how often requests were postponed because something did not answer ({names or 'nothing now'})."
    return _check("most_postponements", most, MOST_POSTPONEMENTS, meaning)


def _tick(connection: sa.Connection) -> Check:
    seconds = _oldest(connection, export_ticks.c.ticked_at, sa.true())
    meaning = (
        "since the sensor export_installation ticked. Look at the daemon's process and log, and whether the sensor is "
        "on: nothing starts while no sensor ticks."
    )
    if seconds is None:
        meaning = f"no tick yet {meaning}"
    ok = seconds is not None and seconds <= LONGEST_TICK_SECONDS
    return Check(name="last_tick_seconds", value=seconds, bound=LONGEST_TICK_SECONDS, ok=ok, meaning=meaning)


def _check(name: str, value: float | None, bound: float, meaning: str) -> Check:
    return Check(name=name, value=value, bound=bound, ok=value is None or value <= bound, meaning=meaning)


def _oldest(
    connection: sa.Connection, instant: sa.ColumnElement[Any], condition: sa.ColumnElement[bool]
) -> float | None:
    """Seconds since the earliest instant of the rows that meet the condition, 0 if it is to come; None if none does."""
    oldest = sa.select(sa.func.max(_age(instant))).where(condition)
    seconds: float | None = connection.execute(oldest).scalar_one_or_none()
    return None if seconds is None else max(seconds, 0.0)


def _owes_mail() -> sa.ColumnElement[bool]:
    waiting = sa.exists().where(
        export_notifications.c.request_id == _rows.id,
        export_notifications.c.status.in_([NotificationStatus.PENDING, NotificationStatus.SENDING]),
    )
    ended = _rows.status.in_([RequestStatus.COMPLETED, RequestStatus.FAILED])
    return sa.and_(ended, _age(_rows.completed_at) < TRIED_FOR_SECONDS, waiting)
