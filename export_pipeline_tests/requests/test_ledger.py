"""The ledger: nobody is mailed twice, and nobody's mail is forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import NotificationKind, NotificationStatus, Stage
from export_pipeline.database.tables import organization_members, organizations
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import billing, notifications, queue, transitions
from export_pipeline_tests.requests.charges import charges
from export_pipeline_tests.requests.test_states import FAILURE, ask, begin, claim, complete, enter, update


@pytest.fixture
def request_id(database: sa.Engine) -> int:
    request_id = ask(database)
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, ["ana@example.com", "bob@example.com"])
    return request_id


def test_enlisting_again_keeps_what_is_known(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = notifications.pending(connection, request_id)
        notifications.record_result(connection, first, NotificationStatus.SENT)
        notifications.enqueue(connection, request_id, ["ana@example.com", "bob@example.com", "eve@example.com"])
        assert [address for _, address in notifications.pending(connection, request_id)] == [
            "bob@example.com",
            "eve@example.com",
        ]


def test_one_of_two_processes_sends(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = notifications.pending(connection, request_id)
        assert notifications.start_sending(connection, first)
        assert not notifications.start_sending(connection, first)


def test_what_a_dead_process_was_sending_is_unknown_and_left(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = notifications.pending(connection, request_id)
        notifications.start_sending(connection, first)
        assert notifications.close_interrupted(connection, request_id) == 1
        assert [address for _, address in notifications.pending(connection, request_id)] == ["bob@example.com"]
        assert notifications.counts(connection, request_id) == {
            NotificationStatus.UNKNOWN: 1,
            NotificationStatus.PENDING: 1,
        }


def test_the_two_kinds_of_mail_are_counted_apart(database: sa.Engine, request_id: int) -> None:
    failed = NotificationKind.FAILED
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, ["ana@example.com"], failed)
        notifications.enqueue(connection, request_id, ["ana@example.com"], failed)
        ((told, address),) = notifications.pending(connection, request_id, failed)
        assert address == "ana@example.com"
        assert notifications.start_sending(connection, told)
        assert notifications.close_interrupted(connection, request_id) == 0
        assert notifications.close_interrupted(connection, request_id, failed) == 1
        assert notifications.counts(connection, request_id) == {NotificationStatus.PENDING: 2}
        assert notifications.counts(connection, request_id, failed) == {NotificationStatus.UNKNOWN: 1}


def member(database: sa.Engine, member_id: str, organization: str = "acme", **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(
            organization_members.insert().values(organization_id=organization, member_id=member_id, **values)
        )


def failed(database: sa.Engine, **asked: Any) -> int:
    request_id = ask(database, **asked)
    begin(database, request_id, attempt=None)
    with database.begin() as connection:
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    return request_id


def told(database: sa.Engine, request_id: int) -> list[str]:
    with database.connect() as connection:
        assert notifications.pending(connection, request_id) == []
        return [address for _, address in notifications.pending(connection, request_id, NotificationKind.FAILED)]


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


WITHOUT_MEMBERS = [
    (
        {"requested_by": "Ana@Example.com", "recipient_emails": ["bob@example.com", " ana@example.com"]},
        ["Ana@example.com"],
    ),
    ({"requested_by": "ana@example.com", "recipient_emails": ["bob@example.com"]}, []),
    ({"requested_by": "u1", "recipient_emails": ["ana@example.com"]}, []),
    ({"recipient_emails": ["ana@example.com"]}, []),
    ({"requested_by": "ana@example.com", "recipient_emails": ["ana@example.com"], "notify_email": False}, []),
    ({"requested_by": "ana@example.com", "recipient_emails": ["ana@example.com"], "organization": "rival"}, []),
]


def test_who_keeps_no_members_has_failures_mailed_to_the_requester_whose_own_address_the_request_mails(
    database: sa.Engine,
) -> None:
    member(database, "somebody", "rival", email="x@rival.com")  # that organization says who its members are
    for asked, addresses in WITHOUT_MEMBERS:
        assert told(database, failed(database, **asked)) == addresses, asked


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "stored",
    ["'{\"ana@example.com\": 1}'", "'[7, null]'", "CAST(x'5b22ff225d' AS TEXT)", "'" + "[" * 999 + "]" * 999 + "'"],
)
def test_recipients_that_cannot_be_read_keep_no_request_from_failing(database: sa.Engine, stored: str) -> None:
    request_id = ask(database, requested_by="ana@example.com")
    begin(database, request_id, attempt=None)
    with database.begin() as connection:
        connection.exec_driver_sql(f"UPDATE export_requests SET recipient_emails = {stored}")
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    assert told(database, request_id) == []


def balance(database: sa.Engine) -> tuple[int, dict[str, int]]:
    with database.connect() as connection:
        left = connection.execute(sa.select(organizations.c.email_balance)).scalar_one()
        charged = charges(connection, organization_id="acme")
    return left, {status.value: number for status, number in charged.items() if number}


def settled(database: sa.Engine, request_id: int, **ends: NotificationStatus) -> None:
    """Each recipient's mail is sent and ends so."""
    with database.begin() as connection:
        for notification_id, address in notifications.pending(connection, request_id):
            assert notifications.start_sending(connection, notification_id)
            notifications.record_result(connection, notification_id, ends[address.partition("@")[0]], "smtp 550 5.7.1")


SENT, REFUSED, UNKNOWN, PENDING = (NotificationStatus(name) for name in ("sent", "refused", "unknown", "pending"))


def test_what_is_put_back_is_sent_again_and_paid_once(database: sa.Engine) -> None:
    people = [f"{name}@example.com" for name in ("ana", "bob", "eve")]
    with database.begin() as connection:
        connection.execute(organizations.insert().values(id="acme", email_balance=5))
    request_id = ask(database, recipient_emails=people)
    with database.begin() as connection:
        uid = connection.execute(sa.text("SELECT uid FROM export_requests")).scalar_one()
        notifications.enqueue(connection, request_id, people)
        billing.reserve(connection, "acme", str(uid), people)
    settled(database, request_id, ana=SENT, bob=REFUSED, eve=UNKNOWN)
    assert balance(database) == (3, {"charged": 2, "released": 1})

    def put_back(**options: Any) -> dict[NotificationStatus, int]:
        with database.begin() as connection:
            return notifications.put_back(connection, request_id, kind=NotificationKind.READY, **options)

    with pytest.raises(LookupError):
        put_back(only=["bob@example.com", "mallory@example.com"])
    assert put_back(only=["ana@example.com"]) == {SENT: 1}
    assert put_back(only=["eve@example.com"]) == {UNKNOWN: 1}
    assert put_back(only=[" BOB@example.com"]) == {PENDING: 1}
    assert balance(database) == (2, {"charged": 2, "reserved": 1})
    settled(database, request_id, bob=REFUSED)
    assert balance(database) == (3, {"charged": 2, "released": 1})
    assert put_back(unknown=True) == {SENT: 1, PENDING: 2}
    assert put_back(unknown=True) == {SENT: 1, PENDING: 2}
    settled(database, request_id, bob=SENT, eve=SENT)
    assert balance(database) == (2, {"charged": 3})
    assert put_back(unknown=True) == {SENT: 3}


def test_what_cannot_be_paid_is_not_put_back(database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.execute(organizations.insert().values(id="acme", email_balance=1))
    request_id = ask(database)
    with database.begin() as connection:
        uid = connection.execute(sa.text("SELECT uid FROM export_requests")).scalar_one()
        notifications.enqueue(connection, request_id, ["ana@example.com"])
        billing.reserve(connection, "acme", str(uid), ["ana@example.com"])
    settled(database, request_id, ana=REFUSED)
    with database.begin() as connection:
        connection.execute(organizations.update().values(email_balance=0))
    with pytest.raises(ExportFailure) as refused, database.begin() as connection:
        notifications.put_back(connection, request_id, kind=NotificationKind.READY)
    assert refused.value.code is FailureCode.INSUFFICIENT_BALANCE
    with database.connect() as connection:
        assert notifications.counts(connection, request_id) == {REFUSED: 1}


def test_mails_that_are_put_back_are_found_however_long_ago_the_request_ended(database: sa.Engine) -> None:
    request_id = ask(database)
    begin(database, request_id, attempt=None)
    complete(database, request_id)
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, ["ana@example.com"])
    settled(database, request_id, ana=REFUSED)
    days_ago = utc_now() - timedelta(days=3)
    update(database, request_id, heartbeat_at=days_ago, completed_at=days_ago)
    assert unnotified(database) == []
    before = utc_now().timestamp()
    with database.begin() as connection:
        notifications.put_back(connection, request_id, kind=NotificationKind.READY)
    (found,) = unnotified(database)
    assert found.id == request_id
    assert before - 1 <= found.owes_since <= utc_now().timestamp() + 1


def test_reasons_are_counted_without_any_address(database: sa.Engine, request_id: int) -> None:
    settled(database, request_id, ana=REFUSED, bob=REFUSED)
    with database.connect() as connection:
        assert notifications.reasons(connection, request_id) == [("ready", "refused", "smtp 550 5.7.1", 2)]


def test_a_request_that_is_given_up_is_told_and_a_canceled_one_is_not(database: sa.Engine) -> None:
    member(database, "ana", email="ana@example.com")
    request_id, canceled = (ask(database, requested_by="ana") for _ in range(2))
    claim(database)
    with database.begin() as connection:
        assert transitions.give_up(connection, request_id, FAILURE, attempt=1, run_id=None)
        assert transitions.cancel(connection, canceled, by_requester="r", by_operator="o")
    assert told(database, request_id) == ["ana@example.com"]
    assert told(database, canceled) == []


def test_a_second_failure_of_the_same_request_is_told_once(database: sa.Engine) -> None:
    member(database, "ana", email="ana@example.com")
    request_id = failed(database, requested_by="ana")
    with database.begin() as connection:
        ((first, _),) = notifications.pending(connection, request_id, NotificationKind.FAILED)
        notifications.record_result(connection, first, NotificationStatus.SENT)
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    with database.begin() as connection:
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-2")
    assert told(database, request_id) == []


def unnotified(database: sa.Engine) -> list[queue.StaleRequest]:
    with database.connect() as connection:
        return queue.unnotified(connection, quiet_seconds=10, heartbeat_timeout_seconds=120, within=timedelta(hours=1))


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
        ((sent, _),) = notifications.pending(connection, told_already, NotificationKind.FAILED)
        notifications.record_result(connection, sent, NotificationStatus.SENT)
    enter(database, revived, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    complete(database, revived, run_id="run-2")
    update(database, revived, heartbeat_at=long_ago)
    assert [(one.id, one.run_id, one.timed_out) for one in unnotified(database)] == [
        (heard, "run-1", False),
        (never_began, None, True),
    ]
    with database.begin() as connection:
        notifications.enqueue(connection, revived, ["bob@example.com"])
    assert [one.id for one in unnotified(database)] == [heard, revived, never_began]
    update(database, heard, completed_at=utc_now() - timedelta(hours=2))
    assert [one.id for one in unnotified(database)] == [revived, never_began]
