"""Years of recurring exports in seconds: fire times, windows, failures, downtime and late rows, without a database.

``python -m export_pipeline_tests.recurring.simulate`` prints the figures that docs/recurring.md shows; a test runs the
same simulation. Everything that is decided is decided by ``requests.recurrence``; what is simulated is the world:
a daemon that looks every few seconds and is down for days, exports that last too long, fail or are canceled, rows that
commit late.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import TextIO

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.scheduling.cron import Schedule, fire_times, next_fire
from export_pipeline.scheduling.windows import Act, Rules, Window, advance_high_water_mark, coverage, decide

YEARS = 12
START = datetime(2014, 1, 1, tzinfo=UTC)
ZONES = (
    "Europe/Madrid", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Casablanca",
    "Asia/Gaza", "Asia/Kolkata",
)  # fmt: skip
"""Clocks by an hour in both hemispheres and at midnight, by half an hour, for Ramadan, by decree, and never moved."""
CRONS = ("0 0 * * *", "30 2 * * *", "0 */6 * * *", "0 8,14 * * MON-FRI", "0 0 1 * *")
LAG = timedelta(minutes=5)
TICK = timedelta(seconds=4)
HOUR = timedelta(hours=1)


@dataclass
class Figures:
    """What one simulation came to."""

    zone: str
    cron: str
    window: WindowKind
    fire_times: int = 0
    made: int = 0
    completed: int = 0
    failed: int = 0
    dropped: int = 0
    windows: list[Window] = field(default_factory=list)
    """Of the completed requests (``since_last_success``) or of all that were made (``previous_period``)."""
    rows: int = 0
    late: int = 0
    """Rows that committed after the end of the window that they were created in."""
    deliveries: Counter[int] = field(default_factory=Counter)
    """How many rows were delivered so often; those that no window has reached yet are left out."""
    local_days: Counter[float] = field(default_factory=Counter)
    """Windows from one local midnight to the next, by their hours."""

    @property
    def gaps(self) -> int:
        return sum(_end(earlier) < _begin(later) for earlier, later in pairwise(self.windows))

    @property
    def overlaps(self) -> int:
        return sum(_end(earlier) > _begin(later) for earlier, later in pairwise(self.windows))


@dataclass
class _Export:
    since: datetime
    ends: datetime
    covered: Window
    succeeds: bool
    read: range
    """Indices of the rows that it read."""


class _Rows:
    """Rows by creation time, each of which commits up to the lag later."""

    def __init__(self, chance: random.Random, start: datetime, end: datetime) -> None:
        self.created: list[datetime] = []
        self.committed: list[datetime] = []
        at = start
        while at < end:
            self._add(chance, at)
            at += timedelta(seconds=chance.uniform(60, 86_400))

    def _add(self, chance: random.Random, at: datetime) -> None:
        self.created.append(at)
        self.committed.append(at + chance.choice((timedelta(), LAG * chance.random())))

    def between(self, covered: Window) -> range:
        begin = 0 if covered.begin is None else bisect_left(self.created, covered.begin)
        return range(begin, bisect_left(self.created, _end(covered)))


def simulate(
    zone: str, cron: str, rules: Rules, *, years: int = YEARS, seed: int = 1, start: datetime = START
) -> Figures:
    """Let a recurring export live for years."""
    chance = random.Random(f"{zone} {cron} {rules.window} {seed}")
    figures, end = Figures(zone, cron, rules.window), start.replace(year=start.year + years)
    rows = _Rows(chance, start, end)
    delivered: Counter[int] = Counter()
    last, mark, running, now = start, None, None, start
    while now < end:
        if running is not None and running.ends <= now:
            if running.succeeds:
                mark = advance_high_water_mark(mark, running.covered)
                delivered.update(running.read)
                figures.completed += 1
            else:
                figures.failed += 1
            if running.succeeds or rules.window is WindowKind.PREVIOUS_PERIOD:
                figures.windows.append(running.covered)
            running = None
        decision = decide(rules, last, now, running.since if running else None)
        if decision.act is Act.DROP and decision.fire_time:
            last = decision.fire_time
            figures.dropped += 1
        elif decision.act is Act.MAKE and decision.fire_time:
            last = decision.fire_time
            figures.made += 1
            running = _export(chance, rows, coverage(rules, decision.fire_time, mark), now)
        now = _later(chance, now, running, None if decision.act is Act.WAIT and decision.fire_time else last, rules)
    _count_rows(figures, rows, delivered, mark)
    _count_days(figures, rules.schedule)
    return figures


def _export(chance: random.Random, rows: _Rows, covered: Window, now: datetime) -> _Export:
    """One that mostly takes minutes, sometimes days, and does not always end well."""
    lasts = timedelta(minutes=chance.uniform(0.1, 20)) if chance.random() < 0.97 else HOUR * chance.uniform(1, 60)
    read = rows.between(covered)
    # What has not committed yet is not in the snapshot: with too small a lag it would be lost here.
    assert all(rows.committed[index] <= now for index in read), "a row of the window had not committed"
    return _Export(now, now + lasts, covered, chance.random() < 0.85, read)


def _later(
    chance: random.Random, now: datetime, running: _Export | None, last: datetime | None, rules: Rules
) -> datetime:
    """When the daemon looks again at something new: a few seconds late, or days if it is down."""
    events = [running.ends] if running else []
    if last is not None:
        events.append(next_fire(rules.schedule, last) + rules.lag)
    down = timedelta(days=chance.uniform(0, 4)) if chance.random() < 0.004 else timedelta()
    return max(min(events), now) + TICK * chance.random() + down


def _count_rows(figures: Figures, rows: _Rows, delivered: Counter[int], mark: datetime | None) -> None:
    if figures.window is WindowKind.SINCE_LAST_SUCCESS and mark is not None:
        reached = rows.between(Window(None, mark))
        figures.deliveries = Counter(delivered[index] for index in reached)
    figures.rows = len(rows.created)
    ends = [_end(window) for window in figures.windows]
    for created, committed in zip(rows.created, rows.committed, strict=True):
        at = bisect_left(ends, created)
        figures.late += at < len(ends) and created < ends[at] < committed


def _count_days(figures: Figures, schedule: Schedule) -> None:
    if figures.window is not WindowKind.PREVIOUS_PERIOD or figures.cron != "0 0 * * *":
        return
    for window in figures.windows:
        begin, end = _begin(window), _end(window)
        local_begin, local_end = begin.astimezone(schedule.zone), end.astimezone(schedule.zone)
        # Where clocks jump over midnight, the day begins at 01:00.
        assert local_begin.date() + timedelta(days=1) == local_end.date(), window
        for edge in (begin, end):
            before = (edge - timedelta(seconds=1)).astimezone(schedule.zone)
            assert before.date() < edge.astimezone(schedule.zone).date(), window
        figures.local_days[(end - begin) / HOUR] += 1


def _begin(window: Window) -> datetime:
    return window.begin or START - timedelta(days=36_500)


def _end(window: Window) -> datetime:
    assert window.end is not None
    return window.end


def all_rules(zone: str, cron: str) -> Iterator[Rules]:
    """Both kinds of windows: every period made up for, and what came since the last success under every policy."""
    schedule = Schedule(cron, zone)
    yield Rules(schedule, WindowKind.PREVIOUS_PERIOD, LAG, OverlapPolicy.QUEUE, CatchUpPolicy.ALL)
    for overlap, catch_up in product(OverlapPolicy, CatchUpPolicy):
        yield Rules(schedule, WindowKind.SINCE_LAST_SUCCESS, LAG, overlap, catch_up)


def check(figures: Figures) -> None:
    """What must hold of every simulation.

    Raises:
        AssertionError: it does not.
    """
    assert figures.made > 0
    assert (figures.gaps, figures.overlaps) == (0, 0), figures
    assert set(figures.deliveries) <= {1}, figures.deliveries
    if figures.window is WindowKind.PREVIOUS_PERIOD:
        assert figures.dropped == 0


def count_fire_times(zone: str, cron: str, *, years: int = YEARS) -> int:
    """Of the whole time."""
    end = START.replace(year=START.year + years)
    return sum(1 for _ in iter_until(Schedule(cron, zone), end))


def iter_until(schedule: Schedule, end: datetime) -> Iterator[datetime]:
    """Fire times from the simulation's start."""
    for instant in fire_times(schedule, START - timedelta(seconds=1)):
        if instant >= end:
            return
        yield instant


def report(out: TextIO, *, years: int = YEARS) -> None:
    """Simulate every zone, cron, kind of window and policy; print a line for each zone and one for all."""
    out.write(f"{years} years x {len(ZONES)} zones x {len(CRONS)} crons x 7 sets of rules\n")
    heads = ("zone", "fire times", "made", "completed", "gaps", "overlaps", "late rows", "rows once", "never or twice")
    out.write(_line((*heads, "days of 23/23.5/24/24.5/25 h")))
    total = [0] * (len(heads) - 1)
    for zone in ZONES:
        sums, days = [0] * (len(heads) - 1), Counter[float]()
        for cron in CRONS:
            sums[0] += count_fire_times(zone, cron, years=years)
            for rules in all_rules(zone, cron):
                figures = simulate(zone, cron, rules, years=years)
                check(figures)
                others = sum(number for often, number in figures.deliveries.items() if often != 1)
                told = (figures.made, figures.completed, figures.gaps, figures.overlaps, figures.late)
                for place, number in enumerate((*told, figures.deliveries[1], others), 1):
                    sums[place] += number
                days += figures.local_days
        out.write(_line((zone, *sums, "/".join(str(days[hours]) for hours in (23, 23.5, 24, 24.5, 25)))))
        total = [one + more for one, more in zip(total, sums, strict=True)]
    out.write(_line(("all", *total, "")))


def _line(cells: tuple[object, ...]) -> str:
    return (
        "".join(str(cell).ljust(22 if not at else 12 if at < 8 else 16) for at, cell in enumerate(cells)).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    report(sys.stdout)
