"""What surrounds every op: it takes the row, keeps its heartbeat and outputs, and turns any error into a clean end.

A clean end is a retry, a postponement (the request goes back to the queue) or a failure that the row describes.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import sqlalchemy as sa
from dagster_aws.s3 import S3PickleIOManager

from export_pipeline.database.enums import NotificationStatus, RequestStatus, Stage
from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode, Fault, OwnershipLost
from export_pipeline.messaging.failure_mail import mail_failure
from export_pipeline.messaging.sending import MailPostponed
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.heartbeat import Heartbeat
from export_pipeline.orchestration.metadata import describe, failure_of, metadata_of
from export_pipeline.orchestration.resources import OUTPUTS, ExportResource
from export_pipeline.requests import ownership, transitions
from export_pipeline.requests.models import is_canonical_uuid, load_request
from export_pipeline.settings import Settings
from export_pipeline.stages.cleanup import BY_REQUESTER, cancel_and_discard, discard_abandoned, discard_attempt
from export_pipeline.stages.plan import staging_prefix
from export_pipeline.storage.s3_client import STAGING, translated

POSTPONED_UNTIL = "postponed_until"
"""Metadata of a failed step whose run put its request back into the queue: nothing has to be done."""
MAX_RETRIES = 3
FIRST_RETRY_SECONDS = 2.0
DATABASE_RETRIES = 60
"""Eight minutes, with waits that stop growing: while the request database is away nothing else could use the slot, and
the row must be updated soon after it is back."""
LONGEST_DATABASE_WAIT = 4
"""In units of the first wait."""
LONGEST_RETRY_SECONDS = 60.0
"""A provider that asks for a longer wait gets a later run: this one would hold its slot for nothing."""
POSTPONED = frozenset({FailureCode.SOURCE_UNAVAILABLE, FailureCode.STORE_UNAVAILABLE, FailureCode.STAGING_UNAVAILABLE})
"""If these outlast the retries of an op, the request waits in the queue instead of in a slot."""


@dataclass(frozen=True)
class Work:
    """The request that an op works on, owned by its run."""

    request_id: int
    attempt: int
    heartbeat: Heartbeat
    completed: str | None = None
    """The manifest's key if an earlier try of ``publish`` has completed the request already."""


@contextmanager
def stage(context: dg.OpExecutionContext, exports: ExportResource, request_id: int, which: Stage) -> Iterator[Work]:
    """Do one stage's work on a request that this run owns.

    Raises:
        dagster.RetryRequested: a transient failure with retries left.
        dagster.Failure: any other failure; the row says why.
    """
    frame = _Frame(context, exports, request_id)
    with _clean_end(frame):
        owned = frame.enter(which)
        frame.complete_tags(owned)
        with Heartbeat(
            exports.database,
            request_id,
            context.run_id,
            exports.settings.heartbeat_seconds,
            log=context.log.info,
            rows_total=owned.rows_total,
        ) as heartbeat:
            yield Work(request_id, owned.attempt, heartbeat, owned.manifest_key)


@contextmanager
def without_ownership(context: dg.OpExecutionContext, exports: ExportResource, request_id: int) -> Iterator[None]:
    """Do work for a request without changing its row: mailing its failure.

    Raises ``dagster.RetryRequested``, ``dagster.Failure``: as ``stage``.
    """
    with _clean_end(_Frame(context, exports, request_id, _writes=False)):
        yield


@contextmanager
def _outside_op(step: dg.StepExecutionContext, exports: ExportResource) -> Iterator[None]:
    """Store or read the output of a step; errors end as in ``stage``.

    What the run owns is taken from its tags, without reading the row: its ops have taken the row or will.
    """
    context = dg.OpExecutionContext(step)
    uid, attempt = context.run.tags.get(tags.REQUEST_UID, ""), tags.attempt_of(context.run.tags)
    owned = ownership.Ownership(uid, attempt) if is_canonical_uuid(uid) and attempt is not None else None
    ops: Any = context.run.run_config["ops"]
    (first,) = ops.values()  # all jobs for one request have its id there
    frame = _Frame(context, exports, int(first["config"]["request_id"]), _owned=owned)
    with _clean_end(frame), translated(STAGING):
        try:
            yield
        except FileNotFoundError:
            raise ExportFailure(
                FailureCode.STAGING_LOST,
                "The output of an earlier step is gone. Re-execute the run from its start, and find out what deletes "
                "objects under EXPORT_STAGING_URL.",
            ) from None


def _note(failure: ExportFailure) -> str:
    """The message for a row that is completed already: the requester has the files."""
    if failure.fault is Fault.REQUESTER or failure.code in (FailureCode.MAIL_UNAVAILABLE, FailureCode.MAIL_REFUSED):
        return failure.requester_message
    return (
        "The files are ready, but the mails could not be sent yet. They are tried again; the request needs no change."
    )


def send_failure_mail(exports: ExportResource, request_id: int) -> Mapping[NotificationStatus, int]:
    """Mail the requester of a failed request; see ``mail_failure``."""
    if not exports.settings.sends_mail:
        return {}
    return mail_failure(exports.database, exports.mail, exports.settings, exports.catalog, request_id)


@contextmanager
def _clean_end(frame: "_Frame") -> Iterator[None]:
    try:
        yield
    except dg.DagsterExecutionInterruptedError:
        frame.interrupted()
        raise
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:  # noqa: BLE001 - the row must describe any failure
        raise frame.outcome(error) from None


def _retries(failure: ExportFailure) -> int:
    """How often the run retries an op after this failure."""
    return DATABASE_RETRIES if failure.code is FailureCode.DATABASE_UNAVAILABLE else MAX_RETRIES


@dataclass
class _Frame:
    """One op's view of its request: takes the row, and decides how the op ends."""

    _context: dg.OpExecutionContext
    _exports: ExportResource
    _request_id: int
    _writes: bool = True
    """Whether a failure may change the row."""
    _owned: ownership.Ownership | None = None

    @property
    def _uid(self) -> str | None:
        return None if self._owned is None else self._owned.uid

    def enter(self, which: Stage) -> ownership.Ownership:
        """Take the row for this run."""
        run = self._context.run
        lineage, attempt = tags.lineage_of(self._context.instance, run), tags.attempt_of(run.tags)
        with self._exports.database.begin() as connection:
            if which is Stage.PLAN:
                owned = ownership.begin(
                    connection,
                    self._request_id,
                    run_id=run.run_id,
                    lineage=lineage,
                    attempt=attempt,
                    claim_id=run.tags.get(tags.CLAIM),
                )
            elif which is Stage.NOTIFY_RECIPIENTS:
                # Mails are sent after `completed`, so that their links work.
                owned = ownership.enter_completed(connection, self._request_id, which, run_id=run.run_id, lineage=None)
            else:
                owned = ownership.enter(
                    connection, self._request_id, which, run_id=run.run_id, lineage=lineage, attempt=attempt
                )
        self._owned = owned
        return owned

    def complete_tags(self, owned: ownership.Ownership) -> None:
        """Add the tags that a run launched by hand lacks, and reset the failure tags that a re-execution inherits."""
        run, instance = self._context.run, self._context.instance
        missing: dict[str, str] = {}
        if tags.REQUEST_UID not in run.tags:
            # Without them neither a cancel nor the reconciler would find the run.
            missing = {tags.REQUEST_UID: tags.tag_value(owned.uid), tags.ATTEMPT: str(owned.attempt)}
            missing[tags.CLAIM] = tags.tag_value(str(owned.claim_id))
        if tags.inherited_failure(instance, run):
            missing |= {tags.ERROR_CODE: tags.NO_FAILURE, tags.FAULT: tags.NO_FAILURE}
        if missing:
            instance.add_run_tags(run.run_id, missing)

    def interrupted(self) -> None:
        """The process is stopped by a cancel, or because its host goes down.

        A cancel ends the request. After anything else the reconciler gives the request a new attempt.
        """
        run = self._context.instance.get_run_by_id(self._context.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.CANCELING and self._uid is not None:
            # If the database is away, the sensors carry out the cancel later.
            with suppress(sa.exc.SQLAlchemyError):
                cancel_and_discard(self._exports, self._request_id, self._uid, run_id=run.run_id)

    def outcome(self, error: Exception) -> Exception:
        """The exception that ends the op: never the error itself, whose text may hold anything."""
        unwritten = error
        for _ in range(DATABASE_RETRIES):
            try:
                return self._outcome(error)
            except Exception as second:  # noqa: BLE001 - it could not be written to the row
                unwritten = second
                if failure_of(second).code is not FailureCode.DATABASE_UNAVAILABLE:
                    break
                time.sleep(LONGEST_DATABASE_WAIT * FIRST_RETRY_SECONDS)
        self._tag(tags.failure_tags(failure_of(unwritten).code))
        return dg.Failure(
            "The row could not be updated with how this step ended. The request gets a new attempt within minutes.",
            metadata=metadata_of(unwritten, self._uid),
            allow_retries=False,
        )

    def _outcome(self, error: Exception) -> Exception:
        if isinstance(error, ExportCanceled):
            return self._canceled()
        if isinstance(error, OwnershipLost):
            # What this worker wrote after its attempt had been cleared away.
            exports = self._exports
            self._clear(lambda *owned: discard_abandoned(exports.database, exports.store, exports.staging, *owned))
            return dg.Failure(f"This run does not own the request: {error}. Nothing was done.", allow_retries=False)
        return self._failed(error)

    def _canceled(self) -> Exception:
        if self._uid is not None:
            cancel_and_discard(self._exports, self._request_id, self._uid)
        # So that Dagster ends the run as CANCELED, not as FAILURE.
        self._context.instance.report_run_canceling(self._context.run)
        return dg.Failure(BY_REQUESTER, allow_retries=False)

    def _failed(self, error: Exception) -> Exception:
        failure = failure_of(error)
        wait = self._wait(failure)
        if wait is not None:
            self._context.log.warning("%s: %s Trying again in %.0f s.", failure.code, failure.message, wait)
            if failure.code is FailureCode.STORE_UNAVAILABLE:
                self._exports.forget_store()
            return dg.RetryRequested(max_retries=_retries(failure), seconds_to_wait=wait)
        if self._writes and failure.code in POSTPONED and (until := self._postpone(failure)):
            return self._postponed(failure, until)
        written = self._writes and self._write_failure(failure)
        # Before the mail, which may take minutes: if this process dies meanwhile, the alert reads the tags.
        self._tag(tags.failure_tags(failure.code))
        if written:
            self._after_failure(failure)
        return dg.Failure(describe(failure), metadata=metadata_of(error, self._uid), allow_retries=False)

    def _tag(self, new: Mapping[str, str]) -> None:
        """Tag the run, so that the UI's list of runs can be filtered by what failed."""
        with suppress(Exception):  # the step's metadata says the same
            self._context.instance.add_run_tags(self._context.run_id, new)

    def _clear(self, discard: Callable[[str, int], object]) -> None:
        """Delete what the attempt wrote, given its uid and number."""
        if self._owned is not None:
            with suppress(ExportFailure, sa.exc.SQLAlchemyError):  # then the janitor deletes it
                discard(self._owned.uid, self._owned.attempt)

    def _discard(self) -> None:
        """Delete what the attempt wrote to both stores."""
        self._clear(lambda *owned: discard_attempt(self._exports.store, self._exports.staging, *owned))

    def _wait(self, failure: ExportFailure) -> float | None:
        """Seconds until the op is retried; None if it is not."""
        if failure.fault is not Fault.TRANSIENT or self._context.retry_number >= _retries(failure):
            return None
        if self._owned is not None and self._owned.failed:
            return None  # the requester has been mailed already; re-executing the run is the retry
        wait = float(FIRST_RETRY_SECONDS * 2**self._context.retry_number)
        if failure.code is FailureCode.DATABASE_UNAVAILABLE:
            return min(wait, LONGEST_DATABASE_WAIT * FIRST_RETRY_SECONDS)
        retry_after = failure.retry_after if isinstance(failure, MailPostponed) else None
        if retry_after is None:
            return wait
        # A waiting run sends no heartbeat, and must not be taken for dead.
        longest = min(LONGEST_RETRY_SECONDS, self._exports.settings.heartbeat_timeout_seconds / 2)
        return max(wait, retry_after) if retry_after <= longest else None

    def _postpone(self, failure: ExportFailure) -> str | None:
        """Put the request back into the queue without using up an attempt.

        Returns when it is tried again; None if it may not be postponed any more.
        """
        with self._exports.database.begin() as connection:
            transitions.postpone(connection, self._request_id, failure, run_id=self._context.run_id)
            row = load_request(connection, self._request_id)
        # If several shards of one run fail at once, one of them postpones it.
        ours = self._owned is not None and row.attempt == self._owned.attempt and row.status is RequestStatus.QUEUED
        return f"{row.not_before:%Y-%m-%d %H:%M:%S} UTC" if ours and row.not_before else None

    def _postponed(self, failure: ExportFailure, until: str) -> Exception:
        """Delete what this run staged: the next run starts anew, and a full disk gets its space back."""
        self._clear(lambda *owned: self._exports.staging.delete_tree(staging_prefix(*owned)))
        if failure.code is not FailureCode.STORE_UNAVAILABLE:
            self._discard()
        self._tag({tags.POSTPONED: failure.code.value})
        return dg.Failure(
            f"Postponed until {until}: {describe(failure)} Nothing to press: the request waits in the queue and gets "
            "another run then, or as soon as another export gets an answer. No attempt is used up.",
            metadata={POSTPONED_UNTIL: until, "not_answering": failure.code.value},
            allow_retries=False,
        )

    def _after_failure(self, failure: ExportFailure) -> None:
        """The row is ``failed``: mail the requester, and delete what cannot be resumed."""
        if failure.fault is Fault.REQUESTER:
            self._discard()  # a requester's fault needs a new request: this attempt is not re-executed
        try:
            send_failure_mail(self._exports, self._request_id)
        except Exception:  # noqa: BLE001 - the mail is queued, and must not change how the run ends
            self._context.log.warning("The failure could not be mailed to the requester yet; a notify run tries again.")

    def _write_failure(self, failure: ExportFailure) -> bool:
        """Write the failure to the row; whether the row is ``failed`` now, and not completed already."""
        run_id = self._context.run_id
        with self._exports.database.begin() as connection:
            failed = transitions.fail(connection, self._request_id, failure, run_id=run_id)
            if not failed:
                transitions.note(connection, self._request_id, _note(failure), run_id=run_id)
        return failed


# Dagster reads these annotations: no `from __future__ import annotations` in this module.
class StepOutputs(S3PickleIOManager):
    """Dagster's IO manager for S3. A failure of S3 ends the step as a failure of its op does: the row says why."""

    exports: dg.ResourceDependency[ExportResource]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write an output of a step."""
        with _outside_op(context.step_context, self.exports):
            super().handle_output(context, obj)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read an input of a step."""
        with _outside_op(context.step_context, self.exports):
            return super().load_input(context)


def io_manager_of(settings: Settings, exports: ExportResource) -> dict[str, Any]:
    """The IO manager as a resource: on S3 if staging is, else Dagster's own on the disk of its instance."""
    parts = urlsplit(settings.staging_url)
    if parts.scheme != "s3":
        return {}
    prefix = "/".join(part for part in (parts.path.strip("/"), OUTPUTS) if part)
    return {
        "io_manager": StepOutputs(exports=exports, s3_resource=exports.s3, s3_bucket=parts.netloc, s3_prefix=prefix)
    }
