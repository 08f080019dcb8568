"""Organizations: their settings, their members, and the domains and senders of their mail.

The application keeps them in the tables or in views of the same names. A view may hold what the tables refuse: NULL or
text as a truth value, text as an instant, an upper-case UUID.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.database import tables
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.models import RequestInput


@dataclass(frozen=True)
class Organization:
    """An organization. Without a row it has the defaults, so that no row is needed to export."""

    id: str
    time_zone: str = "UTC"
    """IANA name."""
    name: str | None = None
    email_enabled: bool = True
    """gu1's ``global_sender_email``."""


@dataclass(frozen=True)
class Member:
    """A member of an organization, who may request exports."""

    email: str | None = field(repr=False)
    locale: str | None
    permissions: frozenset[str]


def read_organization(connection: sa.Connection, organization_id: str) -> Organization:
    """The organization, or its defaults if it has no row."""
    columns = tables.organizations.c
    row = connection.execute(
        sa.select(
            columns.time_zone,
            columns.name,
            # Not as a Boolean, for which SQLAlchemy takes every text of a view as true.
            sa.type_coerce(columns.email_enabled, sa.Integer()).label("email_enabled"),
        ).where(columns.id == organization_id)
    ).first()
    if row is None:
        return Organization(organization_id)
    return Organization(organization_id, row.time_zone, row.name, row.email_enabled in (None, 1))


def email_domains(connection: sa.Connection, organization_id: str) -> list[tuple[str, bool]]:
    """The domains that the organization registered to send from, in its spelling, and whether each is verified."""
    columns = tables.organization_email_domains.c
    found = connection.execute(
        sa.select(columns.domain, columns.verified_at.is_not(None)).where(columns.organization_id == organization_id)
    )
    return [(domain, bool(verified)) for domain, verified in found]


def stored_sender(connection: sa.Connection, organization_id: str, sender_id: str) -> tuple[str, str | None] | None:
    """Address and name of the organization's sender with that id; None if only another organization has it."""
    try:
        canonical = str(UUID(sender_id))
    except ValueError:
        return None
    columns = tables.organization_email_senders.c
    row = connection.execute(
        sa.select(columns.email, columns.name).where(
            columns.organization_id == organization_id, sa.func.lower(sa.cast(columns.id, sa.Text)) == canonical
        )
    ).first()
    return None if row is None else (row.email, row.name)


def keeps_members(connection: sa.Connection, organization_id: str) -> bool:
    """Whether the organization has any member rows."""
    members = sa.exists().where(tables.organization_members.c.organization_id == organization_id)
    return bool(connection.execute(sa.select(members)).scalar_one())


def find_member(connection: sa.Connection, organization_id: str, member_id: str) -> Member | None:
    """The organization's member with that id; None if it has none."""
    columns = tables.organization_members.c
    row = connection.execute(
        sa.select(columns.email, columns.locale, columns.permissions).where(
            columns.organization_id == organization_id, columns.member_id == member_id
        )
    ).first()
    if row is None:
        return None
    # A list only: in text, every part of a permission would be found.
    listed = row.permissions if isinstance(row.permissions, list) else []
    email, locale = (None if value is None else str(value) for value in (row.email, row.locale))
    return Member(email, locale, frozenset(entry for entry in listed if isinstance(entry, str)))


def member_addresses(connection: sa.Connection, organization_id: str) -> frozenset[str]:
    """The addresses of the organization's members, casefolded."""
    columns = tables.organization_members.c
    found = connection.execute(
        sa.select(columns.email).where(columns.organization_id == organization_id, columns.email.is_not(None))
    ).scalars()
    return frozenset(str(address).strip().casefold() for address in found)


def permission_for(dataset: str) -> str:
    """The permission to export a dataset (gu1, bulk entity export by e-mail: ``entities:export``)."""
    return f"{dataset}:export"


def permissions_of(connection: sa.Connection, organization_id: str, member_id: str | None) -> frozenset[str] | None:
    """The permissions of a member, none if they left; None if no member is named or the organization keeps none."""
    if member_id is None:
        return None
    member = find_member(connection, organization_id, member_id)
    if member is not None:
        return member.permissions
    return frozenset() if keeps_members(connection, organization_id) else None


def check_permission(connection: sa.Connection, request: RequestInput) -> None:
    """Check that the requester, if one is named, is a member with the dataset's permission (``permission_denied``).

    The failure is the same for an unknown requester, so that members are not disclosed. An organization without member
    rows does not use permissions; its application checks them.
    """
    held = permissions_of(connection, request.organization_id, request.requested_by)
    permission = permission_for(request.dataset)
    if held is not None and permission not in held:
        raise ExportFailure(
            FailureCode.PERMISSION_DENIED,
            f"requested_by: is not a member of the organization with the permission {permission}. Ask an "
            "administrator of the organization for it.",
            field="requested_by",
        )
