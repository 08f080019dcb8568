"""Whether the requester may export at all.

What belongs here: the permission rule. What does not: who the members are (``organizations``), keys of an API.
"""

from __future__ import annotations

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organizations


def permission_for(dataset: str) -> str:
    """The permission to export a dataset (gu1, bulk entity export by e-mail: ``entities:export``)."""
    return f"{dataset}:export"


def permissions_of(
    connection: sa.Connection, organizations: Organizations, organization_id: str, member_id: str | None
) -> frozenset[str] | None:
    """What a member may do, nothing if they left; None: no member is named, or the organization keeps none."""
    if member_id is None:
        return None
    member = organizations.member(connection, organization_id, member_id)
    if member is not None:
        return member.permissions
    return frozenset() if organizations.keeps_members(connection, organization_id) else None


def check_permission(connection: sa.Connection, organizations: Organizations, request: ExportRequest) -> None:
    """The requester, if one is named, must be a member with the dataset's permission.

    An organization without any member row does not use permissions: its application answers for them.

    Raises:
        ExportFailure: ``permission_denied``; the same for somebody unknown, who is not told who is known.
    """
    held = permissions_of(connection, organizations, request.organization_id, request.requested_by)
    permission = permission_for(request.dataset)
    if held is not None and permission not in held:
        raise ExportFailure(
            FailureCode.PERMISSION_DENIED,
            f"requested_by: is not a member of the organization with the permission {permission}; ask whoever grants "
            "permissions there.",
            field="requested_by",
        )
