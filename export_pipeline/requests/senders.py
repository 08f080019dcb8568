"""Who the mail is from.

What belongs here: the rules of ``from_email`` and ``from_sender_id``. What does not: reading the organization's domains
and senders (``organizations``), the platform's own sender (settings), building the header (delivery).

The first sentence of each refusal is gu1's own (send-email, pre-flight errors; same integration and sender rules), so
that clients which know it find it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from email_validator import EmailNotValidError, ValidatedEmail, validate_email

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organizations


@dataclass(frozen=True)
class Sender:
    """An address that the organization sends from."""

    email: str = field(repr=False)
    """With the domain in the form that DNS knows (``xn--...``)."""
    name: str | None = None
    """On one line."""


def sender_of(connection: sa.Connection, organizations: Organizations, request: ExportRequest) -> Sender | None:
    """Who the request's mails are from; None: the platform's sender.

    Raises:
        ExportFailure: ``sender_conflict``, ``invalid_sender``, ``sender_domain_unknown``,
            ``sender_domain_unverified``, ``sender_unknown``.
    """
    if request.from_email is not None and request.from_sender_id is not None:
        message = "Send only one of fromSenderId or fromEmail, not both. Leave out from_sender_id or from_email."
        raise ExportFailure(FailureCode.SENDER_CONFLICT, message, field="from_email")
    if request.from_email is not None:
        return _from_domain(connection, organizations, request.organization_id, request.from_email)
    if request.from_sender_id is not None:
        return _from_row(connection, organizations, request.organization_id, request.from_sender_id)
    return None


def _from_domain(
    connection: sa.Connection, organizations: Organizations, organization_id: str, from_email: str
) -> Sender:
    """Any local part on a verified domain of the organization; its subdomains are domains of their own."""
    address = _address(from_email)
    if address is None:
        raise ExportFailure(
            FailureCode.INVALID_SENDER,
            "from_email: is not an e-mail address such as exports@your-domain.com; correct it or leave it out.",
            field="from_email",
        )
    verified = [
        one.verified
        for one in organizations.domains(connection, organization_id)
        if ascii_domain(one.domain) == address.ascii_domain
    ]
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


def _from_row(connection: sa.Connection, organizations: Organizations, organization_id: str, sender_id: str) -> Sender:
    """A row of the organization's senders. Its domain is not asked for: the row is itself the permission [I].

    gu1's sentence is cut off after "fromSe" in what could be read [?]; this one follows its sentence for a template
    that is unknown or another organization's, and like it does not tell the two apart.
    """
    stored = organizations.sender(connection, organization_id, sender_id)
    if stored is None:
        raise ExportFailure(
            FailureCode.SENDER_UNKNOWN,
            "fromSenderId not found or not accessible for this organization. Use the id of one of its senders, or "
            "leave from_sender_id out.",
            field="from_sender_id",
        )
    address = _address(stored.email)
    if address is None:
        raise ExportFailure(
            FailureCode.INVALID_SENDER,
            "from_sender_id: the address stored for this sender is not an e-mail address; correct it there, or leave "
            "from_sender_id out.",
            field="from_sender_id",
        )
    return Sender(_for_dns(address), _one_line(stored.name))


def _address(text: str) -> ValidatedEmail | None:
    try:
        return validate_email(text.strip(), check_deliverability=False)
    except EmailNotValidError:
        return None


def ascii_domain(domain: str) -> str | None:
    """The domain as DNS knows it, by the same rules as a sender's; None if it is none."""
    address = _address(f"postmaster@{domain.strip().removesuffix('.')}")
    return address.ascii_domain if address else None


def _for_dns(address: ValidatedEmail) -> str:
    return f"{address.local_part}@{address.ascii_domain}"


def _one_line(name: str | None) -> str | None:
    """A name for a header: no line breaks, no control characters."""
    shown = "".join(c if c.isprintable() else " " for c in name or "")
    return " ".join(shown.split()) or None
