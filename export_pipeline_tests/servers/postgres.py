"""A real PostgreSQL for the tests, started by the code that the benchmark uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export_pipeline_tests.servers.postgres_server import PostgresServer, serve_postgres

__all__ = ["PostgresServer", "serve_postgres", "serve_postgres_with_icu"]


@contextmanager
def serve_postgres_with_icu() -> Iterator[PostgresServer]:
    """The system's own PostgreSQL, which has ICU's collations and ``citext``: the wheel's has neither."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL of the system: apt-get install postgresql")
    with serve_postgres(int(programs[-1].parents[1].name)) as server:
        yield server
