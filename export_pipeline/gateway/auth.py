"""Authenticate a caller and check their permissions and rate.

A key that acts for a member never may do more than the member may now. ``caller`` reads the member's permissions for
every request, so ``may_export`` decides every read, download, cancel and revoke.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from export_pipeline.database.engine import reading
from export_pipeline.failures import FailureCode
from export_pipeline.gateway.dialect import ApiError, Dialect, dialect_of
from export_pipeline.gateway.services import HOUR, MINUTE, Services, services_of
from export_pipeline.requests.api_keys import ApiKey, find_key
from export_pipeline.requests.organizations import Organization, permission_for, permissions_of, read_organization

_bearer = HTTPBearer(auto_error=False, description="A key made by `export-pipeline api-key create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(dataset: str | None = None, *, endpoint: str = "all", limit: int | None = None) -> Callable[..., ApiKey]:
    """A dependency that authenticates the caller, or raises ``ApiError`` 401, 403, 429.

    The key must be allowed to export the dataset; without one the endpoint checks it. Calls of the same ``endpoint``
    are counted together; ``limit`` is the dialect's number of requests a minute, None: the installation's.
    """

    def authenticate(request: Request, credentials: Credentials) -> ApiKey:
        services, dialect = services_of(request), dialect_of(request)
        key = _key(services, credentials)
        if key is None:
            raise ApiError(401, dialect.unauthenticated, headers={"WWW-Authenticate": "Bearer"})
        request.scope["gateway.caller"] = key
        _count(request, services, key, endpoint, limit)
        if dataset is not None:
            check_may_export(dialect, key, dataset)
        return key

    return authenticate


def _key(services: Services, credentials: HTTPAuthorizationCredentials | None) -> ApiKey | None:
    if credentials is None or not credentials.credentials:
        return None
    with reading(services.database) as connection:
        key = find_key(connection, credentials.credentials)
        if key is None:
            return None
        permissions = permissions_of(connection, key.organization_id, key.member_id)
    return replace(key, member_permissions=permissions)


def _count(request: Request, services: Services, key: ApiKey, endpoint: str, limit: int | None) -> None:
    """Count the request for its organization, and for its key if that has its own limit."""
    dialect, limiter = dialect_of(request), services.limiter
    if limit is None:
        limit = services.settings.rate_limit_per_minute
    counts = [limiter.count(limit, MINUTE, dialect.name, endpoint, key.organization_id)]
    if key.requests_per_hour is not None:
        counts.append(limiter.count(key.requests_per_hour, HOUR, "key", key.id))
    tightest = min(counts, key=lambda count: (count.allowed, count.remaining))
    # Every answer has them (SendGrid, rate limits; Cometly, rate limiting).
    request.scope["gateway.headers"] = {
        "X-RateLimit-Limit": str(tightest.limit),
        "X-RateLimit-Remaining": str(tightest.remaining),
        "X-RateLimit-Reset": str(tightest.ends_at),
    }
    if not tightest.allowed:
        wait = max(1, tightest.ends_at - int(time.time()))
        raise ApiError(429, dialect.too_many, headers={"Retry-After": str(wait)})


def caller_of(request: Request) -> ApiKey:
    """The key that ``caller`` authenticated."""
    key: ApiKey = request.scope["gateway.caller"]
    return key


def organization_of(services: Services, key: ApiKey) -> Organization:
    """The organization of a key."""
    with reading(services.database) as connection:
        return read_organization(connection, key.organization_id)


def may_export(key: ApiKey, dataset: str) -> bool:
    """Whether a key has the scope to export a dataset, and its member the permission."""
    permission = permission_for(dataset)
    return permission in key.scopes and (key.member_permissions is None or permission in key.member_permissions)


def check_may_export(dialect: Dialect, key: ApiKey, dataset: str) -> None:
    """As ``may_export``; an ``ApiError`` 403 if not."""
    if not may_export(key, dataset):
        lacks_only_permission = permission_for(dataset) in key.scopes
        raise ApiError(403, dialect.forbidden, code=FailureCode.PERMISSION_DENIED if lacks_only_permission else None)
