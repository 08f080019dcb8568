"""The source: reached, and every dataset of the catalog read as an export reads it, of no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from export_pipeline.catalog.loader import CatalogError, load_catalog
from export_pipeline.catalog.model import ChildList, Column, Dataset
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.check.findings import Finding, State, Wanted, ok, wanted_by, warning, wrong
from export_pipeline.check.source_tables import Found, open_tables
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import AllOf, AnyOf, OnList
from export_pipeline.settings import Settings
from export_pipeline.source.dialects.mariadb import BACKENDS as MARIADB
from export_pipeline.source.lookups import Named, find_custom_fields, read_texts
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source, open_snapshot, source_of
from export_pipeline.source.readers.errors import timed_out

# Which types of a database a declared type may be read from.


_FAMILIES: tuple[tuple[str, tuple[type[TypeEngine[Any]], ...]], ...] = (
    ("boolean", (sa.Boolean,)),
    ("integer", (sa.Integer, mysql.YEAR)),
    ("float", (sa.Float,)),
    ("decimal", (sa.Numeric,)),
    ("timestamp", (sa.DateTime,)),
    ("date", (sa.Date,)),
    ("time", (sa.Time,)),
    ("interval", (sa.Interval, postgresql.INTERVAL)),
    ("uuid", (sa.Uuid,)),
    ("json", (sa.JSON,)),
    ("array", (sa.ARRAY,)),
    ("money", (postgresql.MONEY,)),
    ("oid", (postgresql.OID,)),
    ("bits", (postgresql.BIT, mysql.BIT)),
    ("bytes", (sa.LargeBinary, sa.BINARY, sa.VARBINARY)),
    ("text", (sa.String,)),
)
_FITTING: Mapping[ColumnType, frozenset[str]] = {
    ColumnType.INTEGER: frozenset({"integer"}),
    ColumnType.FLOAT: frozenset({"float", "integer", "decimal"}),
    ColumnType.DECIMAL: frozenset({"decimal", "integer"}),
    ColumnType.BOOLEAN: frozenset({"boolean"}),
    ColumnType.TIMESTAMP: frozenset({"timestamp"}),
    ColumnType.DATE: frozenset({"date"}),
    ColumnType.UUID: frozenset({"uuid", "text"}),
    ColumnType.JSON: frozenset({"json", "text"}),
}
_DOUBTFUL: Mapping[tuple[ColumnType, str], str] = {
    (ColumnType.INTEGER, "decimal"): "a value with a fraction fails the export; declare decimal",
    (ColumnType.INTEGER, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.FLOAT, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.DECIMAL, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.DECIMAL, "float"): "its digits are those of a binary number; declare float",
    (ColumnType.BOOLEAN, "integer"): "values other than 0 and 1 fail the export, and filters may",
    (ColumnType.TIMESTAMP, "date"): "it is exported as midnight in UTC; declare date",
    (ColumnType.TIMESTAMP, "text"): "text that is no time fails the export, and filters may; cast it in a view",
    (ColumnType.DATE, "text"): "text that is no date fails the export, and filters may; cast it in a view",
}
_ON_MARIADB: Mapping[tuple[ColumnType, str], str] = {
    (ColumnType.DATE, "timestamp"): "a value with a time fails the export; cast it in a view",
    (ColumnType.TEXT, "bytes"): "bytes that are not UTF-8 fail the export; use HEX(column) in a view",
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
"""A column of SQLite holds values of any type; these are what its affinity turns into something else."""


def family_of(found: TypeEngine[Any]) -> str:
    """What kind of type it is, whatever the database calls it; ``other`` for one that has no kind here."""
    if isinstance(found, postgresql.DOMAIN):
        return family_of(found.data_type)
    return next((family for family, types in _FAMILIES if isinstance(found, types)), "other")


def judge(declared: ColumnType, found: TypeEngine[Any], backend: str) -> tuple[State, str]:
    """Whether a declared type can be read from a column of the database's type, and what to do if not."""
    family, name = family_of(found), _name(found)
    told = f"is {name} in the database and {declared} in the catalog"
    if backend == "sqlite":
        if declared in _NEVER_ON_SQLITE.get(family, ()):
            return State.WRONG, f"{told}. {_ADVICE.get(family, 'Correct the type in the catalog')}."
        return State.OK, ""
    if _fits(declared, family, backend):
        return State.OK, ""
    doubt = _DOUBTFUL.get((declared, family)) or (_ON_MARIADB.get((declared, family)) if backend in MARIADB else None)
    if doubt is not None:
        return State.WARNING, f"{told}: {doubt}."
    advice = _ADVICE.get(family, "Correct the type in the catalog, or cast it in a view")
    # What other databases' drivers make of their types was not tried.
    known = backend == "postgresql" or backend in MARIADB
    return State.WRONG if known else State.WARNING, f"{told}. {advice}."


def _fits(declared: ColumnType, family: str, backend: str) -> bool:
    if declared is ColumnType.TEXT:
        # MariaDB hands bytes over as they are; PostgreSQL writes them as text.
        return family not in ("bytes", "bits") or backend not in MARIADB
    if declared is ColumnType.BOOLEAN and family == "integer" and backend in MARIADB:
        return True  # it has no other boolean
    return family in _FITTING[declared]


def _name(found: TypeEngine[Any]) -> str:
    return "of a type of its own" if isinstance(found, sa.types.NullType) else str(found).lower()


_STATEMENT_SECONDS = 10.0
_NOBODY = "00000000-0000-0000-0000-000000000000"
"""An organization that no application has."""


def check_source(settings: Settings, *, knows_catalog: bool = True) -> Iterator[Finding]:
    """Everything in the catalog and its tables that would fail an export.

    Args:
        settings: the installation's.
        knows_catalog: the settings say where the catalog is; else the connection alone is tried.
    """
    catalog: Mapping[str, Dataset] = {}
    if knows_catalog:
        try:
            catalog = load_catalog(settings.catalog)
        except CatalogError as error:
            yield from (wrong("catalog", problem) for problem in error.problems)
        else:
            yield ok("catalog", f"{len(catalog)} datasets: {', '.join(catalog)}")
    source = replace(source_of(settings), statement_timeout_seconds=_STATEMENT_SECONDS)
    try:
        with open_tables(source) as tables:
            encoding = tables.encoding()
            found = {
                name: [(wanted, tables.look(wanted)) for wanted in wanted_by(dataset)]
                for name, dataset in catalog.items()
            }
    except ExportFailure as failure:
        yield wrong("connection", failure.message)
        return
    yield ok("connection", f"{source.backend} answers")
    if encoding == "SQL_ASCII":
        yield warning(
            "encoding",
            "The database does not know in which encoding its text is (SQL_ASCII): what is not UTF-8 fails exports.",
        )
    for dataset in catalog.values():
        yield from _Reading(source, dataset, found[dataset.name]).findings()


class _Reading:
    """The checks of one dataset."""

    def __init__(self, source: Source, dataset: Dataset, found: Sequence[tuple[Wanted, Found]]) -> None:
        self._source = source
        self._dataset = dataset
        self._looked = found
        self._found = {wanted.place: one for wanted, one in found}
        self._main = self._found[f"{dataset.name}.table"]

    def findings(self) -> Iterator[Finding]:
        types, refused = list(self._types()), list(self._statements())
        problems = [
            *(problem for found in self._found.values() for problem in found.problems),
            *types,
            *self._key(),
            *refused,
            *self._hidden({finding.subject for finding in refused}),
        ]
        yield from problems
        if all(problem.state is not State.WRONG for problem in problems):
            dataset = self._dataset
            yield ok(dataset.name, f"{len(dataset.columns)} columns of {dataset.table} can be read")

    def _types(self) -> Iterator[Finding]:
        for wanted, found in self._looked:
            for column, declared, place in wanted.types:
                their_type = found.type_of(column)
                state, text = judge(declared, their_type, self._source.backend) if their_type else (State.OK, "")
                if state is not State.OK:
                    yield Finding(state, place, f"Column {column} {text}")
        yield from self._tenant_as_text()

    def _tenant_as_text(self) -> Iterator[Finding]:
        found, dataset = self._main.type_of(self._dataset.tenant), self._dataset
        if found is None or dataset.tenant_type is not ColumnType.TEXT or self._source.backend == "sqlite":
            return
        family = family_of(found)
        if family in ("uuid", "integer"):
            yield warning(
                f"{dataset.name}.tenant_type",
                f"Column {dataset.tenant} is {family} in the database and text in the catalog: an organization_id that "
                f"is no {family} fails in the database. Declare tenant_type: {family}.",
            )

    def _key(self) -> Iterator[Finding]:
        dataset, key = self._dataset, self._dataset.key_column.source
        allowed = {key, dataset.tenant}
        # Of a view nobody knows.
        if self._main.is_table and self._main.has(key) and not any(one <= allowed for one in self._main.unique):
            yield warning(
                f"{dataset.name}.key",
                f"Table {dataset.table} has no unique index on {key}: rows that share a key have no certain order, and "
                "exports are slow. Create one.",
            )

    def _hidden(self, refused: set[str]) -> Iterator[Finding]:
        """Not again of a table whose statement was refused for it."""
        for place, found in self._found.items():
            if found.hidden and place not in refused:
                yield warning(
                    place,
                    "Row-level security chooses which rows the user of EXPORT_SOURCE_URL sees: an export could lack "
                    "rows. Let the user see all of them (BYPASSRLS, or a policy of its own).",
                )

    def _statements(self) -> Iterator[Finding]:
        """The statements of an export, the main one first: without it no other can succeed."""
        dataset = self._dataset
        readable = tuple(column for column in dataset.columns if self._is_readable(column.source, column.type))
        tenant_is = ColumnType(dataset.tenant_type)
        if dataset.key_column not in readable or not self._is_readable(dataset.tenant, tenant_is):
            return
        children = tuple(child for child in dataset.children if self._is_there(f"{dataset.name}.children.{child.name}"))
        lists = self._some_list() if self._is_there(f"{dataset.name}.lists") else ()
        if any(self._try(f"{dataset.name}.table", lambda: self._read((*readable, *children), lists))):
            refused = list(self._one_by_one(readable, children, lists))
            yield from refused
            if any(finding.subject == f"{dataset.name}.table" for finding in refused):
                return
        yield from self._try(f"{dataset.name}.lists.lists", self._read_lists)
        yield from self._try(f"{dataset.name}.segments", self._read_segments)
        yield from self._try(f"{dataset.name}.custom_fields", self._read_custom_fields)

    def _one_by_one(
        self, columns: tuple[Column, ...], children: tuple[ChildList, ...], lists: tuple[str | int, ...]
    ) -> Iterator[Finding]:
        """What of the whole statement was refused."""
        name, key = self._dataset.name, (self._dataset.key_column,)
        refused = list(self._try(f"{name}.table", lambda: self._read(columns)))
        yield from refused
        if refused:
            return
        for child in children:
            yield from self._try(f"{name}.children.{child.name}", lambda child=child: self._read((*key, child)))  # type: ignore[misc]
        if lists:
            yield from self._try(f"{name}.lists", lambda: self._read(key, lists))

    def _is_there(self, place: str) -> bool:
        """Whether a table is declared, and nothing of it is missing."""
        return place in self._found and not self._found[place].problems

    def _is_readable(self, column: str, declared: ColumnType) -> bool:
        """Whether nothing wrong is said of it already, which a statement would only repeat."""
        found = self._main.type_of(column)
        if found is None:
            return self._main.has(column)
        return judge(declared, found, self._source.backend)[0] is not State.WRONG

    def _try(self, place: str, read: Callable[[], object]) -> Iterator[Finding]:
        """Nothing to say of what works, is not declared, or lacks what is named already."""
        if not self._is_there(place) and place != f"{self._dataset.name}.table":
            return
        try:
            read()
        except ExportFailure as failure:
            if failure.message == timed_out().message:
                yield warning(place, "The database needs more than 10 s to read no row: it may lack an index.")
            elif failure.code is FailureCode.NOT_SUPPORTED:
                yield warning(place, failure.message)
            else:
                yield wrong(place, failure.message)

    def _read(self, columns: tuple[Column | ChildList, ...], lists: tuple[str | int, ...] = ()) -> None:
        dataset = self._dataset
        created = dataset.created_at_column
        dated = created is not None and self._is_readable(created.source, created.type)
        instant = datetime(2000, 1, 1, tzinfo=UTC) if dated else None
        selection = Selection(
            dataset=dataset,
            organization_id=self._nobody,
            columns=columns,
            filters=AllOf(()),
            any_of=AnyOf((OnList(lists),)) if lists else None,
            created_from=instant,
            created_before=instant,
        )
        query = build_query(selection, self._source.backend, limit=0)
        # Counting the rows that were asked for, none: an export's own count may take minutes on a table without index.
        query = replace(query, count=sa.select(sa.func.count()).select_from(query.rows.subquery()))
        with open_snapshot(self._source, query) as snapshot:
            for _ in snapshot.batches:
                pass

    def _some_list(self) -> tuple[str | int, ...]:
        return () if self._dataset.lists is None else (_identity(self._dataset.lists.lists.id_type),)

    def _read_lists(self) -> None:
        declared = self._dataset.lists
        if declared is not None:
            lists = declared.lists
            self._read_texts(lists.table, [lists.id, lists.name], lists.tenant, lists.id, lists.id_type)

    def _read_segments(self) -> None:
        segments = self._dataset.segments
        if segments is not None:
            columns = [segments.id, segments.name, segments.filter, *filter(None, [segments.query_dsl])]
            self._read_texts(segments.table, columns, segments.tenant, segments.id, segments.id_type)

    def _read_texts(self, table: str, columns: list[str], tenant: str, key: str, kind: IdentityType) -> None:
        named = Named(key, kind, [_identity(kind)])
        read_texts(self._source, self._dataset, table, columns, tenant, self._nobody, named)

    def _read_custom_fields(self) -> None:
        find_custom_fields(self._source, self._dataset, self._nobody)

    @property
    def _nobody(self) -> str:
        """An organization that has no rows, of the tenant column's own type."""
        found = self._main.type_of(self._dataset.tenant)
        integer = family_of(found) == "integer" if found else self._dataset.tenant_type is ColumnType.INTEGER
        return "0" if integer else _NOBODY


def _identity(kind: ColumnType) -> str | int:
    return 0 if kind is ColumnType.INTEGER else _NOBODY
