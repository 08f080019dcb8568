"""Every way a mail can end, with real connections: accepted, certainly not sent, perhaps sent."""

from __future__ import annotations

import inspect
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.utils import formatdate, getaddresses
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipeline.messaging import smtp
from export_pipeline.messaging.message import (
    Attachment,
    Blame,
    MailNotAccepted,
    MailOutcomeUnknown,
    MailProvider,
    Message,
    parse_sender,
)
from export_pipeline.messaging.mime import one_line, to_mime
from export_pipeline.messaging.providers import Outbox, default_sender, open_mail_provider
from export_pipeline.messaging.sendgrid import SendGridMail
from export_pipeline.messaging.smtp import SmtpMail, SmtpServer
from export_pipeline.settings import Settings, SettingsError
from export_pipeline_tests.servers.sendgrid import API_KEY, Answer, SendGridSink
from export_pipeline_tests.servers.smtp import Drop, SmtpSink, self_signed, serve_smtp

RECIPIENT = "ana@example.com"
REFUSALS = {
    "550 5.1.1 <ana@example.com>: Recipient address rejected: User unknown": Blame.RECIPIENT,
    "550 5.1.2 domain not found": Blame.RECIPIENT,
    "556 5.1.10 null MX": Blame.RECIPIENT,
    "552 5.2.2 mailbox full": Blame.RECIPIENT,
    "550 no such user": Blame.RECIPIENT,
    "550 <relay@example.com>: unknown user": Blame.RECIPIENT,
    "550 5.5.0 Requested action not taken: mailbox unavailable": Blame.RECIPIENT,
    "550 Requested action not taken: mailbox unavailable": Blame.RECIPIENT,
    "553 5.1.7 bad sender": Blame.INSTALLATION,
    "550 5.1.8 sender's domain does not exist": Blame.INSTALLATION,
    "554 5.7.1 <ana@example.com>: Relay access denied": Blame.INSTALLATION,
    "550 5.7.26 unauthenticated mail is prohibited (DMARC)": Blame.INSTALLATION,
    "550-5.7.1 [192.0.2.1] is on a block list\r\n550 5.7.1 see https://example.com": Blame.INSTALLATION,
    "530 5.7.0 Must issue a STARTTLS command first": Blame.INSTALLATION,
    "552 5.3.4 message too big": Blame.INSTALLATION,
    "550 5.4.5 Daily SMTP relay limit exceeded": Blame.INSTALLATION,
    "550 relay denied": Blame.INSTALLATION,
    "550 Sender address rejected": Blame.INSTALLATION,
    "554 Service unavailable; client host blocked using a list": Blame.INSTALLATION,
    "550 Message rejected due to DMARC": Blame.INSTALLATION,
    "550 5.4.1 Recipient address rejected: Access denied": Blame.UNCLEAR,
    "550 no": Blame.UNCLEAR,
    "554 5.0.0 transaction failed": Blame.UNCLEAR,
    "451 later": Blame.UNCLEAR,
    "450 4.7.1 greylisted: relay": Blame.UNCLEAR,
}
MESSAGE = Message(
    sender=Address("Exportações", addr_spec="exports@example.org"),
    recipient=RECIPIENT,
    subject="Sua exportação está pronta",
    text="Olá\n.\n.dot\nfim\n",
    html="<p>Olá</p>\n",
    message_id="uid.ana",
)


def not_accepted(provider: MailProvider, message: Message = MESSAGE) -> MailNotAccepted:
    with pytest.raises(MailNotAccepted) as caught:
        provider.send(message)
    assert_tells_nothing(caught.value)
    return caught.value


def unknown(provider: MailProvider, message: Message = MESSAGE) -> MailOutcomeUnknown:
    with pytest.raises(MailOutcomeUnknown) as caught:
        provider.send(message)
    assert_tells_nothing(caught.value)
    return caught.value


def assert_tells_nothing(error: Exception) -> None:
    """No address, key or body in the text, and no cause that a traceback would print."""
    assert error.__suppress_context__ or error.__context__ is None
    assert error.__cause__ is None
    assert not any(secret in str(error) for secret in ("@", API_KEY, "example", "Olá"))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@contextmanager
def slow_server(*, pause: float, verdict_after: float) -> Iterator[int]:
    """An SMTP server that reads 64 kB, waits, reads on, and lets the client wait for its verdict."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 here\r\n")
            for answer in (b"250 here", b"250 sender", b"250 recipient", b"354 go on"):
                lines.readline()
                connection.sendall(answer + b"\r\n")
            end = b""
            while not end.endswith(b"\r\n.\r\n"):
                read = lines.read1(65_536)
                if not read:
                    return
                end = (end + read)[-5:]
                if ended.wait(pause):
                    return
            ended.wait(verdict_after)
            connection.sendall(b"250 taken\r\n")

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


class TestSendGrid:
    @pytest.fixture
    def provider(self, sendgrid_sink: SendGridSink) -> SendGridMail:
        return SendGridMail(API_KEY, sendgrid_sink.url, timeout=5)

    def test_accepted(self, provider: SendGridMail, sendgrid_sink: SendGridSink) -> None:
        provider.send(replace(MESSAGE, attachments=(Attachment("a.csv", "text/csv; charset=utf-8", b"x"),)))
        (mail,) = sendgrid_sink.accepted
        assert mail["personalizations"][0]["to"] == [{"email": RECIPIENT}]
        assert mail["from"] == {"email": "exports@example.org", "name": "Exportações"}
        assert mail["subject"] == MESSAGE.subject
        assert [part["type"] for part in mail["content"]] == ["text/plain", "text/html"]
        assert mail["custom_args"] == {"message_id": "uid.ana"}
        assert mail["headers"] == {"Auto-Submitted": "auto-generated"}
        assert mail["tracking_settings"]["click_tracking"] == {"enable": False, "enable_text": False}
        assert mail["attachments"] == [
            {"content": "eA==", "filename": "a.csv", "type": "text/csv", "disposition": "attachment"}
        ]

    def test_one_provider_sends_many(self, provider: SendGridMail, sendgrid_sink: SendGridSink) -> None:
        for recipient in ("a@example.com", "b@example.com"):
            provider.send(replace(MESSAGE, recipient=recipient))
        assert sendgrid_sink.recipients == ["a@example.com", "b@example.com"]

    def test_line_breaks_in_the_subject_are_flattened(
        self, provider: SendGridMail, sendgrid_sink: SendGridSink
    ) -> None:
        provider.send(replace(MESSAGE, subject="a\r\nBcc: x@example.com"))
        assert sendgrid_sink.accepted[0]["subject"] == "a Bcc: x@example.com"

    @pytest.mark.parametrize(
        ("status", "named", "permanent", "blame"),
        [
            (400, None, True, Blame.UNCLEAR),
            (400, "personalizations.0.to.0.email", True, Blame.RECIPIENT),
            (400, "personalizations[0].to[0].email", True, Blame.RECIPIENT),
            (400, "personalizations.0.subject", False, Blame.INSTALLATION),
            (400, "from.email", False, Blame.INSTALLATION),
            (400, "attachments.0.type", False, Blame.INSTALLATION),
            (403, "from", False, Blame.INSTALLATION),
            (401, None, False, Blame.INSTALLATION),
            (403, None, False, Blame.INSTALLATION),
            (413, None, False, Blame.INSTALLATION),
            (415, None, False, Blame.INSTALLATION),
            (408, None, False, Blame.UNCLEAR),
            (429, None, False, Blame.UNCLEAR),
            (500, None, False, Blame.UNCLEAR),
            (503, "from", False, Blame.UNCLEAR),
        ],
    )
    def test_an_error_is_the_recipients_only_if_it_names_their_address(
        self,
        provider: SendGridMail,
        sendgrid_sink: SendGridSink,
        status: int,
        named: str | None,
        permanent: bool,
        blame: Blame,
    ) -> None:
        sendgrid_sink.next_answers(Answer(status, error_field=named))
        error = not_accepted(provider)
        assert error.reason == f"sendgrid {status}" + (f" {named}" if named else "")
        assert (error.permanent, error.blame) == (permanent, blame)
        assert error.retry_after is None
        assert sendgrid_sink.accepted == []

    @pytest.mark.parametrize("named", ["ana@example.com", "from ana", "x" * 500, "from." + "a.b" * 500, "from.é"])
    def test_a_field_that_could_hold_a_value_is_not_kept(
        self, provider: SendGridMail, sendgrid_sink: SendGridSink, named: str
    ) -> None:
        sendgrid_sink.next_answers(Answer(400, error_field=named))
        assert len(not_accepted(provider).reason) < 100

    @pytest.mark.parametrize("status", [502, 504, 200])
    def test_a_gateways_answer_leaves_it_open(
        self, provider: SendGridMail, sendgrid_sink: SendGridSink, status: int
    ) -> None:
        sendgrid_sink.next_answers(Answer(status))
        assert unknown(provider).reason == f"sendgrid {status}"

    @pytest.mark.parametrize("kind", ["Retry-After", "date", "X-RateLimit-Reset", "nonsense"])
    def test_asked_to_wait(self, provider: SendGridMail, sendgrid_sink: SendGridSink, kind: str) -> None:
        headers = {
            "Retry-After": {"Retry-After": "17"},
            "date": {"Retry-After": formatdate(time.time() + 17, usegmt=True)},
            "X-RateLimit-Reset": {"X-RateLimit-Reset": str(int(time.time()) + 17)},
            "nonsense": {"Retry-After": "soon"},
        }[kind]
        sendgrid_sink.next_answers(Answer(429, headers))
        wait = not_accepted(provider).retry_after
        if kind == "nonsense":
            assert wait is None
        else:
            assert wait is not None
            assert 14 <= wait <= 17

    @pytest.mark.parametrize(
        ("status", "name", "asks"),
        [(503, "Retry-After", True), (503, "X-RateLimit-Reset", False), (500, "Retry-After", False)],
    )
    def test_only_who_is_overloaded_asks_to_wait(
        self, provider: SendGridMail, sendgrid_sink: SendGridSink, status: int, name: str, asks: bool
    ) -> None:
        """SendGrid says ``X-RateLimit-Reset`` with every answer."""
        sendgrid_sink.next_answers(Answer(status, {name: str(int(time.time()) + 17)}))
        assert (not_accepted(provider).retry_after is not None) == asks

    def test_wrong_key(self, sendgrid_sink: SendGridSink) -> None:
        error = not_accepted(SendGridMail("SG.wrong", sendgrid_sink.url))
        assert (error.reason, error.permanent) == ("sendgrid 401", False)

    def test_not_there(self, closed_port: int) -> None:
        assert not not_accepted(SendGridMail(API_KEY, f"http://127.0.0.1:{closed_port}")).permanent
        assert not not_accepted(SendGridMail(API_KEY, "http://no-such-host.invalid")).permanent

    @pytest.mark.parametrize("kind", ["reset", "take_then_reset"])
    def test_connection_lost_while_waiting(
        self, provider: SendGridMail, sendgrid_sink: SendGridSink, kind: str
    ) -> None:
        sendgrid_sink.next_answers(Answer(kind=kind))  # type: ignore[arg-type]
        assert unknown(provider).reason.startswith("sendgrid reply lost")
        assert len(sendgrid_sink.accepted) == (kind == "take_then_reset")

    def test_taken_and_never_answered(self, sendgrid_sink: SendGridSink) -> None:
        sendgrid_sink.next_answers(Answer(kind="take_then_silence"))
        assert "Timeout" in unknown(SendGridMail(API_KEY, sendgrid_sink.url, timeout=0.3)).reason
        assert sendgrid_sink.recipients == [RECIPIENT]

    def test_debug_logging_shows_no_key_and_no_address(
        self, provider: SendGridMail, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            provider.send(MESSAGE)
        assert API_KEY not in caplog.text
        assert RECIPIENT not in caplog.text


class TestSmtp:
    def test_accepted(self, smtp_sink: SmtpSink) -> None:
        SmtpMail(SmtpServer.from_url(smtp_sink.url)).send(MESSAGE)
        (received,) = smtp_sink.received
        assert (received.sender, received.recipients) == ("exports@example.org", [RECIPIENT])
        text = received.message.get_body(("plain",))
        assert text is not None
        assert text.get_content().splitlines() == MESSAGE.text.splitlines()
        assert received.message["Message-ID"] == "<uid.ana@example.org>"

    @pytest.mark.parametrize("stage", ["rcpt", "data"])
    def test_a_refusal_is_judged_by_its_code_and_text_wherever_it_comes(self, smtp_sink: SmtpSink, stage: str) -> None:
        provider = SmtpMail(SmtpServer.from_url(smtp_sink.url))
        replies = smtp_sink.replies if stage == "rcpt" else smtp_sink.data_replies
        for reply, blame in REFUSALS.items():
            replies[RECIPIENT] = reply
            error = not_accepted(provider)
            code = re.match(r"\d{3}([ -]\d\.\d+\.\d+)?", reply)
            assert code is not None
            assert error.reason == f"smtp {code[0].replace('-', ' ')}", reply
            assert error.blame is blame, reply
            assert error.permanent == (reply[0] == "5" and blame is not Blame.INSTALLATION), reply

    def test_a_refused_sender_is_the_installations(self) -> None:
        class Refusing(SmtpSink):
            async def handle_MAIL(self, *arguments: Any) -> str:  # noqa: N802 - aiosmtpd's name
                return "550 5.1.1 who is that"

        with serve_smtp(Refusing()) as sink:
            error = not_accepted(SmtpMail(SmtpServer.from_url(sink.url)))
        assert (error.reason, error.permanent, error.blame) == ("smtp 550 5.1.1", False, Blame.INSTALLATION)

    def test_one_refusal_does_not_touch_the_next(self, smtp_sink: SmtpSink) -> None:
        smtp_sink.replies[RECIPIENT] = "550 no such user"
        provider = SmtpMail(SmtpServer.from_url(smtp_sink.url))
        not_accepted(provider)
        provider.send(replace(MESSAGE, recipient="eva@example.com"))
        assert [received.recipients for received in smtp_sink.received] == [["eva@example.com"]]

    def test_lost_before_the_message(self, smtp_sink: SmtpSink) -> None:
        smtp_sink.drops[RECIPIENT] = "drop_at_rcpt"
        assert not not_accepted(SmtpMail(SmtpServer.from_url(smtp_sink.url))).permanent

    @pytest.mark.parametrize(("drop", "taken"), [("drop_at_data", 0), ("accept_then_drop", 1)])
    def test_lost_after_the_message(self, smtp_sink: SmtpSink, drop: Drop, taken: int) -> None:
        smtp_sink.drops[RECIPIENT] = drop
        assert unknown(SmtpMail(SmtpServer.from_url(smtp_sink.url))).reason.startswith("smtp lost after DATA")
        assert len(smtp_sink.received) == taken

    def test_not_there_or_silent(self, closed_port: int, silent_port: int) -> None:
        for port in (closed_port, silent_port):
            assert not not_accepted(SmtpMail(SmtpServer("127.0.0.1", port), timeout=0.3)).permanent

    @pytest.mark.parametrize("scheme", ["smtps", "smtp"])
    @pytest.mark.parametrize(("password", "taken"), [("right%20p%40ss", 1), ("wrong", 0)])
    def test_login_over_tls(self, tmp_path: Path, scheme: str, password: str, taken: int) -> None:
        tls, trusting = self_signed(tmp_path)
        options = {"tls_from_start": True, "auth_require_tls": False} if scheme == "smtps" else {"auth_required": True}
        with serve_smtp(tls_context=tls, **options) as sink:
            url = f"{scheme}://user:{password}@127.0.0.1:{sink.port}?starttls={scheme == 'smtp':d}"
            provider = SmtpMail(SmtpServer.from_url(url), tls=trusting)
            if taken:
                provider.send(MESSAGE)
            else:
                error = not_accepted(provider)
                assert (error.reason, error.permanent) == ("smtp connect 535", False)
        assert sink.logins == ["user"] * len(sink.logins)
        assert sink.logins
        assert len(sink.received) == taken

    @pytest.mark.parametrize("scheme", ["smtps", "smtp"])
    def test_untrusted_certificate(self, tmp_path: Path, scheme: str) -> None:
        with serve_smtp(tls_context=self_signed(tmp_path)[0], tls_from_start=scheme == "smtps") as sink:
            url = f"{scheme}://127.0.0.1:{sink.port}?starttls={scheme == 'smtp':d}"
            error = not_accepted(SmtpMail(SmtpServer.from_url(url)))
        assert error.reason == "smtp connect SSLCertVerificationError"
        assert sink.received == []

    def test_starttls_where_there_is_none(self, smtp_sink: SmtpSink) -> None:
        error = not_accepted(SmtpMail(SmtpServer.from_url(f"{smtp_sink.url}?starttls=1")))
        assert not error.permanent
        assert smtp_sink.received == []

    def test_international_addresses(self) -> None:
        message = replace(MESSAGE, recipient="josé@exämple.com")
        with serve_smtp(enable_SMTPUTF8=True) as sink:
            SmtpMail(SmtpServer.from_url(sink.url)).send(message)
            assert sink.received[0].recipients == ["josé@xn--exmple-cua.com"]
        with serve_smtp(enable_SMTPUTF8=False) as sink:
            assert not_accepted(SmtpMail(SmtpServer.from_url(sink.url)), message).permanent
            SmtpMail(SmtpServer.from_url(sink.url)).send(replace(MESSAGE, recipient="jose@exämple.com"))
            assert sink.received[0].recipients == ["jose@xn--exmple-cua.com"]

    @pytest.mark.parametrize(
        ("url", "port", "tls", "starttls"),
        [
            ("smtp://h", 25, False, None),
            ("smtp://h?starttls=1", 587, False, True),
            ("smtp://h?starttls=0", 25, False, False),
            ("smtps://h", 465, True, None),
            ("smtp://h:2525", 2525, False, None),
        ],
    )
    def test_urls(self, url: str, port: int, tls: bool, starttls: bool | None) -> None:
        server = SmtpServer.from_url(url)
        assert (server.host, server.port, server.tls_from_start, server.starttls) == ("h", port, tls, starttls)

    def test_password_is_not_shown(self) -> None:
        assert "hidden" not in repr(SmtpServer.from_url("smtp://user:hidden@h"))
        with pytest.raises(ValueError, match="expected smtp") as caught:
            SmtpServer.from_url("smtp://user:hidden@h:port")
        assert "hidden" not in str(caught.value)

    @pytest.mark.parametrize("value", ["2", "", "never"])
    def test_a_starttls_that_is_neither_yes_nor_no_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match=r"starttls=1 or starttls=0"):
            SmtpServer.from_url(f"smtp://h?starttls={value}&x=1" if value else "smtp://h?starttls=x")

    @pytest.mark.parametrize("query", ["?starttls=1", ""])
    @pytest.mark.parametrize("recipient", [RECIPIENT, "josé@example.com"])
    def test_a_relay_that_knows_its_clients_by_address_is_greeted_again_after_starttls(
        self, tmp_path: Path, query: str, recipient: str
    ) -> None:
        """Without a login nothing else greets the server, and it forgot the first greeting and what it offered."""
        tls, trusting = self_signed(tmp_path)
        with serve_smtp(tls_context=tls, require_starttls=True, enable_SMTPUTF8=True) as sink:
            provider = SmtpMail(SmtpServer.from_url(sink.url + query), tls=trusting)
            provider.send(replace(MESSAGE, recipient=recipient))
            assert [received.recipients for received in sink.received] == [[recipient]]

    def test_starttls_that_is_offered_is_used_whoever_made_the_certificate(self, tmp_path: Path) -> None:
        with serve_smtp(tls_context=self_signed(tmp_path)[0], require_starttls=True) as sink:
            SmtpMail(SmtpServer.from_url(sink.url)).send(MESSAGE)
            assert not_accepted(SmtpMail(SmtpServer.from_url(f"{sink.url}?starttls=0"))).reason.startswith("smtp 530")
            assert len(sink.received) == 1

    def test_a_password_leaves_the_machine_in_clear_only_by_the_urls_word(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_smtp(auth_require_tls=False) as sink:
            url = f"smtp://user:right%20p%40ss@127.0.0.1:{sink.port}"
            SmtpMail(SmtpServer.from_url(url)).send(MESSAGE)  # to this machine
            # Tests have no server elsewhere: the one here gets an address of the documentation (RFC 5737).
            monkeypatch.setattr(smtp, "ip_address", lambda host: IPv4Address("192.0.2.1"))
            error = not_accepted(SmtpMail(SmtpServer.from_url(url)))
            assert (error.permanent, error.blame) == (False, Blame.INSTALLATION)
            assert "no STARTTLS for the password" in error.reason
            assert sink.logins == ["user"]
            SmtpMail(SmtpServer.from_url(f"{url}?starttls=0")).send(MESSAGE)
            assert sink.logins == ["user", "user"]
        with serve_smtp(tls_context=self_signed(tmp_path)[0], auth_require_tls=True) as sink:
            # Encryption that proves nothing is not enough for a password.
            url = f"smtp://user:right%20p%40ss@127.0.0.1:{sink.port}"
            error = not_accepted(SmtpMail(SmtpServer.from_url(url)))
            assert (error.reason, error.blame) == ("smtp connect SSLCertVerificationError", Blame.INSTALLATION)
            error = not_accepted(SmtpMail(SmtpServer.from_url(f"{url}?starttls=0")))
            assert error.reason == "smtp connect: no AUTH offered; it may be after STARTTLS"
            assert sink.logins == []

    def test_a_message_may_take_as_long_as_the_server_reads_on(self) -> None:
        """Each write has the time-out, not the whole message, and the verdict has one of its own."""
        big = replace(MESSAGE, attachments=(Attachment("a.bin", "application/zip", b"x" * 3_000_000),))
        with slow_server(pause=0.02, verdict_after=0.6) as port:
            before = time.monotonic()
            SmtpMail(SmtpServer("127.0.0.1", port), timeout=5, command_timeout=0.5, verdict_timeout=30).send(big)
            assert time.monotonic() - before > 0.6

    def test_a_server_that_stops_reading_has_no_mail(self) -> None:
        big = replace(MESSAGE, attachments=(Attachment("a.bin", "application/zip", b"x" * 8_000_000),))
        with slow_server(pause=30, verdict_after=0) as port:
            error = not_accepted(SmtpMail(SmtpServer("127.0.0.1", port), timeout=5, command_timeout=0.3), big)
        assert not error.permanent

    def test_a_server_is_given_the_ten_minutes_of_the_rfc_for_its_verdict(self) -> None:
        assert inspect.signature(SmtpMail).parameters["verdict_timeout"].default >= 600


class TestOutbox:
    def test_one_file_a_message(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path / "new")
        outbox.send(MESSAGE)
        outbox.send(replace(MESSAGE, subject="again"))
        outbox.send(replace(MESSAGE, message_id="../../up <x>"))
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["uid.ana.eml", "up-x.eml"]
        mail = message_from_bytes((tmp_path / "new" / "uid.ana.eml").read_bytes(), policy=policy.default)
        assert mail["Subject"] == "again"

    def test_unwritable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert not not_accepted(Outbox(tmp_path / "file" / "x")).permanent


SPOOFED = "Billing <ceo@bank.example>, Acme International Holdings of South America, Inc. - Customer Data Exports"
ENCODED = "=?utf-8?q?x=0D=0ABcc:_b=40example.com?="
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.text(' ,<>@"\\()=?_aé;:.', max_size=200)


def decoded(header: str) -> str:
    return str(make_header(decode_header(header)))


class TestMime:
    def test_headers(self) -> None:
        mime = to_mime(replace(MESSAGE, attachments=(Attachment("ñ.csv", "text/csv; charset=utf-8", b"1\r\n"),)))
        assert mime["Auto-Submitted"] == "auto-generated"
        assert mime["Date"].datetime is not None
        raw = mime.as_bytes()
        assert raw.isascii()
        parsed = message_from_bytes(raw, policy=policy.default)
        assert parsed["From"].addresses[0].display_name == "Exportações"
        assert parsed["Subject"] == MESSAGE.subject
        assert [part.get_content_type() for part in parsed.walk() if not part.is_multipart()] == [
            "text/plain",
            "text/html",
            "text/csv",
        ]
        (attachment,) = parsed.iter_attachments()
        assert (attachment.get_filename(), attachment.get_content_charset()) == ("ñ.csv", "utf-8")
        assert attachment.get_payload(decode=True) == b"1\r\n"

    def test_no_value_adds_a_header(self) -> None:
        evil = "x\r\nBcc: b@example.com\n\nbody"
        mime = to_mime(replace(MESSAGE, subject=evil, message_id=evil))
        parsed = message_from_bytes(mime.as_bytes(), policy=policy.default)
        assert parsed["Bcc"] is None
        assert parsed["Subject"] == "x Bcc: b@example.com body"

    @settings(max_examples=150, deadline=None)
    @given(NAMES, NAMES)
    @example(SPOOFED, SPOOFED)
    @example(ENCODED, ENCODED)
    @example("Exportações " * 16, "Transações nuestro:" * 10)
    def test_names_and_subjects_of_any_length_are_read_back_as_one_mailbox(self, name: str, subject: str) -> None:
        name, subject = one_line(name), one_line(subject)
        sender = Address(name, addr_spec="exports@data.example.org")
        raw = to_mime(replace(MESSAGE, sender=sender, subject=subject)).as_bytes()
        assert raw.isascii()
        strict, legacy = (message_from_bytes(raw, policy=one) for one in (policy.default, policy.compat32))
        (mailbox,) = strict["From"].addresses
        assert mailbox.addr_spec == sender.addr_spec
        if name.isascii() and "=?" not in name:
            assert mailbox.display_name == name
        assert strict["Subject"] == subject
        ((shown, spec),) = getaddresses([legacy["From"]])
        assert (decoded(shown), spec, decoded(legacy["Subject"])) == (name, sender.addr_spec, subject)

    def test_no_address_and_no_id_is_folded_however_long(self, tmp_path: Path) -> None:
        recipient = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.example.com"
        long_id = "d" * 120
        Outbox(tmp_path).send(replace(MESSAGE, recipient=recipient, message_id=long_id))
        (path,) = tmp_path.iterdir()
        head = path.read_bytes().split(b"\r\n\r\n")[0].decode().split("\r\n")
        assert f"To: {recipient}" in head
        assert f"Message-ID: <{long_id}@example.org>" in head

    @pytest.mark.parametrize("recipient", ["", "no-at", "a@b\r\nBcc: c@d", "a@b, c@d", "@b", "a@", "a b@c"])
    def test_no_address(self, recipient: str, tmp_path: Path) -> None:
        error = not_accepted(Outbox(tmp_path), replace(MESSAGE, recipient=recipient))
        assert error.permanent


class TestSettings:
    def test_providers_by_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENDGRID_API_KEY", "SG.x")
        assert isinstance(open_mail_provider(Settings(mail_url=f"file://{tmp_path}")), Outbox)
        assert isinstance(open_mail_provider(Settings(mail_url="smtps://u:p@h")), SmtpMail)
        assert isinstance(open_mail_provider(Settings(mail_url="sendgrid:")), SendGridMail)

    @pytest.mark.parametrize(
        ("text", "name", "spec"),
        [
            ("a@b.com", "", "a@b.com"),
            ("Name <a@b.com>", "Name", "a@b.com"),
            ("ana@straße.de", "", "ana@xn--strae-oqa.de"),
            ("Exportações Ñ <a@b.com>", "Exportações Ñ", "a@b.com"),
            ('"Doe, John" <a@b.com>', "Doe, John", "a@b.com"),
        ],
    )
    def test_senders(self, text: str, name: str, spec: str) -> None:
        sender = parse_sender(text)
        assert (sender.display_name, sender.addr_spec) == (name, spec)
        assert default_sender(Settings(mail_from=text)) == sender

    @pytest.mark.parametrize("text", ["", "nobody", "a@b\nBcc: c@d", "<>", "a b@c", "x <y>"])
    def test_no_sender(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected name@domain"):
            parse_sender(text)
        with pytest.raises(SettingsError, match="EXPORT_MAIL_FROM"):
            default_sender(Settings(mail_from=text))


def test_no_server_thread_is_left() -> None:
    assert [thread.name for thread in threading.enumerate() if "process_request_thread" in thread.name] == []
