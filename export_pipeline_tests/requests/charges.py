"""The e-mail executions of the tests' requests, counted by state."""

from __future__ import annotations

import sqlalchemy as sa

from export_pipeline.database.enums import ChargeStatus
from export_pipeline.database.tables import email_charges

_charges = email_charges.c


def charges(
    connection: sa.Connection, *, organization_id: str | None = None, request_uid: str | None = None
) -> dict[ChargeStatus, int]:
    """How many executions of an organization, of a request, or of all are in each state, with zeros."""
    wanted = {"organization_id": organization_id, "request_uid": request_uid}
    given = [_charges[name] == value for name, value in wanted.items() if value is not None]
    found = connection.execute(sa.select(_charges.status, sa.func.count()).where(*given).group_by(_charges.status))
    return dict.fromkeys(ChargeStatus, 0) | {ChargeStatus(status): count for status, count in found}
