"""What a segment query compares: columns, custom fields, constants, and arithmetic of numbers."""

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
from export_pipeline.catalog.types import OPERATORS_BY_TYPE, ColumnType, FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode, abbreviate
from export_pipeline.filters.json_filters import parse_scalar
from export_pipeline.filters.tree import Arithmetic, Operand, Scalar, kind_of

# The columns that a segment query may name, and what it is told where it names or does something else.


ArrayName = Literal["list_ids", "email_domains"]
"""Arrays that no column holds: what they hold follows from other tables and columns."""
_ADDRESSES = "alternate_emails"
_COMPUTED: tuple[ArrayName, ...] = ("list_ids", "email_domains")
_COLUMNS = (
    "contact_id",
    "email",
    "phone_number_id",
    "external_id",
    "anonymous_id",
    "first_name",
    "last_name",
    _ADDRESSES,
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
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MOST_SHOWN = 60


def refused(what: str) -> ExportFailure:
    """A query that cannot be run; ``what`` goes on from "its query" and holds none of the query's values."""
    return ExportFailure(FailureCode.INVALID_SEGMENT, f"its query {what}.", field="segment_ids")


class Names:
    """What a name in a query stands for, whatever its case."""

    def __init__(self, dataset: Dataset, custom_fields: Sequence[CustomField]) -> None:
        self.dataset = dataset
        self._columns = {
            name: column
            for name in _COLUMNS
            if (column := dataset.column(name)) is not None
            and column.operators
            and (column.type is ColumnType.JSON) == (name == _ADDRESSES)
        }
        self._custom: dict[str, CustomField] = {}
        for field in custom_fields:
            self._custom.setdefault(field.key.lower(), field)

    def find(self, name: str) -> Column | CustomField | ArrayName:
        """The column, custom field or array.

        Raises:
            ExportFailure: ``invalid_segment``, with the names that there are.
        """
        lower = name.lower()
        if lower in self._columns:
            return self._columns[lower]
        if lower in _COMPUTED and lower in self._computed:
            return next(computed for computed in _COMPUTED if computed == lower)
        if lower in self._custom:
            return self._custom[lower]
        known = [*self._columns, *self._computed, *(field.key for field in self._custom.values())]
        listed = ", ".join(known[:_MOST_SHOWN]) + (", …" if len(known) > _MOST_SHOWN else "")
        if not _PLAIN_NAME.fullmatch(name):
            # It may well be an address: text in double quotes, which SQL takes for a name.
            raise refused(f"has a name in double quotes that is no column; put texts in single quotes. Known: {listed}")
        raise refused(f"names column {abbreviate(name, quoted=False)}; known: {listed}")

    @property
    def email(self) -> Column:
        """The column of the row's address, where ``email_domains`` is known."""
        return self._columns["email"]

    @property
    def addresses(self) -> Column | None:
        """The array of the row's further addresses, if there is one."""
        return self._columns.get(_ADDRESSES)

    @property
    def _computed(self) -> tuple[ArrayName, ...]:
        there = {"list_ids": self.dataset.lists is not None, "email_domains": "email" in self._columns}
        return tuple(name for name in _COMPUTED if there[name])


MAX_ARITHMETIC = 50
"""Operations in one query: PostgreSQL ends a statement whose numbers grow past 131,072 digits."""
_MOST_DIGITS = 300
_NUMBERS = (ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.DECIMAL)
_DIGITS = decimal.Context(prec=60, traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow])
_Symbol = Literal["+", "-", "*", "/", "%"]
_SYMBOLS: dict[type[exp.Expr], _Symbol] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%"}
_FOLD: dict[_Symbol, Callable[[Decimal, Decimal], Decimal]] = {
    "+": _DIGITS.add,
    "-": _DIGITS.subtract,
    "*": _DIGITS.multiply,
    "/": _DIGITS.divide,
    "%": _DIGITS.remainder,
}
_SIGNS = {
    FilterOperator.EQ: "=",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
}
_CALLED: dict[type[exp.Expr], str] = {
    exp.Select: "a subquery",
    exp.Subquery: "a subquery",
    exp.Union: "UNION",
    exp.Exists: "EXISTS",
    exp.Any: "ANY",
    exp.All: "ALL",
    exp.Case: "CASE",
    exp.Cast: "a cast",
    exp.TryCast: "a cast",
    exp.Escape: "ESCAPE",
    exp.ILike: "ILIKE",
    exp.RegexpLike: "REGEXP",
    exp.DPipe: "||",
    exp.Concat: "concatenation",
    exp.Interval: "INTERVAL",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
    exp.JSONExtract: ":",
    exp.Bracket: "[ ]",
    exp.Placeholder: "a placeholder",
    exp.Parameter: "a placeholder",
    exp.Window: "OVER",
    exp.Collate: "COLLATE",
    exp.Star: "*",
    exp.Boolean: "TRUE or FALSE",
    exp.RawString: "$$ quotes",
    exp.Tuple: "a row of values",
}


@dataclass(frozen=True)
class Constant:
    """A text in quotes, or a number."""

    value: str | Decimal


class OperandReader:
    """Reads the operands of one query."""

    def __init__(self, names: Names, prefixes: frozenset[str], zone: ZoneInfo) -> None:
        self._names = names
        self._prefixes = prefixes
        self._zone = zone
        self._operations = 0

    def read(self, expression: exp.Expr) -> Operand | Constant:
        """One side of a comparison.

        Raises:
            ExportFailure: ``invalid_segment``, naming what it is instead.
        """
        expression = inner(expression)
        match expression:
            case exp.Literal():
                return Constant(expression.this if expression.is_string else _number(expression.this))
            case exp.Column():
                return self._column(expression)
            case exp.Neg():
                return self._calculated("-", Constant(Decimal(0)), self._side(expression.this))
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div() | exp.Mod():
                symbol = _SYMBOLS[type(expression)]
                return self._calculated(symbol, self._side(expression.left), self._side(expression.right))
            case exp.Null():
                raise refused("compares something with NULL, which is never true; use IS NULL or IS NOT NULL")
            case _:
                raise uses(expression)

    def column(self, expression: exp.Expr, where: str) -> Operand:
        """As ``read``, where a constant makes no sense."""
        operand = self.read(expression)
        if isinstance(operand, Constant):
            raise refused(f"uses {where} on a constant; name a column")
        return operand

    def array(self, expression: exp.Expr) -> Column | ArrayName | None:
        """The array that an expression names, None if it names none."""
        expression = inner(expression)
        found = self._find(expression) if isinstance(expression, exp.Column) else None
        if isinstance(found, CustomField) or (isinstance(found, Column) and found.type is not ColumnType.JSON):
            return None
        return found

    def scalar(self, operand: Operand, constant: Constant) -> Scalar:
        """A constant in the type of what it is compared with."""
        kind, value = kind_of(operand), constant.value
        if isinstance(value, Decimal):
            if kind not in _NUMBERS:
                raise refused(f"compares {title_of(operand)}, a {kind}, with a number; put the value in single quotes")
            # A fraction is compared with whole numbers as what it is.
            kind = ColumnType.DECIMAL if kind is ColumnType.INTEGER and value != value.to_integral_value() else kind
        given: object = value
        if isinstance(value, Decimal):
            given = {ColumnType.INTEGER: int, ColumnType.FLOAT: float}.get(kind, str)(value)
        try:
            return parse_scalar(kind, given, self._zone)
        except ValueError as error:
            problem = str(error)
        raise refused(f"compares {title_of(operand)} with a value that cannot be its; it {problem}")

    def check_operator(self, operand: Operand, operator: FilterOperator, *, shown_as: str = "") -> None:
        """Refuse an operator that the type has not, or that the catalog does not allow on the column."""
        allowed = operand.operators if isinstance(operand, Column) else OPERATORS_BY_TYPE[kind_of(operand)]
        if operator not in allowed:
            sign = shown_as or _SIGNS.get(operator) or operator.upper().replace("_", " ")
            raise refused(f"uses {sign} on {title_of(operand)}, which cannot be compared so")

    def check_alike(self, one: Operand, other: Operand) -> None:
        """Refuse to compare columns of different types."""
        kinds = kind_of(one), kind_of(other)
        if kinds[0] is not kinds[1] and not all(kind in _NUMBERS for kind in kinds):
            raise refused(
                f"compares {title_of(one)} with {title_of(other)}, but one is a {kinds[0]} and the other a {kinds[1]}"
            )

    def _side(self, expression: exp.Expr) -> Operand | Constant:
        self._operations += 1
        if self._operations > 2 * MAX_ARITHMETIC:
            raise refused(f"holds more than {MAX_ARITHMETIC} arithmetic operations")
        return self.read(expression)

    def _calculated(self, symbol: _Symbol, left: Operand | Constant, right: Operand | Constant) -> Operand | Constant:
        one, other = _as_number(left, symbol), _as_number(right, symbol)
        if isinstance(one, Decimal) and isinstance(other, Decimal):
            try:
                return Constant(_bounded(_FOLD[symbol](one, other)))
            except decimal.DecimalException:
                raise refused(f"has a calculation with {symbol} that has no result") from None
        if symbol == "%" and (_has_remainder(one) or _has_remainder(other)):
            raise refused("uses % of a %; use one")
        return Arithmetic(symbol, one, other)

    def _column(self, expression: exp.Column) -> Column | CustomField:
        found = self._find(expression)
        if isinstance(found, str) or kind_of(found) is ColumnType.JSON:
            raise refused(
                f"compares {expression.name.upper()}, an array; use ARRAY_CONTAINS({expression.name}, 'value')"
            )
        return found

    def _find(self, expression: exp.Column) -> Column | CustomField | ArrayName:
        if not isinstance(expression.this, exp.Identifier):
            raise uses(expression.this)
        prefix = expression.table.lower()
        if expression.args.get("db") or prefix not in {"", *self._prefixes}:
            abbreviate = prefix if prefix.isidentifier() and len(prefix) <= 60 else "something"
            raise refused(f"names a column of {abbreviate}, which is not the table it reads from")
        return self._names.find(expression.name)


def uses(expression: exp.Expr) -> ExportFailure:
    """The refusal of something that SQL has and a segment query here has not, by its name."""
    for kind, called in _CALLED.items():
        if isinstance(expression, kind):
            return refused(f"uses {called}, which cannot be used here")
    if isinstance(expression, exp.Func) and not isinstance(expression, exp.Binary):
        name = expression.name if isinstance(expression, exp.Anonymous) else expression.sql_name()
        abbreviate = name.upper()[:60] if name.isidentifier() else "with an odd name"
        return refused(f"uses function {abbreviate}; only CONTAINS and ARRAY_CONTAINS can be used")
    return refused(f"uses {expression.key.upper()} where a column or a value is expected")


def title_of(operand: Operand) -> str:
    """What to call an operand in a message."""
    match operand:
        case Column():
            return operand.name.upper()
        case CustomField():
            return operand.key
        case Arithmetic():
            return "a calculation"


def inner(expression: exp.Expr) -> exp.Expr:
    """What stands in the parentheses."""
    while isinstance(expression, exp.Paren):
        expression = expression.this
    return expression


def _number(digits: str) -> Decimal:
    try:
        return _bounded(Decimal(digits))
    except decimal.DecimalException:
        raise refused("has a number that cannot be read") from None


def _bounded(number: Decimal) -> Decimal:
    if number and abs(number.adjusted()) > _MOST_DIGITS:
        raise refused(f"has a number of more than {_MOST_DIGITS} digits")
    return number


def _as_number(operand: Operand | Constant, symbol: str) -> Operand | Decimal:
    if isinstance(operand, Constant):
        if isinstance(operand.value, str):
            raise refused(f"uses {symbol} on a text; it is for numbers")
        return operand.value
    if kind_of(operand) not in _NUMBERS:
        raise refused(f"uses {symbol} on {title_of(operand)}, a {kind_of(operand)}; it is for numbers")
    return operand


def _has_remainder(operand: object) -> bool:
    if not isinstance(operand, Arithmetic):
        return False
    return operand.operator == "%" or _has_remainder(operand.left) or _has_remainder(operand.right)
