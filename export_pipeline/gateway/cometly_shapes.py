"""What Cometly's endpoints share: the dialect, the range of dates, the flags.

What belongs here: shapes. What does not: endpoints (``cometly``, ``cometly_contacts``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from export_pipeline.gateway.dialect import Dialect, Refusal
from export_pipeline.requests.wall_clock import given_as_time

BASE = "/public-api/v1"
DATASET = "contacts"
LAYOUT = "cometly"
_FORMAT = "%Y-%m-%d %H:%M:%S"
_LENGTH = len("2025-01-31 23:59:59")


class CometlyError(BaseModel):
    """Every error of this API; a 422 names its fields too, as Laravel does."""

    message: str
    errors: dict[str, list[str]] | None = None


def _shape(refusal: Refusal) -> dict[str, Any]:
    body: dict[str, Any] = {"message": refusal.message}
    if refusal.status == 422 and refusal.field:
        body["errors"] = {refusal.field: [refusal.message]}
    return body


DIALECT = Dialect(
    name="cometly",
    title="Contact exports, as Cometly speaks",
    description="Each organization is a space.",
    shape=_shape,
    error=CometlyError,
    invalid_status=422,
    # Laravel's own words, as Cometly's documents show only the shape [?].
    unauthenticated="Unauthenticated.",
    forbidden="This action is unauthorized.",
    too_many="Too Many Attempts.",
)


def _wall_clock(value: Any) -> datetime:
    try:
        if isinstance(value, str) and len(value) == _LENGTH:
            return datetime.strptime(value, _FORMAT)  # noqa: DTZ007 - wall clock of the space
    except ValueError:
        pass
    raise PydanticCustomError("wall_clock", "must be a time such as 2025-01-31 23:59:59")


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        value = value.lower()
    # Beside the 0 and 1 of Laravel's `boolean` rule, the words that a query string has.
    known = {True: True, False: False, "1": True, "0": False, "true": True, "false": False}
    if isinstance(value, bool | int | str) and value in known:
        return known[value]
    raise PydanticCustomError("flag", "must be 0 or 1, true or false")


WallClock = Annotated[
    datetime,
    BeforeValidator(_wall_clock),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", "examples": ["2025-01-31 23:59:59"]}
    ),
]
Flag = Annotated[bool, BeforeValidator(_flag), WithJsonSchema({"enum": [0, 1, "0", "1", True, False, "true", "false"]})]


class Range(BaseModel):
    """Which contacts, and what of each beside its own fields."""

    model_config = ConfigDict(extra="forbid")

    start_date: WallClock = Field(description="Created from, in the space's time zone.")
    # Always a time here: midnight is its second, not the day.
    end_date: Annotated[WallClock, AfterValidator(given_as_time)] = Field(
        description="Created until, both ends included; after `start_date`."
    )
    include_comet_tokens: Flag = Field(default=False, description="The last five, newest first.")
    include_all_emails: Flag = Field(default=False, description="Those of merged profiles too.")

    @property
    def include(self) -> list[str]:
        """The child lists that are asked for."""
        flags = {"comet_tokens": self.include_comet_tokens, "all_emails": self.include_all_emails}
        return [name for name, wanted in flags.items() if wanted]


def instant(value: datetime) -> str:
    """As Cometly writes it: 2024-01-15T10:30:00Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
