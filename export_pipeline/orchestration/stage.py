"""The frame of every op: it takes the row, keeps its pulse, and turns whatever happens into a clean end.

What belongs here: ownership, and the way from an exception to the row, the retry and Dagster's event log.
What does not: the work itself.

Nothing personal leaves: exceptions are raised ``from None`` with texts of our own, and an unexpected
one is told by its type and its places in the code, never by its message.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import dagster as dg
import sqlalchemy as sa
from dagster._core.errors import DagsterExecutionInterruptedError

from export_pipeline.delivery.upload import discard_attempt
from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode, Fault, OwnershipLost
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.pulse import Pulse
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import states
from export_pipeline.requests.tables import Stage

MAX_RETRIES = 3
FIRST_RETRY_SECONDS = 2.0

CANCELED_BY_REQUESTER = "The export was canceled as asked."
CANCELED_BY_OPERATOR = "The export was canceled by an operator in Dagster."


@dataclass(frozen=True)
class Work:
    """An op at work on a request that its run owns."""

    request_id: int
    attempt: int
    pulse: Pulse


@contextmanager
def stage(context: dg.OpExecutionContext, exports: ExportResource, request_id: int, which: Stage) -> Iterator[Work]:
    """Do one stage's work on a request.

    Raises:
        dagster.RetryRequested: a transient failure with tries left.
        dagster.Failure: every other end; the row says why.
    """
    frame = _Frame(context, exports, request_id)
    try:
        owned = frame.enter(which)
        with Pulse(exports.database, request_id, context.run_id, exports.settings.heartbeat_seconds) as pulse:
            yield Work(request_id, owned.attempt, pulse)
    except DagsterExecutionInterruptedError:
        frame.interrupted()
        raise
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:  # noqa: BLE001 - whatever happens, the row has to say so
        raise frame.outcome(error) from None


class _Frame:
    def __init__(self, context: dg.OpExecutionContext, exports: ExportResource, request_id: int) -> None:
        self._context = context
        self._exports = exports
        self._request_id = request_id
        self._owned: states.Ownership | None = None

    def enter(self, which: Stage) -> states.Ownership:
        run = self._context.run
        lineage = tags.lineage_of(run)
        with self._exports.database.begin() as connection:
            if which is Stage.PLAN:
                attempt = tags.attempt_of(run.tags)
                owned = states.begin(connection, self._request_id, run_id=run.run_id, lineage=lineage, attempt=attempt)
            else:
                owned = states.enter(connection, self._request_id, which, run_id=run.run_id, lineage=lineage)
        self._owned = owned
        return owned

    def interrupted(self) -> None:
        """The process is told to stop: by a cancel, or because its host goes down.

        Only the first ends the request; after the second the reconciler gives it a new attempt.
        """
        run = self._context.instance.get_run_by_id(self._context.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
            self._cancel(CANCELED_BY_OPERATOR)

    def _cancel(self, message: str) -> None:
        with self._exports.database.begin() as connection:
            canceled = states.cancel(connection, self._request_id, message)
        if canceled:
            self._discard()

    def _discard(self) -> None:
        """Nothing of this attempt is to stay. What cannot be deleted now is the janitor's."""
        if self._owned is None:
            return
        with suppress(ExportFailure):
            discard_attempt(self._exports.store, self._exports.staging, self._owned.uid, self._owned.attempt)

    def outcome(self, error: Exception) -> Exception:
        if isinstance(error, ExportCanceled):
            return self._canceled()
        if isinstance(error, OwnershipLost):
            return dg.Failure(f"This run does not own the request: {error}. Nothing was done.", allow_retries=False)
        if isinstance(error, sa.exc.OperationalError):
            message = "The request database could not be reached. Check that it runs and EXPORT_DATABASE_URL."
            return self._failed(ExportFailure(FailureCode.SOURCE_UNAVAILABLE, message))
        if isinstance(error, ExportFailure):
            return self._failed(error)
        return self._failed(states.INTERNAL, places=_places(error), kind=type(error).__qualname__)

    def _canceled(self) -> Exception:
        self._cancel(CANCELED_BY_REQUESTER)
        # So that Dagster ends the run as CANCELED: it is this run's own wish to stop.
        self._context.instance.report_run_canceling(self._context.run)
        return dg.Failure(CANCELED_BY_REQUESTER, allow_retries=False)

    def _failed(self, failure: ExportFailure, *, places: str = "", kind: str = "") -> Exception:
        if failure.fault is Fault.TRANSIENT and self._context.retry_number < MAX_RETRIES:
            wait = FIRST_RETRY_SECONDS * 2**self._context.retry_number
            self._context.log.warning("%s: %s Trying again in %.0f s.", failure.code, failure.message, wait)
            return dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait)
        self._write_failure(failure)
        if failure.fault is Fault.REQUESTER:
            self._discard()
        metadata: dict[str, dg.MetadataValue] = {
            "error_code": dg.MetadataValue.text(failure.code.value),
            "fault": dg.MetadataValue.text(failure.fault.value),
        }
        if places:
            metadata["exception"] = dg.MetadataValue.text(kind)
            metadata["raised_at"] = dg.MetadataValue.md(f"```\n{places}\n```")
        return dg.Failure(f"{failure.code}: {failure.message}", metadata=metadata, allow_retries=False)

    def _write_failure(self, failure: ExportFailure) -> None:
        try:
            with self._exports.database.begin() as connection:
                if not states.fail(connection, self._request_id, failure, run_id=self._context.run_id):
                    states.note(connection, self._request_id, failure.message)
        except sa.exc.OperationalError:
            # The reconciler finds the row without a heartbeat once the database is back.
            self._context.log.warning("The row could not be written; the reconciler will mend it.")


def _places(error: BaseException) -> str:
    """Where an exception came from: files, lines and functions, without its message or any value."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        lines += [f"{type(current).__qualname__}", *(f"  {f.filename}:{f.lineno} {f.name}" for f in frames)]
        current = current.__cause__ or current.__context__
    return "\n".join(lines)
