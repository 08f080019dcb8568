"""The operands of a segment query: columns, custom fields, constants, and arithmetic of numbers."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo

from sqlglot import exp

from export_pipeline.catalog.model import Column, CustomField, Dataset
from export_pipeline.catalog.types import OPERATORS_BY_TYPE, ColumnType, FilterOperator, IdentityType
from export_pipeline.failures import ExportFailure, FailureCode, abbreviate
from export_pipeline.filters.json_filters import parse_scalar
from export_pipeline.filters.tree import Arithmetic, Operand, Scalar, kind_of

_ALTERNATE_EMAILS = "alternate_emails"
_COLUMNS = (
    "contact_id",
    "email",
    "phone_number_id",
    "external_id",
    "anonymous_id",
    "first_name",
    "last_name",
    _ALTERNATE_EMAILS,
    "address_line_1",
    "address_line_2",
    "city",
    "state_province_region",
    "postal_code",
    "country",
    "created_at",
    "updated_at",
    "phone_number",
    "whatsapp",
    "line",
    "facebook",
    "unique_name",
)
"""SendGrid's documented names, in the order of error messages."""
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MAX_NAMES_IN_MESSAGE = 60
MAX_ARITHMETIC = 50
"""Operations in one query: PostgreSQL ends a statement whose numbers grow past 131,072 digits."""
_MAX_DIGITS = 300
_NUMBERS = (ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.DECIMAL)
_DIGITS = decimal.Context(prec=60, traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow])
_Symbol = Literal["+", "-", "*", "/", "%"]
_ARITHMETIC: dict[type[exp.Expr], tuple[_Symbol, Callable[[Decimal, Decimal], Decimal]]] = {
    exp.Add: ("+", _DIGITS.add),
    exp.Sub: ("-", _DIGITS.subtract),
    exp.Mul: ("*", _DIGITS.multiply),
    exp.Div: ("/", _DIGITS.divide),
    exp.Mod: ("%", _DIGITS.remainder),
}
_SQL_NAMES: dict[type[exp.Expr], str] = {
    exp.Select: "a subquery",
    exp.Subquery: "a subquery",
    exp.Exists: "EXISTS",
    exp.Case: "CASE",
    exp.Cast: "a cast",
    exp.RegexpLike: "REGEXP",
    exp.DPipe: "||",
    exp.Concat: "concatenation",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
    exp.JSONExtract: ":",
    exp.Bracket: "[ ]",
    exp.Placeholder: "a placeholder",
    exp.Parameter: "a placeholder",
    exp.Window: "OVER",
    exp.Star: "*",
    exp.Boolean: "TRUE or FALSE",
    exp.RawString: "$$ quotes",
    exp.Tuple: "a row of values",
}
"""What error messages call expressions that sqlglot names differently."""


def invalid_query(problem: str) -> ExportFailure:
    """The failure of a query; ``problem`` continues "its query" and never holds a value of the query."""
    return ExportFailure(FailureCode.INVALID_SEGMENT, f"its query {problem}.", field="segment_ids")


@dataclass(frozen=True)
class Constant:
    """A quoted text, or a number."""

    value: str | Decimal


@dataclass(frozen=True)
class ListIds:
    """The array of the row's lists, which another table holds."""

    id_type: IdentityType


@dataclass(frozen=True)
class EmailDomains:
    """The array of the domains of the row's addresses; no column holds it."""

    address: Column
    addresses: Column | None


Array = Column | ListIds | EmailDomains


class OperandReader:
    """Reads the operands of one query; the names of columns are case-insensitive."""

    def __init__(
        self, dataset: Dataset, custom_fields: Sequence[CustomField], prefixes: frozenset[str], zone: ZoneInfo
    ) -> None:
        columns = {
            name: column
            for name in _COLUMNS
            if (column := dataset.column(name)) is not None
            and column.operators
            and (column.type is ColumnType.JSON) == (name == _ALTERNATE_EMAILS)
        }
        self._names: dict[str, Array | CustomField] = {**columns}
        if dataset.lists is not None:
            self._names["list_ids"] = ListIds(dataset.lists.lists.id_type)
        if "email" in columns:
            self._names["email_domains"] = EmailDomains(columns["email"], columns.get(_ALTERNATE_EMAILS))
        for field in custom_fields:
            self._names.setdefault(field.key.lower(), field)
        self._prefixes = {"", *prefixes}
        self._zone = zone
        self._operations = 0

    def read(self, expression: exp.Expr) -> Operand | Constant:
        """Read one side of a comparison. Raises ``invalid_segment``; the message says what stands there instead."""
        expression = expression.unnest()
        match expression:
            case exp.Literal():
                return Constant(expression.this if expression.is_string else _number(expression.this))
            case exp.Column():
                found = self._find(expression)
                if isinstance(found, ListIds | EmailDomains) or kind_of(found) is ColumnType.JSON:
                    example = f"ARRAY_CONTAINS({expression.name}, 'value')"
                    raise invalid_query(f"compares {expression.name.upper()}, an array; use {example}")
                return found
            case exp.Neg():
                return self._calculated(exp.Sub, Constant(Decimal(0)), self._side(expression.this))
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div() | exp.Mod():
                return self._calculated(type(expression), self._side(expression.left), self._side(expression.right))
            case exp.Null():
                raise invalid_query("compares something with NULL, which is never true; use IS NULL or IS NOT NULL")
            case _:
                raise unsupported(expression)

    def column(self, expression: exp.Expr, where: str) -> Operand:
        """As ``read``, but refuse a constant."""
        operand = self.read(expression)
        if isinstance(operand, Constant):
            raise invalid_query(f"uses {where} on a constant; name a column")
        return operand

    def array(self, expression: exp.Expr) -> Array | None:
        """The array that an expression names, None if it does not name one."""
        expression = expression.unnest()
        found = self._find(expression) if isinstance(expression, exp.Column) else None
        if isinstance(found, CustomField) or (isinstance(found, Column) and found.type is not ColumnType.JSON):
            return None
        return found

    def scalar(self, operand: Operand, constant: Constant) -> Scalar:
        """Convert a constant to the type of the operand that it is compared with."""
        kind, value = kind_of(operand), constant.value
        converted: object = value
        if isinstance(value, Decimal):
            if kind not in _NUMBERS:
                problem = f"compares {title_of(operand)}, a {kind}, with a number; put the value in single quotes"
                raise invalid_query(problem)
            if kind is ColumnType.INTEGER and value != value.to_integral_value():
                kind = ColumnType.DECIMAL  # a whole number may be compared with a fraction, which keeps its digits
            converted = {ColumnType.INTEGER: int, ColumnType.FLOAT: float}.get(kind, str)(value)
        try:
            return parse_scalar(kind, converted, self._zone)
        except ValueError as error:
            problem = str(error)
        raise invalid_query(f"compares {title_of(operand)} with a value of the wrong type; it {problem}")

    def check_operator(self, operand: Operand, operator: FilterOperator, sign: str) -> None:
        """Refuse an operator that the operand's type, or the catalog for this column, does not allow."""
        allowed = operand.operators if isinstance(operand, Column) else OPERATORS_BY_TYPE[kind_of(operand)]
        if operator not in allowed:
            raise invalid_query(f"uses {sign} on {title_of(operand)}, which does not allow it")

    def check_alike(self, left: Operand, right: Operand) -> None:
        """Refuse to compare columns of different types."""
        kinds = kind_of(left), kind_of(right)
        if kinds[0] is not kinds[1] and not all(kind in _NUMBERS for kind in kinds):
            raise invalid_query(
                f"compares {title_of(left)}, a {kinds[0]}, with {title_of(right)}, a {kinds[1]}; "
                "compare columns of the same type"
            )

    def _side(self, expression: exp.Expr) -> Operand | Constant:
        self._operations += 1
        if self._operations > 2 * MAX_ARITHMETIC:
            raise invalid_query(f"has more than {MAX_ARITHMETIC} arithmetic operations")
        return self.read(expression)

    def _calculated(
        self, kind: type[exp.Expr], left: Operand | Constant, right: Operand | Constant
    ) -> Operand | Constant:
        symbol, calculate = _ARITHMETIC[kind]
        one, other = _as_number(left, symbol), _as_number(right, symbol)
        if isinstance(one, Decimal) and isinstance(other, Decimal):
            try:
                return Constant(_bounded(calculate(one, other)))
            except decimal.DecimalException:
                raise invalid_query(f"has a calculation with {symbol} that has no result") from None
        if symbol == "%" and (_has_remainder(one) or _has_remainder(other)):
            raise invalid_query("uses % of a %; use % once")
        return Arithmetic(symbol, one, other)

    def _find(self, expression: exp.Column) -> Array | CustomField:
        if not isinstance(expression.this, exp.Identifier):
            raise unsupported(expression.this)
        prefix = expression.table.lower()
        if expression.args.get("db") or prefix not in self._prefixes:
            table = prefix if prefix.isidentifier() and len(prefix) <= 60 else "something"
            raise invalid_query(f"names a column of {table}, which is not the table it reads from")
        name = expression.name
        if name.lower() in self._names:
            return self._names[name.lower()]
        known = [field.key if isinstance(field, CustomField) else key for key, field in self._names.items()]
        listed = ", ".join(known[:_MAX_NAMES_IN_MESSAGE]) + (", …" if len(known) > _MAX_NAMES_IN_MESSAGE else "")
        if not _PLAIN_NAME.fullmatch(name):
            # It may be an address: SQL reads text in double quotes as a name.
            raise invalid_query(
                f"has a name in double quotes that is not a column; put texts in single quotes. Known: {listed}"
            )
        raise invalid_query(f"names column {abbreviate(name, quoted=False)}; known: {listed}")


def unsupported(expression: exp.Expr) -> ExportFailure:
    """The failure for an SQL expression that segment queries do not support, by its name."""
    name = next((name for kind, name in _SQL_NAMES.items() if isinstance(expression, kind)), None)
    if name is None and isinstance(expression, exp.Func) and not isinstance(expression, exp.Binary):
        function = expression.name if isinstance(expression, exp.Anonymous) else expression.sql_name()
        shown = function.upper()[:60] if function.isidentifier() else "with an unreadable name"
        return invalid_query(f"uses function {shown}; only CONTAINS and ARRAY_CONTAINS are supported")
    return invalid_query(f"uses {name or expression.key.upper()}, which is not supported here")


def title_of(operand: Operand) -> str:
    """The operand's name in an error message."""
    match operand:
        case Column():
            return operand.name.upper()
        case CustomField():
            return operand.key
        case Arithmetic():
            return "a calculation"


def _number(digits: str) -> Decimal:
    try:
        return _bounded(Decimal(digits))
    except decimal.DecimalException:
        raise invalid_query("has a number that cannot be read") from None


def _bounded(number: Decimal) -> Decimal:
    if number and abs(number.adjusted()) > _MAX_DIGITS:
        raise invalid_query(f"has a number of more than {_MAX_DIGITS} digits")
    return number


def _as_number(operand: Operand | Constant, symbol: str) -> Operand | Decimal:
    if isinstance(operand, Constant):
        if isinstance(operand.value, str):
            raise invalid_query(f"uses {symbol} on a text; use it on numbers")
        return operand.value
    if kind_of(operand) not in _NUMBERS:
        raise invalid_query(f"uses {symbol} on {title_of(operand)}, a {kind_of(operand)}; use it on numbers")
    return operand


def _has_remainder(operand: object) -> bool:
    if not isinstance(operand, Arithmetic):
        return False
    return operand.operator == "%" or _has_remainder(operand.left) or _has_remainder(operand.right)
