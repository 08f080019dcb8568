"""Convert wall-clock times of a zone to instants, also where clocks change.

A time that occurs twice begins at its first occurrence and ends at its second. A time that never occurs means the
instant at which the clock jumps over it: if 00:30 is skipped, the rows at or after 00:30 are the rows from the jump on,
and the rows at or before it are the rows until the jump. An instant outside the years 1 to 9999 in UTC is an
``OverflowError``.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

_SECOND = timedelta(seconds=1)
_NOT_QUITE_MIDNIGHT = timedelta(microseconds=1)


def last_moment(end: datetime) -> datetime:
    """The last wall time of a range that ends with ``end``: the end of the day for a date, else of that second.

    Timestamp columns and most languages turn a date without a time into midnight, so midnight means the whole day here.
    A caller who knows that a time was given uses ``given_as_time``.
    """
    if end.time() == time.min:
        return datetime.combine(end, time.max)
    return end.replace(microsecond=0)


def given_as_time(end: datetime) -> datetime:
    """The same second as the end of a range, marked so that midnight does not mean the whole day."""
    return end + _NOT_QUITE_MIDNIGHT if end.time() == time.min else end


def read_end(parsed: datetime, text: object) -> datetime:
    """The end of a range that was parsed from ``text``; a date without a time stays a date."""
    return given_as_time(parsed) if isinstance(text, str) and ":" in text else parsed


def beginning(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant (UTC) of a naive wall time."""
    earlier, later = _readings(wall, zone)
    return offset_change(later, earlier, zone) if later < earlier else earlier


def end_of_second(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant (UTC) at which the second of a naive wall time ends for the last time."""
    earlier, later = _readings(wall.replace(microsecond=0), zone)
    return offset_change(later, earlier, zone) if later < earlier else later + _SECOND


def _readings(wall: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The instants with the offset before and after a clock change; the second is smaller where the clock jumps."""
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return before, after


def offset_change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The first second (UTC) after ``low`` with another offset; there is one change between ``low`` and ``high``."""
    offset = low.astimezone(zone).utcoffset()
    before, after = int(low.timestamp()), int(high.timestamp()) + 1  # clocks change on whole seconds
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)
