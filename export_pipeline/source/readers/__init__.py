"""Readers: one consistent snapshot of a query's rows as Arrow record batches, whatever the database.

What belongs here: choosing the reader, and giving every reader's batches the same Arrow types.
What does not: the statement (``source.query``), where batches go (``engine.staging``).

Whatever the database says reaches the caller as ``ExportFailure``: ``source_unavailable`` for what
may pass, ``source_refused`` for what will not, ``source_data_invalid`` for a value that is not of its
declared type or cannot be computed, ``invalid_request`` for a filter value that the database cannot compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.settings import Settings
from export_pipeline.source.query import Query

FETCH_BYTES = 8 << 20
"""About how much a reader holds at a time."""
FETCH_ROWS = 32_768
STEP_ROWS = 1024
"""The most that a driver is asked for at once that counts rows, not bytes."""
SECONDS_IDLE = 60
"""How long the source keeps a session that asks nothing: ours asks at once, unless its process is frozen."""
SECONDS_TO_WAIT_FOR_A_LOCK = 60
SECONDS_TO_WAIT_FOR_US = 3600
"""How long the source waits for rows to be fetched: staging may be slow."""


@dataclass(frozen=True)
class Snapshot:
    """The rows of one instant: their exact number, the instant (UTC), and the batches, to be read once."""

    row_count: int
    taken_at: datetime
    batches: Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Source:
    """Where rows are read from, a SQLAlchemy URL."""

    url: str = field(repr=False)
    statement_timeout_seconds: float = 0
    """Longest single statement; 0 = no limit."""
    shares_file: bool = False
    """It is a SQLite file that this process has open through Python's own ``sqlite3`` as well."""
    row_security: bool = False
    """Read what PostgreSQL's row-level security lets through, rather than to refuse where it hides rows."""

    @property
    def backend(self) -> str:
        """The database's name as SQLAlchemy has it: ``postgresql``, ``sqlite``, ``mysql``, ..."""
        return sa.make_url(self.url).get_backend_name()


def source_of(settings: Settings) -> Source:
    """The source that the settings name."""
    url = settings.resolved_source_url
    return Source(
        url,
        settings.statement_timeout_seconds,
        shares_file=_same_file(settings.database_url, url),
        row_security=settings.source_row_security,
    )


def _same_file(one: str, other: str) -> bool:
    urls = [sa.make_url(url) for url in (one, other)]
    paths = {Path(url.database or "").resolve() for url in urls}
    return all(url.get_backend_name() == "sqlite" for url in urls) and len(paths) == 1


def open_snapshot(source: Source, query: Query) -> AbstractContextManager[Snapshot]:
    """Open one read-only snapshot of the source; it is held until the context ends.

    Args:
        source: the source database.
        query: what to read, built for this database's backend.
    """
    if source.backend == "postgresql":
        from export_pipeline.source.readers.postgresql import snapshot as postgresql_snapshot

        return postgresql_snapshot(
            source.url,
            query,
            statement_timeout_seconds=source.statement_timeout_seconds,
            row_security=source.row_security,
        )
    if source.backend == "sqlite" and source.shares_file:
        from export_pipeline.source.readers.sqlite_shared import snapshot as shared_snapshot

        return shared_snapshot(source.url, query, statement_timeout_seconds=source.statement_timeout_seconds)
    if source.backend == "sqlite":
        from export_pipeline.source.readers.sqlite import snapshot as sqlite_snapshot

        return sqlite_snapshot(source.url, query, statement_timeout_seconds=source.statement_timeout_seconds)
    from export_pipeline.source.readers.generic import snapshot as pandas_snapshot

    return pandas_snapshot(source.url, query, statement_timeout_seconds=source.statement_timeout_seconds)
