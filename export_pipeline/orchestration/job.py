"""The export job: the way of one request, from the row to the mail.

What belongs here: the order of the ops. What does not: the ops.
"""

import dagster as dg

from export_pipeline.orchestration import descriptions
from export_pipeline.orchestration.ops import (
    filter_entities,
    notify_recipients,
    plan,
    publish,
    resume_notification,
    serialize,
    upload,
)

JOB_NAME = "export"


@dg.job(name=JOB_NAME, description=descriptions.EXPORT)  # the executor is the settings': definitions
def export_job() -> None:
    """Request to file to mail, one way."""
    shards, snapshot = filter_entities(plan())
    uploaded = shards.map(serialize).map(upload)
    notify_recipients(publish(snapshot, uploaded.collect()))


NOTIFY_JOB_NAME = "notify"


@dg.job(
    name=NOTIFY_JOB_NAME,
    description=descriptions.NOTIFY,
    executor_def=dg.in_process_executor,
)
def notify_job() -> None:
    """One op."""
    resume_notification()
