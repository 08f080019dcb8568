"""SendGrid's lists and segments: what `list_ids` and `segment_ids` may name.

What belongs here: these two endpoints. What does not: reading the source (engine.directory).
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from export_pipeline.engine.directory import ListEntry, SegmentEntry, lists_page, segments_of
from export_pipeline.gateway.auth import organization_of
from export_pipeline.gateway.bodies import query_of
from export_pipeline.gateway.downloads import base_url
from export_pipeline.gateway.sendgrid_shapes import DATASET, DIALECT, Metadata, SendGridCaller
from export_pipeline.gateway.services import Serves

LISTS = "/v3/marketing/lists"
SEGMENTS = "/v3/marketing/segments/2.0"


class ContactList(BaseModel):
    """A list."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    name: str
    contact_count: int
    metadata: Metadata = Field(alias="_metadata")


class Lists(BaseModel):
    """A page of lists; `_metadata.next` is the next one's URL."""

    model_config = ConfigDict(populate_by_name=True)

    result: list[ContactList]
    metadata: Metadata = Field(alias="_metadata")


class SegmentStatus(BaseModel):
    """Whether the segment's query can be used."""

    query_validation: Literal["VALID", "INVALID"]
    error_message: str


class Segment(BaseModel):
    """A segment; its instants are null, as the application does not tell them."""

    id: str
    name: str
    contacts_count: int | None = Field(description="Null if the query cannot be used, or counting took too long.")
    query_dsl: str | None
    created_at: str | None = None
    updated_at: str | None = None
    sample_updated_at: str | None = None
    next_sample_update: str | None = None
    parent_list_ids: list[str]
    query_version: Literal["2"] = "2"
    status: SegmentStatus


class Segments(BaseModel):
    """All segments."""

    results: list[Segment]


def routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["lists and segments"])
    router.get(
        LISTS,
        response_model=Lists,
        response_model_exclude_none=True,
        responses=DIALECT.documented(400, 403),
        summary="Lists",
    )(lists)
    router.get(SEGMENTS, response_model=Segments, responses=DIALECT.documented(400, 403), summary="Segments")(segments)
    return router


def lists(
    request: Request, key: SendGridCaller, services: Serves,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> Lists:  # fmt: skip
    """In the order of their ids."""
    query_of(request, ("page_size", "page_token"))
    organization = organization_of(services, key)
    page = lists_page(
        services.source,
        services.dataset(DATASET),
        organization.id,
        after=page_token or None,
        limit=page_size + 1,
    )
    base = f"{base_url(services, request)}{LISTS}"
    shown, more = page[:page_size], len(page) > page_size
    metadata = Metadata(
        self_=f"{base}?page_size={page_size}" + (f"&page_token={quote(page_token)}" if page_token else ""),
        next=f"{base}?page_size={page_size}&page_token={quote(shown[-1].id)}" if more else None,
        count=len(shown),
    )
    return Lists(result=[_list(one, base) for one in shown], metadata=metadata)


def _list(entry: ListEntry, base: str) -> ContactList:
    return ContactList(
        id=entry.id, name=entry.name or "", contact_count=entry.rows, metadata=Metadata(self_=f"{base}/{entry.id}")
    )


def segments(request: Request, key: SendGridCaller, services: Serves) -> Segments:
    """Each counted now, as far as the time is enough for it."""
    query_of(request, ())
    organization = organization_of(services, key)
    found = segments_of(services.source, services.dataset(DATASET), organization.id, organization.time_zone)
    return Segments(results=[_segment(one) for one in found])


def _segment(entry: SegmentEntry) -> Segment:
    status = SegmentStatus(query_validation="INVALID" if entry.problem else "VALID", error_message=entry.problem or "")
    return Segment(
        id=entry.id,
        name=entry.name or "",
        contacts_count=entry.rows,
        query_dsl=entry.query_dsl,
        parent_list_ids=[],
        status=status,
    )
