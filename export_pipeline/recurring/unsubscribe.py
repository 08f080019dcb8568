"""Unsubscribing from a recurring export: the signed token in a mail's link, and the list of unsubscribed recipients.

A token holds the recurring export's id, a keyed digest of the recipient, and a signature. It holds no address, because
logs and proxies see it. It does not expire: the link in a mail of last year must still work.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence

import sqlalchemy as sa

from export_pipeline.database import tables
from export_pipeline.database.engine import insert_or
from export_pipeline.requests.validation.mail import person_of

_rows = tables.export_unsubscriptions.c
_DIGEST_BYTES = 12
_TAG_BYTES = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


def make_token(key: str, recurring_export_id: int, recipient: str) -> str:
    """The URL-safe token for one recipient's link."""
    payload = recurring_export_id.to_bytes(8, "big") + _digest(key, recurring_export_id, recipient)
    return base64.urlsafe_b64encode(payload + _tag(key, payload)).decode().rstrip("=")


def verify_token(key: str, token: str) -> tuple[int, bytes] | None:
    """The recurring export of a token and the digest of its recipient; None if it was not made with this key."""
    if not _TOKEN.fullmatch(token):
        return None
    try:
        signed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    payload, tag = signed[:-_TAG_BYTES], signed[-_TAG_BYTES:]
    if len(payload) != 8 + _DIGEST_BYTES or not hmac.compare_digest(tag, _tag(key, payload)):
        return None
    return int.from_bytes(payload[:8], "big"), payload[8:]


def leave(connection: sa.Connection, key: str, token: str) -> bool:
    """Unsubscribe the holder of a token; False if the token is not genuine.

    True also for a recipient who has already left, or who is not in the template now: their address is taken from the
    mails that were sent, so that they stay unsubscribed if somebody adds them again.
    """
    leaving = verify_token(key, token)
    if leaving is None:
        return False
    recurring_id, digest = leaving
    row = connection.execute(
        sa.select(tables.recurring_exports.c.request).where(tables.recurring_exports.c.id == recurring_id)
    ).first()
    if row is None:  # the recurring export was deleted
        return True
    addresses = row.request.get("recipient_emails") if isinstance(row.request, dict) else None
    mailed = connection.execute(
        sa.select(tables.export_notifications.c.recipient)
        .distinct()
        .join(tables.export_requests, tables.export_requests.c.id == tables.export_notifications.c.request_id)
        .where(tables.export_requests.c.recurring_export_id == recurring_id)
    ).scalars()
    for address in (*(addresses if isinstance(addresses, list) else ()), *mailed):
        if hmac.compare_digest(digest, _digest(key, recurring_id, str(address))):
            unsubscribe(connection, recurring_id, str(address))
    return True


def unsubscribe(connection: sa.Connection, recurring_export_id: int, recipient: str) -> None:
    """Send a recipient no more mails of a recurring export; idempotent."""
    insert = insert_or(connection, tables.export_unsubscriptions)
    left = insert.values(recurring_export_id=recurring_export_id, recipient=person_of(recipient))
    connection.execute(left.on_conflict_do_nothing())


def without_unsubscribed(connection: sa.Connection, recurring_export_id: int, recipients: Sequence[str]) -> list[str]:
    """The recipients who have not unsubscribed."""
    left = connection.execute(sa.select(_rows.recipient).where(_rows.recurring_export_id == recurring_export_id))
    gone = {person_of(address) for address in left.scalars()}
    return [address for address in recipients if person_of(address) not in gone]


def _digest(key: str, recurring_export_id: int, recipient: str) -> bytes:
    return _mac(key, f"recipient:{recurring_export_id}:{person_of(recipient)}".encode())[:_DIGEST_BYTES]


def _tag(key: str, payload: bytes) -> bytes:
    return _mac(key, b"unsubscribe:" + payload)[:_TAG_BYTES]


def _mac(key: str, message: bytes) -> bytes:
    return hmac.digest(key.encode(), message, "sha256")
