"""Recurring exports in a test: inserting, looking, ending what was made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.tables import export_requests, recurring_exports
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.recurring.dispatch import Tick, make_due
from export_pipeline.recurring.models import RecurringExport, load_recurring
from export_pipeline.requests import ownership, transitions
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.models import ExportRequest, load_request
from export_pipeline.requests.organizations import Organizations

TEMPLATE = {"dataset": "people", "format": "csv", "recipient_emails": ["ana@example.com"]}
REFUSED = ExportFailure(FailureCode.STORE_REFUSED, "The store refused.")


def at(text: str) -> datetime:
    """An instant of March 2026, UTC: ``2 10:00`` is the second at ten."""
    day, clock = text.split()
    return datetime.fromisoformat(f"2026-03-{int(day):02d}T{clock}:00").replace(tzinfo=UTC)


def add(database: sa.Engine, **columns: Any) -> int:
    """An hourly one, done with until 2 March, 09:00."""
    row = {"organization_id": "acme", "cron": "0 * * * *", "request": TEMPLATE, "last_fired_for": at("2 09:00")}
    with database.begin() as connection:
        return connection.execute(
            recurring_exports.insert().values({**row, **columns}).returning(recurring_exports.c.id)
        ).scalar_one()


def look(database: sa.Engine, now: str) -> Tick:
    return make_due(database, Organizations(), limit=50, now=at(now))


def row(database: sa.Engine, recurring_id: int) -> RecurringExport:
    with database.connect() as connection:
        return load_recurring(connection, recurring_id)


def made(database: sa.Engine) -> list[ExportRequest]:
    """All requests, in the order in which they were made."""
    with database.connect() as connection:
        ids = connection.execute(sa.select(export_requests.c.id).order_by(export_requests.c.id)).scalars()
        return [load_request(connection, request_id) for request_id in list(ids)]


def update(database: sa.Engine, recurring_id: int, **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(recurring_exports.update().where(recurring_exports.c.id == recurring_id).values(**values))


def complete(database: sa.Engine, request_id: int, *, rows: int = 3) -> None:
    """As its run does."""
    file = StoredFile(1, "a/b", "b.csv", 10, rows, "0" * 64, "text/csv", None)
    with database.begin() as connection:
        ownership.begin(connection, request_id, run_id="run", lineage=["run"], attempt=None)
        transitions.complete(
            connection, request_id, run_id="run", files=[file], manifest_key="a/m.json", expires_at=at("30 00:00")
        )


def fail(database: sa.Engine, request_id: int, failure: ExportFailure = REFUSED) -> None:
    """As its run does."""
    with database.begin() as connection:
        ownership.begin(connection, request_id, run_id="run", lineage=["run"], attempt=None)
        assert transitions.fail(connection, request_id, failure, run_id="run")


def cancel(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        assert transitions.cancel(connection, request_id, by_requester="asked", by_operator="operator")
