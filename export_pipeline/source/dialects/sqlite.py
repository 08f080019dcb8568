"""SQLite's SQL. SQLite stores instants as text and reads neither them nor numbers out of text without guessing.

The expressions are templates: see ``base.Template``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters.tree import Scalar
from export_pipeline.source.dialects.base import (
    COMPARE,
    LARGEST,
    NUMBER_LENGTH,
    UPWARDS,
    Bool,
    Dialect,
    Expression,
    Template,
    exists,
    json_array,
    sound_json,
    text,
)
from export_pipeline.source.dialects.postgresql import ASCII_LOWER

_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_AS_STORED = f"{_DAY}[T ]??:??:??.?????[0-9]"
"""UTC with six decimals and no offset: nothing to compute."""
# Date and time to the second; what follows; of that, the offset, and the fraction with its point.
_WHOLE = "replace(substr({text}, 1, 19), 'T', ' ')"
_TAIL = "substr({text}, 20)"
_ZONE = f"ltrim({_TAIL}, '.0123456789')"
_FRACTION = f"substr({_TAIL}, 1, length({_TAIL}) - length({_ZONE}))"
_DECIMALS = f"substr({_FRACTION}, 2)"
# SQLite's own functions cannot validate: they take 31 February, 'now' and Julian days, and drop microseconds.
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
# A timestamp column's ISO 8601 text as YYYY-MM-DD HH:MM:SS.ffffff in UTC, which sorts as the instants do. No offset
# means UTC, as when the column is read. Null unless the text is a date, with a time to the second or finer and an
# offset or without.
_STORED_INSTANT = f"(CASE WHEN {{text}} GLOB '{_AS_STORED}' THEN replace({{text}}, 'T', ' ') ELSE {_INSTANT} END)"
# Only of the texts that base.INSTANT matches.
_CUSTOM_INSTANT = f"""(CASE WHEN {{text}} GLOB '[1-9]*' AND {{text}} NOT GLOB '*.{"[0-9]" * 7}*' THEN {_INSTANT} END)"""
# The fewest digits that read as the same number: a cast gives 15 on some builds of the library, 17 on others.
_REAL = "".join(
    f" WHEN CAST(printf('%!.{digits}g', {{text}}) AS REAL) = {{text}} THEN printf('%!.{digits}g', {{text}})"
    for digits in (15, 16)
)
_AS_TEXT = f"""(CASE WHEN typeof({{text}}) = 'real' THEN CASE{_REAL} ELSE printf('%!.17g', {{text}}) END
 ELSE CAST({{text}} AS TEXT) END)"""
_DIGITS = "ltrim(CAST({text} AS TEXT), '+-')"
_POINT = f"instr({_DIGITS} || '.', '.')"
_INTEGER = f"ltrim(substr({_DIGITS}, 1, {_POINT} - 1), '0')"
_DECIMAL_KEY = f"""(CASE WHEN typeof({{text}}) <> 'real' AND {_DIGITS} NOT GLOB '*[^0-9.]*'
 THEN printf('%05d', length({_INTEGER})) || {_INTEGER} || '.' || rtrim(substr({_DIGITS}, {_POINT} + 1), '0') END)"""
# The 32 digits in lower case, from any spelling of a UUID.
_CANONICAL_UUID = "(lower(replace(replace(replace(CAST({text} AS TEXT), '-', ''), '{', ''), '}', '')))"
# Null unless the text is digits, with a minus and a decimal point at most.
_NUMBER = f"""(CASE WHEN length({{text}}) <= {NUMBER_LENGTH}
 AND ({{text}} GLOB '[0-9]*' OR {{text}} GLOB '-[0-9]*') AND {{text}} GLOB '*[0-9]'
 AND substr({{text}}, 2) NOT GLOB '*[^0-9.]*' AND {{text}} NOT GLOB '*.*.*'
THEN CAST({{text}} AS REAL) END)"""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_ .-]+")
"""Every writer of JSON spells such a name alike. SQLite before 3.45 compares others as they are written."""


class _Sqlite(Dialect):
    supports_every_filter = True
    numeric = sa.Float()

    def read(self, source: Expression, kind: ColumnType) -> Expression:
        return _as_text(source) if kind in (ColumnType.TEXT, ColumnType.DECIMAL) else super().read(source, kind)

    def shown(self, source: Expression, kind: ColumnType) -> Expression:
        match kind:
            case ColumnType.TEXT:
                return _as_text(source)
            case ColumnType.TIMESTAMP:
                return Template(_STORED_INSTANT, source, sa.Text())
            case ColumnType.DECIMAL:
                return sa.cast(source, sa.Float)  # SQLite keeps exact decimals as text
            case ColumnType.BOOLEAN:
                return source != sa.literal_column("0")
            case ColumnType.UUID:
                return Template(_CANONICAL_UUID, source, sa.Text())
            case _:
                return source

    def exact_text(self, custom_text: Expression) -> Expression:
        return custom_text  # a text out of JSON has no collation

    def by_code_point(self, column: Expression) -> Expression:
        return sa.collate(sa.cast(column, sa.Text), "BINARY")

    def bound(self, value: Scalar) -> Expression:
        if isinstance(value, datetime):
            return super().bound(value.replace(tzinfo=None).isoformat(" ", "microseconds"))
        if isinstance(value, date):
            return super().bound(value.isoformat())
        return super().bound(float(value) if isinstance(value, Decimal) else value)

    def with_index(self, source: Expression, kind: ColumnType, values: Sequence[Scalar], exact: Bool) -> Bool:
        match kind:
            case ColumnType.TEXT:
                return sa.and_(source.in_(_listed(_texts_and_numbers(values))), exact)
            case ColumnType.DECIMAL:
                keys = _listed([_key_of(Decimal(str(value))) for value in values])
                return sa.and_(exact, sa.func.coalesce(_decimal_key(source).in_(keys), sa.true()))
            case _:
                return super().with_index(source, kind, values, exact)

    def compared_number(
        self, source: Expression, kind: ColumnType, operator: FilterOperator, value: Decimal, exact: Bool
    ) -> Bool:
        """Decimals as doubles, and by their digits where the doubles are equal."""
        if kind is not ColumnType.DECIMAL:
            return exact
        size, bound = self.shown(source, kind), self.bound(value)
        digits = [_decimal_key(source), text(_key_of(value))]
        # Of two negative numbers the one with the greater digits is less.
        by_digits = COMPARE[operator](*(reversed(digits) if value < 0 else digits))
        # No digits: they are those of the double.
        holds_for_equals = sa.false() if operator in (FilterOperator.GT, FilterOperator.LT) else sa.true()
        same = sa.func.coalesce(by_digits, holds_for_equals)
        equal = sa.and_(size == bound, same)
        if operator is FilterOperator.EQ:
            return equal
        return sa.or_(size > bound if operator in UPWARDS else size < bound, equal)

    def position(self, source: Expression, value: str) -> sa.ColumnElement[int]:
        return sa.func.instr(source, text(value), type_=sa.Integer())

    def like(self, source: Expression, shown: Expression, pattern: str) -> Bool:
        # SQLite's own LIKE ignores case, its GLOB does not.
        signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
        return shown.op("GLOB", is_comparison=True)(text("".join(signs.get(sign, sign) for sign in pattern)))

    def ends_with_domain(self, address: Expression, domain: str) -> Bool:
        end = "@" + domain.translate(ASCII_LOWER)
        return sa.func.substr(sa.func.lower(address), -len(end)) == text(end)

    def any_element(self, column: Expression, condition: Callable[[Expression], Bool]) -> Bool:
        sound = sound_json(column)
        array = sa.case((sa.func.json_type(sound) == "array", sound))
        elements = sa.func.json_each(array).table_valued("type", "value")
        return exists(elements, elements.c.type == "text", condition(elements.c.value))

    def custom_text(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        sound = sound_json(source)
        if _PLAIN_KEY.fullmatch(key):
            path = text(f'$."{key}"')
            kind, value = sa.func.json_type(sound, path), sa.func.json_extract(sound, path)
            # json_extract gives 1 for true and reads numbers as floats; the JSON text keeps both as they are.
            return sa.case((kind == "null", sa.null()), (kind == "text", value), else_=sound.op("->")(path))
        found = _member(sound, key)
        shown = sa.case(
            (found.c.type == "null", sa.null()),
            (found.c.type == "text", found.c.value),
            (sa.or_(found.c.type == "true", found.c.type == "false"), found.c.type),
            # SQLite before 3.45 does not find a name with a quote by its own path.
            else_=sa.func.coalesce(sound.op("->")(found.c.fullkey), _as_text(found.c.value)),
        )
        return _of_member(shown, found, key, table)

    def custom_number(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found = _member(sound_json(source), key)
        is_number = sa.or_(found.c.type == "integer", found.c.type == "real")
        of_text = Template(_NUMBER, found.c.value, sa.Float())
        number = sa.case((is_number, sa.cast(found.c.value, sa.Float)), (found.c.type == "text", of_text))
        return _of_member(number, found, key, table)

    def custom_instant(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found = _member(sound_json(source), key)
        instant = Template(_CUSTOM_INSTANT, found.c.value, sa.Text())
        return _of_member(sa.case((found.c.type == "text", instant)), found, key, table)

    def column_number(self, source: Expression, *, may_be_infinite: bool) -> Expression:
        double = self.number(source)
        is_finite = double.between(-LARGEST, LARGEST)
        return sa.case((is_finite, self.number(double))) if may_be_infinite else self.number(double)

    def remainder(self, left: Expression, right: Expression, divisor: Expression) -> Expression:
        # SQLite's % cuts both to integers first.
        return left - right * sa.cast(left / divisor, sa.BigInteger)

    def child_value(self, value: Expression) -> tuple[Expression, Expression]:
        as_text = _as_text(value)
        return as_text, as_text

    def gathered(self, ranked: sa.Subquery, within: Bool) -> sa.FromClause:
        """Rows that an outer join finds by a temporary index, if it joins them to ``parents``.

        SQLite builds that index only where it expects many rows on both sides. It guesses a handful and reads all of
        them for each row instead, which takes hours. So both sides contain rows that never come, and that SQLite must
        count as many.
        """
        # As a window, because an aggregate takes an order only from SQLite 3.44 on.
        window = sa.func.group_concat(sa.func.json_quote(ranked.c.value), ",").over(
            partition_by=ranked.c.parent, order_by=ranked.c.place, rows=(None, None)
        )
        windows = sa.select(ranked.c.parent, ranked.c.place, json_array(window)).where(within).subquery()
        first = sa.select(windows.c.parent, windows.c.listed).where(windows.c.place == 1)
        none = _none_of_many(*[sa.null() for _ in first.selected_columns])
        return sa.union_all(first, none).cte().prefix_with("MATERIALIZED", dialect="sqlite")

    def parents(self, table: sa.TableClause) -> sa.FromClause:
        one: sa.ColumnElement[int] = sa.literal_column("1")
        return table.outerjoin(sa.union_all(sa.select(one), _none_of_many(one)).subquery(), sa.true())


DIALECT = _Sqlite("sqlite")


def _as_text(value: Expression) -> Expression:
    """A value as the text that files show. It compares by code point, whatever the column's collation."""
    return Template(_AS_TEXT, value, sa.Text())


def _decimal_key(column: Expression) -> Expression:
    """The digits of a decimal: of decimals of one sign, the greater one has the greater text (``_key_of``).

    Null where the digits are those of a double: for REAL values, and with an exponent.
    """
    return Template(_DECIMAL_KEY, column, sa.Text())


def _key_of(value: Decimal) -> str:
    """``_decimal_key`` of a value."""
    integer, _, fraction = format(abs(value), "f").partition(".")
    integer = integer.lstrip("0")
    return f"{len(integer):05d}{integer}.{fraction.rstrip('0')}"


def _listed(values: Iterable[str | int | float]) -> sa.Select[Any]:
    """Values for ``in_``: one bound value, however many they are."""
    each = sa.func.json_each(text(json.dumps(list(values)))).table_valued("value")
    return sa.select(each.c.value)


def _texts_and_numbers(values: Sequence[Scalar]) -> Iterator[str | int | float]:
    """Texts, and the numbers that they spell: a column of SQLite without a type may hold either."""
    for value in values:
        yield (written := str(value))
        with suppress(ValueError):
            number = float(written)
            if math.isfinite(number):
                yield int(written) if written.lstrip("-").isdecimal() else number


def _member(sound: Expression, key: str) -> sa.TableValuedAlias:
    """A member of a JSON object as a row, so that it is looked up once however often an expression names it."""
    plain = sa.func.json_array(sound.op("->")(text(f'$."{key}"')))
    return sa.func.json_each(plain if _PLAIN_KEY.fullmatch(key) else sound).table_valued(
        "key", "type", "value", "fullkey"
    )


def _of_member(value: Expression, found: sa.TableValuedAlias, key: str, table: sa.TableClause) -> Expression:
    """An expression over ``_member``'s row, as a value of the table's row."""
    select = sa.select(value).select_from(found)
    if not _PLAIN_KEY.fullmatch(key):
        select = select.where(found.c.key == text(key))  # of several, SQLite takes the first
    return select.correlate(table).scalar_subquery()


def _none_of_many(*columns: Expression) -> sa.Select[Any]:
    empty = [sa.func.json_each(sa.literal_column("'[]'")).table_valued("value") for _ in range(4)]
    return sa.select(*columns).select_from(*empty)
