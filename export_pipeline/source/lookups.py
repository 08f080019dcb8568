"""Lists, segments and custom fields of an organization in the source.

Lookups use the export's readers: they work on the same databases, with the same rights, and raise what reading raises.
"""

from __future__ import annotations

import re
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField, CustomFieldTable, Dataset, ListTable
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.segments import StoredSegment, segment_condition
from export_pipeline.filters.tree import AllOf, AnyOf
from export_pipeline.requests.validation.rows import Identity, identity_of
from export_pipeline.source import open_snapshot
from export_pipeline.source.compiler import of_tenant, table_clause
from export_pipeline.source.dialects import dialect_of
from export_pipeline.source.dialects.base import untyped
from export_pipeline.source.query import Query, Selection, build_query
from export_pipeline.source.readers import Source

_FIELD_TYPES = {"text": ColumnType.TEXT, "number": ColumnType.DECIMAL, "date": ColumnType.TIMESTAMP}
"""SendGrid's types of custom fields (docs/contracts.md, 2.7)."""
_UNUSABLE_KEY = re.compile(r"[\x00-\x1f\x7f]")
_COUNTING_SECONDS = 5.0
"""The longest that ``segments_of`` reads and counts segments, all together: a user waits for the answer."""
_SHORTEST_TIMEOUT_SECONDS = 0.001
"""Databases count milliseconds, and take 0 for no limit."""


def check_lists(source: Source, dataset: Dataset, organization_id: str, list_ids: Sequence[Identity]) -> None:
    """Make sure that the organization has each of these lists. Raises ``unknown_list`` for the first that it lacks."""
    if dataset.lists is None or not list_ids:
        return
    found = read_texts(source, dataset, dataset.lists.lists, [dataset.lists.lists.id], organization_id, list_ids)
    _refuse_unknown(list_ids, {row[0] for row in found}, "list", FailureCode.UNKNOWN_LIST)


def find_segments(
    source: Source, dataset: Dataset, organization_id: str, segment_ids: Sequence[Identity]
) -> tuple[StoredSegment, ...]:
    """The organization's segments of these ids, in their order; ``unknown_segment`` for the first that it lacks."""
    segments = dataset.segments
    if segments is None or not segment_ids:
        return ()
    columns = [segments.id, segments.filter, *([segments.query_dsl] if segments.query_dsl else [])]
    rows = read_texts(source, dataset, segments, columns, organization_id, segment_ids)
    found = {key: _segment(key, *rest) for key, *rest in rows}
    _refuse_unknown(segment_ids, found, "segment", FailureCode.UNKNOWN_SEGMENT)
    return tuple(found[str(segment_id)] for segment_id in segment_ids)


def _segment(key: str | None, stored_filter: str | None, query_dsl: str | None = None) -> StoredSegment:
    return StoredSegment(id=key or "", filter=stored_filter, query_dsl=query_dsl)


def _refuse_unknown(ids: Sequence[Identity], known: Container[str | None], what: str, code: FailureCode) -> None:
    missing = next((one for one in ids if str(one) not in known), None)
    if missing is not None:
        message = f"{what}_ids: the organization has no {what} {missing}. Leave it out, or use one that it has."
        raise ExportFailure(code, message, field=f"{what}_ids")


def find_custom_fields(source: Source, dataset: Dataset, organization_id: str) -> tuple[CustomField, ...]:
    """The organization's custom fields in the order of their names; ``source_data_invalid`` for an unusable one."""
    declared = dataset.custom_fields
    if declared is None:
        return ()
    fields: dict[str, ColumnType] = {}
    for key, kind in read_texts(source, dataset, declared, [declared.name, declared.field_type], organization_id):
        if not key:
            problem = "a field has no name"
        elif _UNUSABLE_KEY.search(key):
            problem = "a field has a control character in its name"
        elif (value_type := _FIELD_TYPES.get((kind or "").lower())) is None:
            problem = "a field has a type other than Text, Number and Date"
        else:
            fields[key] = value_type
            continue
        message = f"Table {declared.table}: {problem}. Correct the definition of the field."
        raise ExportFailure(FailureCode.SOURCE_DATA_INVALID, message)
    return tuple(dataset.custom_field(key, fields[key]) for key in sorted(fields))


def read_texts(
    source: Source,
    dataset: Dataset,
    table: ListTable | CustomFieldTable,
    columns: Sequence[str],
    organization_id: str,
    ids: Sequence[Identity] | None = None,
) -> list[tuple[str | None, ...]]:
    """An organization's rows of a table that belongs to the dataset, as text; only those with these ids, if given."""
    named = None if isinstance(table, CustomFieldTable) or ids is None else table
    clause = table_clause(table.table, [*columns, table.tenant, named.id if named else None])
    dialect = dialect_of(source.backend)
    where = [of_tenant(clause, table.tenant, dataset, organization_id, dialect)]
    if named is not None:
        where.append(dialect.is_one_of(clause.c[named.id], ids or (), named.id_type))
    texts: list[sa.ColumnElement[Any]] = [
        sa.cast(clause.c[column], sa.Text).label(f"c{at}") for at, column in enumerate(columns)
    ]
    return rows_of(source, sa.select(*texts).where(*where), columns)


def rows_of(source: Source, select: sa.Select[Any], columns: Sequence[str]) -> list[tuple[str | None, ...]]:
    """The rows of a statement that selects texts; ``columns`` are their names in error messages."""
    query = Query(
        rows=select,
        count=sa.select(sa.func.count()).select_from(select.subquery()),
        columns=tuple(Column(name=f"c{at}", source=column, type=ColumnType.TEXT) for at, column in enumerate(columns)),
    )
    with open_snapshot(source, query) as snapshot:
        return [row for batch in snapshot.batches for row in zip(*[c.to_pylist() for c in batch.columns], strict=True)]


@dataclass(frozen=True)
class ListEntry:
    """A list, and the number of rows on it."""

    id: str
    name: str | None
    rows: int


@dataclass(frozen=True)
class SegmentEntry:
    """A segment; ``rows`` is None if its filter is unusable (see ``problem``) or if time ran out."""

    id: str
    name: str | None
    rows: int | None
    problem: str | None
    query_dsl: str | None


def lists_page(
    source: Source, dataset: Dataset, organization_id: str, *, after: str | None, limit: int
) -> list[ListEntry]:
    """The organization's lists after ``after``, by id; ``unknown_list`` if ``after`` cannot be the id of a list."""
    if dataset.lists is None:
        return []
    lists, membership, dialect = dataset.lists.lists, dataset.lists, dialect_of(source.backend)
    table = table_clause(lists.table, [lists.id, lists.name, lists.tenant])
    where = [of_tenant(table, lists.tenant, dataset, organization_id, dialect)]
    place = dialect.order_key(table.c[lists.id], lists.id_type)
    if after is not None:
        try:
            where.append(place > untyped(identity_of(after, lists.id_type)))
        except ValueError:
            message = "page_token: not issued by this API; start without one."
            raise ExportFailure(FailureCode.UNKNOWN_LIST, message, field="page_token") from None
    members = table_clause(membership.table, [membership.list_id, membership.tenant])
    on_list: list[sa.ColumnElement[bool]] = [members.c[membership.list_id] == table.c[lists.id]]
    if lists.id_type is ColumnType.TEXT:
        on_list.append(dialect.by_code_point(members.c[membership.list_id]) == place)
    if membership.tenant:
        on_list.append(of_tenant(members, membership.tenant, dataset, organization_id, dialect))
    rows = sa.select(sa.func.count()).select_from(members).where(*on_list).correlate(table).scalar_subquery()
    values: dict[str, sa.ColumnElement[Any]] = {"id": table.c[lists.id], "name": table.c[lists.name], "rows": rows}
    texts: list[sa.ColumnElement[Any]] = [sa.cast(value, sa.Text).label(name) for name, value in values.items()]
    select: sa.Select[Any] = sa.select(*texts).where(*where).order_by(place).limit(limit)
    found = rows_of(source, select, list(values))
    return [ListEntry(str(key), name, int(count or 0)) for key, name, count in found]


def segments_of(source: Source, dataset: Dataset, organization_id: str, time_zone: str) -> list[SegmentEntry]:
    """Every segment of the organization, in the order of their ids; parsed and counted for at most five seconds."""
    declared = dataset.segments
    if declared is None:
        return []
    columns = [declared.id, declared.name, declared.filter, *([declared.query_dsl] if declared.query_dsl else [])]
    rows = read_texts(source, dataset, declared, columns, organization_id)
    fields = find_custom_fields(source, dataset, organization_id)
    entries = []
    ends_at = time.monotonic() + _COUNTING_SECONDS
    for key, name, *stored in sorted(rows, key=lambda row: row[0] or ""):
        segment, count, problem = _segment(key, *stored), None, None
        if time.monotonic() < ends_at:
            try:
                condition = segment_condition(segment, dataset, fields, time_zone)
            except ExportFailure as failure:
                problem = failure.message
            else:
                selected = Selection(dataset, organization_id, (dataset.key_column,), AllOf(()), AnyOf((condition,)))
                count = _count_until(source, selected, ends_at)
        entries.append(SegmentEntry(segment.id, name, count, problem, segment.query_dsl))
    return entries


def _count_until(source: Source, selection: Selection, ends_at: float) -> int | None:
    """The number of rows of a selection; None if it is not known at ``ends_at`` (monotonic seconds)."""
    left = ends_at - time.monotonic()
    if left <= 0:
        return None
    longest = max(min(left, source.statement_timeout_seconds or left), _SHORTEST_TIMEOUT_SECONDS)
    try:
        query = build_query(selection, source.backend, limit=1)
        with open_snapshot(replace(source, statement_timeout_seconds=longest), query) as snapshot:
            return snapshot.row_count
    except ExportFailure:
        if time.monotonic() < ends_at:
            raise
        return None


def names_of(
    source: Source, dataset: Dataset, organization_id: str, *, list_ids: Sequence[str], segment_ids: Sequence[str]
) -> dict[str, str]:
    """The names of lists and segments by their ids; without those that no longer exist."""
    names: dict[str, str] = {}
    lists = dataset.lists.lists if dataset.lists else None
    for table, ids in ((lists, list_ids), (dataset.segments, segment_ids)):
        if table is not None and ids:
            found = read_texts(source, dataset, table, [table.id, table.name], organization_id, ids)
            names |= {key: name or "" for key, name in found if key is not None}
    return names
