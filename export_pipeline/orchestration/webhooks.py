"""Webhooks: a sensor that sees that calls are owed, and the job that makes them.

What belongs here: asking for the job's run. What does not: the calls (delivery.webhook), the ledger
(requests.webhooks). The sensor itself calls nobody: a slow receiver must not hold up the other sensors.
"""

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterRunStatus, RunsFilter

from export_pipeline.delivery.webhook import deliver_due
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


@dg.op(description="Calls every webhook that is due, signed; what is not taken is tried again later.")
def call_webhooks(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    upkeep(context, {"webhooks": lambda: deliver_due(exports.database, exports.settings)})


@dg.job(
    name=JOB_NAME,
    description="Tells applications that their exports ended (`webhook_url`). Safe to run at any time.",
    executor_def=dg.in_process_executor,
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
    if context.instance.get_run_ids(RunsFilter(job_name=JOB_NAME, statuses=_UNDER_WAY), limit=1):
        return dg.SkipReason("A run makes the calls already.")
    return dg.RunRequest()
