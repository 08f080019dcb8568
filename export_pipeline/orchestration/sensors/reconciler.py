"""The reconciler: compares quiet rows with their runs, and decides what becomes of a request that lost its run.

It also starts runs for mails that a dead run did not send, and tells Dagster of runs whose process is dead.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Self

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.database.engine import database_now, impatient, reading
from export_pipeline.database.enums import RequestStatus
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.jobs import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.runs import RUNS_PER_CALL, RunView, has_waiting_step, is_of, runs_of, runs_of_each
from export_pipeline.orchestration.sensors import (
    RECONCILE_SECONDS,
    ROWS_PER_TICK,
    SLOW_INTERVAL_SECONDS,
    done,
    sensor,
    skipped,
    summary,
)
from export_pipeline.requests import queue, transitions
from export_pipeline.requests.models import is_canonical_uuid
from export_pipeline.requests.queue import StaleRequest
from export_pipeline.settings import BEYOND_ONE_MACHINE
from export_pipeline.stages.cleanup import cancel_and_discard

QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""
MAX_NOTIFY_RUNS = 6
NOTIFY_PAUSE_SECONDS = 60
"""Unsent mails are tried again after 2, 4, 8, ... times as long."""
NOTIFY_WITHIN = timedelta(days=2)
RESUME_SECONDS = 10.0
LOOK_GAP_SECONDS = 30.0
"""After a longer gap between two looks, the reconciler or everything was down: heartbeats could not be read or sent."""


class Action(StrEnum):
    """What the reconciler does with a row that lost its run."""

    LEAVE = "leave it as it is"
    WAIT = "its run waits for its turn: renew the claim"
    REQUEST_AGAIN = "its run was never created: request a run again"
    NEW_ATTEMPT = "its run ended without a reason: back to the queue"
    GIVE_UP = "its attempts are used up: fail it"
    CANCEL = "its run was canceled in Dagster: cancel it"


def action_for(stale: StaleRequest, runs: Sequence[RunView], *, max_attempts: int) -> Action:
    """Decide from a request's runs what to do with its row."""
    current = [run for run in runs if is_of(run, stale)]
    if not stale.running and not current:
        return Action.REQUEST_AGAIN
    if any(run.waiting for run in current):
        return Action.LEAVE if stale.running else Action.WAIT
    if any(not (run.finished or stale.timed_out) for run in current):
        return Action.LEAVE
    # A re-execution that was canceled before it took the row does not count: another run owns the row.
    if any(run.canceled and stale.run_id in (run.run_id, None) for run in current):
        return Action.CANCEL
    return Action.NEW_ATTEMPT if stale.counted_attempts < max_attempts else Action.GIVE_UP


def write(connection: sa.Connection, stale: StaleRequest, action: Action) -> None:
    """Write the action to the row. A cancel also deletes files: see ``cancel_and_discard``."""
    match action:
        case Action.LEAVE:
            pass
        case Action.WAIT:
            queue.renew_lease(connection, stale.id)
        case Action.REQUEST_AGAIN:
            queue.release(connection, stale.id, attempt=stale.attempt, run_id=stale.run_id, charged=False)
        case Action.NEW_ATTEMPT:
            queue.release(connection, stale.id, attempt=stale.attempt, run_id=stale.run_id, charged=True)
        case Action.GIVE_UP:
            failure = exhausted(stale.counted_attempts)
            transitions.give_up(connection, stale.id, failure, attempt=stale.attempt, run_id=stale.run_id)
        case Action.CANCEL:
            raise ValueError("cancel_and_discard carries out a cancel")


def exhausted(attempts: int) -> ExportFailure:
    """The failure of a request whose every attempt ended without a reason."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return ExportFailure(
        FailureCode.ATTEMPTS_EXHAUSTED,
        f"The export was started {times}, and its process ended without giving a reason. The runs show where: look for "
        "memory, restarts and lost machines. Then: export-pipeline retry UID.",
    )


@dataclass
class Looks:
    """The reconciler's cursor."""

    after: int = 0
    """The id of the last row whose mails were looked at: the next tick goes on behind it."""
    at: float = 0.0
    """When it last looked, by the request database's clock; 0 before the first look."""
    silent: bool = False
    """Take no run for dead: after an outage or a pause, live runs may not have sent a heartbeat yet."""

    @classmethod
    def of(cls, cursor: str | None) -> Self:
        """From the cursor; a new one if an operator or an older version wrote something else there."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return cls()

    def next(self, now: float, quiet_seconds: float) -> Self:
        """The look at this instant. A silent one is followed by another only if that comes too soon for heartbeats."""
        apart = now - self.at
        away = self.at > 0 and not 0 <= apart <= LOOK_GAP_SECONDS
        too_soon = 0 <= apart < quiet_seconds
        return replace(self, at=now, silent=too_soon if self.silent else away)


class RowLocked(Exception):
    """Another transaction holds the row: a later tick reconciles it."""


def reconcile_all(
    instance: DagsterInstance, exports: ExportResource, rows: Sequence[StaleRequest], *, seconds: float
) -> tuple[list[str], int]:
    """Reconcile rows for ``seconds``; returns the uids of those that failed, and how many rows are left."""
    ends = time.monotonic() + seconds
    # In random order: a row on whose lock every tick waits is not always before the same others.
    return _for_each(
        instance,
        random.sample(rows, len(rows)),
        lambda stale, runs: _reconcile(instance, exports, stale, runs),
        lambda: time.monotonic() >= ends,
    )


def _resume_mails(
    looks: Looks, instance: DagsterInstance, unnotified: list[StaleRequest]
) -> tuple[list[dg.RunRequest], list[str], int]:
    """Make run requests for unsent mails; returns them, the uids of rows that failed, and how many rows are left.

    It goes on from the row at which the last tick ended: after an outage every row gets its turn.
    """
    in_turn = sorted(unnotified, key=lambda stale: (stale.id <= looks.after, stale.id))
    ends = time.monotonic() + RESUME_SECONDS
    requests: list[dg.RunRequest] = []
    failed, left = _for_each(
        instance,
        in_turn,
        lambda stale, runs: requests.extend(_resumed(instance, stale, runs)),
        lambda: time.monotonic() >= ends or len(requests) >= ROWS_PER_TICK,
    )
    if left < len(in_turn):
        looks.after = in_turn[len(in_turn) - left - 1].id
    return requests, failed, left


def _for_each(
    instance: DagsterInstance,
    rows: Sequence[StaleRequest],
    step: Callable[[StaleRequest, Sequence[RunView]], None],
    is_over: Callable[[], bool],
) -> tuple[list[str], int]:
    """Do each row's work until ``is_over``; returns the uids of those that failed, and how many rows are left."""
    failed: list[str] = []
    runs: dict[str, list[RunView]] = {}
    for number, stale in enumerate(rows):
        if is_over():
            return failed, len(rows) - number
        if number % RUNS_PER_CALL == 0:
            runs = {}
            with suppress(Exception):  # the tick names these rows, and the next tick tries again
                runs = runs_of_each(instance, [one.uid for one in rows[number : number + RUNS_PER_CALL]])
        if stale.uid not in runs or not done(step, stale, runs[stale.uid]):
            failed.append(stale.uid)
    return failed, 0


def _reconcile(
    instance: DagsterInstance, exports: ExportResource, stale: StaleRequest, runs: Sequence[RunView]
) -> None:
    beyond_one_machine = exports.settings.executor in BEYOND_ONE_MACHINE
    if beyond_one_machine and stale.timed_out:
        waiting = {run.run_id for run in runs if not run.finished and has_waiting_step(instance, run.run_id)}
        runs = [replace(run, waiting=run.waiting or run.run_id in waiting) for run in runs]
    action = action_for(stale, runs, max_attempts=exports.settings.max_attempts)
    if action is Action.CANCEL:
        cancel_and_discard(exports, stale.id, stale.uid, run_id=stale.run_id, wait=False)
        return
    lost = action in (Action.NEW_ATTEMPT, Action.GIVE_UP, Action.REQUEST_AGAIN)
    with impatient(exports.database).begin() as connection:
        if lost and queue.is_locked(connection, stale.id):
            raise RowLocked(stale.uid)
    if lost and not beyond_one_machine:
        _fail_dead_runs(instance, stale, runs)
    with impatient(exports.database).begin() as connection:
        write(connection, stale, action)
    if lost and beyond_one_machine:
        _interrupt(instance, stale)
        _fail_dead_runs(instance, stale, runs)
    if action is Action.GIVE_UP:
        _tag_given_up(instance, stale, runs)


def _tag_given_up(instance: DagsterInstance, stale: StaleRequest, runs: Sequence[RunView]) -> None:
    """Tag the request's last run, whose process died silently: the UI filters by it, and the alerts sensor reads it."""
    last = next((run for run in runs if is_of(run, stale)), None)
    if last is None:
        return
    code = FailureCode.ATTEMPTS_EXHAUSTED
    with suppress(Exception):  # the row says it
        instance.add_run_tags(last.run_id, tags.failure_tags(code))
        run = instance.get_run_by_id(last.run_id)
        if run is not None:
            instance.report_engine_event(f"The request is given up ({code}). {RUNBOOK[code].plain}", run)


def _interrupt(instance: DagsterInstance, stale: StaleRequest) -> None:
    """End a process that waits for a step whose worker died: it would wait for ever.

    Only after the row was taken from the run: interrupting a run that owns its row cancels the request.
    """
    owner = _unfinished(instance, stale.run_id)
    if owner is not None:
        with suppress(Exception):  # a process that cannot be reached does no harm: it owns nothing
            instance.run_launcher.terminate(owner.run_id)


def _fail_dead_runs(instance: DagsterInstance, stale: StaleRequest, runs: Sequence[RunView]) -> None:
    """Fail the dead run that owned the row, or, if no run owned it, the dead runs that should have."""
    _fail_dead_owner(instance, stale)
    if stale.run_id is None:
        for view in runs:
            run = _unfinished(instance, view.run_id) if not view.finished and is_of(view, stale) else None
            if run is not None:
                instance.report_run_failed(run, "The run did not begin its work; its process is taken for dead.")


def _fail_dead_owner(instance: DagsterInstance, stale: StaleRequest) -> None:
    owner = _unfinished(instance, stale.run_id)
    if owner is not None:
        instance.report_run_failed(owner, "The run wrote no heartbeat; its process is taken for dead.")


def _unfinished(instance: DagsterInstance, run_id: str | None) -> dg.DagsterRun | None:
    run = instance.get_run_by_id(run_id) if run_id is not None else None
    return run if run is not None and not run.is_finished else None


def end_lost_runs(instance: DagsterInstance, database: sa.Engine, *, timeout: float) -> None:
    """End dead runs whose row does not show it, because it has ended or belongs to another run.

    Each would keep a slot for ever. A run that owns its row, or waits to take it, is judged with the row. Runs of
    another installation are not in the table, and left as they are.
    """
    begun = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    jobs = (JOB_NAME, NOTIFY_JOB_NAME)
    runs = [run for job in jobs for run in instance.get_runs(RunsFilter(job_name=job, statuses=begun))]
    by_uid = {run.run_id: uid for run in runs if is_canonical_uuid(uid := run.tags.get(tags.REQUEST_UID, ""))}
    if not by_uid:
        return
    with reading(database) as connection:
        owners = queue.owners(connection, set(by_uid.values()), heartbeat_timeout_seconds=timeout)
    lost = [run for run in runs if _is_lost(instance, run, owners.get(by_uid.get(run.run_id, "")), timeout)]
    for run in lost:
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The run's process is taken for dead; the run is canceled.")
        else:
            instance.report_run_failed(run, "The run's process is taken for dead; its request does not need it.")


def _is_lost(instance: DagsterInstance, run: dg.DagsterRun, owner: queue.Owner | None, timeout: float) -> bool:
    if owner is None:
        return False
    if owner.run_id == run.run_id:
        return owner.silent and owner.status is not RequestStatus.RUNNING
    if owner.status is RequestStatus.QUEUED and owner.claim_id == run.tags.get(tags.CLAIM, ""):
        return False
    record = instance.get_run_record_by_id(run.run_id)
    patience = max(timeout, queue.LONGEST_MAIL_SECONDS) if run.job_name == NOTIFY_JOB_NAME else timeout
    return record is not None and time.time() - (record.start_time or time.time()) > patience


def _resumed(instance: DagsterInstance, stale: StaleRequest, runs: Sequence[RunView]) -> list[dg.RunRequest]:
    """The run request for unsent mails; none if a run is at work, an operator stopped it, or six were tried."""
    if stale.timed_out and any(run.run_id == stale.run_id and not run.finished for run in runs):
        _fail_dead_owner(instance, stale)
        runs = runs_of(instance, stale.uid)
    number = sum(run.job_name == NOTIFY_JOB_NAME for run in runs) + 1
    # Earlier runs sent other mails: those of a failure that a re-execution overcame, or those before `resend`.
    runs = [run for run in runs if not run.ended_at or run.ended_at >= stale.owes_since]
    tried = [run for run in runs if run.job_name == NOTIFY_JOB_NAME]
    stopped = any(run.canceled and (run.run_id == stale.run_id or run in tried) for run in runs)
    if stopped or any(not run.finished for run in runs) or len(tried) >= MAX_NOTIFY_RUNS:
        return []
    if tried and time.time() - max(run.ended_at for run in tried) < NOTIFY_PAUSE_SECONDS * 2 ** len(tried):
        return []
    return [
        dg.RunRequest(
            job_name=NOTIFY_JOB_NAME,
            run_key=f"{stale.uid}:notify:{number}",
            run_config={"ops": {"resume_notification": {"config": {"request_id": stale.id}}}},
            tags={
                tags.REQUEST_ID: str(stale.id),
                tags.REQUEST_UID: stale.uid,
                # Not the organization: these mails must not wait in the queue behind its own long exports.
                tags.DATASET: tags.tag_value(stale.dataset),
                tags.FORMAT: tags.tag_value(stale.format),
            },
        )
    ]


@sensor(job_name=NOTIFY_JOB_NAME, seconds=SLOW_INTERVAL_SECONDS)
def export_reconciler(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Compares rows with their runs and heartbeats. Leave it on: else a killed export stays 'running' for ever.

    A request whose process died gets a new attempt; mails that a dead run did not send get a notify run. If a tick
    lists uids, those failed now and are tried again at the next tick.
    """
    settings = exports.settings
    quiet_seconds = QUIET_HEARTBEATS * settings.heartbeat_seconds
    try:
        with reading(exports.database) as connection:
            looks = Looks.of(context.cursor).next(database_now(connection).timestamp(), quiet_seconds)
            rows = queue.silent_requests(
                connection,
                lease_seconds=settings.claim_lease_seconds,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
            )
            unnotified = queue.unnotified(
                connection,
                quiet_seconds=quiet_seconds,
                heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
                within=NOTIFY_WITHIN,
            )
            if not settings.sends_mail:
                unnotified = []
    except sa.exc.DBAPIError as error:
        return skipped(error)
    if looks.silent:
        rows = [replace(stale, timed_out=False) for stale in rows]
        unnotified = [replace(stale, timed_out=False) for stale in unnotified]
    # First, before what may take long: a tick that is cut short loses its run requests.
    requests, failed, not_resumed = _resume_mails(looks, context.instance, unnotified)
    not_reconciled, left = reconcile_all(context.instance, exports, rows, seconds=RECONCILE_SECONDS)
    if not looks.silent:
        done(end_lost_runs, context.instance, exports.database, timeout=settings.heartbeat_timeout_seconds)
    context.update_cursor(json.dumps(asdict(looks)))
    if requests:
        return dg.SensorResult(run_requests=requests)
    text = summary(len(rows), not_reconciled + failed, "rows without a heartbeat")
    left += not_resumed
    text += f" {left} are left to the next tick." if left else ""
    return dg.SkipReason(text + (" After a gap in its looks, no run is taken for dead yet." if looks.silent else ""))
