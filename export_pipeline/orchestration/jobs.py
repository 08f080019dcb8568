"""The export job: the way of one request, from the row to the mail."""

from datetime import timedelta

import dagster as dg

from export_pipeline.orchestration import descriptions, tags
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


# The executor is the settings': definitions.
@dg.job(name=JOB_NAME, description=descriptions.EXPORT, run_tags=tags.export_job_tags())
def export_job() -> None:
    """Request to file to mail, one way."""
    shards, snapshot = filter_entities(plan())
    uploaded = shards.map(serialize).map(upload)
    notify_recipients(publish(snapshot, uploaded.collect()))


NOTIFY_JOB_NAME = "notify"
LONGEST_NOTIFY = timedelta(minutes=30)
"""26 mails, each with the provider's time-outs."""


@dg.job(
    name=NOTIFY_JOB_NAME,
    description=descriptions.NOTIFY,
    executor_def=dg.in_process_executor,
    run_tags=tags.upkeep_job_tags(LONGEST_NOTIFY),
)
def notify_job() -> None:
    """One op."""
    resume_notification()
