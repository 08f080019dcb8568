"""The one SELECT of an export: columns, the tenant's rows, the filters, the key's order.

What belongs here: building the statement for a database. What does not: conditions (``conditions``), child
lists (``children``), running it (``readers``).

The tenant predicate is added in ``build_query`` alone, and there is no other way to a statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from export_pipeline.catalog.model import ChildList, Column, CustomField, Dataset
from export_pipeline.catalog.types import ColumnType, FilterOperator, Selected
from export_pipeline.engine import sqlite_text
from export_pipeline.engine.children import child_values
from export_pipeline.engine.conditions import ConditionCompiler, table_clause
from export_pipeline.engine.tenant import ordered
from export_pipeline.requests.conditions import AllOf, AnyOf, Comparison

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
    source = sqlite_text.seems_many(table) if has_children and backend == "sqlite" else table
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
        return sqlite_text.AsText(source)
    # No digit of a decimal is lost, and every driver hands uuid, json and enums over alike.
    return sa.cast(source, sa.Text) if kind in _READ_AS_TEXT else source


def _checked_json(source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """PostgreSQL's JSON as text. What is declared json and is a text there is parsed, and refused if it is none."""
    is_json = sa.func.pg_typeof(source) == sa.any_(sa.literal_column("ARRAY['json', 'jsonb']::regtype[]"))
    text = sa.cast(source, sa.Text)
    return sa.case((is_json, text), else_=sa.cast(sa.cast(text, postgresql.JSON), sa.Text))
