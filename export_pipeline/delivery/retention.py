"""Retention: files past their time, and what crashed or failed attempts left behind.

What belongs here: what a janitor deletes, and when. What does not: its schedule (orchestration).
"""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from export_pipeline.delivery.store import Store
from export_pipeline.delivery.upload import discard_attempt
from export_pipeline.engine.plan import staging_prefix
from export_pipeline.engine.staging import Staging
from export_pipeline.requests import expiry
from export_pipeline.requests.database import reading, utc_now
from export_pipeline.requests.model import read_state
from export_pipeline.requests.progress import FINISHED
from export_pipeline.requests.tables import RequestStatus

KEEP_LEFTOVERS = timedelta(days=1)
"""How long an ended request's staged rows are kept: an operator may still re-execute it from failure."""
KEEP_UPLOADS = timedelta(days=1)
"""An upload that began longer ago and never ended belongs to a process that is gone."""


def expire_exports(database: sa.Engine, store: Store) -> int:
    """Delete the files of exports past their retention and mark the rows ``expired``; returns how many.

    The row is marked first: an application never sees ``completed`` with files that are gone.
    """
    with reading(database) as connection:
        due = expiry.past_retention(connection)
    for request_id, uid, attempt in due:
        with database.begin() as connection:
            expiry.expire(connection, request_id)
        for key in list(store.keys(f"{uid}/{attempt}/")):
            store.delete(key)
        with database.begin() as connection:
            expiry.files_deleted(connection, request_id)
    return len(due)


def clear_leftovers(database: sa.Engine, store: Store, staging: Staging) -> int:
    """Delete what ended requests left in staging, and the objects of their attempts that delivered nothing."""
    cleared = 0
    for uid in staging.trees():
        with reading(database) as connection:
            state = read_state(connection, uid)
        if state is None:
            staging.delete_tree(uid)
            cleared += 1
            continue
        if state.status not in FINISHED or state.completed_at is None:
            continue
        if state.completed_at > utc_now() - KEEP_LEFTOVERS:
            continue
        delivered = state.attempt if state.status is RequestStatus.COMPLETED else None
        for attempt in range(1, state.attempt + 1):
            if attempt == delivered:
                staging.delete_tree(staging_prefix(uid, attempt))
            else:
                discard_attempt(store, staging, uid, attempt)
        staging.delete_tree(uid)
        cleared += 1
    return cleared
