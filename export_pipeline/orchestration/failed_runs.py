"""What a failed run means to an operator: which failure it was, and whether anybody has to know.

What belongs here: reading that from the run, and from its row where the run itself could not say.
What does not: telling anybody (``alerts``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import dagster as dg
import sqlalchemy as sa

from export_pipeline.failures import FailureCode, Fault
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.janitor import JANITOR, OUR_JOBS
from export_pipeline.orchestration.job import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.outcomes import POSTPONED_UNTIL
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.webhooks import JOB_NAME as WEBHOOKS_JOB_NAME
from export_pipeline.requests.database import reading
from export_pipeline.requests.enums import UNFINISHED, RequestStatus
from export_pipeline.requests.model import has_uid
from export_pipeline.requests.tables import export_requests


@dataclass(frozen=True)
class FailedRun:
    """A failed run that operators are to be told of."""

    run_id: str
    job: str
    code: FailureCode
    tags: dict[str, str]


class Verdict(Enum):
    """What a failed run can be besides a ``FailedRun``."""

    NOBODYS = "nobody is to be told"
    OPEN = "the reconciler has not decided yet what becomes of its request"


def judge(
    instance: dg.DagsterInstance, database: sa.Engine, record: dg.RunRecord, faults: frozenset[str], *, patience: float
) -> FailedRun | Verdict:
    """Decide what a failed run means.

    A process that dies says nothing: the reconciler gives its request a new attempt, which is nobody's concern, or
    gives it up, which is told. ``patience``: seconds after its end that the reconciler is waited for.

    Raises:
        sqlalchemy.exc.OperationalError: the row had to be asked, and its database could not be reached.
    """
    run = record.dagster_run
    if run.job_name not in OUR_JOBS:
        return Verdict.NOBODYS  # another code location's
    told = _told_failures(instance, run.run_id)
    if any(POSTPONED_UNTIL in metadata for metadata in told):
        return Verdict.NOBODYS  # its request waits in the queue
    code = next((_known(metadata["error_code"].value) for metadata in told if "error_code" in metadata), None)
    if code is None and run.job_name in (JANITOR, WEBHOOKS_JOB_NAME):
        code = FailureCode.INTERNAL_ERROR
    if code is None and run.job_name == JOB_NAME:
        code, is_open = _of_row(database, run)
        if is_open and time.time() - (record.end_time or 0.0) < patience:
            return Verdict.OPEN
    if code is None or code.fault not in faults:
        return Verdict.NOBODYS
    if run.job_name == NOTIFY_JOB_NAME and (code.fault is Fault.TRANSIENT or code is FailureCode.MAIL_REFUSED):
        return Verdict.NOBODYS  # the export's own run told of it, and the reconciler goes on trying
    return FailedRun(run.run_id, run.job_name, code, dict(run.tags))


def _told_failures(instance: dg.DagsterInstance, run_id: str) -> list[Mapping[str, dg.MetadataValue[Any]]]:
    """What the run's failed steps say of their failures, the first one first."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=20).records
    events = [record.event_log_entry.dagster_event for record in records]
    told = [event.step_failure_data.user_failure_data for event in events if event is not None]
    return [data.metadata for data in told if data is not None]


def _known(code: object) -> FailureCode:
    """A failure code; whatever else stands there (SQLite stores anything anywhere) as a failure of ours."""
    return next((known for known in FailureCode if known == code), FailureCode.INTERNAL_ERROR)


def _of_row(database: sa.Engine, run: dg.DagsterRun) -> tuple[FailureCode | None, bool]:
    """What the row of the run's request says of it: why it failed, and whether it may yet become something.

    It says nothing of this run if it counts another attempt by now, or belongs to another run.
    """
    rows = export_requests.c
    own = sa.and_(
        has_uid(run.tags.get(tags.REQUEST_UID, "")),
        rows.attempt == tags.attempt_of(run.tags),
        sa.or_(rows.run_id == run.run_id, rows.run_id.is_(None)),
    )
    with reading(database) as connection:
        row = connection.execute(sa.select(rows.status, rows.error_code).where(own)).first()
    if row is None:
        return None, False
    if row.status == RequestStatus.FAILED:
        return _known(row.error_code), False
    return None, row.status in UNFINISHED


def described(failed: Sequence[FailedRun], dagster_url: str) -> tuple[str, str]:
    """Subject and text for people, grouped by code: ids alone, with links to the runs if the UI's URL is known."""
    codes = list(dict.fromkeys(one.code for one in failed))
    many = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
    lines: list[str] = []
    for code in codes:
        advice = RUNBOOK[code]
        lines += ["", f"{code.value} (fault: {code.fault.value}; turn: {advice.turn.value}). {advice.plain}"]
        lines += [_line(one, dagster_url) for one in failed if one.code is code]
    return f"Export pipeline: {many} failed ({', '.join(code.value for code in codes)})", "\n".join(lines).strip()


def _line(one: FailedRun, dagster_url: str) -> str:
    names = (tags.ORGANIZATION, tags.DATASET, tags.FORMAT, tags.REQUEST_UID, tags.ATTEMPT)
    facts = [f"{name.removeprefix('export/')} {one.tags[name]}" for name in names if name in one.tags]
    where = f"{dagster_url}/runs/{one.run_id}" if dagster_url else f"run {one.run_id}"
    return f"- {one.job}: {', '.join([*facts, where])}"
