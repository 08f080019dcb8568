"""Counters of requests per time window. Each count is one atomic statement, correct for any number of processes."""

from __future__ import annotations

import time

import sqlalchemy as sa

from export_pipeline.database.engine import insert_or
from export_pipeline.database.tables import rate_windows

_windows = rate_windows.c


def count(connection: sa.Connection, key: str, seconds: int) -> int:
    """Add 1 to a window of some ``seconds`` and return its count; a window that has ended starts again."""
    now = time.time()
    insert = insert_or(connection, rate_windows)
    ended = _windows.ends_at <= now
    statement = insert.values(key=key, hits=1, ends_at=now + seconds).on_conflict_do_update(
        index_elements=[_windows.key],
        set_={
            "hits": sa.case((ended, 1), else_=_windows.hits + 1),
            "ends_at": sa.case((ended, insert.excluded.ends_at), else_=_windows.ends_at),
        },
    )
    return int(connection.execute(statement.returning(_windows.hits)).scalar_one())


def forget_ended(connection: sa.Connection) -> int:
    """Delete the windows that have ended. Returns their number."""
    return connection.execute(rate_windows.delete().where(_windows.ends_at < time.time())).rowcount
