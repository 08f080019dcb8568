"""Canceling: the row first, then everything that its attempts made."""

from __future__ import annotations

from contextlib import suppress

from export_pipeline.database.engine import impatient, reading
from export_pipeline.database.enums import RequestStatus
from export_pipeline.failures import ExportFailure
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import transitions
from export_pipeline.requests.models import read_state
from export_pipeline.stages.cleanup import discard_attempt

BY_REQUESTER = "The export was canceled as asked."
BY_OPERATOR = "The export was canceled by an operator in Dagster."


def cancel_and_discard(
    exports: ExportResource,
    request_id: int,
    uid: str,
    *,
    run_id: str | None = None,
    claim_id: str | None = None,
    wait: bool = True,
) -> None:
    """Mark a request canceled, unless it is finished, and delete what its attempts left in both stores.

    With ``run_id`` or ``claim_id``, for what an operator did to that run: only if the request is still the run's, or
    still waits for the run of that claim. Safe to call again: a sensor may win the transition while the worker still
    holds files. A sensor does not ``wait`` for a row that somebody else has locked: it has others to see to.
    """
    database = exports.database if wait else impatient(exports.database)
    told = {"by_requester": BY_REQUESTER, "by_operator": BY_OPERATOR}
    with database.begin() as connection:
        transitions.cancel(connection, request_id, **told, run_id=run_id, claim_id=claim_id)
    with reading(exports.database) as connection:
        state = read_state(connection, uid)
    if state is None or state.status is not RequestStatus.CANCELED:
        return
    with suppress(ExportFailure):  # what cannot be deleted now is the janitor's
        for attempt in range(1, state.attempt + 1):
            discard_attempt(exports.store, exports.staging, uid, attempt)
