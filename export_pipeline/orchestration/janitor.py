"""The janitor: an hourly job that deletes what is past its time.

What belongs here: the schedule and its op. What does not: what is deleted and when (delivery.retention).
"""

from datetime import timedelta

import dagster as dg

from export_pipeline.delivery.retention import KEEP_UPLOADS, clear_leftovers, expire_exports
from export_pipeline.orchestration import descriptions, pruning
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.webhooks import JOB_NAME as WEBHOOKS_JOB_NAME
from export_pipeline.requests import events, rate_windows

JANITOR = "janitor"
OUR_JOBS = (JANITOR, JOB_NAME, NOTIFY_JOB_NAME, WEBHOOKS_JOB_NAME)


@dg.op(description=descriptions.CLEAN)
def clean(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    expired, not_expired = expire_exports(exports.database, exports.store)
    cleared, not_cleared = clear_leftovers(exports.database, exports.store, exports.staging)
    with exports.database.begin() as connection:
        windows = rate_windows.forget_ended(connection)
        keep = exports.settings.audit_retention_days
        events_forgotten = events.forget(connection, timedelta(days=keep)) if keep else 0
    context.add_output_metadata(
        {
            "expired_exports": expired,
            "cleared_leftovers": cleared,
            "failed": not_expired + not_cleared,
            "aborted_uploads": exports.store.abort_uploads(KEEP_UPLOADS) + exports.staging.abort_uploads(KEEP_UPLOADS),
            **pruning.forget(
                context.instance,
                exports.staging,
                exports.settings.run_retention_days,
                pruning.Ours.beside(context.run, OUR_JOBS),
                context.log.warning,
            ),
            "ended_rate_windows": windows,
            "forgotten_audit_events": events_forgotten,
        }
    )


@dg.job(name=JANITOR, description=descriptions.JANITOR, executor_def=dg.in_process_executor)
def janitor() -> None:
    """One op."""
    clean()


janitor_schedule = dg.ScheduleDefinition(
    job=janitor, cron_schedule="17 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
