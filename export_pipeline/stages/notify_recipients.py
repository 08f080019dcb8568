"""The op ``notify_recipients``: mail the links or files of a published export, and note on its row what went wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.database.engine import reading
from export_pipeline.database.enums import NotificationStatus
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.content import MAX_LISTED, ReadyFile, ReadyMail, ready_message, titles_of
from export_pipeline.messaging.message import Attachment, MailProvider, Message, message_id, parse_address
from export_pipeline.messaging.mime import one_line
from export_pipeline.messaging.providers import default_sender
from export_pipeline.messaging.sending import send_all
from export_pipeline.recurring.unsubscribe import make_token
from export_pipeline.requests import notifications, transitions
from export_pipeline.requests.download_links import create, download_url
from export_pipeline.requests.models import ExportRequest, load_request
from export_pipeline.requests.organizations import read_organization
from export_pipeline.requests.validation.mail import is_silent, recipients_of_files, sender_of
from export_pipeline.settings import Settings
from export_pipeline.stages import Services
from export_pipeline.stages.manifest import Manifest, ManifestFile, read_manifest
from export_pipeline.stages.upload import describe
from export_pipeline.storage.store import Link, Store

EMPTY_AND_SILENT = "No rows matched, so no mail was sent, as the request's empty_result says."
_LONGEST_LIST = 5_000_000
"""Bytes of a list of links: a third more in the mail, which most servers take (Postfix by default: 10,240,000)."""
_UNNOTICED = timedelta(minutes=5)
"""A link may end this much earlier than promised without a warning."""


@dataclass(frozen=True)
class Announcement:
    """A published export, and the facts of its mails."""

    request_id: int
    manifest: Manifest
    dataset: Dataset
    recipients: Sequence[str]
    locale: str | None
    time_zone: str
    """The organization's IANA zone."""
    files_expire_at: datetime
    organization_name: str | None = None
    sender: Address | None = None
    """The sender of the mails; None for the platform's address."""
    recurring_export_id: int | None = None
    """The recurring export that it belongs to: its mails get a link to unsubscribe."""


def mail_recipients(
    services: Services, request_id: int, *, run_id: str, check: Callable[[], None], warn: Callable[[str], None]
) -> Mapping[NotificationStatus, int]:
    """Mail the recipients of a completed request, and note on the row what went wrong.

    ``run_id`` is the run that owns the request; ``warn`` is called with texts for operators. The rest is as in
    ``notify``.
    """
    with reading(services.database) as connection:
        request = load_request(connection, request_id)
        organization = read_organization(connection, request.organization_id)
        sender, sender_note = sender_for(connection, request)
    announcement = Announcement(
        request_id=request_id,
        manifest=read_manifest(services.store, request.manifest_key or ""),
        dataset=services.catalog[request.dataset],
        recipients=recipients_of_files(request),
        locale=request.email_locale,
        time_zone=organization.time_zone,
        files_expire_at=request.expires_at or datetime.now(UTC),
        organization_name=organization.name,
        sender=sender,
        recurring_export_id=request.recurring_export_id,
    )
    counts: Mapping[NotificationStatus, int] = {}
    if announcement.recipients:  # else there may be no provider to open
        counts = notify(
            services.database, services.store, services.mail, services.settings, announcement, check=check, warn=warn
        )
    notes = [undelivered(counts), sender_note, EMPTY_AND_SILENT if is_silent(request) else None]
    with services.database.begin() as connection:
        transitions.notified(connection, request_id, counts)
        transitions.note(connection, request_id, " ".join(filter(None, notes)) or None, run_id=run_id)
    return counts


def notify(
    database: sa.Engine,
    store: Store,
    provider: MailProvider,
    settings: Settings,
    announcement: Announcement,
    *,
    check: Callable[[], None],
    warn: Callable[[str], None] = lambda _: None,
) -> Mapping[NotificationStatus, int]:
    """Mail every recipient who certainly has no mail yet; ``check`` is called before each and may raise to stop.

    Returns how many notifications are in each state.

    Raises:
        MailPostponed: some were not accepted; a later call sends only these.
        ExportFailure: an attachment cannot be read; ``mail_refused`` if every recipient was refused permanently.
    """
    request_id = announcement.request_id
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, announcement.recipients)
        notifications.close_interrupted(connection, request_id)
        waiting = notifications.pending(connection, request_id)
    messages = _messages(database, store, settings, announcement, waiting, warn) if waiting else ()
    result = send_all(database, provider, request_id, messages, check=check)
    total, refused = sum(result.counts.values()), result.counts.get(NotificationStatus.REFUSED, 0)
    if result.pending:
        problem = f"The files are ready, but {result.pending} of {total} recipients could not be mailed"
        raise result.postponed(problem, f"{problem} yet; it is tried again. Nothing is wrong with the request.")
    if total and refused == total:
        # An export that no recipient learns of has failed, whatever the reason.
        raise ExportFailure(
            FailureCode.MAIL_REFUSED,
            f"The files are ready, but the mail was refused permanently for each of {total} recipients. The reasons in "
            "export_notifications say whether the addresses or this installation's mail are wrong. To send again after "
            "a correction: export-pipeline resend.",
            requester_message=f"The files are ready, but the mail was refused for each of {total} recipients: check "
            "the addresses.",
        )
    return result.counts


def sender_for(connection: sa.Connection, request: ExportRequest) -> tuple[Address | None, str | None]:
    """The sender of a published export's mails (None for the platform's address), and a note for its row.

    ``plan`` has already refused senders that could not be used then. A sender that was lost since then does not stop
    the mails: the platform sends what is still to be sent, and the row says so.
    """
    try:
        sender = sender_of(connection, request)
        return (None if sender is None else parse_address(sender.email, display_name=sender.name or "")), None
    except ExportFailure as failure:
        lost: str = failure.code
    except ValueError:
        lost = FailureCode.INVALID_SENDER
    if not notifications.pending(connection, request.id):
        return None, None
    return None, f"Mails come from the platform's address: the requested sender can no longer be used ({lost})."


def undelivered(counts: Mapping[NotificationStatus, int]) -> str | None:
    """What the row says of recipients without a mail, None if every recipient has one."""
    refused, unknown = counts.get(NotificationStatus.REFUSED, 0), counts.get(NotificationStatus.UNKNOWN, 0)
    if not refused and not unknown:
        return None
    total = sum(counts.values())
    parts = [f"the mail was refused for {refused} of {total} recipients"] if refused else []
    if unknown:
        parts.append(f"of {unknown} of {total} recipients it is not known whether they got their mail")
    return f"The files are ready, but {' and '.join(parts)}."


def _messages(
    database: sa.Engine,
    store: Store,
    settings: Settings,
    announcement: Announcement,
    waiting: Sequence[tuple[int, str]],
    warn: Callable[[str], None],
) -> Iterator[tuple[int, Message]]:
    manifest = announcement.manifest
    attachments = attachments_of(store, manifest, settings.mail_attachment_max_bytes)
    sender = announcement.sender or default_sender(settings)
    own_links = bool(settings.public_url) and not attachments
    shared = None if own_links or attachments else _presigned(store, settings, announcement, warn)
    for notification_id, recipient in waiting:
        links = _download_links(database, settings, announcement, notification_id) if own_links else shared
        leave = unsubscribe_url(settings, announcement.recurring_export_id, recipient)
        mail = replace(_mail(announcement, links), unsubscribe_url=leave)
        listed = link_list(mail.files)
        if listed is not None:
            mail = replace(mail, link_list=listed.name)
        subject, text, html = ready_message(mail, announcement.locale)
        attached = attachments if listed is None else (listed,)
        same_id = message_id(str(manifest.uid), recipient)
        yield notification_id, Message(sender, recipient, subject, text, html, same_id, attached, leave)


def _mail(announcement: Announcement, links: Sequence[Link] | None) -> ReadyMail:
    """The mail's facts; ``links`` is None if the files are attached."""
    manifest = announcement.manifest
    given: Sequence[Link | None] = [None] * len(manifest.files) if links is None else links
    linked = list(zip(manifest.files, given, strict=True))
    ends = [link.expires_at for link in given if link is not None and link.expires_at is not None]
    return ReadyMail(
        dataset_titles=titles_of(announcement.dataset),
        rows=manifest.rows,
        files=tuple(ReadyFile(file.name, file.bytes, link.url if link else None) for file, link in linked),
        snapshot_at=manifest.snapshot_at,
        expires_at=min(ends, default=None),
        time_zone=announcement.time_zone,
        organization_name=announcement.organization_name,
        counters=manifest.counters,
    )


def attachments_of(store: Store, manifest: Manifest, longest: int) -> tuple[Attachment, ...]:
    """The export's files, read from the store and checked against the manifest; empty if they are to be linked.

    ``longest`` is the bytes that all files together may have; 0 means that nothing is ever attached.

    Raises ``ExportFailure``: ``checksum_mismatch`` if a file is not what the manifest says; the store's.
    """
    if not longest or sum(file.bytes for file in manifest.files) > longest:
        return ()
    # SendGrid refuses an attachment without content. Browsers undo a content encoding, mail clients do not.
    if not all(file.bytes and file.content_encoding is None for file in manifest.files):
        return ()
    return tuple(Attachment(file.name, file.media_type, _content(store, file)) for file in manifest.files)


def _content(store: Store, file: ManifestFile) -> bytes:
    with store.open(file.key) as stream:
        content = stream.read(file.bytes + 1)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ExportFailure(
            FailureCode.CHECKSUM_MISMATCH,
            f"{file.name} in the store is not what the manifest says; no mail was sent. Find out who changed it, "
            "then have the export requested again.",
        )
    return content


def link_list(files: Sequence[ReadyFile]) -> Attachment | None:
    """All links as a text file, for a mail that cannot list them; None if it can, or if they are too many to attach.

    One line per file, in the order of the rows: its name, a tab, its link.
    """
    if len(files) <= MAX_LISTED or not all(file.url for file in files):
        return None
    content = "".join(f"{one_line(file.name)}\t{file.url}\r\n" for file in files).encode()
    return Attachment("links.txt", "text/plain; charset=utf-8", content) if len(content) <= _LONGEST_LIST else None


def unsubscribe_url(settings: Settings, recurring_export_id: int | None, recipient: str) -> str | None:
    """Where a recipient leaves a recurring export; None for other mails, and without a gateway to serve the link."""
    key = settings.signing_key.get_secret_value()
    if recurring_export_id is None or not key or not settings.public_url:
        return None
    return f"{settings.public_url}/unsubscribe/{make_token(key, recurring_export_id, recipient)}"


def _download_links(
    database: sa.Engine, settings: Settings, announcement: Announcement, notification_id: int
) -> list[Link]:
    """Links for one mail only, so that the audit trail can distinguish the mails; they live as long as the files."""
    ends_at, ordinals = announcement.files_expire_at, [file.ordinal for file in announcement.manifest.files]
    with database.begin() as connection:
        tokens = create(
            connection, announcement.request_id, ordinals, expires_at=ends_at, notification_id=notification_id
        )
    return [Link(download_url(settings.public_url, token), ends_at) for token in tokens]


def _presigned(store: Store, settings: Settings, announcement: Announcement, warn: Callable[[str], None]) -> list[Link]:
    """Links that live as long as the settings say, and never longer than the files."""
    hours, ends_at = timedelta(hours=settings.link_lifetime_hours), announcement.files_expire_at
    promised = min(hours, ends_at - datetime.now(UTC))
    files = announcement.manifest.files
    links = [store.link(describe(file), min(hours, ends_at - datetime.now(UTC))) for file in files]
    ends = [link.expires_at for link in links if link.expires_at is not None]
    lifetime = min(ends) - datetime.now(UTC) if ends else promised
    if lifetime < promised - _UNNOTICED:
        warn(
            f"The mailed links work for {_hours(lifetime)}, not for {_hours(promised)}: the credentials that sign them "
            "expire then. Set EXPORT_PUBLIC_URL and run the gateway, whose links live as long as the files, or sign "
            "with credentials that last."
        )
    return links


def _hours(lifetime: timedelta) -> str:
    minutes = max(0, round(lifetime.total_seconds() / 60))
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
