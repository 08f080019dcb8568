"""The ways an alert reaches operators: a Slack-compatible webhook, a mail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from email.headerregistry import Address
from functools import partial
from html import escape

from export_pipeline.messaging.message import MailProvider, Message
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


Channel = Callable[[Notice], None]
"""One way to operators. It delivers a notice, or raises ``AlertNotAccepted`` or ``AlertOutcomeUnknown``, or their
counterparts of the mail provider."""


def open_channels(settings: Settings) -> dict[str, Channel]:
    """The channels that the settings name, by the name that tags their alerts; empty if alerts are off."""
    channels: dict[str, Channel] = {}
    url = settings.alert_webhook_url.get_secret_value()
    if url:
        channels["webhook"] = partial(post_notice, url)
    if settings.alert_email:
        provider, sender = open_mail_provider(settings), default_sender(settings)
        channels["mail"] = partial(_mail_notice, provider, sender, settings.alert_email)
    return channels


def post_notice(url: str, notice: Notice) -> None:
    """POST ``{"text": …}``, as the incoming webhooks of Slack, Mattermost, Rocket.Chat and Zulip expect it.

    Redirects are not followed: the URL is a credential.
    """
    import requests

    # Slack, "Formatting text for app surfaces": these three characters are escaped, and no others.
    text = escape(f"{notice.subject}\n{notice.text}", quote=False)
    timeout = CONNECT_SECONDS, ANSWER_SECONDS
    try:
        # stream: only the status matters, and a body without an end is not read.
        with requests.post(url, json={"text": text}, timeout=timeout, allow_redirects=False, stream=True) as answer:
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


def _mail_notice(provider: MailProvider, sender: Address, recipient: str, notice: Notice) -> None:
    """Mail a notice through the provider of the export mails."""
    digest = hashlib.sha256(f"{recipient} {notice.text}".encode()).hexdigest()[:32]
    html = f"<!DOCTYPE html><html><body><pre>{escape(notice.text)}</pre></body></html>"
    provider.send(Message(sender, recipient, notice.subject, notice.text, html, f"alert.{digest}"))
