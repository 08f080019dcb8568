"""Preflight: can this request be served as asked? Everything is answered before a row is read.

What belongs here: the order of the rules, and what they come to. What does not: the rules themselves (``file_rules``,
``row_rules``, ``filters``, ``recipients``), reading the row (``model``), SQL (engine), who may send and who pays
(``senders``, ``billing``), which need the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.conditions import AllOf
from export_pipeline.requests.file_rules import (
    Compression,
    Format,
    Options,
    compression_of,
    format_of,
    max_bytes_of,
    options_of,
)
from export_pipeline.requests.filters import parse_filters
from export_pipeline.requests.model import ExportRequest, is_canonical_uuid
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.recipients import recipients_of
from export_pipeline.requests.row_rules import (
    Identity,
    check_organization,
    columns_of,
    dataset_of,
    date_range_of,
    list_ids_of,
    segment_ids_of,
)
from export_pipeline.requests.webhook_rules import check_webhook_url
from export_pipeline.requests.wording import checked_zone, invalid_option


@dataclass(frozen=True)
class Preflight:
    """A request that can be served: every name resolved, every value typed."""

    dataset: Dataset
    format: Format
    compression: Compression
    columns: tuple[OutputColumn, ...]
    filters: AllOf
    list_ids: tuple[Identity, ...]
    segment_ids: tuple[Identity, ...]
    created_from: datetime | None
    """Inclusive, UTC."""
    created_before: datetime | None
    """Exclusive, UTC."""
    options: Options
    time_zone: str
    """IANA zone of written timestamps."""
    max_bytes: int
    recipients: tuple[str, ...]


def preflight(
    request: ExportRequest,
    catalog: Mapping[str, Dataset],
    organization: Organization,
    *,
    allow_insecure_webhooks: bool = False,
) -> Preflight:
    """Check a request against the catalog and its organization.

    Raises:
        ExportFailure: the first rule that the request breaks; its fault is always the requester's.
    """
    _check_uid(request)
    check_webhook_url(request.webhook_url, allow_insecure=allow_insecure_webhooks)
    dataset = dataset_of(request, catalog)
    check_organization(request, dataset)
    file_format = format_of(request)
    compression = compression_of(request, file_format)
    options = options_of(request)
    zone = checked_zone(organization.time_zone, "organizations.time_zone")
    created_from, created_before = date_range_of(request, dataset, zone)
    time_zone = organization.time_zone if options.time_zone == "organization" else options.time_zone or "UTC"
    checked_zone(time_zone, "options.time_zone")
    if options.csv_delimiter == "," and options.csv_decimal_mark == ",":
        raise invalid_option("options.csv_decimal_mark: a comma needs another csv_delimiter, such as ';'.")
    return Preflight(
        dataset=dataset,
        format=file_format,
        compression=compression,
        columns=columns_of(request, dataset, file_format),
        filters=parse_filters(request.filters, dataset, organization.time_zone),
        list_ids=list_ids_of(request, dataset),
        segment_ids=segment_ids_of(request, dataset),
        created_from=created_from,
        created_before=created_before,
        options=options,
        time_zone=time_zone,
        max_bytes=max_bytes_of(request),
        recipients=recipients_of(request),
    )


def _check_uid(request: ExportRequest) -> None:
    # SQLite takes any text for it, and it becomes part of keys.
    if not is_canonical_uuid(request.uid):
        message = "uid: is not a UUID in lower case with hyphens; leave it out, the database makes one."
        raise ExportFailure(FailureCode.INVALID_REQUEST, message, field="uid")
