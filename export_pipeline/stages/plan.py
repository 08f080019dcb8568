"""The op ``plan``: resolve a request once into everything the later steps need, and estimate exports.

The plan waits in the staging store, beside the rows: it holds filter values, which must not travel in op outputs, run
config or tags.
"""

from __future__ import annotations

import io
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from export_pipeline.catalog.model import CustomField, Dataset, Layout, Selected
from export_pipeline.catalog.types import TABLES, ColumnType, Compression, Format, NameStyle, OutputColumn
from export_pipeline.database.engine import reading
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.segments import StoredSegment, segment_condition
from export_pipeline.filters.tree import AllOf, AnyOf, Condition, OnList, size_of
from export_pipeline.formats import open_format
from export_pipeline.formats.base import NO_CEILING, FormatOptions
from export_pipeline.formats.splitter import write_files
from export_pipeline.requests import billing, ownership
from export_pipeline.requests.models import ExportRequest, load_request
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.validation.files import Options
from export_pipeline.requests.validation.request import Preflight, admit
from export_pipeline.requests.validation.rows import Identity
from export_pipeline.source import open_snapshot
from export_pipeline.source.lookups import check_lists, find_custom_fields, find_segments
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline.source.readers.arrow_types import staged_schema
from export_pipeline.stages import Services
from export_pipeline.storage.staging import Staging, unique
from export_pipeline.timing import Timer

MOST_CONDITIONS = 2_000
MOST_VALUES = 30_000
"""Of filters and segments together. SQLite binds at most 32,766 values to a statement."""
SAMPLE_ROWS = 2_000
"""Half from each end of the key: old rows and new ones seldom look alike."""


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
    list_ids: tuple[Identity, ...]
    segments: tuple[StoredSegment, ...]
    custom_fields: dict[str, ColumnType]
    """The organization's custom fields when the request was planned: their keys and types in filters."""
    created_from: datetime | None
    created_before: datetime | None
    options: Options
    time_zone: str
    name_style: NameStyle
    gzip_suffix: str = "gz"
    content_encoded: bool = False
    """The files are gzip as a content encoding: a client decompresses them on arrival."""
    max_bytes: int
    key_secret: str
    """128 random bits in the keys of the delivered files."""

    @property
    def prefix(self) -> str:
        """The staging prefix of this attempt."""
        return staging_prefix(self.uid, self.attempt)


def staging_prefix(uid: str, attempt: int) -> str:
    """The staging prefix of an attempt."""
    return f"{uid}/{attempt}"


def plan_request(services: Services, request_id: int, *, run_id: str, attempt: int) -> tuple[ExportPlan, str, int]:
    """Validate a request, reserve the price of its mails before anything is read, and save its plan.

    Returns the plan, its staging key, and the number of recipients.

    Raises:
        ExportFailure: what the validation and ``make_plan`` raise.
        ExportCanceled, OwnershipLost: the request is no longer this run's.
    """
    with reading(services.database) as connection:
        request = load_request(connection, request_id)
        organization, checked = admit(connection, services.catalog, services.settings, request)
    if checked.recipients:
        reserve_mails(services.database, request, checked.recipients, run_id=run_id)
    plan = make_plan(request, checked, organization, services.source, attempt)
    return plan, save_plan(services.staging, plan), len(checked.recipients)


def reserve_mails(database: sa.Engine, request: ExportRequest, recipients: Sequence[str], *, run_id: str) -> None:
    """Reserve the price of a request's mails, if the request is still the run's."""
    with database.begin() as connection:
        ownership.lock(connection, request.id, run_id=run_id)
        billing.reserve(connection, request.organization_id, request.uid, recipients)


def make_plan(
    request: ExportRequest, checked: Preflight, organization: Organization, source: Source, attempt: int
) -> ExportPlan:
    """The plan of one attempt at a request that passed its validation.

    Lists, segments and custom fields are looked up now, so that every later step sees the same.

    Raises ``ExportFailure``: ``unknown_list``, ``unknown_segment``, ``invalid_segment``; whatever reading raises.
    """
    dataset, layout = checked.dataset, _layout(checked.dataset, request.layout)
    check_lists(source, dataset, organization.id, checked.list_ids)
    segments = find_segments(source, dataset, organization.id, checked.segment_ids)
    expanded = _expands(checked, layout)
    fields = find_custom_fields(source, dataset, organization.id) if segments or expanded else ()
    conditions = [segment_condition(segment, dataset, fields, organization.time_zone) for segment in segments]
    _check_size([checked.filters, *conditions])
    return ExportPlan(
        request_id=request.id,
        uid=request.uid,
        attempt=attempt,
        organization_id=request.organization_id,
        organization_time_zone=organization.time_zone,
        dataset=dataset.name,
        dataset_version=dataset.version,
        format=checked.format,
        compression=checked.compression,
        layout=request.layout,
        columns=_with_custom_fields(checked, fields, layout) if expanded else checked.columns,
        filters=request.filters,
        list_ids=checked.list_ids,
        segments=segments,
        custom_fields={field.key: field.value_type for field in fields},
        created_from=checked.created_from,
        created_before=checked.created_before,
        options=checked.options,
        time_zone=checked.time_zone,
        name_style=layout.file_name,
        gzip_suffix=layout.gzip_suffix,
        content_encoded=checked.compression == "gzip" and checked.format in layout.content_encoded,
        max_bytes=checked.max_bytes,
        key_secret=secrets.token_hex(16),
    )


def _check_size(conditions: Sequence[Condition]) -> None:
    count, values = size_of(AllOf(tuple(conditions)))
    for total, most, what in ((count, MOST_CONDITIONS, "conditions"), (values, MOST_VALUES, "values")):
        if total > most:
            message = f"filters: together with the segments they hold {total} {what}; at most {most} are allowed."
            raise ExportFailure(FailureCode.INVALID_FILTER, message, field="filters")


def _layout(dataset: Dataset, name: str) -> Layout:
    """How the request's layout writes; for the default layout, the defaults of every option."""
    return dataset.layouts.get(name) or Layout(columns=(dataset.key,))


def _expands(checked: Preflight, layout: Layout) -> bool:
    declared = checked.dataset.custom_fields
    if declared is None or not layout.expand_custom_fields or checked.format not in TABLES:
        return False
    return any(column.name == declared.column for column in checked.columns)


def _with_custom_fields(checked: Preflight, fields: Sequence[CustomField], layout: Layout) -> tuple[OutputColumn, ...]:
    """The custom fields in place of their JSON column (SendGrid, export file: under upper-case names)."""
    columns, declared = checked.columns, checked.dataset.custom_fields
    if not fields and len(columns) == 1:
        return columns  # a file needs a column
    place = next(at for at, column in enumerate(columns) if declared and column.name == declared.column)
    taken = {column.header for column in columns}
    expanded: list[OutputColumn] = []
    for field in fields:
        header = field.key.upper() if layout.header_case == "upper" else field.key
        # Two keys of a JSON object may differ in case only, or equal another column's name: a header appears once.
        header = header if header not in taken else field.name
        taken.add(header)
        expanded.append(OutputColumn(field.name, header, field.type))
    return (*columns[:place], *expanded, *columns[place + 1 :])


def save_plan(staging: Staging, plan: ExportPlan) -> str:
    """Save the plan for the later steps; returns its staging key."""
    key = f"{unique(plan.prefix)}/plan.json"
    with staging.create(key) as sink:
        sink.write(plan.model_dump_json().encode())
    return key


def load_plan(staging: Staging, key: str) -> ExportPlan:
    """The plan that an earlier step saved."""
    with staging.open(key) as source:
        return ExportPlan.model_validate_json(source.read())


def selection(plan: ExportPlan, catalog: Mapping[str, Dataset]) -> Selection:
    """What the plan reads. Raises ``unknown_dataset`` if the catalog changed since the plan was made."""
    dataset = catalog.get(plan.dataset)
    if dataset is None or dataset.version != plan.dataset_version:
        raise ExportFailure(
            FailureCode.UNKNOWN_DATASET,
            f"dataset: {plan.dataset} was changed in the catalog while the export ran. Insert the request again.",
            field="dataset",
        )
    zone = plan.organization_time_zone
    fields = [dataset.custom_field(key, value_type) for key, value_type in plan.custom_fields.items()]
    selectable: list[Selected] = [*dataset.columns, *dataset.children, *fields]
    by_name = {one.name: one for one in selectable}
    groups = [segment_condition(segment, dataset, fields, zone) for segment in plan.segments]
    if plan.list_ids:
        groups.append(OnList(plan.list_ids))
    return Selection(
        dataset=dataset,
        organization_id=plan.organization_id,
        columns=tuple(by_name[column.name] for column in plan.columns),
        filters=parse_filters(plan.filters, dataset, zone),
        any_of=AnyOf(tuple(groups)) if groups else None,
        created_from=plan.created_from,
        created_before=plan.created_before,
    )


def format_options(plan: ExportPlan, dataset: Dataset) -> FormatOptions:
    """How the plan's files are written."""
    layout = _layout(dataset, plan.layout)
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
        csv_quoting=layout.csv_quoting,
        timestamps=layout.timestamps,
        comma_separated=frozenset(layout.array_columns if layout.arrays == "comma_separated" else ()),
    )


@dataclass(frozen=True)
class Estimate:
    """What an export will amount to. ``rows`` is exact when it is counted; the rest is projected from a sample.

    ``seconds`` is the time to read and write on this machine, without waiting, upload and mail.
    """

    rows: int
    bytes: int
    files: int
    seconds: float


def estimate(plan: ExportPlan, catalog: Mapping[str, Dataset], source: Source) -> Estimate:
    """Count the rows of a plan, and project bytes and seconds from a sample of them."""
    rows, reading_seconds, sample = _sample(plan, catalog, source)
    dataset = catalog[plan.dataset]
    empty = _written(plan, dataset, sample.schema.empty_table())
    if not sample.num_rows:
        return Estimate(rows, empty, 1, reading_seconds)
    _written(plan, dataset, sample)  # so that the imports of the first call are not timed
    with (writing := Timer()):
        size = _written(plan, dataset, sample)
    share = rows / sample.num_rows
    total = empty + round((size - empty) * share)
    files = max(1, math.ceil(total / plan.max_bytes))
    return Estimate(rows, total + (files - 1) * empty, files, (reading_seconds + writing.seconds) * share)


def _sample(plan: ExportPlan, catalog: Mapping[str, Dataset], source: Source) -> tuple[int, float, pa.Table]:
    """The number of all rows, the seconds that reading the sample took, and the sample: all rows, if they are few."""
    chosen = selection(plan, catalog)
    first = build_query(chosen, source.backend, limit=SAMPLE_ROWS // 2)
    last = build_query(chosen, source.backend, limit=SAMPLE_ROWS // 2, last=True)
    reading, rows, batches = Timer(), 0, list[pa.RecordBatch]()
    for query in (first, last):
        with open_snapshot(source, query) as snapshot, reading:
            rows = snapshot.row_count
            batches += list(snapshot.batches)
        if rows <= SAMPLE_ROWS // 2:
            break
    return rows, reading.seconds, pa.Table.from_batches(batches, schema=staged_schema(first.columns))


def _written(plan: ExportPlan, dataset: Dataset, sample: pa.Table) -> int:
    """The bytes of one file that holds these rows."""
    options = replace(format_options(plan, dataset), max_bytes=NO_CEILING)
    written = write_files(
        sample.to_batches(),
        open_format(plan.format, options),
        lambda _ordinal: io.BytesIO(),
        key=dataset.key,
        max_bytes=NO_CEILING,
        progress=lambda _rows: None,
    )
    return sum(file.bytes for file in written)
