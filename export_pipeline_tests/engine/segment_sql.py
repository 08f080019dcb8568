"""Random predicates of segment queries: as SQL, and as what they are true of, by SQL's three-valued logic in Python.

A truth is True, False or None for unknown.
"""

from __future__ import annotations

import operator as python
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from export_pipeline_tests.engine.people import COLORS, EMAILS, JOINED, LISTS, NAMES, lists_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Predicate:
    """SQL, and its truth for a row."""

    sql: str
    truth: Callable[[Row], bool | None] = field(repr=False)


def quoted(text: str) -> str:
    """A text as Snowflake's SQL has it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def age(row: Row) -> Fraction | None:
    value = (row["custom_fields"] or {}).get("age")
    if isinstance(value, str):
        return Fraction(value) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value) else None
    return Fraction(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def color(row: Row) -> str | None:
    value = (row["custom_fields"] or {}).get("color")
    return "true" if value is True else None if value is None else str(value)


def joined(row: Row) -> datetime | None:
    return JOINED[(row["custom_fields"] or {}).get("Joined")]


def domains(row: Row) -> set[str]:
    further = row["alternate_emails"] if isinstance(row["alternate_emails"], list) else []
    addresses = [each for each in [row["email"], *further] if isinstance(each, str) and "@" in each]
    return {each.rpartition("@")[2].lower() for each in addresses}


TEXT_COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "first_name": lambda row: row["name"],
    "c.EMAIL": lambda row: row["email"],
    "color": color,
}
INSTANT_COLUMNS: dict[str, Callable[[Row], datetime | None]] = {
    "created_at": lambda row: row["created_at"],
    "Updated_At": lambda row: row["updated_at"],
    "joined": joined,
}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": python.eq,
    "!=": python.ne,
    "<>": python.ne,
    "<": python.lt,
    "<=": python.le,
    ">": python.gt,
    ">=": python.ge,
}
ANY_TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=6)
TEXTS = st.sampled_from([text for text in [*NAMES, *COLORS, *EMAILS] if isinstance(text, str)]) | ANY_TEXT
_MOMENTS = [moment for moment in JOINED.values() if moment] + [datetime(2026, 3, 14, 12, n, tzinfo=UTC) for n in (3, 9)]
INSTANTS = st.sampled_from(_MOMENTS) | st.datetimes(
    datetime(2026, 2, 27),  # noqa: DTZ001
    datetime(2026, 4, 2),  # noqa: DTZ001
    timezones=st.just(UTC),
)
PATTERNS = st.lists(
    st.sampled_from(["%", "_", "a", "A", "o'", "\\", "*", "?", "[", "日", "@", "example", "%%"]), max_size=4
)


def compared(name: str, read: Callable[[Row], Any], sign: str, value: Any, literal: str, *, turned: bool) -> Predicate:
    def truth(row: Row) -> bool | None:
        actual = read(row)
        if actual is None:
            return None
        return COMPARE[sign](value, actual) if turned else COMPARE[sign](actual, value)

    return Predicate(f"{literal} {sign} {name}" if turned else f"{name} {sign} {literal}", truth)


def like(name: str, read: Callable[[Row], Any], pattern: str) -> Predicate:
    signs = {"%": ".*", "_": "."}
    expression = re.compile("".join(signs.get(sign) or re.escape(sign) for sign in pattern), re.DOTALL)

    def truth(row: Row) -> bool | None:
        actual = read(row)
        return None if actual is None else expression.fullmatch(actual) is not None

    return Predicate(f"{name} LIKE {quoted(pattern)}", truth)


def one_of(name: str, read: Callable[[Row], Any], values: list[Any], literals: list[str]) -> Predicate:
    def truth(row: Row) -> bool | None:
        actual = read(row)
        return None if actual is None else actual in values

    return Predicate(f"{name} IN ({', '.join(literals)})", truth)


def between(name: str, read: Callable[[Row], Any], low: Any, high: Any, literals: list[str]) -> Predicate:
    def truth(row: Row) -> bool | None:
        actual = read(row)
        return None if actual is None else low <= actual <= high

    return Predicate(f"{name} BETWEEN {literals[0]} AND {literals[1]}", truth)


def is_null(name: str, read: Callable[[Row], Any]) -> Predicate:
    return Predicate(f"{name} IS NULL", lambda row: read(row) is None)


@st.composite
def comparisons(
    draw: st.DrawFn,
    columns: dict[str, Callable[[Row], Any]],
    values: st.SearchStrategy[Any],
    literal: Callable[[Any], str],
) -> Predicate:
    """A column of one type, compared with constants or with another column of it."""
    name = draw(st.sampled_from(sorted(columns)))
    read = columns[name]
    shape = draw(st.sampled_from(["compare", "compare", "in", "between", "null", "columns"]))
    if shape == "in":
        several = draw(st.lists(values, min_size=1, max_size=3))
        return one_of(name, read, several, [literal(value) for value in several])
    if shape == "between":
        low, high = draw(values), draw(values)
        return between(name, read, low, high, [literal(low), literal(high)])
    if shape == "null":
        return is_null(name, read)
    sign = draw(st.sampled_from(sorted(COMPARE)))
    if shape == "columns":
        other = draw(st.sampled_from(sorted(columns)))
        return sides(name, read, sign, other, columns[other])
    value = draw(values)
    return compared(name, read, sign, value, literal(value), turned=draw(st.booleans()))


def sides(name: str, read: Callable[[Row], Any], sign: str, other: str, read_other: Callable[[Row], Any]) -> Predicate:
    def truth(row: Row) -> bool | None:
        one, two = read(row), read_other(row)
        return None if one is None or two is None else COMPARE[sign](one, two)

    return Predicate(f"{name} {sign} {other}", truth)


def remainder(one: Fraction, two: Fraction) -> Fraction:
    quotient = one / two
    return one - two * (abs(quotient).__floor__() * (1 if quotient > 0 else -1))


_CALCULATE: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": python.add,
    "-": python.sub,
    "*": python.mul,
    "/": python.truediv,
    "%": remainder,
}


def calculated(sign: str, left: Predicate, right: Predicate) -> Predicate:
    """Arithmetic; ``truth`` is its value here."""

    def value(row: Row) -> Any:
        one, two = left.truth(row), right.truth(row)
        if one is None or two is None or (sign in "/%" and two == 0):
            return None
        return _CALCULATE[sign](Fraction(one), Fraction(two))

    return Predicate(f"({left.sql} {sign} {right.sql})", value)


def minus(one: Predicate) -> Predicate:
    """The same with its sign changed; ``truth`` is its value here."""

    def value(row: Row) -> Any:
        number = one.truth(row)
        return None if number is None else -number

    return Predicate(f"-{one.sql}", value)


def constant(halves: int) -> Predicate:
    return Predicate(
        str(Fraction(halves, 2).numerator / Fraction(halves, 2).denominator), lambda row: Fraction(halves, 2)
    )


AGE = Predicate("age", age)
# Every value is a binary fraction, exact on either database; a quotient is not, so nothing is calculated with it.
_SIDES = st.just(AGE) | st.integers(-9, 9).map(constant)
_SUMS = st.builds(calculated, st.sampled_from("+-*"), st.just(AGE), _SIDES) | st.just(AGE).map(minus)
NUMBERS = (
    st.just(AGE)
    | _SUMS
    | st.builds(calculated, st.sampled_from("/%"), _SUMS, _SIDES)
    | st.builds(calculated, st.sampled_from("/%"), _SIDES, _SUMS)
)


@st.composite
def numbers(draw: st.DrawFn) -> Predicate:
    """Arithmetic compared with a constant, or with the field."""
    left = draw(NUMBERS)
    sign = draw(st.sampled_from(sorted(COMPARE)))
    right = draw(st.integers(-9, 30).map(constant))
    return draw(st.sampled_from([sides(left.sql, left.truth, sign, right.sql, right.truth), is_null("age", age)]))


def contains(array: str, value: str, truth: Callable[[Row], bool | None], *, turned: bool, function: str) -> Predicate:
    given = [quoted(value), array] if turned else [array, quoted(value)]
    return Predicate(f"{function}({', '.join(given)})", truth)


@st.composite
def arrays(draw: st.DrawFn) -> Predicate:
    """Arrays: lists, addresses, domains."""
    how: dict[str, Any] = {
        "turned": draw(st.booleans()),
        "function": draw(st.sampled_from(["CONTAINS", "ARRAY_CONTAINS"])),
    }
    which = draw(st.sampled_from(["list_ids", "email_domains", "alternate_emails"]))
    if which == "list_ids":
        one = draw(st.sampled_from([*LISTS["acme"], *LISTS["other"]]))
        return contains(which, one, lambda row: one in lists_of(row), **how)
    if which == "email_domains":
        domain = draw(st.sampled_from(["example.com", "EXAMPLE.com", "y.org", "%", "", "y_org"]))
        return contains(which, domain, lambda row: domain.lower() in domains(row), **how)
    value = draw(st.sampled_from(["ana@Example.com", "x@y.org", "o'b@example.com", "%", "5"]))

    def truth(row: Row) -> bool | None:
        held = row["alternate_emails"]
        return None if held is None else isinstance(held, list) and value in held

    return contains(which, value, truth, **how)


@st.composite
def likes(draw: st.DrawFn) -> Predicate:
    name = draw(st.sampled_from(sorted(TEXT_COLUMNS)))
    return like(name, TEXT_COLUMNS[name], "".join(draw(PATTERNS)))


def both(one: bool | None, two: bool | None) -> bool | None:
    return False if one is False or two is False else None if one is None or two is None else True


def either(one: bool | None, two: bool | None) -> bool | None:
    return True if one is True or two is True else None if one is None or two is None else False


def joined_by(word: str, one: Predicate, two: Predicate) -> Predicate:
    combine = both if word == "AND" else either
    return Predicate(f"({one.sql} {word} {two.sql})", lambda row: combine(one.truth(row), two.truth(row)))


def denied(one: Predicate) -> Predicate:
    def truth(row: Row) -> bool | None:
        held = one.truth(row)
        return None if held is None else not held

    return Predicate(f"NOT {one.sql}", truth)


LEAVES = st.one_of(
    comparisons(TEXT_COLUMNS, TEXTS, quoted),
    comparisons(INSTANT_COLUMNS, INSTANTS, lambda moment: quoted(moment.isoformat())),
    numbers(),
    arrays(),
    likes(),
)
PREDICATES: st.SearchStrategy[Predicate] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.builds(joined_by, st.sampled_from(["AND", "OR"]), inner, inner), inner.map(denied)),
    max_leaves=5,
)
