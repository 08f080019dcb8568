"""Counters of requests per time window. Each count is one atomic statement, correct for any number of processes."""

from __future__ import annotations

import time

import sqlalchemy as sa

from export_pipeline.database.engine import insert_or
from export_pipeline.database.tables import rate_windows

_windows = rate_windows.c


def count(connection: sa.Connection, key: str, seconds: int, amount: int = 1) -> int:
    """Add to a window of some ``seconds`` and return its count; a window that has ended starts again."""
    now = time.time()
    insert = insert_or(connection, rate_windows)
    ended = _windows.ends_at <= now
    fresh = insert.excluded
    statement = insert.values(key=key, hits=amount, ends_at=now + seconds).on_conflict_do_update(
        index_elements=[_windows.key],
        set_={
            "hits": sa.case((ended, fresh.hits), else_=_windows.hits + fresh.hits),
            "ends_at": sa.case((ended, fresh.ends_at), else_=_windows.ends_at),
        },
    )
    return int(connection.execute(statement.returning(_windows.hits)).scalar_one())


def window(connection: sa.Connection, key: str) -> tuple[int, float]:
    """The count of a window and when it ends (Unix seconds); 0 and now if it has ended."""
    now = time.time()
    row = connection.execute(
        sa.select(_windows.hits, _windows.ends_at).where(_windows.key == key, _windows.ends_at > now)
    ).first()
    return (row.hits, row.ends_at) if row else (0, now)


def forget(connection: sa.Connection, key: str | None = None) -> int:
    """Delete a window, or all of them. Returns their number."""
    return connection.execute(rate_windows.delete().where(sa.true() if key is None else _windows.key == key)).rowcount


def forget_ended(connection: sa.Connection) -> int:
    """Delete the windows that have ended. Returns their number."""
    return connection.execute(rate_windows.delete().where(_windows.ends_at < time.time())).rowcount
