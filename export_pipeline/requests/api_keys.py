"""API keys of the HTTP gateway: the organization of a caller, and what it may do."""

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

PREFIX = "ek_"
"""The prefix of every key, so that secret scanners recognize one."""
_keys = api_keys.c


def new_token() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """The digest of a token that is stored: SHA-256, hex.

    One round without salt is enough, because 256 random bits cannot be guessed. A slow hash, which protects passwords
    that people choose, would cost every HTTP request a tenth of a second.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


@dataclass(frozen=True)
class ApiKey:
    """A valid key."""

    id: str
    organization_id: str
    scopes: frozenset[str]
    member_id: str | None
    """The member that the key acts for: ``requested_by`` of its requests."""
    requests_per_hour: int | None
    member_permissions: frozenset[str] | None = None
    """The current permissions of its member; None: only the scopes count. Set by the gateway (``auth``)."""


@dataclass(frozen=True)
class NewKey:
    """A new key, whose secret is shown only once."""

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
    """Create a key. Its secret cannot be read again."""
    secret = PREFIX + new_token()
    insert = api_keys.insert().values(
        organization_id=organization_id,
        name=name,
        key_hash=digest_of(secret),
        scopes=list(scopes),
        member_id=member_id,
        requests_per_hour=requests_per_hour,
    )
    return NewKey(connection.execute(insert.returning(_keys.id)).scalar_one(), secret)


def find_key(connection: sa.Connection, secret: str) -> ApiKey | None:
    """The key with a secret; None if it is unknown or revoked."""
    digest = digest_of(secret)
    columns = (_keys.id, _keys.organization_id, _keys.key_hash, _keys.scopes, _keys.member_id, _keys.requests_per_hour)
    row = connection.execute(sa.select(*columns).where(_keys.key_hash == digest, _keys.revoked_at.is_(None))).first()
    if row is None or not hmac.compare_digest(row.key_hash, digest):
        return None
    listed = row.scopes if isinstance(row.scopes, list) else []
    scopes = frozenset(entry for entry in listed if isinstance(entry, str))
    return ApiKey(row.id, row.organization_id, scopes, row.member_id, row.requests_per_hour)


def revoke_key(connection: sa.Connection, key_id: str) -> bool:
    """Revoke a key; False if it is unknown or already revoked."""
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
    return [(row.id, row.name, list(row.scopes or ()), bool(row.valid)) for row in found]
