"""The WHERE of a segment query as conditions.

SQL has three truth values: ``x = 1``, ``x <> 1`` and ``NOT (x = 1)`` are all unknown where x is null, and select
nothing. The condition tree has two, and a ``Negation`` is true for null. So a NOT does not become a ``Negation`` of
its operand: it is pushed down to the comparisons (De Morgan holds in three-valued logic), where it turns ``<`` into
``>=``; and a condition that would then be true for null gets ``is_null: false`` beside it.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlglot import exp

from export_pipeline.catalog.model import Column
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters import tree
from export_pipeline.filters.json_filters import MAX_CONDITIONS, parse_scalar
from export_pipeline.filters.sendgrid_operands import (
    Constant,
    EmailDomains,
    ListIds,
    OperandReader,
    invalid_query,
    unsupported,
)

MAX_PATTERN = 1000


class _Sign(NamedTuple):
    """A comparison sign, and the signs that replace it when it is negated or its sides are exchanged."""

    sql: str
    operator: FilterOperator
    is_true: Callable[[Any, Any], Any]
    negated: type[exp.Expr]
    swapped: type[exp.Expr]


_SIGNS: dict[type[exp.Expr], _Sign] = {
    exp.EQ: _Sign("=", FilterOperator.EQ, python.eq, exp.NEQ, exp.EQ),
    exp.NEQ: _Sign("!=", FilterOperator.NE, python.ne, exp.EQ, exp.NEQ),
    exp.GT: _Sign(">", FilterOperator.GT, python.gt, exp.LTE, exp.LT),
    exp.GTE: _Sign(">=", FilterOperator.GTE, python.ge, exp.LT, exp.LTE),
    exp.LT: _Sign("<", FilterOperator.LT, python.lt, exp.GTE, exp.GT),
    exp.LTE: _Sign("<=", FilterOperator.LTE, python.le, exp.GT, exp.GTE),
}


class PredicateParser:
    """Parses the predicates of one query into conditions."""

    def __init__(self, operands: OperandReader) -> None:
        self._operands = operands
        self._conditions = 0
        self._parsers: dict[type[exp.Expr], Callable[[Any, bool], tree.Condition]] = {
            **dict.fromkeys(_SIGNS, self._comparison),
            exp.In: self._in,
            exp.Between: self._between,
            exp.Is: self._is_null,
            exp.Like: self._like,
            exp.Contains: self._contains,
            exp.ArrayContains: self._contains,
        }

    def predicate(self, predicate: exp.Expr, *, negated: bool = False) -> tree.Condition:
        """The condition for the rows of which the predicate is true, or if ``negated`` false.

        Raises ``ExportFailure``: ``invalid_segment``; the message names what is not supported.
        """
        while isinstance(predicate, exp.Paren | exp.Not):
            negated ^= isinstance(predicate, exp.Not)
            predicate = predicate.this
        if isinstance(predicate, exp.And | exp.Or):
            # Flattened, because the parser nests ``a AND b AND c`` to the left as deep as it is long.
            parts = tuple(self.predicate(part, negated=negated) for part in predicate.flatten(unnest=False))
            return tree.AllOf(parts) if isinstance(predicate, exp.And) != negated else tree.AnyOf(parts)
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise invalid_query(f"has more than {MAX_CONDITIONS} conditions")
        if type(predicate) in self._parsers:
            return self._parsers[type(predicate)](predicate, negated)
        if isinstance(predicate, exp.Column | exp.Literal | exp.Boolean | exp.Null):
            raise invalid_query("has a value where a condition is expected; compare it with something")
        raise unsupported(predicate)

    def _comparison(self, predicate: exp.Binary, negated: bool) -> tree.Condition:
        return self._compared(predicate.left, type(predicate), predicate.right, negated)

    def _compared(self, left: exp.Expr, kind: type[exp.Expr], right: exp.Expr, negated: bool) -> tree.Condition:
        sign, one, other = _SIGNS[kind], self._operands.read(left), self._operands.read(right)
        if isinstance(one, Constant):
            if isinstance(other, Constant):
                # Programs that build queries begin them with WHERE 1 = 1.
                if type(one.value) is not type(other.value):
                    raise invalid_query("compares a text with a number; name a column")
                return tree.AllOf(()) if sign.is_true(one.value, other.value) != negated else tree.AnyOf(())
            sign, one, other = _SIGNS[sign.swapped], other, one
        operator = _SIGNS[sign.negated].operator if negated else sign.operator
        self._operands.check_operator(one, sign.operator, sign.sql)
        if isinstance(other, Constant):
            return _not_of_nulls(tree.Comparison(one, operator, self._operands.scalar(one, other)), one)
        self._operands.check_operator(other, sign.operator, sign.sql)
        self._operands.check_alike(one, other)
        return _not_of_nulls(tree.Comparison(one, operator, other), one, other)

    def _between(self, predicate: exp.Between, negated: bool) -> tree.Condition:
        if predicate.args.get("symmetric") is not None:
            raise invalid_query("uses BETWEEN SYMMETRIC; use BETWEEN, with the lower end first")
        ends = (
            self._compared(predicate.this, exp.GTE, predicate.args["low"], negated),
            self._compared(predicate.this, exp.LTE, predicate.args["high"], negated),
        )
        return tree.AnyOf(ends) if negated else tree.AllOf(ends)

    def _in(self, predicate: exp.In, negated: bool) -> tree.Condition:
        if predicate.args.get("query") is not None:
            raise invalid_query("uses a subquery; list the values of IN")
        if not predicate.expressions:
            raise invalid_query("uses IN without values; list them in parentheses")
        operand = self._operands.column(predicate.this, "IN")
        self._operands.check_operator(operand, FilterOperator.IN, "IN")
        values = [self._operands.read(value) for value in predicate.expressions]
        constants = [value for value in values if isinstance(value, Constant)]
        if len(constants) < len(values):
            raise invalid_query("uses IN with columns; list values, or compare columns with =")
        scalars = tuple(self._operands.scalar(operand, constant) for constant in constants)
        operator = FilterOperator.NIN if negated else FilterOperator.IN
        return _not_of_nulls(tree.Comparison(operand, operator, scalars), operand)

    def _is_null(self, predicate: exp.Is, negated: bool) -> tree.Condition:
        if not isinstance(predicate.expression, exp.Null):
            raise invalid_query("uses IS with something other than NULL; use IS NULL or IS NOT NULL")
        array = self._operands.array(predicate.this)
        operand = array if isinstance(array, Column) else self._operands.column(predicate.this, "IS NULL")
        self._operands.check_operator(operand, FilterOperator.IS_NULL, "IS NULL")
        return tree.Comparison(operand, FilterOperator.IS_NULL, not negated)

    def _like(self, predicate: exp.Like, negated: bool) -> tree.Condition:
        operand = self._operands.column(predicate.this, "LIKE")
        if isinstance(operand, tree.Arithmetic):
            raise invalid_query("uses LIKE on a calculation; use it on a text")
        self._operands.check_operator(operand, FilterOperator.CONTAINS, "LIKE")
        pattern = self._text(predicate.expression, "LIKE")
        if len(pattern) > MAX_PATTERN:
            raise invalid_query(f"has a LIKE pattern of more than {MAX_PATTERN} characters")
        condition = tree.Like(operand, pattern)
        return _not_of_nulls(tree.Negation(condition), operand) if negated else condition

    def _contains(self, predicate: exp.Func, negated: bool) -> tree.Condition:
        function = "CONTAINS" if isinstance(predicate, exp.Contains) else "ARRAY_CONTAINS"
        arguments = [predicate.this, predicate.args.get("expression")]
        # Snowflake's ARRAY_CONTAINS has the value first, SendGrid's examples have the array first.
        arrays = [self._operands.array(argument) for argument in arguments]
        if (arrays[0] is None) == (arrays[1] is None) or predicate.args.get("json_scope") is not None:
            known = "list_ids, alternate_emails and email_domains"
            raise invalid_query(f"uses {function} without one array and one value; the arrays are {known}")
        value = self._text(arguments[0] if arrays[0] is None else arguments[1], function)
        condition: tree.Condition
        match arrays[0] or arrays[1]:
            case Column() as column:
                condition = tree.ArrayContains(column, value)
                return _not_of_nulls(tree.Negation(condition), column) if negated else condition
            case ListIds(id_type):
                condition = tree.OnList((self._list_id(value, id_type),))
            case EmailDomains(address, addresses):
                if "@" in value:
                    raise invalid_query("searches EMAIL_DOMAINS for a value with an @; give only what follows it")
                condition = tree.HasDomain(address, addresses, value)
        # These arrays are computed from other rows and columns. They may be empty, but never null.
        return tree.Negation(condition) if negated else condition

    def _list_id(self, value: str, kind: ColumnType) -> str | int:
        try:
            list_id = parse_scalar(kind, int(value) if kind is ColumnType.INTEGER else value)
        except ValueError:
            list_id = None
        if not isinstance(list_id, str | int):
            raise invalid_query("searches LIST_IDS for a value that is not a list id")
        return list_id

    def _text(self, expression: exp.Expr, where: str) -> str:
        if isinstance(expression, exp.Cast) and expression.is_type("variant"):
            expression = expression.this  # Snowflake requires 'x'::VARIANT in ARRAY_CONTAINS
        expression = expression.unnest()
        if not isinstance(expression, exp.Literal) or not expression.is_string:
            if isinstance(expression, exp.Literal | exp.Column | exp.Null):
                raise invalid_query(f"uses {where} with something other than a text in single quotes")
            raise unsupported(expression)
        try:
            return str(parse_scalar(ColumnType.TEXT, expression.this))
        except ValueError:
            raise invalid_query(f"uses {where} with a text that no column can hold") from None


def _not_of_nulls(condition: tree.Comparison | tree.Negation, *operands: tree.Operand) -> tree.Condition:
    """Make a condition that is true for null false for it, as SQL has it."""
    if isinstance(condition, tree.Comparison) and condition.operator not in (FilterOperator.NE, FilterOperator.NIN):
        return condition
    return tree.AllOf((condition, *[tree.Comparison(operand, FilterOperator.IS_NULL, False) for operand in operands]))
