"""The rules of mail: its sender, whether it may be sent, and its recipients.

The first sentence of each refusal of a sender is gu1's own (send-email, pre-flight errors; same integration and sender
rules), so that clients recognize it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, ValidatedEmail, validate_email

from export_pipeline.database.enums import EmptyResult
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.billing import check_balance
from export_pipeline.requests.models import ExportRequest, RequestInput
from export_pipeline.requests.organizations import email_domains, read_organization, stored_sender
from export_pipeline.requests.validation import refusal


@dataclass(frozen=True)
class Sender:
    """An address that the organization sends from."""

    email: str = field(repr=False)
    """With the domain in the form for DNS (``xn--...``)."""
    name: str | None = None
    """On one line."""


def sender_of(connection: sa.Connection, request: RequestInput) -> Sender | None:
    """The sender of the request's mails; None: the sender of the platform.

    Codes: ``sender_conflict``, ``invalid_sender``, ``sender_domain_unknown``, ``sender_domain_unverified``,
    ``sender_unknown``.
    """
    if request.from_email is not None and request.from_sender_id is not None:
        message = "Send only one of fromSenderId or fromEmail, not both. Leave out from_sender_id or from_email."
        raise ExportFailure(FailureCode.SENDER_CONFLICT, message, field="from_email")
    if request.from_email is not None:
        return _from_domain(connection, request.organization_id, request.from_email)
    if request.from_sender_id is not None:
        return _from_row(connection, request.organization_id, request.from_sender_id)
    return None


def _from_domain(connection: sa.Connection, organization_id: str, from_email: str) -> Sender:
    """Any local part on a verified domain of the organization. Its subdomains need their own verification."""
    address = parse_email(from_email)
    if address is None:
        message = "is not an e-mail address such as exports@your-domain.com; correct it or leave it out."
        raise refusal(FailureCode.INVALID_SENDER, "from_email", message)
    registered = email_domains(connection, organization_id)
    verified = [is_verified for name, is_verified in registered if ascii_domain(name) == address.ascii_domain]
    if not verified:
        raise ExportFailure(
            FailureCode.SENDER_DOMAIN_UNKNOWN,
            f'Domain "{address.domain}" is not registered in Gu1. Add and verify it under Settings → Email → Domains '
            f'before using sender "{address.normalized}".',
            field="from_email",
        )
    if not any(verified):
        raise ExportFailure(
            FailureCode.SENDER_DOMAIN_UNVERIFIED,
            f'Domain "{address.domain}" is not verified yet. Complete DNS records and click Verify under Settings → '
            "Email → Domains.",
            field="from_email",
        )
    return Sender(_for_dns(address))


def _from_row(connection: sa.Connection, organization_id: str, sender_id: str) -> Sender:
    """A row of the organization's senders. Its domain is not checked: the row is the permission [I].

    gu1's sentence is cut off after "fromSe" in the source [?]. This one follows gu1's sentence for a template that is
    unknown or belongs to another organization, which does not distinguish the two either.
    """
    stored = stored_sender(connection, organization_id, sender_id)
    if stored is None:
        raise ExportFailure(
            FailureCode.SENDER_UNKNOWN,
            "fromSenderId not found or not accessible for this organization. Use the id of one of its senders, or "
            "leave from_sender_id out.",
            field="from_sender_id",
        )
    email, name = stored
    address = parse_email(email)
    if address is None:
        message = "the address stored for this sender is not an e-mail address; correct it there, or leave it out."
        raise refusal(FailureCode.INVALID_SENDER, "from_sender_id", message)
    return Sender(_for_dns(address), _one_line(name))


def parse_email(text: str) -> ValidatedEmail | None:
    """An address, trimmed; None if it is none."""
    try:
        return validate_email(text.strip(), check_deliverability=False)
    except EmailNotValidError:
        return None


def ascii_domain(domain: str) -> str | None:
    """The domain in the form for DNS, by the same rules as a sender's; None if it is invalid."""
    address = parse_email(f"postmaster@{domain.strip().removesuffix('.')}")
    return address.ascii_domain if address else None


def _for_dns(address: ValidatedEmail) -> str:
    return f"{address.local_part}@{address.ascii_domain}"


def _one_line(name: str | None) -> str | None:
    """A name for a header: no line breaks, no control characters."""
    shown = "".join(c if c.isprintable() else " " for c in name or "")
    return " ".join(shown.split()) or None


def check_mail(
    connection: sa.Connection, request: RequestInput, recipients: Sequence[str], *, provider_configured: bool
) -> None:
    """Check that the request's mails may be sent. Nothing is taken; a request without recipients always passes.

    Source of the rules and of each message's first sentence: gu1, send-email, pre-flight errors.
    Codes: ``email_integration_off``, ``email_provider_not_configured``, those of ``sender_of``,
    ``insufficient_balance``.
    """
    if not recipients:
        return
    if not read_organization(connection, request.organization_id).email_enabled:
        raise ExportFailure(
            FailureCode.EMAIL_INTEGRATION_OFF,
            "Email integration is not active. Enable Email (global_sender_email) in Applications (Marketplace) for "
            "this organization.",
            field="recipient_emails",
        )
    if not provider_configured:
        raise ExportFailure(
            FailureCode.EMAIL_PROVIDER_NOT_CONFIGURED,
            "MS_PROVIDER_URL is not configured on the server. Configure the messaging provider to send email. "
            "(This installation sends no mail: leave the recipients out, or ask its operators to set mail up.)",
            field="recipient_emails",
        )
    sender_of(connection, request)
    uid = request.uid if isinstance(request, ExportRequest) else None
    check_balance(connection, request.organization_id, uid, recipients)


MAX_RECIPIENTS = 26
"""After deduplication (gu1, bulk entity export by e-mail)."""


def recipients_of(request: RequestInput) -> tuple[str, ...]:
    """The recipients of the request's mails: validated, trimmed, without duplicates, in the first spelling.

    The requester is not added (gu1). Empty if ``notify_email`` is false (SendGrid).
    Codes: ``invalid_recipient``, ``too_many_recipients``.
    """
    spelled = dict[str, int]()
    for index, address in enumerate(request.recipient_emails):
        spelled.setdefault(address.strip().lower(), index)
    found = dict[str, str]()
    for index in spelled.values():
        valid = _validated(request.recipient_emails[index], f"recipient_emails[{index}]")
        found.setdefault(valid.lower(), valid)
        if len(found) > MAX_RECIPIENTS:  # in the loop, because validation is slow and a body may hold very many
            message = f"{len(spelled)} different addresses; at most {MAX_RECIPIENTS} are allowed."
            raise refusal(FailureCode.TOO_MANY_RECIPIENTS, "recipient_emails", message)
    return tuple(found.values()) if request.notify_email else ()


def person_of(address: str) -> str:
    """Normalize an address: the case of both parts and the two forms of a domain do not matter.

    Case is lowered, not folded, because ``straße.de`` and ``strasse.de`` are two domains.
    """
    valid = parse_email(address)
    return (valid.normalized if valid else address.strip()).lower()


def _validated(address: str, field: str) -> str:
    valid = parse_email(address)
    if valid is not None:
        return valid.normalized
    problem = "is not an e-mail address. Correct or remove it."
    reserved = [
        name for name in SPECIAL_USE_DOMAIN_NAMES if re.search(rf"[@.]{re.escape(name)}$", address.strip().lower())
    ]
    if reserved and address.count("@") == 1:
        problem = (
            f"is at a domain that no mail can be sent to: {reserved[0]} is reserved, for example for private networks "
            "and tests. Use another address, or remove it."
        )
    raise refusal(FailureCode.INVALID_RECIPIENT, field, problem)


def recipients_of_files(request: ExportRequest) -> tuple[str, ...]:
    """The recipients of a completed request's mails; empty if no row matched and ``empty_result`` is ``skip``."""
    return () if is_silent(request) else recipients_of(request)


def is_silent(request: ExportRequest) -> bool:
    """Whether a completed request sends no mails because no row matched."""
    return request.empty_result is EmptyResult.SKIP and request.row_count == 0
