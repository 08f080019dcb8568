"""Webhooks: a sensor that sees that calls are owed, and the job that makes them.

What belongs here: asking for the job's run. What does not: the calls (delivery.webhook), the ledger
(requests.webhooks). The sensor itself calls nobody: a slow receiver must not hold up the other sensors.
"""

import time
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from export_pipeline.delivery.webhook import deliver_due
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.sensors import INTERVAL_SECONDS, skipped
from export_pipeline.orchestration.upkeep import upkeep
from export_pipeline.requests.database import reading
from export_pipeline.requests.webhooks import any_due

JOB_NAME = "webhooks"
_UNDER_WAY = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


CALLING_SECONDS = 240.0
"""A run takes no more calls after that: the next one goes on."""
LONGEST_RUN = timedelta(minutes=10)
"""The calls that a run took last end by then: one that is still under way is dead."""


@dg.op(description="Calls every webhook that is due, signed; what is not taken is tried again later.")
def call_webhooks(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    upkeep(context, {"webhooks": lambda: deliver_due(exports.database, exports.settings, seconds=CALLING_SECONDS)})


@dg.job(
    name=JOB_NAME,
    description="Tells applications that their exports ended (`webhook_url`). Safe to run at any time.",
    executor_def=dg.in_process_executor,
    run_tags=tags.upkeep_job_tags(LONGEST_RUN),
)
def webhook_job() -> None:
    """One op."""
    call_webhooks()


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a run when webhooks are due, one at a time.",
)
def export_webhooks(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.RunRequest | dg.SkipReason:
    """Calls that are owed become one run."""
    try:
        with reading(exports.database) as connection:
            owed = any_due(connection)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    if not owed:
        return dg.SkipReason("No webhook is due.")
    if any(_is_under_way(context.instance, record) for record in _under_way(context)):
        return dg.SkipReason("A run makes the calls already.")
    return dg.RunRequest()


def _under_way(context: dg.SensorEvaluationContext) -> Sequence[dg.RunRecord]:
    """Our runs: another code location may have a job of this name."""
    origin, label = context.code_location_origin, {}
    if origin is not None and context.repository_name is not None:
        label = {REPOSITORY_LABEL_TAG: RemoteRepositoryOrigin(origin, context.repository_name).get_label()}
    return context.instance.get_run_records(RunsFilter(job_name=JOB_NAME, statuses=_UNDER_WAY, tags=label))


def _is_under_way(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run can still be heard of. Run monitoring ends it too, where an instance has it switched on."""
    if record.start_time is None or time.time() - record.start_time < LONGEST_RUN.total_seconds():
        return True
    instance.report_run_failed(record.dagster_run, "The run took longer than its calls can: its process is gone.")
    return False
