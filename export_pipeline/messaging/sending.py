"""Send the pending mails of a request, each at most once, whatever happens in between.

``export_notifications`` says ``sending`` before a mail leaves, and its result afterwards. ``notify_recipients`` and
``failure_mail`` decide who gets a mail and what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from export_pipeline.database.enums import NotificationKind, NotificationStatus
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import Blame, MailNotAccepted, MailOutcomeUnknown, MailProvider, Message
from export_pipeline.requests import notifications

_ADVICE = {
    FailureCode.MAIL_UNAVAILABLE: "Check EXPORT_MAIL_URL and the provider. The mails are tried again; to do it now",
    FailureCode.MAIL_REFUSED: "The provider refuses this installation's mail, not a recipient: correct what it refuses "
    "(login, EXPORT_MAIL_FROM, relaying, SPF, DKIM, DMARC, size). The mails are tried again; to do it now",
}


class MailPostponed(ExportFailure):
    """Some mails were certainly not sent, and stay pending.

    ``mail_unavailable``: the provider fails for now. ``mail_refused``: until the operators change something.
    ``retry_after``: seconds that the provider wants us to wait, None if it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None,
        code: FailureCode = FailureCode.MAIL_UNAVAILABLE,
        requester_message: str | None = None,
    ) -> None:
        super().__init__(code, message, requester_message=requester_message)
        self.retry_after = retry_after


@dataclass
class SendResult:
    """The outcome of sending some mails of a request."""

    counts: Mapping[NotificationStatus, int] = field(default_factory=dict)
    """How many mails of the request are in each state afterwards."""
    refusals: list[MailNotAccepted] = field(default_factory=list)
    wait: float | None = None
    """Seconds that the provider wants us to wait."""

    @property
    def pending(self) -> int:
        """Mails that are still to be sent."""
        return self.counts.get(NotificationStatus.PENDING, 0)

    def postponed(self, problem: str, requester_message: str | None = None) -> MailPostponed:
        """Why some mails are still to be sent; ``problem`` is the beginning of the message."""
        blamed = any(refusal.blame is Blame.INSTALLATION for refusal in self.refusals)
        later = any(not refusal.permanent and refusal.blame is Blame.UNCLEAR for refusal in self.refusals)
        unclear = any(refusal.permanent and refusal.blame is Blame.UNCLEAR for refusal in self.refusals)
        refused = blamed or (unclear and not later)
        code = FailureCode.MAIL_REFUSED if refused else FailureCode.MAIL_UNAVAILABLE
        reasons = ", ".join(dict.fromkeys(refusal.reason for refusal in self.refusals))
        return MailPostponed(
            f"{problem}{f' ({reasons})' if reasons else ''}. {_ADVICE[code]}, re-execute this step.",
            retry_after=self.wait,
            code=code,
            requester_message=requester_message,
        )


def send_all(
    database: sa.Engine,
    provider: MailProvider,
    request_id: int,
    messages: Iterable[tuple[int, Message]],
    *,
    kind: NotificationKind = NotificationKind.READY,
    check: Callable[[], None],
) -> SendResult:
    """Send a request's pending mails one by one.

    A permanent refusal for one recipient ends that recipient's mail and does not stop the others. A refusal of the
    installation leaves the mail pending. An unclear refusal counts against the recipient if another mail of the request
    was accepted, else against the installation. Sending stops if the provider demands a wait (HTTP 429 with
    ``Retry-After``), cannot be reached or refuses the login.

    ``messages`` are notification ids and their messages. ``check`` is called before each mail; it may raise to stop.
    """
    done = SendResult()
    unclear: dict[int, str] = {}
    for notification_id, message in messages:
        check()
        refusal = _send(database, provider, notification_id, message)
        if refusal is None:
            continue
        done.refusals.append(refusal)
        if refusal.permanent and refusal.blame is Blame.UNCLEAR:
            unclear[notification_id] = refusal.reason
        done.wait = refusal.retry_after
        if done.wait is not None or not refusal.reached:
            break
    with database.begin() as connection:
        if notifications.counts(connection, request_id, kind).get(NotificationStatus.SENT):
            for notification_id, reason in unclear.items():
                notifications.record_result(connection, notification_id, NotificationStatus.REFUSED, reason)
        done.counts = notifications.counts(connection, request_id, kind)
    return done


def _send(
    database: sa.Engine, provider: MailProvider, notification_id: int, message: Message
) -> MailNotAccepted | None:
    with database.begin() as connection:
        if not notifications.start_sending(connection, notification_id):
            return None
    status, reason = NotificationStatus.SENT, None
    refused: MailNotAccepted | None = None
    try:
        provider.send(message)
    except MailNotAccepted as refusal:
        certain = refusal.permanent and refusal.blame is Blame.RECIPIENT
        status = NotificationStatus.REFUSED if certain else NotificationStatus.PENDING
        reason, refused = refusal.reason, refusal
    except MailOutcomeUnknown as unknown:
        status, reason = NotificationStatus.UNKNOWN, unknown.reason
    with database.begin() as connection:
        notifications.record_result(connection, notification_id, status, reason)
    return refused
