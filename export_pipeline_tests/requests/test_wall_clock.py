"""Wall-clock times as instants: gaps, overlaps, and that ranges which meet on the clock meet in time."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from export_pipeline.scheduling.wall_clock import beginning, end_of_second, given_as_time, last_moment

SECOND = timedelta(seconds=1)
JUMPS = [
    datetime(2024, 3, 10, 7, tzinfo=UTC),
    datetime(2018, 11, 4, 3, tzinfo=UTC),
    datetime(2024, 10, 5, 15, 30, tzinfo=UTC),
]


@pytest.mark.parametrize(
    ("zone", "wall", "first", "after"),
    [
        ("UTC", "2024-06-01T12:00:00", "2024-06-01T12:00:00", "2024-06-01T12:00:01"),
        ("Asia/Kolkata", "2024-06-01T12:00:00", "2024-06-01T06:30:00", "2024-06-01T06:30:01"),
        # A fraction begins where it says and ends with its second.
        ("UTC", "2024-06-01T12:00:00.5", "2024-06-01T12:00:00.5", "2024-06-01T12:00:01"),
        # Twice: 01:30 of 3 November 2024 in New York.
        ("America/New_York", "2024-11-03T01:30:00", "2024-11-03T05:30:00", "2024-11-03T06:30:01"),
        # Never: 02:30 of 10 March 2024 in New York; the clock jumped at 07:00 UTC.
        ("America/New_York", "2024-03-10T02:30:00", "2024-03-10T07:00:00", "2024-03-10T07:00:00"),
        ("America/New_York", "2024-03-10T02:00:00", "2024-03-10T07:00:00", "2024-03-10T07:00:00"),
        ("America/New_York", "2024-03-10T02:00:00.5", "2024-03-10T07:00:00", "2024-03-10T07:00:00"),
        ("America/New_York", "2024-03-10T02:59:59.999999", "2024-03-10T07:00:00", "2024-03-10T07:00:00"),
        ("America/New_York", "2024-03-10T03:00:00.25", "2024-03-10T07:00:00.25", "2024-03-10T07:00:01"),
        ("America/New_York", "2024-03-10T01:59:59", "2024-03-10T06:59:59", "2024-03-10T07:00:00"),
        ("America/New_York", "2024-03-10T03:00:00", "2024-03-10T07:00:00", "2024-03-10T07:00:01"),
        # Midnight itself never was.
        ("America/Sao_Paulo", "2018-11-04T00:00:00", "2018-11-04T03:00:00", "2018-11-04T03:00:00"),
        ("America/Sao_Paulo", "2018-11-04T00:30:00", "2018-11-04T03:00:00", "2018-11-04T03:00:00"),
        # Half an hour only.
        ("Australia/Lord_Howe", "2024-10-06T02:15:00", "2024-10-05T15:30:00", "2024-10-05T15:30:00"),
        # A whole day that Samoa left out.
        ("Pacific/Apia", "2011-12-30T12:00:00", "2011-12-30T10:00:00", "2011-12-30T10:00:00"),
    ],
)
def test_a_wall_time_begins_and_ends(zone: str, wall: str, first: str, after: str) -> None:
    moment, place = datetime.fromisoformat(wall), ZoneInfo(zone)
    assert beginning(moment, place) == datetime.fromisoformat(first).replace(tzinfo=UTC)
    assert end_of_second(moment, place) == datetime.fromisoformat(after).replace(tzinfo=UTC)


ZONES = [
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Europe/Madrid",
    "Pacific/Apia",
    "Asia/Kolkata",
]


@given(
    zone=st.sampled_from(ZONES),
    instant=st.tuples(st.sampled_from(JUMPS), st.integers(-7200, 7200)).map(lambda at: at[0] + at[1] * SECOND)
    | st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    seconds=st.integers(-5400, 5400),
    fraction=st.integers(0, 999_999),
)
def test_an_instant_is_in_a_range_exactly_if_its_wall_clock_is(
    zone: str, instant: datetime, seconds: int, fraction: int
) -> None:
    place = ZoneInfo(zone)
    shown = instant.astimezone(place).replace(tzinfo=None)
    typed = shown.replace(microsecond=0) + timedelta(seconds=seconds)
    hours = [(instant + timedelta(hours=hour)).astimezone(place).utcoffset() or timedelta() for hour in range(-3, 4)]
    # Where the clock goes back, wall times are not in the order of the instants: no range could follow them.
    assume(hours == sorted(hours))
    exact = typed.replace(microsecond=fraction)
    assert (instant >= beginning(exact, place)) == (shown >= exact)
    assert (instant < end_of_second(typed, place)) == (shown.replace(microsecond=0) <= typed)


@given(zone=st.sampled_from(ZONES), wall=st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1)))  # noqa: DTZ001
def test_a_range_that_ends_meets_the_one_that_begins_a_second_later(zone: str, wall: datetime) -> None:
    place, whole = ZoneInfo(zone), wall.replace(microsecond=0)
    assert end_of_second(whole, place) >= beginning(whole + SECOND, place)


@given(
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    day=st.dates(date(1990, 1, 1), date(2037, 1, 1)),
    second=st.integers(-2 * 86_400, 3 * 86_400),
)
def test_a_date_alone_twice_is_exactly_that_day(zone: ZoneInfo, day: date, second: int) -> None:
    assume((zone.key, day) != ("Pacific/Apia", date(2011, 12, 30)))  # never was
    midnight = datetime.combine(day, time.min)
    instant = midnight.replace(tzinfo=UTC) + timedelta(seconds=second)
    inside = beginning(midnight, zone) <= instant < end_of_second(last_moment(midnight), zone)
    assert inside == (instant.astimezone(zone).date() == day)


@given(wall=st.datetimes())
def test_a_time_that_was_given_as_one_ends_with_its_second(wall: datetime) -> None:
    for one in (wall, datetime.combine(wall, time.min)):
        assert last_moment(given_as_time(one)) == one.replace(microsecond=0)
