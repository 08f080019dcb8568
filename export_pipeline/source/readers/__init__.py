"""Readers: one consistent snapshot of a query's rows as Arrow record batches of the staged types.

A database's error reaches the caller as ``ExportFailure``: ``source_unavailable`` (transient), ``source_refused``
(permanent), ``source_data_invalid`` (a value that is not of its declared type or cannot be computed), or
``invalid_request`` (a filter value that the database cannot compare).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.settings import Settings

FETCH_BYTES = 8 << 20
"""About how much a reader holds at a time."""
FETCH_ROWS = 32_768
STEP_ROWS = 1024
"""The most rows at once from a driver that counts rows, not bytes."""
SECONDS_IDLE = 60
"""How long the source keeps a session without a statement; only a frozen process leaves one so long."""
SECONDS_TO_WAIT_FOR_A_LOCK = 60
SECONDS_TO_WAIT_FOR_US = 3600
"""How long the source waits for rows to be fetched: staging may be slow."""


@dataclass(frozen=True)
class Snapshot:
    """The rows at one instant (UTC): their exact number, and the batches, to be read once."""

    row_count: int
    taken_at: datetime
    batches: Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Source:
    """The database to read from, as a SQLAlchemy URL."""

    url: str = field(repr=False)
    statement_timeout_seconds: float = 0
    """Longest single statement; 0 = no limit."""
    shares_file: bool = False
    """It is a SQLite file that this process has open through Python's own ``sqlite3`` as well."""
    row_security: bool = False
    """Read the rows that PostgreSQL's row-level security allows, instead of failing where it hides rows."""

    @property
    def backend(self) -> str:
        """SQLAlchemy's name of the database: ``postgresql``, ``sqlite``, ``mysql``, ..."""
        return sa.make_url(self.url).get_backend_name()


def source_of(settings: Settings) -> Source:
    """The source in the settings."""
    urls = [sa.make_url(url) for url in (settings.database_url, settings.resolved_source_url)]
    paths = {Path(url.database or "").resolve() for url in urls}
    return Source(
        settings.resolved_source_url,
        settings.statement_timeout_seconds,
        shares_file=all(url.get_backend_name() == "sqlite" for url in urls) and len(paths) == 1,
        row_security=settings.source_row_security,
    )
