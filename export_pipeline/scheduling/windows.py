"""Decide what a recurring export does at an instant, and which rows each of its requests covers.

A schedule that never fires again is ``invalid_schedule``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.scheduling.cron import Schedule, last_fire, next_fire

MISSED_AFTER = timedelta(minutes=10)
"""With ``catch_up_policy`` ``none``, a fire time without a request is skipped after this time."""
CLOCK_SLACK = timedelta(minutes=5)
"""The tolerated difference between two clocks."""


@dataclass(frozen=True)
class Rules:
    """The schedule and the policies of a recurring export."""

    schedule: Schedule
    window: WindowKind = WindowKind.ALL
    lag: timedelta = timedelta()
    """Delay between a fire time and its request, so that rows that commit late are in its window."""
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    catch_up: CatchUpPolicy = CatchUpPolicy.LATEST


@dataclass(frozen=True)
class Window:
    """The rows of a request by creation time: at or after ``begin``, and before ``end``."""

    begin: datetime | None = None
    """None: from the first row."""
    end: datetime | None = None
    """None: to the last row."""


class Act(StrEnum):
    """The action for a fire time."""

    WAIT = "wait"
    """None is due, or an earlier request must end first."""
    MAKE = "make"
    """Make a request."""
    DROP = "drop"
    """Skip it and the fire times before it for good."""


@dataclass(frozen=True)
class Decision:
    """The action now, and its fire time (None if none is due)."""

    act: Act
    fire_time: datetime | None = None


def is_due(rules: Rules, last_fired_for: datetime, now: datetime) -> bool:
    """Whether a fire time is due."""
    return next_fire(rules.schedule, last_fired_for) + rules.lag <= now


def is_ahead(now: datetime, *marks: datetime | None) -> bool:
    """Whether a mark is in the future, because a clock was wrong when it was written."""
    return any(mark is not None and mark > now + CLOCK_SLACK for mark in marks)


def decide(rules: Rules, last_fired_for: datetime, now: datetime, unfinished_since: datetime | None) -> Decision:
    """Decide about the fire times since the last one that became a request or was skipped.

    Before the first that is the creation of the row. ``unfinished_since`` is the creation of the newest unfinished
    request; None if all have ended.
    """
    if not is_due(rules, last_fired_for, now):
        return Decision(Act.WAIT)
    every = rules.catch_up is CatchUpPolicy.ALL
    fire_time = next_fire(rules.schedule, last_fired_for) if every else last_fire(rules.schedule, now - rules.lag)
    if rules.catch_up is CatchUpPolicy.NONE and now - rules.lag - fire_time > MISSED_AFTER:
        return Decision(Act.DROP, fire_time)
    if unfinished_since is None:
        return Decision(Act.MAKE, fire_time)
    # A fire time before the unfinished request was made did not overlap it: it was missed, and waits.
    if rules.overlap is OverlapPolicy.SKIP and fire_time > unfinished_since:
        return Decision(Act.DROP, fire_time)
    return Decision(Act.WAIT, fire_time)


def coverage(rules: Rules, fire_time: datetime, high_water_mark: datetime | None) -> Window:
    """The rows that the request of a fire time covers.

    ``previous_period`` is from one fire time to the next, even if other requests failed: at ``0 0 * * *`` it is the
    previous local day, of 23, 24 or 25 hours. ``since_last_success`` begins where the last completed request ended.
    """
    match rules.window:
        case WindowKind.ALL:
            return Window()
        case WindowKind.PREVIOUS_PERIOD:
            return Window(last_fire(rules.schedule, fire_time - timedelta(microseconds=1)), fire_time)
        case WindowKind.SINCE_LAST_SUCCESS:
            return Window(high_water_mark, fire_time)


def coverage_now(rules: Rules, now: datetime, high_water_mark: datetime | None) -> Window:
    """The rows of a request outside the schedule: up to the last fire time, or up to now minus the lag."""
    until = now - rules.lag
    if rules.window is WindowKind.SINCE_LAST_SUCCESS:
        return coverage(rules, until, high_water_mark)
    return coverage(rules, last_fire(rules.schedule, until), high_water_mark)


def advance_high_water_mark(high_water_mark: datetime | None, completed: Window) -> datetime | None:
    """The high-water mark after a request with this window is completed.

    It never moves back, and never over rows that no request delivered.
    """
    if completed.end is None:
        return high_water_mark
    if high_water_mark is None:
        return completed.end if completed.begin is None else None
    reaches = completed.begin is None or completed.begin <= high_water_mark
    return max(high_water_mark, completed.end) if reaches else high_water_mark
