"""Check the source database: the connection, and every dataset of the catalog, read as an export reads it.

Statements of no rows show whether an export could read. The database's own catalog shows everything that is missing at
once, and whether the values have the declared types.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from export_pipeline.catalog.loader import CatalogError, load_catalog
from export_pipeline.catalog.model import ChildList, Column, Dataset, ListTable
from export_pipeline.catalog.types import ColumnType
from export_pipeline.check import Finding, State, ok, warning, wrong
from export_pipeline.database.engine import create_engine
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import AllOf, AnyOf, OnList
from export_pipeline.settings import Settings
from export_pipeline.source import open_snapshot
from export_pipeline.source.dialects.mariadb import BACKENDS as MARIADB
from export_pipeline.source.lookups import find_custom_fields, read_texts
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source, source_of
from export_pipeline.source.readers.errors import failure_of, timed_out
from export_pipeline.source.readers.mariadb import reading_engine

_STATEMENT_SECONDS = 10.0
_FAMILIES: tuple[tuple[str, tuple[type[TypeEngine[Any]], ...]], ...] = (
    ("boolean", (sa.Boolean,)),
    ("integer", (sa.Integer, mysql.YEAR)),
    ("float", (sa.Float,)),
    ("decimal", (sa.Numeric,)),
    ("timestamp", (sa.DateTime,)),
    ("date", (sa.Date,)),
    ("uuid", (sa.Uuid,)),
    ("json", (sa.JSON,)),
    ("array", (sa.ARRAY,)),
    ("money", (postgresql.MONEY,)),
    ("oid", (postgresql.OID,)),
    ("bits", (postgresql.BIT, mysql.BIT)),
    ("bytes", (sa.LargeBinary, sa.BINARY, sa.VARBINARY)),
    ("text", (sa.String,)),
)
_PARSED = "text that is not a {} fails the export, and filters may fail; cast it in a view"
_READABLE: Mapping[ColumnType, Mapping[str, str]] = {
    ColumnType.INTEGER: {
        "integer": "",
        "decimal": "a value with a fraction fails the export; declare decimal",
        "text": _PARSED.format("number"),
    },
    ColumnType.FLOAT: {"float": "", "integer": "", "decimal": "", "text": _PARSED.format("number")},
    ColumnType.DECIMAL: {
        "decimal": "",
        "integer": "",
        "float": "its digits are those of a binary number; declare float",
        "text": _PARSED.format("number"),
    },
    ColumnType.BOOLEAN: {"boolean": "", "integer": "values other than 0 and 1 fail the export, and filters may fail"},
    ColumnType.TIMESTAMP: {
        "timestamp": "",
        "date": "it is exported as midnight in UTC; declare date",
        "text": _PARSED.format("time"),
    },
    ColumnType.DATE: {"date": "", "text": _PARSED.format("date")},
    ColumnType.UUID: {"uuid": "", "text": ""},
    ColumnType.JSON: {"json": "", "text": ""},
}
"""The families of database types that a declared type can be read from, and what may go wrong. Text takes them all."""
_READABLE_ON_MARIADB: Mapping[tuple[ColumnType, str], str | None] = {
    (ColumnType.BOOLEAN, "integer"): "",  # it has no other boolean
    (ColumnType.DATE, "timestamp"): "a value with a time fails the export; cast it in a view",
    # MariaDB returns bytes as they are; PostgreSQL writes them as text.
    (ColumnType.TEXT, "bytes"): "bytes that are not UTF-8 fail the export; use HEX(column) in a view",
    (ColumnType.TEXT, "bits"): None,
}
_ADVICE = {
    "money": "Cast it to numeric in a view, and declare decimal",
    "oid": "Cast it to bigint in a view",
    "array": "Use to_jsonb(column) in a view",
    "bytes": "Write it as text in a view: encode(column, 'hex') on PostgreSQL, HEX(column) or BIN_TO_UUID(column)",
    "bits": "Cast it to an integer in a view",
}
_NEVER_ON_SQLITE: Mapping[str, frozenset[ColumnType]] = {
    "text": frozenset({ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.BOOLEAN}),
    "integer": frozenset({ColumnType.TIMESTAMP, ColumnType.DATE, ColumnType.UUID}),
    "float": frozenset({ColumnType.TIMESTAMP, ColumnType.DATE, ColumnType.UUID, ColumnType.BOOLEAN}),
    "bytes": frozenset(ColumnType),
}
"""A SQLite column holds values of any type; its affinity turns values of these declared types into something else."""


def family_of(found: TypeEngine[Any]) -> str:
    """The kind of a database's type, whatever the database calls it; ``other`` if the kind is unknown."""
    if isinstance(found, postgresql.DOMAIN):
        return family_of(found.data_type)
    return next((family for family, types in _FAMILIES if isinstance(found, types)), "other")


def judge(declared: ColumnType, found: TypeEngine[Any], backend: str) -> tuple[State, str]:
    """Whether a declared type can be read from a column of the database's type, and what to do if not."""
    family = family_of(found)
    name = "of a custom type" if isinstance(found, sa.types.NullType) else str(found).lower()
    mismatch = f"is {name} in the database and {declared} in the catalog"
    if backend == "sqlite":
        risk = None if declared in _NEVER_ON_SQLITE.get(family, ()) else ""
    elif backend in MARIADB and (declared, family) in _READABLE_ON_MARIADB:
        risk = _READABLE_ON_MARIADB[declared, family]
    else:
        risk = "" if declared is ColumnType.TEXT else _READABLE[declared].get(family)
    if risk == "":
        return State.OK, ""
    if risk is not None:
        return State.WARNING, f"{mismatch}: {risk}."
    advice = _ADVICE.get(family, "Correct the type in the catalog, or cast it in a view")
    # How the drivers of other databases return their types was not tried.
    is_known = backend in ("postgresql", "sqlite", *MARIADB)
    return State.WRONG if is_known else State.WARNING, f"{mismatch}. {advice}."


@dataclass(frozen=True)
class Wanted:
    """A table of the catalog, and the columns that a dataset uses of it; both with the place that declares them."""

    table: str
    place: str
    columns: Mapping[str, str]
    types: tuple[tuple[str, ColumnType, str], ...] = ()
    """The columns whose values are read as a declared type, with that type and the place."""


def wanted_by(dataset: Dataset) -> Iterator[Wanted]:
    """The tables of a dataset, its own first; their places begin with its name."""
    name = dataset.name
    types = [(column.source, column.type, f"{name}.columns.{column.name}") for column in dataset.columns]
    tenant = (dataset.tenant, ColumnType(dataset.tenant_type), f"{name}.tenant_type")
    columns = {dataset.tenant: f"{name}.tenant"} | {column: place for column, _, place in types}
    yield Wanted(dataset.table, f"{name}.table", columns, (tenant, *types))
    for child in dataset.children:
        place = f"{name}.children.{child.name}"
        values = (child.value, ColumnType.TEXT, f"{place}.value")
        yield _part(place, child, ("foreign_key", "value", "order_by", "tenant"), values)
    if dataset.lists is not None:
        yield _part(f"{name}.lists", dataset.lists, ("member", "list_id", "tenant"))
        yield _part(f"{name}.lists.lists", dataset.lists.lists, ("id", "name", "tenant"))
    if dataset.segments is not None:
        yield _part(f"{name}.segments", dataset.segments, ("id", "name", "tenant", "filter", "query_dsl"))
    if dataset.custom_fields is not None:
        yield _part(f"{name}.custom_fields", dataset.custom_fields, ("name", "field_type", "tenant"))


def _part(place: str, part: Any, keys: tuple[str, ...], *types: tuple[str, ColumnType, str]) -> Wanted:
    columns = {getattr(part, key): f"{place}.{key}" for key in keys if getattr(part, key)}
    if "id" in keys:
        types = ((part.id, ColumnType(part.id_type), f"{place}.id_type"),)
    return Wanted(part.table, place, columns, types)


@dataclass(frozen=True)
class Found:
    """What the database has of a table; ``types`` is None where the user may not describe it."""

    types: Mapping[str, TypeEngine[Any]] | None
    unique: tuple[frozenset[str], ...] = ()
    is_table: bool = False
    hides_rows: bool = False
    """Row-level security decides which rows this user sees."""
    problems: tuple[Finding, ...] = ()

    def type_of(self, column: str) -> TypeEngine[Any] | None:
        """The type of a column; None if it is missing or unknown."""
        return (self.types or {}).get(column)

    def has(self, column: str) -> bool:
        """Whether the column exists, as far as the user may know."""
        return self.types is None or column in self.types


class SourceTables:
    """The tables that the user of the source sees."""

    def __init__(self, connection: sa.Connection) -> None:
        # SQLAlchemy does not know the types of extensions, such as geometry.
        warnings.filterwarnings("ignore", "Did not recognize type", sa.exc.SAWarning)
        self._connection = connection
        self._is_postgresql = connection.dialect.name == "postgresql"
        self._inspector = sa.inspect(connection)

    def look(self, wanted: Wanted) -> Found:
        """What the database has of a table; ``problems`` name what is missing."""
        schema_name, _, table = wanted.table.rpartition(".")
        schema = schema_name or None
        try:
            columns = self._inspector.get_columns(table, schema)
        except sa.exc.NoSuchTableError:
            names = [*self._inspector.get_table_names(schema), *self._inspector.get_view_names(schema)]
            text = (
                f"There is no table or view {wanted.table} that the user of EXPORT_SOURCE_URL can see."
                f"{_did_you_mean(table, names)} Correct the catalog, or grant the user USAGE on the schema."
            )
            return Found({}, problems=(wrong(wanted.place, text),))
        except sa.exc.SQLAlchemyError:
            # MariaDB describes a view only to a user with SHOW VIEW; reading it needs no such right.
            return Found(None)
        types = {str(column["name"]): column["type"] for column in columns}
        if not self._is_postgresql:
            # Other databases ignore the case of column names: take the catalog's spelling.
            by_lower = {name.lower(): found for name, found in types.items()}
            types |= {name: by_lower[name.lower()] for name in wanted.columns if name.lower() in by_lower}
        return Found(
            types,
            self._unique(table, schema),
            is_table=table in self._inspector.get_table_names(schema),
            hides_rows=self._hides_rows(wanted.table),
            problems=tuple(_missing(wanted, types)),
        )

    def encoding(self) -> str:
        """The server's encoding of text, where it may differ from UTF-8."""
        return str(self._connection.exec_driver_sql("SHOW server_encoding").scalar_one()) if self._is_postgresql else ""

    def _unique(self, table: str, schema: str | None) -> tuple[frozenset[str], ...]:
        inspector, found = self._inspector, list[Iterable[str | None]]()
        # Not every database, or not every user, can list each of them.
        with suppress(sa.exc.SQLAlchemyError, NotImplementedError):
            found.append(inspector.get_pk_constraint(table, schema)["constrained_columns"])
        with suppress(sa.exc.SQLAlchemyError, NotImplementedError):
            found += [one["column_names"] for one in inspector.get_unique_constraints(table, schema)]
        with suppress(sa.exc.SQLAlchemyError, NotImplementedError):
            found += [one["column_names"] for one in inspector.get_indexes(table, schema) if one["unique"]]
        return tuple(frozenset(map(str, names)) for names in found if names)

    def _hides_rows(self, table: str) -> bool:
        if not self._is_postgresql:
            return False
        quoted = ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
        active = sa.func.row_security_active(sa.func.to_regclass(sa.literal(quoted)))
        try:
            return bool(self._connection.execute(sa.select(active)).scalar_one())
        except sa.exc.SQLAlchemyError:
            return False  # no right to the schema; the statements find that


def _missing(wanted: Wanted, types: Mapping[str, Any]) -> Iterator[Finding]:
    for column, place in wanted.columns.items():
        if column not in types:
            hint = _did_you_mean(column, types)
            yield wrong(place, f"Table {wanted.table} has no column {column}.{hint} Correct the catalog, or the view.")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


@contextmanager
def open_tables(source: Source) -> Iterator[SourceTables]:
    """Look into the source with a separate connection, in which a failed statement does not affect the next."""
    try:
        connection = _engine(source).connect()
    except (ModuleNotFoundError, sa.exc.NoSuchModuleError):
        raise ExportFailure(
            FailureCode.SOURCE_REFUSED,
            "The database driver that EXPORT_SOURCE_URL names is not installed. For MariaDB run in your clone: "
            "pip install '.[mariadb]'.",
        ) from None
    except sa.exc.SQLAlchemyError as error:
        raise failure_of(error) from None
    with connection:
        yield SourceTables(connection)


def _engine(source: Source) -> sa.Engine:
    url = sa.make_url(source.url)
    if source.backend == "postgresql":
        return create_engine(source.url).execution_options(isolation_level="AUTOCOMMIT")
    if source.backend in MARIADB:
        return reading_engine(url, source.statement_timeout_seconds)
    if source.backend == "sqlite":
        # As the readers do: a missing file is not created.
        url = url.set(database=f"file:{quote(url.database or '')}", query={"mode": "ro", "uri": "true"})
    return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)


def check_source(settings: Settings, *, has_catalog: bool = True) -> Iterator[Finding]:
    """Everything in the catalog and its tables that would fail an export.

    Without ``has_catalog`` the settings name no usable catalog: only the connection is checked.
    """
    catalog: Mapping[str, Dataset] = {}
    if has_catalog:
        try:
            catalog = load_catalog(settings.catalog)
        except CatalogError as error:
            yield from (wrong("catalog", problem) for problem in error.problems)
        else:
            yield ok("catalog", f"datasets: {', '.join(catalog)}")
    source = replace(source_of(settings), statement_timeout_seconds=_STATEMENT_SECONDS)
    try:
        with open_tables(source) as tables:
            encoding = tables.encoding()
            found = {
                dataset.name: [(wanted, tables.look(wanted)) for wanted in wanted_by(dataset)]
                for dataset in catalog.values()
            }
    except ExportFailure as failure:
        yield wrong("connection", failure.message)
        return
    yield ok("connection", f"{source.backend} answers")
    if encoding == "SQL_ASCII":
        yield warning(
            "encoding",
            "The database does not know the encoding of its text (SQL_ASCII): text not in UTF-8 fails exports.",
        )
    for dataset in catalog.values():
        yield from _DatasetCheck(source, dataset, found[dataset.name]).findings()


class _DatasetCheck:
    """The checks of one dataset."""

    def __init__(self, source: Source, dataset: Dataset, found: Sequence[tuple[Wanted, Found]]) -> None:
        self._source = source
        self._dataset = dataset
        self._wanted = found
        self._found = {wanted.place: one for wanted, one in found}
        self._main_place = f"{dataset.name}.table"
        self._main = self._found[self._main_place]

    def findings(self) -> Iterator[Finding]:
        problems = [problem for found in self._found.values() for problem in found.problems]
        problems += [*self._types(), *self._tenant_as_text(), *self._key()]
        failed = list(self._failed_statements())
        problems += [*failed, *self._hidden_rows(failed)]
        yield from problems
        if all(problem.state is not State.WRONG for problem in problems):
            dataset = self._dataset
            yield ok(dataset.name, f"{len(dataset.columns)} columns of {dataset.table} can be read")

    def _types(self) -> Iterator[Finding]:
        for wanted, found in self._wanted:
            for column, declared, place in wanted.types:
                database_type = found.type_of(column)
                if database_type is not None:
                    state, text = judge(declared, database_type, self._source.backend)
                    if state is not State.OK:
                        yield Finding(state, place, f"Column {column} {text}")

    def _tenant_as_text(self) -> Iterator[Finding]:
        dataset, found = self._dataset, self._main.type_of(self._dataset.tenant)
        if found is None or dataset.tenant_type is not ColumnType.TEXT or self._source.backend == "sqlite":
            return
        family = family_of(found)
        if family in ("uuid", "integer"):
            yield warning(
                f"{dataset.name}.tenant_type",
                f"Column {dataset.tenant} is {family} in the database and text in the catalog: an organization_id that "
                f"is not a valid {family} fails in the database. Declare tenant_type: {family}.",
            )

    def _key(self) -> Iterator[Finding]:
        dataset, key = self._dataset, self._dataset.key_column.source
        allowed = {key, dataset.tenant}
        # A view has no indexes to look at.
        if self._main.is_table and self._main.has(key) and not any(one <= allowed for one in self._main.unique):
            yield warning(
                f"{dataset.name}.key",
                f"Table {dataset.table} has no unique index on {key}: rows that share a key have no fixed order, and "
                "exports are slow. Create one.",
            )

    def _hidden_rows(self, failed: Iterable[Finding]) -> Iterator[Finding]:
        """Row-level security, unless a statement already failed for it."""
        named = {finding.subject for finding in failed}
        for place, found in self._found.items():
            if found.hides_rows and place not in named:
                yield warning(
                    place,
                    "Row-level security decides which rows the user of EXPORT_SOURCE_URL sees: exports may lack rows. "
                    "Give the user access to all rows (BYPASSRLS, or a policy for it).",
                )

    def _failed_statements(self) -> Iterator[Finding]:
        """Run the statements of an export; without the main one no other can succeed."""
        for place, read in self._statements():
            if place != self._main_place and (place not in self._found or self._found[place].problems):
                continue  # it is not declared, or something of it is missing
            try:
                read()
            except ExportFailure as failure:
                if failure.message == timed_out().message:
                    yield warning(place, "The database needs more than 10 s to read no row: an index may be missing.")
                elif failure.code is FailureCode.NOT_SUPPORTED:
                    yield warning(place, failure.message)
                else:
                    yield wrong(place, failure.message)
                if place == self._main_place:
                    return

    def _statements(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """The statements of an export, each with the place in the catalog that it tests."""
        dataset, name, key = self._dataset, self._dataset.name, self._dataset.key_column
        readable = tuple(column for column in dataset.columns if self._is_readable(column.source, column.type))
        if key not in readable or not self._is_readable(dataset.tenant, ColumnType(dataset.tenant_type)):
            return
        yield self._main_place, partial(self._read, readable)
        for child in dataset.children:
            yield f"{name}.children.{child.name}", partial(self._read, (key, child))
        if dataset.lists is not None:
            lists = dataset.lists.lists
            yield f"{name}.lists", partial(self._read, (key,), (_unused_id(lists.id_type),))
            yield f"{name}.lists.lists", partial(self._read_table, lists, [lists.id, lists.name])
        if dataset.segments is not None:
            segments = dataset.segments
            columns = [segments.id, segments.name, segments.filter, *filter(None, [segments.query_dsl])]
            yield f"{name}.segments", partial(self._read_table, segments, columns)
        yield f"{name}.custom_fields", partial(find_custom_fields, self._source, dataset, self._unused_organization)

    def _is_readable(self, column: str, declared: ColumnType) -> bool:
        """Whether no other finding names the column; a statement would only repeat it."""
        found = self._main.type_of(column)
        if found is None:
            return self._main.has(column)
        return judge(declared, found, self._source.backend)[0] is not State.WRONG

    def _read(self, columns: tuple[Column | ChildList, ...], lists: tuple[str | int, ...] = ()) -> None:
        dataset = self._dataset
        created = dataset.created_at_column
        dated = created is not None and self._is_readable(created.source, created.type)
        instant = datetime(2000, 1, 1, tzinfo=UTC) if dated else None
        selection = Selection(
            dataset=dataset,
            organization_id=self._unused_organization,
            columns=columns,
            filters=AllOf(()),
            any_of=AnyOf((OnList(lists),)) if lists else None,
            created_from=instant,
            created_before=instant,
        )
        query = build_query(selection, self._source.backend, limit=0)
        # Count only the selected rows, which are none: an export's own count may take minutes without an index.
        query = replace(query, count=sa.select(sa.func.count()).select_from(query.rows.subquery()))
        with open_snapshot(self._source, query) as snapshot:
            for _ in snapshot.batches:
                pass

    def _read_table(self, table: ListTable, columns: list[str]) -> None:
        ids = [_unused_id(table.id_type)]
        read_texts(self._source, self._dataset, table, columns, self._unused_organization, ids)

    @property
    def _unused_organization(self) -> str:
        """An organization without rows, of the tenant column's own type."""
        found = self._main.type_of(self._dataset.tenant)
        integer = family_of(found) == "integer" if found else self._dataset.tenant_type is ColumnType.INTEGER
        return str(_unused_id(ColumnType.INTEGER if integer else ColumnType.UUID))


def _unused_id(kind: ColumnType) -> str | int:
    """An id that no application has."""
    return 0 if kind is ColumnType.INTEGER else "00000000-0000-0000-0000-000000000000"
