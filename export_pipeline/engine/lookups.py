"""Looking up in the source what a request names there: its lists, its segments, the organization's custom fields.

What belongs here: small reads before the export's own. What does not: what a segment means (requests.segments).

They go through the export's reader, so that they work on every database that it reads, with the same rights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from export_pipeline.catalog.model import CustomField, CustomFieldTable, Dataset, SegmentTable
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.engine.conditions import table_clause
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import Source, open_snapshot
from export_pipeline.engine.tenant import is_one_of, of_tenant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.row_rules import Identity
from export_pipeline.requests.segments import StoredSegment

_FIELD_TYPES = {"text": ColumnType.TEXT, "number": ColumnType.DECIMAL, "date": ColumnType.TIMESTAMP}
"""SendGrid's types of custom fields (contracts, 2.7)."""
_UNUSABLE_KEY = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class _TextColumn:
    """A column that is read as text."""

    name: str
    source: str
    type: ColumnType = ColumnType.TEXT


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
    where = [of_tenant(clause, tenant, dataset, organization_id, source.backend)]
    if named is not None:
        where.append(is_one_of(clause.c[named.column], named.ids, named.kind, source.backend))
    texts: list[sa.ColumnElement[Any]] = [
        sa.cast(clause.c[column], sa.Text).label(f"c{at}") for at, column in enumerate(columns)
    ]
    return rows_of(source, sa.select(*texts).where(*where), columns)


def rows_of(source: Source, select: sa.Select[Any], columns: Sequence[str]) -> list[tuple[str | None, ...]]:
    """The rows of a statement that selects texts; ``columns`` are what to call them when the data is wrong."""
    query = Query(
        rows=select,
        count=sa.select(sa.func.count()).select_from(select.subquery()),
        columns=tuple(_TextColumn(f"c{at}", column) for at, column in enumerate(columns)),
    )
    with open_snapshot(source, query) as snapshot:
        return [row for batch in snapshot.batches for row in zip(*[c.to_pylist() for c in batch.columns], strict=True)]
