"""The request template of a recurring export: the asked columns that each of its requests repeats.

What belongs here: which columns a template may set, and their types. What does not: whether what it asks can be served
(``preflight``, at every request anew).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.json_text import RepeatedKey
from export_pipeline.requests.tables import DEFAULT_MAX_FILE_SIZE_MB

_Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]

MANAGED = frozenset(
    {
        "id",
        "uid",
        "organization_id",
        "requested_by",
        "start_date",
        "end_date",
        "window_from",
        "window_before",
        "idempotency_key",
        "recurring_export_id",
        "scheduled_for",
        "cancel_requested_at",
        "created_at",
    }
)
"""The asked columns that the recurring export itself sets, or leaves at their defaults."""


class RequestTemplate(BaseModel):
    """What ``recurring_exports.request`` may hold; what it leaves out has the defaults of ``export_requests``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    dataset: str
    format: str
    recipient_emails: list[str]
    compression: str | None = None
    layout: str = "default"
    columns: list[str] | None = None
    filters: dict[str, Any] = Field(default_factory=dict)
    list_ids: list[str] | None = None
    segment_ids: list[str] | None = None
    include: list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    max_file_size_mb: _Int32 = DEFAULT_MAX_FILE_SIZE_MB
    notify_email: bool = True
    empty_result: Literal["send", "skip"] = "send"
    email_locale: str | None = None
    from_email: str | None = None
    from_sender_id: str | None = None
    webhook_url: str | None = None
    priority: _Int32 = 0

    def asked(self) -> dict[str, Any]:
        """The columns that it sets."""
        return self.model_dump(exclude_unset=True)


def parse_template(stored: Any) -> RequestTemplate:
    """Read a template.

    Raises:
        ExportFailure: ``invalid_request``, naming the first column that is wrong.
    """
    try:
        return RequestTemplate.model_validate(stored)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
    column = str(problem["loc"][0]) if problem["loc"] else ""
    if isinstance(stored, RepeatedKey):
        what = str(stored)
    elif problem["type"] == "missing":
        what = "is missing; every request needs it"
    elif problem["type"] == "extra_forbidden":
        managed = "is set by the recurring export itself" if column in MANAGED else "is no column of a request"
        what = f"{managed}; leave it out"
    else:
        what = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}; correct it"
    place = f"request.{column}" if column else "request"
    raise ExportFailure(FailureCode.INVALID_REQUEST, f"{place}: {what}.", field="request")
