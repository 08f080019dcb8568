"""What the pipeline needs to know of an organization.

What belongs here: reading it, in one small class, so that an installation can point it at a view of its own.
What does not: rules (``preflight``).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from export_pipeline.requests.tables import organizations


@dataclass(frozen=True)
class Organization:
    """An organization; one without a row has the defaults, so that no row is needed to export."""

    id: str
    time_zone: str = "UTC"
    """IANA name."""


class Organizations:
    """Reads organizations from a table or view with columns ``id`` and ``time_zone``."""

    def __init__(self, table: sa.FromClause = organizations) -> None:
        self._table = table

    def get(self, connection: sa.Connection, organization_id: str) -> Organization:
        """The organization, or its defaults if it has no row."""
        columns = self._table.c
        row = connection.execute(sa.select(columns.time_zone).where(columns.id == organization_id)).first()
        return Organization(organization_id, row.time_zone) if row else Organization(organization_id)
