"""Bounds on what is claimed and has not begun: of an organization, and of all."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from export_pipeline.requests import claims
from export_pipeline.requests.database import reading
from export_pipeline.requests.tables import export_requests


def ask(database: sa.Engine, organization: str, number: int) -> None:
    row = {"organization_id": organization, "dataset": "people", "format": "csv", "recipient_emails": []}
    with database.begin() as connection:
        connection.execute(export_requests.insert(), [row] * number)


def claim(database: sa.Engine, *, limit: int = 50, per_organization: int = 10, in_total: int = 25) -> list[str]:
    """What is claimed, by organization; there is something exactly if it was said before that there is."""
    bounds = {"per_organization": per_organization, "in_total": in_total}
    with reading(database) as connection:
        is_any = claims.is_any_claimable(connection, **bounds)
    with database.begin() as connection:
        found = claims.claim(connection, limit=limit, **bounds)
    assert bool(found) is is_any
    return sorted(one.organization_id for one in found)


def begin(database: sa.Engine, organization: str) -> None:
    """The oldest claimed one of an organization."""
    rows = export_requests.c
    oldest = sa.select(sa.func.min(rows.id)).where(
        rows.organization_id == organization, rows.status == "queued", rows.claimed_at.is_not(None)
    )
    with database.begin() as connection:
        connection.execute(export_requests.update().where(rows.id == oldest.scalar_subquery()).values(status="running"))


def test_nothing_is_claimed_beyond_the_bound_of_an_organization_or_of_all(database: sa.Engine) -> None:
    assert claim(database) == []
    for organization in "abc":
        ask(database, organization, 40)
    assert claim(database, limit=12) == [*"aaaabbbbcccc"]
    assert claim(database, limit=12) == [*"aaaabbbbcccc"]
    assert claim(database) == ["a"]  # 25 of all
    assert claim(database) == []
    assert claim(database, in_total=99) == ["a"] + ["b"] * 2 + ["c"] * 2  # 10 of each
    assert claim(database, in_total=99) == []
    begin(database, "b")
    assert claim(database, in_total=99) == ["b"]
    assert claim(database, in_total=99) == []


def test_who_has_fewest_claimed_comes_first_when_all_wait_for_the_bound(database: sa.Engine) -> None:
    for organization in "abc":
        ask(database, organization, 40)
    claim(database)
    ask(database, "late", 2)
    assert claim(database) == []
    begin(database, "b")
    assert claim(database) == ["late"]
    for organization in "cc":
        begin(database, organization)
    assert claim(database) == ["c", "late"]


@pytest.mark.parametrize("canceled", [False, True])
def test_without_bounds_everything_that_waits_is_claimed(database: sa.Engine, canceled: bool) -> None:
    ask(database, "a", 30)
    if canceled:
        with database.begin() as connection:
            connection.execute(export_requests.update().values(cancel_requested_at=sa.func.current_timestamp()))
    with database.begin() as connection:
        assert claims.is_any_waiting(connection) is not canceled
        assert len(claims.claim(connection, limit=50)) == (0 if canceled else 30)
