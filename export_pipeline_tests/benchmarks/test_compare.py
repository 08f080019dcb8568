"""Ratios come from medians, divided by what was done; a goal is met or it is not."""

from __future__ import annotations

import pytest

from export_pipeline_tests.benchmarks.compare import Goal, Median, Pair, compare, median_of
from export_pipeline_tests.benchmarks.measure import Sample


def sample(wall: float, *, cpu: float = 1.0, rss_mb: float | None = 100, size: int = 1000) -> Sample:
    rss = None if rss_mb is None else round(rss_mb * 1e6)
    return Sample(wall_seconds=wall, cpu_seconds=cpu, peak_rss_bytes=rss, bytes=size, files=1, parts={"read": wall / 2})


def median(name: str, *samples: Sample, rows: int = 100, columns: int = 15, requests: int = 1) -> Median:
    return median_of(samples, work="w", contestant=name, rows=rows, columns=columns, requests=requests)


def test_medians_are_not_moved_by_one_slow_round() -> None:
    found = median("a", sample(2.0, cpu=3.0), sample(50.0, cpu=9.0, rss_mb=400), sample(1.0, cpu=2.0, rss_mb=90))
    assert (found.wall_seconds, found.cpu_seconds, found.peak_rss_mb) == (2.0, 3.0, 100.0)
    assert (found.rows_per_second, found.runs, found.parts) == (50.0, 3, {"read": pytest.approx(53 / 6)})


def test_ratios_are_those_of_the_medians() -> None:
    medians = {
        "ours": median(
            "ours", sample(1.0, cpu=4.0, rss_mb=200), sample(3.0, cpu=4.0, rss_mb=200), sample(99.0, cpu=4.0)
        ),
        "peer": median(
            "peer", sample(2.0, cpu=1.0, rss_mb=400), sample(2.0, cpu=2.0, rss_mb=400), sample(2.0, cpu=3.0)
        ),
    }
    found = compare("w", Pair("ours", "peer"), medians)
    assert (found.wall_ratio, found.cpu_ratio, found.rss_ratio) == (1.5, 2.0, 0.5)
    assert (found.goal, found.met, found.failure) == (None, None, None)


@pytest.mark.parametrize(("per", "ratio"), [("job", 8.0), ("row", 4.0), ("cell", 2.0), ("byte", 0.8), ("request", 1.6)])
def test_seconds_are_divided_by_what_was_done(per: str, ratio: float) -> None:
    medians = {
        "one": median("one", sample(8.0, size=10_000), rows=200, columns=30, requests=5),
        "other": median("other", sample(1.0, size=1000), rows=100, columns=15, requests=1),
    }
    assert compare("w", Pair("one", "other", per=per), medians).wall_ratio == pytest.approx(ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(wall_ratio=0.5), True),
        (Goal(wall_ratio=0.49), False),
        (Goal(wall_ratio=0.5, rss_ratio=0.49), False),
        (Goal(wall_seconds=1.0, rss_mb=100), True),
        (Goal(wall_seconds=0.9), False),
        (Goal(rss_mb=99), False),
    ],
)
def test_a_goal_is_met_when_nothing_is_larger(goal: Goal, met: bool) -> None:
    medians = {"one": median("one", sample(1.0)), "other": median("other", sample(2.0, rss_mb=200))}
    assert compare("w", Pair("one", "other", goal), medians).met is met


def test_what_was_not_measured_meets_no_goal() -> None:
    medians = {"one": median("one", sample(1.0, rss_mb=None)), "other": median("other", sample(2.0))}
    found = compare("w", Pair("one", "other", Goal(rss_ratio=9.0)), medians)
    assert (found.rss_ratio, found.met) == (None, False)


def test_a_peer_that_failed_leaves_no_ratio() -> None:
    failed = Median(work="w", contestant="other", rows=1, columns=1, requests=1, failure="wrote 0 rows of 1")
    found = compare(
        "w", Pair("one", "other", Goal(wall_ratio=9.0)), {"one": median("one", sample(1.0)), "other": failed}
    )
    assert (found.wall_ratio, found.cpu_ratio, found.rss_ratio, found.met) == (None, None, None, False)
    assert found.failure == "other: wrote 0 rows of 1"
