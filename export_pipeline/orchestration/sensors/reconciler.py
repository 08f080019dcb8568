"""Rows that lost their run, and mails that their run left: asking Dagster, and doing what was decided."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
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
from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.jobs import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.runs import RUNS_A_CALL, RunView, has_waiting_step, is_of, runs_of, runs_of_each
from export_pipeline.orchestration.sensors.common import (
    RECONCILE_INTERVAL_SECONDS,
    RECONCILE_SECONDS,
    ROWS_PER_TICK,
    done,
    skipped,
    summary,
)
from export_pipeline.requests import queue, transitions
from export_pipeline.requests.models import is_canonical_uuid
from export_pipeline.requests.queue import StaleRequest
from export_pipeline.settings import BEYOND_ONE_MACHINE
from export_pipeline.stages.cleanup import cancel_and_discard

# Which rows lost their run, and what is to become of each.


def exhausted(attempts: int) -> ExportFailure:
    """The end of a request whose every attempt ended without a reason."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return ExportFailure(
        FailureCode.ATTEMPTS_EXHAUSTED,
        f"The export was started {times}, and its process ended without giving a reason. The runs show where: look for "
        "memory, restarts and lost machines. Then: export-pipeline retry UID.",
    )


class Action(StrEnum):
    """What is to become of a row that lost its run."""

    LEAVE = "left alone"
    WAIT = "its run waits its turn; its claim is renewed"
    REQUEST_AGAIN = "its run was never made; asked for again"
    NEW_ATTEMPT = "its run ended without a word; back in the queue"
    GIVE_UP = "its attempts are used up; failed"
    CANCEL = "its run was canceled in Dagster"


def write(connection: sa.Connection, orphan: StaleRequest, decided: Action) -> None:
    """Write on the row what became of it; a cancel also deletes files and is not this module's."""
    match decided:
        case Action.LEAVE:
            pass
        case Action.WAIT:
            queue.renew_lease(connection, orphan.id)
        case Action.REQUEST_AGAIN:
            queue.release(connection, orphan.id, attempt=orphan.attempt, run_id=orphan.run_id, charged=False)
        case Action.NEW_ATTEMPT:
            queue.release(connection, orphan.id, attempt=orphan.attempt, run_id=orphan.run_id, charged=True)
        case Action.GIVE_UP:
            failure = exhausted(orphan.counted_attempts)
            transitions.give_up(connection, orphan.id, failure, attempt=orphan.attempt, run_id=orphan.run_id)
        case Action.CANCEL:
            raise ValueError("a cancel is carried out by cleanup.cancel_and_discard")


def action_for(orphan: StaleRequest, runs: Sequence[RunView], *, max_attempts: int) -> Action:
    """Decide from the request's runs what is to become of its row."""
    current = [run for run in runs if is_of(run, orphan)]
    if not orphan.running and not current:
        return Action.REQUEST_AGAIN
    if any(run.waiting for run in current):
        return Action.LEAVE if orphan.running else Action.WAIT
    if any(not (run.finished or orphan.timed_out) for run in current):
        return Action.LEAVE
    # A re-execution that was canceled before it took the row says nothing of the run that owns it.
    if any(run.canceled and orphan.run_id in (run.run_id, None) for run in current):
        return Action.CANCEL
    return Action.NEW_ATTEMPT if orphan.counted_attempts < max_attempts else Action.GIVE_UP


MAX_NOTIFY_RUNS = 6
NOTIFY_PAUSE_SECONDS = 60
"""Mails that a dead run or an unreachable provider left are tried again after 2, 4, 8, ... times as long."""


class RowLocked(Exception):
    """Another transaction holds a row: it is seen to at a later tick."""


def reconcile_all(
    instance: DagsterInstance, exports: ExportResource, orphans: Sequence[queue.StaleRequest], *, seconds: float
) -> tuple[list[str], int]:
    """Mend rows for ``seconds``: the uids of those that could not be, and how many are left for the next time."""
    ends = time.monotonic() + seconds
    # By chance: a row on which every tick waits (its lock) is not always before the same others.
    orphans = random.sample(orphans, len(orphans))

    def mend(orphan: queue.StaleRequest, runs: Sequence[RunView]) -> None:
        _reconcile(instance, exports, orphan, runs)

    return _each(instance, orphans, mend, lambda: time.monotonic() >= ends)


def resume_all(
    instance: DagsterInstance, orphans: Sequence[queue.StaleRequest], *, seconds: float, at_most: int
) -> tuple[list[dg.RunRequest], list[str], int]:
    """Ask for runs for the mails that are left, for ``seconds`` and ``at_most`` so many.

    Returns:
        The runs, the uids of the rows of which could not be told whether they need one, and how many rows, the last
        ones, are left for the next time.
    """
    ends = time.monotonic() + seconds
    asked: list[dg.RunRequest] = []

    def resume(orphan: queue.StaleRequest, runs: Sequence[RunView]) -> None:
        asked.extend(_resumed(instance, orphan, runs))

    failed, left = _each(instance, orphans, resume, lambda: time.monotonic() >= ends or len(asked) >= at_most)
    return asked, failed, left


def _each(
    instance: DagsterInstance,
    orphans: Sequence[queue.StaleRequest],
    do: Callable[[queue.StaleRequest, Sequence[RunView]], None],
    is_over: Callable[[], bool],
) -> tuple[list[str], int]:
    """Do each row's work until it is over: the uids of those for which it failed, and how many are left."""
    failed: list[str] = []
    for number, (orphan, runs) in enumerate(_with_runs(instance, orphans)):
        if is_over():
            return failed, len(orphans) - number
        if runs is None or not done(do, orphan, runs):
            failed.append(orphan.uid)
    return failed, 0


def _with_runs(
    instance: DagsterInstance, orphans: Sequence[queue.StaleRequest]
) -> Iterator[tuple[queue.StaleRequest, list[RunView] | None]]:
    """Each row with its runs; None if they could not be read."""
    for begin in range(0, len(orphans), RUNS_A_CALL):
        some = orphans[begin : begin + RUNS_A_CALL]
        runs: dict[str, list[RunView]] = {}
        with suppress(Exception):  # told by the tick, tried again at the next
            runs = runs_of_each(instance, [orphan.uid for orphan in some])
        yield from ((orphan, runs.get(orphan.uid)) for orphan in some)


def _reconcile(
    instance: DagsterInstance, exports: ExportResource, orphan: queue.StaleRequest, runs: Sequence[RunView]
) -> None:
    beyond_one_machine = exports.settings.executor in BEYOND_ONE_MACHINE
    if beyond_one_machine and orphan.timed_out:
        runs = [run if run.finished else replace(run, waiting=_waits(instance, run)) for run in runs]
    decided = action_for(orphan, runs, max_attempts=exports.settings.max_attempts)
    if decided is Action.CANCEL:
        cancel_and_discard(exports, orphan.id, orphan.uid, run_id=orphan.run_id, wait=False)
        return
    lost = decided in (Action.NEW_ATTEMPT, Action.GIVE_UP, Action.REQUEST_AGAIN)
    with impatient(exports.database).begin() as connection:
        if lost and queue.is_locked(connection, orphan.id):
            raise RowLocked(orphan.uid)
    if lost and not beyond_one_machine:
        _bury_all(instance, orphan, runs)
    with impatient(exports.database).begin() as connection:
        write(connection, orphan, decided)
    if lost and beyond_one_machine:
        _interrupt(instance, orphan)
        _bury_all(instance, orphan, runs)
    if decided is Action.GIVE_UP:
        _say_given_up(instance, orphan, runs)


def _say_given_up(instance: DagsterInstance, orphan: queue.StaleRequest, runs: Sequence[RunView]) -> None:
    """On the request's last run, whose process could not say it: the list of runs shows and filters by it."""
    last = next((run for run in runs if is_of(run, orphan)), None)
    if last is None:
        return
    code = FailureCode.ATTEMPTS_EXHAUSTED
    with suppress(Exception):  # the row says it
        instance.add_run_tags(last.run_id, tags.failure_tags(code))
        run = instance.get_run_by_id(last.run_id)
        if run is not None:
            instance.report_engine_event(f"The request is given up ({code}). {RUNBOOK[code].plain}", run)


def _waits(instance: DagsterInstance, run: RunView) -> bool:
    return run.waiting or has_waiting_step(instance, run.run_id)


def _interrupt(instance: DagsterInstance, orphan: queue.StaleRequest) -> None:
    """End the process that waits for a step whose worker died: it would wait for ever.

    Only once the row is no longer the run's: what interrupts a run that owns its row cancels the request.
    """
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        with suppress(Exception):  # a process that cannot be reached does no harm: it owns nothing
            instance.run_launcher.terminate(owner.run_id)


def _bury_all(instance: DagsterInstance, orphan: queue.StaleRequest, runs: Sequence[RunView]) -> None:
    """Tell Dagster that the run which owned the row is dead, and so are those that never came to own it."""
    _bury(instance, orphan)
    if orphan.run_id is None:
        for view in runs:
            run = instance.get_run_by_id(view.run_id) if not view.finished and is_of(view, orphan) else None
            if run is not None and not run.is_finished:
                instance.report_run_failed(run, "The run did not begin its work; its process is taken for dead.")


def end_lost_runs(instance: DagsterInstance, database: sa.Engine, *, timeout: float) -> int:
    """Tell Dagster of runs that are dead and whose row does not say so: it has ended, or belongs to another run.

    Each would keep a slot for ever. A run that owns its row, or waits to take it, is judged with the row. One that
    another installation launched is not known here, and left alone.
    """
    begun = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    jobs = (JOB_NAME, NOTIFY_JOB_NAME)
    runs = [run for job in jobs for run in instance.get_runs(RunsFilter(job_name=job, statuses=begun))]
    by_uid = {run.run_id: uid for run in runs if is_canonical_uuid(uid := run.tags.get(tags.REQUEST_UID, ""))}
    if not by_uid:
        return 0
    with reading(database) as connection:
        owners = queue.owners(connection, set(by_uid.values()), heartbeat_timeout_seconds=timeout)
    lost = [run for run in runs if _is_lost(instance, run, owners.get(by_uid.get(run.run_id, "")), timeout)]
    for run in lost:
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The run's process is taken for dead; the run is canceled.")
        else:
            instance.report_run_failed(run, "The run's process is taken for dead; its request does not need it.")
    return len(lost)


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


def _bury(instance: DagsterInstance, orphan: queue.StaleRequest) -> None:
    """Tell Dagster that the run which owned the row is dead, if it still has it among the living."""
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        instance.report_run_failed(owner, "The run wrote no heartbeat; its process is taken for dead.")


def _resumed(instance: DagsterInstance, orphan: queue.StaleRequest, runs: Sequence[RunView]) -> list[dg.RunRequest]:
    """The run for the mails that are left; none if one is under way or enough were tried."""
    if orphan.timed_out and any(run.run_id == orphan.run_id and not run.finished for run in runs):
        _bury(instance, orphan)
        runs = runs_of(instance, orphan.uid)
    number = sum(run.job_name == NOTIFY_JOB_NAME for run in runs) + 1
    # What ended before was about other mails: of the failure that a re-execution overcame, or sent before `resend`.
    runs = [run for run in runs if not run.ended_at or run.ended_at >= orphan.owes_since]
    tried = [run for run in runs if run.job_name == NOTIFY_JOB_NAME]
    stopped = any(run.canceled and (run.run_id == orphan.run_id or run in tried) for run in runs)
    if stopped or any(not run.finished for run in runs) or len(tried) >= MAX_NOTIFY_RUNS:
        return []  # an operator stopped it, or it is under way, or tried often enough
    if tried and time.time() - max(run.ended_at for run in tried) < NOTIFY_PAUSE_SECONDS * 2 ** len(tried):
        return []
    return [
        dg.RunRequest(
            job_name=NOTIFY_JOB_NAME,
            run_key=f"{orphan.uid}:notify:{number}",
            run_config={"ops": {"resume_notification": {"config": {"request_id": orphan.id}}}},
            tags={
                tags.REQUEST_ID: str(orphan.id),
                tags.REQUEST_UID: orphan.uid,
                # Not the organization: left mails are not to wait for a place behind its own long exports.
                tags.DATASET: tags.tag_value(orphan.dataset),
                tags.FORMAT: tags.tag_value(orphan.format),
            },
        )
    ]


# The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.


QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""
NOTIFY_WITHIN = timedelta(days=2)
RESUME_SECONDS = 10.0
LOOK_GAP_SECONDS = 30.0
"""A reconciler that has not looked for longer than this was away, or everything was: nobody could be heard."""


@dg.sensor(
    minimum_interval_seconds=RECONCILE_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    job_name=NOTIFY_JOB_NAME,
    description=descriptions.EXPORT_RECONCILER,
)
def export_reconciler(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """What status sensors and crashed workers leave behind. The cursor: see ``Looks``."""
    settings = exports.settings
    quiet_seconds = QUIET_HEARTBEATS * settings.heartbeat_seconds
    try:
        with reading(exports.database) as connection:
            looks = Looks.of(context.cursor).next(database_now(connection).timestamp(), quiet_seconds)
            orphans = queue.quiet(
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
        orphans = [replace(orphan, timed_out=False) for orphan in orphans]
        unnotified = [replace(orphan, timed_out=False) for orphan in unnotified]
    # Before what may take long: no request for a run is to be lost with a tick that is cut short.
    asked, failed, not_resumed = _resume_mails(looks, context.instance, unnotified)
    not_mended, left = reconcile_all(context.instance, exports, orphans, seconds=RECONCILE_SECONDS)
    if not looks.silent:
        done(end_lost_runs, context.instance, exports.database, timeout=settings.heartbeat_timeout_seconds)
    context.update_cursor(json.dumps(asdict(looks)))
    if asked:
        return dg.SensorResult(run_requests=asked)
    told = summary(len(orphans), not_mended + failed, "rows without a heartbeat")
    left += not_resumed
    told += f" {left} are left to the next tick." if left else ""
    return dg.SkipReason(told + (" After a gap in its looks, no run is taken for dead yet." if looks.silent else ""))


@dataclass
class Looks:
    """The reconciler's cursor."""

    after: int = 0
    """The last row whose mails were looked after: the next tick goes on behind it."""
    at: float = 0.0
    """When it last looked, by the request database's clock; 0 before the first look."""
    silent: bool = False
    """It took no run for dead: after an outage or a pause, runs that live have not been heard yet."""

    @classmethod
    def of(cls, cursor: str | None) -> Self:
        """From the cursor; anew if an operator or an older version wrote something else there."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return cls()

    def next(self, now: float, quiet_seconds: float) -> Self:
        """The look at this instant. Two silent ones in a row only if the second comes too soon to have heard."""
        apart = now - self.at
        away = self.at > 0 and not 0 <= apart <= LOOK_GAP_SECONDS
        too_soon = 0 <= apart < quiet_seconds
        return replace(self, at=now, silent=too_soon if self.silent else away)


def _resume_mails(
    looks: Looks, instance: DagsterInstance, unnotified: list[queue.StaleRequest]
) -> tuple[list[dg.RunRequest], list[str], int]:
    """``resume_all``, beginning after the row at which the last tick ended: after an outage all get their turn."""
    in_turn = sorted(unnotified, key=lambda orphan: (orphan.id <= looks.after, orphan.id))
    asked, failed, left = resume_all(instance, in_turn, seconds=RESUME_SECONDS, at_most=ROWS_PER_TICK)
    if left < len(in_turn):
        looks.after = in_turn[len(in_turn) - left - 1].id
    return asked, failed, left
