"""The sensor of cancellations: a requester's cancel ends the run, an operator's *Terminate* ends the row."""

import random
import time

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance

from export_pipeline.database.engine import reading
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runs import runs_of, terminated_before_they_began, terminated_of
from export_pipeline.orchestration.sensors import RECONCILE_SECONDS, done, sensor, skipped, summary
from export_pipeline.requests import queue, transitions
from export_pipeline.stages.cleanup import cancel_and_discard


@sensor(job_name=JOB_NAME)
def export_cancellations(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Cancels requests whose cancel_requested_at is set: the row, and its run if it has one.

    Also marks the row of a run that was terminated in this UI as canceled. Leave it on.
    """
    # Dagster marks a run as canceled even if it could not stop its process (the UI runs in another container) or its
    # step (on a Celery worker). Once the row is canceled, that process learns it with its next heartbeat.
    try:
        with reading(exports.database) as connection:
            requested = transitions.cancel_requested(connection)
            owned = transitions.running_requests(connection)
            claimed = queue.not_begun(connection)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    terminated = terminated_of(context.instance, [run_id for _, _, run_id in owned])
    stopped: list[tuple[int, str, str | None, str | None]]
    stopped = [(request_id, uid, run_id, None) for request_id, uid, run_id in owned if run_id in terminated]
    queued = terminated_before_they_began(context.instance, claimed)
    stopped += [(one.id, one.uid, None, one.claim_id) for one in queued]
    ends = time.monotonic() + RECONCILE_SECONDS
    failed = [
        uid
        for request_id, uid in random.sample(requested, len(requested))
        if time.monotonic() > ends or not done(_cancel, context.instance, exports, request_id, uid)
    ]
    failed += [
        uid
        for request_id, uid, run_id, claim_id in stopped
        if time.monotonic() > ends
        or not done(cancel_and_discard, exports, request_id, uid, run_id=run_id, claim_id=claim_id, wait=False)
    ]
    text = summary(len(requested), failed, "cancels requested")
    return dg.SkipReason(f"{len(stopped)} runs terminated by operators, {text}" if stopped else text)


def _cancel(instance: DagsterInstance, exports: ExportResource, request_id: int, uid: str) -> None:
    active = [run for run in runs_of(instance, uid) if not run.finished]
    for run in active:
        if not run.canceling:
            instance.run_coordinator.cancel_run(run.run_id)
    if not active:
        cancel_and_discard(exports, request_id, uid, wait=False)
