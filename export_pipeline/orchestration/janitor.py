"""The janitor: an hourly job that deletes what is past its time.

What belongs here: the schedule and its op. What does not: what is deleted and when (delivery.retention).
"""

from datetime import timedelta

import dagster as dg

from export_pipeline.delivery.retention import KEEP_UPLOADS, clear_leftovers, expire_exports
from export_pipeline.orchestration import descriptions, pruning, tags
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.upkeep import upkeep
from export_pipeline.orchestration.webhooks import JOB_NAME as WEBHOOKS_JOB_NAME
from export_pipeline.requests import events, rate_windows

JANITOR = "janitor"
LONGEST_RUN = timedelta(hours=6)
"""What is left then is the next run's."""
OUR_JOBS = (JANITOR, JOB_NAME, NOTIFY_JOB_NAME, WEBHOOKS_JOB_NAME)


@dg.op(description=descriptions.CLEAN)
def clean(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    upkeep(
        context,
        {
            "files past their time": lambda: _expire(exports),
            "leftovers": lambda: _clear(exports),
            "rate windows": lambda: _forget_windows(exports),
            "audit trail": lambda: _forget_events(exports),
            "uploads to the store": lambda: {"aborted_uploads": exports.store.abort_uploads(KEEP_UPLOADS)},
            "uploads to staging": lambda: {"aborted_uploads": exports.staging.abort_uploads(KEEP_UPLOADS)},
            "runs": lambda: pruning.forget(
                context.instance,
                exports.staging,
                exports.settings.run_retention_days,
                pruning.Ours.beside(context.run, OUR_JOBS),
                context.log.warning,
            ),
        },
    )


def _expire(exports: ExportResource) -> dict[str, int]:
    expired, failed = expire_exports(exports.database, exports.store)
    return {"expired_exports": expired, "failed": failed}


def _clear(exports: ExportResource) -> dict[str, int]:
    cleared, failed = clear_leftovers(exports.database, exports.store, exports.staging)
    return {"cleared_leftovers": cleared, "failed": failed}


def _forget_windows(exports: ExportResource) -> dict[str, int]:
    with exports.database.begin() as connection:
        return {"ended_rate_windows": rate_windows.forget_ended(connection)}


def _forget_events(exports: ExportResource) -> dict[str, int]:
    keep = exports.settings.audit_retention_days
    if not keep:
        return {"forgotten_audit_events": 0}
    with exports.database.begin() as connection:
        return {"forgotten_audit_events": events.forget(connection, timedelta(days=keep))}


@dg.job(
    name=JANITOR,
    description=descriptions.JANITOR,
    executor_def=dg.in_process_executor,
    run_tags=tags.upkeep_job_tags(LONGEST_RUN),
)
def janitor() -> None:
    """One op."""
    clean()


janitor_schedule = dg.ScheduleDefinition(
    job=janitor, cron_schedule="17 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
