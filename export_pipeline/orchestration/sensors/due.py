"""The sensors of what is due: fire times of recurring exports become rows, and webhook calls get a run."""

import time

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import reading
from export_pipeline.orchestration.jobs import JOB_NAME, LONGEST_WEBHOOKS, WEBHOOKS_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runs import unfinished_runs
from export_pipeline.orchestration.sensors import sensor, skipped
from export_pipeline.recurring.dispatch import make_due
from export_pipeline.requests.webhooks import any_due

MADE_PER_TICK = 50
"""Each has its own transaction; one that waits for an earlier request does not count."""


@sensor(job_name=JOB_NAME)
def recurring_exports(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Inserts a row into export_requests for each fire time of recurring_exports that is due, once."""
    # Needs no cursor: each row has its own, `last_fired_for`.
    try:
        tick = make_due(exports.database, limit=MADE_PER_TICK)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    text = f"{len(tick.made)} requests made, {tick.passed_over} recurring exports with fire times passed over."
    if tick.not_done:
        text += f" Not done, to be tried again: {', '.join(map(str, tick.not_done))}"
    if tick.corrected:
        text += f" A clock was wrong, marks in the future are corrected: {', '.join(map(str, tick.corrected))}."
    return dg.SkipReason(text)


@sensor(job_name=WEBHOOKS_JOB_NAME)
def export_webhooks(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.RunRequest | dg.SkipReason:
    """Starts a run of the job webhooks when calls are due, one run at a time."""
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
