"""What the source database says of the tables of the catalog: columns, types, unique keys, row-level security.

The statements of an export answer whether rows can be read (``datasets``); what they would make of the values, and all
that is missing at once, the database's own catalog says.
"""

from __future__ import annotations

import difflib
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from export_pipeline.check.findings import Finding, Wanted, wrong
from export_pipeline.database.engine import create_engine
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.dialects.mariadb import BACKENDS as MARIADB
from export_pipeline.source.readers import Source
from export_pipeline.source.readers.errors import failure_of
from export_pipeline.source.readers.mariadb import reading_engine


@dataclass(frozen=True)
class Found:
    """What the database has of a table; ``types`` is None where it cannot be asked."""

    types: Mapping[str, TypeEngine[Any]] | None
    unique: tuple[frozenset[str], ...] = ()
    is_table: bool = False
    hidden: bool = False
    """Row-level security decides which rows this user sees."""
    problems: tuple[Finding, ...] = field(default=())

    def type_of(self, column: str) -> TypeEngine[Any] | None:
        """The type of a column; None if it has none, or is not there."""
        return (self.types or {}).get(column)

    def has(self, column: str) -> bool:
        """Whether the column is there, as far as can be known."""
        return self.types is None or column in self.types


class SourceTables:
    """The tables that the user of the source sees."""

    def __init__(self, connection: sa.Connection) -> None:
        # Types of extensions, such as geometry, are none of SQLAlchemy's.
        warnings.filterwarnings("ignore", "Did not recognize type", sa.exc.SAWarning)
        self._connection = connection
        self._inspector = sa.inspect(connection)

    def look(self, wanted: Wanted) -> Found:
        """What there is of a table; problems say what is missing."""
        schema, _, table = wanted.table.rpartition(".")
        try:
            columns = self._inspector.get_columns(table, schema or None)
        except sa.exc.NoSuchTableError:
            return Found({}, problems=(self._no_table(wanted, schema or None),))
        except sa.exc.SQLAlchemyError:
            # MariaDB describes a view to whom it grants SHOW VIEW; reading it needs no such right.
            return Found(None)
        types = self._named(wanted, {str(column["name"]): column["type"] for column in columns})
        return Found(
            types,
            self._unique(table, schema or None),
            is_table=table in self._inspector.get_table_names(schema or None),
            hidden=self._hidden(wanted.table),
            problems=tuple(_missing(wanted, types)),
        )

    def encoding(self) -> str:
        """What the server keeps text in, where that may be another than UTF-8."""
        if self._connection.dialect.name != "postgresql":
            return ""
        return str(self._connection.exec_driver_sql("SHOW server_encoding").scalar_one())

    def _named(self, wanted: Wanted, types: dict[str, TypeEngine[Any]]) -> dict[str, TypeEngine[Any]]:
        """By the names of the catalog, where the database holds names to be the same in either case."""
        if self._connection.dialect.name == "postgresql":
            return types
        by_lower = {name.lower(): found for name, found in types.items()}
        return types | {name: by_lower[name.lower()] for name in wanted.columns if name.lower() in by_lower}

    def _no_table(self, wanted: Wanted, schema: str | None) -> Finding:
        names = [*self._inspector.get_table_names(schema), *self._inspector.get_view_names(schema)]
        hint = _did_you_mean(wanted.table.rpartition(".")[2], names)
        return wrong(
            wanted.place,
            f"There is no table or view {wanted.table} that the user of EXPORT_SOURCE_URL can see.{hint} "
            "Correct the catalog, or grant the user USAGE on the schema.",
        )

    def _unique(self, table: str, schema: str | None) -> tuple[frozenset[str], ...]:
        ask: tuple[Callable[[], Iterable[Iterable[str | None]]], ...] = (
            lambda: [self._inspector.get_pk_constraint(table, schema)["constrained_columns"]],
            lambda: [one["column_names"] for one in self._inspector.get_unique_constraints(table, schema)],
            lambda: [one["column_names"] for one in self._inspector.get_indexes(table, schema) if one["unique"]],
        )
        found: list[frozenset[str]] = []
        for one in ask:
            with _not_known():
                found += [frozenset(str(name) for name in names) for names in one()]
        return tuple(names for names in found if names)

    def _hidden(self, table: str) -> bool:
        if self._connection.dialect.name != "postgresql":
            return False
        active = sa.func.row_security_active(sa.func.to_regclass(sa.literal(_quoted(table))))
        try:
            return bool(self._connection.execute(sa.select(active)).scalar_one())
        except sa.exc.SQLAlchemyError:
            return False  # of a schema that the user may not look into; the statements say so


@contextmanager
def open_tables(source: Source) -> Iterator[SourceTables]:
    """Look into the source with a connection of its own, in which a refused statement ends no other.

    Raises:
        ExportFailure: it could not be opened.
    """
    try:
        connection = _engine(source).connect()
    except (ModuleNotFoundError, sa.exc.NoSuchModuleError):
        failure = ExportFailure(
            FailureCode.SOURCE_REFUSED,
            "The database driver that EXPORT_SOURCE_URL names is not installed. For MariaDB run in your clone: "
            "pip install '.[mariadb]'.",
        )
    except sa.exc.SQLAlchemyError as error:
        failure = failure_of(error)
    else:
        with connection:
            yield SourceTables(connection)
        return
    raise failure


def _engine(source: Source) -> sa.Engine:
    url = sa.make_url(source.url)
    if source.backend == "postgresql":
        return create_engine(source.url).execution_options(isolation_level="AUTOCOMMIT")
    if source.backend in MARIADB:
        return reading_engine(url, source.statement_timeout_seconds)
    if source.backend == "sqlite":
        uri = f"file:{quote(url.database or '')}?mode=ro"  # as the readers: a file that is not there is not made
        return sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sa.NullPool)
    return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)


def _missing(wanted: Wanted, types: Mapping[str, Any]) -> Iterator[Finding]:
    for column, place in wanted.columns.items():
        if column not in types:
            hint = _did_you_mean(column, types)
            yield wrong(place, f"Table {wanted.table} has no column {column}.{hint} Correct the catalog, or the view.")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))


@contextmanager
def _not_known() -> Iterator[None]:
    """What a database does not tell, or to this user, is no fault."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, NotImplementedError):
        return
