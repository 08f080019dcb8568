"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

import random
import time

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance

from export_pipeline.database.engine import reading
from export_pipeline.orchestration import descriptions
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runs import runs_of, terminated_before_they_began, terminated_of
from export_pipeline.orchestration.sensors.common import INTERVAL_SECONDS, RECONCILE_SECONDS, done, skipped, summary
from export_pipeline.requests import queue, transitions
from export_pipeline.stages.cleanup import cancel_and_discard


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
            asked = transitions.cancel_requested(connection)
            owned = transitions.owned(connection)
            claimed = queue.not_begun(connection)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    terminated = terminated_of(context.instance, [run_id for _, _, run_id in owned])
    stopped: list[tuple[int, str, str | None, str | None]]
    stopped = [(row, uid, run_id, None) for row, uid, run_id in owned if run_id in terminated]
    stopped += [
        (one.id, one.uid, None, one.claim_id) for one in terminated_before_they_began(context.instance, claimed)
    ]
    ends = time.monotonic() + RECONCILE_SECONDS
    failed = [
        uid
        for request_id, uid in random.sample(asked, len(asked))
        if time.monotonic() > ends or not done(_cancel, context.instance, exports, request_id, uid)
    ]
    failed += [
        uid
        for request_id, uid, run_id, claim_id in stopped
        if time.monotonic() > ends
        or not done(cancel_and_discard, exports, request_id, uid, run_id=run_id, claim_id=claim_id, wait=False)
    ]
    told = summary(len(asked), failed, "cancels asked for")
    return dg.SkipReason(f"{len(stopped)} runs terminated by operators, {told}" if stopped else told)


def _cancel(instance: DagsterInstance, exports: ExportResource, request_id: int, uid: str) -> None:
    active = [run for run in runs_of(instance, uid) if not run.finished]
    for run in active:
        if not run.canceling:
            instance.run_coordinator.cancel_run(run.run_id)
    if not active:
        cancel_and_discard(exports, request_id, uid, wait=False)
