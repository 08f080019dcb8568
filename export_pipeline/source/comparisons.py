"""Comparisons to SQL: what a filter compares is what the file shows, on every database.

The value that a file shows is often an expression over the column: a text by code point, a ``real`` by its fewest
digits. An index does not serve it. So the column itself is compared too, with all that may be meant: that alone would
find too much, and both together find exactly what is meant.
"""

from __future__ import annotations

import math
import operator as python
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters.tree import Arithmetic, Comparison, Operand, Scalar
from export_pipeline.source.dialects import base, mariadb, sqlite
from export_pipeline.source.operands import OWN_SQL, Operands

_Bool = sa.ColumnElement[bool]
_COMPARE: dict[FilterOperator, Callable[[Any, Any], Any]] = {
    FilterOperator.EQ: python.eq,
    FilterOperator.GT: python.gt,
    FilterOperator.GTE: python.ge,
    FilterOperator.LT: python.lt,
    FilterOperator.LTE: python.le,
}
_UPWARDS = (FilterOperator.GT, FilterOperator.GTE)
_ORDERING = (*[operator for operator in _COMPARE if operator is not FilterOperator.EQ], FilterOperator.BETWEEN)
_OPPOSITE = {FilterOperator.NE: FilterOperator.EQ, FilterOperator.NIN: FilterOperator.IN}
_REVERSED = {
    FilterOperator.GT: FilterOperator.LT,
    FilterOperator.GTE: FilterOperator.LTE,
    FilterOperator.LT: FilterOperator.GT,
    FilterOperator.LTE: FilterOperator.GTE,
}
_MARGIN, _LEAST_MARGIN = Decimal(2) ** -22, Decimal("1e-44")
"""More than a ``real`` differs from the decimal that it is shown as: of its size, and at least."""
_LARGEST = Decimal(sys.float_info.max)
_MOST_SPELLED = 1_000
"""UUIDs of one comparison that are bound in every spelling; SQLite binds 32,766 values to a statement."""


class Comparisons:
    """Compares operands of one table with values and with each other, for one database."""

    def __init__(self, operands: Operands, backend: str) -> None:
        self._operands = operands
        self._backend = backend
        self._sqlite = backend == "sqlite"
        self._mariadb = backend in mariadb.BACKENDS
        self._postgresql = backend == "postgresql"
        self._own = backend in OWN_SQL

    def compared(self, comparison: Comparison) -> _Bool:
        """True, false or null for a row."""
        operand, operator, value = comparison.operand, comparison.operator, comparison.value
        if operator in _OPPOSITE:
            return self._opposite(comparison)
        if operator is FilterOperator.IS_NULL:
            source = self._operands.read(operand)
            return source.is_(None) if value else source.is_not(None)
        if isinstance(value, Column | CustomField | Arithmetic):
            one, other = (self._operands.comparable(each, ordered=True) for each in (operand, value))
            compared: _Bool = _COMPARE[operator](one, other)
            return compared
        if operator is FilterOperator.BETWEEN and isinstance(value, tuple):
            ends = zip((FilterOperator.GTE, FilterOperator.LTE), value, strict=True)
            return sa.and_(*[self.compared(Comparison(operand, end, one)) for end, one in ends])
        if isinstance(value, tuple):
            return self._one_of(operand, value)
        return self._with_value(operand, operator, value)

    def _opposite(self, comparison: Comparison) -> _Bool:
        operand, value = comparison.operand, comparison.value
        if not self._own and isinstance(value, str | int | float | Decimal | date):
            # It may know no booleans that are values, and COALESCE of one.
            return self._operands.read(operand).is_distinct_from(self._operands.bound(value))
        return does_not_hold(self.compared(Comparison(operand, _OPPOSITE[comparison.operator], value)))

    def _one_of(self, operand: Operand, values: Sequence[Scalar]) -> _Bool:
        if not values:
            return sa.false()
        source = self._operands.comparable(operand, ordered=False)
        exact = source.in_([self._bound(operand, value) for value in values])
        return self._narrowed(operand, values, exact) if isinstance(operand, Column) else exact

    def _with_value(self, operand: Operand, operator: FilterOperator, value: Scalar) -> _Bool:
        source = self._operands.comparable(operand, ordered=operator in _ORDERING)
        if operator is FilterOperator.CONTAINS:
            return self._place(source, str(value)) > 0
        if operator is FilterOperator.STARTS_WITH:
            return self._place(source, str(value)) == 1
        exact: _Bool = _COMPARE[operator](source, self._bound(operand, value))
        if not isinstance(operand, Column):
            return exact
        if operand.type in (ColumnType.FLOAT, ColumnType.DECIMAL):
            return self._number(operand, operator, Decimal(str(value)), exact)
        return self._narrowed(operand, [value], exact) if operator is FilterOperator.EQ else exact

    def _bound(self, operand: Operand, value: Scalar) -> sa.ColumnElement[Any]:
        if isinstance(operand, Column) and operand.type is ColumnType.UUID and self._own:
            return base.text(UUID(str(value)).hex)
        return self._operands.bound(value)

    def _narrowed(self, column: Column, values: Sequence[Scalar], exact: _Bool) -> _Bool:
        """With the column's own equality beside it, for its index."""
        source, beside = self._operands.read(column), base.beside(exact, self._backend)
        match column.type:
            case ColumnType.TEXT if self._postgresql:
                # As text: an enum or an interval would refuse a value that is none of its own.
                return sa.and_(sa.cast(source, sa.Text).in_([base.text(str(value)) for value in values]), beside)
            case ColumnType.TEXT if self._sqlite:
                return sa.and_(source.in_(sqlite.listed(_texts_and_numbers(values))), exact)
            case ColumnType.UUID if self._own and len(values) <= _MOST_SPELLED:
                return sa.and_(source.in_([base.untyped(one) for one in _spellings(values)]), beside)
            case ColumnType.DECIMAL if self._sqlite:
                keys = sqlite.listed([sqlite.decimal_key(Decimal(str(value))) for value in values])
                return sa.and_(exact, sa.func.coalesce(sqlite.DecimalKey(source).in_(keys), sa.true()))
            case ColumnType.DECIMAL if self._mariadb:
                bound = [self._operands.bound(value) for value in values]
                return mariadb.compared_decimal(source, lambda shown: shown.in_(bound))
            case _:
                return exact

    def _number(self, column: Column, operator: FilterOperator, value: Decimal, exact: _Bool) -> _Bool:
        source = self._operands.read(column)
        if self._sqlite:
            return self._digits(column, operator, value) if column.type is ColumnType.DECIMAL else exact
        if self._mariadb and column.type is ColumnType.DECIMAL:
            bound = self._operands.bound(value)
            exact = mariadb.compared_decimal(source, lambda shown: _COMPARE[operator](shown, bound))
        margin = max(abs(value) * _MARGIN, _LEAST_MARGIN)
        if not self._own or abs(value) + margin > _LARGEST:
            return exact
        # Only of the numbers near the value does it matter how they are shown.
        low, high = (self._end(end) for end in (value - margin, value + margin))
        if operator is FilterOperator.EQ:
            return sa.and_(source >= low, source <= high, base.beside(exact, self._backend))
        if operator in _UPWARDS:
            return sa.and_(source >= low, sa.or_(source > high, exact))
        return sa.and_(source <= high, sa.or_(source < low, exact))

    def _end(self, value: Decimal) -> sa.ColumnElement[Any]:
        # MariaDB has decimals of 30 places, too few for the smallest doubles.
        return self._operands.bound(float(value) if self._mariadb else value)

    def _digits(self, column: Column, operator: FilterOperator, value: Decimal) -> _Bool:
        """On SQLite: as doubles, and by the digits where those are equal."""
        size, bound = self._operands.comparable(column, ordered=False), self._operands.bound(value)
        digits, given = sqlite.DecimalKey(self._operands.read(column)), sqlite.decimal_key(value)
        by_digits = _COMPARE[_REVERSED.get(operator, operator) if value < 0 else operator]
        # No digits: they are those of the double.
        same = sa.func.coalesce(by_digits(digits, base.text(given)), _holds_for_equals(operator))
        equal = sa.and_(size == bound, same)
        if operator is FilterOperator.EQ:
            return equal
        return sa.or_(size > bound if operator in _UPWARDS else size < bound, equal)

    def _place(self, source: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[int]:
        """The place, from 1, at which a text holds another; 0 = it does not. No pattern, so nothing to escape."""
        self._operands.require_own_sql()
        if self._mariadb:
            return mariadb.place(source, value)
        find = sa.func.instr if self._sqlite else sa.func.strpos
        return find(source, base.text(value), type_=sa.Integer())


def does_not_hold(condition: _Bool) -> _Bool:
    """It is false or null."""
    return sa.not_(sa.func.coalesce(condition, sa.false()))


def _holds_for_equals(operator: FilterOperator) -> sa.ColumnElement[bool]:
    return sa.false() if operator in (FilterOperator.GT, FilterOperator.LT) else sa.true()


def _spellings(values: Sequence[Scalar]) -> Iterator[str]:
    for value in values:
        identity = UUID(str(value))
        yield from (str(identity), str(identity).upper(), identity.hex, identity.hex.upper())


def _texts_and_numbers(values: Sequence[Scalar]) -> Iterator[str | int | float]:
    """Texts, and the numbers that they are: a column of SQLite without a type may hold either."""
    for value in values:
        yield (text := str(value))
        with suppress(ValueError):
            number = float(text)
            if math.isfinite(number):
                yield int(text) if text.lstrip("-").isdecimal() else number
