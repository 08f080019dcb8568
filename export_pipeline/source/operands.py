"""What conditions compare: columns, custom fields and arithmetic as expressions of one database.

A custom field's value that is not of the field's type counts as null: applications store what people typed, and
one odd value must not end an export. PostgreSQL casts only what a regular expression has let through.
"""

from __future__ import annotations

import string
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Column, CustomField
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import Arithmetic, Operand, Scalar, kind_of
from export_pipeline.source.dialects import base, mariadb, sqlite

_NUMBER = "^-?[0-9]+([.][0-9]+)?$"
# Every day that there is and no other: PostgreSQL ends the statement at a 31 February.
_DAY = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
)
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?"
_INSTANT = f"^{_DAY}([T ]{_TIME}(Z|[+-](0[0-9]|1[0-4])(:[0-5][0-9])?)?)?$"
_LARGEST = 1.7e308
OWN_SQL = frozenset({"postgresql", "sqlite"}) | mariadb.BACKENDS
"""Databases on which every filter means the same."""


class Operands:
    """Reads operands of one table, for one database."""

    def __init__(self, table: sa.TableClause, backend: str) -> None:
        self._table = table
        self._backend = backend
        self._sqlite = backend == "sqlite"
        self._mariadb = backend in mariadb.BACKENDS

    def read(self, operand: Operand) -> sa.ColumnElement[Any]:
        """The operand as the database has it; null where there is none."""
        match operand:
            case Column():
                return self._table.c[operand.source]
            case CustomField():
                return self._typed(operand)
            case Arithmetic():
                self.require_own_sql()
                return self._arithmetic(operand)

    def comparable(self, operand: Operand, *, ordered: bool) -> sa.ColumnElement[Any]:
        """The operand as the file shows it, in a form that compares as its values do.

        Args:
            operand: what to read.
            ordered: it is compared by order or with another operand, so that a text needs a collation.
        """
        if isinstance(operand, Column):
            return self._shown(operand, ordered=ordered)
        source = self.read(operand)
        # What SQLite gets out of JSON is text, of no collation.
        return source if kind_of(operand) is not ColumnType.TEXT or self._sqlite else self._exact_text(source)

    def _shown(self, column: Column, *, ordered: bool) -> sa.ColumnElement[Any]:
        source = self._table.c[column.source]
        if column.type is ColumnType.TEXT and ordered:
            self.require_own_sql()
        if self._backend not in OWN_SQL:
            return source
        if column.type is ColumnType.TEXT:
            return self._exact_text(source)
        if self._sqlite:
            return _shown_by_sqlite(source, column.type)
        if self._mariadb:
            return _shown_by_mariadb(source, column.type)
        return _shown_by_postgresql(source, column.type)

    def _exact_text(self, source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """By code point, whatever the column's collation: a filter must not depend on a locale."""
        if self._mariadb:
            return mariadb.exact(source)
        if self._sqlite:
            return sqlite.AsText(source)
        return sa.collate(sa.cast(source, sa.Text), "C")

    def bound(self, value: Scalar) -> sa.ColumnElement[Any]:
        """A bound value without a type: the database gives it the type of what it is compared to."""
        if self._mariadb:
            return mariadb.bound(value)
        return base.untyped(self._database_value(value))

    def custom_text(self, field: CustomField) -> sa.ColumnElement[Any]:
        """A custom field's value as text: numbers with their digits, true and false as words, null if there is none."""
        source = self._table.c[field.column.source]
        if self._mariadb:
            return mariadb.json_text(source, field.key)
        if not self._sqlite:
            text: sa.ColumnElement[Any] = base.jsonb(source)[field.key].astext
            return text
        return sqlite.member_text(base.sound_json(source), field.key, self._table)

    def require_own_sql(self) -> None:
        """Refuse what only the databases that the product knows are spoken to in.

        Raises:
            ExportFailure: ``not_supported`` on any other database.
        """
        if self._backend not in OWN_SQL:
            message = (
                "Parts and order of texts, custom fields, arrays, LIKE and arithmetic cannot be filtered by on "
                f"{self._backend}. Filter by equality, or export from {', '.join(sorted(OWN_SQL))}."
            )
            raise ExportFailure(FailureCode.NOT_SUPPORTED, message)

    def _database_value(self, value: Scalar) -> Scalar:
        if self._sqlite and isinstance(value, datetime):
            return value.replace(tzinfo=None).isoformat(" ", "microseconds")
        if self._sqlite and isinstance(value, date):
            return value.isoformat()
        if self._sqlite and isinstance(value, Decimal):
            return float(value)
        return value

    def _typed(self, field: CustomField) -> sa.ColumnElement[Any]:
        self.require_own_sql()
        if field.value_type is ColumnType.TEXT:
            return self.custom_text(field)
        number = field.value_type is ColumnType.DECIMAL
        if self._sqlite:
            return self._typed_sqlite(field, number=number)
        if self._mariadb:
            source = self._table.c[field.column.source]
            if number:
                return mariadb.json_number(source, field.key)
            return mariadb.json_instant(source, field.key, _INSTANT)
        text = self.custom_text(field)
        if number:
            valid = sa.and_(sa.func.length(text) <= base.NUMBER_LENGTH, _matches(text, _NUMBER))
            return sa.case((valid, sa.cast(text, sa.Numeric)))
        return sa.case((_matches(text, _INSTANT), sa.cast(text, sa.DateTime(timezone=True))))

    def _typed_sqlite(self, field: CustomField, *, number: bool) -> sa.ColumnElement[Any]:
        sound = base.sound_json(self._table.c[field.column.source])
        found = sqlite.member(sound, field.key)
        if number:
            numeric = sa.or_(found.c.type == "integer", found.c.type == "real")
            typed = sa.case(
                (numeric, sa.cast(found.c.value, sa.Float)),
                (found.c.type == "text", sqlite.Number(found.c.value)),
            )
        else:
            typed = sa.case((found.c.type == "text", sqlite.CustomInstant(found.c.value)))
        return sqlite.of_member(typed, found, field.key, self._table)

    def _arithmetic(self, arithmetic: Arithmetic) -> sa.ColumnElement[Any]:
        """In decimals on PostgreSQL, in doubles elsewhere: the last digits may differ.

        ``/`` keeps the fraction of integers too; ``%`` has the sign of what is divided.
        """
        left, right = self._number(arithmetic.left), self._number(arithmetic.right)
        divisor = sa.func.nullif(right, self._number(0), type_=self._numeric)
        match arithmetic.operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / divisor
        if not self._sqlite:
            return left % divisor
        # SQLite's % cuts both to integers first.
        return left - right * sa.cast(left / divisor, sa.BigInteger)

    def _number(self, operand: Operand | int | float | Decimal) -> sa.ColumnElement[Any]:
        if isinstance(operand, Arithmetic):
            return self._arithmetic(operand)
        if not isinstance(operand, Column | CustomField):
            return self._cast_number(self.bound(Decimal(str(operand))))
        source = self.read(operand)
        if self._mariadb:
            return mariadb.number(source)
        if self._sqlite:
            source = sa.cast(source, self._numeric)
        if isinstance(operand, CustomField) or operand.type is ColumnType.INTEGER:
            return sa.cast(source, self._numeric)
        # PostgreSQL before 14 has no decimal for infinity and ends the statement; a NaN is above every number.
        digits = source if self._sqlite else sa.cast(source, sa.Text)
        return sa.case((source.between(-_LARGEST, _LARGEST), sa.cast(digits, self._numeric)))

    def _cast_number(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return mariadb.number(value) if self._mariadb else sa.cast(value, self._numeric)

    @property
    def _numeric(self) -> sa.types.TypeEngine[Any]:
        return sa.Float() if self._sqlite else sa.Numeric()


def _shown_by_postgresql(source: sa.ColumnElement[Any], kind: ColumnType) -> sa.ColumnElement[Any]:
    text = sa.cast(source, sa.Text)
    match kind:
        case ColumnType.FLOAT:
            return sa.cast(text, sa.Double)  # a real shows the fewest digits, as its text does
        case ColumnType.DECIMAL:
            return sa.cast(text, sa.Numeric)
        case ColumnType.BOOLEAN:
            return text.not_in([base.text("false"), base.text("0")])
        case ColumnType.DATE:
            return sa.cast(source, sa.Date)
        case ColumnType.UUID:
            return sa.func.lower(sa.func.translate(text, base.text("-{}"), base.text("")))
        case _:
            return source


def _shown_by_sqlite(source: sa.ColumnElement[Any], kind: ColumnType) -> sa.ColumnElement[Any]:
    match kind:
        case ColumnType.TIMESTAMP:
            return sqlite.StoredInstant(source)
        case ColumnType.DECIMAL:
            return sa.cast(source, sa.Float)  # SQLite keeps exact decimals as text
        case ColumnType.BOOLEAN:
            return source != sa.literal_column("0")
        case ColumnType.UUID:
            return sqlite.CanonicalUuid(source)
        case _:
            return source


def _shown_by_mariadb(source: sa.ColumnElement[Any], kind: ColumnType) -> sa.ColumnElement[Any]:
    match kind:
        case ColumnType.FLOAT:
            return mariadb.ShownNumber(source)
        case ColumnType.BOOLEAN:
            return source != sa.literal_column("0")
        case ColumnType.UUID:
            return mariadb.CanonicalUuid(source)
        case _:
            return source


def _matches(text: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    return text.op("~", is_comparison=True)(base.text(pattern))


# Conditions on columns that are JSON arrays of texts, and on the domains of the addresses in them.


_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def contains(column: sa.ColumnElement[Any], value: str, backend: str) -> sa.ColumnElement[bool]:
    """One of the texts is ``value``; never null."""
    if backend in mariadb.BACKENDS:
        return mariadb.array_has(column, value)
    if backend == "sqlite":
        elements = _elements(column)
        return _exists(elements, elements.c.value == base.text(value))
    array = base.jsonb(column)
    # As an array of one: a bare text would also be found in a column that is a bare text.
    found = array.op("@>", is_comparison=True)(sa.func.jsonb_build_array(sa.cast(base.text(value), sa.Text)))
    return sa.case((sa.func.jsonb_typeof(array) == "array", found), else_=sa.false())


def any_of_domain(column: sa.ColumnElement[Any], domain: str, backend: str) -> sa.ColumnElement[bool]:
    """One of the texts is an address of ``domain``; never null."""
    if backend in mariadb.BACKENDS:
        return mariadb.array_has_domain(column, domain)
    if backend == "sqlite":
        elements = _elements(column)
        return _exists(elements, ends_with_domain(elements.c.value, domain, backend))
    array = base.jsonb(column)
    sound = sa.case((sa.func.jsonb_typeof(array) == "array", array), else_=sa.func.jsonb_build_array())
    texts = sa.func.jsonb_array_elements_text(sound).table_valued(sa.column("value", sa.Text))
    return _exists(texts, ends_with_domain(texts.c.value, domain, backend))


def ends_with_domain(address: sa.ColumnElement[Any], domain: str, backend: str) -> sa.ColumnElement[bool]:
    """The part after the last ``@`` is ``domain``, by ASCII letters of either case (RFC 4343); null if the address is.

    A domain has no ``@``, so the address ends with ``@`` and the domain exactly if it is of it.
    """
    if backend in mariadb.BACKENDS:
        return mariadb.ends_with_domain(address, domain)
    end = "@" + domain.translate(_LOWER)
    if backend == "sqlite":
        return sa.func.substr(sa.func.lower(address), -len(end)) == base.text(end)
    # In collation C lower() knows ASCII alone, as it does on SQLite.
    return sa.func.right(sa.func.lower(sa.collate(sa.cast(address, sa.Text), "C")), len(end)) == base.text(end)


def _elements(column: sa.ColumnElement[Any]) -> sa.TableValuedAlias:
    sound = base.sound_json(column)
    array = sa.case((sa.func.json_type(sound) == "array", sound))
    return sa.func.json_each(array).table_valued("type", "value")


def _exists(elements: sa.TableValuedAlias, where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    texts = [elements.c.type == "text"] if "type" in elements.c else []
    return sa.select(sa.literal_column("1")).select_from(elements).where(*texts, where).exists()
