"""Decisions, windows and the high-water mark: table by table, by property, and over simulated years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.scheduling.cron import Schedule
from export_pipeline.scheduling.windows import (
    Act,
    Decision,
    Rules,
    Window,
    advance_high_water_mark,
    coverage,
    coverage_now,
    decide,
)
from export_pipeline_tests.recurring.simulate import LAG, ZONES, all_rules, check, iter_until, simulate

HOURLY = Schedule("0 * * * *", "UTC")
SKIP, QUEUE = OverlapPolicy
LATEST, ALL, NONE = CatchUpPolicy


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-02T{clock}:00+00:00")


# The last fire time done with is 09:00: what, at that time, with that unfinished request?
DECISIONS = [
    ("09:30", None, SKIP, LATEST, Decision(Act.WAIT)),
    ("10:00", None, SKIP, LATEST, Decision(Act.MAKE, at("10:00"))),
    ("10:00", None, QUEUE, NONE, Decision(Act.MAKE, at("10:00"))),
    ("12:30", None, SKIP, LATEST, Decision(Act.MAKE, at("12:00"))),
    ("12:30", None, SKIP, ALL, Decision(Act.MAKE, at("10:00"))),
    ("12:30", None, SKIP, NONE, Decision(Act.DROP, at("12:00"))),
    ("12:09", None, SKIP, NONE, Decision(Act.MAKE, at("12:00"))),
    ("10:05", "09:01", SKIP, LATEST, Decision(Act.DROP, at("10:00"))),
    ("10:05", "09:01", QUEUE, LATEST, Decision(Act.WAIT, at("10:00"))),
    ("12:05", "09:01", QUEUE, LATEST, Decision(Act.WAIT, at("12:00"))),
    ("12:05", "09:01", QUEUE, ALL, Decision(Act.WAIT, at("10:00"))),
    ("12:05", "09:01", SKIP, ALL, Decision(Act.DROP, at("10:00"))),
    ("12:05", "11:30", SKIP, ALL, Decision(Act.WAIT, at("10:00"))),  # missed, not overlapping: made up for later
    ("12:30", "12:01", QUEUE, NONE, Decision(Act.DROP, at("12:00"))),
]


@pytest.mark.parametrize(("now", "unfinished", "overlap", "catch_up", "expected"), DECISIONS)
def test_what_becomes_of_a_fire_time(
    now: str, unfinished: str | None, overlap: OverlapPolicy, catch_up: CatchUpPolicy, expected: Decision
) -> None:
    rules = Rules(HOURLY, overlap=overlap, catch_up=catch_up)
    assert decide(rules, at("09:00"), at(now), at(unfinished) if unfinished else None) == expected


def test_the_lag_puts_the_request_off_and_leaves_the_window_where_it_is() -> None:
    rules = Rules(HOURLY, WindowKind.PREVIOUS_PERIOD, timedelta(minutes=5))
    assert decide(rules, at("09:00"), at("10:04"), None).act is Act.WAIT
    assert decide(rules, at("09:00"), at("10:05"), None) == Decision(Act.MAKE, at("10:00"))
    assert coverage(rules, at("10:00"), None) == Window(at("09:00"), at("10:00"))
    assert coverage_now(rules, at("10:04"), None) == Window(at("08:00"), at("09:00"))


def test_a_request_out_of_turn_goes_on_where_the_last_success_ended() -> None:
    rules = Rules(HOURLY, WindowKind.SINCE_LAST_SUCCESS, timedelta(minutes=5))
    assert coverage_now(rules, at("10:20"), at("08:00")) == Window(at("08:00"), at("10:15"))
    assert coverage_now(Rules(HOURLY), at("10:20"), at("08:00")) == Window()


HOURS = st.integers(0, 12)


@given(st.lists(st.tuples(st.one_of(st.none(), HOURS), st.one_of(st.none(), HOURS))))
def test_the_mark_never_goes_back_and_everything_before_it_was_delivered(
    completed: list[tuple[int | None, int | None]],
) -> None:
    """Whatever completes, in whatever order: re-issued windows, revived requests, windows ahead of the mark."""

    def instant(hour: int | None) -> datetime | None:
        return None if hour is None else datetime(2026, 1, 1, hour, tzinfo=UTC)

    mark, delivered = None, set[int]()
    for begin, end in completed:
        moved = advance_high_water_mark(mark, Window(instant(begin), instant(end)))
        delivered |= set(range(begin if begin is not None else -1, end if end is not None else 13))
        assert mark is None or (moved is not None and moved >= mark)
        mark = moved
        assert mark is None or set(range(-1, mark.hour)) <= delivered


DAYS = [
    ("Europe/Madrid", {23: 10, 24: 3632, 25: 10}),
    ("Australia/Lord_Howe", {23.5: 10, 24: 3632, 24.5: 10}),
    ("Asia/Kolkata", {24: 3652}),
]


@pytest.mark.parametrize(("zone", "expected"), DAYS)
def test_yesterday_is_the_local_day_of_23_24_or_25_hours(zone: str, expected: dict[float, int]) -> None:
    rules = Rules(Schedule("0 0 * * *", zone), WindowKind.PREVIOUS_PERIOD)
    ends = list(iter_until(rules.schedule, datetime(2024, 1, 1, 12, tzinfo=UTC)))[-3652:]
    windows = [coverage(rules, end, None) for end in ends]
    assert all(earlier.end == later.begin for earlier, later in pairwise(windows))
    lengths = [(window.end - window.begin) / timedelta(hours=1) for window in windows if window.begin and window.end]
    assert {hours: lengths.count(hours) for hours in set(lengths)} == expected


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", ["0 0 * * *", "30 2 * * *", "0 0 1 * *"])
def test_over_ten_simulated_years_windows_meet_and_every_row_is_delivered_once(zone: str, cron: str) -> None:
    rules = list(all_rules(zone, cron))
    for one in (rules[0], rules[1 + (len(cron) + len(zone)) % (len(rules) - 1)]):
        figures = simulate(zone, cron, one, years=10)
        check(figures)
        assert figures.failed > 0


@pytest.mark.parametrize("rules", list(all_rules("Europe/Madrid", "0 */6 * * *"))[1:], ids=str)
def test_under_every_policy_every_row_is_delivered_once(rules: Rules) -> None:
    figures = simulate("Europe/Madrid", rules.schedule.cron, rules, years=2)
    check(figures)
    assert figures.late > 0
    assert sum(figures.deliveries.values()) > 1000


def test_the_simulation_notices_a_lag_that_is_too_small() -> None:
    rules = Rules(Schedule("0 */6 * * *", "UTC"), WindowKind.SINCE_LAST_SUCCESS, LAG / 10)
    with pytest.raises(AssertionError, match="had not committed"):
        simulate("UTC", rules.schedule.cron, rules, years=10)
