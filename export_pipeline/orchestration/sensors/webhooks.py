"""The sensor of webhooks: it starts a run of the job ``webhooks`` when calls are due."""

import time

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import reading
from export_pipeline.orchestration import descriptions
from export_pipeline.orchestration.jobs import LONGEST_WEBHOOKS, WEBHOOKS_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runs import unfinished_runs
from export_pipeline.orchestration.sensors.common import INTERVAL_SECONDS, skipped
from export_pipeline.requests.webhooks import any_due


@dg.sensor(
    job_name=WEBHOOKS_JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_WEBHOOKS,
)
def export_webhooks(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.RunRequest | dg.SkipReason:
    """One run at a time makes all calls that are due."""
    try:
        with reading(exports.database) as connection:
            is_due = any_due(connection)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    if not is_due:
        return dg.SkipReason("No webhook is due.")
    if any(_is_alive(context.instance, record) for record in unfinished_runs(context, WEBHOOKS_JOB_NAME)):
        return dg.SkipReason("A run makes the calls already.")
    return dg.RunRequest()


def _is_alive(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run can still be alive; if not, it is failed here. Run monitoring would too, if it is switched on."""
    if record.start_time is None or time.time() - record.start_time < LONGEST_WEBHOOKS.total_seconds():
        return True
    instance.report_run_failed(record.dagster_run, "The run took longer than its calls can take: its process is gone.")
    return False
