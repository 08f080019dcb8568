"""Preflight: whether a request can be served, checked in a fixed order before any row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import Compression, Format, OutputColumn
from export_pipeline.failures import checked_zone, invalid_option
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.tree import AllOf
from export_pipeline.requests.models import RequestInput
from export_pipeline.requests.organizations import Organization, check_permission, read_organization
from export_pipeline.requests.validation import rows
from export_pipeline.requests.validation.files import Options, compression_of, format_of, max_bytes_of, options_of
from export_pipeline.requests.validation.mail import check_mail, recipients_of
from export_pipeline.requests.validation.webhook import check_webhook_url
from export_pipeline.settings import Settings


@dataclass(frozen=True)
class Preflight:
    """A request that can be served: all names are resolved, all values have their types."""

    dataset: Dataset
    format: Format
    compression: Compression
    columns: tuple[OutputColumn, ...]
    filters: AllOf
    list_ids: tuple[rows.Identity, ...]
    segment_ids: tuple[rows.Identity, ...]
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
    request: RequestInput,
    catalog: Mapping[str, Dataset],
    organization: Organization,
    *,
    allow_insecure_webhooks: bool = False,
) -> Preflight:
    """Check a request against the catalog and its organization."""
    check_webhook_url(request.webhook_url, allow_insecure=allow_insecure_webhooks)
    dataset = rows.dataset_of(request, catalog)
    rows.check_organization(request, dataset)
    file_format = format_of(request)
    compression = compression_of(request, file_format)
    options = options_of(request)
    zone = checked_zone(organization.time_zone, "organizations.time_zone")
    created_from, created_before = rows.date_range_of(request, dataset, zone)
    time_zone = organization.time_zone if options.time_zone == "organization" else options.time_zone or "UTC"
    checked_zone(time_zone, "options.time_zone")
    if options.csv_delimiter == "," and options.csv_decimal_mark == ",":
        raise invalid_option("options.csv_decimal_mark: a comma needs another csv_delimiter, such as ';'.")
    return Preflight(
        dataset=dataset,
        format=file_format,
        compression=compression,
        columns=rows.columns_of(request, dataset, file_format),
        filters=parse_filters(request.filters, dataset, organization.time_zone),
        list_ids=rows.list_ids_of(request, dataset),
        segment_ids=rows.segment_ids_of(request, dataset),
        created_from=created_from,
        created_before=created_before,
        options=options,
        time_zone=time_zone,
        max_bytes=max_bytes_of(request),
        recipients=recipients_of(request),
    )


def admit(
    connection: sa.Connection, catalog: Mapping[str, Dataset], settings: Settings, request: RequestInput
) -> tuple[Organization, Preflight]:
    """Check all rules of a request: in its run, and before it is inserted to report mistakes early."""
    organization = read_organization(connection, request.organization_id)
    check_permission(connection, request)
    checked = preflight(request, catalog, organization, allow_insecure_webhooks=settings.webhook_allow_insecure)
    check_mail(connection, request, checked.recipients, provider_configured=settings.sends_mail)
    return organization, checked
