"""Who calls, and whether they may: the key, the scope, the rate.

What belongs here: the way from an ``Authorization`` header to a caller who is let in. What does not: keys themselves
(requests.api_keys), counting (``rate_limits``), an organization's header (gu1 has one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem

from export_pipeline.gateway.dialect import Refusal, dialect_of
from export_pipeline.gateway.rate_limits import Count, per_hour, per_minute
from export_pipeline.gateway.services import Services, services_of
from export_pipeline.requests.api_keys import ApiKey, find_key
from export_pipeline.requests.database import reading
from export_pipeline.requests.model import draft_request
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.permissions import check_permission, permission_for

_bearer = HTTPBearer(auto_error=False, description="A key made by `export-pipeline api-key create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(dataset: str | None = None, *, endpoint: str = "all", limit: int | None = None) -> Callable[..., ApiKey]:
    """A dependency that lets a caller in.

    Args:
        dataset: what the key must be allowed to export; None: the endpoint looks itself.
        endpoint: what is counted together.
        limit: requests a minute that the dialect promises an organization for it; None: the installation's number.

    Raises (the dependency):
        Refusal: 401, 403, 429.
    """

    def let_in(request: Request, credentials: Credentials) -> ApiKey:
        services, dialect = services_of(request), dialect_of(request)
        key = _key(services, credentials)
        if key is None:
            raise Refusal(401, dialect.unauthenticated, headers={"WWW-Authenticate": "Bearer"})
        request.scope["gateway.caller"] = key
        amount = limit if limit is not None else services.settings.rate_limit_per_minute
        _count(request, services, key, endpoint, per_minute(amount))
        if dataset is not None and permission_for(dataset) not in key.scopes:
            raise Refusal(403, dialect.forbidden)
        return key

    return let_in


def _key(services: Services, credentials: HTTPAuthorizationCredentials | None) -> ApiKey | None:
    if credentials is None or not credentials.credentials:
        return None
    with reading(services.database) as connection:
        return find_key(connection, credentials.credentials)


def _count(request: Request, services: Services, key: ApiKey, endpoint: str, item: RateLimitItem) -> None:
    """Count the request for its organization, and for its key if that has a number of its own."""
    dialect = dialect_of(request)
    counts = [services.limiter.count(item, dialect.name, endpoint, key.organization_id)]
    if key.requests_per_hour is not None:
        counts.append(services.limiter.count(per_hour(key.requests_per_hour), "key", key.id))
    tightest = min(counts, key=lambda count: (count.allowed, count.remaining))
    request.scope["gateway.headers"] = rate_headers(tightest)
    if not tightest.allowed:
        raise Refusal(429, dialect.too_many, headers={"Retry-After": str(tightest.retry_after)})


def rate_headers(count: Count) -> dict[str, str]:
    """What every answer says of the caller's rate (SendGrid, rate limits; Cometly, rate limiting)."""
    return {
        "X-RateLimit-Limit": str(count.limit),
        "X-RateLimit-Remaining": str(count.remaining),
        "X-RateLimit-Reset": str(count.ends_at),
    }


def caller_of(request: Request) -> ApiKey:
    """Whom ``caller`` let in."""
    key: ApiKey = request.scope["gateway.caller"]
    return key


def listing_organization(services: Services, key: ApiKey, dataset: str) -> Organization:
    """The organization of a key that may list a dataset: its member needs the permission, as it does for an export.

    Raises:
        ExportFailure: ``permission_denied``.
    """
    asked = draft_request(organization_id=key.organization_id, dataset=dataset, requested_by=key.member_id)
    with reading(services.database) as connection:
        check_permission(connection, services.organizations, asked)
        return services.organizations.get(connection, key.organization_id)


def may_export(key: ApiKey, dataset: str) -> bool:
    """Whether a key has the scope to export a dataset."""
    return permission_for(dataset) in key.scopes
