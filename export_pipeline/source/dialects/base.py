"""The interface of a database's SQL, with what every database understands; and expressions that several share."""

from __future__ import annotations

import operator as python
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from export_pipeline.catalog.types import ColumnType, FilterOperator, IdentityType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import Scalar

Expression = sa.ColumnElement[Any]
Bool = sa.ColumnElement[bool]
COMPARE: dict[FilterOperator, Callable[[Any, Any], Any]] = {
    FilterOperator.EQ: python.eq,
    FilterOperator.GT: python.gt,
    FilterOperator.GTE: python.ge,
    FilterOperator.LT: python.lt,
    FilterOperator.LTE: python.le,
}
UPWARDS = (FilterOperator.GT, FilterOperator.GTE)
NUMBER_LENGTH = 400
"""Characters of the longest text that is read as a number: longer ones end the statement on some databases."""
NUMBER = "^-?[0-9]+([.][0-9]+)?"
"""A custom field's number as a regular expression; each database adds its own sign for the end of the text."""
# Every existing day and no other: PostgreSQL ends the statement at a 31 February.
_DAY = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
)
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?"
INSTANT = f"^{_DAY}([T ]{_TIME}(Z|[+-](0[0-9]|1[0-4])(:[0-5][0-9])?)?)?"
"""A custom field's date, with or without a time, as a regular expression without the end of the text."""
READ_AS_TEXT = (ColumnType.TEXT, ColumnType.UUID, ColumnType.JSON, ColumnType.DECIMAL)
LARGEST = 1.7e308
_LARGEST_DOUBLE = Decimal(sys.float_info.max)
_MARGIN, _LEAST_MARGIN = Decimal(2) ** -22, Decimal("1e-44")
"""More than the difference between a ``real`` and the decimal that files show: relative, and at least."""
_MOST_SPELLED = 1_000
"""UUIDs of one comparison that are bound in every spelling; SQLite binds 32,766 values to a statement."""


def text(value: str) -> sa.BindParameter[str]:
    """A bound text."""
    return sa.bindparam(None, value, type_=sa.Text(), unique=True)


def untyped(value: Any) -> sa.BindParameter[Any]:
    """A bound value that takes the type of the column it is compared with, so that the column's index serves."""
    return sa.bindparam(None, value, type_=sa.types.NullType(), unique=True)


def sound_json(source: Expression) -> Expression:
    """For SQLite and MariaDB: the text if it is JSON, else null. Their functions fail, or warn, at any other text."""
    return sa.case((sa.func.json_valid(source) == 1, source))


class Template(sa.sql.functions.FunctionElement[Any]):
    """SQL with an expression at every ``{text}``.

    A segment may have hundreds of them, and SQLAlchemy takes seconds to write as many trees. The expression must not
    contain a bound value if the template names it more than once.
    """

    inherit_cache = False  # a statement is compiled once

    def __init__(self, template: str, inner: Expression, kind: sa.types.TypeEngine[Any]) -> None:
        self.template = template
        self.type = kind  # first: SQLAlchemy keeps the operators of the type that it finds here
        super().__init__(inner)


@compiles(Template)
def _written(element: Template, compiler: SQLCompiler, **kw: Any) -> str:
    return element.template.replace("{text}", compiler.process(element.clauses.clauses[0], **kw))


class Dialect:
    """The SQL of a database that this package was not written for: equality, and the order of numbers and dates.

    A subclass supports every filter. ``kind`` is always the column's declared type.
    """

    supports_every_filter = False
    numeric: sa.types.TypeEngine[Any] = sa.Numeric()
    """The type of arithmetic."""
    end_type: type[Decimal] | type[float] = Decimal
    """The type of the bounds of a range of numbers."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def refusal(self) -> ExportFailure:
        """``not_supported``, for what databases implement each in its own way."""
        return ExportFailure(
            FailureCode.NOT_SUPPORTED,
            "Custom fields, arrays, LIKE, arithmetic, and parts and order of texts are not supported on "
            f"{self.backend}. Filter by equality, or export from mariadb, mysql, postgresql, sqlite.",
        )

    # Columns: as they are selected, compared and sorted.

    def read(self, source: Expression, kind: ColumnType) -> Expression:
        """A column as it is selected: as text where a driver would lose digits or has its own types (enums, uuid)."""
        return sa.cast(source, sa.Text) if kind in READ_AS_TEXT else source

    def shown(self, source: Expression, kind: ColumnType) -> Expression:
        """A column in a form that compares as the values in the file do."""
        return source

    def exact_text(self, custom_text: Expression) -> Expression:
        """A custom field's text in a form that compares by code point."""
        return self.shown(custom_text, ColumnType.TEXT)

    def by_code_point(self, column: Expression) -> Expression:
        """The text of an id or a key, for exact comparison and order, whatever the column's collation."""
        return sa.cast(column, sa.Text)

    def order_key(self, column: Expression, kind: ColumnType) -> Expression:
        """What pages are both sorted by and compared with: a text by code point, not by a collation."""
        return self.by_code_point(column) if kind is ColumnType.TEXT else column

    def is_one_of(self, column: Expression, ids: Sequence[str | int], kind: IdentityType) -> Bool:
        """The column holds one of these ids; a text only in the given spelling."""
        # Without a type: it takes that of the column, so that an index on it serves.
        same = column.in_([untyped(one) for one in ids])
        if kind is not ColumnType.TEXT:
            return same  # numbers and UUIDs that a database takes for one are one
        return sa.and_(same, self.unselective(self.by_code_point(column).in_([text(str(one)) for one in ids])))

    # Comparisons.

    def bound(self, value: Scalar) -> Expression:
        """A bound value without a type: the database gives it the type of what it is compared to."""
        return untyped(value)

    def unselective(self, condition: Bool) -> Bool:
        """A condition that excludes hardly any row of those that another condition of the same AND leaves."""
        return condition

    def with_index(self, source: Expression, kind: ColumnType, values: Sequence[Scalar], exact: Bool) -> Bool:
        """The exact equality with one of the values, and beside it an equality of the bare column, for its index."""
        if kind is ColumnType.UUID and self.supports_every_filter and len(values) <= _MOST_SPELLED:
            return sa.and_(source.in_([untyped(one) for one in _spellings(values)]), self.unselective(exact))
        return exact

    def compared_number(
        self, source: Expression, kind: ColumnType, operator: FilterOperator, value: Decimal, exact: Bool
    ) -> Bool:
        """The exact comparison of a float or decimal column, in a form that the column's index serves."""
        return exact

    def near(self, source: Expression, operator: FilterOperator, value: Decimal, exact: Bool) -> Bool:
        """The exact comparison for numbers near the value, that of the bare column for all others."""
        margin = max(abs(value) * _MARGIN, _LEAST_MARGIN)
        if abs(value) + margin > _LARGEST_DOUBLE:
            return exact
        low, high = (self.bound(self.end_type(end)) for end in (value - margin, value + margin))
        if operator is FilterOperator.EQ:
            return sa.and_(source >= low, source <= high, self.unselective(exact))
        if operator in UPWARDS:
            return sa.and_(source >= low, sa.or_(source > high, exact))
        return sa.and_(source <= high, sa.or_(source < low, exact))

    def position(self, source: Expression, value: str) -> sa.ColumnElement[int]:
        """The place, from 1, at which a text holds another; 0 if it does not. No pattern, so nothing to escape."""
        raise self.refusal()

    def like(self, source: Expression, shown: Expression, pattern: str) -> Bool:
        """A case-sensitive LIKE without an escape character; ``source`` is the text, ``shown`` its exact form."""
        raise self.refusal()

    def ends_with_domain(self, address: Expression, domain: str) -> Bool:
        """The part after the last ``@`` is ``domain``, in ASCII letters of either case (RFC 4343); null for null.

        A domain has no ``@``, so the address ends with ``@`` and the domain exactly if it is of it.
        """
        raise self.refusal()

    # JSON.

    def any_element(self, column: Expression, condition: Callable[[Expression], Bool]) -> Bool:
        """A JSON array has a text for which the condition holds; never null."""
        raise self.refusal()

    def array_contains(self, column: Expression, value: str) -> Bool:
        """A JSON array has this text as an element; never null."""
        return self.any_element(column, lambda element: self.exact_text(element) == text(value))

    def custom_text(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        """A custom field's value as text: numbers with their digits, true and false as words, null if there is none."""
        raise self.refusal()

    def custom_number(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        """A custom field's value as a number; null unless it is one, or a text of digits."""
        raise self.refusal()

    def custom_instant(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        """A custom field's value as an instant; null unless it is a text of the form ``INSTANT``."""
        raise self.refusal()

    # Arithmetic.

    def number(self, value: Expression) -> Expression:
        """A value as a number of arithmetic."""
        return sa.cast(value, self.numeric)

    def column_number(self, source: Expression, *, may_be_infinite: bool) -> Expression:
        """A column as a number of arithmetic; an infinity or NaN is null."""
        if not may_be_infinite:
            return self.number(source)
        # PostgreSQL before 14 has no decimal for infinity and ends the statement; a NaN is above every number.
        return sa.case((source.between(-LARGEST, LARGEST), self.number(sa.cast(source, sa.Text))))

    def remainder(self, left: Expression, right: Expression, divisor: Expression) -> Expression:
        """What is left of a division, with the sign of ``left``; ``divisor`` is ``right``, or null where that is 0."""
        return left % divisor

    # Child lists.

    def child_value(self, value: Expression) -> tuple[Expression, Expression]:
        """A child's value as text, and the form of it that breaks ties by code point."""
        return sa.cast(value, sa.Text), self.by_code_point(value)

    def gathered(self, ranked: sa.Subquery, within: Bool) -> sa.FromClause:
        """One row a parent: ``parent``, and ``listed``, its values as a JSON array in the order of their ``place``."""
        raise ExportFailure(
            FailureCode.NOT_SUPPORTED,
            f"include: child lists cannot be read from {self.backend} yet; leave it out.",
            field="include",
        )

    def parents(self, table: sa.TableClause) -> sa.FromClause:
        """The table that child lists are joined to."""
        return table


def json_array(joined: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The elements, joined by commas, as a JSON array."""
    return sa.literal_column("'['").op("||")(joined).op("||")(sa.literal_column("']'")).label("listed")


def exists(elements: sa.FromClause, *where: Bool) -> Bool:
    """At least one element meets every condition."""
    return sa.select(sa.literal_column("1")).select_from(elements).where(*where).exists()


def _spellings(values: Sequence[Scalar]) -> Iterator[str]:
    for value in values:
        identity = UUID(str(value))
        yield from (str(identity), str(identity).upper(), identity.hex, identity.hex.upper())
