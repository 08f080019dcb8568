"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

What belongs here: reading, calling, returning what Dagster wants. What does not: transitions
(requests.states), what is done to a row that lost its run (``reconcile``).

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

from collections.abc import Iterable

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.orchestration import tags
from export_pipeline.orchestration.job import JOB_NAME
from export_pipeline.orchestration.reconcile import Fate, RunView, fate
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.stage import CANCELED_BY_REQUESTER
from export_pipeline.requests import claims, states
from export_pipeline.requests.database import reading

ROWS_PER_TICK = 50
"""A run key costs the daemon a look-up; 50 keep a tick short, and the next tick takes the next 50."""
INTERVAL_SECONDS = 4
RECONCILE_INTERVAL_SECONDS = 14
QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""

UNREACHABLE = "The request database could not be reached; check that it runs and EXPORT_DATABASE_URL. Trying again."


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Claims queued rows of `export_requests`, in fair turns across organizations, and asks for their runs.",
)
def export_requests(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Requests to runs. No cursor: the table's state is the cursor."""
    try:
        with exports.database.begin() as connection:
            claimed = claims.claim(connection, limit=ROWS_PER_TICK)
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    if not claimed:
        return dg.SkipReason("No request is waiting.")
    return dg.SensorResult(run_requests=[run_request(claim) for claim in claimed])


def run_request(claim: claims.Claim) -> dg.RunRequest:
    """The run of a claimed request: its config is the request's id alone, so that no row can spoil the tick."""
    return dg.RunRequest(
        run_key=claim.run_key,
        run_config={"ops": {"plan": {"config": {"request_id": claim.id}}}},
        tags=tags.run_tags(claim),
    )


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=JOB_NAME,
    description="Cancels what `cancel_requested_at` asks to be canceled: the row, and its run if it has one.",
)
def export_cancellations(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Cancels, as fast as the sensor ticks."""
    try:
        with reading(exports.database) as connection:
            asked = states.cancel_requested(connection)
        for request_id, uid in asked:
            active = [run for run in runs_of(context.instance, uid) if not run.finished]
            for run in active:
                context.instance.run_coordinator.cancel_run(run.run_id)
            if not active:
                with exports.database.begin() as connection:
                    states.cancel(connection, request_id, CANCELED_BY_REQUESTER)
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    return dg.SkipReason(f"{len(asked)} cancels asked for." if asked else "No cancel is asked for.")


@dg.sensor(
    minimum_interval_seconds=RECONCILE_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=JOB_NAME,
    description="Compares rows with their runs and heartbeats, and mends what lost its run.",
)
def export_reconciler(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """What status sensors and crashed workers leave behind."""
    settings = exports.settings
    try:
        with reading(exports.database) as connection:
            found = claims.quiet(
                connection,
                lease_seconds=settings.claim_lease_seconds,
                quiet_seconds=QUIET_HEARTBEATS * settings.heartbeat_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
            )
        mended = [_mend(context.instance, exports, orphan) for orphan in found]
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    done = [f"{orphan.uid}: {what}" for orphan, what in zip(found, mended, strict=True) if what is not Fate.LEAVE]
    return dg.SkipReason("; ".join(done) or "Nothing to mend.")


def _mend(instance: DagsterInstance, exports: ExportResource, orphan: claims.Orphan) -> Fate:
    runs = runs_of(instance, orphan.uid)
    decided = fate(orphan, runs, max_attempts=exports.settings.max_attempts)
    for run in runs if decided is not Fate.LEAVE else ():
        if not run.finished and run.attempt == orphan.attempt and (dead := instance.get_run_by_id(run.run_id)):
            instance.report_run_failed(dead, "The run wrote no heartbeat; its process is taken for dead.")
    with exports.database.begin() as connection:
        decided.apply(connection, orphan)
    return decided


def runs_of(instance: DagsterInstance, uid: str) -> list[RunView]:
    """All runs of a request."""
    records: Iterable[dg.RunRecord] = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: uid}))
    return [
        RunView(run.run_id, tags.attempt_of(run.tags), run.is_finished, run.status is dg.DagsterRunStatus.CANCELED)
        for run in (record.dagster_run for record in records)
    ]
