"""Rows that lost their run, and mails that their run left: asking Dagster, and doing what was decided.

What belongs here: reading runs, writing and telling Dagster, for one row each. What does not: the decision
(``reconcile``), when it is done (``sensors``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ParamSpec

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.failures import FailureCode
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.cancel import cancel_and_discard
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.reconcile import Fate, RunView, fate, is_of, write
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.step_queue import has_waiting_step
from export_pipeline.requests import claims
from export_pipeline.requests.database import impatient, reading
from export_pipeline.requests.enums import RequestStatus
from export_pipeline.requests.model import is_canonical_uuid
from export_pipeline.settings import BEYOND_ONE_MACHINE

P = ParamSpec("P")

RUNS_A_CALL = 50
"""So many rows' runs are read at once: fewer calls, and what is read is not old when it is acted upon."""
LONGEST_START_SECONDS = 3600.0
"""A run that is being started for longer is taken for dead: an image is pulled, a machine is bought in that time."""
MAX_NOTIFY_RUNS = 6
NOTIFY_PAUSE_SECONDS = 60
"""Mails that a dead run or an unreachable provider left are tried again after 2, 4, 8, ... times as long."""


class RowLocked(Exception):
    """Another transaction holds a row: it is seen to at a later tick."""


def mend_all(
    instance: DagsterInstance, exports: ExportResource, orphans: Sequence[claims.Orphan], *, seconds: float
) -> tuple[list[str], int]:
    """Mend rows for ``seconds``: the uids of those that could not be, and how many are left for the next time."""
    ends = time.monotonic() + seconds
    # By chance: a row on which every tick waits (its lock) is not always before the same others.
    orphans = random.sample(orphans, len(orphans))

    def mend(orphan: claims.Orphan, runs: Sequence[RunView]) -> None:
        _mend(instance, exports, orphan, runs)

    return _each(instance, orphans, mend, lambda: time.monotonic() >= ends)


def resume_all(
    instance: DagsterInstance, orphans: Sequence[claims.Orphan], *, seconds: float, at_most: int
) -> tuple[list[dg.RunRequest], list[str], int]:
    """Ask for runs for the mails that are left, for ``seconds`` and ``at_most`` so many.

    Returns:
        The runs, the uids of the rows of which could not be told whether they need one, and how many rows, the last
        ones, are left for the next time.
    """
    ends = time.monotonic() + seconds
    asked: list[dg.RunRequest] = []

    def resume(orphan: claims.Orphan, runs: Sequence[RunView]) -> None:
        asked.extend(_resumed(instance, orphan, runs))

    failed, left = _each(instance, orphans, resume, lambda: time.monotonic() >= ends or len(asked) >= at_most)
    return asked, failed, left


def _each(
    instance: DagsterInstance,
    orphans: Sequence[claims.Orphan],
    do: Callable[[claims.Orphan, Sequence[RunView]], None],
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
    instance: DagsterInstance, orphans: Sequence[claims.Orphan]
) -> Iterator[tuple[claims.Orphan, list[RunView] | None]]:
    """Each row with its runs; None if they could not be read."""
    for begin in range(0, len(orphans), RUNS_A_CALL):
        some = orphans[begin : begin + RUNS_A_CALL]
        runs: dict[str, list[RunView]] = {}
        with suppress(Exception):  # told by the tick, tried again at the next
            runs = runs_of_each(instance, [orphan.uid for orphan in some])
        yield from ((orphan, runs.get(orphan.uid)) for orphan in some)


def _mend(instance: DagsterInstance, exports: ExportResource, orphan: claims.Orphan, runs: Sequence[RunView]) -> None:
    beyond_one_machine = exports.settings.executor in BEYOND_ONE_MACHINE
    if beyond_one_machine and orphan.timed_out:
        runs = [run if run.finished else replace(run, waiting=_waits(instance, run)) for run in runs]
    decided = fate(orphan, runs, max_attempts=exports.settings.max_attempts)
    if decided is Fate.CANCEL:
        cancel_and_discard(exports, orphan.id, orphan.uid, run_id=orphan.run_id, wait=False)
        return
    lost = decided in (Fate.NEW_ATTEMPT, Fate.GIVE_UP, Fate.REQUEST_AGAIN)
    with impatient(exports.database).begin() as connection:
        if lost and claims.is_locked(connection, orphan.id):
            raise RowLocked(orphan.uid)
    if lost and not beyond_one_machine:
        _bury_all(instance, orphan, runs)
    with impatient(exports.database).begin() as connection:
        write(connection, orphan, decided)
    if lost and beyond_one_machine:
        _interrupt(instance, orphan)
        _bury_all(instance, orphan, runs)
    if decided is Fate.GIVE_UP:
        _say_given_up(instance, orphan, runs)


def _say_given_up(instance: DagsterInstance, orphan: claims.Orphan, runs: Sequence[RunView]) -> None:
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


def _interrupt(instance: DagsterInstance, orphan: claims.Orphan) -> None:
    """End the process that waits for a step whose worker died: it would wait for ever.

    Only once the row is no longer the run's: what interrupts a run that owns its row cancels the request.
    """
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        with suppress(Exception):  # a process that cannot be reached does no harm: it owns nothing
            instance.run_launcher.terminate(owner.run_id)


def _bury_all(instance: DagsterInstance, orphan: claims.Orphan, runs: Sequence[RunView]) -> None:
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
        owners = claims.owners(connection, set(by_uid.values()), heartbeat_timeout_seconds=timeout)
    lost = [run for run in runs if _is_lost(instance, run, owners.get(by_uid.get(run.run_id, "")), timeout)]
    for run in lost:
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The run's process is taken for dead; the run is canceled.")
        else:
            instance.report_run_failed(run, "The run's process is taken for dead; its request does not need it.")
    return len(lost)


def _is_lost(instance: DagsterInstance, run: dg.DagsterRun, owner: claims.Owner | None, timeout: float) -> bool:
    if owner is None:
        return False
    if owner.run_id == run.run_id:
        return owner.silent and owner.status is not RequestStatus.RUNNING
    if owner.status is RequestStatus.QUEUED and owner.claim_id == run.tags.get(tags.CLAIM, ""):
        return False
    record = instance.get_run_record_by_id(run.run_id)
    patience = max(timeout, claims.LONGEST_MAIL_SECONDS) if run.job_name == NOTIFY_JOB_NAME else timeout
    return record is not None and time.time() - (record.start_time or time.time()) > patience


def _bury(instance: DagsterInstance, orphan: claims.Orphan) -> None:
    """Tell Dagster that the run which owned the row is dead, if it still has it among the living."""
    owner = instance.get_run_by_id(orphan.run_id) if orphan.run_id is not None else None
    if owner is not None and not owner.is_finished:
        instance.report_run_failed(owner, "The run wrote no heartbeat; its process is taken for dead.")


def _resumed(instance: DagsterInstance, orphan: claims.Orphan, runs: Sequence[RunView]) -> list[dg.RunRequest]:
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


def done(step: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> bool:
    """Do one row's work; what goes wrong with one must not keep the others from theirs."""
    try:
        step(*arguments, **options)
    except Exception:  # noqa: BLE001 - told by the tick, tried again at the next
        return False
    return True


def runs_of(instance: DagsterInstance, uid: str) -> list[RunView]:
    """All runs of a request, newest first."""
    return runs_of_each(instance, [uid])[uid]


def runs_of_each(instance: DagsterInstance, uids: Collection[str]) -> dict[str, list[RunView]]:
    """All runs of each of these requests, newest first, in one call."""
    values = {uid: tags.tag_value(uid) for uid in uids}
    found: dict[str, list[RunView]] = {value: [] for value in values.values()}
    records: Iterable[dg.RunRecord] = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: list(found)}))
    for record in records:
        found[record.dagster_run.tags[tags.REQUEST_UID]].append(_view(record))
    return {uid: found[value] for uid, value in values.items()}


def _has_not_begun(record: dg.RunRecord) -> bool:
    status = record.dagster_run.status
    if status is dg.DagsterRunStatus.STARTING:  # run monitoring ends it, unless it is switched off
        return time.time() - record.update_timestamp.timestamp() < LONGEST_START_SECONDS
    return status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def terminated_before_they_began(instance: DagsterInstance, claimed: Sequence[claims.Orphan]) -> list[claims.Orphan]:
    """Those claimed requests whose run an operator ended before it took them."""
    stopped = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
    found: list[claims.Orphan] = []
    for begin in range(0, len(claimed), RUNS_A_CALL):
        some = {one.claim_id: one for one in claimed[begin : begin + RUNS_A_CALL] if one.claim_id is not None}
        if some:
            runs = instance.get_runs(RunsFilter(tags={tags.CLAIM: list(some)}, statuses=stopped))
            found += [some[claim] for claim in {run.tags[tags.CLAIM] for run in runs}]
    return found


def terminated_of(instance: DagsterInstance, run_ids: Sequence[str]) -> set[str]:
    """Those of the runs that Dagster was told to end."""
    terminated = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
    some = [run_ids[begin : begin + RUNS_A_CALL] for begin in range(0, len(run_ids), RUNS_A_CALL)]
    filters = [RunsFilter(run_ids=ids, statuses=terminated) for ids in some]
    return {record.dagster_run.run_id for one in filters for record in instance.get_run_records(one)}


def _view(record: dg.RunRecord) -> RunView:
    run = record.dagster_run
    return RunView(
        run_id=run.run_id,
        attempt=tags.attempt_of(run.tags),
        finished=run.is_finished,
        canceled=run.status is dg.DagsterRunStatus.CANCELED,
        canceling=run.status is dg.DagsterRunStatus.CANCELING,
        waiting=_has_not_begun(record),
        claim_id=run.tags.get(tags.CLAIM),
        job_name=run.job_name,
        ended_at=record.end_time or 0.0,
    )
