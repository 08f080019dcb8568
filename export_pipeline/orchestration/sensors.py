"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

What belongs here: reading, calling, returning what Dagster wants. What does not: transitions
(requests.states), what is done to a row that lost its run (``reconcile``).

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import ParamSpec

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.cancel import cancel_and_discard
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.reconcile import Fate, RunView, fate, write
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.step_queue import has_waiting_step
from export_pipeline.requests import claims, sizes, states
from export_pipeline.requests.database import reading
from export_pipeline.settings import BEYOND_ONE_MACHINE, LARGE_ROWS

P = ParamSpec("P")

ROWS_PER_TICK = 50
"""A run key costs the daemon a look-up; 50 keep a tick short, and the next tick takes the next 50."""
CLAIMED_PER_ORGANIZATION = 100
"""So many of an organization wait in Dagster's queue, the others in the table: each run that waits there costs the
daemon a look at every turn, and the reconciler one at every lease."""
INTERVAL_SECONDS = 4
LOOK_SECONDS = 0.25
SIZES_SECONDS = 5.0
"""The daemon gives a tick 60 s; its claims are committed by then, so it must not miss them."""
RECONCILE_INTERVAL_SECONDS = 14
QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""
NOTIFY_WITHIN = timedelta(days=2)
MAX_NOTIFY_RUNS = 6
NOTIFY_PAUSE_SECONDS = 60
"""Mails that a dead run or an unreachable provider left are tried again after 2, 4, 8, ... times as long."""

UNREACHABLE = (
    "The request database could not be read; check that it runs, EXPORT_DATABASE_URL, and that `export-pipeline db "
    "upgrade` was run. Trying again."
)


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_REQUESTS,
)
def export_requests(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Requests to runs. No cursor: the table's state is the cursor."""
    try:
        _wait_for_a_request(exports)
        with exports.database.begin() as connection:
            claimed = claims.claim(connection, limit=ROWS_PER_TICK, per_organization=CLAIMED_PER_ORGANIZATION)
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    if not claimed:
        return dg.SkipReason("No request is waiting.")
    return dg.SensorResult(run_requests=_run_requests(exports, claimed))


def _run_requests(exports: ExportResource, claimed: list[claims.Claim]) -> list[dg.RunRequest]:
    """The claims are committed: a row of which no run can be made fails, and the others start."""
    expected = _expected_rows(exports, claimed)
    asked: list[dg.RunRequest] = []

    def ask(one: claims.Claim) -> None:
        asked.append(run_request(one, expected.get(one.id), exports.settings.large_rows))

    for one in claimed:
        if not _done(ask, one):
            _done(_give_up, exports, one)
    return asked


def _give_up(exports: ExportResource, claim: claims.Claim) -> None:
    with exports.database.begin() as connection:
        states.give_up(connection, claim.id, states.INTERNAL, attempt=claim.attempt, run_id=None)


def _expected_rows(exports: ExportResource, claimed: list[claims.Claim]) -> dict[int, int]:
    """How many rows each can be expected to have. They are claimed already: whatever goes wrong here, they start."""
    found: dict[int, int] = {}
    with suppress(Exception), reading(exports.database) as connection:  # an export of unknown size counts as small
        found.update(sizes.expected(connection, [one.id for one in claimed], seconds=SIZES_SECONDS))
    return found


def _wait_for_a_request(exports: ExportResource) -> None:
    """A request that comes while the daemon's loop sleeps would wait for its end."""
    ends = time.monotonic() + exports.settings.pickup_wait_seconds
    while time.monotonic() < ends:
        with reading(exports.database) as connection:
            if claims.is_any_waiting(connection):
                return
        time.sleep(LOOK_SECONDS)


def run_request(claim: claims.Claim, rows: int | None = None, large_rows: int = LARGE_ROWS) -> dg.RunRequest:
    """The run of a claimed request: its config is the request's id alone, so that no row can spoil the tick."""
    return dg.RunRequest(
        run_key=claim.run_key,
        run_config={"ops": {"plan": {"config": {"request_id": claim.id}}}},
        tags=tags.run_tags(claim, rows=rows, large_rows=large_rows),
    )


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=JOB_NAME,
    description=descriptions.EXPORT_CANCELLATIONS,
)
def export_cancellations(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Cancels, as fast as the sensor ticks."""
    try:
        with reading(exports.database) as connection:
            asked = states.cancel_requested(connection)
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    failed = [uid for request_id, uid in asked if not _done(_cancel, context.instance, exports, request_id, uid)]
    return dg.SkipReason(_summary(len(asked), failed, "cancels asked for"))


def _cancel(instance: DagsterInstance, exports: ExportResource, request_id: int, uid: str) -> None:
    active = [run for run in runs_of(instance, uid) if not run.finished]
    for run in active:
        if not run.canceling:
            instance.run_coordinator.cancel_run(run.run_id)
    if not active:
        cancel_and_discard(exports, request_id, uid)


@dg.sensor(
    minimum_interval_seconds=RECONCILE_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=NOTIFY_JOB_NAME,
    description=descriptions.EXPORT_RECONCILER,
)
def export_reconciler(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """What status sensors and crashed workers leave behind."""
    settings = exports.settings
    quiet_seconds = QUIET_HEARTBEATS * settings.heartbeat_seconds
    try:
        with reading(exports.database) as connection:
            orphans = claims.quiet(
                connection,
                lease_seconds=settings.claim_lease_seconds,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
            )
            unnotified = claims.unnotified(
                connection,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
                within=NOTIFY_WITHIN,
            )
            if not settings.sends_mail:
                unnotified = []
    except sa.exc.OperationalError:
        return dg.SkipReason(UNREACHABLE)
    failed = [orphan.uid for orphan in orphans if not _done(_mend, context.instance, exports, orphan)]
    asked: list[dg.RunRequest] = []
    failed += [orphan.uid for orphan in unnotified if not _done(_resume, context.instance, orphan, asked)]
    if asked:
        return dg.SensorResult(run_requests=asked)
    return dg.SkipReason(_summary(len(orphans), failed, "rows without a heartbeat"))


def _mend(instance: DagsterInstance, exports: ExportResource, orphan: claims.Orphan) -> None:
    runs = runs_of(instance, orphan.uid)
    beyond_one_machine = exports.settings.executor in BEYOND_ONE_MACHINE
    if beyond_one_machine and orphan.timed_out:
        runs = [run if run.finished else replace(run, waiting=_waits(instance, run)) for run in runs]
    decided = fate(orphan, runs, max_attempts=exports.settings.max_attempts)
    if decided is Fate.CANCEL:
        cancel_and_discard(exports, orphan.id, orphan.uid, run_id=orphan.run_id)
        return
    if decided is not Fate.LEAVE and not beyond_one_machine:
        _bury(instance, orphan)
    with exports.database.begin() as connection:
        write(connection, orphan, decided)
    if decided is not Fate.LEAVE and beyond_one_machine:
        _interrupt(instance, orphan)
        _bury(instance, orphan)


def _waits(instance: DagsterInstance, run: RunView) -> bool:
    return run.waiting or has_waiting_step(instance, run.run_id)


def _interrupt(instance: DagsterInstance, orphan: claims.Orphan) -> None:
    """End the process that waits for a step whose worker died: it would wait for ever.

    Only once the row is no longer the run's: what interrupts a run that owns its row cancels the request.
    """
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        with suppress(Exception):  # a process that cannot be reached does no harm: it owns nothing
            instance.run_launcher.terminate(owner.run_id)


def _bury(instance: DagsterInstance, orphan: claims.Orphan) -> None:
    """Tell Dagster that the run which owned the row is dead, if it still has it among the living."""
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        instance.report_run_failed(owner, "The run wrote no heartbeat; its process is taken for dead.")


def _resume(instance: DagsterInstance, orphan: claims.Orphan, asked: list[dg.RunRequest]) -> None:
    """Ask for a run for the mails that are left, unless one is under way or enough were tried."""
    if orphan.timed_out:
        _bury(instance, orphan)
    runs = runs_of(instance, orphan.uid)
    tried = [run for run in runs if run.job_name == NOTIFY_JOB_NAME]
    stopped = any(run.canceled and (run.run_id == orphan.run_id or run in tried) for run in runs)
    if stopped or any(not run.finished for run in runs) or len(tried) >= MAX_NOTIFY_RUNS:
        return  # an operator stopped it, or it is under way, or tried often enough
    if tried and time.time() - max(run.ended_at for run in tried) < NOTIFY_PAUSE_SECONDS * 2 ** len(tried):
        return
    asked.append(
        dg.RunRequest(
            job_name=NOTIFY_JOB_NAME,
            run_key=f"{orphan.uid}:notify:{len(tried) + 1}",
            run_config={"ops": {"resume_notification": {"config": {"request_id": orphan.id}}}},
            tags={
                tags.REQUEST_ID: str(orphan.id),
                tags.REQUEST_UID: orphan.uid,
                **tags.found_by(orphan.organization_id, orphan.dataset, orphan.format),
            },
        )
    )


def _done(step: Callable[P, None], *arguments: P.args, **options: P.kwargs) -> bool:
    """Do one row's work; what goes wrong with one must not keep the others from theirs."""
    try:
        step(*arguments, **options)
    except Exception:  # noqa: BLE001 - told by the tick, tried again at the next
        return False
    return True


def _summary(number: int, failed: list[str], what: str) -> str:
    return f"{number} {what}." + (f" Not done, to be tried again: {', '.join(failed)}" if failed else "")


def runs_of(instance: DagsterInstance, uid: str) -> list[RunView]:
    """All runs of a request."""
    records: Iterable[dg.RunRecord] = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: tags.tag_value(uid)}))
    return [
        RunView(
            run_id=record.dagster_run.run_id,
            attempt=tags.attempt_of(record.dagster_run.tags),
            finished=record.dagster_run.is_finished,
            canceled=record.dagster_run.status is dg.DagsterRunStatus.CANCELED,
            canceling=record.dagster_run.status is dg.DagsterRunStatus.CANCELING,
            waiting=record.dagster_run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED),
            job_name=record.dagster_run.job_name,
            ended_at=record.end_time or 0.0,
        )
        for record in records
    ]
