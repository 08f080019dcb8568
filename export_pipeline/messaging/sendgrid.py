"""Mail through SendGrid's v3 API with its official package: one call per message, and what each outcome means."""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import URLError

import sendgrid
from python_http_client.exceptions import HTTPError
from sendgrid.helpers import mail as helpers
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from export_pipeline.messaging.message import Blame, MailNotAccepted, MailOutcomeUnknown, Message
from export_pipeline.messaging.mime import one_line, recipient_address

_TIMEOUT_SECONDS = 30.0
_LONGEST_WAIT = 3600.0
_FIELD = re.compile(
    r"(from|reply_to|subject|personalizations|content|attachments|headers|custom_args|tracking_settings|categories)"
    r"([._][a-z0-9_]+|\[\d+\])*"
)
_LONGEST_FIELD, _MOST_FIELDS = 60, 3


class SendGridMail:
    """Implements ``MailProvider``."""

    def __init__(self, api_key: str, host: str, *, timeout: float = _TIMEOUT_SECONDS) -> None:
        self._client = sendgrid.SendGridAPIClient(api_key, host=host)
        # The package sets no timeout and would wait for ever.
        self._client.client.timeout = timeout
        # At DEBUG it logs the key, the address and the body.
        logging.getLogger("python_http_client").setLevel(logging.INFO)

    def send(self, message: Message) -> None:
        """Send one message; the outcome is unknown also if a gateway answered for SendGrid."""
        body = _request(message)
        try:
            reply = self._client.send(body)
        except HTTPError as error:
            failure: Exception = _from_reply(int(error.status_code), error.headers, error.body)
        except URLError as error:
            # urllib wraps only errors that happen before the whole request is written: until then SendGrid cannot
            # have accepted it.
            failure = MailNotAccepted(f"sendgrid connection {_cause(error)}", permanent=False, reached=False)
        except (OSError, HTTPException) as error:
            failure = MailOutcomeUnknown(f"sendgrid reply lost: {type(error).__name__}")
        else:
            if reply.status_code == 202:
                return
            # A redirect was followed, or another server than SendGrid answered.
            failure = MailOutcomeUnknown(f"sendgrid {reply.status_code}")
        raise failure from None

    def check(self) -> None:
        """Check that the key may send mail."""
        try:
            reply = self._client.client.scopes.get()
            scopes = json.loads(reply.body).get("scopes", [])
        except HTTPError as error:
            reason = f"sendgrid {error.status_code}"
        except URLError as error:
            reason = f"sendgrid connection {_cause(error)}"
        except (OSError, HTTPException, ValueError, AttributeError) as error:
            reason = f"sendgrid {type(error).__name__}"
        else:
            if "mail.send" in scopes:
                return
            reason = "sendgrid key without mail.send"
        raise MailNotAccepted(reason, permanent=True)


def _request(message: Message) -> helpers.Mail:
    recipient = recipient_address(message.recipient)
    sender = message.sender
    mail = helpers.Mail(
        from_email=helpers.From(sender.addr_spec, one_line(sender.display_name) or None),
        to_emails=helpers.To(recipient.addr_spec),
        subject=one_line(message.subject),
        plain_text_content=message.text,
        html_content=message.html,
    )
    mail.add_custom_arg(helpers.CustomArg("message_id", message.message_id))
    # RFC 3834: prevents vacation replies.
    mail.add_header(helpers.Header("Auto-Submitted", "auto-generated"))
    for name, value in message.list_headers.items():
        mail.add_header(helpers.Header(name, value))
    # Tracking would send every signed link through SendGrid's redirector.
    tracking = helpers.TrackingSettings()
    tracking.click_tracking = helpers.ClickTracking(enable=False, enable_text=False)
    tracking.open_tracking = helpers.OpenTracking(enable=False)
    mail.tracking_settings = tracking
    for attachment in message.attachments:
        mail.add_attachment(
            helpers.Attachment(
                helpers.FileContent(base64.b64encode(attachment.content).decode()),
                helpers.FileName(one_line(attachment.name)),
                # SendGrid refuses a type with a semicolon (its "Mail Send Errors", attachments.type).
                helpers.FileType(attachment.media_type.partition(";")[0]),
                helpers.Disposition("attachment"),
            )
        )
    return mail


def _from_reply(status: int, headers: Any, body: Any) -> MailNotAccepted | MailOutcomeUnknown:
    fields = _fields(body)
    reason = " ".join([f"sendgrid {status}", *fields])
    if status in (502, 504):
        # From a gateway that got no valid answer from SendGrid: the mail may be on its way.
        return MailOutcomeUnknown(reason)
    permanent = 400 <= status < 500 and status not in (408, 429)
    blame = _blame(status, fields) if permanent else Blame.UNCLEAR
    return MailNotAccepted(reason, permanent=permanent, blame=blame, retry_after=_retry_after(status, headers))


def _blame(status: int, fields: list[str]) -> Blame:
    """Whose fault a refusal is: only the address is the recipient's; the rest is the installation's."""
    if status != 400:
        return Blame.INSTALLATION  # 401 and 403: the key or the sender; 413: too long; 404, 415: not SendGrid
    if not fields:
        return Blame.UNCLEAR
    # personalizations.0.to.0.email
    of_recipient = all("to" in re.split(r"[.\[\]]+", one) for one in fields)
    return Blame.RECIPIENT if of_recipient else Blame.INSTALLATION


def _fields(body: Any) -> list[str]:
    """The fields that SendGrid names in ``errors[].field``, such as ``from.email``; nothing that could be a value."""
    try:
        named = [error["field"] for error in json.loads(body)["errors"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    known = [one[:_LONGEST_FIELD] for one in named if isinstance(one, str) and _FIELD.fullmatch(one)]
    return list(dict.fromkeys(known))[:_MOST_FIELDS]


def _retry_after(status: int, headers: Any) -> float | None:
    """Seconds to wait: ``Retry-After`` (seconds or a date), else SendGrid's ``X-RateLimit-Reset`` (Unix time)."""
    if status not in (429, 503):
        return None
    wait: float | None = None
    with suppress(TypeError, ValueError, OverflowError, InvalidHeader):  # missing, or neither seconds nor a date
        wait = Retry().parse_retry_after(headers.get("Retry-After"))
    # Every answer has X-RateLimit-Reset; it means something only with 429.
    reset = headers.get("X-RateLimit-Reset") or ""
    if wait is None and status == 429 and reset.strip().isdigit():
        wait = float(reset) - time.time()
    return None if wait is None else min(max(wait, 0.0), _LONGEST_WAIT)


def _cause(error: URLError) -> str:
    return type(error.reason).__name__ if isinstance(error.reason, BaseException) else "error"
