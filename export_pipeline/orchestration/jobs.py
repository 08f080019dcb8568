"""The four jobs: ``export`` and ``notify`` for one request each, ``webhooks`` and the hourly ``janitor`` for all."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from export_pipeline.failures import Fault
from export_pipeline.messaging.webhook import deliver_due
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.metadata import describe, failure_of, metadata_of
from export_pipeline.orchestration.ops import (
    filter_entities,
    notify_recipients,
    plan,
    publish,
    resume_notification,
    serialize,
    upload,
)
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runs import forget, repository_label
from export_pipeline.requests import audit, rate_windows, transitions
from export_pipeline.settings import Settings
from export_pipeline.stages.cleanup import KEEP_UPLOADS, clear_leftovers, expire_exports

JOB_NAME = "export"
NOTIFY_JOB_NAME = "notify"
WEBHOOKS_JOB_NAME = "webhooks"
JANITOR_JOB_NAME = "janitor"
OUR_JOBS = (JANITOR_JOB_NAME, JOB_NAME, NOTIFY_JOB_NAME, WEBHOOKS_JOB_NAME)
LONGEST_EXPORT = timedelta(days=7)
"""Last resort: an export whose process is gone ends long before, by its heartbeat."""
LONGEST_NOTIFY = timedelta(minutes=30)
"""26 mails, each with the provider's time-outs."""
CALLING_SECONDS = 240.0
"""A run starts no more webhook calls after that: the next run goes on."""
LONGEST_WEBHOOKS = timedelta(minutes=10)
"""The last calls of a run end by then: a run that still lives is dead."""
LONGEST_JANITOR = timedelta(hours=6)
"""What is left then is the next run's."""


# definitions.py gives this job the executor of the settings.
@dg.job(name=JOB_NAME, run_tags=tags.job_tags(LONGEST_EXPORT))
def export_job() -> None:
    """One run exports one row of `export_requests`: it writes the files to the store and mails the recipients.

    * **Which export?** See the tags `export/organization`, `export/dataset`, `export/format` and `export/request_uid`.
      Click one to filter the runs by it. The row itself: `export-pipeline status <request_uid>`.
    * **How far is it?** See the step that is running and the `INFO` lines in its events (rows done of all rows).
    * **What failed, and who has to act?** See the tags `export/error_code` and `export/fault`. The `STEP_FAILURE` event
      of the red step says what to press.
    * **To continue after the cause is fixed:** *Re-execute → From failure*. Nothing is read or mailed twice.
    * **To stop it:** *Terminate*. The row becomes `canceled`, no file stays in the store, and no mail is sent.
    """
    shards, snapshot = filter_entities(plan())
    uploaded = shards.map(serialize).map(upload)
    notify_recipients(publish(snapshot, uploaded.collect()))


def _job_of(op: dg.OpDefinition, name: str, longest: timedelta) -> dg.JobDefinition:
    """A job of one op, which gets a priority over exports in the queue and ends after ``longest``."""
    run_tags = tags.job_tags(longest) | {"dagster/priority": "10"}

    @dg.job(name=name, description=op.description, executor_def=dg.in_process_executor, run_tags=run_tags)
    def job() -> None:
        op()

    return job


notify_job = _job_of(resume_notification, NOTIFY_JOB_NAME, LONGEST_NOTIFY)


def run_parts(context: dg.OpExecutionContext, parts: Mapping[str, Callable[[], Mapping[str, int]]]) -> None:
    """Do every part, even if others fail. Their counts become the op's metadata; equal names are added up.

    Raises ``dagster.Failure``: names the parts that failed. Not retried: the next run does what is left.
    """
    counted: Counter[str] = Counter()
    failed: list[Exception] = []
    lines = ["Not done, and tried again by the next run:"]
    for name, part in parts.items():
        try:
            counted.update(part())
        except Exception as error:  # noqa: BLE001 - the other parts are done
            failed.append(error)
            failure = failure_of(error)
            lines.append(f"- {name}: {failure.code if failure is transitions.INTERNAL else describe(failure)}")
    if failed:
        # A failure that passes by itself must not hide one that an operator has to fix.
        worst = min(failed, key=lambda error: failure_of(error).fault is Fault.TRANSIENT)
        raise dg.Failure("\n".join(lines), metadata={**metadata_of(worst), **counted}, allow_retries=False)
    context.add_output_metadata(counted)


@dg.op
def call_webhooks(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Calls every webhook that is due (`webhook_url`), signed. Safe to launch at any time.

    A call that is not accepted is tried again later.
    """
    run_parts(context, {"webhooks": lambda: deliver_due(exports.database, exports.settings, seconds=CALLING_SECONDS)})


webhook_job = _job_of(call_webhooks, WEBHOOKS_JOB_NAME, LONGEST_WEBHOOKS)


@dg.op
def clean(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Expires old exports, clears what ended attempts left, aborts unfinished uploads and deletes old runs.

    Runs every hour. The row of an export older than `EXPORT_RETENTION_DAYS` becomes `expired`.

    Safe to launch at any time. `failed` in the step's output counts what could not be deleted; the next run tries
    again. **If it fails**, the red step names the parts that were not done. All other parts were done.
    """
    database, store, staging = exports.database, exports.store, exports.staging
    keep_events, keep_runs = exports.settings.audit_retention_days, exports.settings.run_retention_days

    def expire() -> dict[str, int]:
        expired, failed = expire_exports(database, store)
        return {"expired_exports": expired, "failed": failed}

    def clear() -> dict[str, int]:
        cleared, failed = clear_leftovers(database, store, staging)
        return {"cleared_leftovers": cleared, "failed": failed}

    def forget_rate_windows() -> dict[str, int]:
        with database.begin() as connection:
            return {"ended_rate_windows": rate_windows.forget_ended(connection)}

    def forget_events() -> dict[str, int]:
        if not keep_events:
            return {"forgotten_audit_events": 0}
        with database.begin() as connection:
            return {"forgotten_audit_events": audit.forget(connection, timedelta(days=keep_events))}

    def forget_runs() -> dict[str, int]:
        label = repository_label(context.run)
        return forget(context.instance, staging, keep_runs, OUR_JOBS, label=label, log=context.log.warning)

    run_parts(
        context,
        {
            "files past their time": expire,
            "leftovers": clear,
            "rate windows": forget_rate_windows,
            "audit trail": forget_events,
            "uploads to the store": lambda: {"aborted_uploads": store.abort_uploads(KEEP_UPLOADS)},
            "uploads to staging": lambda: {"aborted_uploads": staging.abort_uploads(KEEP_UPLOADS)},
            "runs": forget_runs,
        },
    )


janitor = _job_of(clean, JANITOR_JOB_NAME, LONGEST_JANITOR)
janitor_schedule = dg.ScheduleDefinition(
    job=janitor, cron_schedule="17 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)

THREADLESS_MODULES = ("dagster", "dagster_aws.s3", "boto3", "sqlalchemy", "pydantic_settings")
"""Imported before a step's process is forked. Not our own definitions: polars and Arrow start threads when imported,
and a lock that such a thread held would stay locked in the fork."""


def executor_of(settings: Settings) -> dg.ExecutorDefinition:
    """The executor of the export job."""
    match settings.executor:
        case "in_process":
            return dg.in_process_executor
        case "multiprocess":
            start = {"forkserver": {"preload_modules": list(THREADLESS_MODULES)}}
            config = {"max_concurrent": settings.executor_concurrency, "start_method": start}
            return dg.multiprocess_executor.configured(config, name="multiprocess")
        case "celery":
            from dagster_celery import celery_executor

            return celery_executor.configured(celery_config(settings), name="celery")
        case "k8s":
            from dagster_k8s import k8s_job_executor

            return k8s_job_executor.configured({"max_concurrent": settings.executor_concurrency}, name="k8s")


def celery_config(settings: Settings) -> dict[str, Any]:
    """Config of Dagster's Celery executor. It names the variables of the URLs: the URLs themselves hold passwords."""
    result = "EXPORT_CELERY_RESULT_URL" if settings.celery_result_url.get_secret_value() else "EXPORT_CELERY_BROKER_URL"
    return {
        "broker": {"env": "EXPORT_CELERY_BROKER_URL"},
        "backend": {"env": result},
        "config_source": {
            # A worker that prefetches a step for which it has no free process, and dies, would take the step along.
            "worker_prefetch_multiplier": 1,
            "worker_disable_prefetch": True,
            "broker_connection_retry_on_startup": True,
        },
    }
