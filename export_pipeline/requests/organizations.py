"""What the pipeline needs to know of an organization: itself, its members, and what it may send mail from."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.database.tables import (
    organization_email_domains,
    organization_email_senders,
    organization_members,
    organizations,
)
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.models import RequestInput


@dataclass(frozen=True)
class Organization:
    """An organization; one without a row has the defaults, so that no row is needed to export."""

    id: str
    time_zone: str = "UTC"
    """IANA name."""
    name: str | None = None
    email_enabled: bool = True
    """gu1's ``global_sender_email``."""
    email_balance: int | None = None
    """E-mail executions left; None: not billed."""


@dataclass(frozen=True)
class EmailDomain:
    """A domain that an organization registered to send from."""

    domain: str
    verified: bool


@dataclass(frozen=True)
class StoredSender:
    """A sender that an organization keeps under an id."""

    email: str
    name: str | None


@dataclass(frozen=True)
class Member:
    """Somebody who may ask for exports."""

    id: str
    email: str | None = field(repr=False)
    locale: str | None
    permissions: frozenset[str]


class Organizations:
    """Reads organizations from tables or views with the columns of the pipeline's own."""

    def __init__(
        self,
        table: sa.FromClause = organizations,
        *,
        domains: sa.FromClause = organization_email_domains,
        senders: sa.FromClause = organization_email_senders,
        members: sa.FromClause = organization_members,
    ) -> None:
        self._table = table
        self._domains = domains
        self._senders = senders
        self._members = members

    def get(self, connection: sa.Connection, organization_id: str) -> Organization:
        """The organization, or its defaults if it has no row."""
        columns = self._table.c
        row = connection.execute(
            sa.select(
                columns.time_zone,
                columns.name,
                # SQLAlchemy takes whatever SQLite holds for true or false: 'false' would be true.
                sa.type_coerce(columns.email_enabled, sa.Integer()).label("email_enabled"),
                columns.email_balance,
            ).where(columns.id == organization_id)
        ).first()
        if row is None:
            return Organization(organization_id)
        return Organization(
            id=organization_id,
            time_zone=row.time_zone,
            name=row.name,
            email_enabled=row.email_enabled in (None, 1),
            email_balance=row.email_balance,
        )

    def domains(self, connection: sa.Connection, organization_id: str) -> list[EmailDomain]:
        """The domains that the organization registered, as it wrote them."""
        columns = self._domains.c
        found = connection.execute(
            # Whether, not when: SQLite may hold any text there.
            sa.select(columns.domain, columns.verified_at.is_not(None).label("verified")).where(
                columns.organization_id == organization_id
            )
        )
        return [EmailDomain(row.domain, bool(row.verified)) for row in found]

    def sender(self, connection: sa.Connection, organization_id: str, sender_id: str) -> StoredSender | None:
        """The organization's sender with that id; None if it has none, whoever else may."""
        try:
            canonical = str(UUID(sender_id))
        except ValueError:
            return None
        columns = self._senders.c
        row = connection.execute(
            sa.select(columns.email, columns.name).where(
                columns.organization_id == organization_id,
                # As text: a view, and SQLite, may hold it in upper case.
                sa.func.lower(sa.cast(columns.id, sa.Text)) == canonical,
            )
        ).first()
        return StoredSender(row.email, row.name) if row else None

    def keeps_members(self, connection: sa.Connection, organization_id: str) -> bool:
        """Whether the organization says who its members are."""
        members = sa.exists().where(self._members.c.organization_id == organization_id)
        return bool(connection.execute(sa.select(members)).scalar_one())

    def member(self, connection: sa.Connection, organization_id: str, member_id: str) -> Member | None:
        """The organization's member with that id; None if it has none."""
        columns = self._members.c
        row = connection.execute(
            sa.select(columns.email, columns.locale, columns.permissions).where(
                columns.organization_id == organization_id, columns.member_id == member_id
            )
        ).first()
        if row is None:
            return None
        # Only a list holds permissions: in a bare text any part of a permission would be found.
        listed = row.permissions if isinstance(row.permissions, list) else []
        return Member(member_id, row.email, row.locale, frozenset(entry for entry in listed if isinstance(entry, str)))

    def member_addresses(self, connection: sa.Connection, organization_id: str) -> frozenset[str]:
        """The addresses of the organization's members, casefolded."""
        columns = self._members.c
        found = connection.execute(
            sa.select(columns.email).where(columns.organization_id == organization_id, columns.email.is_not(None))
        ).scalars()
        return frozenset(str(address).strip().casefold() for address in found)


# Whether the requester may export at all.


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


def check_permission(connection: sa.Connection, organizations: Organizations, request: RequestInput) -> None:
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
