"""Child lists: the values of another table that belong to a row, gathered in the export's own statement.

What belongs here: the subquery that gives each parent its values as one JSON array of texts.
What does not: joining it to the rows (``query``).

One pass over the child table whatever the number of rows, in the export's own snapshot: a query a row would
be slow, and one a batch would need an index that the application may not have.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by

from export_pipeline.catalog.model import ChildList
from export_pipeline.engine import mariadb, sqlite_text
from export_pipeline.engine.conditions import ConditionCompiler, table_clause
from export_pipeline.failures import ExportFailure, FailureCode


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
        return sqlite_text.looked_up(first)
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
    text = sqlite_text.AsText(value) if backend == "sqlite" else sa.cast(value, sa.Text)
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
