"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

What belongs here: reading, calling, returning what Dagster wants. What does not: transitions
(requests.states), what is done to a row that lost its run (``reconcile``).

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

import time
from contextlib import suppress
from datetime import timedelta

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance

from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.cancel import cancel_and_discard
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.mending import done, mend_all, resume_all, runs_of, terminated_of
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import claims, sizes, states
from export_pipeline.requests.database import reading
from export_pipeline.settings import LARGE_ROWS

ROWS_PER_TICK = 50
"""A run key costs the daemon a look-up; 50 keep a tick short, and the next tick takes the next 50."""
CLAIMED_PER_ORGANIZATION = 100
CLAIMED_IN_TOTAL = 300
"""So many of an organization, and of all, wait in Dagster's queue, the others in the table: each run that waits there
costs the daemon a look at every turn, and the reconciler one at every lease."""
INTERVAL_SECONDS = 4
LOOK_SECONDS = 0.25
LOOKS_APART = 10
"""... or so many times as long as a look took."""
SIZES_SECONDS = 5.0
"""The daemon gives a tick 60 s; its claims are committed by then, so it must not miss them."""
RECONCILE_INTERVAL_SECONDS = 14
QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""
NOTIFY_WITHIN = timedelta(days=2)
RESUME_SECONDS = 10.0
MEND_SECONDS = 30.0
"""The daemon gives a tick 60 s; what is left is done at the next."""

FULL = (
    f"Requests are waiting, and as many as may are claimed and have not begun ({CLAIMED_PER_ORGANIZATION} of an "
    f"organization, {CLAIMED_IN_TOTAL} of all). The others follow as those begin."
)
UNREACHABLE = (
    "The request database could not be read; check that it runs, EXPORT_DATABASE_URL, and that `export-pipeline db "
    "upgrade` was run. Trying again."
)


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_REQUESTS,
)
def export_requests(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Requests to runs. No cursor: the table's state is the cursor."""
    try:
        _wait_for_a_request(exports)
        with exports.database.begin() as connection:
            claimed = claims.claim(
                connection,
                limit=ROWS_PER_TICK,
                per_organization=CLAIMED_PER_ORGANIZATION,
                in_total=CLAIMED_IN_TOTAL,
            )
        if not claimed:
            return dg.SkipReason(_why_none(exports))
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    return dg.SensorResult(run_requests=_run_requests(exports, claimed))


def _run_requests(exports: ExportResource, claimed: list[claims.Claim]) -> list[dg.RunRequest]:
    """The claims are committed: a row of which no run can be made fails, and the others start."""
    expected = _expected_rows(exports, claimed)
    asked: list[dg.RunRequest] = []

    def ask(one: claims.Claim) -> None:
        asked.append(run_request(one, expected.get(one.id), exports.settings.large_rows))

    for one in claimed:
        if not done(ask, one):
            done(_give_up, exports, one)
    return asked


def _give_up(exports: ExportResource, claim: claims.Claim) -> None:
    with exports.database.begin() as connection:
        states.give_up(connection, claim.id, states.INTERNAL, attempt=claim.attempt, run_id=None)


def _expected_rows(exports: ExportResource, claimed: list[claims.Claim]) -> dict[int, int]:
    """How many rows each can be expected to have. They are claimed already: whatever goes wrong here, they start."""
    found: dict[int, int] = {}
    with suppress(Exception), reading(exports.database) as connection:  # an export of unknown size counts as small
        found.update(sizes.expected(connection, [one.id for one in claimed], seconds=SIZES_SECONDS))
    return found


def _why_none(exports: ExportResource) -> str:
    with reading(exports.database) as connection:
        return FULL if claims.is_any_waiting(connection) else "No request is waiting."


def _wait_for_a_request(exports: ExportResource) -> None:
    """A request that comes while the daemon's loop sleeps would wait for its end."""
    ends = time.monotonic() + exports.settings.pickup_wait_seconds
    while (began := time.monotonic()) < ends:
        with reading(exports.database) as connection:
            if claims.is_any_claimable(
                connection, per_organization=CLAIMED_PER_ORGANIZATION, in_total=CLAIMED_IN_TOTAL
            ):
                return
        # A look past a flood takes long: it is not to keep the database at work all the time.
        time.sleep(max(LOOK_SECONDS, LOOKS_APART * (time.monotonic() - began)))


def run_request(claim: claims.Claim, rows: int | None = None, large_rows: int = LARGE_ROWS) -> dg.RunRequest:
    """The run of a claimed request: its config is the request's id alone, so that no row can spoil the tick."""
    return dg.RunRequest(
        run_key=claim.run_key,
        run_config={"ops": {"plan": {"config": {"request_id": claim.id}}}},
        tags=tags.run_tags(claim, rows=rows, large_rows=large_rows),
    )


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=JOB_NAME,
    description=descriptions.EXPORT_CANCELLATIONS,
)
def export_cancellations(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Cancels, as fast as the sensor ticks: of requesters to the run, of operators from the run to the row.

    Dagster calls a run canceled whose process nobody could reach (the UI in another container) or told (a step on a
    Celery worker). Once the row is canceled, that process hears of it with its next heartbeat.
    """
    try:
        with reading(exports.database) as connection:
            asked = states.cancel_requested(connection)
            owned = states.owned(connection)
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    failed = [uid for request_id, uid in asked if not done(_cancel, context.instance, exports, request_id, uid)]
    terminated = terminated_of(context.instance, [run_id for _, _, run_id in owned])
    stopped = [(request_id, uid, run_id) for request_id, uid, run_id in owned if run_id in terminated]
    failed += [
        uid
        for request_id, uid, run_id in stopped
        if not done(cancel_and_discard, exports, request_id, uid, run_id=run_id)
    ]
    told = _summary(len(asked), failed, "cancels asked for")
    return dg.SkipReason(f"{len(stopped)} runs terminated by operators, {told}" if stopped else told)


def _cancel(instance: DagsterInstance, exports: ExportResource, request_id: int, uid: str) -> None:
    active = [run for run in runs_of(instance, uid) if not run.finished]
    for run in active:
        if not run.canceling:
            instance.run_coordinator.cancel_run(run.run_id)
    if not active:
        cancel_and_discard(exports, request_id, uid)


@dg.sensor(
    minimum_interval_seconds=RECONCILE_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=NOTIFY_JOB_NAME,
    description=descriptions.EXPORT_RECONCILER,
)
def export_reconciler(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """What status sensors and crashed workers leave behind. The cursor: the last row whose mails were looked after."""
    settings = exports.settings
    quiet_seconds = QUIET_HEARTBEATS * settings.heartbeat_seconds
    try:
        with reading(exports.database) as connection:
            orphans = claims.quiet(
                connection,
                lease_seconds=settings.claim_lease_seconds,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
            )
            unnotified = claims.unnotified(
                connection,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
                within=NOTIFY_WITHIN,
            )
            if not settings.sends_mail:
                unnotified = []
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    # Before what may take long: no request for a run is to be lost with a tick that is cut short.
    asked, failed, not_resumed = _resume_mails(context, unnotified)
    not_mended, left = mend_all(context.instance, exports, orphans, seconds=MEND_SECONDS)
    if asked:
        return dg.SensorResult(run_requests=asked)
    told = _summary(len(orphans), not_mended + failed, "rows without a heartbeat")
    left += not_resumed
    return dg.SkipReason(told + (f" {left} are left to the next tick." if left else ""))


def _resume_mails(
    context: dg.SensorEvaluationContext, unnotified: list[claims.Orphan]
) -> tuple[list[dg.RunRequest], list[str], int]:
    """``resume_all``, beginning after the row at which the last tick ended: after an outage all get their turn."""
    cursor = context.cursor or ""
    after = int(cursor) if cursor.isdecimal() else 0
    in_turn = sorted(unnotified, key=lambda orphan: (orphan.id <= after, orphan.id))
    asked, failed, left = resume_all(context.instance, in_turn, seconds=RESUME_SECONDS, at_most=ROWS_PER_TICK)
    if left < len(in_turn):
        context.update_cursor(str(in_turn[len(in_turn) - left - 1].id))
    return asked, failed, left


def _summary(number: int, failed: list[str], what: str) -> str:
    return f"{number} {what}." + (f" Not done, to be tried again: {', '.join(failed)}" if failed else "")
