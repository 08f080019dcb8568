"""Segments: stored filters that a request names by their id."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from export_pipeline.catalog.model import CustomField, Dataset
from export_pipeline.database.types import RepeatedKeyError, read_json
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.sendgrid_query import parse_segment_query
from export_pipeline.filters.tree import Condition


class StoredSegment(BaseModel):
    """A segment as it stood when the request was planned. ``query_dsl``, where there is one, is what counts."""

    model_config = ConfigDict(frozen=True)

    id: str
    filter: str | None
    """JSON, the same shape as a request's filters."""
    query_dsl: str | None
    """SendGrid's segment query."""


def segment_condition(
    segment: StoredSegment, dataset: Dataset, custom_fields: Sequence[CustomField], time_zone: str
) -> Condition:
    """Which rows a segment holds.

    Raises:
        ExportFailure: ``invalid_segment``, naming the segment and what is wrong with it.
    """
    try:
        if segment.query_dsl is not None:
            return parse_segment_query(segment.query_dsl, dataset, custom_fields, time_zone)
        return parse_filters(_json(segment.filter), dataset, time_zone)
    except ExportFailure as failure:
        problem = failure.message
    message = f"segment_ids: segment {segment.id}: {problem} Correct the segment, or leave it out."
    raise ExportFailure(FailureCode.INVALID_SEGMENT, message, field="segment_ids")


def _json(text: str | None) -> dict[str, object]:
    try:
        stored = read_json(text or "null")
    except RepeatedKeyError as error:
        raise ExportFailure(FailureCode.INVALID_SEGMENT, f"its filter {error}.") from None
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise ExportFailure(FailureCode.INVALID_SEGMENT, "its filter is not a JSON object, or nested too deep.")
    return stored
