"""Child lists: the right values of the right rows in the right order, however few rows are asked for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import adbc_driver_sqlite.dbapi
import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.failures import ExportFailure
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline.source.readers.sqlite import bound_statement
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer

DATASET = parse_dataset(
    """
name: owners
title: Owners
table: owners
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: name, type: text}
children:
  - {name: newest, table: things, foreign_key: owner_id, value: label, order_by: made, direction: desc, limit: 3,
     tenant: organization_id}
  - {name: all_of_them, header: things, table: things, foreign_key: owner_id, value: label, order_by: made}
"""
)
LABELS = [
    "a",
    "ä",
    'say "hi"',
    "back\\slash",
    "line\nbreak",
    "",
    "日本",
    "%s",
    "'; DROP TABLE things; --",
    "=1+1",
    None,
]


def thing(number: int) -> dict[str, Any]:
    owner = number % 7  # owner 6 has none: its things are another tenant's
    return {
        "owner_id": owner,
        "organization_id": "other" if owner == 6 else "acme",
        "label": LABELS[number % len(LABELS)],
        "made": None if number % 13 == 0 else number // 20,  # ties
    }


OWNERS = [{"id": number, "name": f"owner {number}", "organization_id": "acme"} for number in range(9)]
THINGS = [thing(number) for number in range(120)]


@pytest.fixture(scope="module", params=["postgresql", "sqlite", "sqlite shared", "mariadb"])
def source(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    if request.param == "postgresql":
        with postgres_server.fresh_database() as url:
            yield _filled(url.replace("postgresql://", "postgresql+psycopg://"))
        return
    if request.param == "mariadb":
        server: MariadbServer = request.getfixturevalue("mariadb_server")
        with server.fresh_database() as url:
            yield _filled(url)
        return
    path: Path = tmp_path_factory.mktemp("owners") / "owners.db"
    yield Source(_filled(f"sqlite:///{path}").url, shares_file=request.param == "sqlite shared")


def _filled(url: str) -> Source:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE owners (id integer primary key, organization_id text, name text)")
        connection.exec_driver_sql(
            "CREATE TABLE things (owner_id integer, organization_id text, label text, made integer)"
        )
        connection.execute(sa.text("INSERT INTO owners VALUES (:id, :organization_id, :name)"), OWNERS)
        connection.execute(sa.text("INSERT INTO things VALUES (:owner_id, :organization_id, :label, :made)"), THINGS)
    engine.dispose()
    return Source(url)


def read(source: Source, filters: dict[str, Any]) -> dict[int, dict[str, Any]]:
    columns = (*DATASET.columns, *DATASET.children)
    query = build_query(Selection(DATASET, "acme", columns, parse_filters(filters, DATASET, "UTC")), source.backend)
    with open_snapshot(source, query) as snapshot:
        rows = [row for batch in snapshot.batches for row in batch.to_pylist()]
        assert len(rows) == snapshot.row_count
    return {row["id"]: row for row in rows}


def expected(owner: int, tenant: str | None, *, newest: int | None = None) -> list[str]:
    mine = [one for one in THINGS if one["owner_id"] == owner and tenant in (None, one["organization_id"])]
    present = [one for one in mine if one["label"] is not None]
    sign = -1 if newest else 1
    # Databases order ties by the value's text; by code point here, as all of them are in the "C" locale.
    ordered = sorted(present, key=lambda one: (one["made"] is None, sign * (one["made"] or 0), one["label"].encode()))
    return [one["label"] for one in ordered[:newest]]


@pytest.mark.parametrize(
    ("filters", "owners"),
    [({}, range(9)), ({"id": 3}, [3]), ({"name": {"in": ["owner 6", "owner 8", "nobody"]}}, [6, 8])],
)
def test_every_row_has_its_own_values_in_order(source: Source, filters: dict[str, Any], owners: Any) -> None:
    rows = read(source, filters)
    assert list(rows) == list(owners)
    for owner, row in rows.items():
        assert json.loads(row["newest"]) == expected(owner, "acme", newest=3)
        assert json.loads(row["all_of_them"]) == expected(owner, None)
    assert any(json.loads(row["newest"]) for row in rows.values()) or list(rows) == [6, 8]


def test_the_arrays_are_the_same_text_on_every_database(source: Source) -> None:
    assert read(source, {"id": 2})[2]["newest"] == json.dumps(
        expected(2, "acme", newest=3), ensure_ascii=False, separators=(",", ":")
    )


def test_a_row_without_children_has_an_empty_array(source: Source) -> None:
    row = read(source, {"id": 8})[8]
    assert (row["newest"], row["all_of_them"]) == ("[]", "[]")


def test_a_child_table_with_a_tenant_gives_nothing_of_another(source: Source) -> None:
    row = read(source, {"id": 6})[6]
    assert row["newest"] == "[]"
    assert len(json.loads(row["all_of_them"])) > 0


def test_a_database_that_they_were_not_written_for_says_so() -> None:
    selection = Selection(DATASET, "acme", DATASET.children, parse_filters({}, DATASET, "UTC"))
    with pytest.raises(ExportFailure, match="include: child lists cannot be read from mssql"):
        build_query(selection, "mssql")


def _steps(owners: int, directory: Path) -> tuple[int, list[str], list[str]]:
    """What an export of so many rows with a filter takes SQLite: its steps, and its plan by both of its libraries."""
    path = directory / f"{owners}.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE owners (id integer primary key, organization_id text, name text)")
        connection.execute("CREATE INDEX of_organization ON owners (organization_id)")
        connection.execute("CREATE TABLE things (owner_id integer, organization_id text, label text, made integer)")
        numbers = range(owners)
        connection.executemany("INSERT INTO owners VALUES (?, 'acme', 'x')", ([one] for one in numbers))
        connection.executemany("INSERT INTO things VALUES (?, 'acme', 'y', 1)", ([one] for one in numbers))
        # As an analysis leaves it that was made when organizations had one row each.
        connection.execute("ANALYZE")
        connection.execute("UPDATE sqlite_stat1 SET stat = '1000 1' WHERE idx = 'of_organization'")
        connection.commit()
    filters = parse_filters({"name": {"contains": "x", "ne": "z", "lt": "y"}}, DATASET, "UTC")
    query = build_query(Selection(DATASET, "acme", (*DATASET.columns, *DATASET.children), filters), "sqlite")
    statement, values = bound_statement(query.rows)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with closing(sqlite3.connect(path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        connection.set_progress_handler(step, 100)
        assert len(connection.execute(statement, values).fetchall()) == owners
    with closing(adbc_driver_sqlite.dbapi.connect(str(path))) as other, closing(other.cursor()) as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
        return count, plan, [row[3] for row in cursor.fetchall()]


def test_sqlite_takes_as_long_for_each_row_however_many_there_are(tmp_path: Path) -> None:
    few, *plans = _steps(500, tmp_path)
    many, *others = _steps(5_000, tmp_path)
    assert many < 12 * few
    for plan in (*plans, *others):
        joined = [line for line in plan if "LEFT-JOIN" in line and "AUTOMATIC" in line]
        assert len(joined) == len(DATASET.children), plan


def test_postgresql_gathers_once_whatever_it_expects(postgres_url: str) -> None:
    source = _filled(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    more = "INSERT INTO owners SELECT n, 'acme', 'x' FROM generate_series(1000, 4999) AS n"
    engine = sa.create_engine(source.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(more)
        connection.exec_driver_sql("INSERT INTO things SELECT id, 'acme', 'y', 1 FROM owners WHERE id >= 1000")
    engine.dispose()
    # It was never analyzed, and expects one row of so many conditions: row by row, this takes minutes.
    filters = {"name": {"contains": "x", "ne": "z", "lt": "y"}}
    rows = read(replace(source, statement_timeout_seconds=60), filters)
    assert len(rows) == 4000
    assert all(row["newest"] == '["y"]' for row in rows.values())
