"""Whether a request may be asked as it stands: every rule, in their order.

What belongs here: the order. What does not: the rules themselves (``permissions``, ``preflight``, ``mail_rules``).
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.requests.mail_rules import check_mail
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organization, Organizations
from export_pipeline.requests.permissions import check_permission
from export_pipeline.requests.preflight import Preflight, preflight
from export_pipeline.settings import Settings


def admit(
    connection: sa.Connection,
    organizations: Organizations,
    catalog: Mapping[str, Dataset],
    settings: Settings,
    request: ExportRequest,
) -> tuple[Organization, Preflight]:
    """Check a request: for its run, and before that so that its asker hears of a mistake at once. Nothing is taken.

    Raises:
        ExportFailure: the first rule that it breaks; its fault is the requester's.
    """
    organization = organizations.get(connection, request.organization_id)
    check_permission(connection, organizations, request)
    checked = preflight(request, catalog, organization, allow_insecure_webhooks=settings.webhook_allow_insecure)
    check_mail(connection, organizations, request, checked.recipients, provider_configured=settings.sends_mail)
    return organization, checked
