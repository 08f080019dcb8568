"""The queue of requests: claims, leases, postponements, and the requests whose run stopped sending heartbeats.

The table is the queue. A request is claimed for one run, the run takes the row (``ownership``), and a request that lost
its run goes back to the queue.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, EventKind, NotificationKind, RequestStatus, Stage
from export_pipeline.database.tables import export_events, export_notifications, export_requests
from export_pipeline.database.types import current_instant, generated_uuid, instant_after
from export_pipeline.failures import FailureCode
from export_pipeline.requests.audit import COMMAND, record, record_input
from export_pipeline.requests.models import change_request

FIRST_WAIT_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 3600.0
MOST_POSTPONEMENTS = 31
"""The waits of so many postponements add up to about a day."""
PROBE_SECONDS = 60
"""A run that probes whether the source answers again blocks other claims for this long; then another one may try."""
CLOCK_SLACK_SECONDS = 60
"""An instant further in the future than this was written while a clock was wrong; nothing waits for it."""
LONGEST_MAIL_SECONDS = 900.0
"""A run that mails a failure writes no heartbeat meanwhile, and SMTP lets a server take ten minutes for its answer."""
CANDIDATES = 20
"""Candidates that are read for each row to claim, because other transactions may have locked some."""
LOOK_BACK = 200
"""How many of an organization's last completed and last expired requests are compared; its history grows forever."""
OVER_ONCE_READ = (FailureCode.SOURCE_UNAVAILABLE, FailureCode.STAGING_UNAVAILABLE)
"""The failures that are over once an export has read its rows."""
_rows = export_requests.c
_ENDED_BEFORE = _rows.completed_at.is_not(None)
"""Of a queued row: it ended and was queued again, by ``export-pipeline retry`` or by SQL."""
_WAITING = sa.and_(
    _rows.status == RequestStatus.QUEUED,
    sa.or_(_rows.claimed_at.is_(None), _ENDED_BEFORE),
    _rows.cancel_requested_at.is_(None),
)
_NOT_BEGUN = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.claimed_at.is_not(None), ~_ENDED_BEFORE)
_DUE = sa.and_(
    _WAITING,
    sa.or_(
        _rows.not_before.is_(None),
        _rows.not_before <= instant_after(0),
        _rows.not_before > instant_after(2 * LONGEST_WAIT_SECONDS),
    ),
)
_POSTPONED = sa.and_(_rows.postponed_at.is_not(None), _rows.status.in_(UNFINISHED))
_PROBING = sa.and_(
    _rows.status.in_(UNFINISHED),
    _rows.claimed_at > instant_after(-PROBE_SECONDS),
    sa.or_(_rows.stage.is_(None), _rows.stage.in_([Stage.PLAN, Stage.FILTER_ENTITIES])),
)
_LAST_HEARD = sa.func.coalesce(_rows.heartbeat_at, _rows.completed_at, _rows.created_at)


@dataclass(frozen=True)
class Claim:
    """A request that was claimed for one run."""

    id: int
    uid: str
    attempt: int
    organization_id: str
    dataset: str
    format: str
    claim_id: str = ""

    @property
    def run_key(self) -> str:
        """Dagster's run key. It is remembered forever, so every claim has its own, whatever SQL did to the row."""
        return f"{self.uid}:{self.attempt}:{self.claim_id}"


def is_any_waiting(connection: sa.Connection) -> bool:
    """Whether a request waits to be claimed; takes no lock."""
    return _exists(connection, _WAITING)


def is_any_postponed(connection: sa.Connection) -> bool:
    """Whether the source or the store failed to answer, and has not answered a later export; takes no lock."""
    return _exists(connection, _POSTPONED)


def is_any_claimable(connection: sa.Connection, *, per_organization: int, in_total: int) -> bool:
    """Whether ``claim`` would find a request within its bounds; takes no lock."""
    if _allowed(connection, 1, in_total) <= 0:
        return False
    claimed = _claimed_by_organization()
    full = sa.select(claimed.c.organization_id).where(claimed.c.number >= per_organization)
    return _exists(connection, _DUE, _rows.organization_id.not_in(full))


def _exists(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> bool:
    return bool(connection.execute(sa.select(sa.exists().where(*conditions))).scalar_one())


def claim(
    connection: sa.Connection, *, limit: int, per_organization: int | None = None, in_total: int | None = None
) -> list[Claim]:
    """Claim waiting requests and charge each one attempt, interleaving the organizations.

    The state of the table is the cursor, so a row that commits late is found whatever its id. Locked rows are skipped.
    While the source or the store does not answer, one request at a time probes it.

    At most ``per_organization`` requests of an organization, and ``in_total`` of all, are claimed and have not begun;
    None = no bound. The others wait here, where waiting costs nothing and ``priority`` counts. The organization with
    the fewest claims goes first.
    """
    limit = _allowed(connection, limit, in_total)
    if limit <= 0:
        return []
    probe = is_any_postponed(connection)
    ids = connection.execute(_chosen(limit, per_organization, probe=probe)).scalars().all()
    ended = _ENDED_BEFORE
    # A retry counts its attempts from zero again. An application may write any number into uncounted_attempts.
    uncounted = sa.case((ended, _rows.attempt), (_rows.uncounted_attempts > _rows.attempt, _rows.attempt))
    claimed = connection.execute(
        export_requests.update()
        .where(_rows.id.in_(ids), _WAITING)
        .values(
            claimed_at=current_instant(),
            claim_id=generated_uuid(),
            attempt=_rows.attempt + 1,
            uncounted_attempts=sa.func.coalesce(uncounted, _rows.uncounted_attempts),
            run_id=None,
            stage=None,
            not_before=None,
            postponements=sa.case((ended, 0), else_=_rows.postponements),
            postponed_at=sa.case((ended, sa.null()), else_=_rows.postponed_at),
            error_code=sa.case((ended, sa.null()), else_=_rows.error_code),
            message=sa.case((ended, sa.null()), else_=_rows.message),
            completed_at=None,
            updated_at=current_instant(),
        )
        .returning(*(_rows[name] for name in Claim.__dataclass_fields__))
    )
    claims = sorted((Claim(*row) for row in claimed), key=lambda claim: claim.id)
    first = [one.id for one in claims if one.attempt == 1]
    if first:
        record_input(connection, first)
    return claims


def _chosen(limit: int, per_organization: int | None, *, probe: bool) -> sa.Select[tuple[int]]:
    """The ids of the rows to claim, locked. A probe prefers the least postponed: the others may be why it fails."""
    claimed = _claimed_by_organization()
    least = (_rows.postponements,) if probe else ()
    turn = sa.func.row_number().over(
        partition_by=_rows.organization_id, order_by=(*least, _rows.priority.desc(), _rows.id)
    )
    candidates = (
        sa.select(_rows.id, _rows.organization_id, _rows.postponements, turn.label("turn")).where(_DUE).subquery()
    )
    place = (candidates.c.turn + sa.func.coalesce(claimed.c.number, 0)).label("place")
    first = (
        sa.select(candidates.c.id, place, candidates.c.postponements)
        .outerjoin_from(candidates, claimed, claimed.c.organization_id == candidates.c.organization_id)
        .where(sa.true() if per_organization is None else place <= per_organization)
        .order_by(*((candidates.c.postponements,) if probe else ()), place, candidates.c.id)
        .limit(limit * CANDIDATES)
        .subquery()
    )
    return (
        sa.select(_rows.id)
        .join(first, first.c.id == _rows.id)
        .where(_WAITING)
        .order_by(*((first.c.postponements,) if probe else ()), first.c.place, _rows.id)
        .limit(limit)
        .with_for_update(of=export_requests, skip_locked=True)
    )


def _allowed(connection: sa.Connection, limit: int, in_total: int | None) -> int:
    """How many requests may be claimed now."""
    if in_total is not None:
        claimed = connection.execute(sa.select(sa.func.count()).where(_NOT_BEGUN)).scalar_one()
        limit = min(limit, in_total - claimed)
    if limit > 0 and is_any_postponed(connection):
        return 0 if _exists(connection, _PROBING) else 1
    return limit


def _claimed_by_organization() -> sa.Subquery:
    """How many requests of each organization are claimed and have not begun."""
    counted = sa.select(_rows.organization_id, sa.func.count().label("number")).where(_NOT_BEGUN)
    return counted.group_by(_rows.organization_id).subquery()


def renew_lease(connection: sa.Connection, request_id: int) -> None:
    """Keep the claim of a request whose run still waits in Dagster."""
    connection.execute(
        export_requests.update().where(_rows.id == request_id, _NOT_BEGUN).values(claimed_at=current_instant())
    )


def release(connection: sa.Connection, request_id: int, *, attempt: int, run_id: str | None, charged: bool) -> bool:
    """Return a request to the queue if ``run_id`` still owns it; ``charged`` = its attempt counts as used."""
    unchanged = sa.and_(
        _rows.id == request_id,
        _rows.attempt == attempt,
        _rows.run_id.is_not_distinct_from(run_id),
        _rows.status.in_(UNFINISHED),
    )
    detail = {"attempt": attempt, "charged": charged}
    return requeue(connection, unchanged, detail, attempt=attempt if charged else max(attempt - 1, 0))


def requeue(
    connection: sa.Connection, condition: sa.ColumnElement[bool], detail: Mapping[str, Any], **values: Any
) -> bool:
    """Return the request that meets the condition to the queue, without its run, and record why."""
    reset = {"status": RequestStatus.QUEUED, "stage": None, "run_id": None, "claimed_at": None, "rows_done": 0}
    requeued = change_request(connection, condition, **reset, **values)
    if requeued is not None:
        record(connection, requeued.uid, requeued.organization_id, EventKind.REQUEUED, detail)
    return requeued is not None


def wait_seconds(postponements: int) -> float:
    """How long a request waits after so many postponements, with jitter so that no two wake at once."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(postponements, 16)) * random.uniform(1.0, 1.2)  # noqa: S311


def wake_postponed(connection: sa.Connection, codes: Collection[FailureCode] | None = None) -> None:
    """The source or the store answers again: make the postponed requests claimable now, all or by failure code."""
    waiting = sa.select(_rows.id).where(_rows.postponed_at.is_not(None), _rows.status == RequestStatus.QUEUED)
    if codes is not None:
        waiting = waiting.where(_rows.error_code.in_(codes))
    connection.execute(
        export_requests.update()
        .where(_rows.id.in_(waiting.with_for_update(skip_locked=True)))
        .values(not_before=None, postponed_at=None)
    )


@dataclass(frozen=True)
class StaleRequest:
    """A request without a recent sign of life."""

    id: int
    uid: str
    attempt: int
    running: bool
    """A run took it; otherwise its run was requested and has not begun."""
    run_id: str | None
    timed_out: bool
    """It has been silent for so long that even a run that Dagster shows as working counts as dead."""
    organization_id: str = ""
    dataset: str = ""
    format: str = ""
    claim_id: str | None = None
    uncounted_attempts: int = 0
    owes_since: float = 0.0
    """Unix seconds: when it ended, or when its mails were last put back; runs that ended earlier sent other mails."""

    @property
    def counted_attempts(self) -> int:
        """The attempts that ``EXPORT_MAX_ATTEMPTS`` bounds."""
        return self.attempt - self.uncounted_attempts


def not_begun(connection: sa.Connection) -> list[StaleRequest]:
    """Claimed requests that no run has taken yet."""
    return _stale_requests(connection, sa.select(export_requests).where(_NOT_BEGUN), sa.false())


def silent_requests(
    connection: sa.Connection, *, lease_seconds: float, quiet_seconds: float, heartbeat_timeout_seconds: float
) -> list[StaleRequest]:
    """Claimed requests whose lease ended before they began, and running requests without a recent heartbeat.

    A row that an application inserted as ``running`` never had a heartbeat; it is found as well.
    """
    never_began = sa.and_(_NOT_BEGUN, _silent_for(_rows.claimed_at, lease_seconds))
    silent = sa.and_(_rows.status == RequestStatus.RUNNING, _silent_for(_LAST_HEARD, quiet_seconds))
    # A claim is renewed while its run waits in Dagster, so the run of a claim that is not renewed has begun.
    timed_out = sa.or_(
        sa.and_(never_began, _silent_for(_rows.claimed_at, lease_seconds + heartbeat_timeout_seconds)),
        sa.and_(silent, _silent_for(_LAST_HEARD, heartbeat_timeout_seconds)),
    )
    return _stale_requests(connection, sa.select(export_requests).where(sa.or_(never_began, silent)), timed_out)


def unnotified(
    connection: sa.Connection, *, quiet_seconds: float, heartbeat_timeout_seconds: float, within: timedelta
) -> list[StaleRequest]:
    """Silent requests that have mails to send, and that ended or whose mails were put back ``within`` that time.

    A completed request owes mails to its recipients, a failed one to its requester. The search starts from the
    unfinished mails, because the requests that ended are many and stay forever.
    """
    mails, since = export_notifications.c, instant_after(-within.total_seconds())
    unfinished = mails.status.in_([sa.literal_column("'pending'"), sa.literal_column("'sending'")])  # as the index says
    owes_mail = sa.or_(
        sa.and_(_rows.status == RequestStatus.COMPLETED, mails.kind == NotificationKind.READY),
        sa.and_(_rows.status == RequestStatus.FAILED, mails.kind == NotificationKind.FAILED),
    )
    rows = (
        sa.select(export_requests)
        .join(export_notifications, mails.request_id == _rows.id)
        .where(
            unfinished,
            owes_mail,
            sa.or_(_rows.completed_at > since, _put_back_at() > since),
            _silent_for(_LAST_HEARD, quiet_seconds),
        )
        .distinct()
    )
    return _stale_requests(connection, rows, _silent_for(_LAST_HEARD, heartbeat_timeout_seconds))


def _silent_for(heard: sa.ColumnElement[datetime], seconds: float) -> sa.ColumnElement[bool]:
    """By the clock of the database; an instant in the future is not a sign of life."""
    return sa.or_(heard < instant_after(-seconds), heard > instant_after(CLOCK_SLACK_SECONDS))


def _put_back_at() -> sa.ScalarSelect[datetime]:
    """When an operator last put the request's mails back (``export-pipeline resend``)."""
    events = export_events.c
    return (
        sa.select(sa.func.max(events.created_at))
        .where(events.request_uid == _rows.uid, events.kind == EventKind.NOTIFIED, events.actor == COMMAND)
        .scalar_subquery()
    )


_COPIED = ("id", "uid", "attempt", "uncounted_attempts", "run_id", "claim_id", "organization_id", "dataset", "format")


def _stale_requests(
    connection: sa.Connection, rows: sa.Select[Any], timed_out: sa.ColumnElement[bool]
) -> list[StaleRequest]:
    found = connection.execute(
        rows.with_only_columns(
            *(_rows[name] for name in _COPIED),
            _rows.status,
            _rows.completed_at,
            _put_back_at().label("put_back_at"),
            timed_out.label("timed_out"),
        ).order_by(_rows.id)
    ).mappings()
    return [
        StaleRequest(
            **{name: row[name] for name in _COPIED},
            running=row["status"] != RequestStatus.QUEUED,
            timed_out=bool(row["timed_out"]),
            owes_since=max((at.timestamp() for at in (row["completed_at"], row["put_back_at"]) if at), default=0.0),
        )
        for row in found
    ]


def is_locked(connection: sa.Connection, request_id: int) -> bool:
    """Whether another transaction holds the row: its run cannot write a heartbeat then, and may be alive."""
    found = sa.select(_rows.id).where(_rows.id == request_id).with_for_update(skip_locked=True)
    return connection.execute(found).first() is None


@dataclass(frozen=True)
class Owner:
    """Which run owns a request, for code that looks at a run."""

    status: RequestStatus
    run_id: str | None
    claim_id: str | None
    silent: bool
    """It has been silent for the whole heartbeat timeout."""


def owners(connection: sa.Connection, uids: Collection[str], *, heartbeat_timeout_seconds: float) -> dict[str, Owner]:
    """The owners of requests by ``uid``; unknown requests are left out."""
    mailing = max(heartbeat_timeout_seconds, LONGEST_MAIL_SECONDS)
    silent = sa.or_(
        sa.and_(_rows.status == RequestStatus.FAILED, _silent_for(_LAST_HEARD, mailing)),
        sa.and_(_rows.status != RequestStatus.FAILED, _silent_for(_LAST_HEARD, heartbeat_timeout_seconds)),
    ).label("silent")
    found = connection.execute(
        sa.select(_rows.uid, _rows.status, _rows.run_id, _rows.claim_id, silent).where(_rows.uid.in_(uids))
    )
    return {row.uid: Owner(RequestStatus(row.status), row.run_id, row.claim_id, bool(row.silent)) for row in found}


def expected_rows(connection: sa.Connection, ids: Sequence[int], *, seconds: float) -> Iterator[tuple[int, int]]:
    """Yield (id, rows) of the requests whose size is known, before anything is read from the source.

    The size is that of the request's previous attempt, or of the last request with the same selection. Takes no lock.
    Runs one query per request, because rows may hold megabytes of filters, and stops after ``seconds``.
    """
    ends = time.monotonic() + seconds
    for request_id in ids:
        if time.monotonic() >= ends:
            return
        rows = connection.execute(_EXPECTED_ROWS, {"request_id": request_id}).scalar()
        if rows is not None:
            yield request_id, rows


def _expected_rows() -> sa.Select[Any]:
    last = sa.union_all(*(_recent(status) for status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED))).subquery()
    same = [
        last.c.dataset == _rows.dataset,
        last.c.filters == _rows.filters,
        last.c.list_ids.is_not_distinct_from(_rows.list_ids),
        last.c.segment_ids.is_not_distinct_from(_rows.segment_ids),
    ]
    before = sa.select(last.c.row_count).where(*same).order_by(last.c.id.desc()).limit(1).scalar_subquery()
    return sa.select(sa.func.coalesce(_rows.rows_total, before)).where(_rows.id == sa.bindparam("request_id"))


def _recent(status: RequestStatus) -> sa.Select[tuple[int, str]]:
    """The last requests of one status, by the index on status, organization and id."""
    ended = export_requests.alias()
    columns = [ended.c[name] for name in ("id", "dataset", "filters", "list_ids", "segment_ids", "row_count")]
    of_organization = sa.and_(ended.c.status == status, ended.c.organization_id == _rows.organization_id)
    recent = sa.select(*columns).where(of_organization).correlate(export_requests)
    return sa.select(recent.order_by(ended.c.id.desc()).limit(LOOK_BACK).subquery())


_EXPECTED_ROWS = _expected_rows()
