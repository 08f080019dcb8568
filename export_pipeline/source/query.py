"""The one SELECT of an export: columns, the tenant's rows, the filters, the key's order.

The tenant predicate is added in ``build_query`` alone, and there is no other way to a statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import aggregate_order_by

from export_pipeline.catalog.model import ChildList, Column, CustomField, Dataset, Selected
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import AllOf, AnyOf, Comparison
from export_pipeline.source.compiler import ConditionCompiler, ordered, table_clause
from export_pipeline.source.dialects import mariadb, sqlite

# Child lists: the values of another table that belong to a row, gathered in the export's own statement.


def child_values(
    child: ChildList, compiler: ConditionCompiler, backend: str, parents: sa.Select[Any] | None
) -> sa.FromClause:
    """A row a parent that has values: ``parent`` (its key) and ``listed`` (a JSON array of texts, in order).

    Args:
        child: the child list.
        compiler: for the tenant's predicate.
        backend: of the database, as SQLAlchemy names it.
        parents: the keys that are exported; None = all that the child table has of the tenant.

    Raises:
        ExportFailure: ``not_supported`` on a database that this was not written for.
    """
    ranked = _ranked(child, compiler, backend, parents)
    within = sa.true() if child.limit is None else ranked.c.place <= child.limit
    if backend == "postgresql":
        value = sa.cast(sa.func.to_json(ranked.c.value), sa.Text)
        joined = sa.func.string_agg(value, aggregate_order_by(sa.literal_column("','"), ranked.c.place))
        gathered = sa.select(ranked.c.parent, _array(joined)).where(within).group_by(ranked.c.parent)
        return gathered.subquery()
    if backend == "sqlite":
        # As a window, because an aggregate takes an order only from SQLite 3.44 on.
        window = sa.func.group_concat(sa.func.json_quote(ranked.c.value), ",").over(
            partition_by=ranked.c.parent, order_by=ranked.c.place, rows=(None, None)
        )
        windows = sa.select(ranked.c.parent, ranked.c.place, _array(window)).where(within).subquery()
        first = sa.select(windows.c.parent, windows.c.listed).where(windows.c.place == 1)
        return sqlite.looked_up(first)
    if backend in mariadb.BACKENDS:
        listed = mariadb.array_of(ranked.c.value, ranked.c.place).label("listed")
        return sa.select(ranked.c.parent, listed).where(within).group_by(ranked.c.parent).subquery()
    raise ExportFailure(
        FailureCode.NOT_SUPPORTED,
        f"include: child lists cannot be read from {backend} yet; leave it out.",
        field="include",
    )


def _ranked(child: ChildList, compiler: ConditionCompiler, backend: str, parents: sa.Select[Any] | None) -> sa.Subquery:
    names = {child.foreign_key, child.value, child.order_by} | ({child.tenant} if child.tenant else set())
    table = table_clause(child.table, names)
    parent, value, order = table.c[child.foreign_key], table.c[child.value], table.c[child.order_by]
    directed = order.desc() if child.direction == "desc" else order.asc()
    text = sqlite.AsText(value) if backend == "sqlite" else sa.cast(value, sa.Text)
    # The value breaks ties by code point, so that two exports of one snapshot are the same.
    by_value: sa.ColumnElement[Any] = sa.collate(text, "C") if backend == "postgresql" else text
    if backend in mariadb.BACKENDS:
        by_value = mariadb.exact(text)
    # Databases disagree on where nulls are: here they come last, for they are neither the newest nor the oldest.
    place = sa.func.row_number().over(partition_by=parent, order_by=(order.is_(None), directed, by_value))
    where: list[sa.ColumnElement[bool]] = [value.is_not(None)]
    if child.tenant:
        where.append(compiler.of_tenant(table, child.tenant))
    if parents is not None:
        where.append(parent.in_(parents))
    return sa.select(parent.label("parent"), text.label("value"), place.label("place")).where(*where).subquery()


def _array(joined: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return sa.literal_column("'['").op("||")(joined).op("||")(sa.literal_column("']'")).label("listed")


_READ_AS_TEXT = (ColumnType.TEXT, ColumnType.UUID, ColumnType.JSON, ColumnType.DECIMAL)


@dataclass(frozen=True)
class Selection:
    """What to read: which tenant's rows of which dataset, and what of each row."""

    dataset: Dataset
    organization_id: str
    columns: tuple[Column | CustomField | ChildList, ...]
    filters: AllOf
    any_of: AnyOf | None = None
    """Lists and segments: a row of at least one of them; None = every row."""
    created_from: datetime | None = None
    """Inclusive, UTC."""
    created_before: datetime | None = None
    """Exclusive, UTC."""

    @property
    def read_columns(self) -> tuple[Column | CustomField | ChildList, ...]:
        """What to read: what was asked for, and the key, which names a row in messages."""
        key = self.dataset.key_column
        return self.columns if key in self.columns else (*self.columns, key)


@dataclass(frozen=True)
class Query:
    """A selection as statements: the rows in the order of the key, and how many they are."""

    rows: sa.Select[Any]
    count: sa.Select[Any]
    columns: tuple[Selected, ...]
    own: Mapping[int, sa.ColumnElement[Any]] = field(default_factory=dict)
    """By their places, the columns that are the table's own, as they stand in it."""
    limit: int | None = None
    """At most so many rows."""
    gathers: bool = False
    """The child lists of all rows are gathered and joined: never row by row."""


def build_query(selection: Selection, backend: str, *, limit: int | None = None, last: bool = False) -> Query:
    """Build the statements.

    Args:
        selection: what to read.
        backend: of the database, as SQLAlchemy names it: ``postgresql``, ``sqlite``, ...
        limit: at most so many rows; the count stays that of all of them.
        last: with a limit, those at the end of the key's order, from the last one back.

    Raises:
        ExportFailure: ``not_supported`` for child lists on a database that they were not written for.
    """
    dataset = selection.dataset
    table = table_clause(dataset.table, [dataset.tenant, *[column.source for column in dataset.columns]])
    compiler = ConditionCompiler(table, dataset, selection.organization_id, backend)
    chosen = _chosen(selection, compiler)
    where = [compiler.of_tenant(table, dataset.tenant), *chosen]
    key = table.c[dataset.key_column.source]
    parents = sa.select(key).where(*where)
    columns = selection.read_columns
    has_children = any(isinstance(column, ChildList) for column in columns)
    source = sqlite.seems_many(table) if has_children and backend == "sqlite" else table
    read: list[sa.ColumnElement[Any]] = []
    for column in columns:
        if isinstance(column, ChildList):
            # A narrow export must not gather the children of every row of the tenant, nor those of every tenant.
            narrow = chosen or column.tenant is None
            children = child_values(column, compiler, backend, parents if narrow else None)
            source = source.outerjoin(children, children.c.parent == key)
            read.append(sa.func.coalesce(children.c.listed, "[]").label(column.name))
        else:
            read.append(_read(table, column, compiler, backend))
    # A file is in the key's own order, for its index; a page in the one that its bounds are compared in.
    place = key if limit is None else ordered(key, dataset.key_column.type, backend)
    rows = sa.select(*read).select_from(source).where(*where).order_by(place.desc() if last else place).limit(limit)
    count = sa.select(sa.func.count()).select_from(table).where(*where)
    own = {place: table.c[one.source] for place, one in enumerate(columns) if isinstance(one, Column)}
    return Query(rows, count, columns, own, limit, gathers=has_children and limit is None)


def _chosen(selection: Selection, compiler: ConditionCompiler) -> Sequence[sa.ColumnElement[bool]]:
    """Every condition but the tenant's."""
    conditions = [compiler.condition(condition) for condition in selection.filters.conditions]
    if selection.any_of is not None:
        conditions.append(compiler.condition(selection.any_of))
    return [*conditions, *_date_range(selection, compiler)]


def _date_range(selection: Selection, compiler: ConditionCompiler) -> Sequence[sa.ColumnElement[bool]]:
    column = selection.dataset.created_at_column
    ends = ((FilterOperator.GTE, selection.created_from), (FilterOperator.LT, selection.created_before))
    return [
        compiler.condition(Comparison(column, operator, instant))
        for operator, instant in ends
        if column is not None and instant is not None
    ]


def _read(
    table: sa.TableClause, column: Column | CustomField, compiler: ConditionCompiler, backend: str
) -> sa.ColumnElement[Any]:
    if isinstance(column, CustomField):
        return compiler.custom_field(column).label(column.name)
    source: sa.ColumnElement[Any] = table.c[column.source]
    if column.type is ColumnType.JSON and backend == "postgresql":
        return _checked_json(source).label(column.name)
    return _shown(source, column.type, backend).label(column.name)


def _shown(source: sa.ColumnElement[Any], kind: ColumnType, backend: str) -> sa.ColumnElement[Any]:
    if backend == "sqlite" and kind in (ColumnType.TEXT, ColumnType.DECIMAL):
        return sqlite.AsText(source)
    # No digit of a decimal is lost, and every driver hands uuid, json and enums over alike.
    return sa.cast(source, sa.Text) if kind in _READ_AS_TEXT else source


def _checked_json(source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """PostgreSQL's JSON as text. What is declared json and is a text there is parsed, and refused if it is none."""
    is_json = sa.func.pg_typeof(source) == sa.any_(sa.literal_column("ARRAY['json', 'jsonb']::regtype[]"))
    text = sa.cast(source, sa.Text)
    return sa.case((is_json, text), else_=sa.cast(sa.cast(text, postgresql.JSON), sa.Text))
