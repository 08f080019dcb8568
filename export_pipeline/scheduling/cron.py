"""Fire times of cron expressions in a time zone: the next after an instant and the last before it.

cronsim finds the wall-clock times of an expression. This module converts them to instants by Debian's rule (cron(8), on
changes of the clock). An expression whose minute and hour are fixed (``30 2 * * *``) fires once for each wall-clock
time: at the jump, if clocks jump over it (several such times become one), and at its first occurrence, if it occurs
twice. An expression whose minute or hour begins with ``*`` (``*/30 * * * *``) follows the running clock: it never fires
for a time that does not exist, and twice for a time that occurs twice.

cronsim's own handling of zones is not used: with it ``0 */2 * * *`` misses 02:00 where clocks go back by half an hour
(Australia/Lord_Howe), and the time after an instant of the second 02:15 is one before that instant (cronsim 2.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from export_pipeline.failures import ExportFailure, FailureCode, abbreviate, checked_zone
from export_pipeline.scheduling.wall_clock import beginning, offset_change

_LONGEST_EXPRESSION = 1000
_SECOND = timedelta(seconds=1)
_PROBE = timedelta(hours=12)
"""No zone changes its clock and changes it back within this time."""
_CACHED = 65_536


@dataclass(frozen=True)
class Schedule:
    """A cron expression of five fields, and the IANA zone of its clock."""

    cron: str
    time_zone: str

    @property
    def follows_the_clock(self) -> bool:
        """Whether it fires by the running clock, else once for each wall-clock time."""
        minute, hour = self.cron.split()[:2]
        return minute.startswith("*") or hour.startswith("*")

    @property
    def name(self) -> str:
        """The schedule as one text, to detect a change."""
        return f"{self.cron} {self.time_zone}"

    @property
    def zone(self) -> ZoneInfo:
        """The zone."""
        return ZoneInfo(self.time_zone)


@lru_cache(maxsize=_CACHED)
def checked_schedule(cron: str, time_zone: str) -> Schedule:
    """A schedule that fires at least once (``invalid_schedule``, ``invalid_option``)."""
    checked_zone(time_zone, "time_zone")
    if len(cron) > _LONGEST_EXPRESSION or len(cron.split()) != 5:
        raise _invalid(cron, "needs five fields: minute, hour, day of month, month, day of week, such as 0 6 * * MON")
    try:
        first = next(CronSim(cron, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - a wall-clock time
    except (CronSimError, AssertionError, ValueError) as error:
        raise _invalid(cron, f"is not a valid cron expression ({error})") from None
    if first is None:
        raise _invalid(cron, "never fires")
    return Schedule(" ".join(cron.split()), time_zone)


def uneven_steps(schedule: Schedule) -> list[str]:
    """Warnings about steps that do not divide their field evenly, which most authors do not expect."""
    fields = (("minute", 60, "hour"), ("hour", 24, "day"))
    found: list[str] = []
    for (field, size, whole), text in zip(fields, schedule.cron.split(), strict=False):
        step = re.fullmatch(r"\*/(\d+)", text)
        if step is not None and size % int(step[1]):
            at = ", ".join(str(value) for value in range(0, size, int(step[1])))
            found.append(
                f"{field} {text} is not every {step[1]} {field}s: it restarts in each {whole}, and fires at {field} "
                f"{at}."
            )
    return found


def _invalid(cron: str, problem: str) -> ExportFailure:
    return ExportFailure(FailureCode.INVALID_SCHEDULE, f"cron: {abbreviate(cron)} {problem}.", field="cron")


@lru_cache(maxsize=_CACHED)
def next_fire(schedule: Schedule, after: datetime) -> datetime:
    """The first fire time (UTC) after an instant.

    ``invalid_schedule`` if it never fires again (within cronsim's 50 years, or before the year 9999).
    """
    return _fire(schedule, after.astimezone(UTC), reverse=False)


@lru_cache(maxsize=_CACHED)
def last_fire(schedule: Schedule, until: datetime) -> datetime:
    """The last fire time (UTC) at or before an instant; ``invalid_schedule`` if there is none in 50 years (cronsim)."""
    return _fire(schedule, until.astimezone(UTC), reverse=True)


def fire_times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """All fire times (UTC) after an instant, in order and without end."""
    while True:
        after = next_fire(schedule, after)
        yield after


def _fire(schedule: Schedule, instant: datetime, *, reverse: bool) -> datetime:
    find = _by_the_clock if schedule.follows_the_clock else _by_wall_time
    try:
        found = find(schedule, instant, reverse=reverse)
    except OverflowError:
        found = None
    if found is None:
        raise _invalid(schedule.cron, "never fired before" if reverse else "never fires again")
    return found


def _by_wall_time(schedule: Schedule, instant: datetime, *, reverse: bool) -> datetime | None:
    local = instant.astimezone(schedule.zone)
    start = local.replace(tzinfo=None, fold=0)
    if reverse:
        start += _SECOND
        if local.fold:
            # In the second pass of a repeated hour, its later times already began in the first pass.
            start += (local.replace(fold=0).utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
    # A later wall time never begins earlier: the first one on the right side of the instant is the result.
    for wall in CronSim(schedule.cron, start, reverse=reverse):
        found = beginning(wall, schedule.zone)
        if found <= instant if reverse else found > instant:
            return found
    return None


def _by_the_clock(schedule: Schedule, instant: datetime, *, reverse: bool) -> datetime | None:
    step = -1 if reverse else 1
    for year in range(instant.year, instant.year + 60 * step, step):
        for begin, end in _stretches(schedule.zone, year)[::step]:
            if begin > instant if reverse else end <= instant:
                continue
            offset = _offset(begin, schedule.zone)
            # cronsim's result is strictly after the start, or strictly before it in reverse.
            start = min(end, instant.replace(microsecond=0) + _SECOND) if reverse else max(begin - _SECOND, instant)
            wall = next(CronSim(schedule.cron, start.replace(tzinfo=None) + offset, reverse=reverse), None)
            if wall is None:
                return None
            found = wall.replace(tzinfo=UTC) - offset
            if begin <= found < end:
                return found
    return None


@lru_cache(maxsize=4096)
def _stretches(zone: ZoneInfo, year: int) -> tuple[tuple[datetime, datetime], ...]:
    """A UTC year, split where the zone's offset changes: beginning and end (exclusive) of each part."""
    edges, at, end = [datetime(year, 1, 1, tzinfo=UTC)], datetime(year, 1, 1, tzinfo=UTC), _year_end(year)
    while at < end:
        later = min(at + _PROBE, end)
        if _offset(at, zone) != _offset(later, zone):
            edges.append(offset_change(at, later, zone))
        at = later
    return tuple(part for part in zip(edges, [*edges[1:], end], strict=True) if part[0] < part[1])


def _year_end(year: int) -> datetime:
    if year == MAXYEAR:
        raise OverflowError
    return datetime(year + 1, 1, 1, tzinfo=UTC)


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()
