"""Fire times against a clock that is walked minute by minute, and where clocks are moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipeline.failures import ExportFailure
from export_pipeline.scheduling.cron import Schedule, checked_schedule, fire_times, last_fire, next_fire

Values = int | frozenset[int] | None
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
# Clocks by an hour in both hemispheres, by half an hour, at midnight, backwards for Ramadan, a day left out, none.
CHANGES = [
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"), ("America/Sao_Paulo", "2018-11-04"),
    ("America/Sao_Paulo", "2018-02-18"), ("Africa/Casablanca", "2026-02-15"), ("Pacific/Apia", "2011-12-30"),
    ("Asia/Kathmandu", "2026-06-01"), ("UTC", "2026-03-29"),
]  # fmt: skip


def local(text: str, zone: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def shown(instants: list[datetime], zone: str) -> list[str]:
    return [instant.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for instant in instants]


def fired(cron: str, zone: str, day: str, days: int = 1) -> list[str]:
    start = local(day, zone)
    end = local((date.fromisoformat(day) + timedelta(days=days)).isoformat(), zone)
    times = takewhile(lambda t: t < end, fire_times(Schedule(cron, zone), start - timedelta(seconds=1)))
    return shown(list(times), zone)


MOVED = [
    ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["2026-03-29T03:00+02:00"]),
    ("0,30 2 * * *", "Europe/Berlin", "2026-03-29", ["2026-03-29T03:00+02:00"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["2026-10-25T02:30+02:00"]),
    ("0 3 * * *", "Europe/Berlin", "2026-10-25", ["2026-10-25T03:00+01:00"]),
    ("0 0 * * *", "America/Sao_Paulo", "2018-11-04", ["2018-11-04T01:00-02:00"]),
    ("30 1 * * *", "America/New_York", "2026-11-01", ["2026-11-01T01:30-04:00"]),
    ("*/30 1-2 * * *", "Europe/Berlin", "2026-03-29", ["2026-03-29T01:00+01:00", "2026-03-29T01:30+01:00"]),
    ("0 */2 * * *", "Australia/Lord_Howe", "2026-04-05",
     [f"2026-04-05T{hour:02}:00+{'11:00' if hour == 0 else '10:30'}" for hour in range(0, 24, 2)]),
    ("0 12 * * *", "Pacific/Apia", "2011-12-29", ["2011-12-29T12:00-10:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("cron", "zone", "day", "expected"), MOVED)
def test_where_clocks_are_moved_a_named_time_fires_once_and_an_interval_by_the_clock(
    cron: str, zone: str, day: str, expected: list[str]
) -> None:
    assert fired(cron, zone, day) == expected


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_half_hourly_fires_every_real_half_hour(zone: str, day: str) -> None:
    start = local(day, zone) - DAY
    times = list(takewhile(lambda t: t < start + 3 * DAY, fire_times(Schedule("*/30 * * * *", zone), start)))
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(minutes=30)}


def test_after_an_instant_of_the_second_pass_nothing_fires_before_it() -> None:
    second = local("2026-10-25T02:15", "Europe/Berlin", fold=1)
    found = next_fire(Schedule("30 2 * * *", "Europe/Berlin"), second)
    assert shown([found], "Europe/Berlin") == ["2026-10-26T02:30+01:00"]
    earlier = last_fire(Schedule("30 2 * * *", "Europe/Berlin"), second)
    assert shown([earlier], "Europe/Berlin") == ["2026-10-25T02:30+02:00"]


def walked(matches: Callable[[datetime], bool], schedule: Schedule, start: datetime, end: datetime) -> list[datetime]:
    """Fire times found by walking a clock: what wall times it shows, and which ones it never shows."""
    zone, found, shown_before = schedule.zone, list[datetime](), set[datetime]()
    at, wall_before = start, start.astimezone(zone).replace(tzinfo=None, fold=0) - MINUTE
    while at < end:
        wall = at.astimezone(zone).replace(tzinfo=None, fold=0)
        if schedule.follows_the_clock:
            fires = matches(wall)
        else:  # the times that the clock jumped over since the last minute, and this one the first time it is shown
            passed = wall_before + MINUTE
            fires = False
            while passed <= wall:
                fires = fires or (matches(passed) and passed not in shown_before)
                shown_before.add(passed)
                passed += MINUTE
        if fires:
            found.append(at)
        at, wall_before = at + MINUTE, wall
    return found


FIELDS = st.builds(
    lambda minutes, hours: (minutes, hours),
    st.one_of(st.none(), st.integers(2, 45), st.frozensets(st.integers(0, 59), min_size=1, max_size=3)),
    st.one_of(st.none(), st.integers(2, 7), st.frozensets(st.integers(0, 23), min_size=1, max_size=4)),
)


def field(values: Values) -> str:
    if values is None:
        return "*"
    return f"*/{values}" if isinstance(values, int) else ",".join(map(str, sorted(values)))


def holds(values: Values, number: int) -> bool:
    if values is None:
        return True
    return number % values == 0 if isinstance(values, int) else number in values


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(CHANGES), FIELDS)
@example(("Australia/Lord_Howe", "2026-04-05"), (frozenset({0}), 2))
@example(("Pacific/Apia", "2011-12-30"), (frozenset({30}), frozenset({6, 12})))
@example(("America/Sao_Paulo", "2018-02-18"), (frozenset({30}), frozenset({23})))
def test_forwards_and_backwards_agree_with_a_clock_that_is_walked(
    change: tuple[str, str], fields: tuple[Values, Values]
) -> None:
    (zone, day), (minutes, hours) = change, fields
    schedule = Schedule(f"{field(minutes)} {field(hours)} * * *", zone)
    middle = local(day, zone)
    start, end = middle - DAY, middle + 2 * DAY
    expected = walked(lambda w: holds(minutes, w.minute) and holds(hours, w.hour), schedule, start, end)
    found = list(takewhile(lambda t: t < end, fire_times(schedule, start - timedelta(seconds=1))))
    assert found == expected
    assert list(reversed(list(backwards(schedule, end - timedelta(microseconds=1), start)))) == expected


def backwards(schedule: Schedule, until: datetime, start: datetime) -> Iterator[datetime]:
    while (until := last_fire(schedule, until)) >= start:
        yield until
        until -= timedelta(microseconds=1)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["30 2 * * *", "*/20 * * * *", "0 0 1 * *", "15 1,2 * * MON", "0 */5 * * *", "0 0 L * *"]),
    st.sampled_from([zone for zone, _ in CHANGES]),
    st.datetimes(datetime.fromisoformat("2005-01-01"), datetime.fromisoformat("2035-01-01")),
)
def test_the_next_fire_is_after_and_the_last_is_not_and_nothing_is_between(
    cron: str, zone: str, instant: datetime
) -> None:
    schedule, at = Schedule(cron, zone), instant.replace(tzinfo=UTC)
    after, before = next_fire(schedule, at), last_fire(schedule, at)
    assert before <= at < after
    assert next_fire(schedule, before) == after
    assert last_fire(schedule, after) == after
    assert last_fire(schedule, after - timedelta(microseconds=1)) == before


WRONG = ["", "* * * *", "0 0 * * * *", "@daily", "60 * * * *", "0 0 30 2 *", "0 0 1 1 MON#6", "a b c d e", "0 0 " * 900,
         "*/0 * * * *", "L/2 * * * *", "0 0 * * 5L/2"]  # fmt: skip


@pytest.mark.parametrize("cron", WRONG)
def test_an_expression_that_is_none_is_refused_and_named(cron: str) -> None:
    with pytest.raises(ExportFailure, match="invalid_schedule: cron: ") as refused:
        checked_schedule(cron, "UTC")
    assert len(refused.value.message) < 250


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-L#W MONFRI", max_size=40))
def test_whatever_is_typed_is_a_schedule_or_refused(text: str) -> None:
    try:
        schedule = checked_schedule(text, "Europe/Berlin")
    except ExportFailure:
        return
    at = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        assert next_fire(schedule, at) > at
    except ExportFailure as never:
        assert "never fires again" in never.message  # noqa: PT017 - rare, such as a 29 February that is a Monday


def test_a_zone_that_is_none_is_refused() -> None:
    with pytest.raises(ExportFailure, match="invalid_option: time_zone: 'Mars/Olympus'"):
        checked_schedule("0 0 * * *", "Mars/Olympus")


def test_years_at_the_end_of_the_calendar_never_fire_instead_of_failing_otherwise() -> None:
    for cron in ("0 0 * * *", "*/5 * * * *"):
        with pytest.raises(ExportFailure, match="never fires again"):
            next_fire(Schedule(cron, "Europe/Berlin"), datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
