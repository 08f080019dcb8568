"""The sensor of recurring exports: each fire time that is due becomes a row of ``export_requests``."""

import dagster as dg
import sqlalchemy as sa

from export_pipeline.orchestration import descriptions
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.sensors.common import INTERVAL_SECONDS, skipped
from export_pipeline.recurring.dispatch import make_due

MADE_PER_TICK = 50
"""Each has its own transaction; one that waits for an earlier request does not count."""


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.RECURRING_EXPORTS,
)
def recurring_exports(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Needs no cursor: each row has its own, ``last_fired_for``."""
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
