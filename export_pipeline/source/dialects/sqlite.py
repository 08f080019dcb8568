"""SQLite keeps instants as text and has no way to read one or a number out of text without guessing: here is one.

The expressions are templates: a segment may have hundreds of them, and SQLAlchemy takes seconds to write as many trees.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from export_pipeline.source.dialects import base

_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_AS_STORED = f"{_DAY}[T ]??:??:??.?????[0-9]"
"""UTC with six decimals and no offset: nothing to work out."""
# Date and time to the second; what follows; of that, the offset, and the fraction with its point.
_WHOLE = "replace(substr({text}, 1, 19), 'T', ' ')"
_TAIL = "substr({text}, 20)"
_ZONE = f"ltrim({_TAIL}, '.0123456789')"
_FRACTION = f"substr({_TAIL}, 1, length({_TAIL}) - length({_ZONE}))"
_DECIMALS = f"substr({_FRACTION}, 2)"
# SQLite's own functions cannot judge: they take 31 February, 'now' and Julian days, and drop microseconds.
# Without '+0 days', a change to make, SQLite before 3.46 gives 31 February back as it came.
_INSTANT = f"""CASE WHEN {{text}} GLOB '{_DAY}*'
 AND date(substr({{text}}, 1, 10), '+0 days') = substr({{text}}, 1, 10)
 AND (length({{text}}) = 10
  OR {_WHOLE} GLOB '{_DAY} [0-2][0-9]:[0-5][0-9]:[0-5][0-9]' AND substr({{text}}, 12, 2) < '24')
 AND ({_FRACTION} = '' OR {_FRACTION} GLOB '.[0-9]*' AND ltrim({_DECIMALS}, '0123456789') = '')
 AND ({_ZONE} IN ('', 'Z') OR substr({_ZONE}, 2, 2) <= '14'
  AND ({_ZONE} GLOB '[+-][01][0-9]' OR {_ZONE} GLOB '[+-][01][0-9]:[0-5][0-9]'))
THEN strftime('%Y-%m-%d %H:%M:%S', {_WHOLE} || {_ZONE} || CASE length({_ZONE}) WHEN 3 THEN ':00' ELSE '' END)
 || '.' || substr({_DECIMALS} || '000000', 1, 6) END"""
# The fewest digits that read as the same number: a cast gives 15 on some builds of the library, 17 on others.
_REAL = "".join(
    f" WHEN CAST(printf('%!.{digits}g', {{text}}) AS REAL) = {{text}} THEN printf('%!.{digits}g', {{text}})"
    for digits in (15, 16)
)
_DIGITS = "ltrim(CAST({text} AS TEXT), '+-')"
_POINT = f"instr({_DIGITS} || '.', '.')"
_INTEGER = f"ltrim(substr({_DIGITS}, 1, {_POINT} - 1), '0')"


class _Template(sa.sql.functions.FunctionElement[Any]):
    """A column in the places of a template. A bound value must not stand there: it would need to be bound as often."""

    template = ""

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        super().__init__(column)


@compiles(_Template, "sqlite")
def _written(element: _Template, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({element.template.format(text=compiler.process(element.clauses.clauses[0], **kw))})"


class StoredInstant(_Template):
    """A timestamp column's ISO 8601 text as ``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC, which sorts as the instants do.

    No offset means UTC, as it does when the column is read; null if the text is no date, with a time to the second
    or finer and an offset or without.
    """

    inherit_cache = True
    type = sa.Text()
    template = f"CASE WHEN {{text}} GLOB '{_AS_STORED}' THEN replace({{text}}, 'T', ' ') ELSE {_INSTANT} END"


class CustomInstant(_Template):
    """As ``StoredInstant``, but of the texts alone that ``operands`` takes on PostgreSQL too."""

    inherit_cache = True
    type = sa.Text()
    template = f"""CASE WHEN {{text}} GLOB '[1-9]*' AND {{text}} NOT GLOB '*.{"[0-9]" * 7}*' THEN {_INSTANT} END"""


class AsText(_Template):
    """A value as the text that files show. It compares by code point, whatever the column's collation."""

    inherit_cache = True
    type = sa.Text()
    template = f"""CASE WHEN typeof({{text}}) = 'real' THEN CASE{_REAL} ELSE printf('%!.17g', {{text}}) END
 ELSE CAST({{text}} AS TEXT) END"""


class DecimalKey(_Template):
    """The digits of a decimal: of decimals of one sign, the greater one has the greater text (``decimal_key``).

    Null where the digits are no more than those of a double: for REAL values, and with an exponent.
    """

    inherit_cache = True
    type = sa.Text()
    template = f"""CASE WHEN typeof({{text}}) <> 'real' AND {_DIGITS} NOT GLOB '*[^0-9.]*'
 THEN printf('%05d', length({_INTEGER})) || {_INTEGER} || '.' || rtrim(substr({_DIGITS}, {_POINT} + 1), '0') END"""


def decimal_key(value: Decimal) -> str:
    """``DecimalKey`` of a value."""
    integer, _, fraction = format(abs(value), "f").partition(".")
    integer = integer.lstrip("0")
    return f"{len(integer):05d}{integer}.{fraction.rstrip('0')}"


class CanonicalUuid(_Template):
    """The 32 digits of a UUID in lower case, from any spelling of it."""

    inherit_cache = True
    type = sa.Text()
    template = "lower(replace(replace(replace(CAST({text} AS TEXT), '-', ''), '{{', ''), '}}', ''))"


class Number(_Template):
    """Text as a number; null unless it is digits, with a minus and a decimal point at most."""

    inherit_cache = True
    type = sa.Float()
    template = f"""CASE WHEN length({{text}}) <= {base.NUMBER_LENGTH}
 AND ({{text}} GLOB '[0-9]*' OR {{text}} GLOB '-[0-9]*') AND {{text}} GLOB '*[0-9]'
 AND substr({{text}}, 2) NOT GLOB '*[^0-9.]*' AND {{text}} NOT GLOB '*.*.*'
THEN CAST({{text}} AS REAL) END"""


def listed(values: Iterable[str | int | float]) -> sa.Select[Any]:
    """Values to be ``in_``: one bound value, however many they are."""
    each = sa.func.json_each(base.text(json.dumps(list(values)))).table_valued("value")
    return sa.select(each.c.value)


def like(text: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    """LIKE that minds case: SQLite's own does not, its GLOB does."""
    signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    given = "".join(signs.get(sign, sign) for sign in pattern)
    return text.op("GLOB", is_comparison=True)(base.text(given))


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_ .-]+")
"""Every writer of JSON spells such a name alike. SQLite before 3.45 compares others as they are written."""


def member(sound: sa.ColumnElement[Any], key: str) -> sa.TableValuedAlias:
    """A member of a JSON object as a row, so that it is looked up once however often an expression names it."""
    plain = sa.func.json_array(sound.op("->")(base.text(f'$."{key}"')))
    return sa.func.json_each(plain if _PLAIN_KEY.fullmatch(key) else sound).table_valued(
        "key", "type", "value", "fullkey"
    )


def of_member(
    value: sa.ColumnElement[Any], found: sa.TableValuedAlias, key: str, table: sa.TableClause
) -> sa.ColumnElement[Any]:
    """An expression over ``member``'s row, as a value of the table's row."""
    select = sa.select(value).select_from(found)
    if not _PLAIN_KEY.fullmatch(key):
        select = select.where(found.c.key == base.text(key))  # of several, SQLite takes the first
    return select.correlate(table).scalar_subquery()


def member_text(sound: sa.ColumnElement[Any], key: str, table: sa.TableClause) -> sa.ColumnElement[Any]:
    """A member of a JSON object as text: numbers with their digits, true and false as words, null if there is none."""
    if _PLAIN_KEY.fullmatch(key):
        path = base.text(f'$."{key}"')
        kind, value = sa.func.json_type(sound, path), sa.func.json_extract(sound, path)
        # json_extract gives 1 for true and reads numbers as floats; the JSON text keeps both as they are.
        return sa.case((kind == "null", sa.null()), (kind == "text", value), else_=sound.op("->")(path))
    found = member(sound, key)
    text = sa.case(
        (found.c.type == "null", sa.null()),
        (found.c.type == "text", found.c.value),
        (sa.or_(found.c.type == "true", found.c.type == "false"), found.c.type),
        # SQLite before 3.45 does not find a name with a quote by its own path.
        else_=sa.func.coalesce(sound.op("->")(found.c.fullkey), AsText(found.c.value)),
    )
    return of_member(text, found, key, table)


def looked_up(select: sa.Select[Any]) -> sa.FromClause:
    """Rows that an outer join finds by an index of its own, if what they are joined to ``seems_many``.

    SQLite makes that index only where it expects many rows on both sides. It guesses a handful and reads all of them
    for each row instead, which takes hours. So it is shown rows that never come, and that it cannot but count as many.
    """
    none = _none_of_many(*[sa.null() for _ in select.selected_columns])
    return sa.union_all(select, none).cte().prefix_with("MATERIALIZED", dialect="sqlite")


def seems_many(table: sa.FromClause) -> sa.FromClause:
    """The rows of a table, which SQLite takes for many more than they are (``looked_up``)."""
    one: sa.ColumnElement[int] = sa.literal_column("1")
    return table.outerjoin(sa.union_all(sa.select(one), _none_of_many(one)).subquery(), sa.true())


def _none_of_many(*columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    empty = [sa.func.json_each(sa.literal_column("'[]'")).table_valued("value") for _ in range(4)]
    return sa.select(*columns).select_from(*empty)
