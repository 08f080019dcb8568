"""Retention: files past their time, and what crashed or failed attempts left behind.

What belongs here: what a janitor deletes, and when. What does not: its schedule (orchestration).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import sqlalchemy as sa

from export_pipeline.delivery.store import Store
from export_pipeline.engine.staging import Staging
from export_pipeline.failures import ExportFailure
from export_pipeline.requests import expiry
from export_pipeline.requests.database import reading, utc_now
from export_pipeline.requests.enums import FINISHED, RequestStatus
from export_pipeline.requests.model import RequestState, is_canonical_uuid, read_state

T = TypeVar("T")

KEEP_LEFTOVERS = timedelta(days=1)
"""How long an ended request's staged rows are kept: an operator may still re-execute it from failure."""
KEEP_UPLOADS = timedelta(days=1)
"""An upload that began longer ago and never ended belongs to a process that is gone."""


def expire_exports(database: sa.Engine, store: Store) -> tuple[int, int]:
    """Delete the files of exports past their retention and mark the rows ``expired``.

    The row is marked first: an application never sees ``completed`` with files that are gone.

    Returns:
        How many are done, and how many the store would not let go; those are due again next time.
    """
    with reading(database) as connection:
        due = expiry.past_retention(connection)
    return _each(due, lambda one: _expire(database, store, *one))


def _expire(database: sa.Engine, store: Store, request_id: int, uid: str, attempt: int) -> bool:
    with database.begin() as connection:
        expiry.expire(connection, request_id)
    for key in list(store.keys(f"{uid}/{attempt}/")):
        store.delete(key)
    with database.begin() as connection:
        expiry.files_deleted(connection, request_id)
    return True


def clear_leftovers(database: sa.Engine, store: Store, staging: Staging) -> tuple[int, int]:
    """Delete what ended requests left in staging, and the objects of their attempts that delivered nothing.

    Returns:
        How many requests are done, and how many could not be.
    """
    # Only what is named like a request is ours to delete: others may keep files beside it.
    return _each(filter(is_canonical_uuid, staging.trees()), lambda uid: _clear(database, store, staging, uid))


def _clear(database: sa.Engine, store: Store, staging: Staging, uid: str) -> bool:
    state = _state(database, uid)
    if not _is_over(state):
        return False
    keys = list(store.keys(f"{uid}/"))
    # Listing may take long, and an operator may re-execute the run meanwhile.
    if _state(database, uid) != state:
        return False
    delivered = f"{uid}/{state.attempt}/" if state and state.status is RequestStatus.COMPLETED else None
    for key in keys:
        if delivered is None or not key.startswith(delivered):
            store.delete(key)
    staging.delete_tree(uid)
    return True


def _state(database: sa.Engine, uid: str) -> RequestState | None:
    with reading(database) as connection:
        return read_state(connection, uid)


def _is_over(state: RequestState | None) -> bool:
    if state is None:
        return True
    ended = state.completed_at if state.status in FINISHED else None
    return ended is not None and ended < utc_now() - KEEP_LEFTOVERS


def _each(items: Iterable[T], do: Callable[[T], bool]) -> tuple[int, int]:
    """Do all of them that are due; one that fails must not keep the others from being done."""
    done = failed = 0
    for item in items:
        try:
            done += do(item)
        except (ExportFailure, sa.exc.OperationalError, ValueError, TypeError):
            # Of the database: a row that somebody else has locked. The latter two: a value that SQLite should not hold.
            failed += 1
    return done, failed
