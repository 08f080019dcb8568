"""Which rows lost their run, and what is to become of each.

What belongs here: the decision, as plain functions over rows and runs. What does not: asking Dagster (``mending``).

Status sensors are called at most once and never again after an exception, and a killed worker tells
nobody: so the truth is found by comparing. A slow export that still writes its heartbeat is never judged stuck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import claims, states
from export_pipeline.requests.claims import Orphan


def exhausted(attempts: int) -> ExportFailure:
    """The end of a request whose every attempt ended without a reason."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return ExportFailure(
        FailureCode.ATTEMPTS_EXHAUSTED,
        f"The export was started {times}, and its process ended without giving a reason. The runs show where: look for "
        "memory, restarts and lost machines. Then: export-pipeline retry UID.",
    )


@dataclass(frozen=True)
class RunView:
    """What matters of a Dagster run."""

    run_id: str
    attempt: int | None
    finished: bool
    canceled: bool
    canceling: bool = False
    waiting: bool = False
    """It has not begun: nothing can be heard of it yet."""
    job_name: str = ""
    ended_at: float = 0.0
    """Unix seconds; 0 while it has not ended."""
    claim_id: str | None = None
    """The claim that it was launched for; None if an older version launched it."""


class Fate(StrEnum):
    """What is to become of a row that lost its run."""

    LEAVE = "left alone"
    WAIT = "its run waits its turn; its claim is renewed"
    REQUEST_AGAIN = "its run was never made; asked for again"
    NEW_ATTEMPT = "its run ended without a word; back in the queue"
    GIVE_UP = "its attempts are used up; failed"
    CANCEL = "its run was canceled in Dagster"


def write(connection: sa.Connection, orphan: Orphan, decided: Fate) -> None:
    """Write on the row what became of it; a cancel also deletes files and is not this module's."""
    match decided:
        case Fate.LEAVE:
            pass
        case Fate.WAIT:
            claims.renew_lease(connection, orphan.id)
        case Fate.REQUEST_AGAIN:
            claims.release(connection, orphan.id, attempt=orphan.attempt, run_id=orphan.run_id, charged=False)
        case Fate.NEW_ATTEMPT:
            claims.release(connection, orphan.id, attempt=orphan.attempt, run_id=orphan.run_id, charged=True)
        case Fate.GIVE_UP:
            failure = exhausted(orphan.counted_attempts)
            states.give_up(connection, orphan.id, failure, attempt=orphan.attempt, run_id=orphan.run_id)
        case Fate.CANCEL:
            raise ValueError("a cancel is carried out by cancel.cancel_and_discard")


def is_of(run: RunView, orphan: Orphan) -> bool:
    """Whether a run was launched for the claim that the row counts now."""
    if run.claim_id is None or orphan.claim_id is None:
        return run.attempt == orphan.attempt
    return run.claim_id == orphan.claim_id


def fate(orphan: Orphan, runs: Sequence[RunView], *, max_attempts: int) -> Fate:
    """Decide from the request's runs what is to become of its row."""
    current = [run for run in runs if is_of(run, orphan)]
    if not orphan.running and not current:
        return Fate.REQUEST_AGAIN
    if any(run.waiting for run in current):
        return Fate.LEAVE if orphan.running else Fate.WAIT
    if any(not (run.finished or orphan.timed_out) for run in current):
        return Fate.LEAVE
    # A re-execution that was canceled before it took the row says nothing of the run that owns it.
    if any(run.canceled and orphan.run_id in (run.run_id, None) for run in current):
        return Fate.CANCEL
    return Fate.NEW_ATTEMPT if orphan.counted_attempts < max_attempts else Fate.GIVE_UP
