"""The mail of a failed export: to the requester alone, in their language, once."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.tables import export_notifications, export_requests, organization_members, organizations
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.messaging.content import FailureMail, failure_message
from export_pipeline.messaging.failure_mail import mail_failure
from export_pipeline.messaging.message import MailProvider
from export_pipeline.messaging.sendgrid import SendGridMail
from export_pipeline.messaging.sending import MailPostponed
from export_pipeline.messaging.smtp import SmtpMail, SmtpServer
from export_pipeline.messaging.texts import CATALOG
from export_pipeline.requests import transitions
from export_pipeline.requests.audit import operators_message
from export_pipeline.requests.organizations import find_member
from export_pipeline.settings import Settings
from export_pipeline_tests.engine.people import DATASET
from export_pipeline_tests.requests.test_states import ask, begin, claim
from export_pipeline_tests.servers.sendgrid import API_KEY, Answer, SendGridSink
from export_pipeline_tests.servers.smtp import SmtpSink

ON_ONE_DATABASE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
REQUESTER = "requester@example.com"
CODES = {
    Fault.REQUESTER: FailureCode.UNKNOWN_COLUMN,
    Fault.TRANSIENT: FailureCode.STORE_UNAVAILABLE,
    Fault.OURS: FailureCode.INTERNAL_ERROR,
}


def failed(
    database: sa.Engine,
    code: FailureCode = FailureCode.UNKNOWN_COLUMN,
    *,
    member: dict[str, Any] | None = None,
    **asked: Any,
) -> int:
    """A request of a member that failed while running."""
    row = {"dataset": "people", "requested_by": "u1", "recipient_emails": ["ana@example.com"], **asked}
    request_id = ask(database, **row)
    with database.begin() as connection:
        connection.execute(organizations.insert().values(id="acme", name="Acme", time_zone="America/Sao_Paulo"))
        values = {"organization_id": "acme", "member_id": "u1", "email": REQUESTER, **(member or {})}
        connection.execute(organization_members.insert().values(**values))
    claim(database)
    begin(database, request_id)
    with database.begin() as connection:
        assert transitions.fail(
            connection, request_id, ExportFailure(code, "columns: what <b>is</b> wrong."), run_id="run-1"
        )
    return request_id


def tell(database: sa.Engine, provider: MailProvider, request_id: int) -> dict[str, int]:
    settings = Settings(mail_from="Exports <exports@example.org>")
    counts = mail_failure(database, provider, settings, {"people": DATASET}, request_id)
    return {status.value: number for status, number in counts.items()}


def smtp(sink: SmtpSink) -> SmtpMail:
    return SmtpMail(SmtpServer.from_url(sink.url))


def statuses(database: sa.Engine) -> list[tuple[str, str, str]]:
    columns = export_notifications.c
    with database.connect() as connection:
        rows = connection.execute(sa.select(columns.recipient, columns.kind, columns.status))
        return [(row.recipient, row.kind, row.status) for row in rows]


@ON_ONE_DATABASE
@pytest.mark.parametrize(("language", "fault"), [(language, fault) for language in CATALOG for fault in Fault])
def test_the_requester_alone_is_told_in_their_language_and_once(
    database: sa.Engine, smtp_sink: SmtpSink, language: str, fault: Fault
) -> None:
    member, other = {"locale": language}, "pt" if language != "pt" else "es"
    request_id = failed(database, CODES[fault], member=member, email_locale=other, from_email="news@acme.example.com")
    assert tell(database, smtp(smtp_sink), request_id) == {"sent": 1}
    assert tell(database, smtp(smtp_sink), request_id) == {"sent": 1}
    (received,) = smtp_sink.received
    assert (received.sender, received.recipients) == ("exports@example.org", [REQUESTER])
    bodies = [received.message.get_body((kind,)) for kind in ("plain", "html")]
    text, html = (str(body.get_content()) for body in bodies if body is not None)
    for part in (CATALOG[language][f"failed_heading_{fault}"], CODES[fault].value, "Acme", "People", "UTC-03:00"):
        assert part in text
        assert part in html
    # What a fault of ours or a store that was away said is for operators.
    assert ("columns: what <b>is</b> wrong." in text.splitlines()) == (fault is Fault.REQUESTER)
    assert ("what &lt;b&gt;is&lt;/b&gt; wrong." in html) == (fault is Fault.REQUESTER)
    with database.connect() as connection:
        uid, message = connection.execute(sa.select(export_requests.c.uid, export_requests.c.message)).one()
        cause = operators_message(connection, uid)
    assert ("what <b>is</b> wrong" in message) == (cause is None) == (fault is Fault.REQUESTER)
    assert uid in text
    assert b"ana@example.com" not in received.content
    assert statuses(database) == [(REQUESTER, "failed", "sent")]


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    ("locale", "email_locale", "language"), [(None, "es", "es"), (None, None, "en"), ("fr", "es", "en")]
)
def test_the_requests_language_is_for_members_without_one(
    database: sa.Engine, smtp_sink: SmtpSink, locale: str | None, email_locale: str | None, language: str
) -> None:
    request_id = failed(database, member={"locale": locale}, email_locale=email_locale)
    tell(database, smtp(smtp_sink), request_id)
    assert smtp_sink.received[0].message["Subject"].startswith(CATALOG[language]["failed_heading_requester"])


def test_an_unknown_dataset_has_no_title(database: sa.Engine, smtp_sink: SmtpSink) -> None:
    tell(database, smtp(smtp_sink), failed(database, dataset="no <such> thing"))
    assert smtp_sink.received[0].message["Subject"] == CATALOG["en"]["failed_heading_requester"]


@pytest.mark.parametrize("change", [{"status": "running"}, {"status": "completed"}, {"status": "canceled"}])
def test_nothing_is_sent_of_a_request_that_is_no_longer_failed(
    database: sa.Engine, smtp_sink: SmtpSink, change: dict[str, str]
) -> None:
    request_id = failed(database)
    with database.begin() as connection:
        connection.execute(export_requests.update().values(**change))
    assert tell(database, smtp(smtp_sink), request_id) == {}
    assert smtp_sink.received == []
    assert statuses(database) == [(REQUESTER, "failed", "pending")]


@pytest.mark.parametrize("code", [code for code in FailureCode if code.fault is not Fault.REQUESTER])
def test_no_failure_that_is_not_the_requesters_shows_them_its_message(code: FailureCode) -> None:
    said = ExportFailure(code, "S3 refused: check EXPORT_STORE_URL.").requester_message
    assert "EXPORT_" not in said
    assert "request" in said


def test_a_recurring_export_that_is_paused_over_a_fault_of_ours_names_no_details() -> None:
    mail = FailureMail(
        fault=Fault.OURS,
        error_code="store_refused",
        details=None,
        reference="x",
        asked_at=None,
        time_zone="UTC",
        paused_recurring=7,
    )
    for language, texts in CATALOG.items():
        _, text, _ = failure_message(mail, language)
        assert texts["paused_intro_ours"] in text
        assert texts["details"] not in text


@pytest.mark.parametrize("asked", [{"notify_email": False}, {"requested_by": None}, {"requested_by": "stranger"}])
def test_nobody_is_told_where_nobody_is_to_be(database: sa.Engine, smtp_sink: SmtpSink, asked: dict[str, Any]) -> None:
    assert tell(database, smtp(smtp_sink), failed(database, **asked)) == {}
    assert smtp_sink.received == []


def test_what_was_not_accepted_for_now_stays_pending_and_is_sent_later(
    database: sa.Engine, sendgrid_sink: SendGridSink
) -> None:
    request_id = failed(database)
    provider = SendGridMail(API_KEY, sendgrid_sink.url, timeout=5)
    sendgrid_sink.next_answers(Answer(429, {"Retry-After": "9"}))
    with pytest.raises(MailPostponed) as postponed:
        tell(database, provider, request_id)
    assert postponed.value.retry_after == 9
    assert "@" not in str(postponed.value)
    assert statuses(database) == [(REQUESTER, "failed", "pending")]
    assert tell(database, provider, request_id) == {"sent": 1}
    assert sendgrid_sink.recipients == [REQUESTER]


def test_a_mail_whose_answer_was_lost_is_not_sent_again(database: sa.Engine, sendgrid_sink: SendGridSink) -> None:
    request_id = failed(database)
    sendgrid_sink.next_answers(Answer(kind="take_then_reset"))
    for _ in range(2):
        assert tell(database, SendGridMail(API_KEY, sendgrid_sink.url, timeout=5), request_id) == {"unknown": 1}
    assert sendgrid_sink.recipients == [REQUESTER]


@ON_ONE_DATABASE
def test_a_member_of_a_view_whose_address_is_no_text_is_not_mailed_and_the_request_fails_all_the_same(
    database: sa.Engine,
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE organization_members")
        connection.exec_driver_sql(
            "CREATE VIEW organization_members AS SELECT 'acme' AS organization_id, 'u-17' AS member_id, 5 AS email, "
            "7 AS locale, NULL AS permissions"
        )
    request_id = ask(database, requested_by="u-17")
    claim(database)
    begin(database, request_id)
    with database.begin() as connection:
        assert transitions.fail(connection, request_id, transitions.INTERNAL, run_id="run-1")
        member = find_member(connection, "acme", "u-17")
    assert statuses(database) == []
    assert member is not None
    assert (member.email, member.locale) == ("5", "7")


def test_a_row_that_cannot_be_read_whole_is_told_of_all_the_same(database: sa.Engine, smtp_sink: SmtpSink) -> None:
    request_id = failed(database, FailureCode.INVALID_REQUEST)
    with database.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE export_requests SET recipient_emails = '7', email_locale = CAST(x'ff' AS TEXT), error_code = 'x'"
        )
    assert tell(database, smtp(smtp_sink), request_id) == {"sent": 1}
    # A code that this version does not know is ours.
    assert smtp_sink.received[0].message["Subject"].startswith(CATALOG["en"]["failed_heading_ours"])
