"""The audit trail says who asked and for what, and no row that it cannot repeat keeps others from being claimed."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import EventKind
from export_pipeline.database.tables import export_events, export_requests
from export_pipeline.requests import audit, ownership, queue, transitions
from export_pipeline.requests.models import insert_request

ASKED = {
    "organization_id": "acme",
    "requested_by": "ana",
    "dataset": "contacts",
    "format": "csv",
    "columns": ["id", "email"],
    "filters": {"email": {"eq": "bob@example.com"}},
    "list_ids": ["l1"],
    "segment_ids": [],
    "recipient_emails": ["ana@example.com"],
}


def claim(database: sa.Engine) -> list[queue.Claim]:
    with database.begin() as connection:
        return queue.claim(connection, limit=50)


def trail(database: sa.Engine, uid: str) -> list[audit.Event]:
    with database.connect() as connection:
        return audit.events_of(connection, uid)


def test_the_first_event_says_who_asked_and_for_what(database: sa.Engine) -> None:
    with database.begin() as connection:
        uid = insert_request(connection, **ASKED)
        unsigned = insert_request(connection, **{**ASKED, "requested_by": None})
    claim(database)
    (asked,) = trail(database, uid)
    assert (asked.kind, asked.actor) == ("asked", "ana")
    detail = json.loads(asked.detail or "")
    assert {name: detail[name] for name in ASKED if name in detail} == {
        name: value for name, value in ASKED.items() if name not in ("organization_id", "requested_by")
    }
    assert (detail["layout"], detail["start_date"], detail["include"]) == ("default", None, None)
    assert trail(database, unsigned)[0].actor == audit.APPLICATION


def test_a_request_is_asked_once_however_often_it_is_claimed(database: sa.Engine) -> None:
    with database.begin() as connection:
        uid = insert_request(connection, **ASKED)
    for _ in range(2):
        (claimed,) = claim(database)
        assert claimed.attempt == 1
        with database.begin() as connection:
            assert queue.release(connection, claimed.id, attempt=1, run_id=None, charged=False)
    assert [event.kind for event in trail(database, uid)] == ["asked", "requeued", "requeued"]


def kinds(database: sa.Engine, uid: str) -> list[str]:
    return [event.kind for event in trail(database, uid)]


def ask(database: sa.Engine) -> tuple[int, str]:
    with database.begin() as connection:
        uid = insert_request(connection, **ASKED)
        return connection.execute(sa.select(sa.func.max(export_requests.c.id))).scalar_one(), uid


def cancel(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        assert transitions.cancel(connection, request_id, by_requester="As asked.", by_operator="By an operator.")


def test_who_asked_is_told_once_of_what_is_canceled_before_or_after_its_claim(database: sa.Engine) -> None:
    (first, unclaimed), (second, claimed) = ask(database), ask(database)
    cancel(database, first)
    claim(database)
    cancel(database, second)
    for uid in (unclaimed, claimed):
        assert kinds(database, uid) == ["asked", "canceled"]
        assert trail(database, uid)[0].actor == "ana"


@pytest.mark.parametrize("by_hand", [1, 2])
def test_who_asked_is_told_once_of_what_an_operator_launches_by_hand(database: sa.Engine, by_hand: int) -> None:
    request_id, uid = ask(database)
    if by_hand == 2:
        claim(database)
    with database.begin() as connection:
        taken = ownership.begin(connection, request_id, run_id="by hand", lineage=[], attempt=None)
    assert taken.attempt == by_hand
    assert kinds(database, uid) == ["asked", "started"]


def test_a_column_too_long_to_repeat_is_left_out_and_the_request_is_claimed(database: sa.Engine) -> None:
    with database.begin() as connection:
        uid = insert_request(connection, **{**ASKED, "filters": {"id": {"in": ["9" * 99] * 11_000}}})
    assert len(claim(database)) == 1
    detail = json.loads(trail(database, uid)[0].detail or "")
    assert (detail["filters"], detail["columns"]) == (None, ASKED["columns"])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_json_as_deep_as_sqlite_allows_does_not_stop_the_claim(database: sa.Engine) -> None:
    """In the event it is one level deeper than in the row."""
    accepted = []
    for depth in (999, 1000, 1999, 2000):  # the limit is 2000, in newer versions of SQLite 1000
        filters = sa.literal_column(f"'{'[' * depth}{']' * depth}'")
        try:
            with database.begin() as connection:
                accepted.append(insert_request(connection, **{**ASKED, "filters": filters}))
        except sa.exc.IntegrityError:
            break
    assert len(accepted) >= 2
    assert len(claim(database)) == len(accepted)
    kept = [json.loads(trail(database, uid)[0].detail or "")["columns"] for uid in accepted[-1:]]
    assert kept == [ASKED["columns"]]


def test_who_polls_is_said_to_have_been_handed_links_once_a_while(database: sa.Engine) -> None:
    with database.begin() as connection:
        uid = insert_request(connection, **ASKED)
        for actor in ("key 1", "key 1", "key 2", "key 1"):
            audit.record_linked(connection, uid, "acme", 2, actor=actor, within=timedelta(minutes=15))
        connection.execute(export_events.update().values(created_at=utc_now() - timedelta(minutes=16)))
        audit.record_linked(connection, uid, "acme", 2, actor="key 1", within=timedelta(minutes=15))
    found = trail(database, uid)
    assert [(event.kind, event.actor) for event in found] == [
        (EventKind.LINKED, "key 1"),
        (EventKind.LINKED, "key 2"),
        (EventKind.LINKED, "key 1"),
    ]
