"""Column types and functions that mean the same on PostgreSQL and SQLite, and JSON that refuses repeated keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine

from export_pipeline.failures import abbreviate


class RepeatedKeyError(ValueError):
    """An object has a key twice; the message names it. Python keeps only the last value: a filter would be lost."""


class UnreadableJson(str):
    """Stands for a stored document that cannot be read; the text says why.

    It is neither an object nor a list, so that every reader refuses it as it refuses JSON of a wrong shape.
    """

    __slots__ = ()


def read_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON.

    Raises:
        RepeatedKeyError: a key is given twice.
        ValueError: not JSON; NaN and Infinity are refused too.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse)


def read_stored(text: str | bytes) -> Any:
    """Parse the JSON of a column without raising.

    PostgreSQL's ``jsonb`` has each key once; SQLite keeps the text as written. Both keep documents that are nested more
    deeply than Python reads, and numbers with more digits than it converts.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RepeatedKeyError as error:
        return UnreadableJson(error)
    except RecursionError:
        return UnreadableJson("is nested too deeply")
    except ValueError:
        return UnreadableJson("is not JSON that can be read")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKeyError(f"has the key {abbreviate(key)} twice; give it once")
    return found


def _refuse(_constant: str) -> None:
    raise ValueError


# SQLite's STRICT tables know INTEGER, REAL and TEXT; `tables` adds a CHECK for each of these types.


class SqliteInstant(sqlite.DATETIME):
    """A date and time as text."""


_INSTANT = SqliteInstant()  # type: ignore[no-untyped-call]


class SqliteJson(sqlite.JSON):
    """JSON as text."""


class SqliteBoolean(sa.Boolean):
    """0 or 1."""


@compiles(SqliteInstant)
@compiles(SqliteJson)
def _text(_type: TypeEngine[Any], _compiler: SQLCompiler, **_options: Any) -> str:
    return "TEXT"


@compiles(SqliteBoolean)
def _integer(_type: TypeEngine[Any], _compiler: SQLCompiler, **_options: Any) -> str:
    return "INTEGER"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: ``timestamptz`` on PostgreSQL, ``YYYY-MM-DD HH:MM:SS.ffffff`` UTC text on SQLite."""

    impl = sa.DateTime(timezone=True).with_variant(_INSTANT, "sqlite")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Accept only aware datetimes, so that no wall clock is stored as an instant."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return aware datetimes in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UuidText(sa.Text):
    """A UUID as hyphenated text; ``uuid_text`` is it in a column."""


def uuid_text() -> TypeEngine[str]:
    """A UUID as hyphenated text in Python: ``uuid`` on PostgreSQL, text elsewhere."""
    return UuidText().with_variant(postgresql.UUID(as_uuid=False), "postgresql")


def wall_clock() -> TypeEngine[datetime]:
    """A date and time without a time zone."""
    return sa.DateTime().with_variant(_INSTANT, "sqlite")


def boolean() -> TypeEngine[bool]:
    """True or false."""
    return sa.Boolean().with_variant(SqliteBoolean(), "sqlite")


def json_type() -> TypeEngine[Any]:
    """JSON: ``jsonb`` on PostgreSQL, checked text on SQLite. SQL NULL and JSON null both read as None."""
    jsonb, text = postgresql.JSONB(none_as_null=True), SqliteJson(none_as_null=True)
    return sa.JSON(none_as_null=True).with_variant(jsonb, "postgresql").with_variant(text, "sqlite")


def big_integer() -> TypeEngine[int]:
    """A 64-bit integer; on SQLite INTEGER, the only type that it accepts for an auto-increment key."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _compile(function: type[GenericFunction[Any]], dialect: str, text: str) -> None:
    """The function is ``text`` in the SQL of a database; ``{}`` are its arguments."""

    @compiles(function, dialect)
    def compiled(element: GenericFunction[Any], compiler: SQLCompiler, **options: Any) -> str:
        return text.format(compiler.process(element.clauses, **options))


class generated_uuid(GenericFunction[str]):  # noqa: N801 - named like a SQL function
    """Database-side default: a random (version 4) UUID."""

    type = uuid_text()
    inherit_cache = True


class current_instant(GenericFunction[datetime]):  # noqa: N801 - named like a SQL function
    """Database-side default: now, as ``UtcDateTime`` stores it."""

    type = UtcDateTime()
    inherit_cache = True


class instant_after(GenericFunction[datetime]):  # noqa: N801 - named like a SQL function
    """The database's clock plus some seconds. Leases are compared with it, because the clocks of machines differ.

    It is constant within a statement (``current_instant`` advances from row to row), so an index on instants is used.
    """

    type = UtcDateTime()
    inherit_cache = True


_compile(generated_uuid, "postgresql", "gen_random_uuid()")
_compile(
    generated_uuid,
    "sqlite",
    "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
    "substr('89ab', abs(random() % 4) + 1, 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))",
)
_compile(current_instant, "postgresql", "clock_timestamp()")
_compile(current_instant, "sqlite", "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')")
_AFTER = "(statement_timestamp() + make_interval(secs => CAST({} AS double precision)))"
_compile(instant_after, "postgresql", _AFTER)
_compile(instant_after, "sqlite", "(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {})) || '000')")
