"""Handing mails over: each at most once, whatever happens in between.

What belongs here: the walk through a request's pending mails, and stopping where the provider asks to wait.
What does not: the ledger's states (requests.ledger), what a mail says and who gets it (``notify``, ``failure_mail``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from export_pipeline.delivery.mail import MailNotAccepted, MailOutcomeUnknown, MailProvider, Message
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import ledger
from export_pipeline.requests.enums import NotificationStatus


class MailPostponed(ExportFailure):
    """``mail_unavailable``: some mails certainly did not go out and are still to be sent.

    ``retry_after``: seconds that the provider asked to wait, None if it did not ask.
    """

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(FailureCode.MAIL_UNAVAILABLE, message)
        self.retry_after = retry_after


def hand_over(
    database: sa.Engine,
    provider: MailProvider,
    messages: Iterable[tuple[int, Message]],
    *,
    check: Callable[[], None],
) -> float | None:
    """Hand messages over one by one; ``check`` is called before each and may raise to stop.

    A recipient whom the provider refuses for good does not keep the others from theirs. A provider that
    asks to wait (HTTP 429 with ``Retry-After``) is left alone: the rest stays pending.

    Args:
        database: the request database.
        provider: how mail leaves.
        messages: notifications (their id in the ledger) and what they say.
        check: raises if nothing more is to be sent.

    Returns:
        Seconds that the provider asked to wait; None if it did not ask.
    """
    for notification_id, message in messages:
        check()
        wait = _send(database, provider, notification_id, message)
        if wait is not None:
            return wait
    return None


def _send(database: sa.Engine, provider: MailProvider, notification_id: int, message: Message) -> float | None:
    with database.begin() as connection:
        if not ledger.start_sending(connection, notification_id):
            return None
    status, reason, wait = NotificationStatus.SENT, None, None
    try:
        provider.send(message)
    except MailNotAccepted as refusal:
        status = NotificationStatus.REFUSED if refusal.permanent else NotificationStatus.PENDING
        reason, wait = refusal.reason, refusal.retry_after
    except MailOutcomeUnknown as unknown:
        status, reason = NotificationStatus.UNKNOWN, unknown.reason
    with database.begin() as connection:
        ledger.settle(connection, notification_id, status, reason)
    return wait
