"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

import time
from contextlib import suppress

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import impatient, reading
from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.sensors.common import INTERVAL_SECONDS, ROWS_PER_TICK, done, skipped
from export_pipeline.requests import queue, transitions
from export_pipeline.settings import LARGE_ROWS

CLAIMED_PER_ORGANIZATION = 100
CLAIMED_IN_TOTAL = 300
"""So many of an organization, and of all, wait in Dagster's queue, the others in the table: each run that waits there
costs the daemon a look at every turn, and the reconciler one at every lease."""
LOOK_SECONDS = 0.25
LOOKS_APART = 10
"""... or so many times as long as a look took."""
SIZES_SECONDS = 5.0
"""The daemon gives a tick 60 s; its claims are committed by then, so it must not miss them."""
FULL = (
    f"Requests are waiting, and as many as may are claimed and have not begun ({CLAIMED_PER_ORGANIZATION} of an "
    f"organization, {CLAIMED_IN_TOTAL} of all). The others follow as those begin."
)
PROBING = (
    "The source or the store does not answer. One request at a time tries it; the others follow once it was answered."
)
A_TEST = "This is a test: nothing is claimed, for a test launches no run."


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_REQUESTS,
)
def export_requests(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Requests to runs. No cursor: the table's state is the cursor."""
    if _is_test(context):
        return dg.SkipReason(A_TEST)
    try:
        _wait_for_a_request(exports)
        with exports.database.begin() as connection:
            claimed = queue.claim(
                connection,
                limit=ROWS_PER_TICK,
                per_organization=CLAIMED_PER_ORGANIZATION,
                in_total=CLAIMED_IN_TOTAL,
            )
        if not claimed:
            return dg.SkipReason(_why_none(exports))
    except sa.exc.DBAPIError as error:
        return skipped(error)
    return dg.SensorResult(run_requests=_run_requests(exports, claimed))


def _is_test(context: dg.SensorEvaluationContext) -> bool:
    """*Test sensor* in the UI: evaluated without a daemon, which says when it started the sensor or last called it."""
    by_daemon = context.last_sensor_start_time or context.last_tick_completion_time
    return context.instance_ref is not None and not by_daemon


def _run_requests(exports: ExportResource, claimed: list[queue.Claim]) -> list[dg.RunRequest]:
    """The claims are committed: a row of which no run can be made fails, and the others start."""
    expected = _expected_rows(exports, claimed)
    asked: list[dg.RunRequest] = []

    def ask(one: queue.Claim) -> None:
        asked.append(run_request(one, expected.get(one.id), exports.settings.large_rows))

    for one in claimed:
        if not done(ask, one):
            done(_give_up, exports, one)
    return asked


def _give_up(exports: ExportResource, claim: queue.Claim) -> None:
    with impatient(exports.database).begin() as connection:
        transitions.give_up(connection, claim.id, transitions.INTERNAL, attempt=claim.attempt, run_id=None)


def _expected_rows(exports: ExportResource, claimed: list[queue.Claim]) -> dict[int, int]:
    """How many rows each can be expected to have. They are claimed already: whatever goes wrong here, they start."""
    found: dict[int, int] = {}
    with suppress(Exception), reading(exports.database) as connection:  # an export of unknown size counts as small
        found.update(queue.expected(connection, [one.id for one in claimed], seconds=SIZES_SECONDS))
    return found


def _why_none(exports: ExportResource) -> str:
    with reading(exports.database) as connection:
        if not queue.is_any_waiting(connection):
            return "No request is waiting."
        return PROBING if queue.is_any_postponed(connection) else FULL


def _wait_for_a_request(exports: ExportResource) -> None:
    """A request that comes while the daemon's loop sleeps would wait for its end."""
    ends = time.monotonic() + exports.settings.pickup_wait_seconds
    while (began := time.monotonic()) < ends:
        with reading(exports.database) as connection:
            if queue.is_any_claimable(connection, per_organization=CLAIMED_PER_ORGANIZATION, in_total=CLAIMED_IN_TOTAL):
                return
        # A look past a flood takes long: it is not to keep the database at work all the time.
        time.sleep(max(LOOK_SECONDS, LOOKS_APART * (time.monotonic() - began)))


def run_request(claim: queue.Claim, rows: int | None = None, large_rows: int = LARGE_ROWS) -> dg.RunRequest:
    """The run of a claimed request: its config is the request's id alone, so that no row can spoil the tick."""
    return dg.RunRequest(
        run_key=claim.run_key,
        run_config={"ops": {"plan": {"config": {"request_id": claim.id}}}},
        tags=tags.run_tags(claim, rows=rows, large_rows=large_rows),
    )
