"""gu1's list of entities, with its documented filters.

What belongs here: this endpoint. What does not: filters (requests.filters), reading rows (engine.page).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from export_pipeline.engine.page import listed, read_page
from export_pipeline.gateway.auth import organization_of
from export_pipeline.gateway.bodies import query_of
from export_pipeline.gateway.gu1_shapes import BASE, DATASET, DIALECT, Gu1Caller
from export_pipeline.gateway.services import Serves
from export_pipeline.requests.model import draft_request
from export_pipeline.requests.preflight import preflight

LIMIT = 100
"""Up to 100 a request, no pages (list entities)."""
FILTERS = ("type", "country", "taxId", "externalId")


class Entities(BaseModel):
    """The entities, their fields in camelCase."""

    entities: list[dict[str, Any]]


def routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["entities"])
    described = [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": "Exact."}
        for name in FILTERS
    ]
    router.get(
        BASE,
        response_model=Entities,
        responses=DIALECT.documented(400, 403),
        openapi_extra={"parameters": described},
        summary="List entities",
    )(entities)
    return router


def entities(request: Request, key: Gu1Caller, services: Serves) -> Entities:
    """The first hundred that the filters select; another parameter is refused, as it would be ignored."""
    filters = query_of(request, FILTERS)
    organization = organization_of(services, key)
    draft = draft_request(organization_id=key.organization_id, dataset=DATASET, format="ndjson", filters=filters)
    selection = listed(preflight(draft, services.catalog, organization), key.organization_id)
    headers = [to_camel(column.name) for column in selection.columns]
    return Entities(entities=read_page(services.source, selection, limit=LIMIT, headers=headers))
