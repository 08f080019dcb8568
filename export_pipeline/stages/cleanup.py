"""What is deleted, and when: files past their retention, and what attempts that delivered nothing left behind.

Both stores are walked. A tree belongs to the request whose uid is its name, and the request's row decides. An export
that is not in this database may be another installation's: its absence alone proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import chain, islice
from typing import TypeVar

import sqlalchemy as sa

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.database.enums import FINISHED, UNFINISHED, RequestStatus
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.requests import transitions
from export_pipeline.requests.audit import events_of
from export_pipeline.requests.models import RequestState, is_canonical_uuid, read_state
from export_pipeline.stages.manifest import MANIFEST_NAME
from export_pipeline.stages.plan import staging_prefix
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Store

# From the staging store to the delivered files' store: names, keys, uploads, and taking them back.


def discard_attempt(store: Store, staging: Staging, uid: str, attempt: int) -> None:
    """Take an attempt back: nothing of it stays in either store."""
    for key in list(store.keys(f"{uid}/{attempt}/")):
        store.delete(key)
    staging.delete_tree(staging_prefix(uid, attempt))


T = TypeVar("T")
KEEP_LEFTOVERS = timedelta(days=1)
"""How long an ended request's staged rows are kept: an operator may still re-execute it from failure. Of a tree whose
request is unknown, how long nothing was written to it."""
KEEP_UPLOADS = timedelta(days=1)
"""An upload that began longer ago and never ended belongs to a process that is gone."""
_ROWS_A_QUERY = 500


def expire_exports(database: sa.Engine, store: Store) -> tuple[int, int]:
    """Delete the files of exports past their retention and mark the rows ``expired``.

    The row is marked first: an application never sees ``completed`` with files that are gone.

    Returns:
        How many are done, and how many the store would not let go; those are due again next time.
    """
    with reading(database) as connection:
        due = transitions.past_retention(connection)
    return _each(due, lambda one: _expire(database, store, *one))


def _expire(database: sa.Engine, store: Store, request_id: int, uid: str) -> bool:
    with database.begin() as connection:
        transitions.expire(connection, request_id)
    # Of every attempt: one that died may have left its files, too.
    for key in list(store.keys(f"{uid}/")):
        store.delete(key)
    with database.begin() as connection:
        transitions.files_deleted(connection, request_id)
    return True


def clear_leftovers(database: sa.Engine, store: Store, staging: Staging) -> tuple[int, int]:
    """Delete what ended requests left in staging, and the objects of their attempts that delivered nothing.

    Returns:
        How many requests are done, and how many could not be.
    """
    # Only what is named like a request is ours to delete: others may keep files beside it.
    staged = set(filter(is_canonical_uuid, staging.trees()))
    stored = (uid for uid in store.trees() if is_canonical_uuid(uid) and uid not in staged)
    uids = chain(sorted(staged), _without_right_to_files(database, stored))
    return _each(uids, lambda uid: _clear(database, store, staging, uid))


def _without_right_to_files(database: sa.Engine, uids: Iterable[str]) -> Iterator[str]:
    """Those whose row does not say that files are to be there; files of completed exports go when they expire."""
    rows = export_requests.c
    kept = (*UNFINISHED, RequestStatus.COMPLETED)
    left = iter(uids)
    while some := list(islice(left, _ROWS_A_QUERY)):
        with reading(database) as connection:
            found = connection.execute(sa.select(rows.uid).where(rows.uid.in_(some), rows.status.in_(kept))).scalars()
            keeping = {str(uid) for uid in found}
        yield from (uid for uid in some if uid not in keeping)


def _clear(database: sa.Engine, store: Store, staging: Staging, uid: str) -> bool:
    state = _state(database, uid)
    if state is not None and not _is_over(state):
        return False
    keys = list(store.keys(f"{uid}/"))
    if state is None and not _is_forgotten(database, store, staging, uid, keys):
        return False
    # Listing may take long, and an operator may re-execute the run meanwhile.
    if _state(database, uid) != state:
        return False
    delivered = f"{uid}/{state.attempt}/" if state and state.status is RequestStatus.COMPLETED else None
    for key in keys:
        if delivered is None or not key.startswith(delivered):
            store.delete(key)
    staging.delete_tree(uid)
    return True


def _is_forgotten(database: sa.Engine, store: Store, staging: Staging, uid: str, keys: list[str]) -> bool:
    """Whether a tree without a row may go: nothing was written to it for a day, and it is no other's export.

    The audit trail outlives the row, so it tells an export of ours, whose row the application deleted, from one of an
    installation that shares the store.
    """
    written = [instant for instant in (store.written_at(f"{uid}/"), staging.written_at(uid)) if instant is not None]
    if written and max(written) > utc_now() - KEEP_LEFTOVERS:
        return False
    if not any(key.endswith(f"/{MANIFEST_NAME}") for key in keys):
        return True
    with reading(database) as connection:
        return bool(events_of(connection, uid))


def _is_over(state: RequestState) -> bool:
    ended = state.completed_at if state.status in FINISHED else None
    return ended is not None and ended < utc_now() - KEEP_LEFTOVERS


def discard_abandoned(database: sa.Engine, store: Store, staging: Staging, uid: str, attempt: int) -> None:
    """Delete what an attempt wrote, if nobody will go on with it: its run lost the request while it was writing.

    Whoever ended the attempt has deleted what was there then; the rest is up to who wrote it afterwards.
    """
    state = _state(database, uid)
    if state is not None and _is_abandoned(state, attempt):
        discard_attempt(store, staging, uid, attempt)


def _is_abandoned(state: RequestState, attempt: int) -> bool:
    if state.attempt > attempt or state.status in (RequestStatus.CANCELED, RequestStatus.EXPIRED):
        return True
    by_requester = state.error_code is not None and _fault(state.error_code) is Fault.REQUESTER
    # After any other failure a re-execution may go on with what the attempt wrote.
    return state.status is RequestStatus.FAILED and by_requester


def _fault(code: str) -> Fault | None:
    return FailureCode(code).fault if code in set(FailureCode) else None


def _state(database: sa.Engine, uid: str) -> RequestState | None:
    with reading(database) as connection:
        return read_state(connection, uid)


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
