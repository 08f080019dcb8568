"""The janitor: an hourly job that deletes what is past its time."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import dagster as dg
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from export_pipeline.failures import Fault
from export_pipeline.messaging.webhook import deliver_due
from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.execution import describe, failure_of, metadata_of
from export_pipeline.orchestration.jobs import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.resources import OUTPUTS, ExportResource
from export_pipeline.requests import audit, rate_windows, transitions
from export_pipeline.requests.models import is_canonical_uuid
from export_pipeline.stages.cleanup import KEEP_LEFTOVERS, KEEP_UPLOADS, clear_leftovers, expire_exports
from export_pipeline.storage.staging import Staging

# What Dagster keeps for ever unless told otherwise: runs, their events and logs, and what steps handed on.


Log = Callable[[str], None]
RUNS_A_TURN = 1000
"""The janitor comes every hour; its own run must not take one."""
_STORED = f"{OUTPUTS}/storage"
"""Dagster's S3 IO manager keeps ``storage/<run>/<step>/<output>`` below its prefix."""


@dataclass(frozen=True)
class Ours:
    """Which of Dagster's runs are this project's: other code locations share its storage."""

    jobs: tuple[str, ...]
    label: str | None = None
    """Of repository and code location, as Dagster tags runs with it; None in a process without a location."""

    @classmethod
    def beside(cls, run: dg.DagsterRun, jobs: tuple[str, ...]) -> Self:
        """Runs of these jobs, in the code location of ``run``."""
        origin = run.remote_job_origin
        return cls(jobs, None if origin is None else origin.repository_origin.get_label())


def forget(
    instance: dg.DagsterInstance, staging: Staging, run_retention_days: float, ours: Ours, log: Log = lambda _: None
) -> dict[str, int]:
    """Forget what is past its time.

    Args:
        instance: Dagster's.
        staging: below which step outputs are, if it is on S3.
        run_retention_days: how long runs are kept after their end; 0 = for ever.
        ours: whose runs.
        log: is told of runs that could not be deleted.

    Returns:
        How many runs are forgotten, of how many that failed, and of how many the step outputs are forgotten.
    """
    forgotten, failed = 0, 0
    if run_retention_days:
        forgotten, failed = _forget_runs(instance, timedelta(days=run_retention_days), ours, log)
    return {
        "forgotten_runs": forgotten,
        "not_forgotten_runs": failed,
        "forgotten_outputs": _forget_outputs(instance, staging),
    }


def _forget_runs(instance: dg.DagsterInstance, keep: timedelta, ours: Ours, log: Log) -> tuple[int, int]:
    """The run key goes with the run. None is asked for twice: every attempt has its own, and the row says which."""
    records: list[dg.RunRecord] = []
    for job in ours.jobs:
        ended = dg.RunsFilter(
            job_name=job,
            statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_before=datetime.now(UTC) - keep,
            tags={} if ours.label is None else {REPOSITORY_LABEL_TAG: ours.label},
        )
        records += instance.get_run_records(ended, limit=RUNS_A_TURN - len(records), ascending=True)
        if len(records) >= RUNS_A_TURN:
            break
    failed = sum(not _is_forgotten(instance, record.dagster_run.run_id, log) for record in records)
    return len(records) - failed, failed


def _is_forgotten(instance: dg.DagsterInstance, run_id: str, log: Log) -> bool:
    try:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _forget_local_outputs(instance, run_id)
        instance.delete_run(run_id)
    except Exception as error:  # noqa: BLE001 - one that cannot be deleted must not keep the others; the next turn tries
        log(f"Run {run_id} is past its time and could not be deleted ({type(error).__qualname__}).")
        return False
    return True


def _forget_local_outputs(instance: dg.DagsterInstance, run_id: str) -> None:
    with suppress(OSError):  # a directory that stays takes a few kilobytes, and the run is forgotten all the same
        shutil.rmtree(Path(instance.storage_directory()) / run_id)


def _forget_outputs(instance: dg.DagsterInstance, staging: Staging) -> int:
    """They are kept as long as staged rows are: without those no run can be re-executed from failure."""
    count = 0
    for name in filter(is_canonical_uuid, staging.trees(_STORED)):
        record = instance.get_run_record_by_id(name)
        if record is None or _ended_long_ago(record):
            staging.delete_tree(f"{_STORED}/{name}")
            count += 1
    return count


def _ended_long_ago(record: dg.RunRecord) -> bool:
    ended = record.end_time if record.dagster_run.is_finished else None
    return ended is not None and datetime.fromtimestamp(ended, UTC) < datetime.now(UTC) - KEEP_LEFTOVERS


# The frame of the ops that are about no request: each part is done by itself, and what failed is told at the end.


Part = Callable[[], Mapping[str, int]]


def run_parts(context: dg.OpExecutionContext, parts: Mapping[str, Part]) -> None:
    """Do every part, whatever becomes of the others; what they count is the op's metadata, the same names added up.

    Raises:
        dagster.Failure: parts failed. It names them, and is not retried: the next run does what is left.
    """
    counted: Counter[str] = Counter()
    failed: dict[str, Exception] = {}
    for name, part in parts.items():
        try:
            counted.update(part())
        except Exception as error:  # noqa: BLE001 - told below, when the others are done
            failed[name] = error
    if failed:
        raise _failure(failed, counted)
    context.add_output_metadata(counted)


def _failure(failed: Mapping[str, Exception], counted: Mapping[str, int]) -> dg.Failure:
    # What may pass by itself must not hide what somebody has to mend.
    worst = min(failed.values(), key=lambda error: failure_of(error).fault is Fault.TRANSIENT)
    lines = [f"- {name}: {_words(error)}" for name, error in failed.items()]
    return dg.Failure(
        "\n".join(["Not done, and tried again by the next run:", *lines]),
        metadata={**metadata_of(worst), **counted},
        allow_retries=False,
    )


def _words(error: Exception) -> str:
    failure = failure_of(error)
    return failure.code.value if failure is transitions.INTERNAL else describe(failure)


# Webhooks: a sensor that sees that calls are owed, and the job that makes them.


WEBHOOKS_JOB_NAME = "webhooks"
CALLING_SECONDS = 240.0
"""A run takes no more calls after that: the next one goes on."""
LONGEST_WEBHOOKS_RUN = timedelta(minutes=10)
"""The calls that a run took last end by then: one that is still under way is dead."""


@dg.op(description="Calls every webhook that is due, signed; what is not taken is tried again later.")
def call_webhooks(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    run_parts(context, {"webhooks": lambda: deliver_due(exports.database, exports.settings, seconds=CALLING_SECONDS)})


@dg.job(
    name=WEBHOOKS_JOB_NAME,
    description="Tells applications that their exports ended (`webhook_url`). Safe to run at any time.",
    executor_def=dg.in_process_executor,
    run_tags=tags.upkeep_job_tags(LONGEST_WEBHOOKS_RUN),
)
def webhook_job() -> None:
    """One op."""
    call_webhooks()


JANITOR = "janitor"
LONGEST_RUN = timedelta(hours=6)
"""What is left then is the next run's."""
OUR_JOBS = (JANITOR, JOB_NAME, NOTIFY_JOB_NAME, WEBHOOKS_JOB_NAME)


@dg.op(description=descriptions.CLEAN)
def clean(context: dg.OpExecutionContext, exports: ExportResource) -> None:
    """Everything that is due."""
    run_parts(
        context,
        {
            "files past their time": lambda: _expire(exports),
            "leftovers": lambda: _clear(exports),
            "rate windows": lambda: _forget_windows(exports),
            "audit trail": lambda: _forget_events(exports),
            "uploads to the store": lambda: {"aborted_uploads": exports.store.abort_uploads(KEEP_UPLOADS)},
            "uploads to staging": lambda: {"aborted_uploads": exports.staging.abort_uploads(KEEP_UPLOADS)},
            "runs": lambda: forget(
                context.instance,
                exports.staging,
                exports.settings.run_retention_days,
                Ours.beside(context.run, OUR_JOBS),
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
        return {"forgotten_audit_events": audit.forget(connection, timedelta(days=keep))}


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
