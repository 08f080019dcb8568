"""The queue as operators ask for it: who waits, who is served, and for how long the oldest has waited.

What belongs here: counting. What does not: taking anything from the queue (``claims``), showing it (cli).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from export_pipeline.requests.database import database_now
from export_pipeline.requests.enums import RequestStatus
from export_pipeline.requests.tables import export_requests


class Line(BaseModel):
    """The requests of one organization, or of all, that are not finished."""

    model_config = ConfigDict(frozen=True)

    organization_id: str | None
    """None: all organizations."""
    waiting: int
    """``queued``: for its turn, or for a new attempt after its process died."""
    running: int
    oldest_wait_seconds: float | None
    """Since the longest waiting request was inserted; None if none waits."""


class unix_seconds(GenericFunction[float]):  # noqa: N801 - named like the SQL function it stands for
    """An instant as seconds since 1970; NULL for what SQLite holds in a column of instants and is none."""

    type = sa.Double()
    inherit_cache = True


@compiles(unix_seconds, "postgresql")
def _unix_seconds_postgresql(element: unix_seconds, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST(extract(epoch FROM {compiler.process(element.clauses, **options)}) AS double precision)"


@compiles(unix_seconds, "sqlite")
def _unix_seconds_sqlite(element: unix_seconds, compiler: SQLCompiler, **options: Any) -> str:
    return f"((julianday({compiler.process(element.clauses, **options)}) - 2440587.5) * 86400.0)"


def queue(connection: sa.Connection, organization_id: str | None = None) -> list[Line]:
    """One line an organization that has anything waiting or running, the longest wait first."""
    rows = export_requests.c
    waits, runs = rows.status == RequestStatus.QUEUED, rows.status == RequestStatus.RUNNING
    counted = connection.execute(
        sa.select(
            rows.organization_id,
            sa.func.count().filter(waits).label("waiting"),
            sa.func.count().filter(runs).label("running"),
            sa.func.min(unix_seconds(rows.created_at)).filter(waits).label("oldest"),
        )
        .where(sa.or_(waits, runs), sa.true() if organization_id is None else rows.organization_id == organization_id)
        .group_by(rows.organization_id)
    )
    now = database_now(connection).timestamp()
    lines = [
        Line(
            organization_id=str(row.organization_id),
            waiting=row.waiting,
            running=row.running,
            oldest_wait_seconds=None if row.oldest is None else max(now - row.oldest, 0.0),
        )
        for row in counted
    ]
    return sorted(lines, key=lambda line: (-_wait(line), line.organization_id or ""))


def _wait(line: Line) -> float:
    return -1.0 if line.oldest_wait_seconds is None else line.oldest_wait_seconds


def total(lines: Sequence[Line]) -> Line:
    """All lines as one."""
    return Line(
        organization_id=None,
        waiting=sum(line.waiting for line in lines),
        running=sum(line.running for line in lines),
        oldest_wait_seconds=max(lines, key=_wait).oldest_wait_seconds if lines else None,
    )
