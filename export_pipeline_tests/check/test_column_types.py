"""What the check calls right can be read, and what would come out as another value is called wrong."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from itertools import product

import psycopg
import pytest

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.types import ColumnType
from export_pipeline.check import State
from export_pipeline.check.source import Found, Wanted, judge, open_tables
from export_pipeline.filters.tree import AllOf
from export_pipeline.settings import Settings
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline_tests.servers.mariadb import MariadbServer


@dataclass(frozen=True)
class Kind:
    """A database's type, a value of it, the declared types that fit, and those that fit with a warning."""

    type: str
    value: str
    fits: set[ColumnType]
    doubtful: set[ColumnType] = field(default_factory=set)


T = ColumnType
PARSED = {T.TIMESTAMP, T.DATE, T.INTEGER, T.FLOAT, T.DECIMAL}
POSTGRESQL = {
    "flag": Kind("boolean", "true", {T.BOOLEAN, T.TEXT}),
    "small": Kind("smallint", "1", {T.INTEGER, T.FLOAT, T.DECIMAL, T.TEXT}, {T.BOOLEAN}),
    "big": Kind("bigint", "1", {T.INTEGER, T.FLOAT, T.DECIMAL, T.TEXT}, {T.BOOLEAN}),
    "ratio": Kind("double precision", "1.5", {T.FLOAT, T.TEXT}, {T.DECIMAL}),
    "single": Kind("real", "1.5", {T.FLOAT, T.TEXT}, {T.DECIMAL}),
    "amount": Kind("numeric(9, 2)", "1.50", {T.DECIMAL, T.FLOAT, T.TEXT}, {T.INTEGER}),
    "price": Kind("money", "1.5", {T.TEXT}),
    "ident": Kind("oid", "1", {T.TEXT}),
    "words": Kind("text", "'a'", {T.TEXT, T.UUID, T.JSON}, PARSED),
    "short": Kind("varchar(5)", "'a'", {T.TEXT, T.UUID, T.JSON}, PARSED),
    "mood": Kind("mood", "'sad'", {T.TEXT, T.UUID, T.JSON}, PARSED),
    "number": Kind("uuid", "gen_random_uuid()", {T.UUID, T.TEXT}),
    "doc": Kind("jsonb", "'{}'", {T.JSON, T.TEXT}),
    "doc2": Kind("json", "'{}'", {T.JSON, T.TEXT}),
    "tags": Kind("text[]", "'{}'", {T.TEXT}),
    "raw": Kind("bytea", "'a'", {T.TEXT}),
    "day": Kind("date", "'2024-03-31'", {T.DATE, T.TEXT}, {T.TIMESTAMP}),
    "moment": Kind("timestamptz", "now()", {T.TIMESTAMP, T.TEXT}),
    "clock": Kind("timestamp", "now()", {T.TIMESTAMP, T.TEXT}),
    "hour": Kind("time", "'12:00'", {T.TEXT}),
    "span": Kind("interval", "'1 day'", {T.TEXT}),
    "host": Kind("inet", "'10.0.0.1'", {T.TEXT}),
    "mask": Kind("bit(3)", "'101'", {T.TEXT}),
    "positive": Kind("positive", "1", {T.INTEGER, T.FLOAT, T.DECIMAL, T.TEXT}, {T.BOOLEAN}),
}
MARIADB = {
    "flag": Kind("boolean", "1", {T.BOOLEAN, T.INTEGER, T.FLOAT, T.DECIMAL, T.TEXT}),
    "big": Kind("bigint", "1", {T.BOOLEAN, T.INTEGER, T.FLOAT, T.DECIMAL, T.TEXT}),
    "ratio": Kind("double", "1.5", {T.FLOAT, T.TEXT}, {T.DECIMAL}),
    "amount": Kind("decimal(9, 2)", "1.50", {T.DECIMAL, T.FLOAT, T.TEXT}, {T.INTEGER}),
    "words": Kind("varchar(40)", "'{}'", {T.TEXT, T.UUID, T.JSON}, PARSED),
    "doc": Kind("json", "'{}'", {T.JSON, T.TEXT, T.UUID}, PARSED),
    "raw": Kind("binary(16)", "'a'", set(), {T.TEXT}),
    "mask": Kind("bit(8)", "1", set()),
    "day": Kind("date", "'2024-03-31'", {T.DATE, T.TEXT}, {T.TIMESTAMP}),
    "moment": Kind("datetime(6)", "now()", {T.TIMESTAMP, T.TEXT}, {T.DATE}),
    "hour": Kind("time", "'12:00'", {T.TEXT}),
}


def look(source: Source, table: str, columns: list[str]) -> Found:
    with open_tables(source) as tables:
        return tables.look(Wanted(table, "people.table", {column: column for column in columns}))


def verdicts(found: Found, kinds: dict[str, Kind], backend: str) -> dict[tuple[str, ColumnType], State]:
    assert found.types is not None
    return {(name, kind): judge(kind, found.types[name], backend)[0] for name, kind in product(kinds, ColumnType)}


def expected(kinds: dict[str, Kind]) -> dict[tuple[str, ColumnType], State]:
    return {
        (name, declared): State.OK
        if declared in kind.fits
        else State.WARNING
        if declared in kind.doubtful
        else State.WRONG
        for (name, kind), declared in product(kinds.items(), ColumnType)
    }


def read(source: Source, table: str, kinds: dict[str, Kind], declared: ColumnType) -> int:
    """How many rows come out with every column that fits this declared type."""
    columns = [f"  - {{name: {name}, type: {declared}}}" for name, kind in kinds.items() if declared in kind.fits]
    head = f"name: people\ntitle: P\ntable: {table}\ntenant: org\nkey: id\ncolumns:\n  - {{name: id, type: integer}}\n"
    dataset = parse_dataset(head + "\n".join(columns))
    selected = Selection(dataset, "acme", dataset.columns, AllOf(()))
    with open_snapshot(source, build_query(selected, source.backend)) as snapshot:
        return sum(batch.num_rows for batch in snapshot.batches)


def create(kinds: dict[str, Kind]) -> tuple[str, str]:
    columns = ", ".join(f"{name} {kind.type}" for name, kind in kinds.items())
    values = ", ".join(kind.value for kind in kinds.values())
    return f"CREATE TABLE t (org varchar(9), id int, {columns})", f"INSERT INTO t VALUES ('acme', 1, {values})"


def test_every_type_of_postgresql_is_judged_and_what_fits_is_read(postgres_url: str) -> None:
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('sad')")
        connection.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
        for statement in create(POSTGRESQL):
            connection.execute(statement.encode())
        connection.execute("CREATE VIEW v AS SELECT * FROM t")
        connection.execute("UPDATE t SET words = '{}', short = '{}', mood = 'sad'")
    source = Source(Settings(database_url=postgres_url).database_url)
    for table in ("t", "v", "public.t"):
        assert verdicts(look(source, table, list(POSTGRESQL)), POSTGRESQL, "postgresql") == expected(POSTGRESQL)
    readable = {name: kind for name, kind in POSTGRESQL.items() if name != "mood"}  # its value is no JSON and no UUID
    for declared in ColumnType:
        kinds = readable if declared is not T.UUID else {"number": POSTGRESQL["number"]}
        assert read(source, "t", kinds, declared) == 1, declared


def test_every_type_of_mariadb_is_judged_and_what_fits_is_read(mariadb_server: MariadbServer) -> None:
    with mariadb_server.fresh_database() as url:
        name = url.rpartition("/")[2]
        for statement in create(MARIADB):
            mariadb_server.execute(statement.replace(" t ", f" {name}.t "))
        mariadb_server.execute(f"CREATE VIEW {name}.v AS SELECT * FROM {name}.t")
        source = Source(url)
        for table in ("t", "v"):
            assert verdicts(look(source, table, list(MARIADB)), MARIADB, "mysql") == expected(MARIADB)
        for declared in set(ColumnType) - {T.UUID}:
            assert read(source, "t", MARIADB, declared) == 1, declared


@pytest.mark.parametrize("table", ["nobody", "public.nobody", "elsewhere.nobody"])
def test_a_table_that_is_not_there_is_no_error_of_ours(postgres_url: str, table: str) -> None:
    found = look(Source(Settings(database_url=postgres_url).database_url), table, ["id"])
    assert [problem.subject for problem in found.problems] == ["people.table"]
    assert table in found.problems[0].text
