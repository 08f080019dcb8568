"""Webhooks: one row per request and event, delivered at least once."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from export_pipeline.database.engine import insert_or
from export_pipeline.database.enums import WebhookEvent, WebhookStatus
from export_pipeline.database.tables import export_requests, export_webhooks, webhook_secrets
from export_pipeline.database.types import current_instant, instant_after

MAX_TRIES = 7
_GROWTH = 4
SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret
_hooks = export_webhooks.c
_rows = export_requests.c


@dataclass(frozen=True)
class Webhook:
    """A call that is due now."""

    id: int
    uid: str
    event: WebhookEvent
    tries: int
    """Including this one."""
    created_at: datetime
    request_uid: str
    organization_id: str
    url: str


def enqueue(connection: sa.Connection, request_id: int, event: WebhookEvent) -> None:
    """Add the call for an event, once, if the request names a URL; in the transaction that ends the request."""
    call = sa.select(_rows.id, sa.literal(event.value)).where(
        _rows.id == request_id,
        _rows.webhook_url.is_not(None),
        ~sa.exists().where(_hooks.request_id == request_id, _hooks.event == event),
    )
    connection.execute(export_webhooks.insert().from_select(["request_id", "event"], call))


def take_due(
    connection: sa.Connection, *, limit: int, lease: timedelta, at_once: int | None = None, busy: Collection[str] = ()
) -> list[Webhook]:
    """Take due webhooks, interleaving the organizations, for ``lease`` or until the result is recorded.

    A process that dies with a webhook uses up one try, because the call may have arrived. Of one organization at most
    ``at_once`` are taken (None for any number), of the ``busy`` ones none.
    """
    due = sa.and_(_hooks.status == WebhookStatus.PENDING, _hooks.next_try_at <= instant_after(0))
    turn = sa.func.row_number().over(partition_by=_rows.organization_id, order_by=_hooks.next_try_at).label("turn")
    free = _rows.organization_id.not_in(list(busy))
    waiting = sa.select(_hooks.id, turn).join(export_requests, _rows.id == _hooks.request_id).where(due, free)
    candidates = waiting.subquery()
    in_turn = sa.true() if at_once is None else candidates.c.turn <= at_once
    chosen = (
        sa.select(_hooks.id)
        .join(candidates, candidates.c.id == _hooks.id)
        .where(in_turn)
        .order_by(candidates.c.turn)
        .limit(limit)
        .with_for_update(of=export_webhooks, skip_locked=True)
    )
    ids = connection.execute(chosen).scalars().all()
    taken = connection.execute(
        export_webhooks.update()
        .where(_hooks.id.in_(ids), due)
        .values(tries=_hooks.tries + 1, next_try_at=instant_after(lease.total_seconds()), updated_at=current_instant())
        .returning(_hooks.id)
    ).scalars()
    found = connection.execute(
        sa.select(
            _hooks.id,
            _hooks.uid,
            _hooks.event,
            _hooks.tries,
            _hooks.created_at,
            _rows.uid.label("request_uid"),
            _rows.organization_id,
            _rows.webhook_url,
        )
        .join(export_requests, _rows.id == _hooks.request_id)
        .where(_hooks.id.in_(list(taken)))
        .order_by(_hooks.id)
    )
    return [Webhook(row.id, row.uid, WebhookEvent(row.event), *row[3:]) for row in found]


def any_due(connection: sa.Connection) -> bool:
    """Whether a call is due now."""
    due = sa.exists().where(
        # On SQLite a row may outlive its request, because an application may have foreign keys switched off.
        _rows.id == _hooks.request_id,
        _hooks.status == WebhookStatus.PENDING,
        _hooks.next_try_at <= instant_after(0),
    )
    return bool(connection.execute(sa.select(due)).scalar_one())


def record_result(
    connection: sa.Connection, webhook: Webhook, *, taken: bool, answer: str, retry_seconds: float | None
) -> None:
    """Write the result of a try: whether it was ``taken`` (2xx), and the status code or what went wrong.

    ``retry_seconds`` is the first wait; each further one is four times as long, up to ``MAX_TRIES``; None = no retry.
    """
    status, wait = WebhookStatus.DELIVERED, 0.0
    if not taken:
        again = retry_seconds is not None and webhook.tries < MAX_TRIES
        status = WebhookStatus.PENDING if again else WebhookStatus.ABANDONED
        wait = (retry_seconds or 0.0) * _GROWTH ** (webhook.tries - 1)
    connection.execute(
        export_webhooks.update()
        .where(_hooks.id == webhook.id, _hooks.status == WebhookStatus.PENDING)
        .values(status=status, next_try_at=instant_after(wait), answer=answer, updated_at=current_instant())
    )


def secret_of(connection: sa.Connection, organization_id: str) -> str:
    """The secret that signs an organization's webhooks, created at the first call."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    insert = insert_or(connection, webhook_secrets).values(organization_id=organization_id, secret=secret)
    connection.execute(insert.on_conflict_do_nothing())
    found = sa.select(webhook_secrets.c.secret).where(webhook_secrets.c.organization_id == organization_id)
    return str(connection.execute(found).scalar_one())


def renew_secret(connection: sa.Connection, organization_id: str) -> None:
    """Delete an organization's secret; ``secret_of`` then creates a new one."""
    connection.execute(webhook_secrets.delete().where(webhook_secrets.c.organization_id == organization_id))
