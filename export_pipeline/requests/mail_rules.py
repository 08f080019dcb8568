"""Whether a request's mails may go out, answered before anything starts.

What belongs here: the order of the rules. What does not: the rules themselves
(``recipients``, ``senders``, ``billing``), the provider (delivery).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.billing import check_balance
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organizations
from export_pipeline.requests.senders import sender_of


def check_mail(
    connection: sa.Connection,
    organizations: Organizations,
    request: ExportRequest,
    recipients: Sequence[str],
    *,
    provider_configured: bool,
) -> None:
    """May everybody be mailed as asked? Nothing is taken; a request that mails nobody always passes.

    Source of the rules and of each message's first sentence: gu1, send-email, pre-flight errors.

    Raises:
        ExportFailure: the first of ``email_integration_off``, ``email_provider_not_configured``, the codes of
            ``sender_of``, ``insufficient_balance``.
    """
    if not recipients:
        return
    if not organizations.get(connection, request.organization_id).email_enabled:
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
            "(This installation sends no mail: ask without recipients, or ask its operators to set mail up.)",
            field="recipient_emails",
        )
    sender_of(connection, organizations, request)
    check_balance(connection, request.organization_id, request.uid, recipients)
