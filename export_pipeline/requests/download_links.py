"""Download links: a random token opens one file of one request until it expires or is revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import sqlalchemy as sa

from export_pipeline.database.enums import EventKind, RequestStatus
from export_pipeline.database.tables import export_files, export_links, export_notifications, export_requests
from export_pipeline.database.types import current_instant, instant_after
from export_pipeline.requests.api_keys import digest_of, new_token
from export_pipeline.requests.audit import record
from export_pipeline.requests.models import has_uid

PATH = "/d/"
"""The path under which the gateway opens links: ``{public_url}/d/{token}``."""
_links = export_links.c
_rows = export_requests.c
_OF_REQUEST = sa.and_(_rows.id == _links.request_id, _rows.uid == _links.request_uid)
"""By id and uid, because the id may belong to another request by now (a SQLite table that was restored or emptied)."""


@dataclass(frozen=True)
class StoredFile:
    """A delivered file, as recorded in ``export_files``."""

    ordinal: int
    key: str
    name: str
    bytes: int
    rows: int
    sha256: str
    media_type: str
    content_encoding: str | None


class Closed(Enum):
    """Why a link does not open."""

    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Opened:
    """A link that was opened: its file, and when it expires."""

    file: StoredFile
    expires_at: datetime


def create(
    connection: sa.Connection,
    request_id: int,
    ordinals: Sequence[int],
    *,
    expires_at: datetime,
    notification_id: int | None = None,
) -> list[str]:
    """Create a token for each of a request's files, in their order.

    Args:
        connection: an open transaction.
        request_id: the request.
        ordinals: which of its files.
        expires_at: when the links expire; the files may be deleted sooner.
        notification_id: the mail that holds the links; None: issued by the gateway, which creates new ones at every
            read, so its expired ones are deleted here.
    """
    if notification_id is None:
        connection.execute(
            export_links.delete().where(
                _links.request_id == request_id, _links.notification_id.is_(None), _links.expires_at < instant_after(0)
            )
        )
    uid = connection.execute(sa.select(_rows.uid).where(_rows.id == request_id)).scalar_one()
    tokens = [new_token() for _ in ordinals]
    rows = [
        {
            "token_hash": digest_of(token),
            "request_id": request_id,
            "request_uid": uid,
            "ordinal": ordinal,
            "notification_id": notification_id,
            "expires_at": expires_at,
        }
        for token, ordinal in zip(tokens, ordinals, strict=True)
    ]
    if rows:
        connection.execute(export_links.insert(), rows)
    return tokens


def download_url(public_url: str, token: str) -> str:
    """The URL of a token."""
    return f"{public_url}{PATH}{token}"


def open_link(connection: sa.Connection, token: str, *, look: bool = False) -> Opened | Closed:
    """Open a link, count it and record it in the audit trail; with ``look`` only check whether it opens."""
    row = connection.execute(
        sa.select(
            _links.id,
            _links.request_id,
            _links.ordinal,
            _links.expires_at,
            _links.revoked_at,
            _rows.uid,
            _rows.organization_id,
            _rows.status,
            export_notifications.c.recipient,
            (_links.expires_at <= instant_after(0)).label("is_expired"),
        )
        .join(export_requests, _OF_REQUEST)
        .outerjoin(export_notifications, export_notifications.c.id == _links.notification_id)
        .where(_links.token_hash == digest_of(token))
    ).first()
    if row is None:
        return Closed.UNKNOWN
    if row.revoked_at is not None:
        return Closed.REVOKED
    files = [file for file in files_of(connection, row.request_id) if file.ordinal == row.ordinal]
    if row.is_expired or row.status != RequestStatus.COMPLETED or not files:
        return Closed.EXPIRED
    if look:
        return Opened(files[0], row.expires_at)
    connection.execute(
        export_links.update()
        .where(_links.id == row.id)
        .values(opened_count=_links.opened_count + 1, last_opened_at=current_instant())
    )
    # The recipient of the mail; a person to whom they forwarded it cannot be known.
    mailed = {} if row.recipient is None else {"recipient": row.recipient}
    detail = {"link": row.id, "file": row.ordinal, **mailed}
    record(connection, row.uid, row.organization_id, EventKind.DOWNLOADED, detail, actor="link")
    return Opened(files[0], row.expires_at)


def language_of_link(connection: sa.Connection, token: str) -> str | None:
    """The language of the mails of the link's request; None if the link is unknown or the request names none."""
    return connection.execute(
        sa.select(_rows.email_locale).join(export_links, _OF_REQUEST).where(_links.token_hash == digest_of(token))
    ).scalar()


def revoke_links(connection: sa.Connection, uid: str) -> int:
    """Revoke all links of a request, including those in mails. Returns how many were still open."""
    owner = sa.select(_rows.id).where(has_uid(uid)).scalar_subquery()
    revoked = connection.execute(
        export_links.update()
        .where(_links.request_id == owner, _links.revoked_at.is_(None))
        .values(revoked_at=current_instant())
    )
    return revoked.rowcount


def files_of(connection: sa.Connection, request_id: int) -> list[StoredFile]:
    """The files of a request that are not deleted, in the order of the rows."""
    columns = export_files.c
    found = connection.execute(
        sa.select(*[columns[name] for name in StoredFile.__dataclass_fields__])
        .where(columns.request_id == request_id, columns.deleted_at.is_(None))
        .order_by(columns.ordinal)
    )
    return [StoredFile(*row) for row in found]
