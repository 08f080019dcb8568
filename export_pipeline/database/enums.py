"""The words of the contract's tables: one enum for every column that holds one of a few."""

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
"""A request that waits or is worked on; it may still be canceled."""
FINISHED = (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELED, RequestStatus.EXPIRED)
"""A request that has ended, one way or another."""


class Stage(StrEnum):
    """``export_requests.stage``: the op that works on the request, in their order."""

    PLAN = "plan"
    FILTER_ENTITIES = "filter_entities"
    SERIALIZE = "serialize"
    UPLOAD = "upload"
    PUBLISH = "publish"
    NOTIFY_RECIPIENTS = "notify_recipients"


class NotificationStatus(StrEnum):
    """``export_notifications.status``."""

    PENDING = "pending"
    """Nothing was handed over yet."""
    SENDING = "sending"
    """Being handed over; found so after a crash it becomes ``unknown``."""
    SENT = "sent"
    REFUSED = "refused"
    """The provider will never take it."""
    UNKNOWN = "unknown"
    """Handed over, the answer was lost. Never sent again by itself."""


class NotificationKind(StrEnum):
    """``export_notifications.kind``: what the mail says."""

    READY = "ready"
    """To a recipient: the files are there."""
    FAILED = "failed"
    """To the requester: why there are none, and what to do."""


class ChargeStatus(StrEnum):
    """``email_charges.status``: one e-mail execution of an organization's balance."""

    RESERVED = "reserved"
    """Taken from the balance before anything started."""
    CHARGED = "charged"
    """The mail was handed over."""
    RELEASED = "released"
    """Given back: the export ended without this mail."""


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
    """Somebody was handed URLs of the files."""
    DOWNLOADED = "downloaded"
    """A sealed link was opened."""
    EXPIRED = "expired"
    """Nobody is promised the files any more."""
    DELETED = "deleted"
    """The files are gone."""


class WebhookEvent(StrEnum):
    """``export_webhooks.event``: what a webhook tells."""

    COMPLETED = "export.completed"
    FAILED = "export.failed"
    CANCELED = "export.canceled"


class WebhookStatus(StrEnum):
    """``export_webhooks.status``."""

    PENDING = "pending"
    """Not taken yet; tried again at ``next_try_at``."""
    DELIVERED = "delivered"
    """Answered with 2xx."""
    ABANDONED = "abandoned"
    """Tried as often as it is worth, or its URL is refused."""


class OverlapPolicy(StrEnum):
    """``recurring_exports.overlap_policy``: what to do while the previous export still runs."""

    SKIP = "skip"
    QUEUE = "queue"


class CatchUpPolicy(StrEnum):
    """``recurring_exports.catch_up_policy``: what to do with fire times that were missed."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


class EmptyResult(StrEnum):
    """``export_requests.empty_result``: what becomes of the mail if nothing matched."""

    SEND = "send"
    SKIP = "skip"


class WindowKind(StrEnum):
    """``recurring_exports.window_kind``: which rows each export covers."""

    ALL = "all"
    PREVIOUS_PERIOD = "previous_period"
    SINCE_LAST_SUCCESS = "since_last_success"
