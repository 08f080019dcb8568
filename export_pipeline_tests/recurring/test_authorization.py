"""Every fire time checks again what the setup of a recurring export checked; a refusal pauses it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import NotificationKind
from export_pipeline.database.tables import organization_email_domains, organization_email_senders, organization_members
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.recurring import models, unsubscribe
from export_pipeline.requests import notifications
from export_pipeline_tests.recurring.rows import REFUSED, TEMPLATE, add, cancel, complete, fail, look, made, row

SENDER = "11111111-1111-4111-8111-111111111111"


def member(connection: sa.Connection, member_id: str, email: str | None, *permissions: str) -> None:
    values = {"organization_id": "acme", "member_id": member_id, "email": email, "permissions": list(permissions)}
    connection.execute(organization_members.insert().values(values))


@pytest.fixture
def acme(database: sa.Engine) -> sa.Engine:
    """An organization that says who belongs to it: two members, a verified domain and one that is not, a sender."""
    with database.begin() as connection:
        member(connection, "owner", "Owner@home.example", "people:export")
        member(connection, "ana", "ana@example.com")
        for domain, verified in (("acme.example", utc_now()), ("pending.example", None), ("straße.example", utc_now())):
            connection.execute(
                organization_email_domains.insert().values(organization_id="acme", domain=domain, verified_at=verified)
            )
        connection.execute(
            organization_email_senders.insert().values(id=SENDER, organization_id="acme", email="a@acme.example")
        )
    return database


def told(database: sa.Engine, request_id: int) -> list[str]:
    """Who is to be mailed of the failure."""
    with database.connect() as connection:
        return [address for _, address in notifications.pending(connection, request_id, kind=NotificationKind.FAILED)]


ALLOWED: list[dict[str, Any]] = [
    {},
    {"recipient_emails": ["ANA@example.com", "anybody@ACME.example", "x@xn--strae-oqa.example", "owner@home.example"]},
    {"from_email": "exports@acme.example"},
    {"from_sender_id": SENDER},
    {"recipient_emails": ["anybody@elsewhere.example"], "notify_email": False},
    {"recipient_emails": []},
]


@pytest.mark.parametrize("asked", ALLOWED, ids=str)
def test_what_is_still_allowed_is_asked_for(acme: sa.Engine, asked: dict[str, Any]) -> None:
    recurring_id = add(acme, owner="owner", request=TEMPLATE | asked)
    look(acme, "2 10:00")
    assert [(request.status, request.error_code) for request in made(acme)] == [("queued", None)]
    assert row(acme, recurring_id).paused_at is None


GONE = sa.delete(organization_members).where(organization_members.c.member_id == "owner")
DEMOTED = organization_members.update().where(organization_members.c.member_id == "owner").values(permissions=[])
UNVERIFIED = organization_email_domains.update().values(verified_at=None)
REMOVED = sa.delete(organization_email_domains).where(organization_email_domains.c.domain == "acme.example")
LEFT = sa.delete(organization_members).where(organization_members.c.member_id == "ana")
SENDERS = sa.delete(organization_email_senders)
FROM = {"from_email": "exports@acme.example"}
OWNER = ["Owner@home.example"]
LOST = [
    (GONE, {}, FailureCode.PERMISSION_DENIED, []),
    (DEMOTED, {}, FailureCode.PERMISSION_DENIED, OWNER),
    (UNVERIFIED, FROM, FailureCode.SENDER_DOMAIN_UNVERIFIED, OWNER),
    (REMOVED, FROM, FailureCode.SENDER_DOMAIN_UNKNOWN, OWNER),
    (SENDERS, {"from_sender_id": SENDER}, FailureCode.SENDER_UNKNOWN, OWNER),
    (LEFT, {}, FailureCode.RECIPIENT_OUTSIDE, OWNER),
]


@pytest.mark.parametrize(
    ("change", "asked", "code", "mailed"), LOST, ids=[f"{n}-{case[2]}" for n, case in enumerate(LOST)]
)
def test_what_is_no_longer_allowed_pauses_with_a_reason_and_the_owner_is_told_once(
    acme: sa.Engine, change: Any, asked: dict[str, Any], code: FailureCode, mailed: list[str]
) -> None:
    recurring_id = add(acme, owner="owner", request=TEMPLATE | asked)
    look(acme, "2 10:00")
    complete(acme, made(acme)[0].id)
    with acme.begin() as connection:
        connection.execute(change)
    look(acme, "2 11:00")
    look(acme, "2 12:00")
    _, refused = made(acme)
    assert (refused.status, refused.error_code) == ("failed", code)
    found = row(acme, recurring_id)
    assert found.pause_reason == f"{code}: {refused.message}"
    assert (found.paused_at is not None, found.paused_over) == (True, refused.id)
    assert told(acme, refused.id) == mailed


def test_a_domain_that_is_not_verified_has_no_recipients(acme: sa.Engine) -> None:
    recurring_id = add(acme, owner="owner", request=TEMPLATE | {"recipient_emails": ["x@pending.example"]})
    look(acme, "2 10:00")
    assert str(row(acme, recurring_id).pause_reason).startswith("recipient_outside: recipient_emails[0]: ")


def test_an_organization_that_does_not_say_who_belongs_to_it_answers_for_its_recipients(database: sa.Engine) -> None:
    add(database, owner="nobody-we-know", request=TEMPLATE | {"recipient_emails": ["x@anywhere.example"]})
    look(database, "2 10:00")
    assert [request.status for request in made(database)] == ["queued"]


def test_after_failures_in_a_row_it_is_paused_and_the_last_ones_mail_says_so(acme: sa.Engine) -> None:
    recurring_id = add(acme, owner="owner", max_failures=3, overlap_policy="queue")
    endings = [fail, fail, complete, fail, cancel, fail, fail]
    for hour, end in enumerate(endings, 10):
        assert row(acme, recurring_id).paused_at is None
        (uid,) = look(acme, f"2 {hour}:00").made
        end(acme, next(request.id for request in made(acme) if request.uid == uid))
    found = row(acme, recurring_id)
    last = made(acme)[-1]
    assert (found.failures_in_a_row, found.paused_over) == (3, last.id)
    beginning, _, said = str(found.pause_reason).partition(": The ")
    assert beginning == "3 failures in a row, the last one: store_refused"
    assert said.startswith("export failed on our side.")  # what the store said is for the operators
    assert told(acme, last.id) == ["Owner@home.example"]
    assert look(acme, "2 20:00").made == []
    with acme.begin() as connection:
        models.resume(connection, recurring_id)
    look(acme, "2 20:00")
    fail(acme, made(acme)[-1].id)
    assert row(acme, recurring_id).paused_at is None


def test_a_permission_that_is_lost_between_fire_time_and_run_pauses_as_well(acme: sa.Engine) -> None:
    recurring_id = add(acme, owner="owner")
    look(acme, "2 10:00")
    fail(acme, made(acme)[0].id, ExportFailure(FailureCode.PERMISSION_DENIED, "requested_by: gone."))
    assert row(acme, recurring_id).pause_reason == "permission_denied: requested_by: gone."


def test_a_pause_by_hand_keeps_its_reason_whatever_fails_later(acme: sa.Engine) -> None:
    recurring_id = add(acme, owner="owner", max_failures=1)
    look(acme, "2 10:00")
    with acme.begin() as connection:
        models.pause(connection, recurring_id, "migration")
    fail(acme, made(acme)[0].id, REFUSED)
    found = row(acme, recurring_id)
    assert (found.pause_reason, found.paused_over, found.failures_in_a_row) == ("migration", None, 1)


KEY = "k" * 32


def test_who_has_left_is_no_longer_a_recipient(database: sa.Engine) -> None:
    recurring_id = add(database, request=TEMPLATE | {"recipient_emails": ["Ana@Example.com", "bo@xn--strae-oqa.de"]})
    other = add(database)
    token = unsubscribe.make_token(KEY, recurring_id, "bo@straße.de")
    with database.begin() as connection:
        assert unsubscribe.leave(connection, KEY, token)
        assert unsubscribe.leave(connection, KEY, token)
    look(database, "2 10:00")
    told = {request.recurring_export_id: request.recipient_emails for request in made(database)}
    assert told == {recurring_id: ["Ana@Example.com"], other: ["ana@example.com"]}
    for request in made(database):
        complete(database, request.id)
    with database.begin() as connection:  # by a row of the application, in another case
        connection.exec_driver_sql(
            f"INSERT INTO export_unsubscriptions VALUES ({recurring_id}, 'ANA@example.com', CURRENT_TIMESTAMP)"
        )
    look(database, "2 11:00")
    last = {request.recurring_export_id: request for request in made(database)}
    assert (last[recurring_id].error_code, last[other].status) == ("no_recipient_left", "queued")
    assert str(row(database, recurring_id).pause_reason).startswith("no_recipient_left")
