"""What SendGrid's endpoints share: the dialect, metadata, who may call.

What belongs here: shapes. What does not: endpoints (``sendgrid``, ``sendgrid_directory``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Header
from pydantic import BaseModel, ConfigDict, Field

from export_pipeline.gateway.auth import caller
from export_pipeline.gateway.dialect import Dialect, Refusal
from export_pipeline.requests.api_keys import ApiKey

DATASET = "contacts"


class SendGridError(BaseModel):
    """One thing that is wrong."""

    message: str
    field: str | None = None
    help: dict[str, Any] | None = None


class SendGridErrors(BaseModel):
    """Every error of this API."""

    errors: list[SendGridError]


class Metadata(BaseModel):
    """`_metadata`: where this is, and what comes next."""

    model_config = ConfigDict(populate_by_name=True)

    self_: str = Field(alias="self")
    next: str | None = None
    count: int | None = None


DIALECT = Dialect(
    name="sendgrid",
    title="Contacts exports, as SendGrid speaks",
    description="Point a SendGrid client's `host` here.",
    shape=lambda refusal: {"errors": [{"field": refusal.field, "message": refusal.message}]},
    error=SendGridErrors,
    invalid_status=400,
    # Clients look for these words (source-sendgrid).
    unauthenticated="authorization required",
    forbidden="access forbidden",
    too_many="too many requests",
    not_found="resource not found",
    names={"max_file_size_mb": "max_file_size", "recipient_emails": "notifications"},
)

_let_in = caller(DATASET)


def sendgrid_caller(
    key: Annotated[ApiKey, Depends(_let_in)],
    on_behalf_of: Annotated[str | None, Header(description="Not supported: each key has one organization.")] = None,
) -> ApiKey:
    """A caller for their own organization: to ignore a subuser would export somebody else's contacts."""
    if on_behalf_of:
        raise Refusal(403, DIALECT.forbidden, field="On-Behalf-Of")
    return key


SendGridCaller = Annotated[ApiKey, Depends(sendgrid_caller)]


def instant(value: datetime) -> str:
    """As SendGrid writes it: 2021-02-01T12:35:22Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
