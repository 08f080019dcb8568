"""Recurring exports become requests: each fire time once, whatever crashes and however many daemons there are."""

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
from export_pipeline.requests.models import ExportRequest, has_uid, load_request
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

# Whether a recurring export may still do what it was allowed when it was set up, asked at every fire time.


def check_recurring(connection: sa.Connection, organizations: Organizations, request: ExportRequest) -> None:
    """May the owner (``requested_by``) still ask, may the sender still be used, do the recipients still belong here?

    Raises:
        ExportFailure: ``permission_denied`` (also for an owner who is gone), ``invalid_recipient``,
            ``too_many_recipients``, the codes of ``sender_of``, ``recipient_outside``.
    """
    check_permission(connection, organizations, request)
    recipients = recipients_of(request)
    if recipients:
        sender_of(connection, organizations, request)
        _check_inside(connection, organizations, request.organization_id, recipients)


def _check_inside(
    connection: sa.Connection, organizations: Organizations, organization_id: str, recipients: tuple[str, ...]
) -> None:
    """Nobody reads over this mail before it goes: it is for members, and for addresses on verified domains.

    An organization that keeps neither a member's address nor a verified domain does not say who belongs to it: its
    application answers for the recipients.
    """
    members = organizations.member_addresses(connection, organization_id)
    domains = {ascii_domain(one.domain) for one in organizations.domains(connection, organization_id) if one.verified}
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


_rows = recurring_exports.c
_asked = export_requests.c
KEY_PREFIX = "recurring:"
"""What the ``idempotency_key`` of every fire time begins with; the gateway takes no such key from a caller."""
_LONGEST_SECONDS = 20.0
"""After so long a look begins with no further one: Dagster gives a sensor a minute."""


@dataclass
class Tick:
    """What one look at the recurring exports came to."""

    made: list[str] = field(default_factory=list)
    """The requests that were inserted, by ``uid``, those that failed at once among them."""
    passed_over: int = 0
    """Fire times that overlapped or were missed."""
    not_done: list[int] = field(default_factory=list)
    """Recurring exports with which something went wrong; the next look tries again."""
    corrected: list[int] = field(default_factory=list)
    """Recurring exports with a mark in the future: a clock was wrong, and nothing would have been due until then."""


def make_due(database: sa.Engine, organizations: Organizations, *, limit: int, now: datetime | None = None) -> Tick:
    """Turn fire times that are due into requests, or pass them over: of ``limit`` recurring exports, one of each.

    Those that wait for an earlier request do not count. What goes wrong with one keeps none of the others from theirs.

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
        except Exception:  # noqa: BLE001 - told by the tick, tried again at the next
            tick.not_done.append(recurring_id)
        if len(tick.made) + tick.passed_over >= limit or time.monotonic() >= ends_at:
            break
    return tick


def _due(connection: sa.Connection, now: datetime) -> Sequence[Any]:
    """What has to be looked at, without locking anything: fire times are remembered, so this is cheap."""
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
        # One value that SQLite should not hold: each row is looked at by itself, and says so.
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
        return True  # it is looked at, and says what is wrong


def _in_turn(due: Sequence[Any]) -> list[int]:
    """One of each organization, then the second of each, and so on: nobody's many keep others from theirs.

    Otherwise by chance: whatever a look does not come to, another one begins with.
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
    """Decide and carry out, with the row held: another daemon passes by, or finds it done."""
    held = connection.execute(
        sa.select(_rows.id, _rows.organization_id, _rows.owner)
        .where(_rows.id == recurring_id, _rows.paused_at.is_(None))
        .with_for_update(skip_locked=True)
    ).first()
    if held is None:
        return
    try:
        recurring = load_recurring(connection, recurring_id)
        rules = recurring.rules()
        recurring = _corrected(connection, recurring, rules, now, tick)
        decision = decide(rules, recurring.last_done, now, _unfinished_since(connection, recurring))
        covered = coverage(rules, decision.fire_time or now, recurring.high_water_mark)
    except ExportFailure as failure:
        # Nothing can be made of it until somebody corrects it: a request that failed says so, and pauses it.
        tick.made.append(_insert_failed(connection, held, failure, {}))
        return
    if decision.fire_time is None or decision.act is Act.WAIT or not _move(connection, recurring, decision):
        return
    if decision.act is Act.DROP:
        tick.passed_over += 1
        return
    key = f"{KEY_PREFIX}{recurring.id}:{decision.fire_time.astimezone(UTC).isoformat()}"
    if not _exists(connection, recurring, key):
        made_for = {"scheduled_for": decision.fire_time, "idempotency_key": key}
        tick.made.append(_make(connection, organizations, recurring, covered, made_for))


def _corrected(
    connection: sa.Connection, recurring: RecurringExport, rules: Rules, now: datetime, tick: Tick
) -> RecurringExport:
    """Its marks as they have to be: by the cron that it has now, and none in the future."""
    changed: dict[str, Any] = {}
    if recurring.counted_by != rules.schedule.name:
        changed["counted_by"] = rules.schedule.name
        if recurring.counted_by is not None:
            changed["last_fired_for"] = now  # another cron or zone: its fire times count from the change on
    its = sa.and_(_asked.recurring_export_id == recurring.id, _asked.organization_id == recurring.organization_id)
    if is_ahead(now, recurring.last_fired_for):
        made = sa.select(sa.func.max(_asked.scheduled_for)).where(its, _asked.scheduled_for <= now)
        changed["last_fired_for"] = connection.execute(made).scalar() or last_fire(rules.schedule, now)
        tick.corrected.append(recurring.id)
    if is_ahead(now, recurring.high_water_mark):
        delivered = sa.and_(its, _asked.status.in_((RequestStatus.COMPLETED, RequestStatus.EXPIRED)))
        ends = sa.select(sa.func.max(_asked.window_before)).where(delivered, _asked.window_before <= now)
        changed["high_water_mark"] = connection.execute(ends).scalar() or now - rules.lag
        tick.corrected.append(recurring.id)
    if changed:
        connection.execute(recurring_exports.update().where(_rows.id == recurring.id).values(**changed))
    return recurring.model_copy(update=changed)


def _move(connection: sa.Connection, recurring: RecurringExport, decision: Decision) -> bool:
    """The fire time is done with, unless somebody else was first."""
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


def _unfinished_since(connection: sa.Connection, recurring: RecurringExport) -> datetime | None:
    """When the newest of its requests that has not ended was made; one of another organization is none of them."""
    unfinished = _asked.status.in_(UNFINISHED)
    its = sa.and_(
        _asked.recurring_export_id == recurring.id, _asked.organization_id == recurring.organization_id, unfinished
    )
    return connection.execute(sa.select(sa.func.max(_asked.created_at)).where(its)).scalar()


def _exists(connection: sa.Connection, recurring: RecurringExport, key: str) -> bool:
    """Whether the request of a fire time is there. One that only has its key is not: then the insert fails aloud."""
    same = sa.exists().where(
        _asked.organization_id == recurring.organization_id,
        _asked.idempotency_key == key,
        _asked.recurring_export_id == recurring.id,
    )
    return bool(connection.execute(sa.select(same)).scalar_one())


def _make(
    connection: sa.Connection,
    organizations: Organizations,
    recurring: RecurringExport,
    covered: Window,
    made_for: dict[str, Any],
) -> str:
    """Insert the request; one that may not be made is there as well, and failed."""
    try:
        asked = parse_template(recurring.request).given()
    except ExportFailure as failure:
        return _insert_failed(connection, recurring, failure, made_for)
    everybody = asked["recipient_emails"]
    asked["recipient_emails"] = without_unsubscribed(connection, recurring.id, everybody)
    window = {"window_from": covered.begin, "window_before": covered.end}
    request_id, uid = _insert(connection, recurring, asked | window | made_for)
    try:
        _check_recipients(everybody, asked["recipient_emails"])
        check_recurring(connection, organizations, load_request(connection, request_id))
    except ExportFailure as failure:
        transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def _check_recipients(named: Sequence[str], left: Sequence[str]) -> None:
    if named and not left:
        raise ExportFailure(
            FailureCode.NO_RECIPIENT_LEFT,
            "recipient_emails: every recipient has unsubscribed. Name others, or delete the recurring export.",
            field="recipient_emails",
        )


def _insert(connection: sa.Connection, recurring: RecurringExport | Any, asked: dict[str, Any]) -> tuple[int, str]:
    inserted = connection.execute(
        export_requests.insert()
        .values(
            **asked,
            organization_id=recurring.organization_id,
            requested_by=recurring.owner,
            recurring_export_id=recurring.id,
        )
        .returning(_asked.id, _asked.uid)
    ).one()
    return inserted.id, str(inserted.uid)


def _insert_failed(
    connection: sa.Connection,
    recurring: RecurringExport | Any,
    failure: ExportFailure,
    made_for: dict[str, Any],
) -> str:
    """A request that cannot even be asked: it is there for whoever polls, failed, and its mail tells the owner."""
    request_id, uid = _insert(connection, recurring, {"dataset": "", "format": "", "recipient_emails": [], **made_for})
    transitions.give_up(connection, request_id, failure, attempt=0, run_id=None)
    return uid


def run_now(
    connection: sa.Connection,
    organizations: Organizations,
    recurring_id: int,
    *,
    now: datetime | None = None,
    window: Window | None = None,
) -> str:
    """Make a request out of turn, of a paused one too; returns its ``uid``. No fire time is used up.

    Args:
        connection: an open transaction.
        organizations: where organizations are read from.
        recurring_id: the row.
        now: this instant.
        window: the rows to cover, such as those of an earlier request; None: those that are its turn.

    Raises:
        LookupError: there is no such row.
        ExportFailure: what is wrong with the row; ``invalid_request`` if rows would be delivered twice because an
            earlier request has not ended.
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
        LookupError: it has no such request.
    """
    row = connection.execute(
        sa.select(_asked.window_from, _asked.window_before).where(
            has_uid(uid), _asked.recurring_export_id == recurring_id
        )
    ).first()
    if row is None:
        raise LookupError(f"recurring export {recurring_id} has no request {uid}")
    return Window(row.window_from, row.window_before)
