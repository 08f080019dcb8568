"""The one SELECT of an export: columns, the tenant's rows, the filters, the key's order.

``build_query`` always adds the tenant predicate, ``compiler.of_tenant``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import ChildList, Column, CustomField, Dataset, Selected
from export_pipeline.catalog.types import FilterOperator
from export_pipeline.filters.tree import AllOf, AnyOf, Comparison
from export_pipeline.source.compiler import ConditionCompiler, table_clause
from export_pipeline.source.dialects import dialect_of
from export_pipeline.source.dialects.base import Bool, Dialect, Expression


@dataclass(frozen=True)
class Selection:
    """What to read: which tenant's rows of which dataset, and what of each row."""

    dataset: Dataset
    organization_id: str
    columns: tuple[Selected, ...]
    filters: AllOf
    any_of: AnyOf | None = None
    """Lists and segments: a row of at least one of them; None = every row."""
    created_from: datetime | None = None
    """Inclusive, UTC."""
    created_before: datetime | None = None
    """Exclusive, UTC."""


@dataclass(frozen=True)
class Query:
    """A selection as statements: the rows in the order of the key, and their number."""

    rows: sa.Select[Any]
    count: sa.Select[Any]
    columns: tuple[Selected, ...]
    own: Mapping[int, Expression] = field(default_factory=dict)
    """The bare columns of the table, by their places in ``columns``."""
    limit: int | None = None
    """The most rows to read."""
    gathers: bool = False
    """The child lists of all rows are gathered and joined: never row by row."""


def build_query(selection: Selection, backend: str, *, limit: int | None = None, last: bool = False) -> Query:
    """Build the statements for a database, by SQLAlchemy's name for it: ``postgresql``, ``sqlite``, ...

    With a ``limit`` at most so many rows are read, with ``last`` those at the end of the key's order, from the last one
    back. The count remains that of all of them.

    Raises ``ExportFailure``: ``not_supported`` for child lists or a filter that this package cannot write for the
    database.
    """
    dataset, dialect = selection.dataset, dialect_of(backend)
    table = table_clause(dataset.table, [dataset.tenant, *[column.source for column in dataset.columns]])
    compiler = ConditionCompiler(table, dataset, selection.organization_id, dialect)
    chosen = _chosen(selection, compiler)
    where = [compiler.of_tenant(table, dataset.tenant), *chosen]
    key = table.c[dataset.key_column.source]
    columns = selection.columns
    if dataset.key_column not in columns:
        columns = (*columns, dataset.key_column)  # it identifies a row in messages
    has_children = any(isinstance(column, ChildList) for column in columns)
    source = dialect.parents(table) if has_children else table
    read: list[Expression] = []
    for column in columns:
        match column:
            case ChildList():
                # A narrow export must not gather the children of every row of the tenant, nor those of every tenant.
                parents = sa.select(key).where(*where) if chosen or column.tenant is None else None
                children = child_values(column, compiler, dialect, parents)
                source = source.outerjoin(children, children.c.parent == key)
                value: Expression = sa.func.coalesce(children.c.listed, "[]")
            case CustomField():
                value = compiler.custom_field(column)
            case Column():
                value = dialect.read(table.c[column.source], column.type)
        read.append(value.label(column.name))
    # A file is in the key's own order, for its index; a page in the order that its bounds are compared in.
    order = key if limit is None else dialect.order_key(key, dataset.key_column.type)
    rows = sa.select(*read).select_from(source).where(*where).order_by(order.desc() if last else order).limit(limit)
    count = sa.select(sa.func.count()).select_from(table).where(*where)
    own = {place: table.c[one.source] for place, one in enumerate(columns) if isinstance(one, Column)}
    return Query(rows, count, columns, own, limit, gathers=has_children and limit is None)


def _chosen(selection: Selection, compiler: ConditionCompiler) -> Sequence[Bool]:
    """Every condition but the tenant's."""
    conditions = [*selection.filters.conditions]
    if selection.any_of is not None:
        conditions.append(selection.any_of)
    column = selection.dataset.created_at_column
    ends = ((FilterOperator.GTE, selection.created_from), (FilterOperator.LT, selection.created_before))
    conditions += [
        Comparison(column, operator, instant)
        for operator, instant in ends
        if column is not None and instant is not None
    ]
    return [compiler.condition(condition) for condition in conditions]


def child_values(
    child: ChildList, compiler: ConditionCompiler, dialect: Dialect, parents: sa.Select[Any] | None
) -> sa.FromClause:
    """The values of another table that belong to a row: one row a parent that has values (``Dialect.gathered``).

    ``parents`` are the keys of the exported rows; None = all rows that the child table has of the tenant.
    """
    table = table_clause(child.table, [child.foreign_key, child.value, child.order_by, child.tenant])
    parent, value, order = table.c[child.foreign_key], table.c[child.value], table.c[child.order_by]
    directed = order.desc() if child.direction == "desc" else order.asc()
    # The value breaks ties by code point, so that two exports of one snapshot are the same.
    text, by_value = dialect.child_value(value)
    # Databases disagree on where nulls are: here they come last, for they are neither the newest nor the oldest.
    place = sa.func.row_number().over(partition_by=parent, order_by=(order.is_(None), directed, by_value))
    where: list[Bool] = [value.is_not(None)]
    if child.tenant:
        where.append(compiler.of_tenant(table, child.tenant))
    if parents is not None:
        where.append(parent.in_(parents))
    labeled = (parent.label("parent"), text.label("value"), place.label("place"))
    ranked = sa.select(*labeled).where(*where).subquery()
    return dialect.gathered(ranked, sa.true() if child.limit is None else ranked.c.place <= child.limit)
