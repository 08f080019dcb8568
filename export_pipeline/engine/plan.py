"""The plan of an export: everything the later steps need, resolved once from the request.

What belongs here: the plan's model, making it from a preflight, and what steps derive from it.
What does not: the rules of a request (requests.preflight), reading and writing rows.

The plan waits in the staging store, beside the rows: it holds filter values, which
must not travel in op outputs, run config or tags.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from export_pipeline.catalog.model import Dataset, OutputColumn
from export_pipeline.engine.formats.base import FormatOptions
from export_pipeline.engine.query import Selection
from export_pipeline.engine.staging import Staging, unique
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.filters import parse_filters
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.preflight import Compression, Format, Options, Preflight


class ExportPlan(BaseModel):
    """A request, ready to be executed by one attempt."""

    model_config = ConfigDict(frozen=True)

    request_id: int
    uid: str
    attempt: int
    organization_id: str
    organization_time_zone: str
    dataset: str
    dataset_version: str
    format: Format
    compression: Compression
    layout: str
    columns: tuple[OutputColumn, ...]
    filters: dict[str, Any]
    created_from: datetime | None
    created_before: datetime | None
    options: Options
    time_zone: str
    max_bytes: int
    key_secret: str
    """128 random bits in the keys of the delivered files."""

    @property
    def prefix(self) -> str:
        """Where this attempt's staged objects stand."""
        return staging_prefix(self.uid, self.attempt)


def staging_prefix(uid: str, attempt: int) -> str:
    """Where an attempt's staged objects stand."""
    return f"{uid}/{attempt}"


def make_plan(request: ExportRequest, checked: Preflight, organization: Organization, attempt: int) -> ExportPlan:
    """The plan of one attempt at a request that passed its preflight."""
    return ExportPlan(
        request_id=request.id,
        uid=request.uid,
        attempt=attempt,
        organization_id=request.organization_id,
        organization_time_zone=organization.time_zone,
        dataset=checked.dataset.name,
        dataset_version=checked.dataset.version,
        format=checked.format,
        compression=checked.compression,
        layout=request.layout,
        columns=checked.columns,
        filters=request.filters,
        created_from=checked.created_from,
        created_before=checked.created_before,
        options=checked.options,
        time_zone=checked.time_zone,
        max_bytes=checked.max_bytes,
        key_secret=secrets.token_hex(16),
    )


def save_plan(staging: Staging, plan: ExportPlan) -> str:
    """Put the plan where the later steps find it; returns its key."""
    key = f"{unique(plan.prefix)}/plan.json"
    with staging.create(key) as sink:
        sink.write(plan.model_dump_json().encode())
    return key


def load_plan(staging: Staging, key: str) -> ExportPlan:
    """The plan that an earlier step saved."""
    with staging.open(key) as source:
        return ExportPlan.model_validate_json(source.read())


def selection(plan: ExportPlan, catalog: Mapping[str, Dataset]) -> Selection:
    """What the plan reads.

    Raises:
        ExportFailure: ``unknown_dataset`` if the catalog changed since the plan was made.
    """
    dataset = catalog.get(plan.dataset)
    if dataset is None or dataset.version != plan.dataset_version:
        raise ExportFailure(
            FailureCode.UNKNOWN_DATASET,
            f"dataset: {plan.dataset} was changed in the catalog while the export ran. Insert the request again.",
            field="dataset",
        )
    by_name = {column.name: column for column in dataset.columns}
    return Selection(
        dataset=dataset,
        organization_id=plan.organization_id,
        columns=tuple(by_name[column.name] for column in plan.columns),
        filters=parse_filters(plan.filters, dataset, plan.organization_time_zone),
        created_from=plan.created_from,
        created_before=plan.created_before,
    )


def format_options(plan: ExportPlan) -> FormatOptions:
    """How the plan's files are written."""
    return FormatOptions(
        columns=plan.columns,
        max_bytes=plan.max_bytes,
        compression=plan.compression,
        time_zone=plan.time_zone,
        guard_formulas=plan.options.guard_formulas,
        csv_delimiter=plan.options.csv_delimiter,
        csv_decimal_mark=plan.options.csv_decimal_mark,
        csv_bom=plan.options.csv_profile == "excel",
        dataset=plan.dataset,
    )
