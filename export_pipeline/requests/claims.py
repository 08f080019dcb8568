"""Claims: which waiting request gets a run, and which row lost its run.

What belongs here: the way from the queue to a run and back. What does not: what a run does to its row (``states``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from export_pipeline.requests.database import utc_now
from export_pipeline.requests.enums import UNFINISHED, EventKind, NotificationKind, NotificationStatus, RequestStatus
from export_pipeline.requests.events import COMMAND, record, record_asked
from export_pipeline.requests.tables import export_events, export_notifications, export_requests

_rows = export_requests.c
_WAITING = sa.and_(
    _rows.status == RequestStatus.QUEUED, _rows.claimed_at.is_(None), _rows.cancel_requested_at.is_(None)
)
_NOT_BEGUN = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.claimed_at.is_not(None))


@dataclass(frozen=True)
class Claim:
    """A request that was claimed for one run."""

    id: int
    uid: str
    attempt: int
    organization_id: str
    dataset: str
    format: str

    @property
    def run_key(self) -> str:
        """Dagster's run key. It is remembered for ever, so every attempt has its own."""
        return f"{self.uid}:{self.attempt}"


def is_any_waiting(connection: sa.Connection) -> bool:
    """Whether a request waits to be claimed; takes no lock."""
    return bool(connection.execute(sa.select(sa.exists().where(_WAITING))).scalar_one())


def is_any_claimable(connection: sa.Connection, *, per_organization: int, in_total: int) -> bool:
    """Whether ``claim`` would find a request within its bounds; takes no lock."""
    if _room(connection, in_total) <= 0:
        return False
    ahead = _claimed_and_not_begun()
    full = sa.select(ahead.c.organization_id).where(ahead.c.number >= per_organization)
    return bool(
        connection.execute(sa.select(sa.exists().where(_WAITING, _rows.organization_id.not_in(full)))).scalar_one()
    )


def claim(
    connection: sa.Connection, *, limit: int, per_organization: int | None = None, in_total: int | None = None
) -> list[Claim]:
    """Claim waiting requests, in fair turns across organizations, and charge each one attempt.

    The table's state is the cursor: a row that commits late is found whatever its id.

    Args:
        connection: an open transaction.
        limit: at most so many at once.
        per_organization: an organization has at most so many that are claimed and have not begun. The others wait
            here, where waiting costs nothing and ``priority`` counts; None = no bound.
        in_total: the same of all organizations together. Who has fewest claimed goes first.
    """
    if in_total is not None:
        limit = min(limit, _room(connection, in_total))
        if limit <= 0:
            return []
    ahead = _claimed_and_not_begun()
    turn = sa.func.row_number().over(partition_by=_rows.organization_id, order_by=(_rows.priority.desc(), _rows.id))
    candidates = sa.select(_rows.id, _rows.organization_id, turn.label("turn")).where(_WAITING).subquery()
    place = candidates.c.turn + sa.func.coalesce(ahead.c.number, 0)
    chosen = (
        sa.select(candidates.c.id)
        .outerjoin_from(candidates, ahead, ahead.c.organization_id == candidates.c.organization_id)
        .where(sa.true() if per_organization is None else place <= per_organization)
        .order_by(place, candidates.c.id)
        .limit(limit)
    )
    ids = connection.execute(chosen).scalars()
    now = utc_now()
    claimed = connection.execute(
        export_requests.update()
        .where(_rows.id.in_(list(ids)), _WAITING)
        .values(claimed_at=now, attempt=_rows.attempt + 1, run_id=None, updated_at=now)
        .returning(_rows.id, _rows.uid, _rows.attempt, _rows.organization_id, _rows.dataset, _rows.format)
    )
    claims = sorted((Claim(*row) for row in claimed), key=lambda claim: claim.id)
    first = [one.id for one in claims if one.attempt == 1]
    if first:
        record_asked(connection, first)
    return claims


def _room(connection: sa.Connection, in_total: int) -> int:
    """How many more may be claimed."""
    return in_total - connection.execute(sa.select(sa.func.count()).where(_NOT_BEGUN)).scalar_one()


def _claimed_and_not_begun() -> sa.Subquery:
    """How many of each organization."""
    counted = sa.select(_rows.organization_id, sa.func.count().label("number")).where(_NOT_BEGUN)
    return counted.group_by(_rows.organization_id).subquery()


def release(connection: sa.Connection, request_id: int, *, attempt: int, run_id: str | None, charged: bool) -> bool:
    """Give a request back to the queue, if it is still ``run_id``'s; ``charged`` = its attempt was really used."""
    now = utc_now()
    released = connection.execute(
        export_requests.update()
        .where(
            _rows.id == request_id,
            _rows.attempt == attempt,
            _rows.run_id.is_not_distinct_from(run_id),
            _rows.status.in_(UNFINISHED),
        )
        .values(
            status=RequestStatus.QUEUED,
            stage=None,
            run_id=None,
            claimed_at=None,
            rows_done=0,
            attempt=attempt if charged else attempt - 1,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if released is not None:
        record(
            connection,
            released.uid,
            released.organization_id,
            EventKind.REQUEUED,
            {"attempt": attempt, "charged": charged},
        )
    return released is not None


@dataclass(frozen=True)
class Orphan:
    """A row from which nothing was heard for a while."""

    id: int
    uid: str
    attempt: int
    running: bool
    """It had begun; else its run was asked for and has not begun."""
    run_id: str | None
    timed_out: bool
    """So long that a run which still claims to work on it is taken for dead."""
    organization_id: str = ""
    dataset: str = ""
    format: str = ""
    owes_since: float = 0.0
    """Unix seconds: when it ended, or when its mails were last put back; runs that ended earlier sent other mails."""


def quiet(
    connection: sa.Connection, *, lease_seconds: float, quiet_seconds: float, heartbeat_timeout_seconds: float
) -> list[Orphan]:
    """Claimed rows whose lease ended before they began, and running rows without a recent heartbeat."""
    now = utc_now()
    never_began = sa.and_(
        _rows.status == RequestStatus.QUEUED, _rows.claimed_at < now - timedelta(seconds=lease_seconds)
    )
    silent = sa.and_(_rows.status == RequestStatus.RUNNING, _rows.heartbeat_at < now - timedelta(seconds=quiet_seconds))
    return _orphans(connection, sa.or_(never_began, silent), now - timedelta(seconds=heartbeat_timeout_seconds))


def _orphans(connection: sa.Connection, condition: sa.ColumnElement[bool], oldest_heartbeat: datetime) -> list[Orphan]:
    found = connection.execute(
        sa.select(
            _rows.id,
            _rows.uid,
            _rows.attempt,
            _rows.status,
            _rows.run_id,
            _rows.organization_id,
            _rows.dataset,
            _rows.format,
            # A request that was given up before it began never had a heartbeat.
            sa.func.coalesce(_rows.heartbeat_at, _rows.completed_at).label("last_heard"),
            _rows.completed_at,
            _put_back_at().label("put_back_at"),
        )
        .where(condition)
        .order_by(_rows.id)
    )
    return [
        Orphan(
            id=row.id,
            uid=row.uid,
            attempt=row.attempt,
            running=row.status != RequestStatus.QUEUED,
            run_id=row.run_id,
            timed_out=row.status != RequestStatus.QUEUED and row.last_heard < oldest_heartbeat,
            organization_id=row.organization_id,
            dataset=row.dataset,
            format=row.format,
            owes_since=max(
                (at.timestamp() for at in (row.completed_at, row.put_back_at) if at is not None), default=0.0
            ),
        )
        for row in found
    ]


def _put_back_at() -> sa.ScalarSelect[datetime]:
    """When an operator last had the request's mails sent again (``export-pipeline resend``)."""
    events = export_events.c
    return (
        sa.select(sa.func.max(events.created_at))
        .where(events.request_uid == _rows.uid, events.kind == EventKind.NOTIFIED, events.actor == COMMAND)
        .scalar_subquery()
    )


def renew_lease(connection: sa.Connection, request_id: int) -> None:
    """The claimed request's run still waits its turn in Dagster: leave it its claim."""
    connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.QUEUED, _rows.claimed_at.is_not(None))
        .values(claimed_at=utc_now())
    )


def unnotified(
    connection: sa.Connection, *, quiet_seconds: float, heartbeat_timeout_seconds: float, within: timedelta
) -> list[Orphan]:
    """Requests with a mail still to send, that ended or were put back ``within`` that time and are silent for a while.

    A completed one owes its recipients theirs, a failed one its requester.
    """
    now = utc_now()
    owes_mail = sa.or_(
        sa.and_(_rows.status == RequestStatus.COMPLETED, _waiting(NotificationKind.READY)),
        sa.and_(_rows.status == RequestStatus.FAILED, _waiting(NotificationKind.FAILED)),
    )
    fell_silent = sa.and_(
        owes_mail,
        sa.or_(_rows.completed_at > now - within, _put_back_at() > now - within),
        sa.func.coalesce(_rows.heartbeat_at, _rows.completed_at) < now - timedelta(seconds=quiet_seconds),
    )
    return _orphans(connection, fell_silent, now - timedelta(seconds=heartbeat_timeout_seconds))


def _waiting(kind: NotificationKind) -> sa.ColumnElement[bool]:
    return sa.exists().where(
        export_notifications.c.request_id == _rows.id,
        export_notifications.c.kind == kind,
        export_notifications.c.status.in_([NotificationStatus.PENDING, NotificationStatus.SENDING]),
    )
