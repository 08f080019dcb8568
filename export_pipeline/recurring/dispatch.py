"""Turn the fire times of recurring exports into requests: each exactly once, despite crashes and several daemons."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.engine import database_now, impatient, reading
from export_pipeline.database.enums import UNFINISHED, RequestStatus, WindowKind
from export_pipeline.database.tables import export_requests, recurring_exports
from export_pipeline.database.types import current_instant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.recurring.models import RecurringExport, load_recurring, parse_template
from export_pipeline.recurring.unsubscribe import without_unsubscribed
from export_pipeline.requests import transitions
from export_pipeline.requests.models import RequestInput, has_uid, load_request
from export_pipeline.requests.organizations import Organizations, check_permission
from export_pipeline.requests.validation.mail import ascii_domain, recipients_of, sender_of
from export_pipeline.scheduling.cron import checked_schedule, last_fire
from export_pipeline.scheduling.windows import (
    Act,
    Decision,
    Rules,
    Window,
    coverage,
    coverage_now,
    decide,
    is_ahead,
    is_due,
)

_rows = recurring_exports.c
_requests = export_requests.c
KEY_PREFIX = "recurring:"
"""Prefix of the ``idempotency_key`` of every fire time; the gateway refuses such keys from callers."""
_LONGEST_SECONDS = 20.0
"""After this time no further row is begun: Dagster gives a sensor a minute."""


@dataclass
class Tick:
    """The results of one pass over the recurring exports."""

    made: list[str] = field(default_factory=list)
    """The inserted requests by ``uid``, including those that failed at once."""
    passed_over: int = 0
    """Fire times that were skipped because they overlapped or were missed."""
    not_done: list[int] = field(default_factory=list)
    """Recurring exports with an error; the next tick tries them again."""
    corrected: list[int] = field(default_factory=list)
    """Recurring exports with a mark in the future: a clock was wrong, and nothing would have been due until then."""


def make_due(database: sa.Engine, organizations: Organizations, *, limit: int, now: datetime | None = None) -> Tick:
    """Make requests of due fire times, or skip them: one fire time each of at most ``limit`` recurring exports.

    Recurring exports that wait for an earlier request do not count. An error in one does not stop the others.

    Raises:
        sqlalchemy.exc.OperationalError: the database cannot be read.
    """
    tick = Tick()
    ends_at = time.monotonic() + _LONGEST_SECONDS
    with reading(database) as connection:
        now = now or database_now(connection)
        due = _in_turn(_due(connection, now))
    for recurring_id in due:
        try:
            with impatient(database).begin() as connection:
                _look(connection, organizations, recurring_id, now, tick)
        except Exception:  # noqa: BLE001 - the tick reports it, and the next one tries again
            tick.not_done.append(recurring_id)
        if len(tick.made) + tick.passed_over >= limit or time.monotonic() >= ends_at:
            break
    return tick


def _due(connection: sa.Connection, now: datetime) -> Sequence[Any]:
    """The rows that may be due. Locks nothing, and is cheap because fire times are cached."""
    live = sa.select(
        _rows.id,
        _rows.organization_id,
        _rows.cron,
        _rows.time_zone,
        _rows.window_kind,
        _rows.lag_seconds,
        _rows.last_fired_for,
        _rows.high_water_mark,
        _rows.counted_by,
        _rows.created_at,
    ).where(_rows.paused_at.is_(None))
    try:
        rows: Sequence[Any] = connection.execute(live).all()
    except (ValueError, TypeError):
        # SQLite holds a malformed value in some row: check every row by itself, and the wrong one reports it.
        return connection.execute(live.with_only_columns(_rows.id, _rows.organization_id)).all()
    return [row for row in rows if _may_be_due(row, now)]


def _may_be_due(row: sa.Row[Any], now: datetime) -> bool:
    try:
        lag = timedelta() if row.window_kind == WindowKind.ALL else timedelta(seconds=row.lag_seconds)
        rules = Rules(checked_schedule(row.cron, row.time_zone), WindowKind(row.window_kind), lag)
        if row.counted_by != rules.schedule.name or is_ahead(now, row.last_fired_for, row.high_water_mark):
            return True
        return is_due(rules, row.last_fired_for or row.created_at, now)
    except (ExportFailure, ValueError, TypeError, OverflowError):
        return True  # _look reports what is wrong


def _in_turn(due: Sequence[Any]) -> list[int]:
    """Interleave organizations so that one organization's backlog cannot starve the others.

    The order is random otherwise, so that every row is among the first at some tick.
    """
    turns: Counter[str] = Counter()
    turn_of: dict[int, int] = {}
    for row in random.sample(due, len(due)):
        turns[row.organization_id] += 1
        turn_of[row.id] = turns[row.organization_id]
    return sorted(turn_of, key=turn_of.__getitem__)


def _look(
    connection: sa.Connection, organizations: Organizations, recurring_id: int, now: datetime, tick: Tick
) -> None:
    """Decide and act with the row locked: another daemon skips it, or finds the work done."""
    locked = connection.execute(
        sa.select(_rows.id, _rows.organization_id, _rows.owner)
        .where(_rows.id == recurring_id, _rows.paused_at.is_(None))
        .with_for_update(skip_locked=True)
    ).first()
    if locked is None:
        return
    try:
        recurring = load_recurring(connection, recurring_id)
        rules = recurring.rules()
        recurring = _corrected(connection, recurring, rules, now, tick)
        decision = decide(rules, recurring.last_done, now, _unfinished_since(connection, recurring))
        window = coverage(rules, decision.fire_time or now, recurring.high_water_mark)
    except ExportFailure as failure:
        # The row is wrong until somebody corrects it: a failed request reports that, and pauses the row.
        tick.made.append(_insert_failed(connection, locked, failure, {}))
        return
    if decision.fire_time is None or decision.act is Act.WAIT or not _move(connection, recurring, decision):
        return
    if decision.act is Act.DROP:
        tick.passed_over += 1
        return
    key = f"{KEY_PREFIX}{recurring.id}:{decision.fire_time.astimezone(UTC).isoformat()}"
    # A request of somebody else with the same key does not count: then the insert below fails visibly.
    same = sa.exists().where(_requests_of(recurring), _requests.idempotency_key == key)
    if not connection.execute(sa.select(same)).scalar_one():
        scheduled = {"scheduled_for": decision.fire_time, "idempotency_key": key}
        tick.made.append(_make(connection, organizations, recurring, window, scheduled))


def _corrected(
    connection: sa.Connection, recurring: RecurringExport, rules: Rules, now: datetime, tick: Tick
) -> RecurringExport:
    """Correct the marks of the row: those of an earlier cron, and those in the future."""
    changed: dict[str, Any] = {}
    if recurring.counted_by != rules.schedule.name:
        changed["counted_by"] = rules.schedule.name
        if recurring.counted_by is not None:
            changed["last_fired_for"] = now  # another cron or zone: its fire times count from the change on
    if is_ahead(now, recurring.last_fired_for):
        made = sa.select(sa.func.max(_requests.scheduled_for)).where(
            _requests_of(recurring), _requests.scheduled_for <= now
        )
        changed["last_fired_for"] = connection.execute(made).scalar() or last_fire(rules.schedule, now)
        tick.corrected.append(recurring.id)
    if is_ahead(now, recurring.high_water_mark):
        ends = sa.select(sa.func.max(_requests.window_before)).where(
            _requests_of(recurring),
            _requests.status.in_((RequestStatus.COMPLETED, RequestStatus.EXPIRED)),
            _requests.window_before <= now,
        )
        changed["high_water_mark"] = connection.execute(ends).scalar() or now - rules.lag
        tick.corrected.append(recurring.id)
    if changed:
        connection.execute(recurring_exports.update().where(_rows.id == recurring.id).values(**changed))
    return recurring.model_copy(update=changed)


def _move(connection: sa.Connection, recurring: RecurringExport, decision: Decision) -> bool:
    """Record the fire time as done; False if another process was first."""
    moved = connection.execute(
        recurring_exports.update()
        .where(
            _rows.id == recurring.id,
            _rows.paused_at.is_(None),
            _rows.last_fired_for.is_not_distinct_from(recurring.last_fired_for),
        )
        .values(last_fired_for=decision.fire_time, updated_at=current_instant())
    )
    return moved.rowcount == 1


def _requests_of(recurring: RecurringExport) -> sa.ColumnElement[bool]:
    """The requests of a recurring export; one of another organization that names it is not among them."""
    return sa.and_(
        _requests.recurring_export_id == recurring.id, _requests.organization_id == recurring.organization_id
    )


def _unfinished_since(connection: sa.Connection, recurring: RecurringExport) -> datetime | None:
    """The creation of its newest unfinished request."""
    unfinished = sa.and_(_requests_of(recurring), _requests.status.in_(UNFINISHED))
    return connection.execute(sa.select(sa.func.max(_requests.created_at)).where(unfinished)).scalar()


def _make(
    connection: sa.Connection,
    organizations: Organizations,
    recurring: RecurringExport,
    window: Window,
    scheduled: dict[str, Any],
) -> str:
    """Insert the request; if it is not allowed, insert it as failed."""
    try:
        columns = parse_template(recurring.request).given()
    except ExportFailure as failure:
        return _insert_failed(connection, recurring, failure, scheduled)
    recipients = columns["recipient_emails"]
    columns["recipient_emails"] = without_unsubscribed(connection, recurring.id, recipients)
    columns |= {"window_from": window.begin, "window_before": window.end, **scheduled}
    request_id, uid = _insert(connection, recurring, columns)
    try:
        _check_any_left(recipients, columns["recipient_emails"])
        check_recurring(connection, organizations, load_request(connection, request_id))
    except ExportFailure as failure:
        transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def _check_any_left(named: Sequence[str], left: Sequence[str]) -> None:
    if named and not left:
        raise ExportFailure(
            FailureCode.NO_RECIPIENT_LEFT,
            "recipient_emails: every recipient has unsubscribed. Name others, or delete the recurring export.",
            field="recipient_emails",
        )


def _insert(connection: sa.Connection, recurring: RecurringExport | Any, columns: dict[str, Any]) -> tuple[int, str]:
    inserted = connection.execute(
        export_requests.insert()
        .values(
            **columns,
            organization_id=recurring.organization_id,
            requested_by=recurring.owner,
            recurring_export_id=recurring.id,
        )
        .returning(_requests.id, _requests.uid)
    ).one()
    return inserted.id, str(inserted.uid)


def _insert_failed(
    connection: sa.Connection, recurring: RecurringExport | Any, failure: ExportFailure, scheduled: dict[str, Any]
) -> str:
    """Insert a failed request in place of one that cannot be made: pollers see it, and the owner gets its mail."""
    columns = {"dataset": "", "format": "", "recipient_emails": [], **scheduled}
    request_id, uid = _insert(connection, recurring, columns)
    transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def check_recurring(connection: sa.Connection, organizations: Organizations, request: RequestInput) -> None:
    """Check at every fire time what was checked at the setup: the owner's permission, the sender, the recipients.

    Raises:
        ExportFailure: ``permission_denied`` (also for an owner who is gone), ``invalid_recipient``,
            ``too_many_recipients``, the codes of ``sender_of``, ``recipient_outside``.
    """
    check_permission(connection, organizations, request)
    if recipients := recipients_of(request):
        sender_of(connection, organizations, request)
        _check_inside(connection, organizations, request.organization_id, recipients)


def _check_inside(
    connection: sa.Connection, organizations: Organizations, organization_id: str, recipients: tuple[str, ...]
) -> None:
    """Allow only members and addresses on verified domains, because no person reads this mail before it is sent.

    An organization without members' addresses and verified domains does not say who belongs to it: there the
    application is responsible for the recipients.
    """
    members = organizations.member_addresses(connection, organization_id)
    domains = {
        ascii_domain(each.domain) for each in organizations.domains(connection, organization_id) if each.verified
    }
    if not members and not domains:
        return
    for index, recipient in enumerate(recipients):
        if recipient.casefold() not in members and ascii_domain(recipient.rpartition("@")[2]) not in domains:
            raise ExportFailure(
                FailureCode.RECIPIENT_OUTSIDE,
                f"recipient_emails[{index}]: is neither a member of the organization nor on one of its verified "
                "domains. Remove the address, or add it there.",
                field="recipient_emails",
            )


def run_now(
    connection: sa.Connection,
    organizations: Organizations,
    recurring_id: int,
    *,
    now: datetime | None = None,
    window: Window | None = None,
) -> str:
    """Make a request now, also of a paused row, and return its ``uid``. No fire time is used up.

    Args:
        connection: an open transaction.
        organizations: the source of organizations.
        recurring_id: the row.
        now: the current instant. Default: the database's clock.
        window: the rows to cover, such as those of an earlier request. Default: the rows that are due.

    Raises:
        LookupError: the row does not exist.
        ExportFailure: the row is wrong; ``invalid_request`` if rows would be delivered twice because an earlier
            request has not ended.
    """
    connection.execute(sa.select(_rows.id).where(_rows.id == recurring_id).with_for_update())
    recurring = load_recurring(connection, recurring_id)
    parse_template(recurring.request)
    if window is None:
        rules = recurring.rules()
        if rules.window is WindowKind.SINCE_LAST_SUCCESS and _unfinished_since(connection, recurring):
            raise ExportFailure(
                FailureCode.INVALID_REQUEST,
                "An earlier request of this recurring export has not ended, and the next window begins where it ends. "
                "Wait for it or cancel it.",
            )
        window = coverage_now(rules, now or database_now(connection), recurring.high_water_mark)
    return _make(connection, organizations, recurring, window, {})


def window_of(connection: sa.Connection, recurring_id: int, uid: str) -> Window:
    """The rows that an earlier request of a recurring export covered.

    Raises:
        LookupError: the recurring export does not have this request.
    """
    row = connection.execute(
        sa.select(_requests.window_from, _requests.window_before).where(
            has_uid(uid), _requests.recurring_export_id == recurring_id
        )
    ).first()
    if row is None:
        raise LookupError(f"recurring export {recurring_id} has no request {uid}")
    return Window(row.window_from, row.window_before)
