"""Readers: one snapshot, the same Arrow types from every database, and errors that say whose turn it is."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.filters.json_filters import AllOf
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Query, Selection, build_query
from export_pipeline.source.readers import Snapshot, Source
from export_pipeline.source.readers.arrow_types import staged_schema
from export_pipeline.source.readers.generic import snapshot as pandas_snapshot
from export_pipeline_tests.engine import people
from export_pipeline_tests.engine.people import ACME, DATASET

SELECTION = Selection(DATASET, "acme", DATASET.columns, AllOf(()))


def query_for(source: Source) -> Query:
    return build_query(SELECTION, source.backend)


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """Decimals and JSON stand as text in a staged batch, spelled as each database spells them."""
    read = dict(row)
    read["balance"] = None if row["balance"] is None else float(row["balance"])
    read["extra"] = None if row["extra"] is None else json.loads(row["extra"])
    return read


def wanted(row: dict[str, Any]) -> dict[str, Any]:
    want = {name: value for name, value in row.items() if name != "organization_id"}
    want["balance"] = None if row["balance"] is None else float(row["balance"])
    return want


def test_every_database_gives_the_same_rows_and_types(source: Source) -> None:
    with open_snapshot(source, query_for(source)) as snapshot:
        batches = list(snapshot.batches)
    assert all(batch.schema == staged_schema(DATASET.columns) for batch in batches)
    assert [comparable(row) for batch in batches for row in batch.to_pylist()] == [wanted(row) for row in ACME]
    assert snapshot.row_count == len(ACME)
    assert snapshot.taken_at.utcoffset() is not None


def test_the_pandas_reader_gives_the_same_rows_and_types(source: Source) -> None:
    with pandas_snapshot(source, query_for(source)) as snapshot:
        batches = list(snapshot.batches)
    assert all(batch.schema == staged_schema(DATASET.columns) for batch in batches)
    assert [comparable(row) for batch in batches for row in batch.to_pylist()] == [wanted(row) for row in ACME]


LATER_WRITES = (
    "INSERT INTO people (id, organization_id, name) VALUES (1000, 'acme', 'changed')",
    "UPDATE people SET name = 'changed' WHERE id IN (14, 28) AND name IS NULL",
)
UNDO = ("DELETE FROM people WHERE id = 1000", "UPDATE people SET name = NULL WHERE name = 'changed'")


def write_elsewhere(source: Source, statements: tuple[str, ...]) -> None:
    """Write from a process of its own, as the host application does."""
    script = (
        "import sys, sqlalchemy as sa\n"
        "with sa.create_engine(sys.argv[1]).begin() as connection:\n"
        "    for statement in sys.argv[2:]: connection.exec_driver_sql(statement)\n"
    )
    subprocess.run([sys.executable, "-c", script, source.url, *statements], check=True)


def test_a_snapshot_does_not_see_later_writes(source: Source) -> None:
    if source.backend == "sqlite":
        write_elsewhere(source, ("PRAGMA journal_mode=WAL",))
    with open_snapshot(source, query_for(source)) as snapshot:
        write_elsewhere(source, LATER_WRITES)
        names = [name for batch in snapshot.batches for name in batch["name"].to_pylist()]
    with open_snapshot(source, query_for(source)) as later:
        later_names = [name for batch in later.batches for name in batch["name"].to_pylist()]
    write_elsewhere(source, UNDO)
    assert len(names) == snapshot.row_count == len(ACME)
    assert "changed" not in names
    assert later_names.count("changed") >= 1


def failure(source: Source, query: Query) -> ExportFailure:
    with pytest.raises(ExportFailure) as failed, open_snapshot(source, query) as snapshot:
        list(snapshot.batches)
    assert failed.value.__suppress_context__ or failed.value.__context__ is None
    return failed.value


def test_an_unreachable_postgresql_is_transient_and_its_password_is_not_told() -> None:
    source = Source("postgresql+psycopg://app:s3cret@127.0.0.1:1/none?connect_timeout=2")
    failed = failure(source, query_for(source))
    assert (failed.code, failed.fault) == (FailureCode.SOURCE_UNAVAILABLE, Fault.TRANSIENT)
    assert "s3cret" not in str(failed)


@pytest.mark.parametrize("shares_file", [True, False])
def test_a_missing_sqlite_file_is_transient(tmp_path: Path, shares_file: bool) -> None:
    source = Source(f"sqlite:///{tmp_path / 'none.db'}", shares_file=shares_file)
    assert failure(source, query_for(source)).code is FailureCode.SOURCE_UNAVAILABLE


def test_a_missing_table_is_refused(postgres_url: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    sqlite3.connect(empty).close()
    sources = [Source(postgres_url), Source(f"sqlite:///{empty}"), Source(f"sqlite:///{empty}", shares_file=True)]
    for source in sources:
        assert failure(source, query_for(source)).code is FailureCode.SOURCE_REFUSED


def test_a_timestamp_without_zone_is_utc_to_filters_too_whatever_the_servers_zone(postgres_url: str) -> None:
    people.create(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE people ALTER created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC'")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET timezone TO 'America/Sao_Paulo'".encode())
    source = Source(postgres_url)
    start, end = datetime(2026, 3, 10, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC)
    ranged = Selection(DATASET, "acme", DATASET.columns, AllOf(()), created_from=start, created_before=end)
    with open_snapshot(source, build_query(ranged, source.backend)) as snapshot:
        rows = [row for batch in snapshot.batches for row in batch.to_pylist()]
    expected = [row["id"] for row in ACME if start <= row["created_at"] < end]
    assert [row["id"] for row in rows] == expected
    assert expected


def test_a_statement_time_out_says_so(postgres_url: str) -> None:
    people.create(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE people RENAME TO people_")
        connection.execute("CREATE VIEW people AS SELECT * FROM people_ WHERE pg_sleep(0.05 + id * 0) IS NOT NULL")
    source = Source(postgres_url, statement_timeout_seconds=0.5)
    failed = failure(source, query_for(source))
    assert failed.code is FailureCode.SOURCE_REFUSED
    assert "EXPORT_STATEMENT_TIMEOUT_SECONDS" in failed.message


@pytest.mark.parametrize("shares_file", [True, False])
def test_a_statement_time_out_says_so_on_sqlite_too(tmp_path: Path, shares_file: bool) -> None:
    made = people.create(f"sqlite:///{tmp_path / 'people.db'}")
    count = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000000) SELECT max(x) FROM n)"
    with sqlite3.connect(tmp_path / "people.db") as connection:
        connection.execute("ALTER TABLE people RENAME TO people_")
        connection.execute(f"CREATE VIEW people AS SELECT * FROM people_ WHERE {count} + id * 0 > 0")
    connection.close()
    source = Source(made.url, statement_timeout_seconds=0.01, shares_file=shares_file)
    failed = failure(source, query_for(source))
    assert failed.code is FailureCode.SOURCE_REFUSED
    assert "EXPORT_STATEMENT_TIMEOUT_SECONDS" in failed.message


def test_a_backend_that_is_terminated_is_transient(postgres_url: str) -> None:
    people.create(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    source = Source(postgres_url)
    with pytest.raises(ExportFailure) as failed, open_snapshot(source, query_for(source)) as snapshot:
        _read_after_termination(postgres_url, snapshot)
    assert failed.value.code is FailureCode.SOURCE_UNAVAILABLE


def _read_after_termination(url: str, snapshot: Snapshot) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    list(snapshot.batches)


@pytest.mark.parametrize("shares_file", [True, False])
@pytest.mark.parametrize(
    ("column", "value"), [("score", "high"), ("is_client", "maybe"), ("born_on", "1990"), ("created_at", "soon")]
)
def test_a_value_of_the_wrong_type_is_told_and_never_dropped(
    tmp_path: Path, shares_file: bool, column: str, value: str
) -> None:
    source = people.create(f"sqlite:///{tmp_path / 'people.db'}")
    with sqlite3.connect(tmp_path / "people.db") as connection:
        connection.execute(f"UPDATE people SET {column} = ? WHERE id = 33", (value,))
    connection.close()
    source = Source(source.url, shares_file=shares_file)
    failed = failure(source, query_for(source))
    assert failed.code is FailureCode.SOURCE_DATA_INVALID
    assert value not in failed.message


NO_JSON = ("plain", "", '1},{"id":999', 'null,"email":"x"', "{'a': 1}", "[NaN]", '{"a": 1')


@pytest.mark.parametrize("value", NO_JSON)
def test_text_that_is_declared_json_and_is_none_is_refused(source: Source, value: str) -> None:
    """It is spliced into JSON files as it is, so a cell could add rows and forge columns."""
    with json_as_text(source, value) as query:
        assert failure(source, query).code is FailureCode.SOURCE_DATA_INVALID


def test_text_that_is_declared_json_and_is_some_is_read(source: Source) -> None:
    with json_as_text(source, '[1, "é"]') as query, open_snapshot(source, query) as snapshot:
        values = [text for batch in snapshot.batches for text in batch["extra"].to_pylist()]
    assert values.count('[1, "é"]') == 1
    assert set(values) == {'[1, "é"]', "{}"}


@contextmanager
def json_as_text(source: Source, value: str) -> Iterator[Query]:
    """The people with a json column that is a text in the database, and holds the value in one row."""
    others = ", ".join(column.source for column in DATASET.columns if column.type is not ColumnType.JSON)
    extra = f"CASE WHEN id = 33 THEN '{value.replace(chr(39), chr(39) * 2)}' ELSE '{{}}' END"
    write_elsewhere(source, (f"CREATE VIEW texts AS SELECT organization_id, {others}, {extra} AS extra FROM people",))
    dataset = DATASET.model_copy(update={"table": "texts"})
    try:
        yield build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), source.backend)
    finally:
        write_elsewhere(source, ("DROP VIEW texts",))


def test_a_server_that_falls_silent_is_noticed_within_minutes(postgres_url: str) -> None:
    """By the kernel's own word: when it next asks the peer of each connection whether it lives (proc(5), net/tcp)."""
    people.create(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    source = Source(postgres_url)
    with open_snapshot(source, query_for(source)) as snapshot:
        next(snapshot.batches)
        waits = _keepalives(psycopg.conninfo.conninfo_to_dict(postgres_url)["port"])
    assert waits
    assert max(waits) <= 30


def _keepalives(port: str | int | None) -> list[float]:
    """Seconds until the next keepalive of each of this process's connections to a port of this machine."""
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    mine = {str(entry.readlink()) for entry in descriptors}
    waits = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, _, timer, _, _, _, inode, *_ = line.split()
        if int(remote.rpartition(":")[2], 16) == int(port or 0) and f"socket:[{inode}]" in mine:
            kind, _, ticks = timer.partition(":")
            assert kind == "02", "no keepalive"
            waits.append(int(ticks, 16) / os.sysconf("SC_CLK_TCK"))
    return waits


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-08T01:30:00Z",
        "2026-03-08 01:30:00",
        "2026-03-07T22:30:00-03:00",
        "2026-03-07 22:30:00-03",
        "2026-03-08T01:30:00.000000+00:00",
    ],
)
@pytest.mark.parametrize("shares_file", [True, False])
def test_sqlite_instants_may_be_spelled_in_every_iso_way(tmp_path: Path, shares_file: bool, text: str) -> None:
    source = people.create(f"sqlite:///{tmp_path / 'people.db'}")
    connection = sqlite3.connect(tmp_path / "people.db")
    with connection:
        connection.execute("UPDATE people SET created_at = ?", (text,))
    connection.close()
    source = Source(source.url, shares_file=shares_file)
    with open_snapshot(source, query_for(source)) as snapshot:
        instants = {value.isoformat() for batch in snapshot.batches for value in batch["created_at"].to_pylist()}
    assert instants == {"2026-03-08T01:30:00+00:00"}
