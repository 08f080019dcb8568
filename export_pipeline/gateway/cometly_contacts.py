"""Cometly's list of contacts: the newest first, page by page by a cursor.

What belongs here: this endpoint's parameters and envelope. What does not: reading rows (engine.page), the rules of a
range (requests.row_rules).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from export_pipeline.engine.page import listed, read_page
from export_pipeline.gateway.auth import caller, organization_of
from export_pipeline.gateway.bodies import parsed
from export_pipeline.gateway.cometly_shapes import BASE, DATASET, DIALECT, LAYOUT, Range
from export_pipeline.gateway.dialect import Refusal
from export_pipeline.gateway.downloads import base_url
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.model import draft_request
from export_pipeline.requests.preflight import Preflight, preflight

PATH = f"{BASE}/contacts"
LISTS = 30
"""A minute and space; the documents name no number for this endpoint [?]: as many as for single contacts."""
_INT64 = range(-(2**63), 2**63)

Lister = Annotated[ApiKey, Depends(caller(DATASET, endpoint="list contacts", limit=LISTS))]


class Contact(BaseModel):
    """A contact; the lists only where they are asked for."""

    id: int
    email: str | None
    name: str | None
    phone: str | None
    location: str | None
    comet_tokens: list[str] = []
    emails: list[str] = []


class Contacts(BaseModel):
    """A page of contacts."""

    data: list[Contact]
    path: str
    per_page: int
    next_cursor: str | None
    next_page_url: str | None
    prev_cursor: str | None
    prev_page_url: str | None


class Listed(Range):
    """The parameters of the list."""

    per_page: int = Field(default=200, ge=1, le=5000)
    cursor: str | None = Field(default=None, max_length=500)


@dataclass(frozen=True)
class _Cursor:
    """A place between two contacts, and which way the page lies (as Laravel writes it)."""

    id: int
    forward: bool

    def __str__(self) -> str:
        data = {"id": self.id, "_pointsToNextItems": self.forward}
        return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str | None) -> _Cursor | None:
        if not text:
            return None
        try:
            data = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            found = cls(data["id"], data["_pointsToNextItems"])
            if type(found.id) is int and found.id in _INT64 and isinstance(found.forward, bool):
                return found
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise Refusal(422, "cursor: is none of ours; begin without one.", field="cursor")


def routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["contacts"])
    router.get(
        PATH,
        response_model=Contacts,
        response_model_exclude_unset=True,
        responses=DIALECT.documented(403, 422),
        summary="List contacts",
    )(contacts)
    return router


class Parameters(BaseModel):
    """The parameters for the OpenAPI document; ``Listed`` reads them."""

    start_date: str | None = Field(default=None, description="Required; wall clock of the space.")
    end_date: str | None = Field(default=None, description="Required; both ends included.")
    per_page: str | None = Field(default=None, description="1 to 5000; 200 by default.")
    cursor: str | None = Field(default=None, description="`next_cursor` or `prev_cursor` of another page.")
    include_comet_tokens: str | None = Field(default=None, description="0 or 1.")
    include_all_emails: str | None = Field(default=None, description="0 or 1.")


def contacts(request: Request, key: Lister, services: Serves, _given: Annotated[Parameters, Query()]) -> Contacts:
    """The newest first."""
    asked = parsed(request, Listed, {}, in_query=tuple(Listed.model_fields))
    place = _Cursor.read(asked.cursor)
    rows, before, after = _page(services, key, asked, place)
    return _envelope(services, request, asked, rows, before=before, after=after)


def _page(
    services: Services, key: ApiKey, asked: Listed, place: _Cursor | None
) -> tuple[list[dict[str, Any]], bool, bool]:
    """A page, newest first, and whether there are newer and older ones."""
    checked = _checked(services, key, asked)
    backward = place is not None and not place.forward
    found = read_page(
        services.source,
        listed(checked, key.organization_id),
        limit=asked.per_page + 1,
        after=place.id if place is not None and backward else None,
        before=place.id if place is not None and not backward else None,
        newest_first=not backward,
        headers=[column.header for column in checked.columns],
        timestamps="seconds",
    )
    rows, more = found[: asked.per_page], len(found) > asked.per_page
    if backward:
        return rows[::-1], more, True
    return rows, place is not None, more


def _checked(services: Services, key: ApiKey, asked: Listed) -> Preflight:
    organization = organization_of(services, key)
    draft = draft_request(
        organization_id=key.organization_id,
        dataset=DATASET,
        format="ndjson",
        layout=LAYOUT,
        start_date=asked.start_date,
        end_date=asked.end_date,
        include=asked.include,
    )
    return preflight(draft, services.catalog, organization)


def _envelope(
    services: Services,
    request: Request,
    asked: Listed,
    rows: list[dict[str, Any]],
    *,
    before: bool,
    after: bool,
) -> Contacts:
    path = f"{base_url(services, request)}{PATH}"
    newer = str(_Cursor(rows[0]["id"], forward=False)) if rows and before else None
    older = str(_Cursor(rows[-1]["id"], forward=True)) if rows and after else None

    def url(cursor: str | None) -> str | None:
        parameters = {**request.query_params, "cursor": cursor}
        return f"{path}?{urlencode(parameters)}" if cursor else None

    return Contacts(
        data=[Contact(**row) for row in rows],
        path=path,
        per_page=asked.per_page,
        next_cursor=older,
        next_page_url=url(older),
        prev_cursor=newer,
        prev_page_url=url(newer),
    )
