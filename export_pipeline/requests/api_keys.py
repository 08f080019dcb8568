"""Keys of the HTTP gateway: which organization a caller is, and what they may do."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import api_keys
from export_pipeline.requests.models import is_uuid

# Random tokens that open something, and what is stored of them.


_BYTES = 32


def new_token() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(_BYTES)


def digest_of(token: str) -> str:
    """What is stored of a token: its SHA-256, hex.

    One round and no salt are enough: nobody guesses 256 random bits, and a slow hash, which protects what people
    choose themselves, would cost every HTTP request a tenth of a second.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


PREFIX = "ek_"
"""What every key begins with, so that secret scanners know one when they see it."""
_keys = api_keys.c


@dataclass(frozen=True)
class ApiKey:
    """What a valid key says of its caller."""

    id: str
    organization_id: str
    scopes: frozenset[str]
    member_id: str | None
    """Whom the key acts for: ``requested_by`` of what it asks."""
    requests_per_hour: int | None
    member_permissions: frozenset[str] | None = None
    """What its member may do now; None: the key alone counts. Only the gateway asks for it (``auth``)."""


@dataclass(frozen=True)
class NewKey:
    """A key as it is shown, once."""

    id: str
    secret: str = field(repr=False)


def create_key(
    connection: sa.Connection,
    organization_id: str,
    scopes: Sequence[str],
    *,
    name: str | None = None,
    member_id: str | None = None,
    requests_per_hour: int | None = None,
) -> NewKey:
    """Make a key; nobody can see it again."""
    secret = PREFIX + new_token()
    key_id = connection.execute(
        api_keys.insert()
        .values(
            organization_id=organization_id,
            name=name,
            key_hash=digest_of(secret),
            scopes=list(scopes),
            member_id=member_id,
            requests_per_hour=requests_per_hour,
        )
        .returning(_keys.id)
    ).scalar_one()
    return NewKey(str(key_id), secret)


def find_key(connection: sa.Connection, secret: str) -> ApiKey | None:
    """What a key says; None if there is none such, or it is revoked."""
    digest = digest_of(secret)
    row = connection.execute(
        sa.select(
            _keys.id,
            _keys.organization_id,
            _keys.key_hash,
            _keys.scopes,
            _keys.member_id,
            _keys.requests_per_hour,
            # Whether, not when: SQLite may hold any text there.
            _keys.revoked_at.is_(None).label("valid"),
        ).where(_keys.key_hash == digest)
    ).first()
    if row is None or not row.valid or not hmac.compare_digest(row.key_hash, digest):
        return None
    listed = row.scopes if isinstance(row.scopes, list) else []
    scopes = frozenset(entry for entry in listed if isinstance(entry, str))
    return ApiKey(str(row.id), row.organization_id, scopes, row.member_id, row.requests_per_hour)


def revoke_key(connection: sa.Connection, key_id: str) -> bool:
    """End a key at once; False if there is none such, or it is revoked already."""
    if not is_uuid(key_id):
        return False
    revoked = connection.execute(
        api_keys.update().where(_keys.id == str(UUID(key_id)), _keys.revoked_at.is_(None)).values(revoked_at=utc_now())
    )
    return revoked.rowcount == 1


def list_keys(connection: sa.Connection, organization_id: str) -> list[tuple[str, str | None, list[str], bool]]:
    """An organization's keys, oldest first: id, name, scopes, whether it is valid."""
    found = connection.execute(
        sa.select(_keys.id, _keys.name, _keys.scopes, _keys.revoked_at.is_(None).label("valid"))
        .where(_keys.organization_id == organization_id)
        .order_by(_keys.created_at)
    )
    return [(str(row.id), row.name, list(row.scopes or ()), bool(row.valid)) for row in found]
