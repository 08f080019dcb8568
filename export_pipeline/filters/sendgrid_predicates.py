"""The WHERE of a segment query as conditions.

SQL has a third truth beside true and false: ``x = 1``, ``x <> 1`` and ``NOT (x = 1)`` are all unknown where x is null,
and select nothing. Our tree has two, and its negations hold for null. So a NOT is never a ``Negation`` of what it
stands before: it is pushed down to the comparisons (De Morgan holds in three-valued logic), where it turns ``<`` into
``>=``; and what would then hold for a null is asked to be ``is_null: false`` as well.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

from sqlglot import exp

from export_pipeline.catalog.model import Column, CustomField
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters.json_filters import MAX_CONDITIONS, parse_scalar
from export_pipeline.filters.sendgrid_operands import ArrayName, Constant, Names, OperandReader, inner, refused, uses
from export_pipeline.filters.tree import (
    AllOf,
    AnyOf,
    Arithmetic,
    ArrayContains,
    Comparison,
    Condition,
    HasDomain,
    Like,
    Negation,
    OnList,
    Operand,
)

MAX_PATTERN = 1000
_OPERATORS: dict[type[exp.Expr], FilterOperator] = {
    exp.EQ: FilterOperator.EQ,
    exp.NEQ: FilterOperator.NE,
    exp.GT: FilterOperator.GT,
    exp.GTE: FilterOperator.GTE,
    exp.LT: FilterOperator.LT,
    exp.LTE: FilterOperator.LTE,
}
_OPPOSITE = {
    FilterOperator.EQ: FilterOperator.NE,
    FilterOperator.NE: FilterOperator.EQ,
    FilterOperator.GT: FilterOperator.LTE,
    FilterOperator.GTE: FilterOperator.LT,
    FilterOperator.LT: FilterOperator.GTE,
    FilterOperator.LTE: FilterOperator.GT,
}
_SWAPPED = {
    FilterOperator.GT: FilterOperator.LT,
    FilterOperator.GTE: FilterOperator.LTE,
    FilterOperator.LT: FilterOperator.GT,
    FilterOperator.LTE: FilterOperator.GTE,
}
_PYTHON: dict[FilterOperator, Callable[[Any, Any], Any]] = {
    FilterOperator.EQ: python.eq,
    FilterOperator.NE: python.ne,
    FilterOperator.GT: python.gt,
    FilterOperator.GTE: python.ge,
    FilterOperator.LT: python.lt,
    FilterOperator.LTE: python.le,
}


class Predicates:
    """Turns predicates over the columns of one organization into conditions."""

    def __init__(self, names: Names, prefixes: frozenset[str], zone: ZoneInfo) -> None:
        self._names = names
        self._operands = OperandReader(names, prefixes, zone)
        self._zone = zone
        self._conditions = 0
        self._leaves: dict[type[exp.Expr], Callable[[Any, bool], Condition]] = {
            **dict.fromkeys(_OPERATORS, self._comparison),
            exp.In: self._in,
            exp.Between: self._between,
            exp.Is: self._is_null,
            exp.Like: self._like,
            exp.Contains: self._contains,
            exp.ArrayContains: self._contains,
        }

    def predicate(self, predicate: exp.Expr, *, negated: bool = False) -> Condition:
        """The condition that holds where the predicate is true, or if ``negated`` where it is false."""
        while isinstance(predicate, exp.Paren | exp.Not):
            negated ^= isinstance(predicate, exp.Not)
            predicate = predicate.this
        if isinstance(predicate, exp.And | exp.Or):
            parts = tuple(self.predicate(part, negated=negated) for part in _chain(predicate))
            return AllOf(parts) if isinstance(predicate, exp.And) != negated else AnyOf(parts)
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise refused(f"holds more than {MAX_CONDITIONS} conditions")
        leaf = self._leaves.get(type(predicate))
        if leaf is None:
            if isinstance(predicate, exp.Column | exp.Literal | exp.Boolean | exp.Null):
                raise refused("has a value where a condition is expected; compare it with something")
            raise uses(predicate)
        return leaf(predicate, negated)

    def _comparison(self, predicate: exp.Binary, negated: bool) -> Condition:
        operator = _OPERATORS[type(predicate)]
        return self._compared(predicate.left, operator, predicate.right, negated)

    def _compared(self, left: exp.Expr, operator: FilterOperator, right: exp.Expr, negated: bool) -> Condition:
        one, other = self._operands.read(left), self._operands.read(right)
        if isinstance(one, Constant):
            if isinstance(other, Constant):
                # Programs that build queries begin them with WHERE 1 = 1.
                return AllOf(()) if _holds(one, operator, other) != negated else AnyOf(())
            one, operator, other = other, _SWAPPED.get(operator, operator), one
        self._operands.check_operator(one, operator)
        if isinstance(other, Constant):
            value = self._operands.scalar(one, other)
            return _known(Comparison(one, _OPPOSITE[operator] if negated else operator, value), one)
        self._operands.check_operator(other, operator)
        self._operands.check_alike(one, other)
        return _known(Comparison(one, _OPPOSITE[operator] if negated else operator, other), one, other)

    def _between(self, predicate: exp.Between, negated: bool) -> Condition:
        if predicate.args.get("symmetric") is not None:
            raise refused("uses BETWEEN SYMMETRIC; write the lower end first")
        ends = (
            self._compared(predicate.this, FilterOperator.GTE, predicate.args["low"], negated),
            self._compared(predicate.this, FilterOperator.LTE, predicate.args["high"], negated),
        )
        return AnyOf(ends) if negated else AllOf(ends)

    def _in(self, predicate: exp.In, negated: bool) -> Condition:
        if predicate.args.get("query") is not None:
            raise refused("uses a subquery; list the values of IN")
        if not predicate.expressions:
            raise refused("uses IN without values; list them in parentheses")
        operand = self._operands.column(predicate.this, "IN")
        self._operands.check_operator(operand, FilterOperator.IN)
        values = [self._operands.read(one) for one in predicate.expressions]
        constants = [value for value in values if isinstance(value, Constant)]
        if len(constants) < len(values):
            raise refused("uses IN with columns; list values, or compare columns with =")
        scalars = tuple(self._operands.scalar(operand, constant) for constant in constants)
        return _known(Comparison(operand, FilterOperator.NIN if negated else FilterOperator.IN, scalars), operand)

    def _is_null(self, predicate: exp.Is, negated: bool) -> Condition:
        if not isinstance(predicate.expression, exp.Null):
            raise refused("uses IS with something other than NULL; only IS NULL and IS NOT NULL can be used")
        array = self._operands.array(predicate.this)
        operand = array if isinstance(array, Column) else self._operands.column(predicate.this, "IS NULL")
        self._operands.check_operator(operand, FilterOperator.IS_NULL)
        return Comparison(operand, FilterOperator.IS_NULL, not negated)

    def _like(self, predicate: exp.Like, negated: bool) -> Condition:
        operand = self._operands.column(predicate.this, "LIKE")
        if isinstance(operand, Arithmetic):
            raise refused("uses LIKE on a calculation; it is for texts")
        self._operands.check_operator(operand, FilterOperator.CONTAINS, shown_as="LIKE")
        pattern = self._text(predicate.expression, "LIKE")
        if len(pattern) > MAX_PATTERN:
            raise refused(f"has a LIKE pattern of more than {MAX_PATTERN} characters")
        return _held(Like(operand, pattern), operand, negated=negated)

    def _contains(self, predicate: exp.Func, negated: bool) -> Condition:
        function = "CONTAINS" if isinstance(predicate, exp.Contains) else "ARRAY_CONTAINS"
        given = [predicate.this, predicate.args.get("expression")]
        # Snowflake's ARRAY_CONTAINS has the value first, SendGrid's examples have the array first.
        arrays = [self._operands.array(one) for one in given]
        if (arrays[0] is None) == (arrays[1] is None) or predicate.args.get("json_scope") is not None:
            known = "list_ids, alternate_emails or email_domains"
            raise refused(f"uses {function} with something other than an array and a value; the arrays are {known}")
        array = arrays[0] or arrays[1]
        value = self._text(given[0] if arrays[0] is None else given[1], function)
        if isinstance(array, Column):
            return _held(ArrayContains(array, value), array, negated=negated)
        # An array that follows from other rows and columns is never null, if need be it is empty.
        condition = self._of_computed(array, value)
        return Negation(condition) if negated else condition

    def _of_computed(self, array: ArrayName | None, value: str) -> Condition:
        lists = self._names.dataset.lists
        if array == "list_ids" and lists is not None:
            return OnList((self._list_id(value, lists.lists.id_type),))
        if "@" in value:
            raise refused("asks EMAIL_DOMAINS for something with an @; a domain is what comes after it")
        return HasDomain(self._names.email, self._names.addresses, value)

    def _list_id(self, value: str, kind: ColumnType) -> str | int:
        try:
            given = int(value) if kind is ColumnType.INTEGER else value
            list_id = parse_scalar(kind, given, self._zone)
        except ValueError:
            list_id = None
        if not isinstance(list_id, str | int):
            raise refused("asks LIST_IDS for something that can be no list's id")
        return list_id

    def _text(self, expression: exp.Expr, where: str) -> str:
        if isinstance(expression, exp.Cast) and expression.is_type("variant"):
            expression = expression.this  # Snowflake wants 'x'::VARIANT in ARRAY_CONTAINS
        expression = inner(expression)
        if not isinstance(expression, exp.Literal) or not expression.is_string:
            if isinstance(expression, exp.Literal | exp.Column | exp.Null):
                raise refused(f"uses {where} with something other than a text in single quotes")
            raise uses(expression)
        try:
            return str(parse_scalar(ColumnType.TEXT, expression.this, self._zone))
        except ValueError:
            raise refused(f"uses {where} with a text that no column can hold") from None


def _chain(predicate: exp.And | exp.Or) -> Iterator[exp.Expr]:
    """The members of ``a AND b AND c``, which the parser nests to the left as deep as it is long."""
    waiting: list[exp.Expr] = [predicate]
    while waiting:
        one = waiting.pop()
        if type(one) is type(predicate):
            waiting += [one.args["expression"], one.this]
        else:
            yield one


def _holds(one: Constant, operator: FilterOperator, other: Constant) -> bool:
    if type(one.value) is not type(other.value):
        raise refused("compares a text with a number; name a column")
    return bool(_PYTHON[operator](one.value, other.value))


def _known(comparison: Comparison, *operands: Operand) -> Condition:
    """The comparison, held to SQL's rule that none with null is true."""
    if comparison.operator not in (FilterOperator.NE, FilterOperator.NIN):
        return comparison
    return AllOf((comparison, *[Comparison(operand, FilterOperator.IS_NULL, False) for operand in operands]))


def _held(condition: Like | ArrayContains, operand: Column | CustomField, *, negated: bool) -> Condition:
    if not negated:
        return condition
    return AllOf((Negation(condition), Comparison(operand, FilterOperator.IS_NULL, False)))
