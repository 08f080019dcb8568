"""MariaDB and MySQL compare text by collations that ignore case, accents and trailing spaces: here is how not to.

Both are spoken to alike; the tests run on MariaDB 10.11. The expressions take the connection's character set to
be utf8mb4, which the reader sees to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from export_pipeline.source.dialects import base

BACKENDS = frozenset({"mariadb", "mysql"})
"""As SQLAlchemy names them; ``mysql`` may be either."""
_ESCAPE = "|"
# Ends with \z, for $ also stands before a line feed at the end.
_NUMBER = r"^-?[0-9]+([.][0-9]+)?\z"
_DIGITS, _DECIMALS = 65, 30  # the most that MySQL keeps; MariaDB keeps 38 decimals
_TWO_ROWS = "(SELECT 1 UNION ALL SELECT 2)"
_TAIL = "SUBSTRING({text}, 20)"
_ZONE = f"REGEXP_SUBSTR({_TAIL}, '[+-].*')"


def exact(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A text as its UTF-8 bytes: equal if every character is, ordered by code point, whatever its collation."""
    return sa.type_coerce(sa.cast(sa.cast(text, sa.Text), sa.LargeBinary), sa.types.NullType())


def same_identity(column: sa.ColumnElement[Any], value: str | int, *, any_case: bool = False) -> sa.ColumnElement[bool]:
    """The column holds this id and no other spelling of it; by the column itself too, for its index.

    Alone, ``5 = '5abc'`` would be true, and so would ``'acme' = 'ACME '``.
    """
    given = base.untyped(value)
    text = sa.func.lower(sa.cast(column, sa.Text)) if any_case else column
    spelled = base.text(str(value).lower() if any_case else str(value))
    return sa.and_(column == given, exact(text) == spelled)


def place(text: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[int]:
    """The place, from 1, of the byte at which a text holds another; 0 = it does not."""
    return sa.func.locate(base.text(value), exact(text), type_=sa.Integer())


def like(text: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    """LIKE by characters that minds case; a backslash in the pattern is a backslash."""
    escaped = pattern.replace(_ESCAPE, _ESCAPE * 2)
    return _by_character(text).like(base.text(escaped), escape=_ESCAPE)


def ends_with_domain(address: sa.ColumnElement[Any], domain: str) -> sa.ColumnElement[bool]:
    """The part after the last ``@`` is ``domain``, by ASCII letters of either case: LOWER would fold others too."""
    return _matches(address, "@" + "".join(map(_either_case, domain)) + r"\z")


def bound(value: Any) -> sa.ColumnElement[Any]:
    """A value as what it is: instants in UTC, decimals with every digit (an exponent would make them doubles)."""
    if isinstance(value, datetime):
        return sa.cast(base.text(value.replace(tzinfo=None).isoformat(" ")), mysql.DATETIME(fsp=6))
    if isinstance(value, date):
        return sa.cast(base.text(value.isoformat()), sa.Date)
    if isinstance(value, Decimal):
        return sa.cast(base.text(format(value, "f")), sa.Numeric(_DIGITS, min(_DECIMALS, len(_fraction(value)))))
    return base.untyped(value)


def number(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A number as a double."""
    return _Double(value)


def compared_decimal(
    column: sa.ColumnElement[Any], compare: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[bool]]
) -> sa.ColumnElement[bool]:
    """A comparison of a number column: of a DECIMAL with every digit, of a FLOAT as files show it."""
    return sa.case((_IsFloat(column), compare(ShownNumber(column))), else_=compare(column))


def as_bytes(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The UTF-8 bytes of a value's text, whatever its character set; the bytes themselves of what is no text."""
    return _Bytes(value)


def json_text(column: sa.ColumnElement[Any], key: str) -> sa.ColumnElement[Any]:
    """A member of a JSON object as text: numbers with their digits, true and false as words, null if there is none."""
    found, kind = _member(column, key)
    return sa.case((kind == "NULL", sa.null()), else_=sa.func.json_unquote(found))


def json_number(column: sa.ColumnElement[Any], key: str) -> sa.ColumnElement[Any]:
    """A member of a JSON object as a number; null unless it is one, or a text of digits."""
    found, kind = _member(column, key)
    text = sa.func.json_unquote(found)
    digits = sa.and_(kind == "STRING", sa.func.char_length(text) <= base.NUMBER_LENGTH, _matches(text, _NUMBER))
    numeric = kind.in_(["INTEGER", "UNSIGNED INTEGER", "DOUBLE", "DECIMAL"])
    return sa.case((sa.or_(numeric, digits), number(text)))


def json_instant(column: sa.ColumnElement[Any], key: str, pattern: str) -> sa.ColumnElement[Any]:
    """A member of a JSON object as an instant in UTC; null unless it is a text that ``pattern`` lets through."""
    found, kind = _member(column, key)
    text = sa.func.json_unquote(found)
    return sa.case((sa.and_(kind == "STRING", _matches(text, pattern.removesuffix("$") + r"\z")), _Instant(text)))


def array_of(texts: sa.ColumnElement[Any], place: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The texts of a group as one JSON array, in the order of their places.

    What is longer than a packet of the connection would become null, with no more than a warning, and the rows would
    silently lose it: a subquery of two rows in a scalar's place ends the statement instead.
    """
    quoted = sa.func.json_quote(texts)
    size = sa.func.sum(sa.func.octet_length(quoted) + 1) + 1
    listed = sa.func.concat("[", sa.func.group_concat(quoted.op("ORDER BY")(place)), "]")
    return sa.case((size > sa.literal_column("@@max_allowed_packet"), sa.literal_column(_TWO_ROWS)), else_=listed)


def array_has(column: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[bool]:
    """A JSON array has this text as an element; never null."""
    elements = _elements(column)
    return _exists(elements, exact(elements.c.value) == base.text(value))


def array_has_domain(column: sa.ColumnElement[Any], domain: str) -> sa.ColumnElement[bool]:
    """A JSON array has an address of this domain as an element; never null."""
    elements = _elements(column)
    return _exists(elements, ends_with_domain(elements.c.value, domain))


class _Template(sa.sql.functions.FunctionElement[Any]):
    """An expression in the places of a template."""

    template = ""

    def __init__(self, inner: sa.ColumnElement[Any]) -> None:
        super().__init__(inner)


@compiles(_Template, "mysql", "mariadb")
def _written(element: _Template, compiler: SQLCompiler, **kw: Any) -> str:
    return element.template.format(text=compiler.process(element.clauses.clauses[0], **kw))


class _Double(_Template):
    """SQLAlchemy leaves the cast out on a server whose version it does not know."""

    inherit_cache = True
    type = sa.Double()
    template = "CAST({text} AS DOUBLE)"


_SIX_DIGITS = "CAST(CAST({text} AS CHAR) AS DOUBLE)"
_STORED = "CAST({text} AS DOUBLE)"


class _IsFloat(_Template):
    """The text of a column's value is another number: it is a FLOAT of more than six digits, or no decimal fraction."""

    inherit_cache = True
    type = sa.Boolean()
    template = f"{_SIX_DIGITS} <> {_STORED}"


class ShownNumber(_Template):
    """A number column as the double that files show: a FLOAT by its fewest digits, where the server gives six."""

    inherit_cache = True
    type = sa.Double()
    template = f"""CASE WHEN {_SIX_DIGITS} = {_STORED} OR CAST({_SIX_DIGITS} AS FLOAT) = {_STORED} THEN {_SIX_DIGITS}
 {
        "".join(
            f"WHEN CAST(ROUND({_STORED}, {digits - 1} - FLOOR(LOG10(ABS({_STORED})))) AS FLOAT) = {_STORED} "
            f"THEN ROUND({_STORED}, {digits - 1} - FLOOR(LOG10(ABS({_STORED})))) "
            for digits in (7, 8)
        )
    } ELSE ROUND({_STORED}, 8 - FLOOR(LOG10(ABS({_STORED})))) END"""


class CanonicalUuid(_Template):
    """The 32 digits of a UUID in lower case, from any spelling of it."""

    inherit_cache = True
    type = sa.Text()
    template = "LOWER(REPLACE(REPLACE(REPLACE(CAST({text} AS CHAR), '-', ''), '{{', ''), '}}', ''))"


class _Bytes(_Template):
    inherit_cache = True
    type = sa.types.NullType()
    template = "IF(CHARSET({text}) = 'binary', CAST({text} AS BINARY), CAST(CAST({text} AS CHAR) AS BINARY))"


class _Instant(_Template):
    """CONVERT_TZ leaves instants outside 1970 to 2038 as they are, so the offset is taken off in minutes."""

    inherit_cache = True
    type = mysql.DATETIME(fsp=6)
    template = f"""TIMESTAMPADD(MINUTE,
 IF({_ZONE} = '', 0, IF(LEFT({_ZONE}, 1) = '-', 1, -1)
  * (60 * SUBSTRING({_ZONE}, 2, 2) + IF(CHAR_LENGTH({_ZONE}) = 6, SUBSTRING({_ZONE}, 5, 2), 0))),
 CAST(CONCAT(SUBSTRING({{text}}, 1, 10), ' ', IF(CHAR_LENGTH({{text}}) = 10, '00:00:00', SUBSTRING({{text}}, 12, 8)),
  REGEXP_SUBSTR({_TAIL}, '[.][0-9]+')) AS DATETIME(6)))"""


class _JsonElements(_Template):
    """The elements of an array: ``value``, the element as text, and ``raw``, as JSON."""

    inherit_cache = True
    template = "JSON_TABLE({text}, '$[*]' COLUMNS (value LONGTEXT PATH '$', raw JSON PATH '$'))"


def _elements(column: sa.ColumnElement[Any]) -> sa.TableValuedAlias:
    sound = base.sound_json(column)
    array = sa.case((sa.func.json_type(sound) == "ARRAY", sound))
    return _JsonElements(array).table_valued("value", "raw")


def _exists(elements: sa.TableValuedAlias, where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    # A number or a nested array is no text, though it has one.
    is_text = sa.cast(elements.c.raw, sa.Text).like(base.text('"%'))
    return sa.select(sa.literal_column("1")).select_from(elements).where(is_text, where).exists()


def _member(column: sa.ColumnElement[Any], key: str) -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
    sound = base.sound_json(column)
    spelled = [sa.func.json_extract(sound, base.text(f'$."{one}"')) for one in _spellings(key)]
    found = sa.func.coalesce(*spelled) if len(spelled) > 1 else spelled[0]
    return found, sa.func.json_type(found)


def _spellings(key: str) -> list[str]:
    """How writers of JSON escape a name: MariaDB compares names as they are written."""
    plain, ascii_only = json.dumps(key, ensure_ascii=False)[1:-1], json.dumps(key)[1:-1]
    upper = re.sub(r"(?<=\\u)[0-9a-f]{4}", lambda digits: digits[0].upper(), ascii_only)
    forms = [plain, ascii_only, upper]
    return list(dict.fromkeys([*forms, *[form.replace("/", r"\/") for form in forms]]))


def _by_character(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.collate(sa.cast(text, sa.Text), "utf8mb4_bin")


def _matches(text: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    return _by_character(text).op("REGEXP", is_comparison=True)(base.text(pattern))


def _either_case(character: str) -> str:
    if character.isascii() and character.isalpha():
        return f"[{character.lower()}{character.upper()}]"
    return rf"\x{{{ord(character):x}}}"


def _fraction(value: Decimal) -> str:
    return format(value, "f").partition(".")[2]
