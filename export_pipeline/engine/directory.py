"""The lists and segments that an organization has, as a directory: ids, names, how many rows.

What belongs here: reading them. What does not: whether a request may name them (``lookups``), envelopes (gateway).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.engine import expressions
from export_pipeline.engine.conditions import table_clause
from export_pipeline.engine.lookups import Named, find_custom_fields, read_texts, rows_of
from export_pipeline.engine.query import Selection, build_query
from export_pipeline.engine.readers import Source, open_snapshot
from export_pipeline.engine.tenant import of_tenant, ordered
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.conditions import AllOf, AnyOf
from export_pipeline.requests.row_rules import Identity, identity_of
from export_pipeline.requests.segments import StoredSegment, segment_condition

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
    lists, membership = dataset.lists.lists, dataset.lists
    table = table_clause(lists.table, [lists.id, lists.name, lists.tenant])
    where = [of_tenant(table, lists.tenant, dataset, organization_id, source.backend)]
    place = ordered(table.c[lists.id], lists.id_type, source.backend)
    if after is not None:
        where.append(place > expressions.untyped(_identity(after, lists.id_type)))
    columns = [membership.list_id, *([membership.tenant] if membership.tenant else [])]
    members = table_clause(membership.table, columns)
    on_list: list[sa.ColumnElement[bool]] = [members.c[membership.list_id] == table.c[lists.id]]
    if lists.id_type is ColumnType.TEXT:
        on_list.append(ordered(members.c[membership.list_id], lists.id_type, source.backend) == place)
    if membership.tenant:
        on_list.append(of_tenant(members, membership.tenant, dataset, organization_id, source.backend))
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
