"""A cancel reaches a reader that waits for its database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psycopg
import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.filters.tree import AllOf
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline_tests.stack import SLOW

FOREVER = 600
VIEW = """
CREATE VIEW slow AS SELECT number AS id, 'acme'::text AS organization_id FROM generate_series(1, 6000) number
WHERE CASE WHEN {waits} THEN pg_sleep(0.1 + 0 * number) IS NOT NULL ELSE true END
"""


class Interrupted(Exception):
    """What the signal's handler raises, as Dagster's does."""


@pytest.fixture
def interrupted_soon() -> Iterator[None]:
    """SIGUSR1 in two seconds: SIGALRM is the test's own time-out."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(2, os.kill, [os.getpid(), signal.SIGUSR1])
    timer.start()
    yield
    timer.cancel()
    timer.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("waits", ["current_query() NOT LIKE '%count(%'", "current_query() LIKE '%count(%'"])
def test_a_signal_breaks_off_a_query_that_has_no_row_yet(postgres_url: str, waits: str, interrupted_soon: None) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute(VIEW.format(waits=waits).encode())
    dataset = parse_dataset(SLOW)
    query = build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), "postgresql")
    began = time.monotonic()
    with pytest.raises(Interrupted), open_snapshot(Source(postgres_url), query) as snapshot:
        list(snapshot.batches)
    assert time.monotonic() - began < FOREVER / 4
    deadline = time.monotonic() + 30
    while asked(postgres_url) and time.monotonic() < deadline:  # the server hears of a cancel a moment later
        time.sleep(0.2)
    assert asked(postgres_url) == []


def asked(url: str) -> list[tuple[str]]:
    """What of the view the server still works on."""
    active = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
    with psycopg.connect(url) as connection:
        return connection.execute(f"{active} AND pid <> pg_backend_pid() AND query LIKE '%slow%'".encode()).fetchall()


FAST_ROWS = 12_000
"""Of a kilobyte each: more than a reader holds at a time, so that the slow rows after them are waited for."""
BODIES = {
    "postgresql": "body_of(id)",
    "sqlite": "printf('%.*c', 1000, 'x') || CASE WHEN id > 12000 THEN (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL "
    "SELECT x + 1 FROM n WHERE x < 50000 + id * 0) SELECT max(x) FROM n) ELSE '' END",
    "mariadb": "concat(repeat('x', 1000), CASE WHEN id > 12000 THEN sleep(0.1) ELSE '' END)",
}
"""The text of a row, which takes a tenth of a second to make after ``FAST_ROWS``; less on SQLite."""


@pytest.fixture(
    params=[
        "postgresql",
        pytest.param("postgresql 18", marks=pytest.mark.slow),
        pytest.param("mariadb", marks=pytest.mark.slow),
        "sqlite",
        pytest.param("sqlite shared", marks=pytest.mark.slow),
    ]
)
def slow_source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A database with a view ``slow``: its URL, and the kind of reader."""
    backend, _, kind = request.param.partition(" ")
    if backend == "sqlite":
        url = f"sqlite:///{tmp_path / 'slow.db'}"
        _make_slow(url, backend)
        yield url, kind
        return
    server = request.getfixturevalue(
        {"postgresql": "postgres_server", "18": "postgres18_server"}.get(kind or backend, "mariadb_server")
    )
    with server.fresh_database() as fresh:
        url = fresh.replace("postgresql://", "postgresql+psycopg://")
        _make_slow(url, backend)
        yield url, kind


def _make_slow(url: str, backend: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (id integer PRIMARY KEY)")
        connection.execute(
            sa.text("INSERT INTO numbers VALUES (:id)"), [{"id": at + 1} for at in range(FAST_ROWS + 500)]
        )
        if backend == "postgresql":
            # Stable, and without sorts: rows come as they are made, by the key's index, not all at once after a sort.
            connection.exec_driver_sql(
                "CREATE FUNCTION body_of(id int) RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN "
                "IF id > 12000 THEN PERFORM pg_sleep(0.1); END IF; RETURN repeat('x', 1000); END $$"
            )
            name = sa.make_url(url).database
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET enable_sort = off")
        connection.exec_driver_sql(
            f"CREATE VIEW slow AS SELECT id, 'acme' AS organization_id, {BODIES[backend]} AS body FROM numbers"
        )
    engine.dispose()


def test_a_cancel_between_rows_ends_the_reading_and_not_the_process(slow_source: tuple[str, str]) -> None:
    """In a process of its own: a reader that is closed while a thread is in it ends the process with SIGSEGV."""
    url, kind = slow_source
    command = [sys.executable, "-m", "export_pipeline_tests.engine.canceled", url, kind, "reading"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["canceled"]), done.stderr


def test_a_cancel_while_the_shared_sqlite_reader_counts_is_no_time_out(tmp_path: Path) -> None:
    """SQLite asks Python whether to go on: what a signal raises there must not be lost."""
    url = f"sqlite:///{tmp_path / 'slow.db'}"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (id integer PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO numbers VALUES (1)")
        connection.exec_driver_sql(
            "CREATE VIEW slow AS SELECT id, 'acme' AS organization_id, 'x' AS body FROM numbers "
            "WHERE (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500000000 + id * 0) "
            "SELECT max(x) FROM n) > 0"
        )
    engine.dispose()
    command = [sys.executable, "-m", "export_pipeline_tests.engine.canceled", url, "shared", "counting"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["canceled"]), done.stderr
