"""Telling the recipients of a published export: who is to be told, with which links or attachments.

What belongs here: the mail's facts, and what its outcome means for the row. What does not: handing over
(``handover``), the ledger's states (requests.ledger), texts (``message``), providers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.delivery.attachments import attachments_of
from export_pipeline.delivery.handover import MailPostponed, hand_over
from export_pipeline.delivery.mail import MailProvider, Message, default_sender, message_id, parse_address
from export_pipeline.delivery.manifest import Manifest, ManifestFile
from export_pipeline.delivery.message import ReadyFile, ReadyMail, ready_message, titles_of
from export_pipeline.delivery.objects import Link
from export_pipeline.delivery.store import Store
from export_pipeline.delivery.upload import describe
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import ledger
from export_pipeline.requests.database import reading
from export_pipeline.requests.enums import NotificationStatus
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organizations
from export_pipeline.requests.sealed_links import seal, sealed_url
from export_pipeline.requests.senders import sender_of
from export_pipeline.requests.unsubscribe import make_token
from export_pipeline.settings import Settings


@dataclass(frozen=True)
class Announcement:
    """A published export, and how its recipients are to be told."""

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
    """Who the mails are from; None = the platform."""
    recurring_export_id: int | None = None
    """The recurring export that it is of: its recipients are told how to leave."""


def notify(
    database: sa.Engine,
    store: Store,
    provider: MailProvider,
    settings: Settings,
    announcement: Announcement,
    *,
    check: Callable[[], None],
) -> dict[NotificationStatus, int]:
    """Mail every recipient who certainly has no mail yet; ``check`` is called before each and may raise to stop.

    Returns:
        How many notifications are in each state.

    Raises:
        MailPostponed: some were not accepted for now; a later call sends to them alone.
        ExportFailure: an attachment cannot be read.
    """
    request_id = announcement.request_id
    with database.begin() as connection:
        ledger.enlist(connection, request_id, announcement.recipients)
        ledger.close_interrupted(connection, request_id)
        waiting = ledger.pending(connection, request_id)
    wait = None
    if waiting:
        wait = hand_over(database, provider, _messages(database, store, settings, announcement, waiting), check=check)
    with reading(database) as connection:
        counts = ledger.counts(connection, request_id)
    if counts.get(NotificationStatus.PENDING):
        raise MailPostponed(
            f"The files are ready, but {counts[NotificationStatus.PENDING]} of {sum(counts.values())} recipients could "
            "not be mailed. Check EXPORT_MAIL_URL and the provider, then re-execute notify_recipients.",
            retry_after=wait,
        )
    return counts


def sender_for(
    connection: sa.Connection, organizations: Organizations, request: ExportRequest
) -> tuple[Address | None, str | None]:
    """Who the mails of a published export are from (None = the platform), and what the row should say of that.

    ``plan`` refused a sender that could not be used then. One that was lost since keeps nobody from their files:
    the platform sends what is still to be sent, and the row says so.
    """
    try:
        sender = sender_of(connection, organizations, request)
        return (None if sender is None else parse_address(sender.email, display_name=sender.name or "")), None
    except ExportFailure as failure:
        lost: str = failure.code
    except ValueError:
        lost = FailureCode.INVALID_SENDER
    if not ledger.pending(connection, request.id):
        return None, None
    return None, f"Mails are from the platform's address: the sender that was asked for can no longer be used ({lost})."


def undelivered(counts: Mapping[NotificationStatus, int]) -> str | None:
    """What the row should say of recipients who have no mail, None if all have theirs."""
    refused, unknown = counts.get(NotificationStatus.REFUSED, 0), counts.get(NotificationStatus.UNKNOWN, 0)
    if not refused and not unknown:
        return None
    return (
        f"The files are ready; the mail was refused for {refused} of {sum(counts.values())} recipients, and of "
        f"{unknown} it is not known whether they got theirs (export_notifications says who)."
    )


def _messages(
    database: sa.Engine,
    store: Store,
    settings: Settings,
    announcement: Announcement,
    waiting: Sequence[tuple[int, str]],
) -> list[tuple[int, Message]]:
    manifest = announcement.manifest
    attachments = attachments_of(store, manifest, settings.mail_attachment_max_bytes)
    sender = announcement.sender or default_sender(settings)
    sealed = bool(settings.public_url) and not attachments
    shared = None if sealed or attachments else _presigned(store, settings, announcement)
    messages = []
    for notification_id, recipient in waiting:
        links = _sealed(database, settings, announcement, notification_id) if sealed else shared
        leave = unsubscribe_url(settings, announcement.recurring_export_id, recipient)
        mail = replace(_mail(announcement, links), unsubscribe_url=leave)
        subject, text, html = ready_message(mail, announcement.locale)
        same_id = message_id(str(manifest.uid), recipient)
        message = Message(sender, recipient, subject, text, html, same_id, attachments, leave)
        messages.append((notification_id, message))
    return messages


def unsubscribe_url(settings: Settings, recurring_export_id: int | None, recipient: str) -> str | None:
    """Where a recipient leaves a recurring export; None for other mails, and where no gateway serves the link."""
    key = settings.signing_key.get_secret_value()
    if recurring_export_id is None or not key or not settings.public_url:
        return None
    return f"{settings.public_url}/unsubscribe/{make_token(key, recurring_export_id, recipient)}"


def _presigned(store: Store, settings: Settings, announcement: Announcement) -> list[Link]:
    return [link_to(store, settings, file, announcement.files_expire_at) for file in announcement.manifest.files]


def _sealed(database: sa.Engine, settings: Settings, announcement: Announcement, notification_id: int) -> list[Link]:
    """Links of this one mail, so that the audit trail can tell them apart; they live as long as the files."""
    ends_at, ordinals = announcement.files_expire_at, [file.ordinal for file in announcement.manifest.files]
    with database.begin() as connection:
        tokens = seal(
            connection, announcement.request_id, ordinals, expires_at=ends_at, notification_id=notification_id
        )
    return [Link(sealed_url(settings.public_url, token), ends_at) for token in tokens]


def _mail(announcement: Announcement, links: Sequence[Link] | None) -> ReadyMail:
    """The mail's facts; ``links`` is None if the files are attached."""
    manifest = announcement.manifest
    given: Sequence[Link | None] = [None] * len(manifest.files) if links is None else links
    linked = list(zip(manifest.files, given, strict=True))
    ends = [link.expires_at for _, link in linked if link is not None and link.expires_at is not None]
    return ReadyMail(
        dataset_titles=titles_of(announcement.dataset),
        rows=manifest.rows,
        files=tuple(ReadyFile(file.name, file.bytes, link.url if link else None) for file, link in linked),
        snapshot_at=manifest.snapshot_at,
        expires_at=min(ends) if ends else None,
        time_zone=announcement.time_zone,
        organization_name=announcement.organization_name,
        counters=manifest.counters,
    )


def link_to(store: Store, settings: Settings, file: ManifestFile, files_expire_at: datetime) -> Link:
    """A link to a delivered file that lives as long as the settings say, and never longer than the file."""
    longest = timedelta(hours=settings.link_lifetime_hours)
    return store.link(describe(file), min(longest, files_expire_at - datetime.now(UTC)))
