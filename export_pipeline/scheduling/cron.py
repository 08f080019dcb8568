"""When a cron expression fires in a time zone: before and after any instant, whatever clocks do.

cronsim says which wall-clock times an expression means; which instants those are is said here, by Debian's rule
(cron(8), on changes of the clock). An expression whose minute and hour are both named (``30 2 * * *``) fires once for
each wall-clock time: at the jump, if clocks jump over it (several such times are one), and at its first occurrence, if
it happens twice. One whose minute or hour begins with ``*`` (``*/30 * * * *``) follows the running clock: it never
fires for a time that does not exist, and twice for one that happens twice.

cronsim's own reading of zones is not used: with it ``0 */2 * * *`` misses 02:00 where clocks go back by half an hour
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
from export_pipeline.scheduling.wall_clock import beginning

_LONGEST_EXPRESSION = 1000
_SECOND = timedelta(seconds=1)
_PROBE = timedelta(hours=12)
"""No zone changes its clock and back within it."""
_CACHED = 65_536


@dataclass(frozen=True)
class Schedule:
    """A cron expression of five fields, and the IANA zone of the clock that it is about."""

    cron: str
    time_zone: str

    @property
    def follows_the_clock(self) -> bool:
        """Whether it fires by the running clock, twice for what happens twice; else once for each wall-clock time."""
        minute, hour = self.cron.split()[:2]
        return minute.startswith("*") or hour.startswith("*")

    @property
    def name(self) -> str:
        """The schedule as one text, to tell whether it was changed."""
        return f"{self.cron} {self.time_zone}"

    @property
    def zone(self) -> ZoneInfo:
        """The zone."""
        return ZoneInfo(self.time_zone)


@lru_cache(maxsize=_CACHED)
def checked_schedule(cron: str, time_zone: str) -> Schedule:
    """A schedule that fires at all.

    Raises:
        ExportFailure: ``invalid_schedule`` or ``invalid_option``, naming ``cron`` or ``time_zone``.
    """
    checked_zone(time_zone, "time_zone")
    if len(cron) > _LONGEST_EXPRESSION or len(cron.split()) != 5:
        raise _invalid(cron, "needs five fields: minute, hour, day of month, month, day of week, such as 0 6 * * MON")
    try:
        first = next(CronSim(cron, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - a wall-clock time
    except (CronSimError, AssertionError, ValueError) as error:
        raise _invalid(cron, f"is not understood ({error})") from None
    if first is None:
        raise _invalid(cron, "never fires")
    return Schedule(" ".join(cron.split()), time_zone)


def uneven_steps(schedule: Schedule) -> list[str]:
    """What most people who write such a step do not mean: one that its field cannot hold a whole number of times."""
    fields = (("minute", 60, "hour"), ("hour", 24, "day"))
    found: list[str] = []
    for (field, size, whole), text in zip(fields, schedule.cron.split(), strict=False):
        step = re.fullmatch(r"\*/(\d+)", text)
        if step is not None and size % int(step[1]):
            at = ", ".join(str(value) for value in range(0, size, int(step[1])))
            found.append(
                f"{field} {text} is not every {step[1]} {field}s: it counts anew in each {whole}, and fires at {field} "
                f"{at}."
            )
    return found


def _invalid(cron: str, what: str) -> ExportFailure:
    return ExportFailure(FailureCode.INVALID_SCHEDULE, f"cron: {abbreviate(cron)} {what}.", field="cron")


@lru_cache(maxsize=_CACHED)
def next_fire(schedule: Schedule, after: datetime) -> datetime:
    """The first fire time (UTC) after an instant.

    Raises:
        ExportFailure: ``invalid_schedule``, it never fires again (within cronsim's 50 years, or before the year 9999).
    """
    try:
        find = _next_by_the_clock if schedule.follows_the_clock else _next_wall_time
        found = find(schedule, after.astimezone(UTC))
    except OverflowError:
        found = None
    if found is None:
        raise _invalid(schedule.cron, "never fires again")
    return found


@lru_cache(maxsize=_CACHED)
def last_fire(schedule: Schedule, until: datetime) -> datetime:
    """The last fire time (UTC) at or before an instant.

    Raises:
        ExportFailure: ``invalid_schedule``, it never fired before (within cronsim's 50 years).
    """
    try:
        find = _last_by_the_clock if schedule.follows_the_clock else _last_wall_time
        found = find(schedule, until.astimezone(UTC))
    except OverflowError:
        found = None
    if found is None:
        raise _invalid(schedule.cron, "never fired before")
    return found


def fire_times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """All fire times (UTC) after an instant, in their order; it does not end.

    Raises:
        ExportFailure: as ``next_fire``.
    """
    while True:
        after = next_fire(schedule, after)
        yield after


def _next_wall_time(schedule: Schedule, after: datetime) -> datetime | None:
    # A later wall time never begins earlier: the first one that begins after the instant is the one.
    zone = schedule.zone
    for wall in CronSim(schedule.cron, _wall(after, zone)):
        instant = beginning(wall, zone)
        if instant > after:
            return instant
    return None


def _last_wall_time(schedule: Schedule, until: datetime) -> datetime | None:
    zone = schedule.zone
    local = until.astimezone(zone)
    start = local.replace(tzinfo=None, fold=0)
    if local.fold:
        # In the second pass of an hour, its later times began already, in the first.
        start += (local.replace(fold=0).utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
    for wall in CronSim(schedule.cron, start + _SECOND, reverse=True):
        instant = beginning(wall, zone)
        if instant <= until:
            return instant
    return None


def _next_by_the_clock(schedule: Schedule, after: datetime) -> datetime | None:
    zone, low = schedule.zone, after
    for year in range(after.year, after.year + 60):
        for begin, end in _stretches(zone, year):
            if end <= low:
                continue
            offset = _offset(begin, zone)
            start = max(begin - _SECOND, low)
            wall = next(CronSim(schedule.cron, _naive(start) + offset), None)
            if wall is None:
                return None
            instant = wall.replace(tzinfo=UTC) - offset
            if instant < end:
                return instant
    return None


def _last_by_the_clock(schedule: Schedule, until: datetime) -> datetime | None:
    zone = schedule.zone
    for year in range(until.year, until.year - 60, -1):
        for begin, end in reversed(_stretches(zone, year)):
            if begin > until:
                continue
            offset = _offset(begin, zone)
            start = min(end, until.replace(microsecond=0) + _SECOND)
            wall = next(CronSim(schedule.cron, _naive(start) + offset, reverse=True), None)
            if wall is None:
                return None
            instant = wall.replace(tzinfo=UTC) - offset
            if instant >= begin:
                return instant
    return None


@lru_cache(maxsize=4096)
def _stretches(zone: ZoneInfo, year: int) -> tuple[tuple[datetime, datetime], ...]:
    """A UTC year cut where the zone's offset changes: beginning and end (exclusive) of each piece."""
    edges, at, end = [datetime(year, 1, 1, tzinfo=UTC)], datetime(year, 1, 1, tzinfo=UTC), _year_end(year)
    while at < end:
        later = min(at + _PROBE, end)
        if _offset(at, zone) != _offset(later, zone):
            edges.append(_change(at, later, zone))
        at = later
    return tuple(piece for piece in zip(edges, [*edges[1:], end], strict=True) if piece[0] < piece[1])


def _year_end(year: int) -> datetime:
    if year == MAXYEAR:
        raise OverflowError
    return datetime(year + 1, 1, 1, tzinfo=UTC)


def _change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The first second at which the offset is no longer that of ``low``."""
    offset = _offset(low, zone)
    while high - low > _SECOND:
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if _offset(middle, zone) == offset:
            low = middle
        else:
            high = middle
    return high


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def _naive(instant: datetime) -> datetime:
    return instant.replace(tzinfo=None)


def _wall(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)
