"""The ways an alert reaches operators: a Slack-compatible webhook, a mail."""

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
    """An alert for operators: plain text, with ids only."""

    subject: str
    text: str


class AlertNotAccepted(Exception):
    """Certainly not delivered: it may be sent again. Its text is a reason such as ``http 404``: no URL or address."""


class AlertOutcomeUnknown(Exception):
    """Perhaps delivered, because the answer was lost: it must not be sent again."""


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
    """The channels that the settings name, by the name that tags their alerts; empty if alerts are off.

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
    """POSTs ``{"text": …}``, as the incoming webhooks of Slack, Mattermost, Rocket.Chat and Zulip expect it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, notice: Notice) -> None:
        """POST a notice; see ``Channel.send``. Redirects are not followed: the URL is a credential."""
        import requests

        # Slack, "Formatting text for app surfaces": these three characters are escaped, and no others.
        text = escape(f"{notice.subject}\n{notice.text}", quote=False)
        timeout = CONNECT_SECONDS, ANSWER_SECONDS
        try:
            # stream: only the status matters, and a body without an end is not read.
            with requests.post(
                self._url, json={"text": text}, timeout=timeout, allow_redirects=False, stream=True
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
    """Whether a request without an answer may have arrived; the error's own text holds the URL."""
    import requests
    from urllib3.exceptions import NewConnectionError

    reason = type(error).__name__
    inner = getattr(error.args[0], "reason", None) if error.args else None
    never_connected = isinstance(inner, NewConnectionError) or isinstance(
        error, requests.ConnectTimeout | requests.exceptions.SSLError | requests.exceptions.ProxyError | ValueError
    )
    return AlertNotAccepted(reason) if never_connected else AlertOutcomeUnknown(reason)


class AlertMail:
    """Mails a notice through the provider of the export mails."""

    def __init__(self, provider: MailProvider, sender: Address, recipient: str) -> None:
        self._provider = provider
        self._sender = sender
        self._recipient = recipient

    def send(self, notice: Notice) -> None:
        """Mail a notice; see ``Channel.send``."""
        digest = hashlib.sha256(f"{self._recipient} {notice.text}".encode()).hexdigest()[:32]
        html = f"<!DOCTYPE html><html><body><pre>{escape(notice.text)}</pre></body></html>"
        try:
            self._provider.send(
                Message(self._sender, self._recipient, notice.subject, notice.text, html, f"alert.{digest}")
            )
        except MailNotAccepted as refusal:
            outcome: Exception = AlertNotAccepted(refusal.reason)
        except MailOutcomeUnknown as unknown:
            outcome = AlertOutcomeUnknown(unknown.reason)
        else:
            return
        raise outcome
