"""Notifying: one message a recipient, handed over at most once, whatever happens in between.

What belongs here: the walk through the ledger. What does not: the ledger's states (requests.ledger),
texts (``message``), providers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.delivery.mail import (
    MailNotAccepted,
    MailOutcomeUnknown,
    MailProvider,
    Message,
    default_sender,
)
from export_pipeline.delivery.manifest import Manifest, ManifestFile
from export_pipeline.delivery.message import ReadyFile, ReadyMail, ready_message
from export_pipeline.delivery.objects import Link
from export_pipeline.delivery.store import Store
from export_pipeline.delivery.upload import describe
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import ledger
from export_pipeline.requests.database import reading
from export_pipeline.requests.tables import NotificationStatus
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

    A recipient whom the provider refuses for good does not keep the others from theirs.

    Returns:
        How many notifications are in each state.

    Raises:
        ExportFailure: ``mail_unavailable`` if some were not accepted for now; a later call sends to them alone.
    """
    request_id = announcement.request_id
    with database.begin() as connection:
        ledger.enlist(connection, request_id, announcement.recipients)
        ledger.close_interrupted(connection, request_id)
        waiting = ledger.pending(connection, request_id)
    if waiting:
        subject, text, html = ready_message(_mail(store, settings, announcement), announcement.locale)
        sender = default_sender(settings)
        for notification_id, recipient in waiting:
            check()
            message_id = _message_id(announcement.manifest, recipient)
            message = Message(sender, recipient, subject, text, html, message_id)
            _send(database, provider, notification_id, message)
    with reading(database) as connection:
        counts = ledger.counts(connection, request_id)
    if counts.get(NotificationStatus.PENDING):
        raise ExportFailure(
            FailureCode.MAIL_UNAVAILABLE,
            f"The files are ready, but {counts[NotificationStatus.PENDING]} of {sum(counts.values())} recipients could "
            "not be mailed. Check EXPORT_MAIL_URL and the provider, then re-execute notify_recipients.",
        )
    return counts


def undelivered(counts: Mapping[NotificationStatus, int]) -> str | None:
    """What the row should say of recipients who have no mail, None if all have theirs."""
    refused, unknown = counts.get(NotificationStatus.REFUSED, 0), counts.get(NotificationStatus.UNKNOWN, 0)
    if not refused and not unknown:
        return None
    return (
        f"The files are ready; the mail was refused for {refused} of {sum(counts.values())} recipients, and of "
        f"{unknown} it is not known whether they got theirs (export_notifications says who)."
    )


def _send(database: sa.Engine, provider: MailProvider, notification_id: int, message: Message) -> None:
    with database.begin() as connection:
        if not ledger.start_sending(connection, notification_id):
            return
    status, reason = NotificationStatus.SENT, None
    try:
        provider.send(message)
    except MailNotAccepted as refusal:
        status = NotificationStatus.REFUSED if refusal.permanent else NotificationStatus.PENDING
        reason = refusal.reason
    except MailOutcomeUnknown as unknown:
        status, reason = NotificationStatus.UNKNOWN, unknown.reason
    with database.begin() as connection:
        ledger.settle(connection, notification_id, status, reason)


def _mail(store: Store, settings: Settings, announcement: Announcement) -> ReadyMail:
    manifest, dataset = announcement.manifest, announcement.dataset
    links = [(file, link_to(store, settings, file, announcement.files_expire_at)) for file in manifest.files]
    ends = [link.expires_at for _, link in links if link.expires_at is not None]
    return ReadyMail(
        dataset_titles={
            "en": dataset.title.en,
            "es": dataset.title.localized("es"),
            "pt": dataset.title.localized("pt"),
        },
        rows=manifest.rows,
        files=tuple(ReadyFile(file.name, file.bytes, link.url) for file, link in links),
        snapshot_at=manifest.snapshot_at,
        expires_at=min(ends) if ends else None,
        time_zone=announcement.time_zone,
        counters=manifest.counters,
    )


def link_to(store: Store, settings: Settings, file: ManifestFile, files_expire_at: datetime) -> Link:
    """A link to a delivered file that lives as long as the settings say, and never longer than the file."""
    longest = timedelta(hours=settings.link_lifetime_hours)
    return store.link(describe(file), min(longest, files_expire_at - datetime.now(UTC)))


def _message_id(manifest: Manifest, recipient: str) -> str:
    digest = hashlib.sha256(recipient.encode()).hexdigest()[:16]
    return f"{manifest.uid}.{digest}"
