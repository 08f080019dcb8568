"""MariaDB's and MySQL's SQL. They compare text by collations that ignore case, accents and trailing spaces.

The tests run on MariaDB 10.11. The expressions expect utf8mb4 as the connection's character set; the reader sets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from export_pipeline.catalog.types import ColumnType, FilterOperator, IdentityType
from export_pipeline.filters.tree import Scalar
from export_pipeline.source.dialects.base import (
    COMPARE,
    INSTANT,
    NUMBER,
    NUMBER_LENGTH,
    Bool,
    Dialect,
    Expression,
    Template,
    exists,
    sound_json,
    text,
    untyped,
)

BACKENDS = frozenset({"mariadb", "mysql"})
"""SQLAlchemy's names; ``mysql`` may be either database."""
_ESCAPE = "|"
_DIGITS, _DECIMALS = 65, 30  # the most that MySQL keeps; MariaDB keeps 38 decimals
_TWO_ROWS = "(SELECT 1 UNION ALL SELECT 2)"
_TAIL = "SUBSTRING({text}, 20)"
_ZONE = f"REGEXP_SUBSTR({_TAIL}, '[+-].*')"
_SIX_DIGITS = "CAST(CAST({text} AS CHAR) AS DOUBLE)"
_DOUBLE = "CAST({text} AS DOUBLE)"
_IS_FLOAT = f"{_SIX_DIGITS} <> {_DOUBLE}"
"""The text of a column's value is another number: it is a FLOAT of more than six digits, or no decimal fraction."""
_SHOWN_NUMBER = f"""CASE WHEN {_SIX_DIGITS} = {_DOUBLE} OR CAST({_SIX_DIGITS} AS FLOAT) = {_DOUBLE} THEN {_SIX_DIGITS}
 {
    "".join(
        f"WHEN CAST(ROUND({_DOUBLE}, {digits - 1} - FLOOR(LOG10(ABS({_DOUBLE})))) AS FLOAT) = {_DOUBLE} "
        f"THEN ROUND({_DOUBLE}, {digits - 1} - FLOOR(LOG10(ABS({_DOUBLE})))) "
        for digits in (7, 8)
    )
} ELSE ROUND({_DOUBLE}, 8 - FLOOR(LOG10(ABS({_DOUBLE})))) END"""
# The 32 digits in lower case, from any spelling of a UUID.
_CANONICAL_UUID = "LOWER(REPLACE(REPLACE(REPLACE(CAST({text} AS CHAR), '-', ''), '{', ''), '}', ''))"
_BYTES = "IF(CHARSET({text}) = 'binary', CAST({text} AS BINARY), CAST(CAST({text} AS CHAR) AS BINARY))"
# CONVERT_TZ leaves instants outside 1970 to 2038 as they are, so the offset is subtracted in minutes.
_UTC_INSTANT = f"""TIMESTAMPADD(MINUTE,
 IF({_ZONE} = '', 0, IF(LEFT({_ZONE}, 1) = '-', 1, -1)
  * (60 * SUBSTRING({_ZONE}, 2, 2) + IF(CHAR_LENGTH({_ZONE}) = 6, SUBSTRING({_ZONE}, 5, 2), 0))),
 CAST(CONCAT(SUBSTRING({{text}}, 1, 10), ' ', IF(CHAR_LENGTH({{text}}) = 10, '00:00:00', SUBSTRING({{text}}, 12, 8)),
  REGEXP_SUBSTR({_TAIL}, '[.][0-9]+')) AS DATETIME(6)))"""
_ELEMENTS = "JSON_TABLE({text}, '$[*]' COLUMNS (value LONGTEXT PATH '$', raw JSON PATH '$'))"
"""The elements of an array: ``value``, the element as text, and ``raw``, as JSON."""


class _Mariadb(Dialect):
    supports_every_filter = True
    end_type = float  # MariaDB has decimals of 30 places, too few for the smallest doubles

    def shown(self, source: Expression, kind: ColumnType) -> Expression:
        match kind:
            case ColumnType.TEXT:
                return _exact(source)
            case ColumnType.FLOAT:
                return _shown_number(source)
            case ColumnType.BOOLEAN:
                return source != sa.literal_column("0")
            case ColumnType.UUID:
                return Template(_CANONICAL_UUID, source, sa.Text())
            case _:
                return source

    def by_code_point(self, column: Expression) -> Expression:
        return _exact(sa.cast(column, sa.Text))

    def is_one_of(self, column: Expression, ids: Sequence[str | int], kind: IdentityType) -> Bool:
        """By the bytes of the text, and by the column itself, for its index.

        The column's own comparison is not enough: ``5 = '5abc'`` would be true, and so would ``'acme' = 'ACME '``.
        """
        any_case = kind is ColumnType.UUID
        exact = _exact(sa.func.lower(sa.cast(column, sa.Text)) if any_case else column)
        spelled = [str(one).lower() if any_case else str(one) for one in ids]
        return sa.or_(
            sa.false(),
            *[sa.and_(column == untyped(one), exact == text(same)) for one, same in zip(ids, spelled, strict=True)],
        )

    def bound(self, value: Scalar) -> Expression:
        """With its type: instants in UTC, decimals with every digit (an exponent would make them doubles)."""
        if isinstance(value, datetime):
            return sa.cast(text(value.replace(tzinfo=None).isoformat(" ")), mysql.DATETIME(fsp=6))
        if isinstance(value, date):
            return sa.cast(text(value.isoformat()), sa.Date)
        if isinstance(value, Decimal):
            digits = format(value, "f")
            places = min(_DECIMALS, len(digits.partition(".")[2]))
            return sa.cast(text(digits), sa.Numeric(_DIGITS, places))
        return super().bound(value)

    def with_index(self, source: Expression, kind: ColumnType, values: Sequence[Scalar], exact: Bool) -> Bool:
        if kind is not ColumnType.DECIMAL:
            return super().with_index(source, kind, values, exact)
        bound = [self.bound(value) for value in values]
        return _compared_decimal(source, lambda shown: shown.in_(bound))

    def compared_number(
        self, source: Expression, kind: ColumnType, operator: FilterOperator, value: Decimal, exact: Bool
    ) -> Bool:
        if kind is ColumnType.DECIMAL:
            bound = self.bound(value)
            exact = _compared_decimal(source, lambda shown: COMPARE[operator](shown, bound))
        return self.near(source, operator, value, exact)

    def position(self, source: Expression, value: str) -> sa.ColumnElement[int]:
        """In bytes."""
        return sa.func.locate(text(value), _exact(source), type_=sa.Integer())

    def like(self, source: Expression, shown: Expression, pattern: str) -> Bool:
        # By characters, not by the bytes of the exact form.
        return _by_character(source).like(text(pattern.replace(_ESCAPE, _ESCAPE * 2)), escape=_ESCAPE)

    def ends_with_domain(self, address: Expression, domain: str) -> Bool:
        # LOWER would change letters beyond ASCII too.
        return _matches(address, "@" + "".join(map(_either_case, domain)))

    def any_element(self, column: Expression, condition: Callable[[Expression], Bool]) -> Bool:
        sound = sound_json(column)
        array = sa.case((sa.func.json_type(sound) == "ARRAY", sound))
        elements = Template(_ELEMENTS, array, sa.types.NullType()).table_valued("value", "raw")
        # A number or a nested array is not a text element, although its ``value`` is a text.
        is_text = sa.cast(elements.c.raw, sa.Text).like(text('"%'))
        return exists(elements, is_text, condition(elements.c.value))

    def custom_text(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found, kind = _member(source, key)
        return sa.case((kind == "NULL", sa.null()), else_=sa.func.json_unquote(found))

    def custom_number(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found, kind = _member(source, key)
        written = sa.func.json_unquote(found)
        is_short = sa.func.char_length(written) <= NUMBER_LENGTH
        digits = sa.and_(kind == "STRING", is_short, _matches(written, NUMBER))
        is_number = kind.in_(["INTEGER", "UNSIGNED INTEGER", "DOUBLE", "DECIMAL"])
        return sa.case((sa.or_(is_number, digits), self.number(written)))

    def custom_instant(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        """In UTC."""
        found, kind = _member(source, key)
        written = sa.func.json_unquote(found)
        is_instant = sa.and_(kind == "STRING", _matches(written, INSTANT))
        return sa.case((is_instant, Template(_UTC_INSTANT, written, mysql.DATETIME(fsp=6))))

    def number(self, value: Expression) -> Expression:
        """A double. SQLAlchemy omits the cast on a server whose version it does not know."""
        return as_double(value)

    def column_number(self, source: Expression, *, may_be_infinite: bool) -> Expression:
        return as_double(source)

    def gathered(self, ranked: sa.Subquery, within: Bool) -> sa.FromClause:
        """What is longer than a packet of the connection would become null, with no more than a warning.

        The rows would silently lose it: a subquery of two rows in the place of a scalar ends the statement instead.
        """
        quoted = sa.func.json_quote(ranked.c.value)
        size = sa.func.sum(sa.func.octet_length(quoted) + 1) + 1
        array = sa.func.concat("[", sa.func.group_concat(quoted.op("ORDER BY")(ranked.c.place)), "]")
        too_long = size > sa.literal_column("@@max_allowed_packet")
        listed = sa.case((too_long, sa.literal_column(_TWO_ROWS)), else_=array).label("listed")
        return sa.select(ranked.c.parent, listed).where(within).group_by(ranked.c.parent).subquery()


DIALECT = _Mariadb("mariadb")


def as_double(value: Expression) -> Expression:
    """A number as a double."""
    return Template(_DOUBLE, value, sa.Double())


def as_bytes(value: Expression) -> Expression:
    """The UTF-8 bytes of a value's text, whatever its character set; the bytes themselves of what is not text."""
    return Template(_BYTES, value, sa.types.NullType())


def _exact(value: Expression) -> Expression:
    """A text as its UTF-8 bytes: equal if every character is, ordered by code point, whatever its collation."""
    return sa.type_coerce(sa.cast(sa.cast(value, sa.Text), sa.LargeBinary), sa.types.NullType())


def _shown_number(column: Expression) -> Expression:
    """A number column as the double that files show: a FLOAT by its fewest digits, where the server gives six."""
    return Template(_SHOWN_NUMBER, column, sa.Double())


def _compared_decimal(column: Expression, compare: Callable[[Expression], Bool]) -> Bool:
    """A comparison of a number column: of a DECIMAL with every digit, of a FLOAT as files show it."""
    is_float = Template(_IS_FLOAT, column, sa.Boolean())
    return sa.case((is_float, compare(_shown_number(column))), else_=compare(column))


def _member(column: Expression, key: str) -> tuple[Expression, Expression]:
    sound = sound_json(column)
    spelled = [sa.func.json_extract(sound, text(f'$."{one}"')) for one in _spellings(key)]
    found = sa.func.coalesce(*spelled) if len(spelled) > 1 else spelled[0]
    return found, sa.func.json_type(found)


def _spellings(key: str) -> list[str]:
    """How writers of JSON escape a name: MariaDB compares names as they are written."""
    plain, ascii_only = json.dumps(key, ensure_ascii=False)[1:-1], json.dumps(key)[1:-1]
    upper = re.sub(r"(?<=\\u)[0-9a-f]{4}", lambda digits: digits[0].upper(), ascii_only)
    forms = [plain, ascii_only, upper]
    return list(dict.fromkeys([*forms, *[form.replace("/", r"\/") for form in forms]]))


def _by_character(value: Expression) -> Expression:
    return sa.collate(sa.cast(value, sa.Text), "utf8mb4_bin")


def _matches(value: Expression, pattern: str) -> Bool:
    # Ends with \z, for $ also matches before a line feed at the end.
    return _by_character(value).op("REGEXP", is_comparison=True)(text(pattern + r"\z"))


def _either_case(character: str) -> str:
    if character.isascii() and character.isalpha():
        return f"[{character.lower()}{character.upper()}]"
    return rf"\x{{{ord(character):x}}}"
