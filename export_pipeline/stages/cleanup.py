"""What is deleted, and when: canceled exports, files past their retention, and what unfinished attempts left.

The janitor walks store and staging. A tree belongs to the request whose uid is its name, and the request's row decides.
An export that is not in this database may be another installation's, so a missing row proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import chain, islice
from typing import TypeVar

import sqlalchemy as sa

from export_pipeline.database.engine import impatient, reading, utc_now
from export_pipeline.database.enums import FINISHED, UNFINISHED, RequestStatus
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.requests import transitions
from export_pipeline.requests.audit import events_of
from export_pipeline.requests.models import RequestState, is_canonical_uuid, read_state
from export_pipeline.stages import Services
from export_pipeline.stages.manifest import MANIFEST_NAME
from export_pipeline.stages.plan import staging_prefix
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Store

T = TypeVar("T")
BY_REQUESTER = "The requester canceled the export."
BY_OPERATOR = "An operator canceled the export in Dagster."
KEEP_LEFTOVERS = timedelta(days=1)
"""How long the staged rows of an ended request are kept: an operator may still re-execute it from failure. For a tree
whose request is unknown: how long it must not have been written to."""
KEEP_UPLOADS = timedelta(days=1)
"""An upload that began longer ago and never ended belongs to a process that is gone."""
_ROWS_A_QUERY = 500


def cancel_and_discard(
    services: Services,
    request_id: int,
    uid: str,
    *,
    run_id: str | None = None,
    claim_id: str | None = None,
    wait: bool = True,
) -> None:
    """Mark a request canceled, unless it is finished, and delete what its attempts left in both services.

    It is safe to call again: a sensor may cancel the row while the worker still holds files.

    For an operator who terminated a run, ``run_id`` cancels only if the request is still this run's, and ``claim_id``
    only if it still waits for the run of this claim. A sensor does not ``wait`` for a row that another transaction has
    locked: other requests wait for the sensor.
    """
    database = services.database if wait else impatient(services.database)
    with database.begin() as connection:
        messages = {"by_requester": BY_REQUESTER, "by_operator": BY_OPERATOR}
        transitions.cancel(connection, request_id, **messages, run_id=run_id, claim_id=claim_id)
    state = _state(services.database, uid)
    if state is None or state.status is not RequestStatus.CANCELED:
        return
    with suppress(ExportFailure):  # the janitor deletes the rest
        for attempt in range(1, state.attempt + 1):
            discard_attempt(services.store, services.staging, uid, attempt)


def discard_attempt(store: Store, staging: Staging, uid: str, attempt: int) -> None:
    """Delete everything that an attempt wrote to either store."""
    for key in list(store.keys(f"{uid}/{attempt}/")):
        store.delete(key)
    staging.delete_tree(staging_prefix(uid, attempt))


def discard_abandoned(database: sa.Engine, store: Store, staging: Staging, uid: str, attempt: int) -> None:
    """Delete what an attempt wrote if no run will continue it: its own run lost the request while writing.

    The run that ended the attempt deleted what was there then; this deletes what was written afterwards.
    """
    state = _state(database, uid)
    if state is not None and _is_abandoned(state, attempt):
        discard_attempt(store, staging, uid, attempt)


def _is_abandoned(state: RequestState, attempt: int) -> bool:
    if state.attempt > attempt or state.status in (RequestStatus.CANCELED, RequestStatus.EXPIRED):
        return True
    code = next((known for known in FailureCode if known == state.error_code), None)
    # After any other failure a re-execution may continue with what the attempt wrote.
    return state.status is RequestStatus.FAILED and code is not None and code.fault is Fault.REQUESTER


def expire_exports(database: sa.Engine, store: Store) -> tuple[int, int]:
    """Delete the files of exports past their retention and mark the rows ``expired``.

    The row is marked first: an application never sees ``completed`` with files that are gone. Returns how many are
    done, and how many the store failed to delete; those are due again next time.
    """
    with reading(database) as connection:
        due = transitions.past_retention(connection)
    return _each(due, lambda request: _expire(database, store, *request))


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

    Returns how many requests are done, and how many failed.
    """
    # Trees with other names are not ours: other programs may keep files beside them.
    staged = set(filter(is_canonical_uuid, staging.trees()))
    stored = (uid for uid in store.trees() if is_canonical_uuid(uid) and uid not in staged)
    uids = chain(sorted(staged), _without_right_to_files(database, stored))
    return _each(uids, lambda uid: _clear(database, store, staging, uid))


def _without_right_to_files(database: sa.Engine, uids: Iterable[str]) -> Iterator[str]:
    """The uids that are neither unfinished nor completed; files of completed exports go when they expire."""
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
    if state is not None:
        ended = state.completed_at if state.status in FINISHED else None
        if ended is None or ended >= utc_now() - KEEP_LEFTOVERS:
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
    """Whether a tree without a row may go: not written to for a day, and not an export of another installation.

    The audit trail outlives the row. So it distinguishes our export, whose row the application deleted, from that of
    an installation that shares the store.
    """
    written = [instant for instant in (store.written_at(f"{uid}/"), staging.written_at(uid)) if instant is not None]
    if written and max(written) > utc_now() - KEEP_LEFTOVERS:
        return False
    if not any(key.endswith(f"/{MANIFEST_NAME}") for key in keys):
        return True
    with reading(database) as connection:
        return bool(events_of(connection, uid))


def _state(database: sa.Engine, uid: str) -> RequestState | None:
    with reading(database) as connection:
        return read_state(connection, uid)


def _each(items: Iterable[T], work: Callable[[T], bool]) -> tuple[int, int]:
    """Do ``work`` for each item; a failure of one does not stop the others. Returns how many were done, and failed."""
    done = failed = 0
    for item in items:
        try:
            done += work(item)
        except (ExportFailure, sa.exc.OperationalError, ValueError, TypeError):
            # OperationalError: a locked row. ValueError and TypeError: a value that SQLite should not hold.
            failed += 1
    return done, failed
