"""The mails of recurring exports: a link and a header to unsubscribe in each, and the mail about a pause."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.headerregistry import Address

import pytest

from export_pipeline.failures import Fault
from export_pipeline.messaging.content import FailureMail, failure_message
from export_pipeline.messaging.message import Message
from export_pipeline.messaging.mime import to_mime
from export_pipeline.messaging.sendgrid import SendGridMail
from export_pipeline.recurring.unsubscribe import make_token
from export_pipeline.settings import Settings
from export_pipeline.stages.notify_recipients import unsubscribe_url
from export_pipeline_tests.servers.sendgrid import API_KEY, SendGridSink

KEY = "k" * 32
URL = f"https://exports.example.com/{'deep/' * 30}unsubscribe/{make_token(KEY, 12, 'ana@example.com')}"


def mail(recipient: str = "ana@example.com", url: str | None = URL) -> Message:
    return Message(Address(addr_spec="a@example.org"), recipient, "s", "text\n", "<p>html</p>\n", "id", (), url)


@pytest.mark.parametrize("recipient", ["ana@example.com", "aná@example.com"])
def test_the_way_out_stands_in_the_headers_as_it_is(recipient: str) -> None:
    """RFC 8058; no client reads a URL in encoded words."""
    raw = to_mime(mail(recipient)).as_bytes()
    assert f"\r\nList-Unsubscribe: <{URL}>\r\n".encode() in raw
    assert b"\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in raw
    assert message_from_bytes(raw, policy=policy.default)["List-Unsubscribe"] == f"<{URL}>"
    assert b"List-" not in to_mime(mail(recipient, None)).as_bytes()


def test_sendgrid_is_given_the_way_out(sendgrid_sink: SendGridSink) -> None:
    SendGridMail(API_KEY, sendgrid_sink.url).send(mail())
    (sent,) = sendgrid_sink.accepted
    assert sent["headers"] == {
        "Auto-Submitted": "auto-generated",
        "List-Unsubscribe": f"<{URL}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }


def test_only_recurring_mails_have_a_way_out_and_only_where_it_is_served() -> None:
    served = Settings(public_url="https://exports.example.com/", signing_key=KEY)  # type: ignore[arg-type]
    url = unsubscribe_url(served, 12, "ana@example.com")
    assert url == f"https://exports.example.com/unsubscribe/{make_token(KEY, 12, 'ana@example.com')}"
    assert unsubscribe_url(served, None, "ana@example.com") is None
    for settings in (Settings(public_url="https://e.example"), Settings(signing_key=KEY)):  # type: ignore[arg-type]
        assert unsubscribe_url(settings, 12, "ana@example.com") is None


@pytest.mark.parametrize(
    ("locale", "heading"),
    [
        ("en", "Your recurring export was paused"),
        ("es", "Tu exportación periódica se ha pausado"),
        ("pt", "Sua exportação recorrente foi pausada"),
    ],
)
def test_a_pause_is_told_in_the_owners_language(locale: str, heading: str) -> None:
    told = FailureMail(
        fault=Fault.REQUESTER,
        error_code="permission_denied",
        details="gone.",
        reference="uid",
        asked_at=None,
        time_zone="UTC",
        paused_recurring=12,
    )
    subject, text, html = failure_message(told, locale)
    assert subject == heading
    for body in (text, html):
        assert all(word in body for word in (heading, "12", "permission_denied", "gone."))
