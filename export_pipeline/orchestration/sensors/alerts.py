"""The sensor that tells operators of failed runs and of a broken installation, each at most once a channel.

Dagster's own run failure sensor calls its function once a run and, if that raises, never again for it: a webhook that
is down for a minute would swallow the alert. So this one looks the failed runs up. What became of a run's alert stands
on the run as a tag, written before and after handing it over; the cursor only says since when to look.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import UNFINISHED, RequestStatus
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import FailureCode, Fault
from export_pipeline.messaging.alerts import AlertNotAccepted, AlertOutcomeUnknown, Channel, Notice, open_channels
from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.execution import POSTPONED_UNTIL
from export_pipeline.orchestration.installation import problems
from export_pipeline.orchestration.jobs import JOB_NAME, NOTIFY_JOB_NAME
from export_pipeline.orchestration.maintenance import JANITOR, OUR_JOBS, WEBHOOKS_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.requests.models import has_uid

# What a failed run means to an operator: which failure it was, and whether anybody has to know.


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


INTERVAL_SECONDS = 14
RUNS_PER_NOTICE = 20
RECORDS_PER_TICK = 500
OVERLAP_SECONDS = 30.0
"""A run's last change may be committed after a later one's: so far behind the newest is looked again."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 1800.0
"""A channel that takes nothing is tried again after 60, 120, 240, ... s."""
GIVE_UP_SECONDS = 86_400.0
BROKEN_SECONDS = 30.0
"""So long the installation is broken before operators hear of it: a database may restart, a file be half written."""
RECONCILED_SECONDS = 600.0
"""So long after its heartbeat's time-out the reconciler is waited for to decide what a silent end means."""
TAG = "export/alert_"
SENDING, SENT, WAITING, UNKNOWN, GIVEN_UP = "sending", "sent", "waiting", "unknown", "given-up"
NOT_CONFIGURED = (
    "Nobody is to be alerted: set EXPORT_ALERT_WEBHOOK_URL or EXPORT_ALERT_EMAIL, restart daemon and code server."
)


@dataclass
class Memory:
    """What the sensor's cursor keeps of one channel; instants in Unix seconds."""

    since: float
    """Failed runs that changed before have been dealt with."""
    failures: int = 0
    """Deliveries in a row that were not accepted."""
    not_before: float = 0.0
    broken_since: float | None = None
    """When the installation was first seen broken; None while it is not."""
    broken_told: bool = False


def alerts_sensor(*, running: bool) -> dg.SensorDefinition:
    """The sensor; ``running``: on from the start, because the settings name somebody to tell."""
    status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=status,
        description=descriptions.EXPORT_ALERTS,
    )
    def export_alerts(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult:
        """Failed runs, and a broken installation, to operators."""
        channels = open_channels(exports.settings)
        memories = _read(context.cursor)
        broken = problems(exports) if channels else []
        told = [
            _Teller(context.instance, exports, name, channel, memories.setdefault(name, _now_on())).tell(broken)
            for name, channel in channels.items()
        ]
        cursor = json.dumps({name: asdict(memory) for name, memory in memories.items() if name in channels})
        return dg.SensorResult(cursor=cursor, skip_reason=dg.SkipReason(" ".join(told) or NOT_CONFIGURED))

    return export_alerts


def _now_on() -> Memory:
    """The memory of a channel that is new, or was away: the past is not told."""
    return Memory(since=time.time() + OVERLAP_SECONDS)


def _read(cursor: str | None) -> dict[str, Memory]:
    if not cursor:
        return {}
    return {name: Memory(**memory) for name, memory in json.loads(cursor).items()}


class _Teller:
    """One channel's turn in one tick."""

    def __init__(
        self, instance: DagsterInstance, exports: ExportResource, name: str, channel: Channel, memory: Memory
    ) -> None:
        self._instance = instance
        self._exports = exports
        self._name = name
        self._channel = channel
        self._memory = memory
        self._unsettled: list[float] = []

    def tell(self, broken: Sequence[str]) -> str:
        """Tell of what is due; returns what the tick says of it.

        Args:
            broken: what is wrong with the installation as a whole.
        """
        now, memory = time.time(), self._memory
        if now < memory.not_before:
            return (
                f"{self._name}: not delivered {memory.failures} times, tried again in {memory.not_before - now:.0f} s."
            )
        if self._is_newly_broken(broken, now):
            state, said = self._hand_over(Notice("Export pipeline: the installation is broken", "\n\n".join(broken)))
            memory.broken_told = state != WAITING  # also if the answer was lost: once is enough
            return said
        seen = memory.since
        due: list[FailedRun] = []
        records = self._records()
        for record in records:
            if len(due) == RUNS_PER_NOTICE:
                break
            changed = record.update_timestamp.timestamp()
            found = self._judged(record)
            if isinstance(found, FailedRun):
                due.append(found)
            if found is not Verdict.NOBODYS:
                self._unsettled.append(changed)
            seen = max(seen, changed)
        else:
            if len(records) < RECORDS_PER_TICK:
                seen = max(seen, now - OVERLAP_SECONDS)
        said = f"{self._name}: nothing to tell."
        if due:
            notice = Notice(*described(due, self._exports.settings.dagster_url))
            _, said = self._hand_over(notice, [one.run_id for one in due])
        memory.since = min([seen, *self._unsettled])
        return said

    def _is_newly_broken(self, broken: Sequence[str], now: float) -> bool:
        """Whether it has been broken for a while, and this channel has not been told."""
        memory = self._memory
        if not broken:
            memory.broken_since, memory.broken_told = None, False
            return False
        memory.broken_since = memory.broken_since or now
        return not memory.broken_told and now - memory.broken_since >= BROKEN_SECONDS

    def _records(self) -> Sequence[dg.RunRecord]:
        since = datetime.fromtimestamp(self._memory.since - OVERLAP_SECONDS, UTC)
        return self._instance.get_run_records(
            RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since),
            limit=RECORDS_PER_TICK,
            order_by="update_timestamp",
            ascending=True,
        )

    def _judged(self, record: dg.RunRecord) -> FailedRun | Verdict:
        """What is to be told of a run on this channel now."""
        run, settings = record.dagster_run, self._exports.settings
        # A re-execution has the tags of the run that it re-executes: the value says whose it is.
        state, _, of_run = run.tags.get(TAG + self._name, "").partition(" ")
        state = state if of_run == _short(run.run_id) else ""
        if state in (SENT, UNKNOWN, GIVEN_UP):
            return Verdict.NOBODYS
        if state == SENDING:  # the process died while it was handed over
            self._mark([run.run_id], UNKNOWN)
            return Verdict.NOBODYS
        patience = settings.heartbeat_timeout_seconds + RECONCILED_SECONDS
        try:
            found = judge(self._instance, self._exports.database, record, settings.alerting_faults, patience=patience)
        except sa.exc.OperationalError:
            return Verdict.OPEN
        ended_at = record.end_time or record.update_timestamp.timestamp()
        if isinstance(found, FailedRun) and time.time() - ended_at > GIVE_UP_SECONDS:
            self._mark([run.run_id], GIVEN_UP)
            return Verdict.NOBODYS
        return found

    def _hand_over(self, notice: Notice, runs: Sequence[str] = ()) -> tuple[str, str]:
        """Send a notice, about runs or about the installation: what became of it, and what the tick says."""
        self._mark(runs, SENDING)
        state, self._memory.failures = SENT, self._memory.failures + 1
        try:
            self._channel.send(notice)
        except AlertNotAccepted as refusal:
            state = WAITING
            pause = min(PAUSE_SECONDS * 2**self._memory.failures, LONGEST_PAUSE_SECONDS)
            self._memory.not_before = time.time() + pause
            said = f"{self._name}: not delivered ({refusal}), {len(runs) or 1} wait; tried again in {pause:.0f} s."
        except AlertOutcomeUnknown as unknown:
            state = UNKNOWN
            said = f"{self._name}: the answer was lost ({unknown}); not sent again."
        else:
            said = f"{self._name}: told of {len(runs) or 'the installation'}."
        if state != WAITING:
            self._memory.failures = 0
        self._mark(runs, state)
        return state, said

    def _mark(self, run_ids: Sequence[str], state: str) -> None:
        for run_id in run_ids:
            self._instance.add_run_tags(run_id, {TAG + self._name: f"{state} {_short(run_id)}"})


def _short(run_id: str) -> str:
    return run_id[:8]
