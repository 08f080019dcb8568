"""Which rows lost their run, and what is to become of each.

What belongs here: the decision, as plain functions over rows and runs. What does not: asking Dagster (``sensors``).

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

EXHAUSTED = ExportFailure(
    FailureCode.ATTEMPTS_EXHAUSTED,
    "The export was started several times and each time its process ended without a word. The operators can see the "
    "runs; insert a new request once they found the reason.",
)
CANCELED_IN_DAGSTER = "The export was canceled in Dagster."


@dataclass(frozen=True)
class RunView:
    """What matters of a Dagster run."""

    run_id: str
    attempt: int | None
    finished: bool
    canceled: bool


class Fate(StrEnum):
    """What is to become of a row that lost its run."""

    LEAVE = "left alone"
    REQUEST_AGAIN = "its run was never made; asked for again"
    NEW_ATTEMPT = "its run ended without a word; back in the queue"
    GIVE_UP = "its attempts are used up; failed"
    CANCEL = "its run was canceled in Dagster"

    def apply(self, connection: sa.Connection, orphan: Orphan) -> None:
        """Write it on the row."""
        match self:
            case Fate.LEAVE:
                claims.renew_lease(connection, orphan.id)
            case Fate.REQUEST_AGAIN:
                claims.release(connection, orphan.id, attempt=orphan.attempt, charged=False)
            case Fate.NEW_ATTEMPT:
                claims.release(connection, orphan.id, attempt=orphan.attempt, charged=True)
            case Fate.GIVE_UP:
                states.fail(connection, orphan.id, EXHAUSTED, run_id=None)
            case Fate.CANCEL:
                states.cancel(connection, orphan.id, CANCELED_IN_DAGSTER)


def fate(orphan: Orphan, runs: Sequence[RunView], *, max_attempts: int) -> Fate:
    """Decide from the request's runs what is to become of its row."""
    current = [run for run in runs if run.attempt == orphan.attempt]
    if not orphan.running and not current:
        return Fate.REQUEST_AGAIN
    if any(not run.finished for run in current) and not orphan.timed_out:
        return Fate.LEAVE
    if any(run.finished and run.canceled for run in current):
        return Fate.CANCEL
    return Fate.NEW_ATTEMPT if orphan.attempt < max_attempts else Fate.GIVE_UP
