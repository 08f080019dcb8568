"""The sensor of recurring exports: fire times that are due become rows of ``export_requests``."""

import dagster as dg
import sqlalchemy as sa

from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.sensors.common import INTERVAL_SECONDS, skipped
from export_pipeline.recurring.dispatch import make_due

MADE_PER_TICK = 50
"""Each is a transaction of its own; one that waits for an earlier request does not count."""


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Turns fire times of `recurring_exports` that are due into rows of `export_requests`, each once.",
)
def recurring_exports(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Fire times to requests. No cursor: `last_fired_for` of each row is the cursor."""
    try:
        tick = make_due(exports.database, exports.organizations, limit=MADE_PER_TICK)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    told = f"{len(tick.made)} requests made, {tick.passed_over} recurring exports with fire times passed over."
    if tick.not_done:
        told += f" Not done, to be tried again: {', '.join(map(str, tick.not_done))}"
    if tick.corrected:
        told += f" A clock was wrong, marks in the future are corrected: {', '.join(map(str, tick.corrected))}."
    return dg.SkipReason(told)
