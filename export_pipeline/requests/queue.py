"""Claims: which waiting request gets a run, and which row lost its run."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, EventKind, NotificationKind, RequestStatus, Stage
from export_pipeline.database.tables import export_events, export_notifications, export_requests
from export_pipeline.database.types import current_instant, generated_uuid, instant_after
from export_pipeline.failures import FailureCode
from export_pipeline.requests.audit import COMMAND, record, record_asked

# Requests whose source or store does not answer: how long they wait, and what ends the wait early.


FIRST_WAIT_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 3600.0
MOST_POSTPONEMENTS = 31
"""The waits of so many come to about a day."""
READ = (FailureCode.SOURCE_UNAVAILABLE, FailureCode.STAGING_UNAVAILABLE)
"""What certainly answers again once an export has read its rows."""
_rows = export_requests.c


def wait_seconds(postponements: int) -> float:
    """How long a request waits that was postponed so often before; no two at once."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(postponements, 16)) * random.uniform(1.0, 1.2)  # noqa: S311


def wake(connection: sa.Connection, codes: Collection[FailureCode] | None = None) -> None:
    """What did not answer does again: requests that wait for it, by failure code, may be claimed now."""
    waiting = sa.select(_rows.id).where(_rows.postponed_at.is_not(None), _rows.status == RequestStatus.QUEUED)
    if codes is not None:
        waiting = waiting.where(_rows.error_code.in_(codes))
    connection.execute(
        export_requests.update()
        .where(_rows.id.in_(waiting.with_for_update(skip_locked=True)))
        .values(not_before=None, postponed_at=None)
    )


CLOCK_SLACK_SECONDS = 60
"""An instant that lies further ahead than this was written while a clock was wrong: nothing waits for it."""
PROBE_SECONDS = 60
"""A run that is to show whether the source answers again is waited for so long, then another one may try."""
LONGEST_MAIL_SECONDS = 900.0
"""A run that mails a failure writes no heartbeat meanwhile, and SMTP lets a server take ten minutes for its answer."""
CANDIDATES = 20
"""For each row that is claimed so many are looked at: the others may be locked."""
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
        """Dagster's run key. It is remembered for ever, so every claim has its own, whatever SQL did to the row."""
        return f"{self.uid}:{self.attempt}:{self.claim_id}"


def is_any_waiting(connection: sa.Connection) -> bool:
    """Whether a request waits to be claimed; takes no lock."""
    return bool(connection.execute(sa.select(sa.exists().where(_WAITING))).scalar_one())


def is_any_postponed(connection: sa.Connection) -> bool:
    """Whether the source or the store did not answer an export, and none that came later; takes no lock."""
    return bool(connection.execute(sa.select(sa.exists().where(_POSTPONED))).scalar_one())


def is_any_claimable(connection: sa.Connection, *, per_organization: int, in_total: int) -> bool:
    """Whether ``claim`` would find a request within its bounds; takes no lock."""
    if _bounded(connection, 1, in_total) <= 0:
        return False
    ahead = _claimed_and_not_begun()
    full = sa.select(ahead.c.organization_id).where(ahead.c.number >= per_organization)
    return bool(connection.execute(sa.select(sa.exists().where(_DUE, _rows.organization_id.not_in(full)))).scalar_one())


def claim(
    connection: sa.Connection, *, limit: int, per_organization: int | None = None, in_total: int | None = None
) -> list[Claim]:
    """Claim waiting requests, in fair turns across organizations, and charge each one attempt.

    The table's state is the cursor: a row that commits late is found whatever its id. A row that somebody else has
    locked is passed over. While the source or the store does not answer, one request at a time tries it.

    Args:
        connection: an open transaction.
        limit: at most so many at once.
        per_organization: an organization has at most so many that are claimed and have not begun. The others wait
            here, where waiting costs nothing and ``priority`` counts; None = no bound.
        in_total: the same of all organizations together. Who has fewest claimed goes first.
    """
    limit = _bounded(connection, limit, in_total)
    if limit <= 0:
        return []
    probe = is_any_postponed(connection)
    ids = list(connection.execute(_chosen(limit, per_organization, probe=probe)).scalars())
    ended = _ENDED_BEFORE  # what EXPORT_MAX_ATTEMPTS counts begins anew
    counted = sa.case((ended, _rows.attempt), (_rows.uncounted_attempts > _rows.attempt, _rows.attempt))
    claimed = connection.execute(
        export_requests.update()
        .where(_rows.id.in_(ids), _WAITING)
        .values(
            claimed_at=current_instant(),
            claim_id=generated_uuid(),
            attempt=_rows.attempt + 1,
            uncounted_attempts=sa.func.coalesce(counted, _rows.uncounted_attempts),
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
        record_asked(connection, first)
    return claims


def _chosen(limit: int, per_organization: int | None, *, probe: bool) -> sa.Select[tuple[int]]:
    """The ids of the rows to claim, locked; ``probe``: of what was postponed least, whose own fault it hardly is."""
    ahead = _claimed_and_not_begun()
    least = (_rows.postponements,) if probe else ()
    turn = sa.func.row_number().over(
        partition_by=_rows.organization_id, order_by=(*least, _rows.priority.desc(), _rows.id)
    )
    candidates = (
        sa.select(_rows.id, _rows.organization_id, _rows.postponements, turn.label("turn")).where(_DUE).subquery()
    )
    place = (candidates.c.turn + sa.func.coalesce(ahead.c.number, 0)).label("place")
    first = (
        sa.select(candidates.c.id, place, candidates.c.postponements)
        .outerjoin_from(candidates, ahead, ahead.c.organization_id == candidates.c.organization_id)
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


def _bounded(connection: sa.Connection, limit: int, in_total: int | None) -> int:
    """How many may be claimed now."""
    if in_total is not None:
        limit = min(limit, _room(connection, in_total))
    if limit > 0 and is_any_postponed(connection):
        probing = connection.execute(sa.select(sa.exists().where(_PROBING))).scalar_one()
        return 0 if probing else 1
    return limit


def _room(connection: sa.Connection, in_total: int) -> int:
    """How many more may be claimed."""
    return in_total - connection.execute(sa.select(sa.func.count()).where(_NOT_BEGUN)).scalar_one()


def _claimed_and_not_begun() -> sa.Subquery:
    """How many of each organization."""
    counted = sa.select(_rows.organization_id, sa.func.count().label("number")).where(_NOT_BEGUN)
    return counted.group_by(_rows.organization_id).subquery()


def release(connection: sa.Connection, request_id: int, *, attempt: int, run_id: str | None, charged: bool) -> bool:
    """Give a request back to the queue, if it is still ``run_id``'s; ``charged`` = its attempt was really used."""
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
            attempt=attempt if charged else max(attempt - 1, 0),
            updated_at=current_instant(),
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
class StaleRequest:
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
    claim_id: str | None = None
    uncounted_attempts: int = 0
    owes_since: float = 0.0
    """Unix seconds: when it ended, or when its mails were last put back; runs that ended earlier sent other mails."""

    @property
    def counted_attempts(self) -> int:
        """Those of its attempts that ``EXPORT_MAX_ATTEMPTS`` bounds."""
        return self.attempt - self.uncounted_attempts


def quiet(
    connection: sa.Connection, *, lease_seconds: float, quiet_seconds: float, heartbeat_timeout_seconds: float
) -> list[StaleRequest]:
    """Claimed rows whose lease ended before they began, and running rows without a recent heartbeat.

    An application that inserts a row as ``running`` never gave it a heartbeat; it is found as well.
    """
    never_began = sa.and_(_NOT_BEGUN, _silent_for(_rows.claimed_at, lease_seconds))
    silent = sa.and_(_rows.status == RequestStatus.RUNNING, _silent_for(_LAST_HEARD, quiet_seconds))
    # A claim is renewed while its run waits in Dagster: one that is not renewed has a run that has begun.
    timed_out = sa.or_(
        sa.and_(never_began, _silent_for(_rows.claimed_at, lease_seconds + heartbeat_timeout_seconds)),
        sa.and_(silent, _silent_for(_LAST_HEARD, heartbeat_timeout_seconds)),
    )
    return _stale_requests(connection, sa.select(export_requests).where(sa.or_(never_began, silent)), timed_out)


_LAST_HEARD = sa.func.coalesce(_rows.heartbeat_at, _rows.completed_at, _rows.created_at)


def _silent_for(heard: sa.ColumnElement[datetime], seconds: float) -> sa.ColumnElement[bool]:
    """By the database's clock; what is said to be heard in the future is no sign of life."""
    return sa.or_(heard < instant_after(-seconds), heard > instant_after(CLOCK_SLACK_SECONDS))


def _stale_requests(
    connection: sa.Connection, rows: sa.Select[Any], timed_out: sa.ColumnElement[bool]
) -> list[StaleRequest]:
    found = connection.execute(
        rows.with_only_columns(
            _rows.id,
            _rows.uid,
            _rows.attempt,
            _rows.uncounted_attempts,
            _rows.status,
            _rows.run_id,
            _rows.claim_id,
            _rows.organization_id,
            _rows.dataset,
            _rows.format,
            _rows.completed_at,
            _put_back_at().label("put_back_at"),
            timed_out.label("timed_out"),
        ).order_by(_rows.id)
    )
    return [
        StaleRequest(
            id=row.id,
            uid=row.uid,
            attempt=row.attempt,
            running=row.status != RequestStatus.QUEUED,
            run_id=row.run_id,
            timed_out=bool(row.timed_out),
            organization_id=row.organization_id,
            dataset=row.dataset,
            format=row.format,
            claim_id=row.claim_id,
            uncounted_attempts=row.uncounted_attempts,
            owes_since=max(
                (at.timestamp() for at in (row.completed_at, row.put_back_at) if at is not None), default=0.0
            ),
        )
        for row in found
    ]


def is_locked(connection: sa.Connection, request_id: int) -> bool:
    """Whether another transaction holds the row: then its run cannot write a heartbeat, and may well live."""
    found = sa.select(_rows.id).where(_rows.id == request_id).with_for_update(skip_locked=True)
    return connection.execute(found).first() is None


@dataclass(frozen=True)
class Owner:
    """Whose a request is, for somebody who has a run of it at hand."""

    status: RequestStatus
    run_id: str | None
    claim_id: str | None
    silent: bool
    """Nothing was heard of its run for as long as a run is waited for."""


def owners(connection: sa.Connection, uids: Collection[str], *, heartbeat_timeout_seconds: float) -> dict[str, Owner]:
    """Whose each of these requests is, by ``uid``; those that are not there are left out."""
    mailing = max(heartbeat_timeout_seconds, LONGEST_MAIL_SECONDS)
    of_failed = sa.and_(_rows.status == RequestStatus.FAILED, _silent_for(_LAST_HEARD, mailing))
    of_others = sa.and_(_rows.status != RequestStatus.FAILED, _silent_for(_LAST_HEARD, heartbeat_timeout_seconds))
    silent = sa.or_(of_failed, of_others).label("silent")
    found = connection.execute(
        sa.select(_rows.uid, _rows.status, _rows.run_id, _rows.claim_id, silent).where(_rows.uid.in_(uids))
    )
    return {row.uid: Owner(RequestStatus(row.status), row.run_id, row.claim_id, bool(row.silent)) for row in found}


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
        export_requests.update().where(_rows.id == request_id, _NOT_BEGUN).values(claimed_at=current_instant())
    )


def not_begun(connection: sa.Connection) -> list[StaleRequest]:
    """Claimed requests that no run has taken yet."""
    return _stale_requests(connection, sa.select(export_requests).where(_NOT_BEGUN), sa.false())


def unnotified(
    connection: sa.Connection, *, quiet_seconds: float, heartbeat_timeout_seconds: float, within: timedelta
) -> list[StaleRequest]:
    """Requests with a mail still to send, that ended or were put back ``within`` that time and are silent for a while.

    A completed one owes its recipients theirs, a failed one its requester. Found from the mails that are unfinished:
    requests that ended are many and stay for ever.
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


# How many rows a request can be expected to have, before anything is read.


LOOK_BACK = 200
"""Of an organization, so many of its last completed and of its last expired requests: its history grows for ever."""
_ANSWERED = (RequestStatus.COMPLETED, RequestStatus.EXPIRED)


def expected(connection: sa.Connection, request_ids: Sequence[int], *, seconds: float) -> Iterator[tuple[int, int]]:
    """Give (id, rows) of each request of which it is known: by its attempt before, or its question's last answer.

    Takes no lock. One question a request, for ``seconds`` altogether: rows may hold megabytes of filters, and what is
    not known in time is left out.
    """
    ends = time.monotonic() + seconds
    for request_id in request_ids:
        if time.monotonic() >= ends:
            return
        rows: object = connection.execute(_QUESTION, {"request_id": request_id}).scalar()
        if isinstance(rows, int):  # SQLite stores any text in a column of integers
            yield request_id, rows


def _question() -> sa.Select[tuple[int]]:
    last = sa.union_all(*(_recent(status) for status in _ANSWERED)).subquery("last")
    same = [
        last.c.dataset == _rows.dataset,
        last.c.filters == _rows.filters,
        last.c.list_ids.is_not_distinct_from(_rows.list_ids),
        last.c.segment_ids.is_not_distinct_from(_rows.segment_ids),
    ]
    before = sa.select(last.c.row_count).where(*same).order_by(last.c.id.desc()).limit(1).scalar_subquery()
    return sa.select(sa.func.coalesce(_rows.rows_total, before)).where(_rows.id == sa.bindparam("request_id"))


def _recent(status: RequestStatus) -> sa.Select[tuple[int, str]]:
    """The last of one status, by the index on status, organization and id."""
    answered = export_requests.alias()
    told = [answered.c[name] for name in ("id", "dataset", "filters", "list_ids", "segment_ids", "row_count")]
    of_organization = sa.and_(answered.c.status == status, answered.c.organization_id == _rows.organization_id)
    recent = sa.select(*told).where(of_organization).correlate(export_requests)
    return sa.select(recent.order_by(answered.c.id.desc()).limit(LOOK_BACK).subquery())


_QUESTION = _question()
