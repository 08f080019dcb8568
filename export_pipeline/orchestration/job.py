"""The export job: the way of one request, from the row to the mail.

What belongs here: the order of the ops. What does not: the ops.
"""

import dagster as dg

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


@dg.job(
    name=JOB_NAME,
    description="One row of `export_requests`: its files in the store, its recipients mailed. "
    "**Re-execute from failure** resumes at the step that failed; nothing is read or mailed twice.",
    executor_def=dg.in_process_executor,
)
def export_job() -> None:
    """Request to file to mail, one way."""
    shards, snapshot = filter_entities(plan())
    uploaded = shards.map(serialize).map(upload)
    notify_recipients(publish(snapshot, uploaded.collect()))


NOTIFY_JOB_NAME = "notify"


@dg.job(
    name=NOTIFY_JOB_NAME,
    description="The mails of a request whose run ended before they were all sent: its recipients' if it completed, "
    "its requester's if it failed. The reconciler asks for it.",
    executor_def=dg.in_process_executor,
)
def notify_job() -> None:
    """One op."""
    resume_notification()
