"""The sensors: requests become runs, cancels reach runs, and rows that lost their run are mended.

What belongs here: reading, calling, returning what Dagster wants. What does not: transitions
(requests.states), what is done to a row that lost its run (``reconcile``).

Intervals are 4 s, never 5: the daemon's loop is 5 s and a sensor of 5 s is skipped every other time.
"""

import json
import random
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Self

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance

from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.cancel import cancel_and_discard
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.mending import (
    done,
    end_lost_runs,
    mend_all,
    resume_all,
    runs_of,
    terminated_before_they_began,
    terminated_of,
)
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import claims, sizes, states
from export_pipeline.requests.database import database_now, impatient, reading, why_unavailable
from export_pipeline.settings import LARGE_ROWS

ROWS_PER_TICK = 50
"""A run key costs the daemon a look-up; 50 keep a tick short, and the next tick takes the next 50."""
CLAIMED_PER_ORGANIZATION = 100
CLAIMED_IN_TOTAL = 300
"""So many of an organization, and of all, wait in Dagster's queue, the others in the table: each run that waits there
costs the daemon a look at every turn, and the reconciler one at every lease."""
INTERVAL_SECONDS = 4
LOOK_SECONDS = 0.25
LOOKS_APART = 10
"""... or so many times as long as a look took."""
SIZES_SECONDS = 5.0
"""The daemon gives a tick 60 s; its claims are committed by then, so it must not miss them."""
RECONCILE_INTERVAL_SECONDS = 14
QUIET_HEARTBEATS = 5
"""Heartbeats missed before a row is compared with its run."""
NOTIFY_WITHIN = timedelta(days=2)
RESUME_SECONDS = 10.0
MEND_SECONDS = 30.0
"""The daemon gives a tick 60 s; what is left is done at the next."""

FULL = (
    f"Requests are waiting, and as many as may are claimed and have not begun ({CLAIMED_PER_ORGANIZATION} of an "
    f"organization, {CLAIMED_IN_TOTAL} of all). The others follow as those begin."
)
PROBING = (
    "The source or the store does not answer. One request at a time tries it; the others follow once it was answered."
)
A_TEST = "This is a test: nothing is claimed, for a test launches no run."
LOOK_GAP_SECONDS = 30.0
"""A reconciler that has not looked for longer than this was away, or everything was: nobody could be heard."""


def skipped(error: sa.exc.DBAPIError) -> dg.SkipReason:
    """The tick says why the request database did not serve it."""
    why = why_unavailable(error)
    if why is None:
        raise error
    return dg.SkipReason(f"{why} Trying again.")


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_REQUESTS,
)
def export_requests(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult | dg.SkipReason:
    """Requests to runs. No cursor: the table's state is the cursor."""
    if _is_test(context):
        return dg.SkipReason(A_TEST)
    try:
        _wait_for_a_request(exports)
        with exports.database.begin() as connection:
            claimed = claims.claim(
                connection,
                limit=ROWS_PER_TICK,
                per_organization=CLAIMED_PER_ORGANIZATION,
                in_total=CLAIMED_IN_TOTAL,
            )
        if not claimed:
            return dg.SkipReason(_why_none(exports))
    except sa.exc.DBAPIError as error:
        return skipped(error)
    return dg.SensorResult(run_requests=_run_requests(exports, claimed))


def _is_test(context: dg.SensorEvaluationContext) -> bool:
    """*Test sensor* in the UI: evaluated without a daemon, which says when it started the sensor or last called it."""
    by_daemon = context.last_sensor_start_time or context.last_tick_completion_time
    return context.instance_ref is not None and not by_daemon


def _run_requests(exports: ExportResource, claimed: list[claims.Claim]) -> list[dg.RunRequest]:
    """The claims are committed: a row of which no run can be made fails, and the others start."""
    expected = _expected_rows(exports, claimed)
    asked: list[dg.RunRequest] = []

    def ask(one: claims.Claim) -> None:
        asked.append(run_request(one, expected.get(one.id), exports.settings.large_rows))

    for one in claimed:
        if not done(ask, one):
            done(_give_up, exports, one)
    return asked


def _give_up(exports: ExportResource, claim: claims.Claim) -> None:
    with impatient(exports.database).begin() as connection:
        states.give_up(connection, claim.id, states.INTERNAL, attempt=claim.attempt, run_id=None)


def _expected_rows(exports: ExportResource, claimed: list[claims.Claim]) -> dict[int, int]:
    """How many rows each can be expected to have. They are claimed already: whatever goes wrong here, they start."""
    found: dict[int, int] = {}
    with suppress(Exception), reading(exports.database) as connection:  # an export of unknown size counts as small
        found.update(sizes.expected(connection, [one.id for one in claimed], seconds=SIZES_SECONDS))
    return found


def _why_none(exports: ExportResource) -> str:
    with reading(exports.database) as connection:
        if not claims.is_any_waiting(connection):
            return "No request is waiting."
        return PROBING if claims.is_any_postponed(connection) else FULL


def _wait_for_a_request(exports: ExportResource) -> None:
    """A request that comes while the daemon's loop sleeps would wait for its end."""
    ends = time.monotonic() + exports.settings.pickup_wait_seconds
    while (began := time.monotonic()) < ends:
        with reading(exports.database) as connection:
            if claims.is_any_claimable(
                connection, per_organization=CLAIMED_PER_ORGANIZATION, in_total=CLAIMED_IN_TOTAL
            ):
                return
        # A look past a flood takes long: it is not to keep the database at work all the time.
        time.sleep(max(LOOK_SECONDS, LOOKS_APART * (time.monotonic() - began)))


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
    """Cancels, as fast as the sensor ticks: of requesters to the run, of operators from the run to the row.

    Dagster calls a run canceled whose process nobody could reach (the UI in another container) or told (a step on a
    Celery worker). Once the row is canceled, that process hears of it with its next heartbeat.
    """
    try:
        with reading(exports.database) as connection:
            asked = states.cancel_requested(connection)
            owned = states.owned(connection)
            claimed = claims.not_begun(connection)
    except sa.exc.DBAPIError as error:
        return skipped(error)
    terminated = terminated_of(context.instance, [run_id for _, _, run_id in owned])
    stopped: list[tuple[int, str, str | None, str | None]]
    stopped = [(row, uid, run_id, None) for row, uid, run_id in owned if run_id in terminated]
    stopped += [
        (one.id, one.uid, None, one.claim_id) for one in terminated_before_they_began(context.instance, claimed)
    ]
    ends = time.monotonic() + MEND_SECONDS
    failed = [
        uid
        for request_id, uid in random.sample(asked, len(asked))
        if time.monotonic() > ends or not done(_cancel, context.instance, exports, request_id, uid)
    ]
    failed += [
        uid
        for request_id, uid, run_id, claim_id in stopped
        if time.monotonic() > ends
        or not done(cancel_and_discard, exports, request_id, uid, run_id=run_id, claim_id=claim_id, wait=False)
    ]
    told = _summary(len(asked), failed, "cancels asked for")
    return dg.SkipReason(f"{len(stopped)} runs terminated by operators, {told}" if stopped else told)


def _cancel(instance: DagsterInstance, exports: ExportResource, request_id: int, uid: str) -> None:
    active = [run for run in runs_of(instance, uid) if not run.finished]
    for run in active:
        if not run.canceling:
            instance.run_coordinator.cancel_run(run.run_id)
    if not active:
        cancel_and_discard(exports, request_id, uid, wait=False)


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
    except sa.exc.DBAPIError as error:
        return skipped(error)
    if looks.silent:
        orphans = [replace(orphan, timed_out=False) for orphan in orphans]
        unnotified = [replace(orphan, timed_out=False) for orphan in unnotified]
    # Before what may take long: no request for a run is to be lost with a tick that is cut short.
    asked, failed, not_resumed = _resume_mails(looks, context.instance, unnotified)
    not_mended, left = mend_all(context.instance, exports, orphans, seconds=MEND_SECONDS)
    if not looks.silent:
        done(end_lost_runs, context.instance, exports.database, timeout=settings.heartbeat_timeout_seconds)
    context.update_cursor(json.dumps(asdict(looks)))
    if asked:
        return dg.SensorResult(run_requests=asked)
    told = _summary(len(orphans), not_mended + failed, "rows without a heartbeat")
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
    looks: Looks, instance: DagsterInstance, unnotified: list[claims.Orphan]
) -> tuple[list[dg.RunRequest], list[str], int]:
    """``resume_all``, beginning after the row at which the last tick ended: after an outage all get their turn."""
    in_turn = sorted(unnotified, key=lambda orphan: (orphan.id <= looks.after, orphan.id))
    asked, failed, left = resume_all(instance, in_turn, seconds=RESUME_SECONDS, at_most=ROWS_PER_TICK)
    if left < len(in_turn):
        looks.after = in_turn[len(in_turn) - left - 1].id
    return asked, failed, left


def _summary(number: int, failed: list[str], what: str) -> str:
    return f"{number} {what}." + (f" Not done, to be tried again: {', '.join(failed)}" if failed else "")
