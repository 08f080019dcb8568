"""The rules of a request's rows: dataset, columns, child lists, lists and segments, creation time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from export_pipeline.catalog.model import DEFAULT_LAYOUT, ChildList, Dataset
from export_pipeline.catalog.types import TABLES, ColumnType, Format, IdentityType, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode, abbreviate
from export_pipeline.requests.models import RequestInput
from export_pipeline.requests.validation import refusal
from export_pipeline.scheduling.wall_clock import beginning, end_of_second, last_moment

Identity = str | int
"""An id of a list or segment, in the type that the catalog declares."""
MAX_IDENTITIES = 1000
_INT64 = range(-(2**63), 2**63)


def dataset_of(request: RequestInput, catalog: Mapping[str, Dataset]) -> Dataset:
    """The dataset (``unknown_dataset``)."""
    dataset = catalog.get(request.dataset)
    if dataset is None:
        known = ", ".join(sorted(catalog))
        message = f"{abbreviate(request.dataset)} is not one of {known}."
        raise refusal(FailureCode.UNKNOWN_DATASET, "dataset", message)
    return dataset


def check_organization(request: RequestInput, dataset: Dataset) -> None:
    """Check that the organization's id has the spelling that its own tables have.

    PostgreSQL finds the same rows under several spellings of a UUID, but the organization's permissions, integration
    and balance only under one (``invalid_request``).
    """
    try:
        canonical = str(identity_of(request.organization_id, dataset.tenant_type))
    except ValueError:
        canonical = None
    if request.organization_id != canonical:
        expected = {ColumnType.UUID: "a UUID in lower case with hyphens", ColumnType.INTEGER: "a whole number"}
        what = expected.get(dataset.tenant_type, "a text")
        message = f"must be {what}, as in {dataset.table}.{dataset.tenant}."
        raise refusal(FailureCode.INVALID_REQUEST, "organization_id", message)


def date_range_of(request: RequestInput, dataset: Dataset, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """The range of creation times as instants: inclusive begin, exclusive end.

    Dates are wall clock, both ends inclusive to the second (Cometly, Create Contact Export). An end without a time of
    day includes the whole day (``last_moment``). ``wall_clock`` defines times that happen twice or never. A window
    consists of instants, so that windows meet exactly (``invalid_date_range``).
    """
    if request.window_from or request.window_before:
        return _window_of(request, dataset)
    start, end = request.start_date, last_moment(request.end_date) if request.end_date else None
    if (start or end) and dataset.created_at is None:
        raise _invalid_range("start_date", f"dataset {dataset.name} has no creation time to filter by; leave it out")
    if start and end and end <= start.replace(microsecond=0):
        raise _invalid_range("end_date", "must be after start_date")
    try:
        return beginning(start, zone) if start else None, end_of_second(end, zone) if end else None
    except OverflowError:
        raise _invalid_range("end_date" if end else "start_date", "is out of range; leave it out") from None


def _window_of(request: RequestInput, dataset: Dataset) -> tuple[datetime | None, datetime | None]:
    begin, end = request.window_from, request.window_before
    if request.start_date or request.end_date:
        raise _invalid_range("window_from", "cannot be given together with start_date or end_date; leave those out")
    if dataset.created_at is None:
        raise _invalid_range("window_from", f"dataset {dataset.name} has no creation time to filter by; leave it out")
    if begin and end and end <= begin:
        raise _invalid_range("window_before", "must be after window_from")
    return begin, end


def _invalid_range(field: str, what: str) -> ExportFailure:
    return refusal(FailureCode.INVALID_DATE_RANGE, field, f"{what}.")


def columns_of(request: RequestInput, dataset: Dataset, file_format: Format) -> tuple[OutputColumn, ...]:
    """The columns in the order of the request, with the headers of the layout; child lists come last.

    Codes: ``unknown_layout``, ``unknown_column``, ``unknown_include``.
    """
    layout = dataset.layout(request.layout, table=file_format in TABLES)
    if layout is None:
        known = ", ".join([DEFAULT_LAYOUT, *dataset.layouts])
        raise refusal(FailureCode.UNKNOWN_LAYOUT, "layout", f"{abbreviate(request.layout)} is not one of {known}.")
    headers = {item.column.name: item.header for item in layout}
    names = _column_names(request, dataset, tuple(headers))
    types = {column.name: column.type for column in dataset.columns}
    columns = [OutputColumn(name, headers[name], types[name]) for name in names]
    children = [OutputColumn(child.name, child.header, child.type) for child in _children(request, dataset)]
    return (*columns, *children)


def _column_names(request: RequestInput, dataset: Dataset, allowed: Sequence[str]) -> Sequence[str]:
    if not request.columns:
        return allowed
    names: list[str] = []
    for name in request.columns:
        column = dataset.column(name)
        if column is None or column.name not in allowed:
            message = f"{abbreviate(name)} is not one of {', '.join(allowed)}."
            raise refusal(FailureCode.UNKNOWN_COLUMN, "columns", message)
        if column.name in names:
            raise refusal(FailureCode.UNKNOWN_COLUMN, "columns", f"{column.name} is named twice; name it once.")
        names.append(column.name)
    return names


def _children(request: RequestInput, dataset: Dataset) -> Sequence[ChildList]:
    chosen: list[ChildList] = []
    for index, name in enumerate(request.include or ()):
        child = dataset.child(name)
        if child is None:
            known = ", ".join(child.name for child in dataset.children) or "none"
            message = f"include[{index}]: {abbreviate(name)} is not a child list of {dataset.name}; known are: {known}."
            raise ExportFailure(FailureCode.UNKNOWN_INCLUDE, message, field="include")
        chosen.append(child)
    # In the order of the declaration, so that the keys of a file do not depend on the request.
    return [child for child in dataset.children if child in chosen]


def list_ids_of(request: RequestInput, dataset: Dataset) -> tuple[Identity, ...]:
    """The lists of the request, without duplicates, in the type of the catalog (``unknown_list``: none can exist)."""
    kind = dataset.lists.lists.id_type if dataset.lists else None
    return _identities(request.list_ids, kind, dataset, "list", FailureCode.UNKNOWN_LIST)


def segment_ids_of(request: RequestInput, dataset: Dataset) -> tuple[Identity, ...]:
    """The segments of the request, without duplicates, in the type of the catalog (``unknown_segment``)."""
    kind = dataset.segments.id_type if dataset.segments else None
    return _identities(request.segment_ids, kind, dataset, "segment", FailureCode.UNKNOWN_SEGMENT)


def _identities(
    texts: Sequence[str] | None, kind: IdentityType | None, dataset: Dataset, what: str, code: FailureCode
) -> tuple[Identity, ...]:
    if not texts:
        return ()
    field = f"{what}_ids"
    if kind is None:
        raise refusal(code, field, f"dataset {dataset.name} has no {what}s; leave it out.")
    if len(texts) > MAX_IDENTITIES:
        raise refusal(code, field, f"holds {len(texts)} ids; at most {MAX_IDENTITIES} are allowed.")
    found: dict[Identity, None] = {}
    for index, text in enumerate(texts):
        try:
            found[identity_of(text, kind)] = None
        except ValueError:
            expected = {ColumnType.UUID: "a UUID", ColumnType.INTEGER: "a whole number"}.get(kind, "a text")
            message = f"{field}[{index}]: {abbreviate(text)} is not {expected}, so no such id can exist."
            raise ExportFailure(code, message, field=field) from None
    return tuple(found)


def identity_of(text: str, kind: IdentityType) -> Identity:
    """Convert an id to the type of its column; a ``ValueError`` if no such id can exist."""
    if kind is ColumnType.UUID:
        return str(UUID(text))
    if kind is ColumnType.INTEGER:
        number = int(text)
        if number not in _INT64:
            raise ValueError
        return number
    if not text or "\x00" in text:
        raise ValueError
    text.encode()
    return text
