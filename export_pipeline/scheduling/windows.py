"""What a recurring export does at an instant, and which rows each of its requests covers: pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.scheduling.cron import Schedule, last_fire, next_fire

MISSED_AFTER = timedelta(minutes=10)
"""With ``catch_up_policy`` ``none``, a fire time that could not be made into a request for so long is let go."""
CLOCK_SLACK = timedelta(minutes=5)
"""Two clocks may differ by so much."""


@dataclass(frozen=True)
class Rules:
    """What a recurring export was set to."""

    schedule: Schedule
    window: WindowKind = WindowKind.ALL
    lag: timedelta = timedelta()
    """How long after a fire time its request is made, so that rows which commit late are in its window."""
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    catch_up: CatchUpPolicy = CatchUpPolicy.LATEST


@dataclass(frozen=True)
class Window:
    """The rows of a request by their creation time, half-open: from ``begin`` on, and before ``end``."""

    begin: datetime | None = None
    """None: from the first row on."""
    end: datetime | None = None
    """None: to the last row."""


class Act(StrEnum):
    """What is to be done with a fire time."""

    WAIT = "wait"
    """Nothing now: none is due, or an earlier request has to end first."""
    MAKE = "make"
    """It becomes a request."""
    DROP = "drop"
    """It, and those before it, never become one."""


@dataclass(frozen=True)
class Decision:
    """What is to be done now, and with which fire time (None if none is due)."""

    act: Act
    fire_time: datetime | None = None


_NOTHING = Decision(Act.WAIT)


def is_due(rules: Rules, last_fired_for: datetime, now: datetime) -> bool:
    """Whether there is anything to decide.

    Raises:
        ExportFailure: ``invalid_schedule``, it never fires again.
    """
    return next_fire(rules.schedule, last_fired_for) + rules.lag <= now


def is_ahead(now: datetime, *marks: datetime | None) -> bool:
    """Whether a mark lies in the future: it was written while a clock was wrong."""
    return any(mark is not None and mark > now + CLOCK_SLACK for mark in marks)


def decide(rules: Rules, last_fired_for: datetime, now: datetime, unfinished_since: datetime | None) -> Decision:
    """What to do about the fire times since the last one that was done with.

    Args:
        rules: of the recurring export.
        last_fired_for: the last fire time that was made or passed over; before the first, when the row was made.
        now: this instant.
        unfinished_since: when the newest request that has not ended was made; None if all have.

    Raises:
        ExportFailure: ``invalid_schedule``, it never fires again.
    """
    if not is_due(rules, last_fired_for, now):
        return _NOTHING
    every = rules.catch_up is CatchUpPolicy.ALL
    fire_time = next_fire(rules.schedule, last_fired_for) if every else last_fire(rules.schedule, now - rules.lag)
    if rules.catch_up is CatchUpPolicy.NONE and now - rules.lag - fire_time > MISSED_AFTER:
        return Decision(Act.DROP, fire_time)
    if unfinished_since is None:
        return Decision(Act.MAKE, fire_time)
    # One that passed before the unfinished request was even made did not overlap it: it was missed, and waits.
    if rules.overlap is OverlapPolicy.SKIP and fire_time > unfinished_since:
        return Decision(Act.DROP, fire_time)
    return Decision(Act.WAIT, fire_time)


def coverage(rules: Rules, fire_time: datetime, high_water_mark: datetime | None) -> Window:
    """The rows that the request of a fire time covers.

    ``previous_period`` is from one fire time to the next, whatever became of other requests: at ``0 0 * * *`` it is the
    local day before, of 23, 24 or 25 hours. ``since_last_success`` begins where the last completed one ended.
    """
    match rules.window:
        case WindowKind.ALL:
            return Window()
        case WindowKind.PREVIOUS_PERIOD:
            return Window(last_fire(rules.schedule, fire_time - timedelta(microseconds=1)), fire_time)
        case WindowKind.SINCE_LAST_SUCCESS:
            return Window(high_water_mark, fire_time)


def coverage_now(rules: Rules, now: datetime, high_water_mark: datetime | None) -> Window:
    """The rows of a request that somebody asks for out of turn: up to the last fire time, or up to now less the lag."""
    until = now - rules.lag
    if rules.window is WindowKind.SINCE_LAST_SUCCESS:
        return coverage(rules, until, high_water_mark)
    return coverage(rules, last_fire(rules.schedule, until), high_water_mark)


def advance_high_water_mark(high_water_mark: datetime | None, completed: Window) -> datetime | None:
    """The high-water mark once a request that covers so much is completed.

    It moves only over what it reaches: never back, and never over rows that nobody delivered.
    """
    if completed.end is None:
        return high_water_mark
    if high_water_mark is None:
        return completed.end if completed.begin is None else None
    reaches = completed.begin is None or completed.begin <= high_water_mark
    return max(high_water_mark, completed.end) if reaches else high_water_mark
