"""Conditions to SQL: the tree of filters and segments as SQLAlchemy expressions of one database.

Every value is bound; this package formats none into SQL.

A filter compares the value that the file shows, on every database. That value is often an expression over the column:
a text by code point, a ``real`` by its fewest digits. No index serves it. So the bare column is compared too, with
everything that may match: that comparison would find too much, both together find exactly the right rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField, Dataset
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters import tree
from export_pipeline.source.dialects.base import COMPARE, Bool, Dialect, Expression, Template, text

_ORDERING = (*[operator for operator in COMPARE if operator is not FilterOperator.EQ], FilterOperator.BETWEEN)
_OPPOSITE = {FilterOperator.NE: FilterOperator.EQ, FilterOperator.NIN: FilterOperator.IN}
_GROUP = 30


def of_tenant(table: sa.TableClause, tenant: str, dataset: Dataset, organization_id: str, dialect: Dialect) -> Bool:
    """The organization's rows only, of the dataset's own table or of one that belongs to it."""
    return dialect.is_one_of(table.c[tenant], [organization_id], dataset.tenant_type)


def table_clause(name: str, columns: Iterable[str | None]) -> sa.TableClause:
    """A table or view by its name, ``schema.name`` or ``name``, with those of these columns that are declared."""
    schema, _, table = name.rpartition(".")
    declared = sorted(set(filter(None, columns)))
    return sa.table(table, *[sa.column(column) for column in declared], schema=schema or None)


class ConditionCompiler:
    """Compiles conditions on the rows of one tenant, for one database.

    A custom field's value that is not of the field's type counts as null: applications store what people typed, and
    one odd value must not end an export.
    """

    def __init__(self, table: sa.TableClause, dataset: Dataset, organization_id: str, dialect: Dialect) -> None:
        self._table = table
        self._dataset = dataset
        self._organization_id = organization_id
        self._dialect = dialect

    def of_tenant(self, table: sa.TableClause, tenant: str) -> Bool:
        """The tenant's rows only."""
        return of_tenant(table, tenant, self._dataset, self._organization_id, self._dialect)

    def condition(self, condition: tree.Condition) -> Bool:
        """One condition, true, false or null for a row."""
        match condition:
            case tree.AllOf(conditions):
                return _joined(sa.and_, sa.true(), [self.condition(one) for one in conditions])
            case tree.AnyOf(conditions):
                return _joined(sa.or_, sa.false(), [self.condition(one) for one in conditions])
            case tree.Negation(inner):
                return _does_not_hold(self.condition(inner))
            case tree.Comparison():
                return self._compared(condition)
            case _:
                return self._leaf(condition)

    def _leaf(self, condition: tree.Like | tree.ArrayContains | tree.HasDomain | tree.OnList) -> Bool:
        match condition:
            case tree.Like(operand, pattern):
                shown = self._comparable(operand, ordered=True)
                return self._dialect.like(self._read(operand), shown, pattern)
            case tree.ArrayContains(column, value):
                return self._dialect.array_contains(self._table.c[column.source], value)
            case tree.HasDomain():
                return self._has_domain(condition)
            case tree.OnList(list_ids):
                return self._on_list(list_ids)

    def custom_field(self, field: CustomField) -> Expression:
        """A custom field's value as text: numbers with their digits, true and false as words, null if there is none."""
        return self._dialect.custom_text(self._table, self._table.c[field.column.source], field.key)

    def _has_domain(self, condition: tree.HasDomain) -> Bool:
        def is_of_domain(address: Expression) -> Bool:
            return self._dialect.ends_with_domain(address, condition.domain)

        of_address: Bool = sa.func.coalesce(is_of_domain(self._table.c[condition.address.source]), sa.false())
        if condition.addresses is None:
            return of_address
        addresses = self._table.c[condition.addresses.source]
        return sa.or_(of_address, self._dialect.any_element(addresses, is_of_domain))

    def _on_list(self, list_ids: Sequence[str | int]) -> Bool:
        membership = self._dataset.lists
        if membership is None:
            return sa.false()
        members = table_clause(membership.table, [membership.member, membership.list_id, membership.tenant])
        where = [self._dialect.is_one_of(members.c[membership.list_id], list_ids, membership.lists.id_type)]
        if membership.tenant:
            where.append(self.of_tenant(members, membership.tenant))
        key = self._table.c[self._dataset.key_column.source]
        return key.in_(sa.select(members.c[membership.member]).where(*where))

    def _compared(self, comparison: tree.Comparison) -> Bool:
        operand, operator, value = comparison.operand, comparison.operator, comparison.value
        if operator in _OPPOSITE:
            return self._opposite(comparison)
        if operator is FilterOperator.IS_NULL:
            source = self._read(operand)
            return source.is_(None) if value else source.is_not(None)
        if isinstance(value, Column | CustomField | tree.Arithmetic):
            one, other = (self._comparable(each, ordered=True) for each in (operand, value))
            compared: Bool = COMPARE[operator](one, other)
            return compared
        if operator is FilterOperator.BETWEEN and isinstance(value, tuple):
            ends = zip((FilterOperator.GTE, FilterOperator.LTE), value, strict=True)
            return sa.and_(*[self._compared(tree.Comparison(operand, end, one)) for end, one in ends])
        if isinstance(value, tuple):
            return self._one_of(operand, value)
        return self._with_value(operand, operator, value)

    def _read(self, operand: tree.Operand) -> Expression:
        """The operand as the database has it; null where there is none."""
        match operand:
            case Column():
                return self._table.c[operand.source]
            case CustomField(value_type=ColumnType.TEXT):
                return self.custom_field(operand)
            case CustomField(column, key, value_type):
                is_number = value_type is ColumnType.DECIMAL
                typed = self._dialect.custom_number if is_number else self._dialect.custom_instant
                return typed(self._table, self._table.c[column.source], key)
            case tree.Arithmetic():
                return self._arithmetic(operand)

    def _comparable(self, operand: tree.Operand, *, ordered: bool) -> Expression:
        """The operand as the file shows it, in a form that compares as its values do.

        ``ordered``: it is compared by order or with another operand, so that a text needs a collation.
        """
        if isinstance(operand, Column):
            if operand.type is ColumnType.TEXT and ordered:
                self._require_every_filter()
            return self._dialect.shown(self._table.c[operand.source], operand.type)
        source = self._read(operand)
        return self._dialect.exact_text(source) if tree.kind_of(operand) is ColumnType.TEXT else source

    def _require_every_filter(self) -> None:
        if not self._dialect.supports_every_filter:
            raise self._dialect.refusal()

    def _opposite(self, comparison: tree.Comparison) -> Bool:
        operand, value = comparison.operand, comparison.value
        if not self._dialect.supports_every_filter and isinstance(value, str | int | float | Decimal | date):
            # An unknown database may have no boolean values to give to COALESCE.
            return self._read(operand).is_distinct_from(self._dialect.bound(value))
        return _does_not_hold(self._compared(tree.Comparison(operand, _OPPOSITE[comparison.operator], value)))

    def _one_of(self, operand: tree.Operand, values: Sequence[tree.Scalar]) -> Bool:
        if not values:
            return sa.false()
        exact = self._comparable(operand, ordered=False).in_([self._bound(operand, value) for value in values])
        if not isinstance(operand, Column):
            return exact
        return self._dialect.with_index(self._read(operand), operand.type, values, exact)

    def _with_value(self, operand: tree.Operand, operator: FilterOperator, value: tree.Scalar) -> Bool:
        shown = self._comparable(operand, ordered=operator in _ORDERING)
        if operator is FilterOperator.CONTAINS:
            return self._dialect.position(shown, str(value)) > 0
        if operator is FilterOperator.STARTS_WITH:
            return self._dialect.position(shown, str(value)) == 1
        exact: Bool = COMPARE[operator](shown, self._bound(operand, value))
        if not isinstance(operand, Column):
            return exact
        source = self._read(operand)
        if operand.type in (ColumnType.FLOAT, ColumnType.DECIMAL):
            return self._dialect.compared_number(source, operand.type, operator, Decimal(str(value)), exact)
        if operator is not FilterOperator.EQ:
            return exact
        return self._dialect.with_index(source, operand.type, [value], exact)

    def _bound(self, operand: tree.Operand, value: tree.Scalar) -> Expression:
        if isinstance(operand, Column) and operand.type is ColumnType.UUID and self._dialect.supports_every_filter:
            return text(UUID(str(value)).hex)
        return self._dialect.bound(value)

    def _arithmetic(self, arithmetic: tree.Arithmetic) -> Expression:
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

    def _number(self, operand: tree.Operand | int | float | Decimal) -> Expression:
        match operand:
            case tree.Arithmetic():
                return self._arithmetic(operand)
            case Column() | CustomField():
                may_be_infinite = isinstance(operand, Column) and operand.type is not ColumnType.INTEGER
                return self._dialect.column_number(self._read(operand), may_be_infinite=may_be_infinite)
            case _:
                return self._dialect.number(self._dialect.bound(Decimal(str(operand))))


def _joined(operator: Callable[..., Bool], neutral: Bool, conditions: Sequence[Bool]) -> Bool:
    """AND or OR of any number: in groups of groups, because SQLite parses a chain of them as a tree of that depth."""
    while len(conditions) > _GROUP:
        groups = [conditions[at : at + _GROUP] for at in range(0, len(conditions), _GROUP)]
        # SQLAlchemy leaves out parentheses that it takes for needless.
        conditions = [Template("({text})", operator(neutral, *group), sa.Boolean()) for group in groups]
    return operator(neutral, *conditions)


def _does_not_hold(condition: Bool) -> Bool:
    """It is false or null."""
    return sa.not_(sa.func.coalesce(condition, sa.false()))
