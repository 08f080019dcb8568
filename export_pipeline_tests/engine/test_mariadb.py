"""MariaDB: what the suites of every database do not ask of it. Its collation here ignores case, accents and spaces."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.model import SegmentTable
from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.tree import AllOf
from export_pipeline.formats import open_format
from export_pipeline.formats.base import NO_CEILING, FormatOptions
from export_pipeline.source import open_snapshot
from export_pipeline.source.lookups import find_custom_fields, read_texts
from export_pipeline.source.query import Query, Selection, build_query
from export_pipeline.source.readers import Snapshot, Source
from export_pipeline.source.readers import mariadb as sessions
from export_pipeline_tests.engine import people
from export_pipeline_tests.engine.people import CONTACTS, DATASET
from export_pipeline_tests.engine.test_readers import SELECTION, failure, query_for
from export_pipeline_tests.servers.mariadb import MariadbServer


@pytest.fixture(scope="module")
def url(mariadb_server: MariadbServer) -> Iterator[str]:
    """A database with ``people`` in it, that tests do not change."""
    with mariadb_server.fresh_database() as fresh:
        people.create(fresh)
        yield fresh


@pytest.fixture
def empty(mariadb_server: MariadbServer) -> Iterator[str]:
    with mariadb_server.fresh_database() as fresh:
        yield fresh


def run(url: str, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def file_of(source: Source, name: str) -> bytes:
    columns = tuple(OutputColumn(column.name, column.name, column.type) for column in DATASET.columns)
    written = open_format(name, FormatOptions(columns=columns, max_bytes=NO_CEILING))
    sink = io.BytesIO()
    file = written.open(sink)
    with open_snapshot(source, query_for(source)) as snapshot:
        for batch in snapshot.batches:
            file.write(written.encode(batch, Counter()), 0)
    file.close()
    return sink.getvalue()


@pytest.mark.parametrize("name", ["csv", "ndjson", "json", "parquet"])
def test_the_file_is_that_of_postgresql_byte_by_byte(url: str, postgres_url: str, name: str) -> None:
    ours = people.create(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    assert file_of(Source(url), name) == file_of(ours, name)


def test_a_url_with_another_character_set_loses_no_letter(url: str) -> None:
    rows = open_rows(Source(f"{url}?charset=latin1"), SELECTION)
    assert [row["name"] for row in rows] == [row["name"] for row in people.ACME]


def open_rows(source: Source, selection: Selection) -> list[dict[str, Any]]:
    with open_snapshot(source, build_query(selection, source.backend)) as snapshot:
        return [row for batch in snapshot.batches for row in batch.to_pylist()]


EDGES = parse_dataset(
    """
name: edges
title: Edges
table: edges
tenant: tenant
tenant_type: integer
key: id
columns:
  - {name: id, type: integer}
  - {name: amount, type: decimal}
  - {name: day, type: date}
  - {name: at, type: timestamp}
  - {name: label, type: text}
  - {name: ratio, type: float}
  - {name: flag, type: boolean}
"""
)
FIRST, LAST, OLD = (
    datetime.fromisoformat(f"{text}Z")
    for text in ("1000-01-01T00:00:00.000001", "9999-12-31T23:59:59.999999", "1969-12-31T00:00:00")
)
NINES = "9" * 35 + "." + "9" * 30
EDGE_ROWS: list[tuple[Any, ...]] = [
    (-(2**63), f"-{NINES}", date(1000, 1, 1), FIRST, "", 5e-324, False),
    (0, None, None, None, None, None, None),
    (2**53 + 1, "0." + "0" * 29 + "1", date(2024, 2, 29), OLD, "a", -0.0, True),
    (2**63 - 1, NINES, date(9999, 12, 31), LAST, "ß\t\n\\'\"", 1.7976931348623157e308, True),
]


def test_extreme_values_come_whole(empty: str) -> None:
    run(
        empty,
        "CREATE TABLE edges (id bigint primary key, tenant int, amount decimal(65, 30), day date, at datetime(6), "
        "label varchar(10), ratio double, flag boolean)",
    )
    engine = sa.create_engine(empty, poolclass=sa.NullPool)
    with engine.begin() as connection:
        insert = "INSERT INTO edges VALUES (%s, 5, %s, %s, %s, %s, %s, %s)"
        for row in EDGE_ROWS:
            connection.exec_driver_sql(insert, row)
    rows = open_rows(Source(empty), Selection(EDGES, "5", EDGES.columns, AllOf(())))
    amounts = [row["amount"] and str(row["amount"]) for row in rows]
    assert amounts == [row[1] for row in EDGE_ROWS]
    assert [tuple(row.values())[2:] for row in rows] == [row[2:] for row in EDGE_ROWS]
    assert [row["id"] for row in rows] == [row[0] for row in EDGE_ROWS]
    # The numbers of a tenant and of a list are compared as what was asked for, not as what MariaDB makes of it.
    for spelled in ("5abc", "05", "5 ", "5.0", "0x5"):
        assert open_rows(Source(empty), Selection(EDGES, spelled, EDGES.columns, AllOf(()))) == []
    exact = {"amount": {"gt": NINES[:-1] + "8"}}
    chosen = Selection(EDGES, "5", EDGES.columns, parse_filters(exact, EDGES, "UTC"))
    assert [row["id"] for row in open_rows(Source(empty), chosen)] == [2**63 - 1]


def test_what_is_looked_up_is_the_organizations_own_and_no_similar_ones(empty: str) -> None:
    run(
        empty,
        "CREATE TABLE fields (organization_id varchar(20), name varchar(20), field_type varchar(20))",
        "INSERT INTO fields VALUES ('acme', 'color', 'Text'), ('ACME', 'shade', 'Number'), ('acme ', 'tint', 'Date')",
    )
    found = {
        spelled: [field.key for field in find_custom_fields(Source(empty), CONTACTS, spelled)]
        for spelled in ("acme", "ACME", "acme ", "ácme")
    }
    assert found == {"acme": ["color"], "ACME": ["shade"], "acme ": ["tint"], "ácme": []}
    for spelled, expected in (("shade", [("shade",)]), ("SHADE", []), ("shade ", [])):
        fields = SegmentTable(table="fields", id="name", id_type=ColumnType.TEXT, tenant="organization_id")
        assert read_texts(Source(empty), CONTACTS, fields, ["name"], "ACME", [spelled]) == expected


def test_the_session_is_a_snapshot_that_cannot_write(url: str) -> None:
    engine = sessions.reading_engine(sa.make_url(url), 5)
    with engine.connect() as connection:
        sessions.begin(connection, 0)
        (count,) = connection.exec_driver_sql("SELECT count(*) FROM people").one()
        with pytest.raises(sa.exc.DBAPIError, match="READ ONLY transaction"):
            connection.exec_driver_sql("DELETE FROM people")
    assert count == len(people.ROWS)


def wide(url: str, rows: int, more: str = "1 = 1") -> Source:
    """``people`` as a view of so many rows of 10 kB."""
    nothing = ", ".join(f"NULL AS {column.source}" for column in DATASET.columns if column.name not in ("id", "name"))
    run(
        url,
        f"CREATE VIEW people AS SELECT seq AS id, 'acme' AS organization_id, repeat('x', 10000) AS name, {nothing} "
        f"FROM seq_1_to_{rows} WHERE {more}",
    )
    return Source(url)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(empty: str) -> None:
    source = wide(empty, 20_000)
    selection = replace(SELECTION, columns=tuple(DATASET.columns[:2]))
    total = 0
    tracemalloc.start()
    try:
        with open_snapshot(source, build_query(selection, source.backend)) as snapshot:
            for batch in snapshot.batches:
                total += batch.num_rows
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 20_000
    # 200 MB came through; about 1,024 rows of 10 kB are held at a time, in a few forms.
    assert peak < 100_000_000


def test_a_reading_that_is_given_up_ends_on_the_server_too(empty: str, mariadb_server: MariadbServer) -> None:
    source = wide(empty, 20_000_000)
    with open_snapshot(source, without_count(query_for(source))) as snapshot:
        assert next(iter(snapshot.batches)).num_rows
    assert_nothing_runs(mariadb_server)


def without_count(query: Query) -> Query:
    return replace(query, count=sa.select(sa.literal_column("0")))


def assert_nothing_runs(server: MariadbServer) -> None:
    deadline = time.monotonic() + 30
    running = (
        "SELECT count(*) FROM information_schema.processlist "
        "WHERE (info LIKE '%seq_1_to%' OR info LIKE '%people%') AND id <> connection_id()"
    )
    while True:
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(running)
            row = cursor.fetchone()
        if row == (0,):
            return
        assert time.monotonic() < deadline, row
        time.sleep(0.1)


def test_a_statement_time_out_says_so(empty: str) -> None:
    source = replace(wide(empty, 5_000, more="sleep(0.01) = 0"), statement_timeout_seconds=0.5)
    counted = failure(source, query_for(source))
    read = failure(source, without_count(query_for(source)))
    for failed in (counted, read):
        assert failed.code is FailureCode.SOURCE_REFUSED
        assert "EXPORT_STATEMENT_TIMEOUT_SECONDS" in failed.message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda url: url.set(port=1), FailureCode.SOURCE_UNAVAILABLE),
        (lambda url: url.set(password="no"), FailureCode.SOURCE_REFUSED),
        (lambda url: url.set(database="none"), FailureCode.SOURCE_REFUSED),
    ],
)
def test_what_the_server_says_is_told_without_its_words(url: str, change: Any, code: FailureCode) -> None:
    asked = change(sa.make_url(url))
    failed = failure(Source(asked.render_as_string(hide_password=False)), build_query(SELECTION, "mariadb"))
    assert failed.code is code
    assert str(asked.password) not in str(failed)


def test_a_missing_table_or_column_is_ours_to_mend_and_its_statement_is_not_told(empty: str) -> None:
    source = Source(empty)
    chosen = replace(SELECTION, filters=parse_filters({"name": "Ana Sousa"}, DATASET, "UTC"))
    assert failure(source, build_query(chosen, source.backend)).code is FailureCode.SOURCE_REFUSED
    run(empty, "CREATE TABLE people (organization_id text)")
    failed = failure(source, without_count(build_query(chosen, source.backend)))
    assert (failed.code, failed.fault) == (FailureCode.SOURCE_REFUSED, Fault.OURS)
    assert "Sousa" not in str(failed)


def test_a_server_that_ends_the_query_is_transient(empty: str, mariadb_server: MariadbServer) -> None:
    source = wide(empty, 20_000_000)
    with pytest.raises(ExportFailure) as failed, open_snapshot(source, without_count(query_for(source))) as snapshot:
        _read_after_the_end(snapshot, mariadb_server)
    assert failed.value.code is FailureCode.SOURCE_UNAVAILABLE


def _read_after_the_end(snapshot: Snapshot, server: MariadbServer) -> None:
    next(snapshot.batches)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM information_schema.processlist WHERE info LIKE '%FROM people%' AND id <> connection_id()"
        )
        ended = [cursor.execute(f"KILL {thread}") for (thread,) in cursor.fetchall()]
    assert len(ended) == 1
    list(snapshot.batches)


CHILDREN = parse_dataset(
    """
name: owners
title: Owners
table: owners
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
children:
  - {name: things, table: things, foreign_key: owner_id, value: label, order_by: made}
"""
)


def test_a_child_list_is_whole_or_the_export_fails(empty: str, mariadb_server: MariadbServer) -> None:
    run(
        empty,
        "CREATE TABLE owners (id int primary key, organization_id varchar(10))",
        "CREATE TABLE things (owner_id int, label text, made int)",
        "INSERT INTO owners VALUES (1, 'acme')",
        "INSERT INTO things SELECT 1, repeat('x', 10000), seq FROM seq_1_to_1500",
    )
    source, selection = Source(empty), Selection(CHILDREN, "acme", CHILDREN.children, AllOf(()))
    (row,) = open_rows(source, selection)
    assert json.loads(row["things"]) == ["x" * 10_000] * 1500
    run(empty, "INSERT INTO things SELECT 1, repeat('x', 10000), seq FROM seq_1501_to_2000")
    failed = failure(source, build_query(selection, source.backend))
    assert failed.code is FailureCode.SOURCE_REFUSED
    assert "max_allowed_packet" in failed.message
