"""The sensor of requests: it claims queued rows and starts their runs."""

import time
from contextlib import suppress

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import impatient, reading
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.sensors import ROWS_PER_TICK, done, sensor, skipped
from export_pipeline.requests import queue, transitions
from export_pipeline.settings import LARGE_ROWS

CLAIMED_PER_ORGANIZATION = 100
CLAIMED_IN_TOTAL = 300
"""More wait in the table, not in Dagster's queue: each run queued there costs the daemon a look at every turn, and the
reconciler one at every lease."""
LOOK_SECONDS = 0.25
LOOKS_APART = 10
"""Pause between looks, in multiples of how long a look took; at least ``LOOK_SECONDS``."""
SIZES_SECONDS = 5.0
"""Bound for reading sizes. The daemon gives a tick 60 s, and a late tick would lose claims that are committed."""
FULL = (
    "Requests are waiting, but the limit of claimed requests that have not begun is reached "
    f"({CLAIMED_PER_ORGANIZATION} of an organization, {CLAIMED_IN_TOTAL} of all). The others follow as those begin."
)
PROBING = (
    "The source or the store does not answer. One request at a time tries; the others follow once one gets an answer."
)
A_TEST = "This is a test of the sensor: it claims nothing, because a test launches no run."


@sensor(job_name=JOB_NAME)
def export_requests(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Claims queued rows of export_requests, at most 50 a tick, in turns across organizations, and starts their runs.

    At most 100 requests of an organization, and 300 in total, are claimed and have not begun. Turn it off to stop new
    exports: rows then wait, and 'export-pipeline queue' shows them. If ticks are skipped with 'could not be read',
    check the request database.
    """
    # Needs no cursor: the table's state is the cursor.
    if _is_test(context):
        return dg.SkipReason(A_TEST)
    try:
        _wait_for_a_request(exports)
        with exports.database.begin() as connection:
            claimed = queue.claim(
                connection, limit=ROWS_PER_TICK, per_organization=CLAIMED_PER_ORGANIZATION, in_total=CLAIMED_IN_TOTAL
            )
        if not claimed:
            return dg.SkipReason(_why_none(exports))
    except sa.exc.DBAPIError as error:
        return skipped(error)
    return dg.SensorResult(run_requests=_run_requests(exports, claimed))


def _is_test(context: dg.SensorEvaluationContext) -> bool:
    """*Test sensor* in the UI: only the daemon passes when it started the sensor or called it last."""
    by_daemon = context.last_sensor_start_time or context.last_tick_completion_time
    return context.instance_ref is not None and not by_daemon


def _run_requests(exports: ExportResource, claimed: list[queue.Claim]) -> list[dg.RunRequest]:
    """The runs of claimed requests. The claims are committed, so a row for which no run can be made fails."""
    expected = _expected_rows(exports, claimed)
    found: list[dg.RunRequest] = []
    for claim in claimed:
        try:
            found.append(run_request(claim, expected.get(claim.id), exports.settings.large_rows))
        except Exception:  # noqa: BLE001 - the others start
            done(_give_up, exports, claim)
    return found


def _give_up(exports: ExportResource, claim: queue.Claim) -> None:
    with impatient(exports.database).begin() as connection:
        transitions.give_up(connection, claim.id, transitions.INTERNAL, attempt=claim.attempt, run_id=None)


def _expected_rows(exports: ExportResource, claimed: list[queue.Claim]) -> dict[int, int]:
    """How many rows each request probably has, by id. The requests are claimed: they start even if this fails."""
    found: dict[int, int] = {}
    with suppress(Exception), reading(exports.database) as connection:  # an export of unknown size counts as small
        found.update(queue.expected_rows(connection, [one.id for one in claimed], seconds=SIZES_SECONDS))
    return found


def _why_none(exports: ExportResource) -> str:
    with reading(exports.database) as connection:
        if not queue.is_any_waiting(connection):
            return "No request is waiting."
        return PROBING if queue.is_any_postponed(connection) else FULL


def _wait_for_a_request(exports: ExportResource) -> None:
    """Look for requests during the tick, so that a new one does not wait for the daemon's next loop."""
    ends = time.monotonic() + exports.settings.pickup_wait_seconds
    while (began := time.monotonic()) < ends:
        with reading(exports.database) as connection:
            if queue.is_any_claimable(connection, per_organization=CLAIMED_PER_ORGANIZATION, in_total=CLAIMED_IN_TOTAL):
                return
        # With many rows waiting a look takes long: the database must not be busy with it all the time.
        time.sleep(max(LOOK_SECONDS, LOOKS_APART * (time.monotonic() - began)))


def run_request(claim: queue.Claim, rows: int | None = None, large_rows: int = LARGE_ROWS) -> dg.RunRequest:
    """The run of a claimed request. Its config is only the request's id, so that no row can break the tick."""
    return dg.RunRequest(
        run_key=claim.run_key,
        run_config={"ops": {"plan": {"config": {"request_id": claim.id}}}},
        tags=tags.run_tags(claim, rows=rows, large_rows=large_rows),
    )
