"""The queue as operators see it, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.requests.health import Line, queue, total
from export_pipeline.requests.models import insert_request

MINUTE = timedelta(minutes=1)


def ask(database: sa.Engine, organization: str, status: str, **values: Any) -> None:
    with database.begin() as connection:
        insert_request(
            connection,
            organization_id=organization,
            dataset="contacts",
            format="csv",
            recipient_emails=[],
            status=status,
            **values,
        )


def lines(database: sa.Engine, organization: str | None = None) -> list[Line]:
    with reading(database) as connection:
        return queue(connection, organization)


@pytest.fixture
def busy(database: sa.Engine) -> sa.Engine:
    now = utc_now()
    ask(database, "acme", "queued", created_at=now - 3 * MINUTE)
    ask(database, "acme", "queued", created_at=now - 9 * MINUTE, claimed_at=now)
    ask(database, "acme", "running", created_at=now - 90 * MINUTE)
    ask(database, "beta", "running", created_at=now)
    ask(database, "gamma", "queued", created_at=now - 60 * MINUTE)
    for finished in ("completed", "failed", "canceled", "expired"):
        ask(database, "delta", finished, created_at=now - 99 * MINUTE)
    return database


def test_each_organization_is_counted_and_the_longest_wait_comes_first(busy: sa.Engine) -> None:
    found = lines(busy)
    assert [(line.organization_id, line.waiting, line.running) for line in found] == [
        ("gamma", 1, 0),
        ("acme", 2, 1),
        ("beta", 0, 1),
    ]
    waits = [line.oldest_wait_seconds for line in found]
    assert waits[0] == pytest.approx(3600, abs=30)
    assert waits[1] == pytest.approx(540, abs=30)
    assert waits[2] is None
    everything = total(found)
    assert (everything.waiting, everything.running, everything.oldest_wait_seconds) == (3, 2, waits[0])


def test_one_organization_alone(busy: sa.Engine) -> None:
    assert [line.organization_id for line in lines(busy, "acme")] == ["acme"]
    assert lines(busy, "delta") == []


def test_an_empty_queue_is_no_wait(database: sa.Engine) -> None:
    assert lines(database) == []
    assert total([]) == Line(organization_id=None, waiting=0, running=0, oldest_wait_seconds=None)
