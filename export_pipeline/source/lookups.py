"""Looking up in the source what a request names there: its lists, its segments, the organization's custom fields.

They go through the export's reader, so that they work on every database that it reads, with the same rights.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField, CustomFieldTable, Dataset, SegmentTable
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.segments import StoredSegment, segment_condition
from export_pipeline.filters.tree import AllOf, AnyOf
from export_pipeline.requests.validation.rows import Identity, identity_of
from export_pipeline.source.compiler import of_tenant, table_clause
from export_pipeline.source.dialects import dialect_of
from export_pipeline.source.dialects.base import untyped
from export_pipeline.source.query import Query, Selection, build_query
from export_pipeline.source.readers import Source, open_snapshot

_FIELD_TYPES = {"text": ColumnType.TEXT, "number": ColumnType.DECIMAL, "date": ColumnType.TIMESTAMP}
"""SendGrid's types of custom fields (contracts, 2.7)."""
_UNUSABLE_KEY = re.compile(r"[\x00-\x1f\x7f]")


class Named(NamedTuple):
    """The rows that a request names: the column of their ids, of what type it is declared, the ids."""

    column: str
    kind: IdentityType
    ids: Sequence[Identity]


def check_lists(source: Source, dataset: Dataset, organization_id: str, list_ids: Sequence[Identity]) -> None:
    """Make sure that the organization has every one of these lists.

    Raises:
        ExportFailure: ``unknown_list``, naming the first that it does not have; whatever reading raises.
    """
    if dataset.lists is None or not list_ids:
        return
    lists = dataset.lists.lists
    named = Named(lists.id, lists.id_type, list_ids)
    found = read_texts(source, dataset, lists.table, [lists.id], lists.tenant, organization_id, named)
    known = {row[0] for row in found}
    _refuse_unknown(list_ids, known, "list_ids", "list", FailureCode.UNKNOWN_LIST)


def find_segments(
    source: Source, dataset: Dataset, organization_id: str, segment_ids: Sequence[Identity]
) -> tuple[StoredSegment, ...]:
    """The organization's segments of these ids, in their order.

    Raises:
        ExportFailure: ``unknown_segment``, naming the first that it does not have; whatever reading raises.
    """
    if dataset.segments is None or not segment_ids:
        return ()
    found = {row[0]: row for row in _segment_rows(source, dataset, dataset.segments, organization_id, segment_ids)}
    _refuse_unknown(segment_ids, found.keys(), "segment_ids", "segment", FailureCode.UNKNOWN_SEGMENT)
    return tuple(_stored(str(segment_id), found[str(segment_id)]) for segment_id in segment_ids)


def _segment_rows(
    source: Source, dataset: Dataset, segments: SegmentTable, organization_id: str, segment_ids: Sequence[Identity]
) -> list[tuple[str | None, ...]]:
    columns = [segments.id, segments.filter, *([segments.query_dsl] if segments.query_dsl else [])]
    named = Named(segments.id, segments.id_type, segment_ids)
    return read_texts(source, dataset, segments.table, columns, segments.tenant, organization_id, named)


def _stored(segment_id: str, row: Sequence[str | None]) -> StoredSegment:
    return StoredSegment(id=segment_id, filter=row[1], query_dsl=row[2] if len(row) > 2 else None)


def _refuse_unknown(asked: Sequence[Identity], known: Any, field: str, what: str, code: FailureCode) -> None:
    missing = next((one for one in asked if str(one) not in known), None)
    if missing is not None:
        message = f"{field}: the organization has no {what} {missing}. Leave it out, or ask for one that it has."
        raise ExportFailure(code, message, field=field)


def find_custom_fields(source: Source, dataset: Dataset, organization_id: str) -> tuple[CustomField, ...]:
    """The custom fields that the organization defined, in the order of their names.

    Raises:
        ExportFailure: ``source_data_invalid`` for a definition that cannot be used; whatever reading raises.
    """
    declared = dataset.custom_fields
    if declared is None:
        return ()
    columns = [declared.name, declared.field_type]
    rows = read_texts(source, dataset, declared.table, columns, declared.tenant, organization_id)
    fields = {_key(declared, key): _field_type(declared, kind) for key, kind in rows}
    return tuple(dataset.custom_field(key, fields[key]) for key in sorted(fields))


def _key(declared: CustomFieldTable, key: str | None) -> str:
    if not key:
        raise _bad_definition(declared, "a field has no name")
    if _UNUSABLE_KEY.search(key):
        raise _bad_definition(declared, "a field has a control character in its name")
    return key


def _field_type(declared: CustomFieldTable, kind: str | None) -> ColumnType:
    try:
        return _FIELD_TYPES[(kind or "").lower()]
    except KeyError:
        raise _bad_definition(declared, "a field has a type other than Text, Number and Date") from None


def _bad_definition(declared: CustomFieldTable, what: str) -> ExportFailure:
    return ExportFailure(
        FailureCode.SOURCE_DATA_INVALID, f"Table {declared.table}: {what}. Correct the definition of the field."
    )


def read_texts(
    source: Source,
    dataset: Dataset,
    table: str,
    columns: Sequence[str],
    tenant: str,
    organization_id: str,
    named: Named | None = None,
) -> list[tuple[str | None, ...]]:
    """An organization's rows of a dataset's table as text; of the ``named`` ones alone, if there are."""
    clause = table_clause(table, [*columns, tenant, *([named.column] if named else [])])
    dialect = dialect_of(source.backend)
    where = [of_tenant(clause, tenant, dataset, organization_id, dialect)]
    if named is not None:
        where.append(dialect.is_one_of(clause.c[named.column], named.ids, named.kind))
    texts: list[sa.ColumnElement[Any]] = [
        sa.cast(clause.c[column], sa.Text).label(f"c{at}") for at, column in enumerate(columns)
    ]
    return rows_of(source, sa.select(*texts).where(*where), columns)


def rows_of(source: Source, select: sa.Select[Any], columns: Sequence[str]) -> list[tuple[str | None, ...]]:
    """The rows of a statement that selects texts; ``columns`` are what to call them when the data is wrong."""
    query = Query(
        rows=select,
        count=sa.select(sa.func.count()).select_from(select.subquery()),
        columns=tuple(Column(name=f"c{at}", source=column, type=ColumnType.TEXT) for at, column in enumerate(columns)),
    )
    with open_snapshot(source, query) as snapshot:
        return [row for batch in snapshot.batches for row in zip(*[c.to_pylist() for c in batch.columns], strict=True)]


# The lists and segments that an organization has, as a directory: ids, names, how many rows.


_COUNTING_SECONDS = 5.0
"""How long a directory may take to read its segments and to count them, together: somebody waits for it."""
_SHORTEST_TIMEOUT_SECONDS = 0.001
"""Databases count milliseconds, and take none for no limit."""


@dataclass(frozen=True)
class ListEntry:
    """A list, and how many rows are on it."""

    id: str
    name: str | None
    rows: int


@dataclass(frozen=True)
class SegmentEntry:
    """A segment; ``rows`` is None if its filter cannot be used, as ``problem`` says, or if time ran out."""

    id: str
    name: str | None
    rows: int | None
    problem: str | None
    query_dsl: str | None


def lists_page(
    source: Source, dataset: Dataset, organization_id: str, *, after: str | None, limit: int
) -> list[ListEntry]:
    """The organization's lists in the order of their ids, those behind ``after``.

    Raises:
        ExportFailure: ``unknown_list`` if ``after`` cannot be the id of a list; whatever reading raises.
    """
    if dataset.lists is None:
        return []
    lists, membership, dialect = dataset.lists.lists, dataset.lists, dialect_of(source.backend)
    table = table_clause(lists.table, [lists.id, lists.name, lists.tenant])
    where = [of_tenant(table, lists.tenant, dataset, organization_id, dialect)]
    place = dialect.order_key(table.c[lists.id], lists.id_type)
    if after is not None:
        where.append(place > untyped(_identity(after, lists.id_type)))
    columns = [membership.list_id, *([membership.tenant] if membership.tenant else [])]
    members = table_clause(membership.table, columns)
    on_list: list[sa.ColumnElement[bool]] = [members.c[membership.list_id] == table.c[lists.id]]
    if lists.id_type is ColumnType.TEXT:
        on_list.append(dialect.by_code_point(members.c[membership.list_id]) == place)
    if membership.tenant:
        on_list.append(of_tenant(members, membership.tenant, dataset, organization_id, dialect))
    rows = sa.select(sa.func.count()).select_from(members).where(*on_list).correlate(table).scalar_subquery()
    names = ("id", "name", "rows")
    values: tuple[sa.ColumnElement[Any], ...] = (table.c[lists.id], table.c[lists.name], rows)
    texts: list[sa.ColumnElement[Any]] = [
        sa.cast(value, sa.Text).label(name) for name, value in zip(names, values, strict=True)
    ]
    select: sa.Select[Any] = sa.select(*texts).where(*where).order_by(place).limit(limit)
    found = rows_of(source, select, names)
    return [ListEntry(str(key), name, int(count or 0)) for key, name, count in found]


def _identity(text: str, kind: IdentityType) -> Identity:
    try:
        return identity_of(text, kind)
    except ValueError:
        raise ExportFailure(FailureCode.UNKNOWN_LIST, "page_token: is none of ours.", field="page_token") from None


def segments_of(source: Source, dataset: Dataset, organization_id: str, time_zone: str) -> list[SegmentEntry]:
    """Every segment of the organization, in the order of their ids, each read and counted until five seconds are over.

    Raises:
        ExportFailure: whatever reading raises.
    """
    declared = dataset.segments
    if declared is None:
        return []
    columns = [declared.id, declared.name, declared.filter, *([declared.query_dsl] if declared.query_dsl else [])]
    rows = read_texts(source, dataset, declared.table, columns, declared.tenant, organization_id)
    fields = find_custom_fields(source, dataset, organization_id)
    entries = []
    ends_at = time.monotonic() + _COUNTING_SECONDS
    for key, name, stored, *query in sorted(rows, key=lambda row: row[0] or ""):
        segment = StoredSegment(id=key or "", filter=stored, query_dsl=query[0] if query else None)
        if time.monotonic() >= ends_at:
            entries.append(SegmentEntry(segment.id, name, None, None, segment.query_dsl))
            continue
        try:
            condition = segment_condition(segment, dataset, fields, time_zone)
        except ExportFailure as failure:
            entries.append(SegmentEntry(segment.id, name, None, failure.message, segment.query_dsl))
            continue
        selected = Selection(dataset, organization_id, (dataset.key_column,), AllOf(()), AnyOf((condition,)))
        count = _count_until(source, selected, ends_at)
        entries.append(SegmentEntry(segment.id, name, count, None, segment.query_dsl))
    return entries


def _count_until(source: Source, selection: Selection, ends_at: float) -> int | None:
    """How many rows a selection has; None if that is not known at an instant of the monotonic clock."""
    left = ends_at - time.monotonic()
    if left <= 0:
        return None
    longest = min(left, source.statement_timeout_seconds or left)
    try:
        return count_rows(replace(source, statement_timeout_seconds=max(longest, _SHORTEST_TIMEOUT_SECONDS)), selection)
    except ExportFailure:
        if time.monotonic() < ends_at:
            raise
        return None


def count_rows(source: Source, selection: Selection) -> int:
    """How many rows a selection has."""
    with open_snapshot(source, build_query(selection, source.backend, limit=1)) as snapshot:
        return snapshot.row_count


def names_of(
    source: Source, dataset: Dataset, organization_id: str, *, list_ids: Sequence[str], segment_ids: Sequence[str]
) -> dict[str, str]:
    """The names of lists and segments by their ids; those that are gone have none."""
    names: dict[str, str] = {}
    if dataset.lists is not None and list_ids:
        lists = dataset.lists.lists
        wanted = Named(lists.id, lists.id_type, list_ids)
        found = read_texts(source, dataset, lists.table, [lists.id, lists.name], lists.tenant, organization_id, wanted)
        names |= {key: name or "" for key, name in found if key is not None}
    if dataset.segments is not None and segment_ids:
        kept = dataset.segments
        wanted = Named(kept.id, kept.id_type, segment_ids)
        found = read_texts(source, dataset, kept.table, [kept.id, kept.name], kept.tenant, organization_id, wanted)
        names |= {key: name or "" for key, name in found if key is not None}
    return names
