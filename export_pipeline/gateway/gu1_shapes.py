"""What gu1's endpoints share: the dialect, camelCase, who may call for which organization.

What belongs here: shapes. What does not: endpoints (``gu1``, ``gu1_entities``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from export_pipeline.gateway.auth import caller
from export_pipeline.gateway.dialect import Dialect, Refusal
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.recurring_template import RequestTemplate

BASE = "/entities"
DATASET = "entities"


class Model(BaseModel):
    """camelCase in JSON; snake_case is for column keys alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Gu1Error(BaseModel):
    """Every error of this API; `code` is ours, stable, beside gu1's sentence."""

    success: Literal[False]
    error: str
    code: str


DIALECT = Dialect(
    name="gu1",
    title="Bulk entity export, as gu1 speaks",
    description="Each key belongs to the organization that `X-Organization-ID` names.",
    shape=lambda refusal: {"success": False, "error": refusal.message, "code": refusal.code},
    error=Gu1Error,
    invalid_status=400,
    unauthenticated="Not authenticated",
    forbidden="Missing permission: entities:export",
    too_many="Too many requests; wait as long as Retry-After says.",
    not_found="Not found",
    names={name: to_camel(name) for name in RequestTemplate.model_fields},
)

_let_in = caller(DATASET)


def gu1_caller(
    key: Annotated[ApiKey, Depends(_let_in)],
    x_organization_id: Annotated[str | None, Header(description="Required: the key's organization.")] = None,
) -> ApiKey:
    """A caller who names the organization that the key is of; it is the key's in any case."""
    if not x_organization_id:
        raise Refusal(400, "X-Organization-ID header is required")
    if x_organization_id.strip().lower() != key.organization_id.lower():
        raise Refusal(403, "This API key does not belong to the organization that X-Organization-ID names")
    return key


Gu1Caller = Annotated[ApiKey, Depends(gu1_caller)]
