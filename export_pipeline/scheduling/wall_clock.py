"""Wall-clock times of a zone as instants: what a date that somebody typed means where clocks are moved.

A time that happens twice begins at its first occurrence and ends at its second. One that never happens
stands for the instant at which the clock jumps over it: the rows whose wall clock is at or after 00:30 are
the rows from the jump on, and those at or before it are the rows until the jump.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

_SECOND = timedelta(seconds=1)
_NOT_QUITE_MIDNIGHT = timedelta(microseconds=1)


def last_moment(end: datetime) -> datetime:
    """The last wall time of a range that ends with ``end``: the whole day of a date alone, else that second.

    A column of times, and most languages, turn a date alone into midnight. So midnight is the day here. Whoever knows
    that a time was given says so by ``given_as_time``.
    """
    if end.time() == time.min:
        return datetime.combine(end, time.max)
    return end.replace(microsecond=0)


def given_as_time(end: datetime) -> datetime:
    """The same second as the end of a range, and never taken for a date alone."""
    return end + _NOT_QUITE_MIDNIGHT if end.time() == time.min else end


def read_end(parsed: datetime, text: object) -> datetime:
    """The end of a range as it was parsed from ``text``; a date alone stays the date."""
    return given_as_time(parsed) if isinstance(text, str) and ":" in text else parsed


def beginning(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant (UTC) of a naive wall time.

    Raises:
        OverflowError: it is outside the years 1 to 9999 in UTC.
    """
    earlier, later = _readings(wall, zone)
    return _jump(later, earlier, zone) if later < earlier else earlier


def end_of_second(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant (UTC) right after the second of a naive wall time has passed, for the last time.

    Raises:
        OverflowError: it is outside the years 1 to 9999 in UTC.
    """
    earlier, later = _readings(wall.replace(microsecond=0), zone)
    return _jump(later, earlier, zone) if later < earlier else later + _SECOND


def _readings(wall: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """With the offset before and after a change of the clock; the second is the smaller where the clock jumps on."""
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return before, after


def _jump(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The instant between two, of different offsets, from which on the second one's offset holds."""
    offset = low.astimezone(zone).utcoffset()
    before, after = int(low.timestamp()), int(high.timestamp()) + 1  # clocks are moved on whole seconds
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)
