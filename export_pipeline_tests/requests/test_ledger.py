"""The ledger: nobody is mailed twice, and nobody's mail is forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.requests import claims, ledger, states
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.enums import NotificationKind, NotificationStatus, Stage
from export_pipeline.requests.tables import organization_members, organizations
from export_pipeline_tests.requests.test_states import FAILURE, ask, begin, claim, complete, enter, update


@pytest.fixture
def request_id(database: sa.Engine) -> int:
    request_id = ask(database)
    with database.begin() as connection:
        ledger.enlist(connection, request_id, ["ana@example.com", "bob@example.com"])
    return request_id


def test_enlisting_again_keeps_what_is_known(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        ledger.settle(connection, first, NotificationStatus.SENT)
        ledger.enlist(connection, request_id, ["ana@example.com", "bob@example.com", "eve@example.com"])
        assert [address for _, address in ledger.pending(connection, request_id)] == [
            "bob@example.com",
            "eve@example.com",
        ]


def test_one_of_two_processes_sends(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        assert ledger.start_sending(connection, first)
        assert not ledger.start_sending(connection, first)


def test_what_a_dead_process_was_sending_is_unknown_and_left(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        ledger.start_sending(connection, first)
        assert ledger.close_interrupted(connection, request_id) == 1
        assert [address for _, address in ledger.pending(connection, request_id)] == ["bob@example.com"]
        assert ledger.counts(connection, request_id) == {NotificationStatus.UNKNOWN: 1, NotificationStatus.PENDING: 1}


def test_the_two_kinds_of_mail_are_counted_apart(database: sa.Engine, request_id: int) -> None:
    failed = NotificationKind.FAILED
    with database.begin() as connection:
        ledger.enlist(connection, request_id, ["ana@example.com"], failed)
        ledger.enlist(connection, request_id, ["ana@example.com"], failed)
        ((told, address),) = ledger.pending(connection, request_id, failed)
        assert address == "ana@example.com"
        assert ledger.start_sending(connection, told)
        assert ledger.close_interrupted(connection, request_id) == 0
        assert ledger.close_interrupted(connection, request_id, failed) == 1
        assert ledger.counts(connection, request_id) == {NotificationStatus.PENDING: 2}
        assert ledger.counts(connection, request_id, failed) == {NotificationStatus.UNKNOWN: 1}


def member(database: sa.Engine, member_id: str, organization: str = "acme", **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(
            organization_members.insert().values(organization_id=organization, member_id=member_id, **values)
        )


def failed(database: sa.Engine, **asked: Any) -> int:
    request_id = ask(database, **asked)
    begin(database, request_id, attempt=None)
    with database.begin() as connection:
        assert states.fail(connection, request_id, FAILURE, run_id="run-1")
    return request_id


def told(database: sa.Engine, request_id: int) -> list[str]:
    with database.connect() as connection:
        assert ledger.pending(connection, request_id) == []
        return [address for _, address in ledger.pending(connection, request_id, NotificationKind.FAILED)]


FAILURES_TOLD = [
    ({"requested_by": "ana"}, ["ana@example.com"]),
    ({"requested_by": "ana", "recipient_emails": ["bob@example.com"]}, ["ana@example.com"]),
    ({"requested_by": "ana", "recipient_emails": ["ana@example.com"]}, ["ana@example.com"]),
    ({"requested_by": "ana", "notify_email": False}, []),
    ({"requested_by": "silent"}, []),
    ({"requested_by": "wrong"}, []),
    ({"requested_by": "stranger"}, []),
    ({"requested_by": "theirs"}, []),
    ({"recipient_emails": ["bob@example.com"]}, []),
    ({"requested_by": "off", "organization": "no-mail"}, []),
]


def test_a_failure_is_told_to_the_requester_alone(database: sa.Engine) -> None:
    member(database, "ana", email=" ana@Example.com ")
    member(database, "silent")
    member(database, "wrong", email="nobody")
    member(database, "theirs", "rival", email="x@rival.com")
    member(database, "off", "no-mail", email="off@example.com")
    with database.begin() as connection:
        connection.execute(organizations.insert().values(id="no-mail", email_enabled=False))
    for asked, addresses in FAILURES_TOLD:
        assert told(database, failed(database, **asked)) == addresses, asked


def test_a_request_that_is_given_up_is_told_and_a_canceled_one_is_not(database: sa.Engine) -> None:
    member(database, "ana", email="ana@example.com")
    request_id, canceled = (ask(database, requested_by="ana") for _ in range(2))
    claim(database)
    with database.begin() as connection:
        assert states.give_up(connection, request_id, FAILURE, attempt=1, run_id=None)
        assert states.cancel(connection, canceled, by_requester="r", by_operator="o")
    assert told(database, request_id) == ["ana@example.com"]
    assert told(database, canceled) == []


def test_a_second_failure_of_the_same_request_is_told_once(database: sa.Engine) -> None:
    member(database, "ana", email="ana@example.com")
    request_id = failed(database, requested_by="ana")
    with database.begin() as connection:
        ((first, _),) = ledger.pending(connection, request_id, NotificationKind.FAILED)
        ledger.settle(connection, first, NotificationStatus.SENT)
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    with database.begin() as connection:
        assert states.fail(connection, request_id, FAILURE, run_id="run-2")
    assert told(database, request_id) == []


def unnotified(database: sa.Engine) -> list[claims.Orphan]:
    with database.connect() as connection:
        return claims.unnotified(connection, quiet_seconds=10, heartbeat_timeout_seconds=120, within=timedelta(hours=1))


def test_requests_that_still_owe_a_mail_are_found_once_they_are_quiet(database: sa.Engine) -> None:
    member(database, "ana", email="ana@example.com")
    heard, told_already, revived, never_began = (failed(database, requested_by="ana") for _ in range(4))
    nobody = failed(database)
    assert unnotified(database) == []
    long_ago = utc_now() - timedelta(seconds=30)
    for request_id in (heard, told_already, revived, nobody):
        update(database, request_id, heartbeat_at=long_ago, completed_at=long_ago)
    update(database, never_began, heartbeat_at=None, completed_at=utc_now() - timedelta(seconds=150), run_id=None)
    with database.begin() as connection:
        ((sent, _),) = ledger.pending(connection, told_already, NotificationKind.FAILED)
        ledger.settle(connection, sent, NotificationStatus.SENT)
    enter(database, revived, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    complete(database, revived, run_id="run-2")
    update(database, revived, heartbeat_at=long_ago)
    assert [(one.id, one.run_id, one.timed_out) for one in unnotified(database)] == [
        (heard, "run-1", False),
        (never_began, None, True),
    ]
    with database.begin() as connection:
        ledger.enlist(connection, revived, ["bob@example.com"])
    assert [one.id for one in unnotified(database)] == [heard, revived, never_began]
    update(database, heard, completed_at=utc_now() - timedelta(hours=2))
    assert [one.id for one in unnotified(database)] == [revived, never_began]
