"""What monitors ask: each thing that waits too long is beyond its bound, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import export_notifications, export_requests, export_ticks, export_webhooks
from export_pipeline.requests import health
from export_pipeline.requests.models import insert_request

TIMEOUT = 120.0
ALL = (
    "last_tick_seconds",
    "oldest_wait_seconds",
    "longest_silence_seconds",
    "oldest_owed_mail_seconds",
    "oldest_due_webhook_seconds",
    "most_postponements",
)


def ago(**time: float) -> Any:
    return utc_now() - timedelta(**time)


def request(connection: sa.Connection, **values: Any) -> int:
    insert_request(connection, organization_id="acme", dataset="contacts", format="csv", recipient_emails=["a@x.io"])
    (request_id,) = connection.execute(sa.select(sa.func.max(export_requests.c.id))).one()
    if values:
        row = export_requests.c.id == request_id
        connection.execute(export_requests.update().where(row).values(**values))
    return int(request_id)


def well(connection: sa.Connection) -> None:
    """Everything that is as it should be: none of it may alarm anybody."""
    health.note_tick(connection, "export_installation")
    request(connection)
    request(connection, status="running", heartbeat_at=ago(seconds=100))
    request(connection, status="queued", postponed_at=ago(hours=5), postponements=2, created_at=ago(hours=5))
    request(connection, status="failed", completed_at=ago(days=30), created_at=ago(days=30))
    owed = request(connection, status="completed", completed_at=ago(minutes=10))
    mail(connection, owed, "pending")
    mail(connection, request(connection, status="completed", completed_at=ago(days=1)), "sent")
    mail(connection, request(connection, status="completed", completed_at=ago(days=9)), "pending")  # given up long ago
    hook(connection, owed, next_try_at=utc_now() + timedelta(hours=5))
    hook(connection, request(connection, status="failed"), status="abandoned", next_try_at=ago(days=1))


def mail(connection: sa.Connection, request_id: int, status: str) -> None:
    values = {"request_id": request_id, "recipient": "a@x.io", "kind": "ready", "status": status}
    connection.execute(export_notifications.insert().values(values))


def hook(connection: sa.Connection, request_id: int, **values: Any) -> None:
    connection.execute(export_webhooks.insert().values(request_id=request_id, event="export.completed", **values))


def beyond(connection: sa.Connection) -> set[str]:
    found = health.checks(connection, heartbeat_timeout_seconds=TIMEOUT)
    assert tuple(check.name for check in found) == ALL
    return {check.name for check in found if not check.ok}


BAD: dict[str, Callable[[sa.Connection], Any]] = {
    "last_tick_seconds": lambda c: c.execute(export_ticks.update().values(ticked_at=ago(minutes=4))),
    "oldest_wait_seconds": lambda c: request(c, created_at=ago(hours=2)),
    "longest_silence_seconds": lambda c: request(c, status="running", heartbeat_at=ago(minutes=6)),
    "oldest_owed_mail_seconds": lambda c: mail(c, request(c, status="failed", completed_at=ago(hours=3)), "sending"),
    "oldest_due_webhook_seconds": lambda c: hook(c, request(c, status="canceled"), next_try_at=ago(hours=2)),
    "most_postponements": lambda c: request(
        c, postponed_at=ago(minutes=1), postponements=6, error_code="source_unavailable"
    ),
}


def test_an_installation_that_is_well_is_within_all_bounds(database: sa.Engine) -> None:
    with database.begin() as connection:
        well(connection)
        assert beyond(connection) == set()


@pytest.mark.parametrize("name", BAD)
def test_each_thing_that_waits_too_long_is_beyond_its_bound_alone(database: sa.Engine, name: str) -> None:
    with database.begin() as connection:
        well(connection)
        BAD[name](connection)
        assert beyond(connection) == {name}


def test_an_installation_of_which_no_sensor_ever_ticked_is_beyond_the_bound(database: sa.Engine) -> None:
    with database.begin() as connection:
        found = health.checks(connection, heartbeat_timeout_seconds=TIMEOUT)
        assert [(one.name, one.value) for one in found if not one.ok] == [("last_tick_seconds", None)]
        assert "no tick yet" in found[0].meaning


def test_what_does_not_answer_is_named(database: sa.Engine) -> None:
    with database.begin() as connection:
        BAD["most_postponements"](connection)
        (check,) = health.checks(connection, heartbeat_timeout_seconds=TIMEOUT)[-1:]
        assert "source_unavailable" in check.meaning
