"""Telling recipients that their files are ready: attached or linked, from whom, and never twice."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import NotificationKind
from export_pipeline.database.tables import export_links, export_notifications, organization_email_domains
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import MailProvider
from export_pipeline.messaging.sendgrid import SendGridMail
from export_pipeline.messaging.sending import MailPostponed
from export_pipeline.messaging.smtp import SmtpMail, SmtpServer
from export_pipeline.messaging.texts import CATALOG
from export_pipeline.requests import notifications
from export_pipeline.requests.api_keys import digest_of
from export_pipeline.requests.models import load_request
from export_pipeline.settings import Settings
from export_pipeline.stages.manifest import Manifest, ManifestFile
from export_pipeline.stages.notify_recipients import Announcement, notify, sender_for
from export_pipeline.stages.upload import describe
from export_pipeline.storage.local import LocalStore
from export_pipeline.storage.store import Link
from export_pipeline_tests.engine.people import DATASET
from export_pipeline_tests.requests.test_states import ask
from export_pipeline_tests.servers.sendgrid import API_KEY, Answer, SendGridSink
from export_pipeline_tests.servers.smtp import Received, SmtpSink, serve_smtp

ON_ONE_DATABASE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
NOW = datetime.now(UTC)
CONTENTS = (b"id,name\n1,Ana\n", b"id,name\n2,Bob\n")
TOTAL = sum(map(len, CONTENTS))
RECIPIENTS = ("ana@example.com", "bob@example.com")


class CountingStore(LocalStore):
    """A directory that counts how often an object is opened."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.opened: Counter[str] = Counter()

    def open(self, key: str) -> BinaryIO:
        self.opened[key] += 1
        return super().open(key)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "store")


def published(store: LocalStore, contents: Sequence[bytes] = CONTENTS, *, rows: int = 2, **file: Any) -> Manifest:
    files = tuple(
        ManifestFile(
            ordinal=ordinal,
            key=f"x/{ordinal}.csv",
            name=f"people-{ordinal}.csv",
            rows=1,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            media_type="text/csv; charset=utf-8",
            **file,
        )
        for ordinal, content in enumerate(contents, start=1)
    )
    for placed, content in zip(files, contents, strict=True):
        store.put(
            io.BytesIO(content), describe(placed), size=len(content), sha256=placed.sha256, progress=lambda _: None
        )
    return Manifest(
        uid=uuid4(),
        organization_id="acme",
        attempt=1,
        dataset="people",
        catalog_version="0" * 64,
        format="csv",
        compression="none",
        columns=("id", "name"),
        rows=rows,
        bytes=sum(map(len, contents)),
        files=files,
        snapshot_at=NOW,
        created_at=NOW,
        time_zone="UTC",
        guard_formulas=True,
    )


def announce(manifest: Manifest, request_id: int, recipients: Sequence[str] = RECIPIENTS) -> Announcement:
    return Announcement(
        request_id=request_id,
        manifest=manifest,
        dataset=DATASET,
        recipients=recipients,
        locale="en",
        time_zone="UTC",
        files_expire_at=NOW + timedelta(days=7),
    )


def tell(
    database: sa.Engine, store: LocalStore, provider: MailProvider, announcement: Announcement, attach: int = 0
) -> dict[str, int]:
    settings = Settings(mail_from="Exports <exports@example.org>", mail_attachment_max_bytes=attach)
    counts = notify(database, store, provider, settings, announcement, check=lambda: None)
    return {status.value: number for status, number in counts.items()}


def statuses(database: sa.Engine) -> dict[str, tuple[str, int]]:
    columns = export_notifications.c
    with database.connect() as connection:
        rows = connection.execute(sa.select(columns.recipient, columns.status, columns.tries))
        return {row.recipient: (row.status, row.tries) for row in rows}


def text_of(received: Received) -> str:
    body = received.message.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def attached(received: Received) -> dict[str | None, Any]:
    return {part.get_filename(): part.get_payload(decode=True) for part in received.message.iter_attachments()}


def smtp(sink: SmtpSink) -> SmtpMail:
    return SmtpMail(SmtpServer.from_url(sink.url))


@ON_ONE_DATABASE
@pytest.mark.parametrize(("longest", "attaches"), [(0, False), (TOTAL - 1, False), (TOTAL, True), (20_000_000, True)])
def test_files_are_attached_up_to_the_limit_for_all_of_them_together(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, longest: int, attaches: bool
) -> None:
    manifest = published(store)
    tell(database, store, smtp(smtp_sink), announce(manifest, ask(database)), longest)
    assert sorted(received.recipients[0] for received in smtp_sink.received) == sorted(RECIPIENTS)
    for received in smtp_sink.received:
        text = text_of(received)
        if attaches:
            assert attached(received) == {"people-1.csv": CONTENTS[0], "people-2.csv": CONTENTS[1]}
            assert "people-1.csv (14 B, attached)" in text
            assert "://" not in text
        else:
            assert attached(received) == {}
            assert text.count("file://") == len(CONTENTS)
            assert "B, attached)" not in text
    # Read once, not once a recipient.
    assert store.opened == (Counter({file.key: 1 for file in manifest.files}) if attaches else Counter())


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    ("contents", "file"), [((b"", b"x"), {}), (CONTENTS, {"content_encoding": "gzip"})], ids=["no bytes", "encoded"]
)
def test_what_mail_cannot_carry_is_linked_however_small(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, contents: Sequence[bytes], file: dict[str, str]
) -> None:
    manifest = published(store, contents, **file)
    tell(database, store, smtp(smtp_sink), announce(manifest, ask(database)), attach=1000)
    assert [attached(received) for received in smtp_sink.received] == [{}, {}]
    assert "B, attached)" not in text_of(smtp_sink.received[0])


@ON_ONE_DATABASE
@pytest.mark.parametrize("content", [CONTENTS[0].replace(b"Ana", b"Eve"), CONTENTS[0] + b"more", CONTENTS[0][:-1]])
def test_a_file_that_is_not_the_manifests_is_attached_to_nobodys_mail(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, tmp_path: Path, content: bytes
) -> None:
    manifest = published(store)
    (tmp_path / "store" / manifest.files[0].key).write_bytes(content)
    with pytest.raises(ExportFailure) as refused:
        tell(database, store, smtp(smtp_sink), announce(manifest, ask(database)), attach=TOTAL)
    assert refused.value.code is FailureCode.CHECKSUM_MISMATCH
    assert smtp_sink.received == []
    assert statuses(database) == dict.fromkeys(RECIPIENTS, ("pending", 0))


@ON_ONE_DATABASE
@pytest.mark.parametrize("locale", list(CATALOG))
@pytest.mark.parametrize("attach", [0, 1000])
def test_an_empty_result_is_mailed_with_its_empty_file(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, locale: str, attach: int
) -> None:
    announcement = announce(published(store, (b"id,name\n",), rows=0), ask(database), RECIPIENTS[:1])
    tell(database, store, smtp(smtp_sink), replace(announcement, locale=locale), attach)
    (received,) = smtp_sink.received
    assert CATALOG[locale]["empty"] in text_of(received)
    assert attached(received) == ({"people-1.csv": b"id,name\n"} if attach else {})


OURS = "554 5.7.1 Relay access denied"
NOT_SAID = "550 no"
"""Refused for good, and not a word of why."""
NOBODY_THERE = "550 5.1.1 no such mailbox"
REFUSED = [
    # Both refused alike: whatever it is, it is not two addresses.
    ((OURS, OURS), FailureCode.MAIL_REFUSED, ("pending", "pending")),
    ((NOT_SAID, NOT_SAID), FailureCode.MAIL_REFUSED, ("pending", "pending")),
    ((NOT_SAID, NOBODY_THERE), FailureCode.MAIL_REFUSED, ("pending", "refused")),
    # One is enough where the reply itself says that it is not the recipient.
    ((None, OURS), FailureCode.MAIL_REFUSED, ("sent", "pending")),
    ((OURS, NOBODY_THERE), FailureCode.MAIL_REFUSED, ("pending", "refused")),
    # The others' mail is taken: it is about the recipient, in whatever order they come.
    ((NOT_SAID, None), None, ("refused", "sent")),
    ((None, NOT_SAID), None, ("sent", "refused")),
    ((NOBODY_THERE, None), None, ("refused", "sent")),
    # Nobody hears of the export, though the addresses are to blame.
    ((NOBODY_THERE, NOBODY_THERE), FailureCode.MAIL_REFUSED, ("refused", "refused")),
    # For now is for now.
    (("451 later", NOT_SAID), FailureCode.MAIL_UNAVAILABLE, ("pending", "pending")),
]


@ON_ONE_DATABASE
@pytest.mark.parametrize("at", ["rcpt", "data"])
def test_a_refusal_is_booked_on_whom_it_is_about_and_nobody_mailed_is_no_success(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, at: str
) -> None:
    manifest = published(store)
    replies = smtp_sink.replies if at == "rcpt" else smtp_sink.data_replies
    for answers, code, states in REFUSED:
        with database.begin() as connection:
            connection.execute(export_notifications.delete())
        announcement = announce(manifest, ask(database))
        replies.update({who: reply for who, reply in zip(RECIPIENTS, answers, strict=True) if reply})
        outcome: ExportFailure | None = None
        try:
            tell(database, store, smtp(smtp_sink), announcement)
        except ExportFailure as failure:
            outcome = failure
        assert (outcome and outcome.code) == code, answers
        assert tuple(status for status, _ in statuses(database).values()) == states, answers
        if outcome is not None:
            assert "@" not in outcome.message + outcome.requester_message
            assert "EXPORT_" not in outcome.requester_message
            assert "The files are ready" in outcome.requester_message
        # The cause is corrected: who waits is mailed, once, under the same id; who was refused is not.
        replies.clear()
        pending = states.count("pending")
        if pending:
            tell(database, store, smtp(smtp_sink), announcement)
        sent = Counter(received.recipients[0] for received in smtp_sink.received)
        assert sent == Counter(who for who, state in zip(RECIPIENTS, states, strict=True) if state != "refused"), (
            answers
        )
        smtp_sink.received.clear()


@ON_ONE_DATABASE
@pytest.mark.parametrize("failure", ["not there", "no login"])
def test_a_provider_that_lets_nobody_in_is_asked_once_and_not_once_a_recipient(
    database: sa.Engine, store: CountingStore, failure: str
) -> None:
    """Waiting for each of 26 recipients holds a slot for a quarter of an hour; as many wrong logins lock an account."""
    code = FailureCode.MAIL_UNAVAILABLE if failure == "not there" else FailureCode.MAIL_REFUSED
    announcement = announce(published(store), ask(database))
    with serve_smtp(auth_require_tls=False) as sink:
        port = 1 if failure == "not there" else sink.port
        provider = SmtpMail(SmtpServer("127.0.0.1", port, user="user", password="wrong"), timeout=5)
        with pytest.raises(ExportFailure) as postponed:
            tell(database, store, provider, announcement)
        assert len(sink.logins) <= 2  # smtplib tries two mechanisms
    assert postponed.value.code is code
    assert statuses(database) == dict(zip(RECIPIENTS, [("pending", 1), ("pending", 0)], strict=True))


@ON_ONE_DATABASE
def test_every_try_of_a_mail_has_the_same_id(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, sendgrid_sink: SendGridSink
) -> None:
    announcement = announce(published(store), ask(database), RECIPIENTS[:1])
    sendgrid_sink.next_answers(Answer(kind="take_then_reset"))
    assert tell(database, store, SendGridMail(API_KEY, sendgrid_sink.url, timeout=5), announcement) == {"unknown": 1}
    with database.begin() as connection:
        notifications.put_back(connection, announcement.request_id, kind=NotificationKind.READY, unknown=True)
    tell(database, store, smtp(smtp_sink), announcement)
    first = sendgrid_sink.accepted[0]["custom_args"]["message_id"]
    assert smtp_sink.received[0].message["Message-ID"] == f"<{first}@example.org>"


@ON_ONE_DATABASE
def test_links_of_many_files_come_in_an_attached_list(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink
) -> None:
    announcement = announce(published(store, [b"id,name\n1,Ana\n"] * 12, rows=12), ask(database), RECIPIENTS[:1])
    tell(database, store, smtp(smtp_sink), announcement)
    (received,) = smtp_sink.received
    assert text_of(received).count("file://") == 10
    (listed,) = attached(received).values()
    assert [line.split(b"\t")[0] for line in listed.splitlines()] == [b"people-%d.csv" % n for n in range(1, 13)]


@ON_ONE_DATABASE
@pytest.mark.parametrize(("lives", "warned"), [(timedelta(minutes=57), True), (timedelta(days=30), False)])
def test_links_that_end_before_their_time_are_the_operators_to_hear_of_once(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink, lives: timedelta, warned: bool
) -> None:
    """A store whose credentials end: seen with session tokens, not to be had here."""

    class Ending(CountingStore):
        def link(self, described: Any, lifetime: timedelta) -> Link:
            return Link("https://host/x", datetime.now(UTC) + min(lives, lifetime))

    store.__class__ = Ending
    said: list[str] = []
    announcement = announce(published(store), ask(database))
    notify(database, store, smtp(smtp_sink), Settings(), announcement, check=lambda: None, warn=said.append)
    assert len(said) == warned
    if warned:
        assert "57 minutes, not for" in said[0]
        assert "EXPORT_PUBLIC_URL" in said[0]


def test_a_refused_recipient_does_not_keep_the_others_from_theirs(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink
) -> None:
    smtp_sink.replies["ana@example.com"] = "550 no such user"
    announcement = announce(published(store), ask(database))
    assert tell(database, store, smtp(smtp_sink), announcement) == {"refused": 1, "sent": 1}
    assert [received.recipients for received in smtp_sink.received] == [["bob@example.com"]]


def test_a_provider_that_asks_to_wait_is_left_alone_and_the_rest_gets_theirs_later(
    database: sa.Engine, store: CountingStore, sendgrid_sink: SendGridSink
) -> None:
    people = [f"{name}@example.com" for name in ("ana", "bob", "eve")]
    announcement = announce(published(store), ask(database), people)
    provider = SendGridMail(API_KEY, sendgrid_sink.url, timeout=5)
    # The second mail is answered with 429; a third would be taken.
    original, calls = provider.send, iter([(), (Answer(429, {"Retry-After": "17"}),), (), (), ()])

    class Busy:
        def send(self, message: Any) -> None:
            sendgrid_sink.next_answers(*next(calls))
            original(message)

    with pytest.raises(MailPostponed) as postponed:
        tell(database, store, Busy(), announcement)
    assert (postponed.value.code, postponed.value.retry_after) == (FailureCode.MAIL_UNAVAILABLE, 17)
    assert "@" not in str(postponed.value)
    assert sendgrid_sink.recipients == people[:1]
    assert statuses(database) == dict(zip(people, [("sent", 1), ("pending", 1), ("pending", 0)], strict=True))
    assert tell(database, store, Busy(), announcement) == {"sent": 3}
    assert sendgrid_sink.recipients == people


def test_mails_are_from_the_organizations_sender_while_it_may_be_used(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink
) -> None:
    request_id = ask(database, from_email="news@acme.example.com", recipient_emails=list(RECIPIENTS[:1]))
    domains = organization_email_domains

    def sender() -> tuple[Any, str | None]:
        with database.connect() as connection:
            return sender_for(connection, load_request(connection, request_id))

    with database.begin() as connection:
        notifications.enqueue(connection, request_id, RECIPIENTS[:1])
        connection.execute(
            domains.insert().values(organization_id="acme", domain="acme.example.com", verified_at=utc_now())
        )
    asked_for, note = sender()
    assert note is None
    with database.begin() as connection:
        connection.execute(domains.update().values(verified_at=None))
    platform, lost = sender()
    assert platform is None
    assert lost is not None
    assert "sender_domain_unverified" in lost
    assert "@" not in lost
    manifest = published(store)
    for address, recipient in ((asked_for, "ana@example.com"), (platform, "bob@example.com")):
        tell(database, store, smtp(smtp_sink), replace(announce(manifest, request_id, [recipient]), sender=address))
    assert [received.sender for received in smtp_sink.received] == ["news@acme.example.com", "exports@example.org"]
    # Everybody has their mail: the row has nothing to say of who it was from.
    assert sender() == (None, None)


@ON_ONE_DATABASE
def test_with_a_gateway_every_mail_has_sealed_links_of_its_own_that_live_as_long_as_the_files(
    database: sa.Engine, store: CountingStore, smtp_sink: SmtpSink
) -> None:
    manifest = published(store)
    request_id = ask(database)
    settings = Settings(mail_from="Exports <exports@example.org>", public_url="https://exports.example.org")
    notify(database, store, smtp(smtp_sink), settings, announce(manifest, request_id), check=lambda: None)
    tokens: list[str] = []
    for received in smtp_sink.received:
        text = text_of(received)
        found = re.findall(r"https://exports\.example\.org/d/([\w-]+)", text)
        assert len(found) == len(CONTENTS)
        assert "file:" not in text
        day = (NOW + timedelta(days=7)).strftime("%B ") + str((NOW + timedelta(days=7)).day)
        assert day in text
        tokens += found
    assert len(set(tokens)) == len(RECIPIENTS) * len(CONTENTS)
    with database.connect() as connection:
        stored = connection.execute(sa.select(export_links)).all()
        owners = connection.execute(sa.select(export_notifications.c.id)).scalars().all()
    assert {row.token_hash for row in stored} == {digest_of(token) for token in tokens}
    assert {row.notification_id for row in stored} == set(owners)
    assert {row.expires_at for row in stored} == {NOW + timedelta(days=7)}
