"""Billing of mails: one e-mail execution per recipient, taken from the organization's balance.

gu1: each deduplicated recipient costs one execution, and the balance is checked for all of them before anything starts
(messaging overview). Executions are reserved first, charged when the mail was handed over, and released if the export
ends without it. At every moment balance + reserved + charged is what the application paid in.

An organization without a row, or whose ``email_balance`` is NULL, is not billed and has no charges. Billing may be
switched on or off at any time: only what the rows say is charged or given back.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import ChargeStatus
from export_pipeline.database.tables import email_charges, organizations
from export_pipeline.failures import ExportFailure, FailureCode

_charges = email_charges.c
_balance = organizations.c.email_balance


def reserve(connection: sa.Connection, organization_id: str, request_uid: str, recipients: Iterable[str]) -> int:
    """Take one execution for each recipient without a reserved or charged one: for all of them or for none.

    Repeated for the same request, it takes nothing twice; released executions are taken again. Returns the number of
    executions taken now; ``insufficient_balance``.
    """
    if _locked_balance(connection, organization_id) is None:
        return 0
    new, released = _unpaid(connection, request_uid, recipients)
    cost = len(new) + len(released)
    if not cost:
        return 0
    taken = connection.execute(
        organizations.update()
        .where(organizations.c.id == organization_id, _balance >= cost)
        .values(email_balance=_balance - cost)
    )
    if taken.rowcount != 1:
        raise _insufficient(cost)
    if released:
        connection.execute(
            email_charges.update()
            .where(_charges.request_uid == request_uid, _charges.recipient.in_(released))
            .values(status=ChargeStatus.RESERVED, organization_id=organization_id, updated_at=utc_now())
        )
    if new:
        connection.execute(
            email_charges.insert(),
            [{"organization_id": organization_id, "request_uid": request_uid, "recipient": one} for one in new],
        )
    return cost


def check_balance(
    connection: sa.Connection, organization_id: str, request_uid: str | None, recipients: Iterable[str]
) -> None:
    """Check that ``reserve`` would succeed now; nothing is taken. ``request_uid`` is None before there is a row."""
    balance = connection.execute(sa.select(_balance).where(organizations.c.id == organization_id)).scalar()
    if balance is None:
        return
    cost = sum(map(len, _unpaid(connection, request_uid, recipients)))
    if balance < cost:
        raise _insufficient(cost)


def charge(connection: sa.Connection, request_uid: str, recipient: str) -> bool:
    """Charge the reserved execution of a mail that was, or may have been, handed over; False if none was reserved."""
    charged = connection.execute(
        email_charges.update()
        .where(_reserved(request_uid, recipient))
        .values(status=ChargeStatus.CHARGED, updated_at=utc_now())
    )
    return charged.rowcount == 1


def release(connection: sa.Connection, request_uid: str, recipient: str | None = None) -> int:
    """Give back the reserved executions of a recipient, or of a whole request. Returns their number."""
    reserved = _reserved(request_uid, recipient)
    holders = connection.execute(sa.select(_charges.organization_id).where(reserved).distinct()).scalars()
    given_back = 0
    for organization_id in list(holders):
        _locked_balance(connection, organization_id)
        released = connection.execute(
            email_charges.update()
            .where(reserved, _charges.organization_id == organization_id)
            .values(status=ChargeStatus.RELEASED, updated_at=utc_now())
        ).rowcount
        connection.execute(
            organizations.update()
            .where(organizations.c.id == organization_id)
            .values(email_balance=_balance + released)  # stays NULL once billing was switched off
        )
        given_back += released
    return given_back


def _locked_balance(connection: sa.Connection, organization_id: str) -> int | None:
    """The balance, locked until the transaction ends; None if the organization is not billed.

    Code that moves balance and charges together takes this lock first. The order is the same everywhere, so that there
    are no deadlocks. (SQLite ignores the lock; its write transactions exclude each other.)
    """
    return connection.execute(
        sa.select(_balance).where(organizations.c.id == organization_id).with_for_update()
    ).scalar()


def _unpaid(
    connection: sa.Connection, request_uid: str | None, recipients: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The recipients without a charge, and those whose charge was released."""
    found = connection.execute(
        sa.select(_charges.recipient, _charges.status).where(_charges.request_uid == request_uid)
    )
    known = {row.recipient: row.status for row in found}
    wanted = list(dict.fromkeys(recipients))
    return (
        [one for one in wanted if one not in known],
        [one for one in wanted if known.get(one) == ChargeStatus.RELEASED],
    )


def _reserved(request_uid: str, recipient: str | None) -> sa.ColumnElement[bool]:
    reserved = sa.and_(_charges.request_uid == request_uid, _charges.status == ChargeStatus.RESERVED)
    return reserved if recipient is None else sa.and_(reserved, _charges.recipient == recipient)


def _insufficient(cost: int) -> ExportFailure:
    # gu1, send-email: the sentence is cut off after "Add tokens" in what could be read.
    return ExportFailure(
        FailureCode.INSUFFICIENT_BALANCE,
        f"Insufficient balance for this send (cost {cost} credits). Add tokens to the organization's e-mail balance, "
        "or name fewer recipients, and send a new request.",
        field="recipient_emails",
    )
