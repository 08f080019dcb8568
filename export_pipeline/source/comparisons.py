"""Comparisons to SQL: a filter compares the value that the file shows, on every database.

That value is often an expression over the column: a text by code point, a ``real`` by its fewest digits. No index
serves it. So the bare column is compared too, with everything that may match: that comparison would find too much,
both together find exactly the right rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters.tree import Arithmetic, Comparison, Operand, Scalar, kind_of
from export_pipeline.source.dialects.base import COMPARE, Bool, Dialect, Expression, text

_ORDERING = (*[operator for operator in COMPARE if operator is not FilterOperator.EQ], FilterOperator.BETWEEN)
_OPPOSITE = {FilterOperator.NE: FilterOperator.EQ, FilterOperator.NIN: FilterOperator.IN}


class Comparisons:
    """Compares operands of one table with values and with each other, for one database.

    A custom field's value that is not of the field's type counts as null: applications store what people typed, and
    one odd value must not end an export.
    """

    def __init__(self, table: sa.TableClause, dialect: Dialect) -> None:
        self._table = table
        self._dialect = dialect

    def compared(self, comparison: Comparison) -> Bool:
        """True, false or null for a row."""
        operand, operator, value = comparison.operand, comparison.operator, comparison.value
        if operator in _OPPOSITE:
            return self._opposite(comparison)
        if operator is FilterOperator.IS_NULL:
            source = self.read(operand)
            return source.is_(None) if value else source.is_not(None)
        if isinstance(value, Column | CustomField | Arithmetic):
            one, other = (self.comparable(each, ordered=True) for each in (operand, value))
            compared: Bool = COMPARE[operator](one, other)
            return compared
        if operator is FilterOperator.BETWEEN and isinstance(value, tuple):
            ends = zip((FilterOperator.GTE, FilterOperator.LTE), value, strict=True)
            return sa.and_(*[self.compared(Comparison(operand, end, one)) for end, one in ends])
        if isinstance(value, tuple):
            return self._one_of(operand, value)
        return self._with_value(operand, operator, value)

    def read(self, operand: Operand) -> Expression:
        """The operand as the database has it; null where there is none."""
        match operand:
            case Column():
                return self._table.c[operand.source]
            case CustomField(value_type=ColumnType.TEXT):
                return self.custom_text(operand)
            case CustomField(column, key, value_type):
                is_number = value_type is ColumnType.DECIMAL
                typed = self._dialect.custom_number if is_number else self._dialect.custom_instant
                return typed(self._table, self._table.c[column.source], key)
            case Arithmetic():
                return self._arithmetic(operand)

    def custom_text(self, field: CustomField) -> Expression:
        """A custom field's value as text: numbers with their digits, true and false as words, null if there is none."""
        return self._dialect.custom_text(self._table, self._table.c[field.column.source], field.key)

    def comparable(self, operand: Operand, *, ordered: bool) -> Expression:
        """The operand as the file shows it, in a form that compares as its values do.

        Args:
            operand: what to read.
            ordered: it is compared by order or with another operand, so that a text needs a collation.
        """
        if isinstance(operand, Column):
            if operand.type is ColumnType.TEXT and ordered:
                self._require_every_filter()
            return self._dialect.shown(self._table.c[operand.source], operand.type)
        source = self.read(operand)
        return self._dialect.exact_text(source) if kind_of(operand) is ColumnType.TEXT else source

    def _require_every_filter(self) -> None:
        if not self._dialect.supports_every_filter:
            raise self._dialect.refusal()

    def _opposite(self, comparison: Comparison) -> Bool:
        operand, value = comparison.operand, comparison.value
        if not self._dialect.supports_every_filter and isinstance(value, str | int | float | Decimal | date):
            # An unknown database may have no boolean values to give to COALESCE.
            return self.read(operand).is_distinct_from(self._dialect.bound(value))
        return does_not_hold(self.compared(Comparison(operand, _OPPOSITE[comparison.operator], value)))

    def _one_of(self, operand: Operand, values: Sequence[Scalar]) -> Bool:
        if not values:
            return sa.false()
        exact = self.comparable(operand, ordered=False).in_([self._bound(operand, value) for value in values])
        if not isinstance(operand, Column):
            return exact
        return self._dialect.with_index(self.read(operand), operand.type, values, exact)

    def _with_value(self, operand: Operand, operator: FilterOperator, value: Scalar) -> Bool:
        shown = self.comparable(operand, ordered=operator in _ORDERING)
        if operator is FilterOperator.CONTAINS:
            return self._dialect.position(shown, str(value)) > 0
        if operator is FilterOperator.STARTS_WITH:
            return self._dialect.position(shown, str(value)) == 1
        exact: Bool = COMPARE[operator](shown, self._bound(operand, value))
        if not isinstance(operand, Column):
            return exact
        source = self.read(operand)
        if operand.type in (ColumnType.FLOAT, ColumnType.DECIMAL):
            return self._dialect.compared_number(source, operand.type, operator, Decimal(str(value)), exact)
        if operator is not FilterOperator.EQ:
            return exact
        return self._dialect.with_index(source, operand.type, [value], exact)

    def _bound(self, operand: Operand, value: Scalar) -> Expression:
        if isinstance(operand, Column) and operand.type is ColumnType.UUID and self._dialect.supports_every_filter:
            return text(UUID(str(value)).hex)
        return self._dialect.bound(value)

    def _arithmetic(self, arithmetic: Arithmetic) -> Expression:
        """In decimals on PostgreSQL, in doubles elsewhere: the last digits may differ.

        ``/`` keeps the fraction of integers too; ``%`` has the sign of the dividend.
        """
        self._require_every_filter()
        left, right = self._number(arithmetic.left), self._number(arithmetic.right)
        divisor = sa.func.nullif(right, self._number(0), type_=self._dialect.numeric)
        match arithmetic.operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / divisor
            case "%":
                return self._dialect.remainder(left, right, divisor)

    def _number(self, operand: Operand | int | float | Decimal) -> Expression:
        match operand:
            case Arithmetic():
                return self._arithmetic(operand)
            case Column() | CustomField():
                may_be_infinite = isinstance(operand, Column) and operand.type is not ColumnType.INTEGER
                return self._dialect.column_number(self.read(operand), may_be_infinite=may_be_infinite)
            case _:
                return self._dialect.number(self._dialect.bound(Decimal(str(operand))))


def does_not_hold(condition: Bool) -> Bool:
    """It is false or null."""
    return sa.not_(sa.func.coalesce(condition, sa.false()))
