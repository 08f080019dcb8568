"""The one SELECT of an export: columns, the tenant's rows, the filters, the key's order.

What belongs here: building the statement for a database. What does not: running it (``readers``).

The tenant predicate is added in ``build_query`` alone, and there is no other way to a statement.
Every value is bound; none is ever formatted into SQL by us.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, ColumnType, Dataset, FilterOperator
from export_pipeline.requests.filters import AllOf, AnyOf, Comparison, Condition, Negation, Scalar

_READ_AS_TEXT = (ColumnType.TEXT, ColumnType.UUID, ColumnType.JSON, ColumnType.DECIMAL)


@dataclass(frozen=True)
class Selection:
    """What to read: which tenant's rows of which dataset, and which columns."""

    dataset: Dataset
    organization_id: str
    columns: tuple[Column, ...]
    filters: AllOf
    created_from: datetime | None = None
    """Inclusive, UTC."""
    created_before: datetime | None = None
    """Exclusive, UTC."""

    @property
    def read_columns(self) -> tuple[Column, ...]:
        """The columns to read: those asked for, and the key, which names a row in messages."""
        key = self.dataset.key_column
        return self.columns if key in self.columns else (*self.columns, key)


@dataclass(frozen=True)
class Query:
    """A selection as statements: the rows in the order of the key, and how many they are."""

    rows: sa.Select[Any]
    count: sa.Select[Any]
    columns: tuple[Column, ...]


def build_query(selection: Selection, backend: str) -> Query:
    """Build the statements for a database (``backend`` as SQLAlchemy names it: ``postgresql``, ``sqlite``, ...)."""
    dataset = selection.dataset
    compiler = _Compiler(backend)
    schema, _, name = dataset.table.rpartition(".")
    table = sa.table(name, sa.column(dataset.tenant), *_table_columns(dataset), schema=schema or None)
    where = [table.c[dataset.tenant] == compiler.bound(selection.organization_id)]
    where += [compiler.condition(table, condition) for condition in selection.filters.conditions]
    where += compiler.date_range(table, selection)
    columns = selection.read_columns
    rows = (
        sa.select(*[_read(table, column) for column in columns])
        .where(*where)
        .order_by(table.c[dataset.key_column.source])
    )
    count = sa.select(sa.func.count()).select_from(table).where(*where)
    return Query(rows, count, columns)


def _table_columns(dataset: Dataset) -> Sequence[sa.ColumnClause[Any]]:
    sources = {column.source for column in dataset.columns} - {dataset.tenant}
    return [sa.column(source) for source in sorted(sources)]


def _read(table: sa.TableClause, column: Column) -> sa.ColumnElement[Any]:
    source: sa.ColumnElement[Any] = table.c[column.source]
    # As text: no digit of a decimal is lost, and every driver hands uuid, json and enums over alike.
    return (sa.cast(source, sa.Text) if column.type in _READ_AS_TEXT else source).label(column.name)


_COMPARE: dict[FilterOperator, Callable[[Any, Any], Any]] = {
    FilterOperator.EQ: python.eq,
    FilterOperator.GT: python.gt,
    FilterOperator.GTE: python.ge,
    FilterOperator.LT: python.lt,
    FilterOperator.LTE: python.le,
}


_ORDERING = (*[operator for operator in _COMPARE if operator is not FilterOperator.EQ], FilterOperator.BETWEEN)


class _Compiler:
    def __init__(self, backend: str) -> None:
        self._sqlite = backend == "sqlite"

    def bound(self, value: Scalar) -> sa.BindParameter[Any]:
        """A bound value without a type: the database gives it the type of the column it is compared to."""
        return sa.bindparam(None, self._database_value(value), type_=sa.types.NullType(), unique=True)

    def _database_value(self, value: Scalar) -> Scalar:
        if self._sqlite and isinstance(value, datetime):
            return value.strftime("%Y-%m-%d %H:%M:%S.%f")
        if self._sqlite and isinstance(value, date):
            return value.isoformat()
        if self._sqlite and isinstance(value, Decimal):
            return float(value)
        return value

    def condition(self, table: sa.TableClause, condition: Condition) -> sa.ColumnElement[bool]:
        match condition:
            case Comparison():
                return self._comparison(table, condition)
            case Negation(inner):
                return sa.not_(sa.func.coalesce(self.condition(table, inner), sa.false()))
            case AnyOf(conditions):
                return sa.or_(sa.false(), *[self.condition(table, one) for one in conditions])
            case AllOf(conditions):
                return sa.and_(sa.true(), *[self.condition(table, one) for one in conditions])

    def _comparison(self, table: sa.TableClause, comparison: Comparison) -> sa.ColumnElement[bool]:
        source: sa.ColumnElement[Any] = table.c[comparison.column.source]
        value = comparison.value
        if comparison.operator is FilterOperator.IS_NULL:
            return source.is_(None) if value else source.is_not(None)
        if comparison.column.type is ColumnType.TEXT and comparison.operator in _ORDERING:
            # By code point, whatever the database's collation: a filter must not depend on a locale.
            source = sa.collate(sa.cast(source, sa.Text), "BINARY" if self._sqlite else "C")
        elif self._sqlite and comparison.column.type is ColumnType.TIMESTAMP:
            source = sa.func.replace(source, "T", " ")
        elif self._sqlite and comparison.column.type is ColumnType.DECIMAL:
            source = sa.cast(source, sa.Float)  # SQLite keeps exact decimals as text
        if isinstance(value, tuple):
            return self._with_values(source, comparison.operator, [self.bound(item) for item in value])
        return self._with_value(source, comparison.operator, value)

    def _with_values(
        self, source: sa.ColumnElement[Any], operator: FilterOperator, values: list[sa.BindParameter[Any]]
    ) -> sa.ColumnElement[bool]:
        if operator is FilterOperator.BETWEEN:
            return sa.and_(source >= values[0], source <= values[1])
        any_of: sa.ColumnElement[bool] = source.in_(values) if values else sa.false()
        if operator is FilterOperator.NIN:
            return sa.or_(source.is_(None), sa.not_(any_of))
        return any_of

    def _with_value(
        self, source: sa.ColumnElement[Any], operator: FilterOperator, value: Scalar
    ) -> sa.ColumnElement[bool]:
        if operator is FilterOperator.CONTAINS:
            return self._place(source, value) > 0
        if operator is FilterOperator.STARTS_WITH:
            return self._place(source, value) == 1
        if operator is FilterOperator.NE:
            return sa.or_(source.is_(None), source != self.bound(value))
        compared: sa.ColumnElement[bool] = _COMPARE[operator](source, self.bound(value))
        return compared

    def _place(self, source: sa.ColumnElement[Any], value: Scalar) -> sa.ColumnElement[int]:
        """The place, from 1, at which a text holds another; 0 = it does not. No pattern, so nothing to escape."""
        if self._sqlite:
            return sa.func.instr(source, self.bound(value), type_=sa.Integer())
        text = sa.bindparam(None, value, type_=sa.Text(), unique=True)
        return sa.func.strpos(sa.cast(source, sa.Text), text, type_=sa.Integer())

    def date_range(self, table: sa.TableClause, selection: Selection) -> list[sa.ColumnElement[bool]]:
        column = selection.dataset.created_at_column
        ends = ((FilterOperator.GTE, selection.created_from), (FilterOperator.LT, selection.created_before))
        return [
            self._comparison(table, Comparison(column, operator, instant))
            for operator, instant in ends
            if column is not None and instant is not None
        ]
