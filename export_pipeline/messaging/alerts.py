"""The ways an alert reaches operators: a Slack-compatible webhook, a mail.

The two failures are kept apart, as a mail provider's are: ``AlertNotAccepted`` = certainly not delivered, a later try
is safe; ``AlertOutcomeUnknown`` = perhaps delivered, a second one would be one too many.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from email.headerregistry import Address
from html import escape
from typing import Protocol

from export_pipeline.messaging.message import MailNotAccepted, MailOutcomeUnknown, MailProvider, Message
from export_pipeline.messaging.providers import default_sender, open_mail_provider
from export_pipeline.settings import Settings

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
"""A sensor's tick has a minute; one alert must not take all of it."""


@dataclass(frozen=True)
class Notice:
    """What operators are told: plain text, ids only."""

    subject: str
    text: str


class AlertNotAccepted(Exception):
    """Certainly not delivered. Its text is a reason such as ``http 404``, without URL or address."""


class AlertOutcomeUnknown(Exception):
    """Perhaps delivered: the answer was lost."""


class Channel(Protocol):
    """One way to operators."""

    def send(self, notice: Notice) -> None:
        """Deliver a notice.

        Raises:
            AlertNotAccepted: certainly not delivered.
            AlertOutcomeUnknown: perhaps delivered.
        """
        ...


def open_channels(settings: Settings) -> dict[str, Channel]:
    """The channels that the settings name, by the name that their alerts are tagged with; none if alerts are off.

    Raises:
        SettingsError: the mail provider or the sender cannot be used.
    """
    channels: dict[str, Channel] = {}
    url = settings.alert_webhook_url.get_secret_value()
    if url:
        channels["webhook"] = SlackWebhook(url)
    if settings.alert_email:
        channels["mail"] = AlertMail(open_mail_provider(settings), default_sender(settings), settings.alert_email)
    return channels


class SlackWebhook:
    """POSTs ``{"text": …}`` as Slack's incoming webhooks take it, and those of Mattermost, Rocket.Chat and Zulip."""

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, notice: Notice) -> None:
        """POST a notice; see ``Channel.send``. Redirects are not followed: the URL is a credential."""
        import requests

        text = f"{notice.subject}\n{notice.text}"
        # Slack, "Formatting text for app surfaces": these three are escaped, and no others.
        for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(character, entity)
        try:
            with requests.post(
                self._url,
                json={"text": text},
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=False,
                stream=True,  # the status says all: a body without an end is not read
            ) as answer:
                status = answer.status_code
        except requests.RequestException as error:
            outcome = _outcome(error)
        else:
            if status // 100 == 2:
                return
            outcome = AlertNotAccepted(f"http {status}")
        raise outcome from None


def _outcome(error: Exception) -> Exception:
    """What a request that got no answer means; the error's own text holds the URL."""
    import requests
    from urllib3.exceptions import NewConnectionError

    reason = type(error).__name__
    inner = getattr(error.args[0], "reason", None) if error.args else None
    never_connected = isinstance(inner, NewConnectionError) or isinstance(
        error, requests.ConnectTimeout | requests.exceptions.SSLError | requests.exceptions.ProxyError | ValueError
    )
    return AlertNotAccepted(reason) if never_connected else AlertOutcomeUnknown(reason)


class AlertMail:
    """Mails a notice through the provider of the exports' own mails."""

    def __init__(self, provider: MailProvider, sender: Address, recipient: str) -> None:
        self._provider = provider
        self._sender = sender
        self._recipient = recipient

    def send(self, notice: Notice) -> None:
        """Mail a notice; see ``Channel.send``."""
        digest = hashlib.sha256(f"{self._recipient} {notice.text}".encode()).hexdigest()[:32]
        message = Message(
            sender=self._sender,
            recipient=self._recipient,
            subject=notice.subject,
            text=notice.text,
            html=f"<!DOCTYPE html><html><body><pre>{escape(notice.text)}</pre></body></html>",
            message_id=f"alert.{digest}",
        )
        try:
            self._provider.send(message)
        except MailNotAccepted as refusal:
            outcome: Exception = AlertNotAccepted(refusal.reason)
        except MailOutcomeUnknown as unknown:
            outcome = AlertOutcomeUnknown(unknown.reason)
        else:
            return
        raise outcome
