"""Whether a recurring export may still do what it was allowed when it was set up, asked at every fire time.

What belongs here: the rules, in their order. What does not: what a refusal leads to (``recurring_outcomes``), the rules
that hold for every request anyway (``preflight``, ``mail_rules``: asked again by its run).
"""

from __future__ import annotations

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organizations
from export_pipeline.requests.permissions import check_permission
from export_pipeline.requests.recipients import recipients_of
from export_pipeline.requests.senders import ascii_domain, sender_of


def check_recurring(connection: sa.Connection, organizations: Organizations, request: ExportRequest) -> None:
    """May the owner (``requested_by``) still ask, may the sender still be used, do the recipients still belong here?

    Raises:
        ExportFailure: ``permission_denied`` (also for an owner who is gone), ``invalid_recipient``,
            ``too_many_recipients``, the codes of ``sender_of``, ``recipient_outside``.
    """
    check_permission(connection, organizations, request)
    recipients = recipients_of(request)
    if recipients:
        sender_of(connection, organizations, request)
        _check_inside(connection, organizations, request.organization_id, recipients)


def _check_inside(
    connection: sa.Connection, organizations: Organizations, organization_id: str, recipients: tuple[str, ...]
) -> None:
    """Nobody reads over this mail before it goes: it is for members, and for addresses on verified domains.

    An organization that keeps neither a member's address nor a verified domain does not say who belongs to it: its
    application answers for the recipients.
    """
    members = organizations.member_addresses(connection, organization_id)
    domains = {ascii_domain(one.domain) for one in organizations.domains(connection, organization_id) if one.verified}
    if not members and not domains:
        return
    for index, recipient in enumerate(recipients):
        if recipient.casefold() not in members and ascii_domain(recipient.rpartition("@")[2]) not in domains:
            raise ExportFailure(
                FailureCode.RECIPIENT_OUTSIDE,
                f"recipient_emails[{index}]: is neither a member of the organization nor on one of its verified "
                "domains. Remove the address, or add it there.",
                field="recipient_emails",
            )
