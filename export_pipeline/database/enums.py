"""The enums of the tables: one for each column that holds one of a few words."""

from __future__ import annotations

from enum import StrEnum


class RequestStatus(StrEnum):
    """``export_requests.status``."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


UNFINISHED = (RequestStatus.QUEUED, RequestStatus.RUNNING)
"""A request that waits or runs; it may still be canceled."""
FINISHED = (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELED, RequestStatus.EXPIRED)
"""A request that has ended."""


class Stage(StrEnum):
    """``export_requests.stage``: the op that works on the request, in the order of the ops."""

    PLAN = "plan"
    FILTER_ENTITIES = "filter_entities"
    SERIALIZE = "serialize"
    UPLOAD = "upload"
    PUBLISH = "publish"
    NOTIFY_RECIPIENTS = "notify_recipients"


class NotificationStatus(StrEnum):
    """``export_notifications.status``."""

    PENDING = "pending"
    """Not handed over yet."""
    SENDING = "sending"
    """Being handed over. After a crash it becomes ``unknown``."""
    SENT = "sent"
    REFUSED = "refused"
    """Permanently refused by the provider."""
    UNKNOWN = "unknown"
    """Handed over, but the answer was lost. Never sent again automatically."""


class NotificationKind(StrEnum):
    """``export_notifications.kind``."""

    READY = "ready"
    """To a recipient: the files are ready."""
    FAILED = "failed"
    """To the requester: why the export failed, and what to do."""


class ChargeStatus(StrEnum):
    """``email_charges.status``: the state of one e-mail execution."""

    RESERVED = "reserved"
    """Taken from the balance before the export starts."""
    CHARGED = "charged"
    """The mail was handed over."""
    RELEASED = "released"
    """Given back, because the export ended without this mail."""


class EventKind(StrEnum):
    """``export_events.kind``: the audit trail."""

    ASKED = "asked"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REQUEUED = "requeued"
    NOTIFIED = "notified"
    LINKED = "linked"
    """URLs of the files were issued."""
    DOWNLOADED = "downloaded"
    """A download link was opened."""
    EXPIRED = "expired"
    """The files may be deleted from now on."""
    DELETED = "deleted"
    """The files are deleted."""


class WebhookEvent(StrEnum):
    """``export_webhooks.event``."""

    COMPLETED = "export.completed"
    FAILED = "export.failed"
    CANCELED = "export.canceled"


class WebhookStatus(StrEnum):
    """``export_webhooks.status``."""

    PENDING = "pending"
    """Not delivered yet; tried again at ``next_try_at``."""
    DELIVERED = "delivered"
    """Answered with 2xx."""
    ABANDONED = "abandoned"
    """All tries failed, or its URL is refused."""


class OverlapPolicy(StrEnum):
    """``recurring_exports.overlap_policy``: what to do while the previous export still runs."""

    SKIP = "skip"
    QUEUE = "queue"


class CatchUpPolicy(StrEnum):
    """``recurring_exports.catch_up_policy``: what to do with missed fire times."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


class EmptyResult(StrEnum):
    """``export_requests.empty_result``: whether mails are sent if no row matched."""

    SEND = "send"
    SKIP = "skip"


class WindowKind(StrEnum):
    """``recurring_exports.window_kind``: the rows that each export covers."""

    ALL = "all"
    PREVIOUS_PERIOD = "previous_period"
    SINCE_LAST_SUCCESS = "since_last_success"
