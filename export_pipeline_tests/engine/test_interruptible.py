"""A cancel reaches a reader that waits for its database."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import psycopg
import pytest

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.engine.query import Selection, build_query
from export_pipeline.engine.readers import Source, open_snapshot
from export_pipeline.requests.conditions import AllOf
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
