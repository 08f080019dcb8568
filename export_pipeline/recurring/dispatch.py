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
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.recurring.models import RecurringExport, load_recurring, parse_template
from export_pipeline.recurring.unsubscribe import without_unsubscribed
from export_pipeline.requests import transitions
from export_pipeline.requests.models import RequestInput, has_uid, load_request
from export_pipeline.requests.organizations import check_permission, email_domains, member_addresses
from export_pipeline.requests.recurring_outcomes import change_recurring
from export_pipeline.requests.validation import refusal
from export_pipeline.requests.validation.mail import ascii_domain, recipients_of, sender_of
from export_pipeline.scheduling import windows
from export_pipeline.scheduling.cron import checked_schedule, last_fire

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


def make_due(database: sa.Engine, *, limit: int, now: datetime | None = None) -> Tick:
    """Make requests of due fire times, or skip them: one fire time each of at most ``limit`` recurring exports.

    Recurring exports that wait for an earlier request do not count. An error in one does not stop the others.
    """
    tick = Tick()
    ends_at = time.monotonic() + _LONGEST_SECONDS
    with reading(database) as connection:
        now = now or database_now(connection)
        due = _in_turn(_due(connection, now))
    for recurring_id in due:
        try:
            with impatient(database).begin() as connection:
                _look(connection, recurring_id, now, tick)
        except Exception:  # noqa: BLE001 - the tick reports it, and the next one tries again
            tick.not_done.append(recurring_id)
        if len(tick.made) + tick.passed_over >= limit or time.monotonic() >= ends_at:
            break
    return tick


def _due(connection: sa.Connection, now: datetime) -> Sequence[Any]:
    """The rows that may be due. Locks nothing, and is cheap because fire times are cached."""
    names = ("id", "organization_id", "cron", "time_zone", "window_kind", "lag_seconds", "last_fired_for",
             "high_water_mark", "counted_by", "created_at")  # fmt: skip
    live = sa.select(*(_rows[name] for name in names)).where(_rows.paused_at.is_(None))
    return [row for row in connection.execute(live) if _may_be_due(row, now)]


def _may_be_due(row: sa.Row[Any], now: datetime) -> bool:
    try:
        lag = timedelta() if row.window_kind == WindowKind.ALL else timedelta(seconds=row.lag_seconds)
        rules = windows.Rules(checked_schedule(row.cron, row.time_zone), WindowKind(row.window_kind), lag)
        if row.counted_by != rules.schedule.name or windows.is_ahead(now, row.last_fired_for, row.high_water_mark):
            return True
        return windows.is_due(rules, row.last_fired_for or row.created_at, now)
    except Exception:  # noqa: BLE001 - _look reports what is wrong, and stops no other
        return True


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


def _look(connection: sa.Connection, recurring_id: int, now: datetime, tick: Tick) -> None:
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
        decision = windows.decide(rules, recurring.last_done, now, _unfinished_since(connection, recurring))
        window = windows.coverage(rules, decision.fire_time or now, recurring.high_water_mark)
    except ExportFailure as failure:
        # The row is wrong until somebody corrects it: a failed request reports that, and pauses the row.
        tick.made.append(_insert_failed(connection, locked, failure, {}))
        return
    if decision.fire_time is None or decision.act is windows.Act.WAIT or not _move(connection, recurring, decision):
        return
    if decision.act is windows.Act.DROP:
        tick.passed_over += 1
        return
    key = f"{KEY_PREFIX}{recurring.id}:{decision.fire_time.astimezone(UTC).isoformat()}"
    # A request of somebody else with the same key does not count: then the insert below fails visibly.
    same = sa.exists().where(_requests_of(recurring), _requests.idempotency_key == key)
    if not connection.execute(sa.select(same)).scalar_one():
        scheduled = {"scheduled_for": decision.fire_time, "idempotency_key": key}
        tick.made.append(_make(connection, recurring, window, scheduled))


def _corrected(
    connection: sa.Connection, recurring: RecurringExport, rules: windows.Rules, now: datetime, tick: Tick
) -> RecurringExport:
    """Correct the marks of the row: those of an earlier cron, and those in the future."""
    changed: dict[str, Any] = {}
    if recurring.counted_by != rules.schedule.name:
        changed["counted_by"] = rules.schedule.name
        if recurring.counted_by is not None:
            changed["last_fired_for"] = now  # another cron or zone: its fire times count from the change on
    if windows.is_ahead(now, recurring.last_fired_for):
        made = sa.select(sa.func.max(_requests.scheduled_for)).where(
            _requests_of(recurring), _requests.scheduled_for <= now
        )
        changed["last_fired_for"] = connection.execute(made).scalar() or last_fire(rules.schedule, now)
        tick.corrected.append(recurring.id)
    if windows.is_ahead(now, recurring.high_water_mark):
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


def _move(connection: sa.Connection, recurring: RecurringExport, decision: windows.Decision) -> bool:
    """Record the fire time as done; False if another process was first."""
    unchanged = _rows.last_fired_for.is_not_distinct_from(recurring.last_fired_for)
    live = sa.and_(_rows.id == recurring.id, _rows.paused_at.is_(None), unchanged)
    return change_recurring(connection, live, last_fired_for=decision.fire_time)


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
    connection: sa.Connection, recurring: RecurringExport, window: windows.Window, scheduled: dict[str, Any]
) -> str:
    """Insert the request; if it is not allowed, insert it as failed."""
    try:
        columns = parse_template(recurring.request).given()
    except ExportFailure as failure:
        return _insert_failed(connection, recurring, failure, scheduled)
    recipients = columns["recipient_emails"]
    left = without_unsubscribed(connection, recurring.id, recipients)
    columns |= {"recipient_emails": left, "window_from": window.begin, "window_before": window.end, **scheduled}
    request_id, uid = _insert(connection, recurring, columns)
    try:
        _check_any_left(recipients, left)
        check_recurring(connection, load_request(connection, request_id))
    except ExportFailure as failure:
        transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def _check_any_left(named: Sequence[str], left: Sequence[str]) -> None:
    if named and not left:
        problem = "every recipient has unsubscribed. Name others, or delete the recurring export."
        raise refusal(FailureCode.NO_RECIPIENT_LEFT, "recipient_emails", problem)


def _insert(connection: sa.Connection, recurring: RecurringExport | Any, columns: dict[str, Any]) -> tuple[int, str]:
    owner = {"organization_id": recurring.organization_id, "requested_by": recurring.owner}
    insert = export_requests.insert().values(**columns, **owner, recurring_export_id=recurring.id)
    request_id, uid = connection.execute(insert.returning(_requests.id, _requests.uid)).one()
    return request_id, uid


def _insert_failed(
    connection: sa.Connection, recurring: RecurringExport | Any, failure: ExportFailure, scheduled: dict[str, Any]
) -> str:
    """Insert a failed request in place of one that cannot be made: pollers see it, and the owner gets its mail."""
    columns = {"dataset": "", "format": "", "recipient_emails": [], **scheduled}
    request_id, uid = _insert(connection, recurring, columns)
    transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def check_recurring(connection: sa.Connection, request: RequestInput) -> None:
    """Check at every fire time what was checked at the setup: the owner's permission, the sender, the recipients.

    Codes: ``permission_denied`` (also for an owner who is gone), those of ``recipients_of`` and ``sender_of``,
    ``recipient_outside``.
    """
    check_permission(connection, request)
    if recipients := recipients_of(request):
        sender_of(connection, request)
        _check_inside(connection, request.organization_id, recipients)


def _check_inside(connection: sa.Connection, organization_id: str, recipients: tuple[str, ...]) -> None:
    """Allow only members and addresses on verified domains, because no person reads this mail before it is sent.

    An organization without members' addresses and verified domains does not say who belongs to it: there the
    application is responsible for the recipients.
    """
    members = member_addresses(connection, organization_id)
    domains = {ascii_domain(name) for name, verified in email_domains(connection, organization_id) if verified}
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
    connection: sa.Connection, recurring_id: int, *, now: datetime | None = None, window: windows.Window | None = None
) -> str:
    """Make a request now, also of a paused row, and return its ``uid``. No fire time is used up.

    It covers the rows that are due, or ``window``, such as that of an earlier request. ``now`` is the database's clock.

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
        window = windows.coverage_now(rules, now or database_now(connection), recurring.high_water_mark)
    return _make(connection, recurring, window, {})


def window_of(connection: sa.Connection, recurring_id: int, uid: str) -> windows.Window:
    """The rows that an earlier request covered; a ``LookupError`` if the recurring export does not have it."""
    window = sa.select(_requests.window_from, _requests.window_before)
    row = connection.execute(window.where(has_uid(uid), _requests.recurring_export_id == recurring_id)).first()
    if row is None:
        raise LookupError(f"recurring export {recurring_id} has no request {uid}")
    return windows.Window(*row)
