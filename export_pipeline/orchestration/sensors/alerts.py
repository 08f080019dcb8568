"""Two sensors for operators: one is red while the installation is broken, the other sends alerts.

A failed tick is the one thing that Dagster shows in red without a run, so what keeps all exports from running fails the
ticks of ``export_installation``. Alerts do not use Dagster's run failure sensor: it calls once per run, before the
reconciler has decided what the silent end of a process means, and would send one message for each of many failures.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance, RunsFilter

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.database.engine import why_unavailable
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.messaging.alerts import AlertNotAccepted, AlertOutcomeUnknown, Channel, Notice, open_channels
from export_pipeline.messaging.message import MailNotAccepted, MailOutcomeUnknown
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.execution import POSTPONED_UNTIL
from export_pipeline.orchestration.jobs import JANITOR_JOB_NAME, NOTIFY_JOB_NAME, OUR_JOBS, WEBHOOKS_JOB_NAME
from export_pipeline.orchestration.resources import ExportResource, keep_catalog, load_catalog_or_last_good
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.sensors import SLOW_INTERVAL_SECONDS, sensor
from export_pipeline.requests import health

RUNS_PER_NOTICE = 20
RECORDS_PER_TICK = 500
OVERLAP_SECONDS = 30.0
"""Runs are committed out of order: each tick looks this far behind the newest change that it has seen."""
RETRY_SECONDS = 60.0
"""From an alert that a channel did not accept to its only retry."""
OLDEST_SECONDS = 86_400.0
"""Older failures raise no alert when the sensor was off."""
BROKEN_SECONDS = 30.0
"""From the first sign of a broken installation to its alert: a database may restart, a file be half written."""
TAG = "export/alert_"
SENT, WAITING, UNKNOWN, GIVEN_UP = "sent", "waiting", "unknown", "given-up"
NOT_CONFIGURED = "No alerts: set EXPORT_ALERT_WEBHOOK_URL or EXPORT_ALERT_EMAIL, restart daemon and code server."
Failed = tuple[dg.DagsterRun, FailureCode]


class InstallationBroken(Exception):
    """What is wrong with the installation and what to do, without the value of any setting."""


def problems(exports: ExportResource) -> list[str]:
    """What is wrong with the installation as a whole."""
    return [*_catalog_problems(exports), *_database_problems(exports)]


def _catalog_problems(exports: ExportResource) -> list[str]:
    try:
        loaded = load_catalog_or_last_good(exports.settings, exports.staging)
        if loaded.problem is None:
            keep_catalog(exports.settings, loaded.catalog, exports.staging)
            return []
    except CatalogError as error:
        return [f"The catalog does not load, and no good one is kept: no export can start. Correct it.\n{error}"]
    except ExportFailure as failure:
        return [f"{failure.code}: {failure.message}"]
    return [f"The catalog does not load. Exports go on with the last good one. Correct it.\n{loaded.problem}"]


def _database_problems(exports: ExportResource) -> list[str]:
    """Also writes the tick's time: a database that refuses writes is as bad as one that does not answer."""
    try:
        with exports.database.begin() as connection:
            health.note_tick(connection, "export_installation")
            outage = health.outage(connection)
    except sa.exc.DBAPIError as error:
        refused = f"The request database refused to be written to ({type(error.orig).__name__}): check its log."
        return [why_unavailable(error) or refused]
    return [] if outage.ok else [f"Exports wait, and go on by themselves when it answers: {outage.meaning}"]


@sensor(seconds=SLOW_INTERVAL_SECONDS)
def export_installation(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Fails while something keeps the whole installation from working; the error of the tick says what to correct.

    That is: wrong settings, a catalog that does not load (exports go on with the last good one), a request database
    that does not answer. export_alerts alerts operators of it once.
    """
    found = problems(exports)
    if found:
        raise InstallationBroken("\n\n".join(found))
    return dg.SkipReason("The settings, the catalog and the request database are in order.")


def always_broken(problem: str) -> dg.SensorDefinition:
    """``export_installation`` for a code location that could not be assembled: it can only say why."""

    @sensor(seconds=SLOW_INTERVAL_SECONDS)
    def export_installation(_context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """Fails while the settings are wrong; the error of the tick says what to correct."""
        raise InstallationBroken(f"No export can start. Correct the settings, then restart.\n{problem}")

    return export_installation


def alertable_failure(instance: DagsterInstance, run: dg.DagsterRun, faults: frozenset[str]) -> FailureCode | None:
    """The failure that operators must know of; None if the failed run needs no alert.

    A process that dies reports nothing. The reconciler gives its request a new attempt, which needs no alert, or gives
    it up and then tags the run, which brings the run here a second time.
    """
    if run.job_name not in OUR_JOBS:
        return None  # another code location's
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=20).records
    events = [record.event_log_entry.dagster_event for record in records]
    failures = [event.step_failure_data.user_failure_data for event in events if event is not None]
    reported = [failure.metadata for failure in failures if failure is not None]
    if any(POSTPONED_UNTIL in metadata for metadata in reported):
        return None
    codes = (_known(metadata["error_code"].value) for metadata in reported if "error_code" in metadata)
    code = next(codes, None) if reported else _tagged_failure(run)
    if code is None and run.job_name in (JANITOR_JOB_NAME, WEBHOOKS_JOB_NAME):
        code = FailureCode.INTERNAL_ERROR
    if code is None or code.fault not in faults:
        return None
    if run.job_name == NOTIFY_JOB_NAME and (code.fault is Fault.TRANSIENT or code is FailureCode.MAIL_REFUSED):
        return None  # the export's own run raised that alert, and the reconciler goes on trying
    return code


def _tagged_failure(run: dg.DagsterRun) -> FailureCode | None:
    """The failure in the tags of a run that died. A re-execution inherits tags: only the reconciler's counts there."""
    code = run.tags.get(tags.ERROR_CODE, tags.NO_FAILURE)
    if code == tags.NO_FAILURE or (run.parent_run_id and code != FailureCode.ATTEMPTS_EXHAUSTED):
        return None
    return _known(code)


def _known(code: object) -> FailureCode:
    """A failure code. Anything else, such as a tag that an operator typed, counts as an internal error."""
    return next((known for known in FailureCode if known == code), FailureCode.INTERNAL_ERROR)


def notice_of(failed: Sequence[Failed], dagster_url: str) -> Notice:
    """One alert about these runs, grouped by code. Names ids only; links to the runs if the UI's URL is known."""
    codes = list(dict.fromkeys(code for _, code in failed))
    many = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
    lines: list[str] = []
    for code in codes:
        advice = RUNBOOK[code]
        lines += ["", f"{code.value} (fault: {code.fault.value}; turn: {advice.turn.value}). {advice.plain}"]
        lines += [_line(run, dagster_url) for run, of_run in failed if of_run is code]
    subject = f"Export pipeline: {many} failed ({', '.join(code.value for code in codes)})"
    return Notice(subject, "\n".join(lines).strip())


def _line(run: dg.DagsterRun, dagster_url: str) -> str:
    names = (tags.ORGANIZATION, tags.DATASET, tags.FORMAT, tags.REQUEST_UID, tags.ATTEMPT)
    facts = [f"{name.removeprefix('export/')} {run.tags[name]}" for name in names if name in run.tags]
    where = f"{dagster_url}/runs/{run.run_id}" if dagster_url else f"run {run.run_id}"
    return f"- {run.job_name}: {', '.join([*facts, where])}"


@dataclass
class Cursor:
    """What the sensor remembers between ticks; instants in Unix seconds."""

    since: float = field(default_factory=lambda: time.time() + OVERLAP_SECONDS)
    """Failed runs that changed before need no look. At first now: older failures raise no alert."""
    broken_since: float | None = None
    """When the installation was first seen broken; None while it is not."""
    broken: dict[str, str] = field(default_factory=dict)
    """What became of that alert, by channel."""


def alerts_sensor(*, running: bool) -> dg.SensorDefinition:
    """The sensor ``export_alerts``; ``running``: on from the start, because a channel is configured."""

    @sensor(seconds=SLOW_INTERVAL_SECONDS, running=running)
    def export_alerts(context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SensorResult:
        """Alerts operators of failed runs and of a broken installation.

        It uses a Slack-compatible webhook (EXPORT_ALERT_WEBHOOK_URL), mail (EXPORT_ALERT_EMAIL), or both, and is off
        unless one of them is set. Faults of requesters send no alert (EXPORT_ALERT_FAULTS). Each failed run is alerted
        once per channel; its tags export/alert_webhook and export/alert_mail say what became of the alert. If a tick
        says 'not delivered', check the webhook or the mail provider: the alert is tried once more, a minute later.
        """
        channels = open_channels(exports.settings)
        if not channels:
            return dg.SensorResult(cursor="{}", skip_reason=dg.SkipReason(NOT_CONFIGURED))
        cursor = Cursor(**json.loads(context.cursor or "{}"))
        said = _alert_of_installation(cursor, channels, problems(exports))
        said += _alert_of_runs(cursor, channels, context.instance, exports)
        reason = " ".join(said) or "Nothing to report."
        return dg.SensorResult(cursor=json.dumps(asdict(cursor)), skip_reason=dg.SkipReason(reason))

    return export_alerts


def _alert_of_installation(cursor: Cursor, channels: dict[str, Channel], broken: Sequence[str]) -> list[str]:
    """Alert each channel once while the installation stays broken; returns what the tick says."""
    if not broken:
        cursor.broken_since, cursor.broken = None, {}
        return []
    cursor.broken_since = cursor.broken_since or time.time()
    seconds = time.time() - cursor.broken_since
    notice = Notice("Export pipeline: the installation is broken", "\n\n".join(broken))
    said: list[str] = []
    for name, channel in channels.items():
        before = cursor.broken.get(name, "")
        if seconds >= {"": BROKEN_SECONDS, WAITING: BROKEN_SECONDS + RETRY_SECONDS}.get(before, math.inf):
            state, text = _send(channel, notice)
            cursor.broken[name] = _next_state(before, state)
            said.append(f"{name}: broken installation: {text}.")
    return said


def _alert_of_runs(
    cursor: Cursor, channels: dict[str, Channel], instance: DagsterInstance, exports: ExportResource
) -> list[str]:
    """Alert each channel of failed runs, each run once; returns what the tick says."""
    now, settings = time.time(), exports.settings
    since = max(cursor.since, now - OLDEST_SECONDS) - OVERLAP_SECONDS
    records = instance.get_run_records(
        RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.fromtimestamp(since, UTC)),
        limit=RECORDS_PER_TICK,
        order_by="update_timestamp",
        ascending=True,
    )
    due: dict[str, list[Failed]] = {name: [] for name in channels}
    looked_until = cursor.since if len(records) == RECORDS_PER_TICK else max(cursor.since, now - OVERLAP_SECONDS)
    waiting = math.inf
    for record in records:
        run, changed = record.dagster_run, record.update_timestamp.timestamp()
        if any(len(failed) == RUNS_PER_NOTICE for failed in due.values()):
            waiting = min(waiting, changed)
            break
        states = {name: state for name in channels if (state := _state(run, name)) in ("", WAITING)}
        code = alertable_failure(instance, run, settings.alerting_faults) if states else None
        for name, state in states.items():
            if code is None:
                continue
            if state == WAITING and now - changed < RETRY_SECONDS:
                waiting = min(waiting, changed)
            else:
                due[name].append((run, code))
        looked_until = max(looked_until, changed)
    cursor.since = min(looked_until, waiting)
    said: list[str] = []
    for name, failed in due.items():
        if failed:
            # Tagged before it is sent: if this process dies meanwhile, the alert is not sent a second time.
            _tag(instance, name, {run.run_id: UNKNOWN for run, _ in failed})
            state, text = _send(channels[name], notice_of(failed, settings.dagster_url))
            _tag(instance, name, {run.run_id: _next_state(_state(run, name), state) for run, _ in failed})
            said.append(f"{name}: {len(failed)} failed: {text}.")
    return said


def _send(channel: Channel, notice: Notice) -> tuple[str, str]:
    """Send a notice; returns what became of it, and what the tick says."""
    try:
        channel(notice)
    except (AlertNotAccepted, MailNotAccepted) as refusal:
        return WAITING, f"not delivered ({refusal}), tried twice at most"
    except (AlertOutcomeUnknown, MailOutcomeUnknown) as unknown:
        return UNKNOWN, f"the answer was lost ({unknown}), not sent again"
    return SENT, "alert sent"


def _next_state(before: str, state: str) -> str:
    """An alert that is not accepted is tried a second time, and then given up."""
    return GIVEN_UP if before == state == WAITING else state


def _tag(instance: DagsterInstance, name: str, states: dict[str, str]) -> None:
    for run_id, state in states.items():
        instance.add_run_tags(run_id, {TAG + name: f"{state} {run_id[:8]}"})


def _state(run: dg.DagsterRun, name: str) -> str:
    """What became of the run's alert. A re-execution inherits its parent's tag: the value says of which run it is."""
    state, _, of_run = run.tags.get(TAG + name, "").partition(" ")
    return state if of_run == run.run_id[:8] else ""
